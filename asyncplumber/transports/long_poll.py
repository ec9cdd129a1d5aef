"""Subscribers by long-poll: one answer with what there is, as soon as there is something."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from asyncplumber.core.channel import Channel
from asyncplumber.errors import PlumberError, Unavailable
from asyncplumber.event import Cursor, Position
from asyncplumber.http.responses import Response, error_response
from asyncplumber.interfaces import ISubscriber
from asyncplumber.wire.delivery import Delivery
from asyncplumber.wire.envelope import gap

REPLAY_TIMEOUT = 5.0  # seconds that a long-poll waits for the store before it is answered 503
ENVELOPES = 1024 * 1024  # bytes in one answer to a long-poll, at which it stops to take more


@implementer(ISubscriber)
class LongPoll:
    """
    One long-poll: an answer as soon as there is an event, or an empty one when the wait runs out.

    The wait begins when everything that is kept was looked at, however long the store takes for it.
    """

    page_size = ENVELOPES

    def __init__(self, channel: Channel, clock: Any, wait: float) -> None:
        """`wait` is in seconds."""
        self.answer: Deferred[Response] = Deferred()
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

    def deliver(self, batch: Delivery) -> None:
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
        self._finish(Response(200, b"application/json", body, ((b"Cache-Control", b"no-store"),)))

    def _finish(self, answer: Response) -> None:
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
            self._finish(error_response(error or Unavailable("this instance is about to stop")))
