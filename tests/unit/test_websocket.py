"""WebSocket subscribers: what RFC 6455 asks, heartbeats and the closing handshake."""

from __future__ import annotations

import gc
import json
from typing import Any, cast

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.testing import parse_responses
from asyncplumber.transports.connected_clients import HEARTBEAT
from asyncplumber.transports.frame_parser import (
    FRAME_BURST,
    MAX_MESSAGE_BYTES,
    FrameListener,
    FrameParser,
)
from asyncplumber.transports.stream import CLOSE_TIMEOUT
from asyncplumber.transports.websocket import (
    SILENT_HEARTBEATS,
    TRANSITIONS,
    WebSocketState,
    WebSocketStream,
)
from harness.frames import BINARY, CLOSE, PING, PONG, TEXT, client_frame, handshake_request
from harness.garbage import collect_only_new_objects
from harness.memory_subscribers import MemoryWebSocket
from tests.subscribers import ServerCase


class WebSocketTests(ServerCase, SynchronousTestCase):
    """WebSocket subscribers of a server in memory."""

    def subscribe(self, account: str = "a", after: str = "") -> MemoryWebSocket:
        """Connect a client."""
        return MemoryWebSocket(self.server, account, after)

    def parsers(self) -> int:
        """Return how many parsers our clients have."""
        gc.collect()
        clients = list(self.server.clients)
        found: list[Any] = gc.get_referrers(FrameParser)
        parsers = [each for each in found if type(each) is FrameParser]
        return sum(parser.listener in clients for parser in parsers)  # type: ignore[comparison-overlap]

    def test_the_handshake_is_answered_as_the_rfc_does(self) -> None:
        """With the example of RFC 6455; no extension is accepted."""
        client = self.server.connect()
        client.send(
            handshake_request(
                "/events/a", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
            )
        )
        head = client.received().partition(b"\r\n\r\n")[0].split(b"\r\n")
        self.assertEqual(head[0], b"HTTP/1.1 101 Switching Protocols")
        self.assertIn(b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", head)
        self.assertFalse([line for line in head if b"extensions" in line.lower()])

    def test_the_position_comes_first(self) -> None:
        """As a text message; then each event is one."""
        socket = self.subscribe()
        self.post(1, 2)
        found = socket.frames()
        self.assertEqual([opcode for opcode, _ in found], [TEXT] * 3)
        self.assertEqual(json.loads(found[0][1])["type"], "plumber.open")

    def test_wrong_handshakes_are_refused(self) -> None:
        """426 names the version, 400 is for a bad key; the connection can be used again."""
        for version in ("8", "12", "", "13, 8"):
            client = self.server.connect()
            client.send(
                handshake_request(version=version)
                + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
            )
            refused, healthy = parse_responses(client.received())
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
            self.assertEqual(self.server.exchange(handshake_request(key=key))[0].status, 400, key)
        self.assertEqual(
            self.server.exchange(handshake_request("/events/a", "Content-Length: 3") + b"abc")[
                0
            ].status,
            400,
        )
        self.assertEqual(self.server.exchange(handshake_request("/healthz"))[0].status, 200)
        self.assertEqual(self.server.exchange(handshake_request("/events/%00"))[0].status, 400)

    def test_a_frame_in_the_packet_of_the_handshake_is_read(self) -> None:
        """It may come before our response."""
        self.assertEqual(
            MemoryWebSocket(self.server, more=client_frame(b"early", PING)).frames()[-1],
            (PONG, b"early"),
        )

    def test_a_ping_is_answered(self) -> None:
        """Whole, byte by byte, and between the fragments of a message."""
        socket = self.subscribe()
        socket.frames()
        socket.client.send(client_frame(b"1", PING))
        for byte in client_frame(b"2", PING):
            socket.client.send(bytes([byte]))
        socket.client.send(
            client_frame(b"par", final=False)
            + client_frame(b"3", PING)
            + client_frame(b"t", 0, final=False)
        )
        socket.client.send(client_frame(b"4", PING) + client_frame(b"s", 0))
        found = [frame for frame in socket.frames() if frame[0] == PONG]
        self.assertEqual(found, [(PONG, b"%d" % number) for number in (1, 2, 3, 4)])

    def test_frames_of_two_clients_do_not_mix(self) -> None:
        """Each client has a parser of its own."""
        one, two = self.subscribe(), self.subscribe()
        for socket in (one, two):
            socket.frames()
            socket.client.send(client_frame(b"warm", PING))
        for first, second in zip(
            client_frame(b"for one", PING), client_frame(b"for two", PING), strict=True
        ):
            one.client.send(bytes([first]))
            two.client.send(bytes([second]))
        self.assertEqual(one.frames(), [(PONG, b"warm"), (PONG, b"for one")])
        self.assertEqual(two.frames(), [(PONG, b"warm"), (PONG, b"for two")])

    def test_an_event_may_come_amid_a_frame_of_the_client(self) -> None:
        """The frame is read to its end."""
        socket = self.subscribe()
        ping = client_frame(b"x" * 100, PING)
        socket.client.send(ping[:50])
        self.post(1)
        socket.client.send(ping[50:])
        self.assertEqual([opcode for opcode, _ in socket.frames()], [TEXT, TEXT, PONG])

    def test_a_parser_exists_only_amid_a_message(self) -> None:
        """A client that is silent, or between two messages, has none; also while it closes."""
        collect_only_new_objects(self)
        sockets = [self.subscribe() for _ in range(20)]
        self.assertEqual(self.parsers(), 0)
        for socket in sockets:
            socket.client.send(client_frame(b"x", PING))
        self.assertEqual(self.parsers(), 0)
        for socket in sockets:
            socket.client.send(client_frame(b"half", final=False))
        self.assertEqual(self.parsers(), len(sockets))
        for socket in sockets:
            socket.client.send(client_frame(b"whole", 0))
        self.assertEqual(self.parsers(), 0)
        for client in self.server.clients:
            client.close_going_away(1.0)
        self.assertEqual(self.parsers(), 0)

    def test_a_parser_is_never_handed_to_another_client(self) -> None:
        """Each is made for one client, and reports to that client alone for all its life."""
        made: list[tuple[FrameParser, object]] = []
        make = FrameParser.__init__

        def note(parser: FrameParser, listener: FrameListener, longest: int) -> None:
            made.append((parser, listener))
            make(parser, listener, longest)

        self.patch(FrameParser, "__init__", note)
        sockets = [self.subscribe() for _ in range(3)]
        for _ in range(2):
            for socket in sockets:
                socket.client.send(
                    client_frame(b"whole", PING) + client_frame(b"half", final=False)
                )
            for socket in sockets:
                socket.client.send(client_frame(b"whole", 0))
        self.assertEqual(len(made), 2 * len(sockets))
        self.assertEqual(len({id(parser) for parser, _ in made}), len(made))
        self.assertEqual(len({id(listener) for _, listener in made}), len(sockets))
        for parser, listener in made:
            self.assertIs(parser.listener, listener)

    def test_the_answer_to_our_ping_needs_no_parser(self) -> None:
        """It is a sign of life, and counts as a frame."""
        socket = self.subscribe()
        self.patch(WebSocketStream, "_parse", lambda *_: self.fail("it was parsed"))
        for _ in range(FRAME_BURST):
            socket.client.send(client_frame(b"", PONG))
        self.assertRaises(self.failureException, socket.client.send, client_frame(b"", PONG))

    def test_states_that_do_not_follow_raise(self) -> None:
        """A lost connection, for example, does not open again."""
        self.subscribe()
        stream = cast(WebSocketStream, next(iter(self.server.clients)))
        self.assertEqual(set(TRANSITIONS), set(WebSocketState))
        for state in WebSocketState:
            for wanted in WebSocketState:
                stream.state = state
                if wanted in TRANSITIONS[state]:
                    stream.become(wanted)
                else:
                    self.assertRaises(RuntimeError, stream.become, wanted)
        stream.state = WebSocketState.OPEN

    def violation(self, data: bytes) -> int:
        """Send this, and return the close code; nothing follows it, and an answer ends it."""
        socket = self.subscribe()
        socket.client.send(data)
        code, _ = socket.closed()
        self.post(1)
        self.assertEqual(socket.frames(), [])
        self.assertEqual(self.server.plumber.hub.count("a"), 0)
        socket.client.send(client_frame(code.to_bytes(2, "big"), CLOSE))
        self.assertIs(socket.client.ended, ConnectionDone)
        return code

    def test_a_violation_ends_with_its_code(self) -> None:
        """1002 for the protocol, 1007 for invalid UTF-8, 1009 for a message that is too large."""
        self.assertEqual(self.violation(client_frame(b"x", masked=False)), 1002)
        self.assertEqual(self.violation(client_frame(b"x", 3)), 1002)
        self.assertEqual(
            self.violation(b"\xc1" + client_frame(b"x")[1:]), 1002
        )  # compressed, which was not agreed
        self.assertEqual(self.violation(client_frame(b"x", 0)), 1002)
        self.assertEqual(self.violation(client_frame(b"x", PING, final=False)), 1002)
        self.assertEqual(self.violation(client_frame(b"x" * 126, PING)), 1002)
        self.assertEqual(self.violation(client_frame(b"\xff")), 1007)
        self.assertEqual(
            self.violation(client_frame(b"\xe6", final=False) + client_frame(b"x", 0)), 1007
        )
        self.assertEqual(self.violation(client_frame(b"x" * (MAX_MESSAGE_BYTES + 1))), 1009)
        self.assertEqual(
            self.violation(
                client_frame(b"x" * MAX_MESSAGE_BYTES, final=False) + client_frame(b"x", 0)
            ),
            1009,
        )

    def test_nothing_is_parsed_after_a_violation(self) -> None:
        """The client's answer may look like the payload of the frame that was refused."""
        self.assertEqual(self.violation(client_frame(b"x" * (MAX_MESSAGE_BYTES + 1))[:14]), 1009)
        self.assertEqual(self.violation(client_frame(b"x" * 200, 3)[:8]), 1002)
        self.assertEqual(self.violation(b"\xc1" + client_frame(b"x" * 200)[1:8]), 1002)

    def test_a_client_may_close_with_any_registered_code(self) -> None:
        """Also with 1014 (bad gateway); 1004 and 1015 must not be sent."""
        for code, answer in ((1012, 1000), (1013, 1000), (1014, 1000), (1004, 1002), (1015, 1002)):
            socket = self.subscribe()
            socket.client.send(client_frame(code.to_bytes(2, "big"), CLOSE))
            self.assertEqual(socket.closed()[0], answer)

    def test_our_subprotocol_is_chosen_where_it_is_offered(self) -> None:
        """A browser drops a connection whose response has none of those that it offered."""
        for offered, chosen in (
            ("plumber.v1", True),
            ("a, plumber.v1,b", True),
            ("plumber.v10", False),
        ):
            client = self.server.connect()
            client.send(handshake_request("/events/a", f"Sec-WebSocket-Protocol: {offered}"))
            head = client.received().partition(b"\r\n\r\n")[0]
            self.assertEqual(b"Sec-WebSocket-Protocol: plumber.v1" in head.split(b"\r\n"), chosen)

    def test_messages_of_a_client_are_ignored(self) -> None:
        """Up to the limits."""
        socket = self.subscribe()
        socket.client.send(
            client_frame(b"x" * MAX_MESSAGE_BYTES)
            + client_frame(b"\xff", BINARY)
            + client_frame(b"", PONG)
        )
        self.post(1)
        self.assertEqual(self.data(socket), [1])

    def test_a_client_closes(self) -> None:
        """Its close frame is answered with 1000; nothing of the client is left."""
        for payload in (b"", b"\x03\xe8", b"\x0f\xa0bye"):
            socket = self.subscribe()
            socket.client.send(client_frame(payload, CLOSE))
            self.assertEqual(socket.closed()[0], 1000)
            self.assertIs(socket.client.ended, ConnectionDone)
        self.assertEqual((self.server.plumber.hub.subscribers, len(self.server.clients)), (0, 0))

    def test_a_slow_reader_is_dropped_and_others_do_not_notice(self) -> None:
        """1013 follows complete frames; the client resumes and has missed nothing."""
        self.server = self.make_server(plumber={"unsent_limit": 10_000})
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
        """It is cut off after some heartbeats; one that answers stays."""
        dead, alive = self.subscribe(), self.subscribe()
        alive.frames()
        for _ in range(SILENT_HEARTBEATS + 1):
            self.server.advance(HEARTBEAT)
            for opcode, payload in alive.frames():
                self.assertEqual((opcode, payload), (PING, b""))
                alive.client.send(client_frame(payload, PONG))
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

    def test_a_server_that_stops_sends_its_clients_away(self) -> None:
        """plumber.bye with a time, then 1001; one that does not answer is cut off later."""
        polite, rude = self.subscribe(), self.subscribe()
        for socket in (polite, rude):
            socket.frames()
        stopped = self.server.stop()
        for socket in (polite, rude):
            (_, bye), (opcode, payload) = socket.frames()
            self.assertEqual(json.loads(bye)["type"], "plumber.bye")
            self.assertLessEqual(json.loads(bye)["data"]["reconnect_after"], 5)
            self.assertEqual((opcode, payload[:2]), (CLOSE, (1001).to_bytes(2, "big")))
        polite.client.send(client_frame((1001).to_bytes(2, "big"), CLOSE))
        self.assertEqual((polite.client.ended, rude.client.ended), (ConnectionDone, None))
        self.server.advance(CLOSE_TIMEOUT + 2)
        self.assertIs(rude.client.ended, ConnectionAborted)
        self.successResultOf(stopped)
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_a_client_that_stops_reading_while_closing_is_cut_off(self) -> None:
        """It has sent a close frame, and never reads the answer."""
        socket = self.subscribe()
        socket.client.reading = False
        socket.client.send(client_frame(b"", CLOSE))
        self.assertIs(socket.client.ended, None)
        self.server.advance(CLOSE_TIMEOUT + 1)
        self.assertIs(socket.client.ended, ConnectionAborted)
