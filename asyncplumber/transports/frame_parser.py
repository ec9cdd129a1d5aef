"""
Understand what a WebSocket client sends: Autobahn's parser, with limits and without output.

The parser takes bytes and reports facts to a ``FrameListener``.  It writes nothing and closes
nothing.  Autobahn checks everything (RFC 6455: fragmentation, masks, UTF-8, close codes).

A parser is large, and subscribers hardly ever send anything.  So one exists only while a client is
in the middle of a frame or a message, and it belongs to that client alone.

This module is the only one that knows Autobahn.  ``tests/unit/test_frame_parser.py`` lists every
attribute of Autobahn that is used here, and fails if a release lacks one.
"""

from __future__ import annotations

from typing import Any, Protocol

from autobahn.websocket.protocol import (
    TrafficStats,
    WebSocketProtocol,
    WebSocketServerProtocol,
)
from autobahn.websocket.utf8validator import Utf8Validator

MAX_MESSAGE_BYTES = 64 * 1024  # of one message, unless its listener takes longer ones
MAX_FRAGMENTS = 64  # frames of one message, empty ones included
FRAME_BURST = 128  # frames that a client may send at once
FRAME_RATE = 32  # frames a second that a client may send in the long run
POLICY_VIOLATION, TOO_BIG = 1008, 1009


class FrameListener(Protocol):
    """Receives what a parser finds."""

    def ping_received(self, payload: bytes) -> None:
        """The client has sent a ping, which a pong with this payload answers."""

    def message_received(self, message: bytes, *, is_binary: bool) -> None:
        """The client has sent a whole message; one that is not binary is valid UTF-8."""

    def close_received(self) -> None:
        """The client has sent a valid close frame.  What follows it is not parsed."""

    def violated(self, code: int, reason: str) -> None:
        """The client has broken a rule.  ``code`` is for a close frame.  Nothing more is parsed."""


class _NoLog:
    """Replaces Autobahn's log, which writes two lines for each wrong frame."""

    def debug(self, *_: Any, **__: Any) -> None:
        """Write nothing."""

    warn = error = debug


class _Factory:
    """Has what Autobahn's protocol asks of its factory."""

    isServer = True


class FrameParser(WebSocketServerProtocol):  # type: ignore[misc]
    """
    Autobahn's server protocol, from the moment at which its handshake would have ended.

    Its state is ``STATE_OPEN`` until it stops, then ``STATE_CLOSED``, in which Autobahn parses no
    more.  The closing handshake is the listener's business.
    """

    # Autobahn copies its options from a factory to each protocol, and formats them for a debug
    # line, at half the cost of a connection.  Here they belong to the class.
    CONFIG_ATTRS: Any = ()
    log: Any = _NoLog()
    factory: Any = _Factory()
    websocket_version = 13
    logOctets = logFrames = trackTimings = False
    utf8validateIncoming = applyMask = requireMaskedClientFrames = True
    echoCloseCodeReason = False
    openHandshakeTimeout = 0  # seconds; 0: none
    failByDrop = True  # a violation ends the parsing; Autobahn would skip the frame and go on

    def __init__(self, listener: FrameListener, longest: int = MAX_MESSAGE_BYTES) -> None:
        """
        Args:
            listener: Is told what the client sends.
            longest: The most bytes of a message.
        """
        # Without Autobahn's own: what it makes is for connections, and not for parsing.
        vars(self).update(_FRESH)
        self.trafficStats = TrafficStats()
        self.utf8validator = Utf8Validator()
        self.listener = listener
        self._longest = longest
        self._allowance = 0  # frames that may still begin in this call of ``feed``
        self._fragments = 0  # frames of the message that is under way
        self._message_size = 0  # bytes of it, by the heads of its frames
        self._message = bytearray()  # what has come of it
        self._is_binary = False

    def feed(self, data: bytes, allowance: int) -> int:
        """
        Parse ``data``, and tell the listener what is in it.

        Args:
            data: What the client has sent, cut anywhere.
            allowance: Frames that may begin in it.  One more is a violation.

        Returns:
            The number of frames that began in it.
        """
        self._allowance = allowance
        # Autobahn's `dataReceived` does nothing else, but describes itself for a debug line first.
        self._dataReceived(data)
        return allowance - self._allowance

    @property
    def is_idle(self) -> bool:
        """Whether nothing is lost with this parser: the client is between two messages."""
        return not self.data and self.current_frame is None and not self.inside_message

    def _stop(self) -> None:
        self.state = self.STATE_CLOSED
        self.data = b""

    # What Autobahn would do about it

    def _fail_connection(self, code: int = POLICY_VIOLATION, reason: str = "") -> None:
        if self.state == self.STATE_OPEN:
            self._stop()
            self.listener.violated(code, reason)

    def onCloseFrame(self, code: Any, reasonRaw: Any) -> Any:
        """Check the code and the reason, then report the frame by ``dropConnection``."""
        # Autobahn does not know 1014 (bad gateway), which IANA has registered.
        return super().onCloseFrame(1013 if code == 1014 else code, reasonRaw)

    def sendCloseFrame(self, *_: Any, **__: Any) -> None:
        """Send nothing: the listener answers."""

    def dropConnection(self, abort: bool = False) -> None:
        """Report a valid close frame: there Autobahn ends the connection."""
        self._stop()
        self.listener.close_received()

    def _onPing(self, payload: bytes) -> None:
        self.listener.ping_received(payload)

    def _onPong(self, payload: bytes) -> None:
        """Do nothing: that bytes came is a sign of life already."""

    # Limits.  Autobahn checks each piece of a message before it calls these methods.

    def onFrameBegin(self) -> None:
        self._allowance -= 1
        if self._allowance < 0:
            self._fail_connection(POLICY_VIOLATION, "too many frames")
        super().onFrameBegin()

    def _onMessageBegin(self, isBinary: bool) -> None:
        self._message_size = self._fragments = 0
        self._is_binary = isBinary

    def _onMessageFrameBegin(self, length: int) -> None:
        self._message_size += length
        self._fragments += 1
        if self._message_size > self._longest:
            self._fail_connection(TOO_BIG, f"a message has at most {self._longest} bytes")
        elif self._fragments > MAX_FRAGMENTS:
            self._fail_connection(TOO_BIG, f"a message has at most {MAX_FRAGMENTS} fragments")

    def _onMessageFrameData(self, payload: bytes) -> None:
        self._message += payload

    def _onMessageFrameEnd(self) -> None:
        """Do nothing: a message may have more frames."""

    def _onMessageEnd(self) -> None:
        message, self._message = bytes(self._message), bytearray()
        self.listener.message_received(message, is_binary=self._is_binary)


def _fresh() -> dict[str, object]:
    """
    Return the attributes with which Autobahn begins, as far as parsers can share their values.

    Autobahn needs longer to set them than to parse a frame.
    """
    parser: Any = FrameParser.__new__(FrameParser)
    WebSocketProtocol._connectionMade(parser)
    # What the opening handshake would set.
    parser.state = WebSocketProtocol.STATE_OPEN
    parser.inside_message = False
    parser.current_frame = None
    immutable = bool, int, bytes, type(None)
    return {name: value for name, value in vars(parser).items() if isinstance(value, immutable)}


_FRESH = _fresh()
