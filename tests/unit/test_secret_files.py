"""Files with secrets."""

from __future__ import annotations

import os
import secrets

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.secret_files import LARGEST_FILE, is_sample, read_secret_lines


class SecretFileTests(SynchronousTestCase):
    """`read_secret_lines`."""

    def file(self, content: bytes, mode: int = 0o600) -> str:
        """Return the path of a new file."""
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(content)
        os.chmod(path, mode)
        return path

    def refused(self, path: str) -> str:
        """Return why a file is refused."""
        return str(self.assertRaises(ValueError, read_secret_lines, path, 8))

    def test_one_secret_a_line(self) -> None:
        """In their order, without empty lines and the space around."""
        for content, found in (
            (b"eight888", (b"eight888",)),
            (b"new-secret\n\nold secret\r\n", (b"new-secret", b"old secret")),
            (b"# of October\nnew-secret\n#old-secret\n", (b"new-secret",)),
            (b"  \xff\xfe\xfd\xfc\xff\xfe\xfd\xfc\t\n", (b"\xff\xfe\xfd\xfc\xff\xfe\xfd\xfc",)),
        ):
            self.assertEqual(read_secret_lines(self.file(content), 8), found)

    def test_a_file_without_good_secrets(self) -> None:
        """The message names the file and the line, and no secret."""
        for content, part in (
            (b"", "has no secret"),
            (b"\n \n", "has no secret"),
            (b"long enough\nseven77\n", "line 2 has less than 8 bytes"),
            (b"x" * (LARGEST_FILE + 1), "has more than"),
        ):
            path = self.file(content)
            message = self.refused(path)
            self.assertIn(part, message)
            self.assertIn(path, message)
            self.assertNotIn("seven77", message)

    def test_a_file_that_cannot_be_read(self) -> None:
        """It is not there, or a directory."""
        self.assertIn("No such file", self.refused(self.mktemp()))
        self.assertIn("cannot be read", self.refused("/"))

    def test_a_file_that_every_user_can_read(self) -> None:
        """It is refused; the group may read it, as orchestrators set it up."""
        for mode in (0o604, 0o644, 0o602, 0o666):
            self.assertIn("chmod o=", self.refused(self.file(b"long enough", mode)))
        for mode in (0o400, 0o440, 0o600, 0o640, 0o660):
            self.assertEqual(len(read_secret_lines(self.file(b"long enough", mode), 8)), 1)


class SampleTests(SynchronousTestCase):
    """Secrets that are none."""

    def test_what_people_copy(self) -> None:
        """From documentation, from tutorials, and from what tools write as a reminder."""
        for text in (
            "changeme",
            "CHANGE-ME-change-me-change-me-change-me",
            "your-256-bit-secret",
            "your-256-bit-secret-your-256-bit-secret",
            "a-string-secret-at-least-256-bits-long",
            "django-insecure-4w#x0s8!k2p9v7q1z6",
            "replace_this_secret_with_a_real_one",
            "supersecretsupersecretsupersecret",
            "my secret key my secret key my secret key",
            "secret",
            "password123",
            "test-key-test-key-test-key",
            "0" * 64,
            "abababababababababababababababab",
        ):
            self.assertTrue(is_sample(text), text)

    def test_what_is_random(self) -> None:
        """Also in hex, with a prefix, or a phrase of words."""
        for text in (
            "3f9a1c7be2d84650",
            "plk_celery_Zt8mXq2Lw0",
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "correct horse battery staple, and a secret ingredient",
        ):
            self.assertFalse(is_sample(text), text)
        for _ in range(200):
            self.assertFalse(is_sample(secrets.token_hex(16)))
            self.assertFalse(is_sample(secrets.token_urlsafe(32)))
