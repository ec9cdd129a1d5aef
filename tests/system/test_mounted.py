"""A plumber in a site of twisted.web at a real port: sockets, TLS, earlier responses."""

from __future__ import annotations

import socket
import ssl
from typing import Any

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from harness.certificates import certificate
from harness.frames import TEXT, handshake_request, server_frames
from harness.mounted import MountedServer, quiet
from tests.system import test_slow_readers

LARGE = 3_000_000  # bytes: more than the buffers of both systems take
SSE = b"GET /plumber/events/a HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"


class Large(Resource):
    """A large response that is written at once."""

    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        return b"x" * LARGE


class MountedSlowReaderTests(test_slow_readers.SlowReaderTests):
    """Slow and dead readers are treated there as on our own port."""

    make_server = MountedServer

    def listen(self) -> Any:
        site: Any = self.server.site  # type: ignore[attr-defined]
        return reactor.listenTCP(0, site, interface="127.0.0.1")  # type: ignore[attr-defined]


class SiteTests(TestCase):
    """A site with a resource of its own beside ours."""

    def setUp(self) -> None:
        self.server = MountedServer()
        root = Resource()
        root.putChild(b"plumber", self.server.plumber.resource())
        root.putChild(b"large", Large())
        self.site = quiet(Site(root))

    async def run_beside(self, talk: Any, *arguments: Any) -> Any:
        """Run a blocking client in a thread, while the server's clock turns."""
        done = deferToThread(talk, *arguments)
        while not done.called:
            self.server.settle()
            await deferLater(reactor, 0.002, lambda: None)  # type: ignore[arg-type]
        result = await done
        while len(self.server.clients):
            self.server.settle()
            await deferLater(reactor, 0.002, lambda: None)  # type: ignore[arg-type]
        return result

    def port(self, *tls: Any) -> int:
        """Listen, with TLS if its options are given; return the number of the port."""
        real: Any = reactor
        listen = real.listenSSL if tls else real.listenTCP
        port = listen(0, self.site, *tls, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    async def test_a_response_before_the_stream_is_not_overtaken(self) -> None:
        """A large one that the client has not read when it asks for the stream."""
        get = b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n"

        def talk(port: int, request: bytes, until: bytes) -> bytes:
            with socket.create_connection(("127.0.0.1", port), 10) as client:
                client.sendall(get + request)
                heard = b""
                while until not in heard[LARGE:]:
                    heard += client.recv(65536)
                return heard

        port = self.port()
        for request, status in (
            (SSE, b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream"),
            (handshake_request("/plumber/events/a"), b"HTTP/1.1 101 "),
        ):
            heard = await self.run_beside(talk, port, request, b"plumber.open")
            _, _, rest = heard.partition(b"\r\n\r\n")
            self.assertEqual(rest[:LARGE].strip(b"x"), b"")
            self.assertTrue(rest[LARGE:].startswith(status), rest[LARGE : LARGE + 100])

    async def test_streams_over_tls(self) -> None:
        """They have the decrypted side of the transport."""
        own = certificate()
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

        def talk(port: int, request: bytes) -> bytes:
            with (
                socket.create_connection(("127.0.0.1", port), 10) as raw,
                context.wrap_socket(raw, server_hostname="localhost") as client,
            ):
                client.sendall(request)
                heard = b""
                while b"plumber.open" not in heard:
                    heard += client.recv(65536)
                post()
                while b'"data":1' not in heard:
                    heard += client.recv(65536)
                return heard

        def post() -> None:
            reactor.callFromThread(self.server.post, "a", b"1")  # type: ignore[attr-defined]

        port = self.port(own.options())
        for request in (SSE, handshake_request("/plumber/events/a")):
            heard = await self.run_beside(talk, port, request)
            if request is not SSE:
                frames = server_frames(heard.partition(b"\r\n\r\n")[2])
                self.assertEqual([opcode for opcode, _ in frames], [TEXT, TEXT])
