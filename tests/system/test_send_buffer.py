"""Send buffers on real sockets and on TLS.  ``tests/unit`` has those in memory."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from asyncplumber.testing import MemoryServer
from asyncplumber.transports.progress import progress
from asyncplumber.transports.send_buffer import CLOSED, SendBuffer, send_buffer_for
from harness.certificates import certificate
from harness.reactor import reactor


class Server(Protocol):
    """The server's end of a connection; fires its Deferred with itself."""

    def __init__(self, made: Deferred[Any]) -> None:
        self.made = made
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.made.callback(self)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.callback(None)


class SocketTests(TestCase):
    """On a real socket with small buffers."""

    def setUp(self) -> Any:
        return Deferred.fromCoroutine(self.set_up())

    async def set_up(self) -> None:
        made: Deferred[Any] = Deferred()
        factory = Factory.forProtocol(lambda: Server(made))  # type: ignore[arg-type]
        port: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.client = socket.socket()
        self.addCleanup(self.client.close)
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.client.connect(("127.0.0.1", port.getHost().port))
        self.server = await made
        self.transport = self.server.transport
        self.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.addCleanup(self.gone)
        self.overflows: list[int] = []

    def gone(self) -> Deferred[None]:
        self.transport.abortConnection()
        return self.server.lost  # type: ignore[no-any-return]

    def send_buffer(self, limit: int = 1024 * 1024) -> SendBuffer:
        """Return a buffer for the server's end."""
        return send_buffer_for(self.transport, lambda: self.overflows.append(1), limit)

    async def receive(self, size: int) -> bytes:
        """Let the client read so many bytes, and return them."""

        def read() -> bytes:
            self.client.settimeout(10)
            data = b""
            while len(data) < size:
                data += self.client.recv(4096)
            return data

        return await deferToThread(read)

    async def test_bytes_go_to_the_socket_at_once(self) -> None:
        """Before the reactor has a turn."""
        self.send_buffer().write(b"now")
        self.client.settimeout(5)
        self.assertEqual(self.client.recv(10), b"now")

    async def test_a_message_sent_in_part_is_never_overtaken(self) -> None:
        """Whatever the kernel takes of each, the client reads all of them in order."""
        send_buffer = self.send_buffer()
        messages = [b"%06d" % number * (1 + number % 500) for number in range(400)]
        for message in messages:
            send_buffer.write(message)
        self.assertGreater(send_buffer.unsent, 100_000)
        drained = send_buffer.drained()
        expected = b"".join(messages)
        self.assertEqual(await self.receive(len(expected)), expected)
        await drained
        self.assertEqual(send_buffer.unsent, 0)
        send_buffer.write(b"direct again")
        self.assertEqual(await self.receive(12), b"direct again")

    async def test_queued_bytes_go_first_after_a_rebind(self) -> None:
        """A response may still be queued when the connection becomes a stream."""
        send_buffer = self.send_buffer()
        first = b"x" * 300_000
        send_buffer.write(first)
        self.assertFalse(send_buffer.ready)
        send_buffer.rebind(lambda: self.overflows.append(2), 10_000_000)
        send_buffer.write(b"second")
        self.assertEqual(await self.receive(len(first) + 6), first + b"second")
        self.assertEqual(self.overflows, [])

    async def test_a_client_that_does_not_read_is_bounded(self) -> None:
        """One that reads is not, however much it is sent."""
        send_buffer = self.send_buffer(10_000)
        for _ in range(50):
            send_buffer.write(b"x" * 20_000)
            await send_buffer.drained() if not send_buffer.unsent else await self.receive(20_000)
        self.assertEqual(self.overflows, [])
        for _ in range(1000):
            send_buffer.write(b"x" * 1000)
        self.assertEqual(self.overflows, [1])
        self.assertLess(send_buffer.unsent, 12_000)

    async def test_the_transport_asks_when_it_is_empty(self) -> None:
        """What we rely on: it asks a pull producer each time it is empty, and not before."""
        calls: list[int] = []

        class Producer:
            def resumeProducing(self) -> None:
                calls.append(len(transport.dataBuffer))

            def stopProducing(self) -> None:
                calls.append(-1)

        transport = self.transport
        transport.registerProducer(Producer(), False)
        self.assertEqual(calls, [0])
        transport.write(b"x" * 500_000)
        self.assertEqual(calls, [0])
        await self.receive(500_000)
        await deferLater(reactor, 0, lambda: None)
        self.assertEqual(calls, [0, 0])

    async def test_a_lost_connection_raises_nothing(self) -> None:
        """Neither before the reactor notices, nor after."""
        send_buffer = self.send_buffer()
        self.client.close()
        for _ in range(3):
            send_buffer.write(b"x" * 1000)
        await self.server.lost
        send_buffer.write(b"x")
        self.assertEqual(self.overflows, [])

    async def test_a_send_error_is_noticed_while_nothing_is_read(self) -> None:
        """The transport tries to send again, and reports the loss."""
        send_buffer = self.send_buffer()
        self.transport.pauseProducing()
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.close()
        send_buffer.write(b"x")
        await self.server.lost
        self.assertEqual(send_buffer.state, CLOSED)


class Collector(Protocol):
    """A client that collects what it receives, and reports when it has certain bytes."""

    def __init__(self) -> None:
        self.data = b""
        self.waiting: list[tuple[bytes, Deferred[None]]] = []
        self.lost: Deferred[None] = Deferred()

    def wait_for(self, words: bytes) -> Deferred[None]:
        """Return a Deferred that fires when these bytes have come."""
        heard: Deferred[None] = Deferred()
        self.waiting.append((words, heard))
        self.dataReceived(b"")
        return heard

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        due = [heard for words, heard in self.waiting if words in self.data]
        self.waiting = [(words, heard) for words, heard in self.waiting if words not in self.data]
        for heard in due:
            heard.callback(None)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.callback(None)


class TlsTests(TestCase):
    """On TLS, whose records nothing may bypass."""

    def setUp(self) -> Any:
        return Deferred.fromCoroutine(self.set_up())

    async def set_up(self) -> None:
        self.server = MemoryServer(body_limit=1000)
        own = certificate()
        port: Any = reactor.listenSSL(0, self.server.listener, own.options(), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        options = ssl.optionsForClientTLS("localhost", trustRoot=ssl.Certificate(own.original))
        endpoint = SSL4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port, options)
        self.client: Any = await connectProtocol(endpoint, Collector())
        self.addCleanup(self.gone)
        # Twisted's own warnings, about what it does with pyOpenSSL; any other one is an error.
        self.addCleanup(
            lambda: self.assertEqual(
                [w for w in self.flushWarnings() if "pyOpenSSL" not in w["message"]], []
            )
        )

    def gone(self) -> Deferred[None]:
        if not self.client.lost.called:
            self.client.transport.abortConnection()
        return self.client.lost  # type: ignore[no-any-return]

    async def heard(self, words: bytes) -> None:
        """Wait until the client has received this; the server's clock goes on meanwhile."""
        heard = self.client.wait_for(words)
        while not heard.called:
            self.server.settle()
            await deferLater(reactor, 0.001, lambda: None)
        await heard

    async def test_events_are_decrypted_in_order(self) -> None:
        """Many small ones and large ones."""
        self.client.transport.write(
            b"GET /events/a HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        )
        await self.heard(b"plumber.open")
        for number in range(200):
            self.server.post("a", b'"%d%b"' % (number, b"x" * 900))
        await self.heard(b'"199x')
        numbers = [int(part.partition(b"x")[0]) for part in self.client.data.split(b'"data":"')[1:]]
        self.assertEqual(numbers, list(range(200)))
        self.assertTrue(ISSLTransport.providedBy(self.client.transport))

    async def test_progress_is_seen_below_tls(self) -> None:
        """The socket tells whether the client took everything, or some."""
        self.client.transport.write(
            b"GET /events/a HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        )
        await self.heard(b"plumber.open")
        (subscriber,) = self.server.clients
        self.client.transport.pauseProducing()
        for _ in range(200):
            self.server.post("a", b'"%b"' % (b"x" * 900))
        for _ in range(20):
            self.server.post("a", b'"%b"' % (b"x" * 900))
            await deferLater(reactor, 0.001, lambda: None)
        transport: Any = subscriber.transport  # type: ignore[attr-defined]
        self.assertIsNotNone(transport.socket)
        mark = progress(transport)
        self.assertIsInstance(mark, bytes | None)
        self.client.transport.resumeProducing()
        while progress(transport) is not None:
            self.server.settle()
            await deferLater(reactor, 0.001, lambda: None)

    async def test_a_refusal_is_read_although_the_body_is_not_taken(self) -> None:
        """Then the connection is closed."""
        head = b"POST /hooks/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
        self.client.transport.write(head + os.urandom(50_000))
        await self.heard(b"413 ")
        await self.client.lost
