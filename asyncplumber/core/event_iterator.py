"""
``async for event in plumber.events("42")``: a subscriber that an application reads from.

One event at a time is handed over.  While the application works on it, further events are queued,
and beyond a bound they are left to the history: see ``asyncplumber.core.callbacks``.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from types import TracebackType
from typing import Self, cast

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime

from asyncplumber.core.callbacks import CallbackSubscriber, Gap
from asyncplumber.core.hub import Hub
from asyncplumber.event import Cursor, Event


class EventsMissed(Exception):
    """
    Events after the last one cannot be replayed: they are beyond the retention.

    Attributes:
        cursor: The last position before the gap.
        oldest: Begin after this to get all that is kept.
        head: Begin after this to get only what is new.
    """

    def __init__(self, gap: Gap) -> None:
        super().__init__(f"what came after {gap.cursor} is not in the history any more")
        self.cursor = gap.cursor
        self.oldest = Cursor(gap.position.epoch, gap.position.floor)
        self.head = gap.position.cursor


class Feed:
    """
    The subscriber behind an ``EventIterator``.

    The hub holds it, and it does not hold the iterator.  So the iterator can be collected as soon
    as the application leaves its loop, and closes the feed.
    """

    def __init__(
        self,
        hub: Hub,
        account: str,
        after: Cursor | str | None,
        clock: IReactorTime,
        on_end: Callable[[Feed], object],
    ) -> None:
        """``on_end`` is called once, when the feed gives no more events."""
        self._subscriber = CallbackSubscriber(
            hub, account, self._offer, after, clock, on_gap=self._on_gap
        )
        self._clock = clock
        self._thread = get_ident()
        self._on_end: Callable[[Feed], object] | None = on_end
        self._offered: tuple[Event, Deferred[None]] | None = None  # an event that nobody took yet
        self._reader: Deferred[Event] | None = None  # waits for an event
        self._end: Exception | None = None  # what a reader gets once there are no more events

    def start(self) -> None:
        """Subscribe."""
        self._subscriber.start()

    def take(self) -> Deferred[Event]:
        """
        Return a Deferred of the next event.

        It can be cancelled, and then takes no event.  Fails with what ``end`` was told, and with
        RuntimeError if another reader waits.
        """
        if self._reader is not None:
            return fail(RuntimeError("the next event is being waited for already"))
        if self._offered is not None:
            (event, taken), self._offered = self._offered, None
            taken.callback(None)
            return succeed(event)
        if self._end is not None:
            return fail(self._end)
        self._reader = Deferred(self._forget_reader)
        return self._reader

    def end(self, error: Exception) -> None:
        """Unsubscribe; all readers from now on get the error.  Harmless after the end."""
        if self._end is not None:
            return
        self._end, self._offered = error, None
        self._subscriber.stop()
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self)
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.errback(error)

    def abandon(self) -> None:
        """End, in the thread of the reactor: a cyclic garbage collection may run in any thread."""
        if get_ident() == self._thread:
            self.end(StopAsyncIteration())
        else:
            cast(IReactorFromThreads, self._clock).callFromThread(self.end, StopAsyncIteration())

    def _forget_reader(self, _: Deferred[Event]) -> None:
        self._reader = None

    def _offer(self, event: Event) -> Deferred[None] | None:
        """Hand over an event.  The Deferred fires when the next one can come."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.callback(event)
            return None
        taken: Deferred[None] = Deferred()
        self._offered = event, taken
        return taken

    def _on_gap(self, gap: Gap) -> None:
        self.end(EventsMissed(gap))


class EventIterator:
    """
    The events of one account, one after the other.

    Read it in a coroutine that Twisted runs, as ``Deferred.fromCoroutine`` does, or in a callback.

    It unsubscribes when the loop is left, by ``break`` or by an exception, as soon as the iterator
    is not referenced any more.  ``async with`` or ``aclose`` do it at a certain moment.

    Raises in the loop:
        EventsMissed: Events cannot be replayed any more.  Begin anew at one of its positions.
        Unavailable: The plumber stops.  Begin anew after the ``cursor`` of the last event.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await self._feed.take()

    async def aclose(self) -> None:
        """Unsubscribe.  The iterator has ended then.  Harmless if it is closed."""
        self._feed.end(StopAsyncIteration())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._feed.abandon()
