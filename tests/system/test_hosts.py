"""A request must address a real server by one of its names, which stops DNS rebinding."""

from __future__ import annotations

import shutil
import subprocess

from twisted.trial.unittest import SynchronousTestCase

from harness.processes import start_server


class CurlTests(SynchronousTestCase):
    """A real server and curl."""

    skip = None if shutil.which("curl") else "no curl on the PATH"

    def status(self, *words: str) -> str:
        """Return the status of the response that curl gets."""
        command = [
            "curl",
            "--silent",
            "--output",
            "-",
            "--write-out",
            "\n%{http_code}",
            "--max-time",
            "20",
            *words,
        ]
        return subprocess.run(
            command, capture_output=True, text=True, check=False
        ).stdout.rpartition("\n")[2]

    def test_a_rebound_name_is_refused(self) -> None:
        """Its address is ours, its Host and Origin are equal.  Names of ``--host`` are served."""
        server = start_server("--host", "push.example.com", "--host", "a.example,*.b.example")
        self.addCleanup(server.kill)
        for host, status in {
            "evil.example": "421",
            "push.example.com": "202",
            "a.example": "202",
            "x.b.example": "202",
        }.items():
            rebound = (
                "--resolve",
                f"{host}:{server.port}:127.0.0.1",
                "--header",
                f"Origin: http://{host}:{server.port}",
            )
            base = f"http://{host}:{server.port}"
            self.assertEqual(self.status(*rebound, "--data", "1", f"{base}/hooks/a"), status)
            self.assertEqual(
                self.status(*rebound, f"{base}/events/a?wait=0"),
                "200" if status == "202" else status,
            )
            self.assertEqual(self.status(*rebound, f"{base}/healthz"), "200")
        self.assertEqual(self.status("--data", "1", f"{server.url}/hooks/a"), "202")

    def test_an_address_of_another_interface_is_served(self) -> None:
        """With ``--insecure`` and no name, clients use an address."""
        server = start_server("--listen", "tcp:0:interface=0.0.0.0", "--insecure")
        self.addCleanup(server.kill)
        host = ("--header", "Host: 203.0.113.5:8080")
        local = self.status(*host, f"{server.url}/events/a?wait=0")
        self.assertEqual(local, "421")
        own = subprocess.run(
            ["hostname", "-I"], capture_output=True, text=True, check=False
        ).stdout.split()
        for address in own[:1]:
            self.assertEqual(self.status(f"http://{address}:{server.port}/events/a?wait=0"), "200")
            self.assertEqual(
                self.status(*host, f"http://{address}:{server.port}/events/a?wait=0"), "200"
            )
            self.assertEqual(
                self.status(
                    "--header", "Host: evil.example", f"http://{address}:{server.port}/metrics"
                ),
                "421",
            )
