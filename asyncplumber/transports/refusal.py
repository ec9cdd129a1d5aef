"""A WebSocket that is closed as soon as it is open, so that a page learns why it is refused."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IDelayedCall, IProtocol, IReactorTime
from zope.interface import implementer

from asyncplumber.errors import (
    NotAllowed,
    PlumberError,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from asyncplumber.transports.closes import (
    FORBIDDEN,
    GOING_AWAY,
    INTERNAL_ERROR,
    TOO_MANY_REQUESTS,
    TRY_AGAIN_LATER,
    UNAUTHENTICATED,
)
from asyncplumber.transports.stream import CLOSE_TIMEOUT, Hold, SlowReader, StreamConnection
from asyncplumber.wire.websocket_frames import close


def close_code(error: PlumberError) -> int | None:
    """Return the close code that tells a client about a refusal; None if the error is none."""
    if isinstance(error, Unauthenticated):
        return UNAUTHENTICATED
    if isinstance(error, NotAllowed):
        return FORBIDDEN
    if isinstance(error, TooManyRequests):
        return TOO_MANY_REQUESTS
    return None


def end_code(error: PlumberError | None) -> int:
    """Return the code with which a stream ends for this error; None is no error."""
    if error is None:
        return GOING_AWAY
    code = close_code(error)
    if code is not None:
        return code
    return TRY_AGAIN_LATER if isinstance(error, SlowReader | Unavailable) else INTERNAL_ERROR


@implementer(IProtocol)
class RefusedWebSocket:
    """The protocol of a connection whose WebSocket was opened only to be closed."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._timer: IDelayedCall | None = None
        self._hold: Hold | None = None
        self.transport: Any = None

    def begin(self, connection: StreamConnection, head: bytes, code: int, reason: str) -> None:
        """
        Take over the connection, and send the response ``head`` and a close frame.

        A client that does not close within ``CLOSE_TIMEOUT`` seconds is cut off.
        """
        self.transport, send_buffer, _, self._hold = connection.detach(self)
        send_buffer.write(head + close(code, reason))
        self._timer = self._clock.callLater(CLOSE_TIMEOUT, self.transport.abortConnection)
        # Only our direction ends: a reset would destroy the close frame if the client has sent
        # something that is not read.
        send_buffer.end()

    # IProtocol

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport

    def connectionMade(self) -> None:
        """Do nothing: the connection was made before."""

    def dataReceived(self, data: bytes) -> None:
        """Drop it: the client's answer to the close frame changes nothing."""

    def connectionLost(self, reason: Any) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._hold is not None:
            self._hold.release()
