"""WebSocket subscribers: the contract of all subscribers, and what RFC 6455 asks."""

from __future__ import annotations

import gc
import json
from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.testing import MemoryServer, replies
from asyncplumber.transports.connected_clients import HEARTBEAT
from asyncplumber.transports.frame_parser import MESSAGE, FrameParser
from asyncplumber.transports.stream import CLOSE_TIMEOUT
from asyncplumber.transports.websocket import SILENT
from tests.subscribers import ServerCase, StreamingClient

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MASK = b"\x01\x02\x03\x04"


def said(payload: bytes, opcode: int = TEXT, *, final: bool = True, masked: bool = True) -> bytes:
    """One frame of a client."""
    size = len(payload)
    head = bytes([opcode | (0x80 if final else 0)])
    bit = 0x80 if masked else 0
    if size < 126:
        head += bytes([size | bit])
    elif size < 65536:
        head += bytes([126 | bit]) + size.to_bytes(2, "big")
    else:
        head += bytes([127 | bit]) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    return head + MASK + bytes([byte ^ MASK[index % 4] for index, byte in enumerate(payload)])


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """
    The server's frames, each whole, unfragmented and unmasked, as (opcode, payload).  Raises
    ValueError otherwise.
    """
    found = []
    while data:
        head, size, at = data[0], data[1], 2
        if size == 126:
            size, at = int.from_bytes(data[2:4], "big"), 4
        elif size == 127:
            size, at = int.from_bytes(data[2:10], "big"), 10
        if not head & 0x80 or head & 0x70 or size & ~0x7FFFFFFFFFFFFFFF or len(data) < at + size:
            raise ValueError(f"no whole frame: {data[:20]!r}")
        found.append((head & 0xF, data[at : at + size]))
        data = data[at + size :]
    return found


def handshake(
    path: str = "/events/a", *lines: str, version: str = "13", key: str = "dGhlIHNhbXBsZSBub25jZQ=="
) -> bytes:
    """What a browser says first."""
    words = [
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Connection: keep-alive, Upgrade",
        "Upgrade: WebSocket",
    ]
    words += [f"Sec-WebSocket-Version: {version}", f"Sec-WebSocket-Key: {key}", *lines, "", ""]
    return "\r\n".join(words).encode()


class Socket(StreamingClient):
    """A WebSocket client."""

    def __init__(
        self, server: MemoryServer, account: str = "a", after: str = "", more: bytes = b""
    ) -> None:
        super().__init__(server, handshake(f"/events/{account}?after={after}") + more, after)

    def frames(self) -> list[tuple[int, bytes]]:
        """What has come since this was last asked."""
        return frames(self.body())

    def envelopes(self) -> list[dict[str, Any]]:
        envelopes = [json.loads(payload) for opcode, payload in self.frames() if opcode == TEXT]
        for envelope in envelopes:
            self._cursor = envelope["cursor"] or self._cursor
        return envelopes

    def closed(self) -> tuple[int, str]:
        """The code and the reason of the last frame, which closes."""
        opcode, payload = self.frames()[-1]
        assert opcode == CLOSE
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()


class WebSocketTests(ServerCase, SynchronousTestCase):
    """Subscribers by WebSocket."""

    def subscribe(self, account: str = "a", after: str = "") -> Socket:
        """A client that is connected."""
        return Socket(self.server, account, after)

    def ears(self) -> int:
        """How many Autobahn protocols there are."""
        gc.collect()
        return sum(issubclass(type(thing), FrameParser) for thing in gc.get_objects())

    def test_the_handshake_is_answered_as_the_rfc_does(self) -> None:
        """With its own example; and no extension is agreed to."""
        client = self.server.connect()
        client.say(
            handshake(
                "/events/a", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
            )
        )
        head = client.heard().partition(b"\r\n\r\n")[0].split(b"\r\n")
        self.assertEqual(head[0], b"HTTP/1.1 101 Switching Protocols")
        self.assertIn(b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", head)
        self.assertFalse([line for line in head if b"extensions" in line.lower()])

    def test_where_it_stands_comes_first(self) -> None:
        """One text message; then each event is one."""
        socket = self.subscribe()
        self.post(1, 2)
        found = socket.frames()
        self.assertEqual([opcode for opcode, _ in found], [TEXT] * 3)
        self.assertEqual(json.loads(found[0][1])["type"], "plumber.open")

    def test_wrong_handshakes(self) -> None:
        """
        An old version learns which one is spoken here; a bad key is a bad request.  The connection
        serves on.
        """
        for version in ("8", "12", "", "13, 8"):
            client = self.server.connect()
            client.say(
                handshake(version=version) + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
            )
            refused, healthy = replies(client.heard())
            self.assertEqual(
                (refused.status, refused.headers[b"sec-websocket-version"]), (426, b"13")
            )
            self.assertEqual(healthy.status, 200)
        for key in (
            "",
            "x",
            "dGhlIHNhbXBsZSBub25jZQ=",
            "dGhlIHNhbXBsZSBub25jZQ===",
            "!!!!IHNhbXBsZSBub25jZQ==",
            "YQ==",
        ):
            self.assertEqual(self.server.ask(handshake(key=key))[0].status, 400, key)
        self.assertEqual(
            self.server.ask(handshake("/events/a", "Content-Length: 3") + b"abc")[0].status, 400
        )
        self.assertEqual(self.server.ask(handshake("/healthz"))[0].status, 200)
        self.assertEqual(self.server.ask(handshake("/events/%00"))[0].status, 400)

    def test_what_a_client_says_early_is_heard(self) -> None:
        """With the handshake in one packet."""
        self.assertEqual(
            Socket(self.server, more=said(b"early", PING)).frames()[-1], (PONG, b"early")
        )

    def test_a_ping_is_answered(self) -> None:
        """Whole, byte by byte, and amid the fragments of a message."""
        socket = self.subscribe()
        socket.frames()
        socket.client.say(said(b"1", PING))
        for byte in said(b"2", PING):
            socket.client.say(bytes([byte]))
        socket.client.say(said(b"par", final=False) + said(b"3", PING) + said(b"t", 0, final=False))
        socket.client.say(said(b"4", PING) + said(b"s", 0))
        self.assertEqual(socket.frames(), [(PONG, b"%d" % number) for number in (1, 2, 3, 4)])

    def test_half_frames_of_two_clients_do_not_mix(self) -> None:
        """Each is heard by itself, although idle ones share an ear."""
        one, two = self.subscribe(), self.subscribe()
        for socket in (one, two):
            socket.frames()
            socket.client.say(said(b"warm", PING))
        for first, second in zip(said(b"for one", PING), said(b"for two", PING), strict=True):
            one.client.say(bytes([first]))
            two.client.say(bytes([second]))
        self.assertEqual(one.frames(), [(PONG, b"warm"), (PONG, b"for one")])
        self.assertEqual(two.frames(), [(PONG, b"warm"), (PONG, b"for two")])

    def test_an_event_may_come_while_the_client_is_speaking(self) -> None:
        """What it was saying is not lost."""
        socket = self.subscribe()
        ping = said(b"x" * 100, PING)
        socket.client.say(ping[:50])
        self.post(1)
        socket.client.say(ping[50:])
        self.assertEqual([opcode for opcode, _ in socket.frames()], [TEXT, TEXT, PONG])

    def test_who_says_nothing_costs_no_autobahn_protocol(self) -> None:
        """And who has said something only as long as it was in the middle of it."""
        sockets = [self.subscribe() for _ in range(10)]
        before = self.ears()
        sockets += [self.subscribe() for _ in range(10)]
        self.assertEqual(self.ears(), before)
        for socket in sockets:
            socket.client.say(said(b"x", PING))
        self.assertLessEqual(self.ears(), before + 1)
        for socket in sockets:
            socket.client.say(said(b"half", final=False))
        self.assertEqual(self.ears(), before + len(sockets))
        for socket in sockets:
            socket.client.say(said(b"whole", 0))
        self.assertLessEqual(self.ears(), before + 1)

    def violation(self, data: bytes) -> int:
        """
        The code with which this ends; nothing is sent after it, and the connection goes when the
        client answers.
        """
        socket = self.subscribe()
        socket.client.say(data)
        code, _ = socket.closed()
        self.post(1)
        self.assertEqual(socket.frames(), [])
        self.assertEqual(self.server.plumber.hub.count("a"), 0)
        socket.client.say(said(code.to_bytes(2, "big"), CLOSE))
        self.assertIs(socket.client.ended, ConnectionDone)
        return code

    def test_what_breaks_the_rules_ends_with_its_code(self) -> None:
        """Protocol 1002, text that is none 1007, too large 1009."""
        self.assertEqual(self.violation(said(b"x", masked=False)), 1002)
        self.assertEqual(self.violation(said(b"x", 3)), 1002)
        self.assertEqual(
            self.violation(b"\xc1" + said(b"x")[1:]), 1002
        )  # compressed, which was not agreed
        self.assertEqual(self.violation(said(b"x", 0)), 1002)
        self.assertEqual(self.violation(said(b"x", PING, final=False)), 1002)
        self.assertEqual(self.violation(said(b"x" * 126, PING)), 1002)
        self.assertEqual(self.violation(said(b"\xff")), 1007)
        self.assertEqual(self.violation(said(b"\xe6", final=False) + said(b"x", 0)), 1007)
        self.assertEqual(self.violation(said(b"x" * (MESSAGE + 1))), 1009)
        self.assertEqual(self.violation(said(b"x" * MESSAGE, final=False) + said(b"x", 0)), 1009)

    def test_nothing_is_understood_after_a_violation(self) -> None:
        """
        The client's answer may stand behind the payload of a frame that was refused at its head.
        """
        self.assertEqual(self.violation(said(b"x" * (MESSAGE + 1))[:14]), 1009)
        self.assertEqual(self.violation(said(b"x" * 200, 3)[:8]), 1002)
        self.assertEqual(self.violation(b"\xc1" + said(b"x" * 200)[1:8]), 1002)

    def test_a_client_may_close_with_any_registered_code(self) -> None:
        """1014 is one of them (IANA: bad gateway); 1004 and 1015 are none."""
        for code, answer in ((1012, 1000), (1013, 1000), (1014, 1000), (1004, 1002), (1015, 1002)):
            socket = self.subscribe()
            socket.client.say(said(code.to_bytes(2, "big"), CLOSE))
            self.assertEqual(socket.closed()[0], answer)

    def test_our_subprotocol_is_chosen_where_it_is_offered(self) -> None:
        """A browser drops a connection whose answer has none of those that it offered."""
        for offered, chosen in (
            ("plumber.v1", True),
            ("a, plumber.v1,b", True),
            ("plumber.v10", False),
        ):
            client = self.server.connect()
            client.say(handshake("/events/a", f"Sec-WebSocket-Protocol: {offered}"))
            head = client.heard().partition(b"\r\n\r\n")[0]
            self.assertEqual(b"Sec-WebSocket-Protocol: plumber.v1" in head.split(b"\r\n"), chosen)

    def test_what_a_client_says_is_taken_up_to_the_limit(self) -> None:
        """It means nothing to us, and does no harm."""
        socket = self.subscribe()
        socket.client.say(said(b"x" * MESSAGE) + said(b"\xff", BINARY) + said(b"", PONG))
        self.post(1)
        self.assertEqual(self.data(socket), [1])

    def test_a_client_says_goodbye(self) -> None:
        """It is answered, and the connection closed; nothing is left."""
        for payload in (b"", b"\x03\xe8", b"\x0f\xa0bye"):
            socket = self.subscribe()
            socket.client.say(said(payload, CLOSE))
            self.assertEqual(socket.closed()[0], 1000)
            self.assertIs(socket.client.ended, ConnectionDone)
        self.assertEqual((self.server.plumber.hub.subscribers, len(self.server.clients)), (0, 0))

    def test_a_slow_reader_is_dropped_and_others_do_not_notice(self) -> None:
        """1013, after whole frames; it comes back with its cursor and has missed nothing."""
        self.server = MemoryServer(unsent_limit=10_000)
        slow, quick = self.subscribe(), self.subscribe()
        slow.envelopes()
        slow.client.reading = False
        self.post(*["x" * 1000] * 30)
        self.assertEqual(len(self.data(quick)), 30)
        self.assertEqual(self.server.plumber.hub.count("a"), 1)
        found = slow.frames()
        self.assertEqual((found[-1][0], found[-1][1][:2]), (CLOSE, (1013).to_bytes(2, "big")))
        cursor = json.loads(found[-2][1])["cursor"]
        self.server.advance(CLOSE_TIMEOUT + 1)
        self.assertIs(slow.client.ended, ConnectionAborted)
        self.assertEqual(len(found) - 1 + len(self.data(self.subscribe(after=cursor))), 30)

    def test_a_dead_client_is_found_by_its_silence(self) -> None:
        """It has so many heartbeats; whoever answers lives on."""
        dead, alive = self.subscribe(), self.subscribe()
        alive.frames()
        for _ in range(SILENT + 1):
            self.server.advance(HEARTBEAT)
            for opcode, payload in alive.frames():
                self.assertEqual((opcode, payload), (PING, b""))
                alive.client.say(said(payload, PONG))
        self.assertEqual((dead.client.ended, alive.client.ended), (ConnectionAborted, None))

    def test_nothing_follows_a_close_frame(self) -> None:
        """Not even a heartbeat that is due."""
        socket = self.subscribe()
        self.server.advance(HEARTBEAT - 2)
        for client in self.server.clients:
            client.close_going_away(1.0)
        self.assertEqual((socket.closed()[0], socket.client.ended), (1001, None))
        self.server.advance(4)
        self.assertEqual(socket.frames(), [])

    def test_farewell(self) -> None:
        """
        plumber.bye with a time to come back, then 1001; who answers is gone at once, who does not a
        little later.
        """
        polite, rude = self.subscribe(), self.subscribe()
        for socket in (polite, rude):
            socket.frames()
        stopped = self.server.stop()
        for socket in (polite, rude):
            (_, bye), (opcode, payload) = socket.frames()
            self.assertEqual(json.loads(bye)["type"], "plumber.bye")
            self.assertLessEqual(json.loads(bye)["data"]["reconnect_after"], 5)
            self.assertEqual((opcode, payload[:2]), (CLOSE, (1001).to_bytes(2, "big")))
        polite.client.say(said((1001).to_bytes(2, "big"), CLOSE))
        self.assertEqual((polite.client.ended, rude.client.ended), (ConnectionDone, None))
        self.server.advance(CLOSE_TIMEOUT + 2)
        self.assertIs(rude.client.ended, ConnectionAborted)
        self.successResultOf(stopped)
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_a_client_that_goes_silent_while_closing_is_let_go(self) -> None:
        """It says goodbye, and never reads the answer."""
        socket = self.subscribe()
        socket.client.reading = False
        socket.client.say(said(b"", CLOSE))
        self.assertIs(socket.client.ended, None)
        self.server.advance(CLOSE_TIMEOUT + 1)
        self.assertIs(socket.client.ended, ConnectionAborted)
