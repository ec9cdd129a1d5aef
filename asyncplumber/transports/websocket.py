"""
Subscribers by WebSocket (RFC 6455).

What a client says is Autobahn's to understand: fragmentation, control frames, UTF-8, close codes.
But subscribers hardly ever speak, and an Autobahn protocol is large; so there is one only while a
client is in the middle of saying something, or a closing handshake is under way (`FrameParser`).
What we send is framed once for all, in `wire`.
"""

from __future__ import annotations

import hashlib
import math
from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from typing import Any

from asyncplumber.core.channel import Channel
from asyncplumber.errors import BadRequest, PlumberError, TooManyRequests, Unavailable
from asyncplumber.event import Cursor, Position
from asyncplumber.transports.connected_clients import ConnectedClients
from asyncplumber.transports.frame_parser import (
    FRAME_BURST,
    FRAME_RATE,
    FrameParser,
    FrameParserPool,
)
from asyncplumber.transports.progress import progress
from asyncplumber.transports.stream import SlowReader, Stream
from asyncplumber.wire.delivery import Delivery
from asyncplumber.wire.envelope import gap, notice
from asyncplumber.wire.parse import Headers
from asyncplumber.wire.websocket_frames import frame

SILENT = 3  # heartbeats that a client may neither answer nor take anything that waits for it
SUBPROTOCOL = b"plumber.v1"
PING = b"\x89\x00"
_CLOSE = b"\x88"
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_GOING_AWAY, _INTERNAL, _TRY_LATER = 1001, 1011, 1013
_NEVER = float("inf")  # a time


class UpgradeRequired(PlumberError):
    """A WebSocket handshake in a version that we do not speak (RFC 6455, 4.4)."""

    status, code, default = 426, "upgrade-required", "the WebSocket version spoken here is 13"
    headers = (
        (b"Sec-WebSocket-Version", b"13"),
        (b"Upgrade", b"websocket"),
        (b"Connection", b"Upgrade"),
    )


def accept_key(headers: Headers) -> bytes:
    """
    What a handshake with these headers is answered with (RFC 6455, 4.2).  Raises `BadRequest` or
    `UpgradeRequired`.
    """
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
    """
    The answer that makes it a WebSocket.  Raises `BadRequest` or `UpgradeRequired`.

    A client that offers our subprotocol gets it: browsers drop a connection whose answer has none
    of those that they offered.
    """
    offered = headers.get(b"sec-websocket-protocol", b"").split(b",")
    chosen = (
        b"Sec-WebSocket-Protocol: %b\r\n" % SUBPROTOCOL
        if SUBPROTOCOL in map(bytes.strip, offered)
        else b""
    )
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (accept_key(headers), chosen)
    )


class WebSocketStream(Stream):
    """A WebSocket client.  It is also the transport of its parser."""

    __slots__ = ("_allowed_from", "_factory", "_parser", "_progress", "_silent")

    def __init__(
        self, channel: Channel, clients: ConnectedClients, clock: Any, factory: FrameParserPool
    ) -> None:
        super().__init__(channel, clients, clock)
        self._factory = factory
        self._parser: FrameParser | None = None
        self._silent = 0  # heartbeats since the last sign of life
        self._progress: object | None = None  # at the last heartbeat
        # When the whole burst is allowed again: each frame moves it on (the algorithm GCRA, which
        # is a token bucket in one number).
        self._allowed_from = 0.0

    # The client speaks

    def dataReceived(self, data: bytes) -> None:
        if self._allowed_from == _NEVER:
            return
        self._silent = 0
        parser = self._parser
        if parser is None:
            parser = self._parser = self._factory.acquire(self)
        now = self._clock.seconds()
        begin = max(self._allowed_from, now)
        parser.allowance = allowance = FRAME_BURST - math.ceil((begin - now) * FRAME_RATE)
        self._allowed_from = begin
        parser.dataReceived(data)
        # Not where the parser has stopped listening: infinity stays what it is.
        self._allowed_from += (allowance - parser.allowance) / FRAME_RATE
        if parser.is_idle:
            self._parser = None
            self._factory.release(parser)

    def stop_listening(self) -> None:
        """Drop unread what the client says from now on."""
        self._allowed_from = _NEVER

    def turn_away(self) -> None:
        """
        Stop listening, and end our direction after the close frame.

        The client's answer is somewhere in what is dropped, so it is not waited for.  To close the
        connection at once would reset it, as bytes are unread, and destroy the close frame.
        """
        self.stop_listening()
        self.send_buffer.end()

    def connectionLost(self, reason: Any) -> None:
        parser, self._parser = self._parser, None
        if parser is not None:
            parser.connectionLost(reason)
        super().connectionLost(reason)

    # The transport of the parser

    def write(self, data: bytes) -> None:
        """
        Autobahn sends a pong, or a close frame, after which nothing more may be sent (RFC 6455,
        5.5.1).
        """
        if data[:1] == _CLOSE:
            self.send_buffer.write_final(data)
            self._stop_serving()
        else:
            self.send_buffer.write(data)

    def unregisterProducer(self) -> None:
        """Autobahn is about to close the connection."""

    def loseConnection(self) -> None:
        """Autobahn closes the connection."""
        self.stop_listening()
        self._close()

    def abortConnection(self) -> None:
        """Autobahn closes it because both sides have said goodbye: that needs no reset."""
        self.stop_listening()
        self._close()

    # ISubscriber

    def deliver(self, batch: Delivery) -> None:
        self.send_buffer.write(batch.frames)

    def opened(self, cursor: Cursor) -> None:
        self.send_buffer.write(frame(notice("plumber.open", self.account, cursor)))

    def missed(self, cursor: Cursor, position: Position) -> None:
        self.send_buffer.write(frame(gap(self.account, cursor, position)))

    def beat(self) -> None:
        if self.is_closing:
            return
        # A ping is behind what waits, and tells nothing about a slow reader: what it takes does.
        before, self._progress = self._progress, progress(self.transport)
        if before is not None and self._progress is not None and self._progress != before:
            self._silent = 0
        if self._silent >= SILENT:
            self.abort()
            return
        self._silent += 1
        if self._progress is None:
            self.send_buffer.write(PING)

    def close_going_away(self, reconnect_after: float) -> None:
        if not self.is_closing:
            self.send_buffer.write(
                frame(notice("plumber.bye", self.account, None, reconnect_after=reconnect_after))
            )
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
        if self._parser is None:
            self._parser = self._factory.acquire(self)
        # sendClose() takes none of the codes that a server needs.
        self._parser.sendCloseFrame(code, reason.encode()[:123], isReply=False)
