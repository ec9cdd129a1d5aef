"""TLS, with the server as a process of its own and real clients."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

from twisted.trial.unittest import TestCase

from harness import browser
from harness.processes import start_server

WATCH = """
    const source = new WebSocket("wss://127.0.0.1:" + location.port + "/events/tls");
    window.heard = [];
    source.onmessage = ({ data }) => window.heard.push(JSON.parse(data));
"""


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a key and a certificate for 127.0.0.1 that it has signed itself."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*new, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return key, cert


class TLSTests(TestCase):
    """``--listen ssl:…`` for real clients, which offer protocols in the handshake (ALPN)."""

    skip = (
        None
        if shutil.which("openssl") and shutil.which("curl")
        else "no openssl or curl on the PATH"
    )

    def setUp(self) -> None:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        key, self.cert = certificate(folder)
        listen = f"ssl:0:privateKey={key}:certKey={self.cert}:interface=127.0.0.1"
        self.server = start_server("--listen", listen)
        self.addCleanup(self.server.kill)

    def test_curl_posts_and_reads(self) -> None:
        """With the certificate checked; the log names the scheme that is spoken."""
        self.assertTrue(self.server.url.startswith("https://"), self.server.url)
        curl = ["curl", "--silent", "--show-error", "--max-time", "20", "--cacert", str(self.cert)]
        posted = subprocess.run(
            [*curl, "--data", "7", f"{self.server.url}/hooks/tls"], capture_output=True, text=True
        )
        self.assertEqual(json.loads(posted.stdout or "{}").get("status"), "ok", posted.stderr)
        read = subprocess.run(
            [*curl, f"{self.server.url}/events/tls?after=earliest&wait=0"],
            capture_output=True,
            text=True,
        )
        self.assertEqual([event["data"] for event in json.loads(read.stdout)["events"]], [7])

    def test_http_1_1_is_what_is_spoken(self) -> None:
        """A client that offers HTTP/2 as well is told so."""
        context = ssl.create_default_context(cafile=str(self.cert))
        context.set_alpn_protocols(["h2", "http/1.1"])
        with (
            socket.create_connection(("127.0.0.1", self.server.port), 10) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as client,
        ):
            self.assertEqual(client.selected_alpn_protocol(), "http/1.1")

    def test_a_browser_subscribes(self) -> None:
        """By a WebSocket over TLS, from a page that came over TLS."""
        if (reason := browser.missing()) is not None:
            self.skipTest(reason)
        window = browser.Browser("--ignore-certificate-errors")
        self.addCleanup(window.quit)
        window.go(self.server.url + "/")
        window.run(WATCH)
        window.until("return window.heard.length == 1")
        curl = ["curl", "--silent", "--cacert", str(self.cert), "--data", "7"]
        subprocess.run([*curl, f"{self.server.url}/hooks/tls"], check=True, capture_output=True)
        window.until("return window.heard.length == 2")
        self.assertEqual(window.run("return window.heard[1].data"), 7)
