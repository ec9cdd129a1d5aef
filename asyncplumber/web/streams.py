"""
Subscribers by Server-Sent Events (WHATWG HTML, 9.2) and by long-poll; and what every stream has in common.

A stream takes over its connection from the HTTP parser: what is sent goes by its `Outbox`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IProtocol
from zope.interface import implementer

from asyncplumber.channel import Channel
from asyncplumber.errors import PlumberError, Unavailable
from asyncplumber.event import Cursor, Position
from asyncplumber.interfaces import ISubscriber
from asyncplumber.web.answers import Answer, date_line, error_answer
from asyncplumber.web.attendance import Attendance
from asyncplumber.web.connection import Connection
from asyncplumber.web.outbox import Outbox
from asyncplumber.web.progress import progress
from asyncplumber.wire import Batch, chunk, gap, notice, record

RETRY = 3000  # milliseconds that a browser waits before it reconnects; the specification suggests "a few seconds"
CLOSING = 5.0  # seconds in which a client must take some of the last bytes, or go
REPLAY_TIMEOUT = 5.0  # seconds that a long-poll waits for the store before it is answered 503
ENVELOPES = 1024 * 1024  # bytes in one answer to a long-poll, at which it stops to take more
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store, no-transform\r\n"
    b"X-Accel-Buffering: no\r\nX-Content-Type-Options: nosniff\r\n%b%b%b\r\n%b"
)


class SlowReader(PlumberError):
    """More waits for this client than it is worth; it is to come back with its cursor."""

    status, code, default = 503, "slow-reader", "too much was waiting for you; come back with your cursor"


@implementer(IProtocol, ISubscriber)
class Stream(ABC):
    """A connected client that is sent events until one side has had enough.  One per connection, so it is kept small."""

    __slots__ = ("_attendance", "_channel", "_clock", "_ending", "_group", "outbox", "transport")

    def __init__(self, channel: Channel, attendance: Attendance, clock: Any) -> None:
        self._channel = channel
        self._attendance = attendance
        self._clock = clock
        self._group = attendance.enter(self)
        self._ending: Any = None  # the timer that hangs up on a client that does not go
        self.transport: Any = None
        self.outbox: Outbox = None  # type: ignore[assignment]  # there from `begin` on

    @property
    def account(self) -> str:
        """Whose events it is sent."""
        return self._channel.account

    @property
    def page_size(self) -> int:
        """Bytes of a replay that may wait for it."""
        return self.outbox.limit

    def begin(self, connection: Connection, head: bytes, limit: int, after: Cursor | str | None) -> None:
        """Take over the connection, answer with `head`, and subscribe.  `limit` is that of the `Outbox`, in bytes."""
        self.transport, self.outbox, said = connection.hand_over(self)
        self.outbox.pass_on(self._overflow, limit)
        # Nearly always the first event about the stream follows at once: one write for both.
        self.outbox.together(lambda: self._enter(head, after))
        if said:
            self.dataReceived(said)

    def _enter(self, head: bytes, after: Cursor | str | None) -> None:
        self.outbox.write(head)
        self._channel.subscribe(self, after)

    # IProtocol

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport

    def connectionMade(self) -> None:  # noqa: B027  # it was, before we took over
        pass

    @abstractmethod
    def dataReceived(self, data: bytes) -> None:
        """The client says something."""

    def connectionLost(self, reason: Any) -> None:
        self._channel.unsubscribe(self)
        self._attendance.leave(self, self._group)
        self.outbox.forget()
        if self._ending is not None and self._ending.active():
            self._ending.cancel()

    # ISubscriber, as far as it does not depend on the transport's words

    @abstractmethod
    def deliver(self, batch: Batch) -> None: ...

    @abstractmethod
    def opened(self, cursor: Cursor) -> None: ...

    @abstractmethod
    def missed(self, cursor: Cursor, position: Position) -> None: ...

    @abstractmethod
    def beat(self) -> None:
        """Say something that means nothing; hang up on a client that has been silent for too long."""

    @abstractmethod
    def farewell(self, reconnect_after: float) -> None:
        """Advise the client to come back after so many seconds, and close."""

    @abstractmethod
    def end(self, error: PlumberError | None) -> None:
        """Close, and say why if the transport has a way to."""

    def caught_up(self) -> None:  # noqa: B027  # not abstract: no stream has to do anything
        """A stream goes on as before."""

    def drained(self) -> Deferred[None]:
        return self.outbox.drained()

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

        A client that has taken nothing for `CLOSING` seconds is hung up on.  One that is slow is not:
        a reset would destroy what is on its way.
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
        self.outbox.flush()
        self.transport.loseConnection()


class EventStream(Stream):
    """
    A Server-Sent Events client.

    The answer has no end: whenever we close the connection there are more events to come.  So to
    HTTP/1.1 clients it is sent in chunks, and the last chunk never comes: to some clients a clean end
    means that all is done, and they do not connect again (fetch-event-source).  HTTP/1.0 has no other
    end than that of the connection.
    """

    __slots__ = ("_chunked",)

    def __init__(self, channel: Channel, attendance: Attendance, clock: Any, *, chunked: bool) -> None:
        super().__init__(channel, attendance, clock)
        self._chunked = chunked

    def head(self, cors: bytes) -> bytes:
        """The head of the answer, and the first lines of the stream; `cors` is further header lines."""
        retry = b"retry: %d\n\n" % RETRY
        if self._chunked:
            # And no "Connection: close", after which Node takes whatever end for a clean one.
            return _HEAD % (date_line(), b"Transfer-Encoding: chunked\r\n", cors, chunk(retry))
        return _HEAD % (date_line(), b"Connection: close\r\n", cors, retry)

    def _write(self, data: bytes) -> None:
        self.outbox.write(chunk(data) if self._chunked else data)

    def dataReceived(self, data: bytes) -> None:
        """It has nothing to say."""

    def deliver(self, batch: Batch) -> None:
        self.outbox.write(batch.chunk if self._chunked else batch.records)

    def opened(self, cursor: Cursor) -> None:
        self._write(record(str(cursor), "plumber.open", notice("plumber.open", self.account, cursor)))

    def missed(self, cursor: Cursor, position: Position) -> None:
        self._write(record(str(position.cursor), "plumber.gap", gap(self.account, cursor, position)))

    def beat(self) -> None:
        if not self.is_leaving:
            self._write(b":\n\n")

    def farewell(self, reconnect_after: float) -> None:
        if not self.is_leaving:
            # Without a cursor: one that is being replayed stands elsewhere than the live ones.
            bye = notice("plumber.bye", self.account, None, reconnect_after=reconnect_after)
            self._write(b"retry: %d\n%b" % (1000 * reconnect_after, record("", "plumber.bye", bye)))
        self._close()

    def end(self, error: PlumberError | None) -> None:
        self._close()


@implementer(ISubscriber)
class LongPoll:
    """
    One long-poll: an answer as soon as there is an event, or an empty one when the wait runs out.

    The wait begins when everything that is kept was looked at, however long the store takes for it.
    """

    page_size = ENVELOPES

    def __init__(self, channel: Channel, clock: Any, wait: float) -> None:
        """`wait` is in seconds."""
        self.answer: Deferred[Answer] = Deferred()
        self._channel = channel
        self._clock = clock
        self._wait = wait
        self._stand: Cursor | None = None  # None: it is not known yet
        self._envelopes: list[bytes] = []
        self._size = 0
        self._late: Any = clock.callLater(REPLAY_TIMEOUT, self.end, Unavailable())
        self._soon: Any = None

    @property
    def account(self) -> str:
        """Whose events it is sent."""
        return self._channel.account

    def opened(self, cursor: Cursor) -> None:
        self._stand = cursor

    def caught_up(self) -> None:
        self._late.cancel()
        self._late = self._clock.callLater(self._wait, self._answer)

    def deliver(self, batch: Batch) -> None:
        for event, text in zip(batch.events, batch.envelopes, strict=True):
            if self._envelopes and self._size + len(text) > ENVELOPES:
                self._answer()
                return
            self._take(text, event.cursor if event.epoch else None)

    def missed(self, cursor: Cursor, position: Position) -> None:
        self._take(gap(self.account, cursor, position), position.cursor)

    def _take(self, envelope: bytes, cursor: Cursor | None) -> None:
        self._envelopes.append(envelope)
        self._size += len(envelope)
        self._stand = cursor or self._stand
        if self._soon is None:
            # In the reactor's next turn: the rest of a replay's page, or of a burst, comes along.
            self._soon = self._clock.callLater(0, self._answer)

    def drained(self) -> Deferred[None]:
        return succeed(None)

    def _answer(self) -> None:
        cursor = str(self._stand).encode("ascii")
        body = b'{"events":[%b],"cursor":"%b"}\n' % (b",".join(self._envelopes), cursor)
        self._finish(Answer(200, b"application/json", body, ((b"Cache-Control", b"no-store"),)))

    def _finish(self, answer: Answer) -> None:
        self.leave()
        if not self.answer.called:
            self.answer.callback(answer)

    def leave(self) -> None:
        """The client is gone, or answered."""
        self._channel.unsubscribe(self)
        for timer in (self._late, self._soon):
            if timer is not None and timer.active():
                timer.cancel()

    def end(self, error: PlumberError | None) -> None:
        if self._envelopes or (error is None and self._stand is not None):
            self._answer()
        else:
            # Where a client stands that is not known yet cannot be told: it keeps its own cursor.
            self._finish(error_answer(error or Unavailable("this instance is about to stop")))
