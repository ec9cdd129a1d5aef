"""Two files and a command: from nothing to a server that knows its clients."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from twisted.trial.unittest import SynchronousTestCase

from harness.cluster import children
from harness.processes import Process, Server, start_server

SECRET = "the secret of the application 42"  # 32 bytes
KEY = "the-key-of-the-workers"


def fetch(server: Server, path: str, credential: str = "", body: bytes | None = None) -> Any:
    """Return status and JSON of a response."""
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}
    try:
        with urlopen(Request(server.url + path, body, headers), timeout=20) as response:
            return response.status, json.loads(response.read() or b"null")
    except HTTPError as refused:
        with refused:
            return refused.code, json.loads(refused.read() or b"null")


def mint(*words: str) -> str:
    """Return what ``asyncplumber token`` prints."""
    process = Process([sys.executable, "-m", "asyncplumber", "token", *words])
    try:
        if process.wait() != 0:
            raise AssertionError(process.output)
        return process.output.strip()
    finally:
        process.kill()


class AuthenticationTests(SynchronousTestCase):
    """With two workers, which inherit what their parent has read."""

    def setUp(self) -> None:
        folder = self.enterContext(tempfile.TemporaryDirectory(prefix="asyncplumber-auth-"))
        self.secrets, self.keys = Path(folder, "jwt.secret"), Path(folder, "publisher.keys")
        for path, text in ((self.secrets, SECRET), (self.keys, KEY)):
            path.write_text(f"{text}\n")
            path.chmod(0o600)
        self.store = f"sqlite:{folder}/plumber.sqlite"

    def start(self, *options: str) -> Server:
        server = start_server(
            *("--jwt-secret-file", str(self.secrets)),
            *("--publisher-key-file", str(self.keys)),
            *("--store", self.store, *options),
        )
        self.addCleanup(server.kill)
        return server

    def test_from_nothing_to_an_authenticated_client(self) -> None:
        """A key publishes, a token subscribes to its own account, and nobody else does either."""
        server = self.start("--workers", "2")
        token = mint("--secret-file", str(self.secrets), "--sub", "user-42",
                     "--subscribe", "user-42")  # fmt: skip
        events = "/events/user-42?wait=10&after=earliest"
        for path, credential, body, status in (
            ("/hooks/user-42", "", b"1", 401),
            ("/hooks/user-42", token, b"1", 403),
            ("/hooks/user-42", KEY[:-1], b"1", 401),
            ("/hooks/user-42", KEY, b'{"total": 7}', 202),
            ("/hooks/user-7", KEY, b"1", 202),
            (events, "", None, 401),
            (events, KEY, None, 403),
            (events, token + "=", None, 401),
            (events, token, None, 200),
            ("/events/user-7?wait=1", token, None, 403),
            (f"/events/user-42?access_token={token}", "", None, 400),
            ("/metrics", token, None, 403),
        ):
            for _ in range(3):  # at both workers, as a rule
                found, document = fetch(server, path, credential, body)
                self.assertEqual(found, status, (path, document))
        _, document = fetch(server, events, token)
        self.assertEqual(document["events"][0]["data"], {"total": 7})
        for path in ("/healthz", "/readyz"):
            self.assertEqual(fetch(server, path)[0], 200)
        workers = children(server.pid)
        server.stop()
        self.assertEqual(len(workers), 2)
        for secret in (SECRET, KEY, token):
            self.assertNotIn(secret, server.output)

    def test_the_files_show_nowhere(self) -> None:
        """Not in the list of processes either."""
        server = self.start("--workers", "2")
        for pid in (server.pid, *children(server.pid)):
            command = Path(f"/proc/{pid}/cmdline").read_text()
            self.assertNotIn(SECRET, command)
            self.assertNotIn(KEY, command)

    test_the_files_show_nowhere.skip = (  # type: ignore[attr-defined]
        None if sys.platform == "linux" else "the list of processes is read from /proc"
    )

    def test_it_may_listen_on_any_interface(self) -> None:
        """Without `--insecure`; but not without the files."""
        server = self.start("--listen", "tcp:0:interface=0.0.0.0")
        self.assertEqual(fetch(server, "/hooks/a", "", b"1")[0], 401)

    def test_a_wrong_file_refuses_the_start(self) -> None:
        """With a sentence and status 1, and without the secret."""
        self.secrets.chmod(0o644)
        words = ["serve", "--port", "0", "--store", "memory:", "--jwt-secret-file"]
        process = Process([sys.executable, "-m", "asyncplumber", *words, str(self.secrets)])
        self.addCleanup(process.kill)
        self.assertEqual(process.wait(), 1)
        self.assertIn("--jwt-secret-file", process.output)
        self.assertIn("chmod o=", process.output)
        self.assertNotIn(SECRET, process.output)
        self.assertNotIn("Traceback", process.output)
