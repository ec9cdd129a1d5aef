"""Keys are replaced by the documented commands, and no log ever has one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from twisted.trial.unittest import TestCase

from harness.documents import named_blocks
from harness.processes import ROOT, Process

READY = r"asyncplumber is ready at (http://127\.0\.0\.1:\d+)/"
_COMMAND = [sys.executable, "-m", "asyncplumber"]
REREAD = 30.0  # seconds in which a changed file has been read again, on a busy machine


class RotationTests(TestCase):
    """A server with a secret and a key, whose log has each request."""

    timeout = 180

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="asyncplumber-test-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.secrets: set[str] = set()
        self.blocks = named_blocks("howto/rotate-keys.rst")
        self.sh(named_blocks("howto/authenticate.rst")["secrets.sh"])
        files = [f"--jwt-secret-file={self.folder}/jwt.secret"]
        files.append(f"--publisher-key-file={self.folder}/publisher.keys")
        logged = ["--log-requests", "--log-level", "debug", "--store", "memory:"]
        self.server = Process([*_COMMAND, "serve", "--port", "0", *files, *logged])
        self.addCleanup(self.server.kill)
        self.url = self.server.wait_for(READY)[1]

    def sh(self, command: str) -> None:
        subprocess.run(["sh", "-ec", command], cwd=self.folder, check=True, timeout=60)
        for path in self.folder.iterdir():
            self.secrets |= set(path.read_text(encoding="utf-8").split())

    def key(self) -> str:
        """Return the last publisher key in the file."""
        return (self.folder / "publisher.keys").read_text(encoding="utf-8").split()[-1]

    def token(self, line: int) -> str:
        """Return a token that is signed with this line of the file of secrets."""
        secrets = (self.folder / "jwt.secret").read_text(encoding="utf-8").split()
        path = self.folder / "one.secret"
        path.touch(0o600)
        path.write_text(secrets[line], encoding="utf-8")
        words = ["token", "--secret-file", str(path), "--sub", "u", "--subscribe", "a"]
        done = subprocess.run(
            [*_COMMAND, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
        )
        token = done.stdout.strip()
        self.secrets.add(token)
        return token

    def status(self, credential: str, path: str, body: bytes | None = None, **more: str) -> int:
        headers = {"Authorization": f"Bearer {credential}", **more}
        try:
            with urlopen(Request(self.url + path, body, headers), timeout=20) as answer:
                return int(answer.status)
        except HTTPError as error:
            error.close()
            return error.code

    def reads(self, token: str) -> int:
        return self.status(token, "/events/a?wait=0&note=hunter2", Cookie="session=hunter3")

    def posts(self, key: str) -> int:
        return self.status(key, "/hooks/a", b"1")

    def becomes(self, status: int, credential: str, ask: str) -> None:
        """Wait until a credential is answered with this status."""
        until = time.monotonic() + REREAD
        while (found := getattr(self, ask)(credential)) != status:
            self.assertLess(time.monotonic(), until, f"{found} and not {status}")
            time.sleep(1.0)

    def test_secret_and_key_are_replaced_while_it_runs(self) -> None:
        """The old ones work until they are taken out, and no secret is in the log."""
        old, old_key = self.token(0), self.key()
        self.assertEqual((self.reads(old), self.posts(old_key)), (200, 202))
        self.sh(self.blocks["jwt-add"])
        self.sh(self.blocks["key-add"])
        new, new_key = self.token(1), self.key()
        self.assertNotEqual(new_key, old_key)
        self.becomes(200, new, "reads")
        self.becomes(202, new_key, "posts")
        self.assertEqual((self.reads(old), self.posts(old_key)), (200, 202))
        self.sh(self.blocks["jwt-remove"])
        self.sh(self.blocks["key-remove"])
        self.becomes(401, old, "reads")
        self.becomes(401, old_key, "posts")
        self.assertEqual((self.reads(new), self.posts(new_key)), (200, 202))
        self.server.stop()
        log = self.server.output
        self.assertIn("GET /events/a 200", log)
        self.assertIn("was refused: ", log)
        self.assertGreaterEqual(len(self.secrets), 6)
        for secret in (*self.secrets, "hunter2", "hunter3", "Bearer"):
            self.assertNotIn(secret, log)
            self.assertNotIn(secret.partition(".")[2] or secret, log)
