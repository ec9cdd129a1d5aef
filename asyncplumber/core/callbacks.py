"""
Subscribers that are not on a wire: an application's own callables and WebSocket protocols.

They get what every subscriber gets: each event once, in order.  One that awaits something is given
the next event when it is done; if too much waits for it meanwhile, it is taken off the live stream
and catches up from the history.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections import deque
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from zope.interface import implementer

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
WAITING = 1000  # events that wait for one callback
AGAIN = 1.0  # seconds until a subscription that failed is tried again


def _caller(callback: Callback) -> Callable[[Event], Any]:
    """What to call with an event: an Autobahn protocol is sent the envelope."""
    send = getattr(callback, "sendMessage", None)
    if callable(send):
        return lambda event: send(envelope(event), False)
    if not callable(callback):
        raise TypeError("a callback is a callable or a WebSocket protocol")
    return callback  # type: ignore[no-any-return]


@implementer(ISubscriber)
class CallbackSubscriber:
    """One registered callback."""

    _log = Logger()
    page_size = PAGE_BYTES

    def __init__(
        self, hub: Hub, account: str, callback: Callback, after: Cursor | str | None, clock: Any
    ) -> None:
        self.account = account
        self._hub = hub
        self._call = _caller(callback)
        self._after = after
        self._clock = clock
        self._subscription: Subscription | None = None
        self._queue: deque[Event] = deque()
        self._calling = False
        self._awaited: Any = None  # held, as asyncio's loop only has weak references to its tasks
        self._behind = False
        self._stopped = False
        self._drained: list[Deferred[None]] = []
        self._retry: Any = None

    def start(self) -> None:
        """Subscribe; if that is not possible now, try again until `stop`."""
        self._retry = None
        if not self._stopped:
            self._hub.admit(self.account).addCallback(self._admitted).addErrback(self._not_admitted)

    def _admitted(self, channel: Channel) -> None:
        if not self._stopped:
            self._subscription = channel.subscribe(self)
            self._subscription.start(self._after)

    def _not_admitted(self, failure: Any) -> None:
        self._log.warn(
            "a callback of {account} waits: {error}",
            account=self.account,
            error=failure.getErrorMessage(),
        )
        self._try_again()

    def _try_again(self) -> None:
        if not self._stopped and self._retry is None:
            self._retry = self._clock.callLater(AGAIN, self.start)

    def resume(self) -> None:
        """Begin, or go on after a `stop`: with the first event that it was not called with."""
        self._stopped = False
        self.start()

    def stop(self) -> None:
        """Call it no more."""
        self._stopped = True
        self._behind = False
        waiting = next((event for event in self._queue if event.epoch), None)
        if waiting is not None:
            self._after = Cursor(waiting.epoch, waiting.seq - 1)
        self._queue.clear()
        self._leave()
        if self._retry is not None and self._retry.active():
            self._retry.cancel()

    def _leave(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.cancel()
        self._release()

    def _release(self) -> None:
        waiters, self._drained = self._drained, []
        for waiter in waiters:
            waiter.callback(None)

    # ISubscriber

    def opened(self, cursor: Cursor) -> None:
        self._after = cursor

    def caught_up(self) -> None:
        """A callback goes on as before."""

    def missed(self, cursor: Cursor, position: Position) -> None:
        self._log.warn(
            "callbacks of {account} missed what came after {cursor}",
            account=self.account,
            cursor=str(cursor),
        )
        self._after = position.cursor

    def deliver(self, batch: Delivery) -> None:
        if self._stopped:
            return
        self._queue.extend(batch.events)
        last = batch.events[-1]
        if last.epoch:
            self._after = last.cursor  # whatever happens, the queue is gone through
        if not self._calling:
            self._go_on()
        if len(self._queue) > WAITING and not self._behind:
            self._behind = True
            self._leave()

    def drained(self) -> Deferred[None]:
        if not self._queue and not self._calling:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._drained.append(waiter)
        return waiter

    def end(self, error: PlumberError | None) -> None:
        self._subscription = None
        self._try_again()

    # Calling

    def _go_on(self) -> None:
        """Call with what waits, until a call takes its time."""
        self._calling = True
        while self._queue and not self._stopped:
            calling = Deferred.fromCoroutine(self._called(self._queue.popleft()))
            if not calling.called:
                calling.addCallback(lambda _: self._go_on())
                return
        self._calling = False
        self._caught_up()

    async def _called(self, event: Event) -> None:
        try:
            outcome = self._call(event)
            if isawaitable(outcome):
                self._awaited = as_deferred(outcome)
                await self._awaited
        except (Exception, CancelledError):  # asyncio's is none of the former
            self._log.failure("a callback of {account} failed", account=self.account)

    def _caught_up(self) -> None:
        self._release()
        if self._behind:
            self._behind = False
            self.start()
