"""How much a WebSocket client may send, and how often."""

from __future__ import annotations

import gc
import sys
from typing import Any

from twisted.internet.error import ConnectionAborted
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.rate_limited_log import INTERVAL, peer_name
from asyncplumber.testing import MemoryServer
from asyncplumber.transports.frame_parser import (
    FRAME_BURST,
    FRAME_RATE,
    MAX_FRAGMENTS,
    MAX_MESSAGE_BYTES,
    FrameParser,
)
from asyncplumber.transports.stream import CLOSE_TIMEOUT
from harness.frames import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    client_frame,
)
from harness.garbage import collect_only_new_objects
from harness.memory_subscribers import MemoryWebSocket

EMPTY = client_frame(b"", 0, final=False)


class LimitTests(SynchronousTestCase):
    """Each limit at its edge."""

    make_server: type[MemoryServer] = MemoryServer

    def setUp(self) -> None:
        self.server = self.make_server()

    def subscribe(self) -> MemoryWebSocket:
        """Connect a client, and take its first message."""
        socket = MemoryWebSocket(self.server)
        socket.frames()
        return socket

    def send_slowly(self, socket: MemoryWebSocket, frame: bytes, count: int) -> None:
        """Send a frame so many times, no faster than is allowed."""
        for _ in range(count):
            self.server.advance(1 / FRAME_RATE)
            socket.client.send(frame)

    def test_the_fragments_of_a_message_are_limited(self) -> None:
        """Empty ones count; one too many ends the connection with 1009."""
        for opcode in (TEXT, BINARY):
            socket = self.subscribe()
            socket.client.send(client_frame(b"", opcode, final=False))
            self.send_slowly(socket, EMPTY, MAX_FRAGMENTS - 1)
            self.assertNotIn(CLOSE, [opcode for opcode, _ in socket.frames()])
            socket.client.send(EMPTY)
            self.assertEqual(socket.closed()[0], 1009)

    def test_a_message_of_the_most_fragments_is_taken(self) -> None:
        """And so is the next one: the count begins anew with each message."""
        socket = self.subscribe()
        for _ in range(2):
            self.server.advance(FRAME_BURST / FRAME_RATE)
            self.send_slowly(socket, client_frame(b"x", final=False), 1)
            self.send_slowly(socket, client_frame(b"x", 0, final=False), MAX_FRAGMENTS - 2)
            self.send_slowly(socket, client_frame(b"x", 0), 1)
        self.assertNotIn(CLOSE, [opcode for opcode, _ in socket.frames()])

    def test_a_message_takes_no_more_memory_than_its_bytes(self) -> None:
        """Also in tiny pieces; and nothing of it is kept when it is too long."""

        def held(thing: Any) -> int:
            inner = [each for each in gc.get_referents(thing) if isinstance(each, bytes | list)]
            return sys.getsizeof(thing) + sum(held(each) for each in inner)

        collect_only_new_objects(self)
        socket = self.subscribe()
        frame = client_frame(b"x" * MAX_MESSAGE_BYTES, final=False)
        for start in range(0, len(frame), 64):
            socket.client.send(frame[start : start + 64])
        gc.collect()
        (client,) = self.server.clients
        found: list[Any] = gc.get_referrers(FrameParser)
        parsers = [each for each in found if type(each) is FrameParser]
        (parser,) = [each for each in parsers if each.listener is client]  # type: ignore[comparison-overlap]
        most = MAX_MESSAGE_BYTES * 9 // 8 + 4096
        self.assertLess(sum(held(value) for value in vars(parser).values()), most)
        socket.client.send(client_frame(b"x", 0))
        self.assertEqual(socket.closed()[0], 1009)

    def test_a_burst_of_frames_is_limited(self) -> None:
        """All of a burst are answered; one more ends the connection with 1008."""
        socket = self.subscribe()
        socket.client.send(client_frame(b"", PING) * FRAME_BURST)
        self.assertEqual(socket.frames(), [(PONG, b"")] * FRAME_BURST)
        socket.client.send(client_frame(b"", PING))
        self.assertEqual(socket.closed()[0], 1008)

    def test_the_rate_of_frames_is_limited(self) -> None:
        """The allowance comes back with time, up to one burst."""
        socket = self.subscribe()
        for _ in range(3):
            socket.client.send(client_frame(b"", PONG) * FRAME_BURST)
            self.server.advance(FRAME_BURST / FRAME_RATE)
        self.server.advance(10)
        socket.client.send(client_frame(b"", PONG) * FRAME_BURST)
        self.assertNotIn(CLOSE, [opcode for opcode, _ in socket.frames()])
        self.server.advance(0.5)
        socket.client.send(client_frame(b"", PONG) * (FRAME_RATE // 2))
        self.assertNotIn(CLOSE, [opcode for opcode, _ in socket.frames()])
        socket.client.send(client_frame(b"", PONG))
        self.assertEqual(socket.closed()[0], 1008)

    def test_a_frame_in_pieces_is_one_frame(self) -> None:
        """It counts when it begins."""
        socket = self.subscribe()
        frame = client_frame(b"x" * (2 * FRAME_BURST))
        for byte in frame:
            socket.client.send(bytes([byte]))
        socket.client.send(client_frame(b"", PING))
        self.assertEqual([opcode for opcode, _ in socket.frames()], [TEXT, PONG])

    def test_what_follows_a_flood_is_not_parsed(self) -> None:
        """A million more frames cost only the reading of their bytes."""
        socket = self.subscribe()
        begun: list[int] = []
        begin = FrameParser.onFrameBegin

        def note(parser: FrameParser) -> None:
            begun.append(1)
            begin(parser)

        self.patch(FrameParser, "onFrameBegin", note)
        flood = client_frame(b"") * 10_000
        for _ in range(10):
            socket.client.send(flood)
        self.assertEqual(len(begun), FRAME_BURST + 1)
        self.assertEqual(socket.closed()[0], 1008)

    def test_a_client_that_floods_on_is_cut_off(self) -> None:
        """It has some seconds to read why."""
        socket = self.subscribe()
        socket.client.reading = False
        socket.client.send(client_frame(b"") * (FRAME_BURST + 1))
        self.assertEqual(self.server.plumber.hub.count("a"), 0)
        for _ in range(int(CLOSE_TIMEOUT) + 2):
            socket.client.send(client_frame(b"") * 100)
            self.server.advance(1)
        self.assertIs(socket.client.ended, ConnectionAborted)
        self.assertEqual((self.server.plumber.hub.subscribers, len(self.server.clients)), (0, 0))

    def test_the_log_has_one_line_for_many_violations(self) -> None:
        """It tells the reason and the address of the first client."""
        wrong = [
            client_frame(b"x", masked=False),
            client_frame(b"\xff") * 3,
            client_frame(b"", 3),
            client_frame(b"x" * (MAX_MESSAGE_BYTES + 1)),
        ]
        with capturedLogs() as events:
            for _ in range(20):
                for data in wrong:
                    self.subscribe().client.send(data * 2)
        lines = [str(formatEvent(event)) for event in events]
        peer = peer_name(self.server.connect())
        reason = f"closed with 1002: unmasked client-to-server frame; it is {peer}"
        self.assertEqual(lines, [f"a WebSocket client is {reason}"])
        self.server.advance(INTERVAL)
        with capturedLogs() as events:
            self.subscribe().client.send(client_frame(b"") * (FRAME_BURST + 1))
        (line,) = [str(formatEvent(event)) for event in events]
        self.assertIn("1008: too many frames", line)
        self.assertIn(f"{peer} (and 79 more like this", line)

    def test_a_flood_of_one_client_does_not_affect_others(self) -> None:
        """Their frames are answered as before."""
        flooder, other = self.subscribe(), self.subscribe()
        other.client.send(client_frame(b"half", PING)[:5])
        flooder.client.send(client_frame(b"") * (FRAME_BURST + 1))
        other.client.send(client_frame(b"half", PING)[5:])
        third = self.subscribe()
        third.client.send(client_frame(b"third", PING))
        self.assertEqual(other.frames(), [(PONG, b"half")])
        self.assertEqual(third.frames(), [(PONG, b"third")])
