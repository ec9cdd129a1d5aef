"""
Subscribers by Server-Sent Events (WHATWG HTML, 9.2) and by long-poll; and what every stream has in
common.

A stream takes over its connection from the HTTP parser: what is sent goes by its `SendBuffer`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol
from zope.interface import implementer

from asyncplumber.core.channel import Channel
from asyncplumber.errors import PlumberError
from asyncplumber.event import Cursor, Position
from asyncplumber.http.connection import Connection
from asyncplumber.interfaces import ISubscriber
from asyncplumber.transports.connected_clients import ConnectedClients
from asyncplumber.transports.progress import progress
from asyncplumber.transports.send_buffer import SendBuffer
from asyncplumber.wire.delivery import Delivery

CLOSING = 5.0  # seconds in which a client must take some of the last bytes, or go


class SlowReader(PlumberError):
    """More waits for this client than it is worth; it is to come back with its cursor."""

    status, code, default = (
        503,
        "slow-reader",
        "too much was waiting for you; come back with your cursor",
    )


@implementer(IProtocol, ISubscriber)
class Stream(ABC):
    """
    A connected client that is sent events until one side has had enough.  One per connection, so it
    is kept small.
    """

    __slots__ = (
        "_attendance",
        "_channel",
        "_clock",
        "_ending",
        "_group",
        "send_buffer",
        "transport",
    )

    def __init__(self, channel: Channel, clients: ConnectedClients, clock: Any) -> None:
        self._channel = channel
        self._attendance = clients
        self._clock = clock
        self._group = clients.enter(self)
        self._ending: Any = None  # the timer that hangs up on a client that does not go
        self.transport: Any = None
        self.send_buffer: SendBuffer = None  # type: ignore[assignment]  # there from `begin` on

    @property
    def account(self) -> str:
        """Whose events it is sent."""
        return self._channel.account

    @property
    def page_size(self) -> int:
        """Bytes of a replay that may wait for it."""
        return self.send_buffer.limit

    def begin(
        self, connection: Connection, head: bytes, limit: int, after: Cursor | str | None
    ) -> None:
        """
        Take over the connection, answer with `head`, and subscribe.  `limit` is that of the
        `SendBuffer`, in bytes.
        """
        self.transport, self.send_buffer, said = connection.detach(self)
        self.send_buffer.rebind(self._overflow, limit)
        # Nearly always the first event about the stream follows at once: one write for both.
        self.send_buffer.corked(lambda: self._enter(head, after))
        if said:
            self.dataReceived(said)

    def _enter(self, head: bytes, after: Cursor | str | None) -> None:
        self.send_buffer.write(head)
        self._channel.subscribe(self, after)

    # IProtocol

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport

    def connectionMade(self) -> None:  # it was, before we took over
        pass

    @abstractmethod
    def dataReceived(self, data: bytes) -> None:
        """The client says something."""

    def connectionLost(self, reason: Any) -> None:
        self._channel.unsubscribe(self)
        self._attendance.leave(self, self._group)
        self.send_buffer.forget()
        if self._ending is not None and self._ending.active():
            self._ending.cancel()

    # ISubscriber, as far as it does not depend on the transport's words

    @abstractmethod
    def deliver(self, batch: Delivery) -> None: ...

    @abstractmethod
    def opened(self, cursor: Cursor) -> None: ...

    @abstractmethod
    def missed(self, cursor: Cursor, position: Position) -> None: ...

    @abstractmethod
    def beat(self) -> None:
        """
        Say something that means nothing; hang up on a client that has been silent for too long.
        """

    @abstractmethod
    def close_going_away(self, reconnect_after: float) -> None:
        """Advise the client to come back after so many seconds, and close."""

    @abstractmethod
    def end(self, error: PlumberError | None) -> None:
        """Close, and say why if the transport has a way to."""

    def caught_up(self) -> None:  # not abstract: no stream has to do anything
        """A stream goes on as before."""

    def drained(self) -> Deferred[None]:
        return self.send_buffer.drained()

    def _overflow(self) -> None:
        self.end(SlowReader())

    def abort(self) -> None:
        """Hang up at once."""
        self.transport.abortConnection()

    @property
    def is_leaving(self) -> bool:
        """Whether the last word is said."""
        return self._ending is not None

    def _leave(self) -> None:
        """
        Serve it no more, and let it take the last words and go.

        A client that has taken nothing for `CLOSING` seconds is hung up on.  One that is slow is
        not: a reset would destroy what is on its way.
        """
        self._channel.unsubscribe(self)
        if self._ending is None:
            self._wait_for_end()

    def _wait_for_end(self) -> None:
        self._ending = self._clock.callLater(CLOSING, self._end_or_wait, progress(self.transport))

    def _end_or_wait(self, before: object | None) -> None:
        if progress(self.transport) == before:
            self.abort()
        else:
            self._wait_for_end()

    def _close(self) -> None:
        """Close after what is in the transport has been sent, but do not wait for ever."""
        self._leave()
        self.send_buffer.flush()
        self.transport.loseConnection()
