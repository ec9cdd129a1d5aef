"""The secret of the instances shows nowhere: in no list of processes, and in no log."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from twisted.trial.unittest import SynchronousTestCase

from harness.cluster import children
from harness.processes import start_server

SECRET = "sesame, sesame, sesame"


class SecretTests(SynchronousTestCase):
    """Two workers that relay to each other, and a forged request."""

    skip = None if sys.platform == "linux" else "the list of processes is read from /proc"

    def test_it_shows_nowhere(self) -> None:
        """It comes from a file, which only the parent process reads."""
        folder = Path(self.enterContext(tempfile.TemporaryDirectory(prefix="asyncplumber-secret-")))
        (folder / "secret").write_text(f"{SECRET}\n")
        options = (
            "--peer-secret-file",
            str(folder / "secret"),
            "--store",
            f"sqlite:{folder}/plumber.sqlite",
        )
        server = start_server(*options, "--workers", "2")
        self.addCleanup(server.kill)
        for n in range(10):
            urlopen(Request(f"{server.url}/hooks/a", data=b"%d" % n), timeout=20).close()
        forged = Request(
            f"{server.url}/instances/x/events",
            b"1",
            {"webhook-signature": "v1,AAAA", "webhook-id": "x"},
        )
        with self.assertRaises(HTTPError) as refused:
            urlopen(forged, timeout=20)
        refused.exception.close()
        workers = children(server.pid)
        self.assertEqual(len(workers), 2)
        for pid in (server.pid, *workers):
            self.assertNotIn("sesame", Path(f"/proc/{pid}/cmdline").read_text())
        self.assertIn(
            f"ASYNCPLUMBER_PEER_SECRET={SECRET}", Path(f"/proc/{workers[0]}/environ").read_text()
        )
        server.stop()
        self.assertNotIn("sesame", server.output)
