"""Limits with real sockets: connections that are closed unread, and requests that are too slow."""

from __future__ import annotations

import contextlib
import resource
import shutil
import socket
import ssl
import sys
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.tokens.mint import mint
from harness.processes import Server, start_server
from tests.system.test_tls import certificate

SECRET = "a secret of the tests, which is long enough"
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
# Idle connections; as many as the files of this process allow, up to three thousand.
COUNT = max(300, min(3000, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200) // 2))
PATIENCE = 20.0  # seconds


def status(data: bytes) -> int:
    """The status of the first response; 0 if there is none."""
    return int(data.split()[1]) if data.startswith(b"HTTP/1.1 ") else 0


class LimitTests(SynchronousTestCase):
    """A server with authentication, to which this machine has no special right."""

    def serve(self, *options: str, limits: str = "") -> Server:
        """Start a server; ``limits`` are lines of the table."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        for name, text in (("secret", SECRET), ("auth.toml", f"[limits]\n{limits}\n")):
            path = folder / name
            path.write_text(text, encoding="utf-8")
            path.chmod(0o600)
        files = ["--jwt-secret-file", str(folder / "secret"), "--auth", str(folder / "auth.toml")]
        server = start_server(*files, "--trusted-proxies", "none", *options)
        self.addCleanup(server.kill)
        self.port = server.port
        return server

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """Return a connection from this address."""
        client = socket.create_connection(("127.0.0.1", self.port), PATIENCE, (source, 0))
        self.addCleanup(client.close)
        return client

    def talk(self, data: bytes, source: str = "127.0.0.1") -> bytes:
        """Send this on a connection of its own; return all that comes back."""
        found = b""
        with contextlib.suppress(ConnectionError):
            client = self.connect(source)
            client.sendall(data)
            while piece := client.recv(65536):
                found += piece
        return found

    @staticmethod
    def is_closed(client: socket.socket, seconds: float) -> bool:
        """Whether the server closes the connection within this time."""
        client.settimeout(seconds)
        try:
            return client.recv(1) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    def test_thousands_of_idle_connections(self) -> None:
        """Two hundred of an address stay, and another address is served at once."""
        if sys.platform != "linux":
            self.skipTest("only Linux has all of 127.0.0.0/8")
        server = self.serve()
        clients = [self.connect() for _ in range(COUNT)]
        closed = sum(self.is_closed(client, PATIENCE) for client in clients[200:])
        self.assertEqual(closed, COUNT - 200)
        self.assertEqual([client for client in clients[:200] if self.is_closed(client, 0.001)], [])
        began = time.monotonic()
        self.assertEqual(status(self.talk(GET, "127.0.0.2")), 200)
        self.assertLess(time.monotonic() - began, 2)
        self.assertEqual(self.talk(GET), b"")
        clients[0].close()
        until = time.monotonic() + PATIENCE
        while not self.talk(GET) and time.monotonic() < until:
            pass
        self.assertEqual(status(self.talk(GET)), 200)
        self.assertNotIn("Traceback", server.output)
        self.assertIn("127.0.0.1 is refused", server.output)

    def test_one_byte_now_and_then(self) -> None:
        """A head has its time, which is short here."""
        self.serve("--head-timeout", "1s")
        client = self.connect()
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        client.settimeout(0.3)
        answer, began = b"", time.monotonic()
        while not answer and time.monotonic() < began + PATIENCE:
            client.sendall(b"X")
            with contextlib.suppress(TimeoutError):
                answer = client.recv(65536)
        self.assertEqual(status(answer), 408)
        self.assertLess(time.monotonic() - began, 5)

    def test_bad_tokens(self) -> None:
        """After a burst, 429; another address goes on."""
        if sys.platform != "linux":
            self.skipTest("only Linux has all of 127.0.0.0/8")
        self.serve(limits="failures_per_address = {burst = 3, per_hour = 1}")

        def ask(token: str, source: str = "127.0.0.1") -> int:
            lines = f"Host: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close"
            return status(
                self.talk(f"GET /events/a?wait=0 HTTP/1.1\r\n{lines}\r\n\r\n".encode(), source)
            )

        good, bad = (mint(key.encode(), "bob", subscribe=["a"]) for key in (SECRET, SECRET[::-1]))
        self.assertEqual([ask(bad) for _ in range(5)], [401, 401, 401, 429, 429])
        self.assertEqual((ask(good), ask(good, "127.0.0.2")), (429, 200))

    def test_all_connections_of_a_process(self) -> None:
        """Also with TLS, whose layer between has to take a connection that is refused."""
        for options in ((), ("--listen", self.tls_endpoint())):
            server = self.serve("--max-connections", "3", *options)
            clients = [self.connect() for _ in range(3)]
            self.assertTrue(self.is_closed(self.connect(), PATIENCE), options)
            self.assertEqual([each for each in clients if self.is_closed(each, 0.01)], [])
            self.assertNotIn("Traceback", server.output)
            server.kill()

    def tls_endpoint(self) -> str:
        """An endpoint with TLS."""
        if shutil.which("openssl") is None:
            self.skipTest("no openssl on the PATH")
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        key, cert = certificate(folder)
        return f"ssl:0:privateKey={key}:certKey={cert}:interface=127.0.0.1"

    def test_a_token_over_tls(self) -> None:
        """It is taken from everywhere; the server sees by itself that it is encrypted."""
        self.serve("--listen", self.tls_endpoint(), limits="connections_per_address = 1")
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        token = mint(SECRET.encode(), "bob", subscribe=["a"])
        with context.wrap_socket(self.connect()) as client:
            lines = f"Host: localhost\r\nAuthorization: Bearer {token}"
            client.sendall(f"GET /events/a?wait=0 HTTP/1.1\r\n{lines}\r\n\r\n".encode())
            self.assertEqual(status(client.recv(65536)), 200)
            self.assertTrue(self.is_closed(self.connect(), PATIENCE))

    def test_addresses_of_the_proxy_protocol(self) -> None:
        """HAProxy tells them before the first request; only from a trusted proxy they count."""
        limits = "polls_per_address = {burst = 2, per_hour = 1}"
        token = mint(SECRET.encode(), "bob", subscribe=["a"])
        lines = f"Host: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close"
        request = f"GET /events/a?wait=0 HTTP/1.1\r\n{lines}\r\n\r\n"

        def ask(address: str) -> int:
            told = f"PROXY TCP4 {address} 10.0.0.1 50000 8080\r\n"
            return status(self.talk((told + request).encode()))

        listen = ("--listen", "haproxy:tcp:0:interface=127.0.0.1", "--insecure")
        self.serve(*listen, "--trusted-proxies", "loopback", limits=limits)
        found = [ask(f"203.0.113.{number}") for number in (7, 7, 7, 8)]
        self.assertEqual(found, [200, 200, 429, 200])
        self.serve(*listen, limits=limits)
        found = [ask(f"203.0.113.{number}") for number in (7, 8, 9)]
        self.assertEqual(found, [200, 200, 429])
