"""Files with secrets."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.secret_files import LARGEST_FILE, read_secret_lines


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
        for content, secrets in (
            (b"eight888", (b"eight888",)),
            (b"new-secret\n\nold secret\r\n", (b"new-secret", b"old secret")),
            (b"  \xff\xfe\xfd\xfc\xff\xfe\xfd\xfc\t\n", (b"\xff\xfe\xfd\xfc\xff\xfe\xfd\xfc",)),
        ):
            self.assertEqual(read_secret_lines(self.file(content), 8), secrets)

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
