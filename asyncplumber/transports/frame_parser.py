"""
What a WebSocket client says: Autobahn's parser, within limits.  Nobody listens, so nothing is kept.

Subscribers hardly ever speak, and an Autobahn protocol is large.  So there is one only while a
client is in the middle of saying something, or a closing handshake is under way.
"""

from __future__ import annotations

from typing import Any, Protocol

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.logger import Logger

from asyncplumber.rate_limited_log import RateLimitedLog, peer_name

MESSAGE = 64 * 1024  # bytes that a client may say at once: it has nothing long to say
FRAGMENTS = 64  # frames of one message, empty ones included
FRAME_BURST = 128  # frames that a client may send at once: also the most that one turn parses
FRAME_RATE = 32  # frames a second that a client may send in the long run
_POLICY, _TOO_BIG = 1008, 1009


class Speaker(Protocol):
    """The client whose bytes are parsed, as the parser's transport."""

    transport: Any

    def write(self, data: bytes) -> None:
        """Send a pong or a close frame."""

    def loseConnection(self) -> None:
        """Close the connection."""

    def turn_away(self) -> None:
        """Drop what the client says from now on; a close frame was sent."""


class _Silent:
    """In place of Autobahn's log, which has two lines for each frame that is wrong."""

    def debug(self, *_: Any, **__: Any) -> None:
        """Write nothing."""

    warn = error = debug


class FrameParser(WebSocketServerProtocol):  # type: ignore[misc]
    """
    Autobahn's protocol, already open, for as long as a client speaks.  Its transport is the
    subscriber itself.
    """

    # Autobahn copies its options from the factory to each protocol, and prints them for a debug
    # line, at half the cost of a connection; here they belong to the class.
    CONFIG_ATTRS: Any = ()
    log: Any = _Silent()
    transport: Any
    current_frame: Any
    websocket_version = 13  # as the opening handshake would have found
    logOctets = logFrames = trackTimings = False
    utf8validateIncoming = applyMask = True
    maxFramePayloadSize = maxMessagePayloadSize = MESSAGE
    autoFragmentSize = 0
    failByDrop = (
        False  # dropping the connection without a close frame would leave the client with 1006
    )
    echoCloseCodeReason = False
    openHandshakeTimeout = 0
    closeHandshakeTimeout = 0  # the stream has a timer of its own
    tcpNoDelay = True
    autoPingInterval = autoPingTimeout = 0
    autoPingSize = 12
    autoPingRestartOnAnyTraffic = True
    requireMaskedClientFrames = True
    maskServerFrames = False

    allowance = 0  # frames that may still begin in this turn
    fragments = 0  # frames of the message under way

    def begin(self, factory: Any, subscriber: Speaker) -> None:
        """Begin where an opening handshake ends."""
        self.factory = factory
        self.transport = subscriber
        self._connectionMade()
        self.state = self.STATE_OPEN
        self.inside_message = False
        self.current_frame = None

    def _fail_connection(self, code: int = 1001, reason: str = "") -> None:
        was_open = self.state == self.STATE_OPEN
        if was_open:
            self.factory.log.warn(
                "a WebSocket client is closed with {code}: {reason}; it is {peer}",
                code=code,
                reason=reason,
                peer=peer_name(self.transport.transport),
            )
        super()._fail_connection(code, reason)
        if was_open:
            # Nothing more is to be understood, not even the answer to the close frame (RFC 6455,
            # 7.1.7): it may stand behind the rest of a frame, and would be taken for its payload.
            self.transport.turn_away()

    def onCloseFrame(self, code: Any, reasonRaw: Any) -> Any:
        """
        The client closes.  Autobahn does not know 1014 (bad gateway), which IANA has registered.
        """
        return super().onCloseFrame(1013 if code == 1014 else code, reasonRaw)

    # Limits.  Nobody listens to messages, so nothing of them is kept: Autobahn validates each piece
    # before it calls these methods.

    def onFrameBegin(self) -> None:
        """A frame's header is complete."""
        self.allowance -= 1
        if self.allowance < 0:
            self._fail_connection(_POLICY, "too many frames")
            self.data = b""
        super().onFrameBegin()

    def _onMessageBegin(self, isBinary: bool) -> None:
        self.message_data_total_length = self.fragments = 0

    def _onMessageFrameBegin(self, length: int) -> None:
        self.message_data_total_length += length
        self.fragments += 1
        if self.failedByMe:
            return
        if self.message_data_total_length > MESSAGE:
            self._fail_connection(_TOO_BIG, f"a message has at most {MESSAGE} bytes")
        elif self.fragments > FRAGMENTS:
            self._fail_connection(_TOO_BIG, f"a message has at most {FRAGMENTS} fragments")

    def _onMessageFrameData(self, payload: bytes) -> None:
        """Keep nothing."""

    def _onMessageFrameEnd(self) -> None:
        """Nothing was kept."""

    def _onMessageEnd(self) -> None:
        """Nobody listens."""

    @property
    def is_idle(self) -> bool:
        """
        Whether the client is not in the middle of anything, so that nothing is lost if this parser
        is.
        """
        return (
            self.state == self.STATE_OPEN
            and not self.data
            and self.current_frame is None
            and not self.inside_message
        )


class FrameParserPool(WebSocketServerFactory):  # type: ignore[misc]
    """Autobahn's factory.  It keeps one idle parser for whoever speaks next."""

    protocol = FrameParser
    _log = Logger()

    def __init__(self, clock: Any) -> None:
        super().__init__()
        self.log = RateLimitedLog(self._log, clock.seconds)
        self._spare: FrameParser | None = None

    def acquire(self, subscriber: Speaker) -> FrameParser:
        """A parser for this subscriber."""
        parser, self._spare = self._spare, None
        if parser is None:
            parser = FrameParser()
            parser.begin(self, subscriber)
        parser.transport = subscriber
        return parser

    def release(self, parser: FrameParser) -> None:
        """An idle parser."""
        parser.transport = None
        self._spare = parser
