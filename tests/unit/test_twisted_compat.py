"""What ``_twisted_compat`` uses of Twisted is there, and means what we rely on."""

from __future__ import annotations

import re
import socket
import tempfile
from pathlib import Path
from typing import Any, cast

from twisted.internet import ssl, tcp, unix
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.test.iosim import IOPump, connect, makeFakeClient, makeFakeServer
from twisted.trial.unittest import SynchronousTestCase
from twisted.web import client as web_client
from twisted.web._newclient import HTTP11ClientProtocol, Request
from twisted.web.client import HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

import asyncplumber
from asyncplumber import _twisted_compat
from asyncplumber._twisted_compat import (
    RequestNotSent,
    abort_response,
    can_take_over,
    has_unsent,
    is_plain_socket,
    is_wrapped,
    limit_accepts,
    quieten,
    reactor_of,
    replace_protocol,
    replace_reactor,
    socket_of,
    take_over,
    unsent_bytes,
)
from harness.certificates import certificate
from tests.unit.test_architecture import ROOT, imports, modules

# Names by which the package could reach past the public interface of Twisted.
PRIVATE = re.compile(
    r"\.socket\.(send|getsockopt)|\.TLS\b|[\"']TLS[\"']|\.wrappedProtocol\b|\.numberAccepts\b"
    r"|\.dataBuffer\b|[\"'](dataBuffer|numberAccepts|wrappedProtocol)[\"']"
    r"|transport\.(protocol|reactor|socket)\b|[\"']_producer[\"']"
)


class Listener(Protocol):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.data = b""
        self.lost = False

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True


class ConnectionTests(SynchronousTestCase):
    """A connection of Twisted's over a pair of sockets, and a reactor that only remembers."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        own, self.other = socket.socketpair()
        own.setblocking(False)
        self.addCleanup(self.other.close)
        self.addCleanup(own.close)
        self.own = own
        self.first = Listener()
        self.connection = tcp.Server(
            own, self.first, ("127.0.0.1", 1), cast(Any, None), 0, self.reactor
        )
        self.first.makeConnection(self.connection)

    def test_the_socket_is_the_one_that_was_given(self) -> None:
        """What is sent on it arrives at the other end at once."""
        found = socket_of(self.connection)
        self.assertIs(found, self.own)
        assert found is not None
        self.assertEqual(found.send(b"now"), 3)
        self.assertEqual(self.other.recv(10), b"now")

    def test_a_transport_in_memory_has_no_socket(self) -> None:
        """None, and no bytes that wait for a socket."""
        transport = StringTransport()
        self.assertIsNone(socket_of(transport))
        self.assertEqual(unsent_bytes(transport), (0, 0))
        self.assertFalse(is_plain_socket(transport))

    def test_a_connection_is_plain_until_tls_begins(self) -> None:
        """After ``startTLS`` bytes on the socket would break the records."""
        self.assertTrue(is_plain_socket(self.connection))
        self.connection.startTLS(ssl.CertificateOptions(), normal=True)
        self.assertFalse(is_plain_socket(self.connection))

    def test_another_protocol_gets_the_bytes(self) -> None:
        """From the next read on; and the end of the connection."""
        second = Listener()
        self.other.send(b"one")
        self.connection.doRead()
        self.assertFalse(is_wrapped(self.connection))
        replace_protocol(self.connection, second)
        self.other.send(b"two")
        self.connection.doRead()
        self.assertEqual((self.first.data, second.data), (b"one", b"two"))
        self.connection.connectionLost(Failure(ConnectionDone()))
        self.assertEqual((self.first.lost, second.lost), (False, True))

    def test_another_reactor_watches_the_socket(self) -> None:
        """Each call of ``startReading`` asks the reactor of the moment."""
        self.connection.startReading()
        self.assertIs(reactor_of(self.connection), self.reactor)
        self.connection.stopReading()
        other = MemoryReactorClock()
        replace_reactor(self.connection, other)
        self.connection.startReading()
        self.assertIs(reactor_of(self.connection), other)
        watched = [self.connection in each.readers for each in (self.reactor, other)]
        self.assertEqual(watched, [False, True])

    def test_what_is_left_to_send_is_told(self) -> None:
        """The buffer fills at the first attempt to send, and empties as the other end reads."""
        data = b"x" * 5_000_000
        self.connection.write(data)
        self.connection.doWrite()
        size, sent = unsent_bytes(self.connection)
        self.assertEqual(size, len(data))
        self.assertTrue(0 < sent < size)
        self.assertEqual(len(self.other.recv(sent, socket.MSG_WAITALL)), sent)
        self.connection.doWrite()
        self.assertGreater(unsent_bytes(self.connection)[1], sent)

    def test_what_waits_in_the_transport_is_told(self) -> None:
        """Before the first attempt to send, and while a part of it is left."""
        self.assertFalse(has_unsent(self.connection))
        self.connection.write(b"x" * 5_000_000)
        self.assertTrue(has_unsent(self.connection))
        self.connection.doWrite()
        self.assertTrue(has_unsent(self.connection))
        while has_unsent(self.connection):
            self.assertTrue(self.other.recv(1_000_000))
            self.connection.doWrite()


class Unanswered(Resource):
    """Remembers the requests, and answers none."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Any] = []

    def render(self, request: Any) -> int:
        self.requests.append(request)
        return NOT_DONE_YET


class TakeOverTests(SynchronousTestCase):
    """A request of twisted.web whose transport is taken."""

    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.resource = Unanswered()
        site = Site(self.resource, reactor=self.clock, timeout=60)
        self.channel: Any = site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        self.transport = cast(Any, StringTransport())
        self.transport.protocol = self.channel
        self.channel.makeConnection(self.transport)

    def test_the_transport_is_free(self) -> None:
        """It has no producer and reads, no timer is left, and nothing that came is lost."""
        after = b"x" * 100_000
        self.channel.dataReceived(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + after[:10])
        self.channel.dataReceived(after[10:])
        self.assertEqual(self.transport.producerState, "paused")
        (request,) = self.resource.requests
        self.assertTrue(can_take_over(request))
        transport, unread = take_over(request)
        self.assertIs(transport, self.transport)
        self.assertEqual(unread, after)
        self.assertEqual((transport.producer, transport.producerState), (None, "producing"))
        request.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_request_of_another_channel_is_left_alone(self) -> None:
        """HTTP/2 shares its transport; a request that has ended has none."""
        self.channel.dataReceived(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        (request,) = self.resource.requests
        for channel in (object(), None):
            request.channel = channel
            self.assertFalse(can_take_over(request))


class TlsTests(SynchronousTestCase):
    """Two ends of TLS in memory."""

    def test_another_protocol_gets_the_bytes_of_tls(self) -> None:
        """Decrypted, from the next record on; and the transport is not plain."""
        self.clock = MemoryReactorClock()
        own = certificate()
        first, second = Listener(), Listener()
        trust = ssl.optionsForClientTLS("localhost", trustRoot=ssl.Certificate(own.original))
        server = self.wrapped(own.options(), False, first)
        client = self.wrapped(trust, True, Listener())
        pump = connect(server, makeFakeServer(server), client, makeFakeClient(client))
        pump.flush()
        self.say(client, pump, b"one")
        self.assertFalse(is_plain_socket(first.transport))
        self.assertTrue(is_wrapped(first.transport))
        replace_protocol(first.transport, second)
        self.say(client, pump, b"two")
        self.assertEqual((first.data, second.data), (b"one", b"two"))
        # Twisted's own warnings about what it does with pyOpenSSL.
        self.flushWarnings()

    def say(self, client: Any, pump: IOPump, data: bytes) -> None:
        """Send some bytes, which TLS puts together until the reactor turns."""
        client.wrappedProtocol.transport.write(data)
        self.clock.advance(0)
        pump.flush()

    def wrapped(self, options: Any, is_client: bool, protocol: Protocol) -> Any:
        """Build the TLS layer around a protocol."""
        factory = Factory.forProtocol(lambda: protocol)  # type: ignore[arg-type]
        return TLSMemoryBIOFactory(options, is_client, factory, self.clock).buildProtocol(
            IPv4Address("TCP", "127.0.0.1", 0)
        )


class LimitingFactory(Factory):
    """Limits its port again for each connection, as our listener does."""

    def __init__(self, ports: list[tcp.Port]) -> None:
        self.ports = ports
        self.built = 0
        self.protocols: list[Protocol] = []

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        self.built += 1
        limit_accepts([*self.ports, object()], 5)
        self.protocols.append(Protocol())
        return self.protocols[-1]

    def disconnect(self) -> None:
        """End all connections, which nobody does without a running reactor."""
        for protocol in self.protocols:
            protocol.transport.connectionLost(Failure(ConnectionDone()))  # type: ignore[union-attr]


class PortTests(SynchronousTestCase):
    """A port of Twisted's at which very many wait."""

    def test_one_turn_accepts_no_more_than_the_limit(self) -> None:
        """Without it Twisted raises its own limit after each such turn."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        ports: list[tcp.Port] = []
        factory = LimitingFactory(ports)
        self.addCleanup(factory.disconnect)
        port = unix.Port(
            f"{folder.name}/socket".encode(), factory, 100, reactor=MemoryReactorClock()
        )
        port.startListening()
        self.addCleanup(port.connectionLost, Failure(ConnectionDone()))
        for _ in range(60):
            client = socket.socket(socket.AF_UNIX)
            self.addCleanup(client.close)
            client.connect(f"{folder.name}/socket")
        port.numberAccepts = 7
        port.doRead()
        self.assertEqual(factory.built, 7)
        self.assertEqual(port.numberAccepts, 27)
        factory.built = 0
        ports.append(port)
        limit_accepts(ports, 5)
        port.doRead()
        self.assertEqual(factory.built, 5)


class HttpClientTests(SynchronousTestCase):
    """The error of an HTTP client whose request was not sent."""

    def test_a_request_that_was_not_sent_fails_with_this(self) -> None:
        """On a connection that is closing already: it can be sent again without a doubt."""
        protocol = HTTP11ClientProtocol()
        protocol.makeConnection(StringTransport())
        protocol.abort()
        request: Any = object()
        failure = self.failureResultOf(protocol.request(request))
        failure.trap(RequestNotSent)

    def test_the_connection_of_a_response_can_be_aborted(self) -> None:
        """At once, while its body is still arriving."""
        protocol, transport = HTTP11ClientProtocol(), StringTransport()
        protocol.makeConnection(transport)
        request = Request(b"GET", b"/", Headers({b"host": [b"here"]}), None)
        requested = protocol.request(request)
        protocol.dataReceived(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        body = Listener()
        self.successResultOf(requested).deliverBody(body)
        abort_response(body.transport)
        self.assertTrue(transport.disconnected)

    def test_a_transport_that_cannot_be_aborted_is_closed(self) -> None:
        """Such as that of a fake response."""
        closed: list[bool] = []

        class Fake:
            def loseConnection(self) -> None:
                closed.append(True)

        abort_response(Fake())
        self.assertEqual(closed, [True])

    def test_a_pool_can_be_quiet_about_its_connections(self) -> None:
        """Each would be a line in the log when it begins and when it ends."""
        reactor = MemoryReactorClock()
        pool = HTTPConnectionPool(reactor)
        quieten(pool)
        made: list[Any] = []

        class Endpoint:
            def connect(self, factory: Any) -> Deferred[Any]:
                made.append(factory)
                return Deferred()

        pool.getConnection(("http", "here", 80), cast(Any, Endpoint()))
        self.assertFalse(made[0].noisy)
        self.assertIsInstance(made[0].buildProtocol(None), HTTP11ClientProtocol)

    def test_a_pool_is_still_public(self) -> None:
        """The pool and the siblings of the error are exported; this one error is not."""
        self.assertTrue(callable(HTTPConnectionPool))
        self.assertIn("ResponseNeverReceived", web_client.__all__)
        self.assertNotIn("RequestNotSent", web_client.__all__)


class OnePlaceTests(SynchronousTestCase):
    """The rest of the package keeps to what Twisted documents."""

    def sources(self) -> dict[str, str]:
        """Return the text of each module but ``_twisted_compat``."""
        folder = Path(asyncplumber.__file__).parent
        own = Path(_twisted_compat.__file__)
        return {
            str(path.relative_to(folder)): path.read_text(encoding="utf-8")
            for path in sorted(folder.rglob("*.py"))
            if path != own
        }

    def test_no_private_module_is_imported_elsewhere(self) -> None:
        """A name with an underscore, in a module of Twisted's."""
        found = [
            f"{module} imports {name}"
            for module, tree in modules(ROOT).items()
            for name in imports(tree)
            if name.startswith("twisted.") and "._" in name and module != "_twisted_compat"
        ]
        self.assertEqual(found, [])

    def test_no_private_attribute_is_named_elsewhere(self) -> None:
        """Of transports and ports."""
        found = [
            f"{name}: {line.strip()}"
            for name, text in self.sources().items()
            for line in text.splitlines()
            if PRIVATE.search(line)
        ]
        self.assertEqual(found, [])

    def test_each_name_has_a_test(self) -> None:
        """What is exported is used here."""
        here = Path(__file__).read_text(encoding="utf-8")
        self.assertEqual(
            [
                name
                for name in _twisted_compat.__all__
                if not re.search(rf"\b{name}\(|trap\({name}", here)
            ],
            [],
        )
