"""
Subscribers inside the process: an application's own callables and WebSocket protocols.

They get what every subscriber gets: each event once, in order.  A callback that returns an
awaitable gets the next event when that is done.  If too many events are queued meanwhile, the
subscriber leaves the live stream, and catches up from the history when the queue is empty.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections import deque
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, NamedTuple

from twisted.internet.defer import CancelledError as AdmissionCancelled
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from asyncplumber.concurrency import Waiters
from asyncplumber.core.awaitables import as_deferred
from asyncplumber.core.channel import Channel
from asyncplumber.core.hub import Hub
from asyncplumber.core.subscription import Subscription
from asyncplumber.errors import PlumberError
from asyncplumber.event import Cursor, Event, Position
from asyncplumber.interfaces import PAGE_BYTES, ISubscriber
from asyncplumber.wire.delivery import Delivery
from asyncplumber.wire.envelope import envelope

Callback = Callable[[Event], Awaitable[Any] | Any] | Any
MAX_QUEUED = 1000  # events that wait for one callback
RETRY_INTERVAL = 1.0  # seconds until a subscription that failed is tried again


class Gap(NamedTuple):
    """Events that a subscriber missed, and that cannot be replayed."""

    cursor: Cursor  # the last position before them
    position: Position  # how far the history reaches


def _caller(callback: Callback) -> Callable[[Event], Any]:
    """Return what to call with an event.  An Autobahn protocol is sent the envelope."""
    send = getattr(callback, "sendMessage", None)
    if callable(send):
        return lambda event: send(envelope(event), False)
    if not callable(callback):
        raise TypeError("a callback is a callable or a WebSocket protocol")
    return callback  # type: ignore[no-any-return]


@implementer(ISubscriber)
class CallbackSubscriber:
    """Calls one callback with the events of one account."""

    _log = Logger()
    page_size = PAGE_BYTES

    def __init__(
        self,
        hub: Hub,
        account: str,
        callback: Callback,
        after: Cursor | str | None,
        clock: IReactorTime,
        on_gap: Callable[[Gap], object] | None = None,
    ) -> None:
        """
        Args:
            hub: Where to subscribe.
            account: Whose events.
            callback: A callable, or an Autobahn WebSocket protocol.
            after: The position to begin at; None is now, "earliest" all that is kept.
            clock: Measures the time until a failed subscription is tried again.
            on_gap: Called in the order of the events, where some were missed.  None logs it.

        Raises:
            TypeError: The callback cannot be called.
        """
        self.account = account
        self._hub = hub
        self._call = _caller(callback)
        self._after = after
        self._clock = clock
        self._on_gap = on_gap
        self._admission: Deferred[Channel] | None = None
        self._subscription: Subscription | None = None
        self._queue: deque[Event | Gap] = deque()
        self._is_calling = False
        self._awaited: Any = None  # kept, as asyncio's loop only has weak references to its tasks
        self._is_behind = False  # whether it left the live stream until the queue is empty
        self._is_stopped = False
        self._drained = Waiters()
        self._retry: IDelayedCall | None = None

    def start(self) -> None:
        """Begin, or go on after a ``stop`` with the first event that it was not called with."""
        self._is_stopped = False
        self._subscribe()

    def stop(self) -> None:
        """Call the callback no more."""
        self._is_stopped = True
        self._is_behind = False
        kept = [each for each in self._queue if isinstance(each, Event) and each.epoch]
        if kept:
            waiting = kept[0]
            self._after = Cursor(waiting.epoch, waiting.seq - 1)
        self._queue.clear()
        self._unsubscribe()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    # Subscribing

    def _subscribe(self) -> None:
        """Subscribe; if that fails, try again later, until ``stop``."""
        self._retry = None
        if self._is_stopped or self._admission is not None:
            return
        self._admission = self._hub.admit(self.account)
        self._admission.addCallback(self._admitted).addErrback(self._not_admitted)

    def _admitted(self, channel: Channel) -> None:
        self._admission = None
        self._subscription = channel.subscribe(self)
        self._subscription.start(self._after)

    def _not_admitted(self, failure: Failure) -> None:
        self._admission = None
        if failure.check(AdmissionCancelled):
            return
        self._log.warn(
            "a callback of {account} is not subscribed yet: {error}",
            account=self.account,
            error=failure.getErrorMessage(),
        )
        self._try_again()

    def _try_again(self) -> None:
        if not self._is_stopped and self._retry is None:
            self._retry = self._clock.callLater(RETRY_INTERVAL, self._subscribe)

    def _unsubscribe(self) -> None:
        if self._admission is not None:
            self._admission.cancel()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.cancel()
        self._drained.release()

    # ISubscriber

    def opened(self, cursor: Cursor) -> None:
        self._after = cursor

    def replayed(self, size: int) -> None:
        """Do nothing: this program has no limits."""

    def caught_up(self) -> None:
        """Nothing changes for a callback."""

    def missed(self, cursor: Cursor, position: Position) -> None:
        self._after = position.cursor
        if self._on_gap is not None:
            self._queue.append(Gap(cursor, position))
            self._work_on_queue()
            return
        self._log.warn(
            "callbacks of {account} missed what came after {cursor}",
            account=self.account,
            cursor=str(cursor),
        )

    def deliver(self, batch: Delivery) -> None:
        if self._is_stopped:
            return
        self._queue.extend(batch.events)
        last = batch.events[-1]
        if last.epoch:
            self._after = last.cursor  # the queue is worked through, whatever happens
        self._work_on_queue()
        if len(self._queue) > MAX_QUEUED and not self._is_behind:
            self._is_behind = True
            self._unsubscribe()

    def drained(self) -> Deferred[None]:
        if not self._queue and not self._is_calling:
            return succeed(None)
        return self._drained.wait()

    def end(self, error: PlumberError | None) -> None:
        self._subscription = None
        self._try_again()

    # Calling

    def _work_on_queue(self) -> None:
        """Call with what is queued, unless a call is under way."""
        if not self._is_calling:
            self._is_calling = True
            self._call_next()

    def _call_next(self) -> None:
        while self._queue and not self._is_stopped:
            calling = Deferred.fromCoroutine(self._call_with(self._queue.popleft()))
            if not calling.called:
                calling.addCallback(lambda _: self._call_next())
                return
        self._is_calling = False
        self._drained.release()
        if self._is_behind:
            self._is_behind = False
            self._subscribe()

    async def _call_with(self, item: Event | Gap) -> None:
        try:
            if isinstance(item, Event):
                outcome = self._call(item)
            elif self._on_gap is not None:
                outcome = self._on_gap(item)
            if isawaitable(outcome):
                self._awaited = as_deferred(outcome)
                await self._awaited
        except (Exception, CancelledError):  # asyncio's CancelledError is no Exception
            self._log.failure("a callback of {account} failed", account=self.account)
