"""The ``--auth`` file with real servers: keys at a URL, workers, and changes while they run."""

from __future__ import annotations

import http.client
import http.server
import json
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.static import Data

from asyncplumber.auth.fetch import Fetcher, FetchFailed
from harness.certificates import certificate
from harness.processes import start_server
from tests.attackers import compact, rs256, rsa_jwk, rsa_key

IDP = "https://idp.example.com"
PATIENCE = 40.0  # seconds, on a busy machine


class Publisher(http.server.BaseHTTPRequestHandler):
    """Publishes the keys of an issuer, or says that it cannot."""

    keys: list[Any]

    def do_GET(self) -> None:
        body = json.dumps({"keys": self.keys}).encode()
        self.send_response(200 if self.keys else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class WorkersTests(SynchronousTestCase):
    """Two workers, each of which fetches the keys."""

    def setUp(self) -> None:
        self.handler: Any = type("Handler", (Publisher,), {"keys": []})
        issuer = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self.handler)
        thread = threading.Thread(target=issuer.serve_forever, daemon=True)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(issuer.server_close)
        self.addCleanup(issuer.shutdown)
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        self.auth = folder / "auth.toml"
        self.auth.write_text(
            f'[[issuer]]\niss = "{IDP}"\n'
            f'jwks_url = "http://127.0.0.1:{issuer.server_port}/certs"\npublish = ["{{sub}}"]\n'
        )
        store = f"sqlite:{folder}/events.sqlite"
        self.server = start_server("--auth", str(self.auth), "--workers", "2", "--store", store)
        self.addCleanup(self.server.kill)

    def status(self, path: str, method: str = "GET", token: str = "") -> int:
        """Ask on a new connection, which either worker may take."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        with closing(connection):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            connection.request(method, path, b"{}" if method == "POST" else None, headers)
            response = connection.getresponse()
            response.read()
            return response.status

    def wait_until(self, path: str, status: int, **request: str) -> None:
        """Wait until ten connections in a row get this status, and so both workers give it."""
        end = time.monotonic() + PATIENCE
        in_a_row = 0
        while in_a_row < 10:
            self.assertLess(time.monotonic(), end, self.server.output)
            found = self.status(path, **request)
            in_a_row = in_a_row + 1 if found == status else 0
            if found != status:
                time.sleep(0.2)

    def token(self, key: str = "r1") -> str:
        now = int(time.time())
        claims = {"iss": IDP, "aud": "asyncplumber", "sub": "user-42", "iat": now, "exp": now + 600}
        header = {"alg": "RS256", "kid": "r1", "typ": "at+jwt"}
        return compact(header, claims, rs256(rsa_key(key)))

    def test_keys_come_from_a_url_and_the_file_is_read_again(self) -> None:
        """
        Not ready before there are keys; then tokens count, until the file has another issuer.
        """
        token = self.token()
        self.assertEqual(self.status("/readyz"), 503)
        self.assertEqual(self.status("/hooks/user-42", "POST", token), 503)
        self.handler.keys = [rsa_jwk(rsa_key("r1"), "r1")]
        self.wait_until("/readyz", 200)
        self.wait_until("/hooks/user-42", 202, method="POST", token=token)
        self.assertEqual(self.status("/hooks/user-7", "POST", token), 403)
        self.assertEqual(self.status("/hooks/user-42", "POST", self.token("evil")), 401)
        self.auth.write_text(f'[[key]]\nname = "k"\nsha256 = "{"0" * 64}"\nadmin = true\n')
        self.wait_until("/hooks/user-42", 401, method="POST", token=token)
        self.assertNotIn(token, self.server.output)
        self.assertNotIn("Traceback", self.server.output)


class FetcherTests(TestCase):
    """Over sockets."""

    async def serve(self, endpoint: Any) -> int:
        """Serve a document, and return the port."""
        root = Resource()
        root.putChild(b"certs", Data(b"{}", "application/json"))
        port = await endpoint.listen(Site(root))
        self.addCleanup(port.stopListening)
        found: int = port.getHost().port
        return found

    def fetcher(self) -> Fetcher:
        fetcher = Fetcher.over_treq(reactor)
        self.addCleanup(fetcher.close)
        return fetcher

    async def test_plain_http(self) -> None:
        """To this machine."""
        port = await self.serve(TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"))
        reply = await self.fetcher().get(f"http://127.0.0.1:{port}/certs", {}, timeout=20)
        self.assertEqual((reply.status, reply.body), (200, b"{}"))

    async def test_a_certificate_that_nobody_trusts_is_refused(self) -> None:
        """Whoever is on the way could answer in the place of the issuer."""
        options = certificate().options()
        endpoint = SSL4ServerEndpoint(reactor, 0, options, interface="127.0.0.1")
        port = await self.serve(endpoint)
        asked: Deferred[Any] = self.fetcher().get(f"https://localhost:{port}/certs", {}, timeout=20)
        error = await self.assertFailure(asked, FetchFailed)
        self.assertEqual(error.reason, "connection")
