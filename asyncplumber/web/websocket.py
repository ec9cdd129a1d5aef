"""
Subscribers by WebSocket (RFC 6455).

What a client says is Autobahn's to understand: fragmentation, control frames, UTF-8, close codes.  But subscribers hardly
ever speak, and an Autobahn protocol is large; so there is one only while a client is in the middle of saying
something, or a closing handshake is under way (`_Ear`).  What we send is framed once for all, in `wire`.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol

from asyncplumber.channel import Channel
from asyncplumber.errors import BadRequest, PlumberError, TooManyRequests, Unavailable
from asyncplumber.event import Cursor, Position
from asyncplumber.posted import Headers
from asyncplumber.web.attendance import Attendance
from asyncplumber.web.streams import SlowReader, Stream
from asyncplumber.wire import Batch, frame, gap, notice

MESSAGE = 64 * 1024  # bytes that a client may say at once: it has nothing long to say
SILENT = 3  # heartbeats that a client may leave unanswered
PING = b"\x89\x00"
_CLOSE = b"\x88"
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_GOING_AWAY, _INTERNAL, _TRY_LATER = 1001, 1011, 1013


class UpgradeRequired(PlumberError):
    """A WebSocket handshake in a version that we do not speak (RFC 6455, 4.4)."""

    status, code, default = 426, "upgrade-required", "the WebSocket version spoken here is 13"
    headers = ((b"Sec-WebSocket-Version", b"13"), (b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"))


def accept_key(headers: Headers) -> bytes:
    """What a handshake with these headers is answered with (RFC 6455, 4.2).  Raises `BadRequest` or `UpgradeRequired`."""
    if headers.get(b"sec-websocket-version") != b"13":
        raise UpgradeRequired
    key = headers.get(b"sec-websocket-key", b"").strip()
    try:
        valid = len(key) == 24 and len(b64decode(key, validate=True)) == 16
    except BadBase64:
        valid = False
    if not valid:
        raise BadRequest("Sec-WebSocket-Key is 16 bytes in base64")
    return b64encode(hashlib.sha1(key + _MAGIC, usedforsecurity=False).digest())


def handshake(headers: Headers) -> bytes:
    """The answer that makes it a WebSocket.  Raises `BadRequest` or `UpgradeRequired`."""
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n"
        % accept_key(headers)
    )


class _Ear(WebSocketServerProtocol):  # type: ignore[misc]
    """Autobahn's protocol, already open, for as long as a client speaks.  Its transport is the subscriber itself."""

    # Autobahn copies its options from the factory to each protocol, and prints them for a debug line, at half the cost
    # of a connection; here they belong to the class.
    CONFIG_ATTRS: Any = ()
    transport: Any
    current_frame: Any
    websocket_version = 13  # as the opening handshake would have found
    logOctets = logFrames = trackTimings = False
    utf8validateIncoming = applyMask = True
    maxFramePayloadSize = maxMessagePayloadSize = MESSAGE
    autoFragmentSize = 0
    failByDrop = False  # dropping the connection without a close frame would leave the client with 1006
    echoCloseCodeReason = False
    openHandshakeTimeout = 0
    closeHandshakeTimeout = 0  # the stream has a timer of its own
    tcpNoDelay = True
    autoPingInterval = autoPingTimeout = 0
    autoPingSize = 12
    autoPingRestartOnAnyTraffic = True
    requireMaskedClientFrames = True
    maskServerFrames = False

    def listen(self, factory: Any, subscriber: WebSocketStream) -> None:
        """Begin where an opening handshake ends."""
        self.factory = factory
        self.transport = subscriber
        self._connectionMade()
        self.state = self.STATE_OPEN
        self.inside_message = False
        self.current_frame = None

    @property
    def is_idle(self) -> bool:
        """Whether the client is not in the middle of anything, so that nothing is lost if this ear is."""
        return self.state == self.STATE_OPEN and not self.data and self.current_frame is None and not self.inside_message


class EarFactory(WebSocketServerFactory):  # type: ignore[misc]
    """Autobahn's factory.  It keeps one idle ear for whoever speaks next."""

    protocol = _Ear

    def __init__(self) -> None:
        super().__init__()
        self._spare: _Ear | None = None

    def borrow(self, subscriber: WebSocketStream) -> _Ear:
        """An ear for this subscriber."""
        ear, self._spare = self._spare, None
        if ear is None:
            ear = _Ear()
            ear.listen(self, subscriber)
        ear.transport = subscriber
        return ear

    def give_back(self, ear: _Ear) -> None:
        """An idle ear."""
        ear.transport = None
        self._spare = ear


class WebSocketStream(Stream):
    """A WebSocket client.  It is also the transport of its ear."""

    __slots__ = ("_ear", "_factory", "_silent")

    def __init__(self, channel: Channel, attendance: Attendance, clock: Any, factory: EarFactory) -> None:
        super().__init__(channel, attendance, clock)
        self._factory = factory
        self._ear: _Ear | None = None
        self._silent = 0

    # The client speaks

    def dataReceived(self, data: bytes) -> None:
        self._silent = 0
        ear = self._ear
        if ear is None:
            ear = self._ear = self._factory.borrow(self)
        ear.dataReceived(data)
        if ear.is_idle:
            self._ear = None
            self._factory.give_back(ear)

    def connectionLost(self, reason: Any) -> None:
        ear, self._ear = self._ear, None
        if ear is not None:
            ear.connectionLost(reason)
        super().connectionLost(reason)

    # The transport of the ear

    def write(self, data: bytes) -> None:
        """Autobahn sends a pong, or a close frame, after which nothing more may be sent (RFC 6455, 5.5.1)."""
        if data[:1] == _CLOSE:
            self.outbox.last_words(data)
            self._leave()
        else:
            self.outbox.write(data)

    def unregisterProducer(self) -> None:
        """Autobahn is about to close the connection."""

    def loseConnection(self) -> None:
        """Autobahn closes the connection."""
        self._close()

    def abortConnection(self) -> None:
        """Autobahn closes it because both sides have said goodbye: that needs no reset."""
        self._close()

    # ISubscriber

    def deliver(self, batch: Batch) -> None:
        self.outbox.write(batch.frames)

    def opened(self, cursor: Cursor) -> None:
        self.outbox.write(frame(notice("plumber.open", self.account, cursor)))

    def missed(self, cursor: Cursor, position: Position) -> None:
        self.outbox.write(frame(gap(self.account, cursor, position)))

    def beat(self) -> None:
        if self._silent >= SILENT:
            self.abort()
        elif not self.is_leaving:
            self._silent += 1
            self.outbox.write(PING)

    def farewell(self, reconnect_after: float) -> None:
        if not self.is_leaving:
            self.outbox.write(frame(notice("plumber.bye", self.account, None, reconnect_after=reconnect_after)))
        self._say_goodbye(_GOING_AWAY, "going away")

    def end(self, error: PlumberError | None) -> None:
        if error is None:
            self._say_goodbye(_GOING_AWAY, "going away")
        elif isinstance(error, SlowReader | Unavailable | TooManyRequests):
            self._say_goodbye(_TRY_LATER, error.message)
        else:
            self._say_goodbye(_INTERNAL, error.message)

    def _say_goodbye(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""
        if self._ear is None:
            self._ear = self._factory.borrow(self)
        # sendClose() takes none of the codes that a server needs.
        self._ear.sendCloseFrame(code, reason.encode()[:123], isReply=False)
