"""The simple way to authenticate: two files with secrets, and what the server does with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.build import LiveConfiguration, Sources
from asyncplumber.auth.keys import digest
from asyncplumber.auth.secret_files import SecretFile
from asyncplumber.auth.tokens.mint import mint
from asyncplumber.auth.watched_file import INTERVAL
from asyncplumber.errors import InvalidToken
from asyncplumber.grant import Action, Grant
from asyncplumber.interfaces import Facts
from asyncplumber.options import CREDENTIALS, Options

OLD, NEW = "old: Zt8mXq2Lw0PfRb5nYc7sKd1vHg4j", "new: q2Lw0PfRb5nYc7sKd1vHg4jZt8mX"
KEY = "plk_celery_Zt8mXq2Lw0"


class SecretFilesCase(SynchronousTestCase):
    """A folder with files."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()

    def write(self, name: str, text: str, mode: int = 0o600) -> str:
        """Replace a file by a new one; return its path."""
        path, new = self.folder / name, self.folder / "new"
        new.write_text(text)
        new.chmod(mode)
        os.replace(new, path)
        return str(path)


class OptionTests(SecretFilesCase):
    """`--jwt-secret-file`, `--publisher-key-file`, `--audience`."""

    def parsed(self, *words: str, **environ: str) -> Options:
        options = Options(environ)
        options.parseOptions(words)
        return options

    def refused(self, *words: str, **environ: str) -> str:
        return str(self.assertRaises(UsageError, self.parsed, *words, **environ))

    def test_on_the_command_line_and_in_the_environment(self) -> None:
        """The content was read when the options were."""
        jwt, keys = self.write("jwt", f"{NEW}\n{OLD}\n"), self.write("keys", KEY)
        by_words = self.parsed("--jwt-secret-file", jwt, "--publisher-key-file", keys)
        by_environment = self.parsed(
            ASYNCPLUMBER_JWT_SECRET_FILE=jwt,
            ASYNCPLUMBER_PUBLISHER_KEY_FILE=keys,
            ASYNCPLUMBER_AUDIENCE="https://push.example.com",
        )
        for options in (by_words, by_environment):
            self.assertEqual(options.configured.secrets, (NEW.encode(), OLD.encode()))
            self.assertEqual(options.configured.keys, (KEY,))
        self.assertEqual(by_words.sources.audience, "asyncplumber")
        self.assertEqual(by_environment.sources.audience, "https://push.example.com")

    def test_what_systemd_hands_over(self) -> None:
        """Files of fixed names in a folder of the service; an option wins over them."""
        self.write(CREDENTIALS["jwt-secret-file"], OLD)
        self.write(CREDENTIALS["publisher-key-file"], KEY)
        environ = {"CREDENTIALS_DIRECTORY": str(self.folder)}
        options = self.parsed(**environ)
        self.assertEqual(options.configured.secrets, (OLD.encode(),))
        self.assertEqual(options.configured.keys, (KEY,))
        other = self.write("other", NEW)
        named = self.parsed("--jwt-secret-file", other, **environ)
        self.assertEqual(named.configured.secrets, (NEW.encode(),))

    def test_wrong_files_are_refused(self) -> None:
        """With a sentence that names the option and the file, and never shows a secret."""
        short = "only thirty-one bytes are here"
        for option, good in (("jwt-secret-file", NEW), ("publisher-key-file", KEY)):
            for text, mode, part in (
                (good, 0o644, "chmod o="),
                (good, 0o602, "chmod o="),
                ("", 0o600, "there is no"),
                ("# nothing\n", 0o600, "there is no"),
                (f"{good}\nchangeme-changeme-changeme-changeme\n", 0o600, "line 2"),
                (f"{good}\n{short[:15]}\n", 0o600, "line 2"),
                ("x" * 70_000, 0o600, "more than"),
            ):
                path = self.write("file", text, mode)
                message = self.refused(f"--{option}", path)
                self.assertIn(f"--{option}: {path}", message)
                self.assertIn(part, message)
                for secret in (good, "changeme", short[:15]):
                    self.assertNotIn(secret, message)
            for path in ("/no/such/file", str(self.folder)):
                self.assertIn(f"{path} cannot be read", self.refused(f"--{option}", path))
        self.assertIn("--audience", self.refused("--audience", ""))

    def test_listening_on_any_interface(self) -> None:
        """It needs no `--insecure` any more."""
        self.assertIn("--jwt-secret-file", self.refused("--listen", "tcp:8080"))
        for option, text in (("jwt-secret-file", NEW), ("publisher-key-file", KEY)):
            path = self.write("file", text)
            options = self.parsed("--listen", "tcp:8080", f"--{option}", path)
            self.assertEqual((options["listen"], options["insecure"]), ("tcp:8080", 0))

    def test_a_worker_may_have_no_right_to_read(self) -> None:
        """It inherits what its parent has read; if it can read, it reads what is there now."""
        jwt, keys = self.write("jwt", OLD), self.write("keys", KEY)
        parent = self.parsed("--jwt-secret-file", jwt, "--publisher-key-file", keys)
        environ = parent.environment()
        for secret in (OLD, KEY):
            self.assertNotIn(secret, " ".join(parent._given.values()))
        self.write("jwt", f"{NEW}\n{OLD}\n")
        worker = self.parsed(**environ)
        self.assertEqual(worker.configured.secrets, (NEW.encode(), OLD.encode()))
        os.unlink(jwt)
        os.unlink(keys)
        worker = self.parsed(**environ)
        self.assertEqual(worker.configured.secrets, (OLD.encode(),))
        self.assertEqual(worker.configured.keys, (KEY,))

    def test_nothing_shows_a_secret(self) -> None:
        """Neither of the values in a traceback."""
        path = self.write("file", f"{NEW}\n{KEY}\n".splitlines()[0])
        options = self.parsed("--jwt-secret-file", path)
        self.assertNotIn(NEW, repr((options, options.sources, options.configured)))


class Nowhere:
    """What fetches, from nowhere."""

    def get(self, *_: Any, **__: Any) -> Deferred[Any]:
        return fail(AssertionError("nothing is to be fetched"))

    def close(self) -> Deferred[None]:
        return succeed(None)


class RotationTests(SecretFilesCase):
    """Files that change while the server runs."""

    def setUp(self) -> None:
        super().setUp()
        self.now = 1_793_500_000.0
        self.clock = Clock()
        files = {
            name: SecretFile(self.write(name, text), text.encode())
            for name, text in (("jwt", OLD), ("keys", KEY))
        }
        sources = Sources(jwt_secrets=files["jwt"], publisher_keys=files["keys"])
        self.live = LiveConfiguration(
            sources, sources.read(), Nowhere(), self.clock, lambda: self.now
        )
        self.live.start()
        self.addCleanup(self.live.stop)

    def is_accepted(self, credential: str) -> bool:
        facts = Facts(
            b"POST",
            b"/hooks/a",
            {b"authorization": b"Bearer " + credential.encode()},
            Action.PUBLISH,
            "a",
        )
        try:
            return isinstance(self.live.authority.grant(facts), Grant)
        except InvalidToken:
            return False

    def token(self, secret: str) -> str:
        return mint(secret.encode(), "user-42", publish=["a"], now=self.now)

    def test_a_new_secret(self) -> None:
        """First both are valid, then only the new one; each change is seen within ten seconds."""
        old, new = self.token(OLD), self.token(NEW)
        self.assertEqual([self.is_accepted(old), self.is_accepted(new)], [True, False])
        self.write("jwt", f"{NEW}\n{OLD}\n")
        self.clock.advance(INTERVAL)
        self.assertEqual([self.is_accepted(old), self.is_accepted(new)], [True, True])
        self.write("jwt", f"{NEW}\n")
        self.clock.advance(INTERVAL)
        self.assertEqual([self.is_accepted(old), self.is_accepted(new)], [False, True])

    def test_a_new_key(self) -> None:
        """The one that is not in the file any more is unknown."""
        other = f"{KEY}-2"
        self.assertEqual([self.is_accepted(KEY), self.is_accepted(other)], [True, False])
        self.write("keys", other)
        self.clock.advance(INTERVAL)
        self.assertEqual([self.is_accepted(KEY), self.is_accepted(other)], [False, True])

    def test_a_mistake(self) -> None:
        """What was there stays valid, and an error is logged, without the secret."""
        for text, mode in ((f"{NEW[:20]}\n", 0o600), ("", 0o600), (NEW, 0o644)):
            self.write("jwt", text, mode)
            with capturedLogs() as events:
                self.clock.advance(INTERVAL)
                self.clock.advance(INTERVAL)
            [line] = [formatEvent(event) for event in events]
            self.assertIn("--jwt-secret-file", line)
            self.assertIn("stays in use", line)
            self.assertNotIn(NEW[:20], line)
            self.assertTrue(self.is_accepted(self.token(OLD)))
        self.write("jwt", NEW)
        self.clock.advance(INTERVAL)
        self.assertTrue(self.is_accepted(self.token(NEW)))

    def test_the_subject_of_a_key(self) -> None:
        """It is no secret."""
        facts = Facts(
            b"POST",
            b"/hooks/a",
            {b"authorization": b"Bearer " + KEY.encode()},
            Action.PUBLISH,
            "a",
        )
        grant: Any = self.live.authority.grant(facts)
        self.assertEqual(grant.subject, f"key:{digest(KEY).hex()[:8]}")
