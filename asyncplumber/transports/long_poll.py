"""Subscribers by long-poll: one response with the events there are, as soon as there are some."""

from __future__ import annotations

from typing import NamedTuple

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

from asyncplumber.core.subscription import Subscribable
from asyncplumber.errors import PlumberError, Unavailable
from asyncplumber.event import Cursor, Position
from asyncplumber.grant import Grant
from asyncplumber.interfaces import ITaskSubscriber
from asyncplumber.transports.stream import Visit
from asyncplumber.wire.delivery import Delivery
from asyncplumber.wire.envelope import gap

REPLAY_TIMEOUT = 5.0  # seconds that a long-poll waits for the store before it fails with 503
MAX_RESPONSE_BYTES = 1024 * 1024  # of envelopes in one response; a single one may be larger


class PollResult(NamedTuple):
    """What a long-poll returns to its client."""

    envelopes: list[bytes]
    cursor: Cursor  # the client's position after them

    @property
    def body(self) -> bytes:
        """The result as JSON."""
        cursor = str(self.cursor).encode("ascii")
        return b'{"events":[%b],"cursor":"%b"}\n' % (b",".join(self.envelopes), cursor)


@implementer(ITaskSubscriber)
class LongPoll:
    """
    One long-poll: a result as soon as there is an event, or an empty one after the wait.

    The wait begins when everything in the history has been looked at, however long the store
    takes for that.
    """

    page_size = MAX_RESPONSE_BYTES

    def __init__(
        self, channel: Subscribable, clock: IReactorTime, grant: Grant, wait: float
    ) -> None:
        """``grant`` allows it; ``wait`` is in seconds."""
        self.grant = grant
        #: What it counts as, for limits; None where it has none.
        self.visit: Visit | None = None
        #: Fires with the result, or fails with a `PlumberError`.
        self.result: Deferred[PollResult] = Deferred()
        self._subscription = channel.subscribe(self)
        self._clock = clock
        self._wait = wait
        self._cursor: Cursor | None = None  # None: not known yet
        self._envelopes: list[bytes] = []
        self._size = 0
        self._timeout: IDelayedCall = clock.callLater(REPLAY_TIMEOUT, self.end, Unavailable())
        self._next_turn: IDelayedCall | None = None

    @property
    def account(self) -> str:
        """The account whose events it waits for."""
        return self._subscription.account

    def start(self, after: Cursor | str | None) -> None:
        """Subscribe; see `Subscription.start`."""
        self._subscription.start(after)

    def opened(self, cursor: Cursor) -> None:
        self._cursor = cursor

    def replayed(self, size: int) -> None:
        if self.visit is not None:
            self.visit.replayed(size)

    def caught_up(self) -> None:
        self._timeout.cancel()
        self._timeout = self._clock.callLater(self._wait, self._finish)

    def deliver(self, batch: Delivery) -> None:
        for event, text in zip(batch.events, batch.envelopes, strict=True):
            if self._envelopes and self._size + len(text) > MAX_RESPONSE_BYTES:
                self._finish()
                return
            self._take(text, event.cursor if event.epoch else None)

    def missed(self, cursor: Cursor, position: Position) -> None:
        self._take(gap(self._subscription.account, cursor, position), position.cursor)

    def notify(self, type: str, envelope: bytes) -> None:
        self._take(envelope, None)

    def await_notice(self) -> None:
        self._stop_timers()
        self._next_turn = None
        # The notice ends the wait.  If it does not come, the client has at least what is here.
        self._timeout = self._clock.callLater(REPLAY_TIMEOUT, self._finish)

    def _take(self, envelope: bytes, cursor: Cursor | None) -> None:
        self._envelopes.append(envelope)
        self._size += len(envelope)
        self._cursor = cursor or self._cursor
        if self._next_turn is None:
            # The rest of a replay's page, or of a burst, arrives in this turn of the reactor.
            self._next_turn = self._clock.callLater(0, self._finish)

    def drained(self) -> Deferred[None]:
        return succeed(None)

    def _finish(self) -> None:
        assert self._cursor is not None  # `opened` comes before anything else
        self.cancel()
        if not self.result.called:
            self.result.callback(PollResult(self._envelopes, self._cursor))

    def cancel(self) -> None:
        """Stop waiting: the client has disconnected, or has its result."""
        self._subscription.cancel()
        self._stop_timers()

    def _stop_timers(self) -> None:
        for timer in (self._timeout, self._next_turn):
            if timer is not None and timer.active():
                timer.cancel()

    def refuse(self, error: PlumberError) -> None:
        """Fail with this error, and hand nothing over: its client may not have it any more."""
        self.cancel()
        if not self.result.called:
            self.result.errback(error)

    def end(self, error: PlumberError | None) -> None:
        if self._envelopes or (error is None and self._cursor is not None):
            self._finish()
            return
        # The client is told no cursor, because it is not known yet: it keeps its own.
        self.refuse(error or Unavailable("this instance is about to stop"))
