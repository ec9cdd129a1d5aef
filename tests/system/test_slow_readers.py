"""A slow reader stays as long as it reads, and a dead one is noticed: real sockets, fake clock."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from asyncplumber.http.listener import REQUEST_TIMEOUT
from asyncplumber.testing import MemoryServer
from asyncplumber.transports.connected_clients import HEARTBEAT
from asyncplumber.transports.progress import progress
from asyncplumber.transports.stream import CLOSE_TIMEOUT
from asyncplumber.transports.websocket import SILENT_HEARTBEATS
from harness.frames import CLOSE, PING, PONG, TEXT, client_frame, handshake_request, server_frames
from harness.reactor import reactor

SPEED = 12_000  # bytes a second
EVENT = 1_000_000  # bytes


class SlowReaderCase:
    """A client with small buffers, so that its system does not hold what it has not read."""

    make_server: type[MemoryServer] = MemoryServer
    sndbuf = 64 * 1024
    addCleanup: Any

    def setUp(self) -> None:
        """A server at a real port, and a client."""
        self.server = self.make_server()
        self.port = self.listen()
        self.addCleanup(self.port.stopListening)
        self.client = self.connected()
        self.addCleanup(self.leave)
        self.data = b""

    def listen(self) -> Any:
        """Listen, and return the port."""
        return reactor.listenTCP(0, self.server.listener, interface="127.0.0.1")

    def connected(self) -> socket.socket:
        """Connect a client that reads when a test tells it to."""
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", self.port.getHost().port))
        return client

    async def leave(self) -> None:
        """Close the client's end, and wait until the server has noticed."""
        self.client.close()
        for _ in range(1000):
            if not len(self.server.clients) and not self.server.listener.connections:
                break
            await self.turn()

    def turn(self) -> Deferred[None]:
        """Let the reactor do what is due."""
        self.server.settle()
        return deferLater(reactor, 0.0005, lambda: None)

    async def turns(self, count: int = 20) -> None:
        for _ in range(count):
            await self.turn()

    async def subscribe(self, head: bytes = b"") -> None:
        """Open the stream."""
        await self.turns(5)
        self.client.send(head or handshake_request())
        while b"plumber.open" not in self.data:
            await self.read(65536)
        for subscriber in self.server.clients:
            own = subscriber.transport.socket  # type: ignore[attr-defined]
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.sndbuf)
        self.data = self.data.partition(b"\r\n\r\n")[2]

    async def read(self, size: int) -> bool:
        """Read so many bytes; return False if the server has closed."""
        idle = 0
        while size > 0 and idle < 20:
            try:
                data = self.client.recv(min(size, 4096))
            except BlockingIOError:
                idle += 1
                await self.turn()
                continue
            except ConnectionResetError:
                data = b""
            if not data:
                return False
            idle = 0
            size -= len(data)
            self.data += data
        return True

    async def stuck(self) -> None:
        """Wait until the client's system takes no more; the clock stands still meanwhile."""
        (subscriber,) = self.server.clients
        mark, same = None, 0
        while same < 300:
            before, mark = mark, progress(subscriber.transport)  # type: ignore[attr-defined]
            same = same + 1 if mark == before else 0
            await self.turn()

    async def pass_time(self, seconds: float, speed: int = SPEED) -> bool:
        """Let seconds pass, and read so much in each; return False if the server has closed."""
        for _ in range(round(seconds)):
            if speed and not await self.read(speed):
                return False
            self.server.advance(1)
            await self.turn()
        return True


class SlowReaderTests(SlowReaderCase, TestCase):
    """Clients of streams."""

    async def test_a_slow_reader_gets_a_large_event(self) -> None:
        """It needs longer than a client may be silent: the bytes it takes are a sign of life."""
        await self.subscribe()
        self.server.post("a", json.dumps("x" * EVENT).encode())
        self.assertGreater(EVENT / SPEED, (SILENT_HEARTBEATS + 2) * HEARTBEAT)
        self.assertTrue(await self.pass_time(EVENT / SPEED + 2))
        found = [payload for opcode, payload in server_frames(self.data) if opcode == TEXT]
        self.assertEqual(len(json.loads(found[-1])["data"]), EVENT)

    async def test_a_client_is_pinged_again_when_it_has_everything(self) -> None:
        """Then it must answer again."""
        await self.subscribe()
        self.server.post("a", json.dumps("x" * EVENT).encode())
        await self.pass_time(EVENT / SPEED + 2)
        self.data = b""
        await self.pass_time(HEARTBEAT)
        self.assertEqual(server_frames(self.data), [(PING, b"")])
        self.client.send(client_frame(b"", PONG))
        self.assertTrue(await self.pass_time(SILENT_HEARTBEATS * HEARTBEAT))
        self.assertFalse(await self.pass_time(HEARTBEAT + 1))

    async def test_a_client_that_takes_nothing_is_cut_off_in_time(self) -> None:
        """No later than one that does not answer its pings."""
        await self.subscribe()
        self.server.post("a", json.dumps("x" * EVENT).encode())
        await self.stuck()
        await self.pass_time(SILENT_HEARTBEATS * HEARTBEAT - 1, 0)
        self.assertEqual(len(self.server.clients), 1)
        await self.pass_time(2 * HEARTBEAT + 1, 0)
        self.assertEqual(len(self.server.clients), 0)

    async def test_new_events_are_no_sign_of_life(self) -> None:
        """More and more is queued for a client that takes nothing."""
        await self.subscribe()
        self.server.post("a", json.dumps("x" * EVENT).encode())
        await self.stuck()
        for _ in range(int((SILENT_HEARTBEATS + 2) * HEARTBEAT) + 1):
            self.server.post("a", b"1")
            await self.pass_time(1, 0)
        self.assertEqual(len(self.server.clients), 0)

    async def test_an_overflow_does_not_destroy_what_is_on_its_way(self) -> None:
        """What was handed over arrives, then 1013, however slowly the client takes it."""
        self.server.plumber.front.subscribers.unsent_limit = 300_000
        await self.subscribe()
        for _ in range(8):
            self.server.post("a", json.dumps("x" * 100_000).encode())
        self.assertEqual(self.server.plumber.hub.count("a"), 0)
        self.assertFalse(await self.pass_time(150))
        (*events, (opcode, payload)) = server_frames(self.data)
        self.assertGreater(len(events), 1)
        self.assertGreater(len(self.data), CLOSE_TIMEOUT * SPEED)
        self.assertEqual((opcode, int.from_bytes(payload[:2], "big")), (CLOSE, 1013))

    async def test_a_client_that_stops_reading_at_the_end_is_cut_off(self) -> None:
        """It has taken nothing for ``CLOSE_TIMEOUT`` seconds."""
        self.server.plumber.front.subscribers.unsent_limit = 300_000
        await self.subscribe()
        for _ in range(8):
            self.server.post("a", json.dumps("x" * 100_000).encode())
        await self.pass_time(CLOSE_TIMEOUT, SPEED)
        self.assertEqual(len(self.server.clients), 1)
        await self.stuck()
        await self.pass_time(3 * CLOSE_TIMEOUT, 0)
        self.assertEqual(len(self.server.clients), 0)

    async def test_an_event_stream_that_ends_is_read_to_its_end(self) -> None:
        """It has no close frame: the end follows everything that was handed over."""
        self.server.plumber.front.subscribers.unsent_limit = 300_000
        await self.subscribe(
            b"GET /events/a HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        )
        for _ in range(8):
            self.server.post("a", json.dumps("x" * 100_000).encode())
        self.assertFalse(await self.pass_time(100))
        self.assertGreater(len(self.data), CLOSE_TIMEOUT * SPEED)


class SlowPollTests(SlowReaderCase, TestCase):
    """Clients of long-polls."""

    async def poll(self) -> None:
        """Ask for all that is kept, on a connection that closes after the response."""
        await self.turns(5)
        (connection,) = self.server.listener.connections
        own = connection.transport.socket
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.sndbuf)
        head = b"GET /events/a?after=earliest HTTP/1.1\r\nHost: localhost\r\n"
        self.client.send(head + b"Connection: close\r\n\r\n")

    async def test_a_slow_reader_gets_the_response_to_its_poll(self) -> None:
        """Also if the connection is to close after it."""
        self.server.post("a", json.dumps("x" * EVENT).encode())
        await self.turns()
        await self.poll()
        await self.turns()
        self.assertFalse(await self.pass_time(EVENT / SPEED + 2))
        head, _, body = self.data.partition(b"\r\n\r\n")
        self.assertIn(b" 200 ", head)
        self.assertEqual(len(json.loads(body)["events"][0]["data"]), EVENT)

    async def test_a_poll_whose_response_is_not_taken_ends(self) -> None:
        """At the latest two request time-outs after the last byte was taken."""
        self.server.post("a", json.dumps("x" * EVENT).encode())
        await self.poll()
        await self.turns(200)
        self.assertEqual(len(self.server.listener.connections), 1)
        await self.pass_time(2 * REQUEST_TIMEOUT + 2, 0)
        self.assertEqual(len(self.server.listener.connections), 0)


class UnixSocketTests(SlowReaderTests, SlowPollTests):
    """Where the system does not tell what the other end has taken."""

    def listen(self) -> Any:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "socket")
        return reactor.listenUNIX(self.path, self.server.listener)

    def connected(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        client.connect(self.path)
        return client
