"""The examples for nginx and HAProxy, in the real proxies, unchanged except for addresses."""

from __future__ import annotations

import http.client
import http.server
import json
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable

from twisted.trial.unittest import TestCase

from harness.frames import handshake_request
from harness.ports import reserve_port
from harness.processes import Server, start_server
from harness.proxies import (
    NO_HAPROXY,
    NO_NGINX,
    Proxy,
    start_haproxy,
    start_nginx,
)

HIDDEN = ("/metrics", "/instances/x/events", "/instances/x/hooks/a", "/instances/x/accounts/a")
PUBLISHERS = 8
STALL = (
    3.0  # seconds without an accepted event that a publisher may see while one instance restarts
)


def ask(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """Return status and body of a response.  The path is sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def disguised(path: str) -> list[str]:
    """Return a path in the forms that some server on the way may take for the same."""
    first, rest = path[1:].partition("/")[0], path[1:].partition("/")[1:]
    tail = "".join(rest)
    encoded = f"%{ord(first[0]):02x}{first[1:]}"
    return [
        path,
        f"/{path}",
        f"//{path}",
        f"/.{path}",
        f"/x/..{path}",
        f"/x/%2e%2e{path}",
        f"/.//{first}{tail}",
        f"/{encoded}{tail}",
        f"//{encoded}{tail}",
        f"{path}?x=1",
    ]


class Gullible(http.server.BaseHTTPRequestHandler):
    """A server that answers every path, and records the paths."""

    asked: list[str] = []
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class ProxyCase(TestCase):
    """A proxy in front of the servers of a test."""

    start: Callable[..., Proxy]

    def proxy(self, *servers: int) -> Proxy:
        """Start the proxy until the test ends."""
        proxy = type(self).start(*servers)
        self.addCleanup(proxy.kill)
        return proxy

    def server(self, *options: str) -> Server:
        """Start a server until the test ends."""
        server = start_server(*options)
        self.addCleanup(server.kill)
        return server


class PathFacts:
    """What must not get through, and what must."""

    proxy: Callable[..., Proxy]
    server: Callable[..., Server]
    assertEqual: Callable[..., None]
    assertIn: Callable[..., None]
    addCleanup: Callable[..., None]

    def test_hidden_paths_do_not_reach_a_server_that_has_them(self) -> None:
        """However they are written: the proxy alone ensures it."""
        backend = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gullible)
        backend.daemon_threads = True
        thread = threading.Thread(target=backend.serve_forever, daemon=True)
        thread.start()
        self.addCleanup(lambda: (backend.shutdown(), backend.server_close(), thread.join()))
        port = self.proxy(backend.server_port).port
        self.assertEqual(ask(port, "GET", "/healthz")[0], 200)
        Gullible.asked.clear()
        for path in HIDDEN:
            for written in disguised(path):
                for method in ("GET", "POST"):
                    self.assertEqual((written, ask(port, method, written)[0]), (written, 404))
        self.assertEqual([path for path in Gullible.asked if path != "/readyz"], [])

    def test_hidden_paths_are_not_found_and_others_are(self) -> None:
        """With our own server behind it.  An account may contain a slash."""
        server = self.server()
        port = self.proxy(server.port).port
        for path in HIDDEN:
            for written in disguised(path):
                self.assertEqual((written, ask(port, "GET", written)[0]), (written, 404))
        self.assertEqual(ask(port, "GET", "/healthz")[0], 200)
        for account in ("a", "a%2Fb", "%C3%A4", "a%20b", "a.b", "%2F%2Fmetrics"):
            status, _ = ask(port, "POST", f"/hooks/{account}", b"1")
            self.assertEqual((account, status), (account, 202))
            self.assertEqual(
                json.loads(ask(port, "GET", f"/events/{account}?after=earliest&wait=0")[1])[
                    "events"
                ][0]["data"],
                1,
            )

    def test_a_websocket_gets_through(self) -> None:
        """The handshake and an event."""
        server = self.server()
        port = self.proxy(server.port).port
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(handshake_request())
            heard = b""
            while b"plumber.open" not in heard:
                heard += client.recv(65536)
            self.assertIn(b" 101 ", heard)
            self.assertEqual(ask(port, "POST", "/hooks/a", b'"here"')[0], 201)
            while b'"here"' not in heard:
                heard += client.recv(65536)


class NginxTests(PathFacts, ProxyCase):
    """nginx."""

    skip = NO_NGINX
    start = staticmethod(start_nginx)

    def test_nobody_notices_a_rolling_restart(self) -> None:
        """Publishers that send an ID get no error.

        No event that was accepted is missing.
        """
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        ports = [reserve_port(), reserve_port()]
        options = [
            ("--port", str(port), "--store", f"sqlite:{folder.name}/store") for port in ports
        ]
        servers = [self.server(*each) for each in options]
        load = Load(self.proxy(*ports).port)
        self.addCleanup(load.stop)
        load.start()
        load.wait_for(200)
        for number, each in enumerate(options):
            servers[number].stop()
            servers[number] = self.server(*each)
            load.wait_for(200)
        load.stop()
        self.assertEqual(set(load.statuses), {202}, load.statuses)
        self.assertLess(load.longest_gap, STALL)
        for publisher, accepted in enumerate(load.accepted):
            answer = ask(ports[0], "GET", f"/accounts/p{publisher}")
            cursor = json.loads(answer[1])["cursor"]
            self.assertEqual(int(cursor.partition(".")[2]), accepted)

    def test_a_post_without_an_id_is_sent_once(self) -> None:
        """An instance that dies during a POST may have stored it, so the publisher decides."""
        taken: list[bytes] = []
        with (
            socket.create_server(("127.0.0.1", 0)) as one,
            socket.create_server(("127.0.0.1", 0)) as other,
        ):

            def die(listening: socket.socket) -> None:
                while True:
                    try:
                        connection, _ = listening.accept()
                    except OSError:
                        return
                    taken.append(connection.recv(65536).partition(b" HTTP")[0])
                    connection.close()

            for listening in (one, other):
                threading.Thread(target=die, args=(listening,), daemon=True).start()
            port = self.proxy(one.getsockname()[1], other.getsockname()[1]).port
            self.assertEqual(ask(port, "POST", "/hooks/a", b"1")[0], 502)
            self.assertEqual(taken, [b"POST /hooks/a"])
            taken.clear()
            for name in ("Webhook_Id", "Idempotency_Key", "ce_id"):
                self.assertEqual(ask(port, "POST", "/hooks/a", b"1", **{name: "x"})[0], 502)
                self.assertEqual(taken, [b"POST /hooks/a"] * 2, name)
                taken.clear()
            for listening in (one, other):
                listening.shutdown(socket.SHUT_RDWR)


class HaproxyTests(PathFacts, ProxyCase):
    """HAProxy."""

    skip = NO_HAPROXY
    start = staticmethod(start_haproxy)


class Load:
    """Publishers, each with an account of its own, that send one event after the other with IDs."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ended = threading.Event()
        self._lock = threading.Condition()
        self._threads = [
            threading.Thread(target=self._publish, args=(n,), daemon=True)
            for n in range(PUBLISHERS)
        ]
        self.statuses: Counter[object] = Counter()
        self.accepted = [0] * PUBLISHERS
        self.longest_gap = 0.0  # seconds between two accepted events, whoever sent them

    def start(self) -> None:
        """Start to send."""
        self._last = time.monotonic()
        for thread in self._threads:
            thread.start()

    def wait_for(self, count: int, seconds: float = 30.0) -> None:
        """Wait until this many more events are accepted."""
        with self._lock:
            aim = sum(self.accepted) + count
            assert self._lock.wait_for(lambda: sum(self.accepted) >= aim, seconds), self.statuses

    def stop(self) -> None:
        """Finish the requests in flight.  Idempotent."""
        self._ended.set()
        for thread in self._threads:
            thread.join() if thread.is_alive() else None

    def _publish(self, number: int) -> None:
        connection: http.client.HTTPConnection | None = None
        sent = 0
        while not self._ended.is_set():
            connection = connection or http.client.HTTPConnection(
                "127.0.0.1", self._port, timeout=20
            )
            try:
                connection.request(
                    "POST", f"/hooks/p{number}", b"1", {"Webhook-Id": f"{number}.{sent}"}
                )
                response = connection.getresponse()
                response.read()
                status: object = response.status
                if response.will_close:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException) as error:
                connection, status = None, repr(error)
            with self._lock:
                self.statuses[status] += 1
                if status in (201, 202):
                    sent += 1
                    now = time.monotonic()
                    self.longest_gap = max(self.longest_gap, now - self._last)
                    self._last = now
                    self.accepted[number] = sent
                self._lock.notify_all()
