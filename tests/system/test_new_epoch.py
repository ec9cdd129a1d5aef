"""A store restored from a backup, with the documented commands and real servers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from twisted.trial.unittest import SynchronousTestCase

from harness.processes import ROOT, Server, start_server

PAGE = (ROOT / "docs/howto/backup.rst").read_text(encoding="utf-8")
LEASE = 1.0


def documented(word: str) -> str:
    """Return the page's command that contains this word, for a file in the current directory."""
    found = [line.strip() for line in PAGE.splitlines() if line.startswith("    ") and word in line]
    assert len(found) == 1, found
    return re.sub(r"/var/\S+/(?=[a-z.]+)", "", found[0])


class RestoreTests(SynchronousTestCase):
    """The documented commands, on SQLite."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()

    def run_command(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the directory of the store."""
        bin = Path(sys.executable).parent
        words = re.sub(r"^python3? ", lambda _: f"{sys.executable} ", command)
        environ = {"PYTHONPATH": str(ROOT), "PATH": f"{bin}:/usr/bin:/bin"}
        return subprocess.run(
            words,
            shell=True,
            cwd=self.folder,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def start(self) -> Server:
        server = start_server(
            "--store", f"sqlite:{self.folder}/plumber.sqlite", "--lease", str(LEASE)
        )
        self.addCleanup(server.kill)
        return server

    def post(self, server: Server, count: int) -> str:
        """Post so many events, and return the cursor of the last one."""
        for _ in range(count):
            request = Request(f"{server.url}/hooks/a", b"1")
            receipt = json.loads(urlopen(request, timeout=20).read())
        return str(receipt["cursor"])

    def after(self, server: Server, cursor: str) -> list[Any]:
        with urlopen(f"{server.url}/events/a?after={cursor}&wait=0", timeout=20) as answer:
            return list(json.loads(answer.read())["events"])

    def test_after_a_restore_a_client_that_was_ahead_gets_a_gap(self) -> None:
        """A client has 10 events, the backup has 5, and 8 new ones come before it returns."""
        server = self.start()
        self.post(server, 5)
        backup = self.run_command(documented("VACUUM INTO"))
        self.assertEqual(backup.returncode, 0, backup.stderr)
        cursor = self.post(server, 5)
        self.assertEqual(server.stop() in (0, -15), True)
        for ending in ("", "-wal", "-shm"):
            (self.folder / f"plumber.sqlite{ending}").unlink(missing_ok=True)
        (self.folder / "backup.sqlite").rename(self.folder / "plumber.sqlite")
        time.sleep(LEASE)  # the backup has the lease of the server that ran then
        begun = self.run_command(documented("asyncplumber.new_epoch sqlite"))
        self.assertIn("a new epoch has begun", begun.stdout, begun.stderr)
        server = self.start()
        newest = self.post(server, 8)
        self.assertEqual(newest.partition(".")[2], "13")
        [gap] = self.after(server, cursor)
        self.assertEqual((gap["type"], gap["data"]["from"]), ("plumber.gap", cursor))
        self.assertEqual(len(self.after(server, "earliest")), 13)

    def test_it_is_refused_while_a_server_runs(self) -> None:
        """With a sentence, and nothing is changed."""
        server = self.start()
        cursor = self.post(server, 1)
        refused = self.run_command(documented("asyncplumber.new_epoch sqlite"))
        self.assertEqual(refused.returncode, 1)
        self.assertIn("stop all", refused.stderr)
        self.assertNotIn("Traceback", refused.stderr)
        self.assertEqual(self.post(server, 1).partition(".")[0], cursor.partition(".")[0])

    def test_wrong_arguments_are_refused(self) -> None:
        """The message is the usage."""
        for words in ("", " memory:", " sqlite:a mongodb://b"):
            refused = self.run_command(f"python -m asyncplumber.new_epoch{words}")
            self.assertEqual(refused.returncode, 1)
            self.assertIn("usage:", refused.stderr)
