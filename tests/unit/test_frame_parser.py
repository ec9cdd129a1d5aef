"""The frame parser: what it uses of Autobahn is there, and it understands what Autobahn does."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any, cast

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket import protocol as autobahn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.transports import frame_parser
from asyncplumber.transports.frame_parser import (
    FRAME_BURST,
    MAX_FRAGMENTS,
    MAX_MESSAGE_BYTES,
    FrameParser,
)
from harness.frames import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    client_frame,
    close_code,
    handshake_request,
    server_frames,
)
from tests.unit import examples

# Everything of Autobahn that ``frame_parser`` names, by what it is there.
OPTIONS = {
    "echoCloseCodeReason",
    "failByDrop",
    "logFrames",
    "logOctets",
    "openHandshakeTimeout",
    "requireMaskedClientFrames",
    "trackTimings",
    "utf8validateIncoming",
    "applyMask",
}
METHODS = {  # each with its parameters: we call it, or Autobahn calls ours in its place
    "_connectionMade": ["self"],
    "_dataReceived": ["self", "data"],
    "_fail_connection": ["self", "code", "reason"],
    "dropConnection": ["self", "abort"],
    "onCloseFrame": ["self", "code", "reasonRaw"],
    "onFrameBegin": ["self"],
    "sendCloseFrame": ["self", "code", "reasonUtf8", "isReply"],
}
HOOKS = {  # that Autobahn's core calls, and its binding to Twisted defines
    "_onMessageBegin": ["self", "isBinary"],
    "_onMessageEnd": ["self"],
    "_onMessageFrameBegin": ["self", "length"],
    "_onMessageFrameData": ["self", "payload"],
    "_onMessageFrameEnd": ["self"],
    "_onPing": ["self", "payload"],
    "_onPong": ["self", "payload"],
}
CONSTANTS = {"CONFIG_ATTRS", "STATE_CLOSED", "STATE_OPEN"}
STATE = {  # attributes of a protocol whose handshake is done
    "current_frame",
    "data",
    "factory",
    "inside_message",
    "log",
    "state",
    "trafficStats",
    "utf8validator",
    "websocket_version",
}
MODULE = {"TrafficStats", "WebSocketProtocol", "WebSocketServerProtocol", "Utf8Validator"}


class Recorder:
    """Remembers what a parser reports."""

    def __init__(self, *, keeps_messages: bool = False) -> None:
        self.facts: list[Any] = []
        self.keeps_messages = keeps_messages

    def ping_received(self, payload: bytes) -> None:
        self.facts.append(("ping", payload))

    def message_received(self, message: bytes, *, is_binary: bool) -> None:
        if self.keeps_messages:
            self.facts.append(("binary" if is_binary else "text", message))

    def close_received(self) -> None:
        self.facts.append(("close", 1000))

    def violated(self, code: int, reason: str) -> None:
        assert reason
        self.facts.append(("close", code))


def parse(*pieces: bytes, allowance: int = FRAME_BURST) -> list[Any]:
    """Return what a new parser reports about these bytes."""
    recorder = Recorder()
    parser = FrameParser(recorder)
    for piece in pieces:
        parser.feed(piece, allowance)
    return recorder.facts


class FrameTransport(StringTransport):
    """The transport of Autobahn's own protocol, which is told that it ends."""

    def unregisterProducer(self) -> None:
        """There is none."""

    def abortConnection(self) -> None:
        """Autobahn does so when both sides have sent a close frame."""


class Reference:
    """Autobahn as an application uses it: a server protocol with a real opening handshake."""

    def __init__(self) -> None:
        factory = WebSocketServerFactory(reactor=Clock())
        factory.protocol = WebSocketServerProtocol
        factory.setProtocolOptions(
            failByDrop=False,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            maxMessagePayloadSize=MAX_MESSAGE_BYTES,
        )
        self.protocol = cast(Any, factory.buildProtocol(None))
        self.transport = FrameTransport()
        self.protocol.makeConnection(self.transport)
        self.protocol.dataReceived(handshake_request("/"))
        assert self.transport.value().startswith(b"HTTP/1.1 101")
        self.transport.clear()

    def facts(self, data: bytes) -> list[Any]:
        """Return what Autobahn answers, as the ``Recorder`` puts it."""
        self.protocol.dataReceived(data)
        found: list[Any] = []
        for opcode, payload in server_frames(self.transport.value()):
            if opcode == PONG:
                found.append(("ping", payload))
            else:
                found.append(("close", close_code(payload)))
        return found


class AutobahnTests(SynchronousTestCase):
    """What is used of Autobahn.  If one of these fails, read ``frame_parser`` before you change it.

    The bound in setup.cfg admits only releases with which they passed.
    """

    def test_everything_that_is_named_is_in_the_lists(self) -> None:
        """Every attribute of a parser, and every name of the class, that is not our own."""
        tree = ast.parse(Path(frame_parser.__file__).read_text(encoding="utf-8"))
        (parser,) = [
            node
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name == "FrameParser"
        ]
        named = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and ast.unparse(node.value) in ("self", "parser", "super()", "WebSocketProtocol")
        }
        for node in parser.body:
            if isinstance(node, ast.FunctionDef):
                named.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                found = node.targets if isinstance(node, ast.Assign) else [node.target]
                named |= {each.id for each in found if isinstance(each, ast.Name)}
        ours = {"__init__", "feed", "is_idle", "_stop", "_longest", "_message", "_is_binary"}
        ours |= {"listener", "_allowance", "_fragments", "_message_size"}
        named = {name for name in named - ours if not name.startswith("__")}
        known = OPTIONS | set(METHODS) | set(HOOKS) | CONSTANTS | STATE
        self.assertEqual(named, known)

    def test_options_are_options_of_autobahn(self) -> None:
        """Autobahn reads them from the protocol."""
        self.assertEqual(OPTIONS - set(autobahn.WebSocketServerProtocol.CONFIG_ATTRS), set())

    def test_methods_take_the_same_parameters(self) -> None:
        """Those that we call, and those that we replace."""
        binding = cast(Any, type(Reference().protocol))
        for names, owner in ((METHODS, autobahn.WebSocketServerProtocol), (HOOKS, binding)):
            for name, parameters in names.items():
                method = getattr(owner, name)
                self.assertEqual(list(inspect.signature(method).parameters), parameters, name)

    def test_constants_and_modules_are_there(self) -> None:
        """The two states are different."""
        for name in CONSTANTS:
            self.assertTrue(hasattr(autobahn.WebSocketServerProtocol, name), name)
        for name in MODULE:
            self.assertTrue(hasattr(autobahn, name), name)
        self.assertNotEqual(
            autobahn.WebSocketProtocol.STATE_OPEN, autobahn.WebSocketProtocol.STATE_CLOSED
        )

    def test_a_parser_begins_as_an_open_protocol(self) -> None:
        """With the values that Autobahn's own handshake leaves behind."""
        reference, parser = Reference().protocol, FrameParser(Recorder())
        for name in STATE:
            self.assertTrue(hasattr(reference, name), name)
        for name in STATE - {"factory", "log", "trafficStats", "utf8validator"}:
            self.assertEqual(getattr(parser, name), getattr(reference, name), name)
        for name in ("trafficStats", "utf8validator"):
            self.assertIs(type(getattr(parser, name)), type(getattr(reference, name)))

    def test_parsers_share_nothing_that_changes(self) -> None:
        """What Autobahn makes anew for each connection is made anew for each parser."""
        first, second = FrameParser(Recorder()), FrameParser(Recorder())
        for name, value in vars(first).items():
            if not isinstance(value, bool | int | bytes | None):
                self.assertIsNot(value, vars(second)[name], name)
        missing = set(vars(Reference().protocol)) - set(vars(first))
        made = {
            name
            for name in missing
            if not name.startswith(("http_", "websocket_", "autoPing", "wasNot"))
        }
        # Those of the opening handshake, of connections and of sending.
        handshake = {"handshakeRequest", "_wskey", "perMessageCompressionAccept"}
        connection = {
            "factory",
            "is_closed",
            "is_open",
            "transport",
            "peer",
            "connected",
            "_transport_details",
        }
        events = {"_valid_events", "_listeners", "_results", "_parents", "_wildcard_listeners"}
        sending = {"send_queue"}
        options = set(autobahn.WebSocketServerProtocol.CONFIG_ATTRS)
        self.assertEqual(made - handshake - connection - events - sending - options, set())


class ParserTests(SynchronousTestCase):
    """What the parser reports."""

    def test_a_ping_is_reported_with_its_payload(self) -> None:
        """However it is cut; a pong and a message are not worth a word."""
        data = client_frame(b"hello", PING) + client_frame(b"x", PONG) + client_frame(b"text")
        self.assertEqual(parse(data), [("ping", b"hello")])
        self.assertEqual(parse(*[bytes([byte]) for byte in data]), [("ping", b"hello")])

    def test_nothing_is_reported_after_the_end(self) -> None:
        """Neither in the same bytes nor later."""
        ping = client_frame(b"late", PING)
        for end, code in (
            (client_frame(b"", CLOSE), 1000),
            (client_frame(b"x", masked=False), 1002),
        ):
            self.assertEqual(parse(end + ping, ping), [("close", code)])

    def test_frames_are_counted_when_they_begin(self) -> None:
        """The caller is told how many began; one more than allowed is a violation."""
        recorder = Recorder()
        parser = FrameParser(recorder)
        frame = client_frame(b"x" * 10)
        self.assertEqual(parser.feed(frame[:8], 5), 1)
        self.assertEqual(parser.feed(frame[8:], 5), 0)
        self.assertEqual(parser.feed(frame * 5, 5), 5)
        self.assertEqual(recorder.facts, [])
        self.assertEqual(parser.feed(frame * 100, 5), 6)
        self.assertEqual(recorder.facts, [("close", 1008)])

    def test_a_message_is_bounded_in_bytes_and_in_frames(self) -> None:
        """Of which the empty ones count too."""
        self.assertEqual(parse(client_frame(b"x" * MAX_MESSAGE_BYTES)), [])
        self.assertEqual(parse(client_frame(b"x" * (MAX_MESSAGE_BYTES + 1))), [("close", 1009)])
        empty = client_frame(b"", 0, final=False)
        first = client_frame(b"", final=False)
        self.assertEqual(parse(first + empty * (MAX_FRAGMENTS - 1)), [])
        self.assertEqual(parse(first + empty * MAX_FRAGMENTS), [("close", 1009)])

    def test_a_message_is_reported_whole(self) -> None:
        """However it is cut, and in how many frames; one with wrong UTF-8 never is."""
        data = client_frame(b"par", final=False) + client_frame(b"p", PING) + client_frame(b"t", 0)
        data += client_frame(b"") + client_frame(b"\xff", BINARY) + client_frame(b"\xff")
        for pieces in ([data], [bytes([byte]) for byte in data]):
            recorder = Recorder(keeps_messages=True)
            parser = FrameParser(recorder)
            for piece in pieces:
                parser.feed(piece, FRAME_BURST)
            self.assertEqual(
                recorder.facts,
                [
                    ("ping", b"p"),
                    ("text", b"part"),
                    ("text", b""),
                    ("binary", b"\xff"),
                    ("close", 1007),
                ],
            )

    def test_a_listener_may_take_longer_messages(self) -> None:
        """Up to the bytes that it says."""
        for size, end in ((70_000, "text"), (70_001, "close")):
            recorder = Recorder(keeps_messages=True)
            FrameParser(recorder, 70_000).feed(client_frame(b"x" * size), FRAME_BURST)
            self.assertEqual([fact[0] for fact in recorder.facts], [end])

    def test_a_parser_is_idle_between_messages(self) -> None:
        """Then nothing is lost with it."""
        parser = FrameParser(Recorder())
        self.assertTrue(parser.is_idle)
        for piece, is_idle in (
            (client_frame(b"par", final=False), False),
            (client_frame(b"p", PING), False),
            (client_frame(b"t", 0)[:3], False),
            (client_frame(b"t", 0)[3:], True),
            (client_frame(b"whole", BINARY), True),
        ):
            parser.feed(piece, FRAME_BURST)
            self.assertIs(parser.is_idle, is_idle)

    @settings(
        max_examples=examples(200),
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([0, TEXT, BINARY, 3, 7, CLOSE, PING, PONG, 11]),
                st.one_of(
                    st.binary(max_size=8),
                    st.sampled_from([b"", b"\xc3", b"\xa4", "ä€😀".encode(), b"x" * 126]),
                    st.integers(990, 5010).map(lambda code: code.to_bytes(2, "big")),
                ),
                st.booleans(),
                st.sampled_from([True, True, True, True, True, True, True, False]),
                st.sampled_from([0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0x40]),
            ),
            max_size=6,
        )
    )
    def test_it_understands_what_autobahn_does(self, frames: list[Any]) -> None:
        """Right and wrong frames in any order: the same pings, and the same code at the end."""
        data = b""
        for opcode, payload, final, masked, reserved in frames:
            frame = client_frame(payload, opcode, final=final, masked=masked)
            data += bytes([frame[0] | reserved]) + frame[1:]
        expected = Reference().facts(data)
        if b"\x03\xf6" in data:  # 1014, which only we know
            return
        self.assertEqual(parse(data), expected)
        self.assertEqual(parse(*[data[at : at + 3] for at in range(0, len(data), 3)]), expected)
