"""
WebSocket subscribers (RFC 6455).

What we send is framed once for all subscribers, in ``wire``.  What a client sends is parsed by a
``FrameParser``, which exists only while the client is in the middle of a frame or a message.
"""

from __future__ import annotations

import hashlib
import math
from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from enum import IntEnum
from typing import Any, Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from asyncplumber.core.subscription import Subscribable
from asyncplumber.errors import (
    BadRequest,
    IllegalTransition,
    PlumberError,
)
from asyncplumber.event import Cursor, Position
from asyncplumber.grant import Grant
from asyncplumber.rate_limited_log import RateLimitedLog, peer_name
from asyncplumber.transports.closes import GOING_AWAY, NORMAL
from asyncplumber.transports.connected_clients import ConnectedClients
from asyncplumber.transports.frame_parser import FRAME_BURST, FRAME_RATE, FrameParser
from asyncplumber.transports.progress import progress
from asyncplumber.transports.refusal import close_code, end_code
from asyncplumber.transports.stream import Stream
from asyncplumber.transports.task_messages import TaskMessages
from asyncplumber.wire.delivery import Delivery
from asyncplumber.wire.envelope import gap, notice
from asyncplumber.wire.fields import Headers
from asyncplumber.wire.websocket_frames import PING, close, frame, pong

SILENT_HEARTBEATS = 3  # in which a client may show no sign of life before it is cut off
SUBPROTOCOL = b"plumber.v1"
_EMPTY_PONG = b"\x8a\x80"  # how the answer to our ping begins; four bytes of mask follow
_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


class UpgradeRequired(PlumberError):
    """The client asks for a version of WebSocket that is not spoken here (RFC 6455, 4.4)."""

    status, code, default = 426, "upgrade-required", "the WebSocket version spoken here is 13"
    headers = (
        (b"Sec-WebSocket-Version", b"13"),
        (b"Upgrade", b"websocket"),
        (b"Connection", b"Upgrade"),
    )


def accept_key(headers: Headers) -> bytes:
    """
    Compute the value of ``Sec-WebSocket-Accept`` (RFC 6455, 4.2.2).

    Raises:
        UpgradeRequired: The version is not 13.
        BadRequest: The client's key is malformed.
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
    return b64encode(hashlib.sha1(key + _ACCEPT_GUID, usedforsecurity=False).digest())


def handshake(headers: Headers) -> bytes:
    """
    Return the head of the response that opens a WebSocket.

    A client that offers our subprotocol gets it: a browser drops a connection whose response has
    none of those that it offered.  A credential beside it is never repeated.

    Raises:
        UpgradeRequired: The version is not 13.
        BadRequest: The client's key is malformed.
    """
    offered = headers.get(b"sec-websocket-protocol", b"").split(b",")
    chosen = (
        b"Sec-WebSocket-Protocol: %b\r\n" % SUBPROTOCOL
        if SUBPROTOCOL in map(bytes.strip, offered)
        else b""
    )
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"X-Content-Type-Options: nosniff\r\nSec-WebSocket-Accept: %b\r\n%b\r\n"
        % (accept_key(headers), chosen)
    )


def violation_log(clock: IReactorTime) -> RateLimitedLog:
    """Return the log of all clients that break the rules: one line in ten seconds."""
    return RateLimitedLog(Logger("asyncplumber.websocket"), clock.seconds)


class WebSocketState(IntEnum):
    """How far the closing handshake (RFC 6455, 7.1) of a connection is."""

    OPEN = 0  # events are sent, and the client's frames are parsed
    CLOSING = 1  # our close frame is written; the client's frames are parsed for its close frame
    DISCARDING = 2  # nothing is sent or parsed any more, and the transport is closing
    LOST = 3  # the connection is gone


_OPEN: Final = WebSocketState.OPEN
_CLOSING: Final = WebSocketState.CLOSING
_DISCARDING: Final = WebSocketState.DISCARDING
_LOST: Final = WebSocketState.LOST

# All transitions.  Any other raises.
TRANSITIONS: Final = {
    _OPEN: frozenset({_CLOSING, _LOST}),
    _CLOSING: frozenset({_DISCARDING, _LOST}),
    _DISCARDING: frozenset({_LOST}),
    _LOST: frozenset(),
}


class WebSocketStream(Stream):
    """A WebSocket client, which also listens to the parser of its own frames."""

    __slots__ = (
        "_burst_from",
        "_messages",
        "_parser",
        "_progress",
        "_silent",
        "_violations",
        "state",
    )

    def __init__(
        self,
        channel: Subscribable,
        clients: ConnectedClients,
        clock: IReactorTime,
        grant: Grant,
        violations: RateLimitedLog,
        messages: TaskMessages,
    ) -> None:
        """
        Prepare to serve a client.

        Args:
            channel: What it subscribes to.
            clients: All clients that are connected.
            clock: The reactor's clock.
            grant: What the client may do.
            violations: The log of ``violation_log``.
            messages: Answers what the client asks.
        """
        super().__init__(channel, clients, clock, grant)
        self.state = _OPEN
        self._messages = messages
        self._violations = violations
        self._parser: FrameParser | None = None
        self._silent = 0  # heartbeats since the last sign of life
        self._progress: object | None = None  # at the last heartbeat
        # The time from which the client may send a whole burst again.  Each frame moves it on.
        # (This is the algorithm GCRA: a token bucket in one number.)
        self._burst_from = 0.0

    def become(self, state: WebSocketState) -> None:
        """
        Change the state.

        Raises:
            IllegalTransition: ``TRANSITIONS`` has no such transition.
        """
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransition("a WebSocket", self.state, state)
        self.state = state

    # The client sends

    def dataReceived(self, data: bytes) -> None:
        if self.state is not _OPEN and self.state is not _CLOSING:
            return
        self._silent = 0
        now = self._clock.seconds()
        begin = max(self._burst_from, now)
        allowance = FRAME_BURST - math.ceil((begin - now) * FRAME_RATE)
        if self._parser is None and len(data) == 6 and data[:2] == _EMPTY_PONG and allowance > 0:
            count = 1  # all that most clients ever send needs no parser
        else:
            count = self._parse(data, allowance)
        self._burst_from = begin + count / FRAME_RATE

    def _parse(self, data: bytes, allowance: int) -> int:
        parser = self._parser
        if parser is None:
            parser = self._parser = FrameParser(self, self._messages.longest(self))
        count = parser.feed(data, allowance)
        if parser.is_idle:
            self._parser = None
        return count

    # FrameListener

    def ping_received(self, payload: bytes) -> None:
        self.send_buffer.write(pong(payload))

    def message_received(self, message: bytes, *, is_binary: bool) -> None:
        if self.state is _OPEN:
            self._messages.received(self, message, is_binary=is_binary)

    def close_received(self) -> None:
        """Complete the closing handshake: answer, if we were not the first, and close."""
        self._send_close(NORMAL, "")
        self._discard()
        self._close()

    def violated(self, code: int, reason: str) -> None:
        """
        Close with this code.  Nothing that follows is parsed (RFC 6455, 7.1.7).

        The client's answer is somewhere in what is discarded, so nobody waits for it.  We end our
        direction only: to close the connection with bytes unread would reset it, and the reset
        would destroy the close frame.
        """
        if self.state is not _OPEN:
            self._discard()
            self._close()
            return
        self._violations.warn(
            "a WebSocket client is closed with {code}: {reason}; it is {peer}",
            code=code,
            reason=reason,
            peer=peer_name(self.transport),
        )
        self._send_close(code, reason)
        self._discard()
        self.send_buffer.end()

    def _discard(self) -> None:
        self.become(_DISCARDING)
        self._parser = None

    def connectionLost(self, reason: Any) -> None:
        self.become(_LOST)
        self._parser = None
        self._messages.forget(self)
        super().connectionLost(reason)

    # ISubscriber

    def deliver(self, batch: Delivery) -> None:
        self.send_buffer.write(batch.frames)

    def opened(self, cursor: Cursor) -> None:
        self.send_buffer.write(frame(self.open_notice(cursor)))

    def missed(self, cursor: Cursor, position: Position) -> None:
        self.send_buffer.write(frame(gap(self.account, cursor, position)))

    def notify(self, type: str, envelope: bytes) -> None:
        self.send_buffer.write(frame(envelope))

    def end(self, error: PlumberError | None) -> None:
        if error is None:
            self._send_close(GOING_AWAY, "going away")
            return
        bye = self.bye_notice(error)
        if bye is not None and self.state is _OPEN:
            self.send_buffer.write(frame(bye))
        is_refusal = close_code(error) is not None
        self._send_close(end_code(error), error.code if is_refusal else error.message)

    # Pingable

    def ping(self) -> None:
        if self.state is not _OPEN:
            return
        # A ping stands behind everything that is queued.  So it tells nothing about a slow client;
        # there the bytes that the client takes are the sign of life.
        before, self._progress = self._progress, progress(self.transport)
        if before is not None and self._progress is not None and self._progress != before:
            self._silent = 0
        if self._silent >= SILENT_HEARTBEATS:
            self.abort()
            return
        self._silent += 1
        if self._progress is None:
            self.send_buffer.write(PING)

    def close_going_away(self, reconnect_after: float) -> None:
        if self.state is _OPEN:
            self.send_buffer.write(
                frame(notice("plumber.bye", self.account, None, reconnect_after=reconnect_after))
            )
        self._send_close(GOING_AWAY, "going away")

    def _send_close(self, code: int, reason: str) -> None:
        """Begin the closing handshake.  Nothing may follow the close frame (RFC 6455, 5.5.1)."""
        if self.state is _OPEN:
            self._clients.closes.note(code)
            self.become(_CLOSING)
            self.send_buffer.write_final(close(code, reason))
            self._stop_serving()
            self._messages.forget(self)
