"""
One account's stream at this instance: everything in order, once, without a hole, to each subscriber.

`delivered` is where the live subscribers stand.  Events may arrive early, twice or not at all: early ones wait, doubles
are dropped, what is missing is fetched from the history.  A subscriber that resumes is replayed up to `delivered`
and then goes live, in one step with nothing between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.errors import CursorLost, PlumberError, blame
from asyncplumber.event import EARLIEST, Cursor, Draft, Event, Position, placed
from asyncplumber.interfaces import ISubscriber
from asyncplumber.order import Order
from asyncplumber.wire import Batch

if TYPE_CHECKING:
    from asyncplumber.hub import Hub

SLICE = 256  # subscribers served before the reactor has a turn: about a millisecond
PAGE = 256  # events in one page of a replay


class Channel:
    """The stream of one account, and those who listen to it here."""

    _log = Logger()

    def __init__(self, account: str, hub: Hub) -> None:
        self.account = account
        self.delivered: Cursor | None = None  # None: not open yet
        self.live: dict[ISubscriber, None] = {}
        self._joining: dict[ISubscriber, None] = {}
        self._hub = hub
        self._order = Order()
        self._lost: Position | None = None
        self._draining = False
        self._catching_up: list[Deferred[None]] | None = None
        self._waiters: list[Deferred[Channel]] | None = []
        self._closing: Any = None

    # Opening and closing

    def when_open(self) -> Deferred[Channel]:
        """A Deferred of this channel that fires when it is open.  Fails with `Unavailable`."""
        waiter: Deferred[Channel] = Deferred()
        if self._waiters is None:
            waiter.callback(self)
        else:
            self._waiters.append(waiter)
        return waiter

    def open_at(self, cursor: Cursor) -> None:
        """The history's position is known: what arrived meanwhile falls into place, and those who wait come in."""
        self.delivered = cursor
        self._order.begin(cursor)
        self.drain()
        waiters, self._waiters = self._waiters or [], None
        for waiter in waiters:
            waiter.callback(self)
        self._leave_open()

    def fail_open(self, error: PlumberError) -> None:
        """It cannot be opened: those who wait are told why."""
        waiters, self._waiters = self._waiters or [], None
        for waiter in waiters:
            waiter.errback(error)

    def close(self) -> None:
        """Nobody listens any more."""
        self._stay()
        self._order.clear()

    def _stay(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _leave_open(self) -> None:
        """If nobody is left, close after the linger."""
        if not self.live and not self._joining and self._closing is None:
            self._closing = self._hub.clock.callLater(self._hub.linger, self._left)

    def _left(self) -> None:
        self._closing = None
        self._hub.close(self)

    # Subscribers come and go

    def subscribe(self, subscriber: ISubscriber, after: Cursor | str | None) -> None:
        """
        Serve this subscriber from now on: live events, or after a `Cursor` (or `EARLIEST`) what it missed and then live.

        The channel is open.  The subscriber is told where it stands by `opened` before anything else, and leaves by
        `unsubscribe`, which it may do at any time.
        """
        self._stay()
        self._joining[subscriber] = None
        self._hub.subscribers += 1
        if after is None or after == self.delivered:
            self._go_live(subscriber, False)
        else:
            replay = Deferred.fromCoroutine(self._replay(subscriber, after))
            replay.addErrback(self._replay_failed, subscriber)

    def unsubscribe(self, subscriber: ISubscriber) -> None:
        """Serve it no more.  Harmless if it is not served."""
        for group in (self.live, self._joining):
            if subscriber in group:
                del group[subscriber]
                self._hub.subscribers -= 1
                if self._hub.is_open(self):
                    self._leave_open()
                return

    def _go_live(self, subscriber: ISubscriber, opened: bool) -> None:
        del self._joining[subscriber]
        self.live[subscriber] = None
        if not opened:
            assert self.delivered is not None
            self._guarded(subscriber, subscriber.opened, self.delivered)

    def _guarded(self, subscriber: ISubscriber, tell: Callable[..., None], *words: Any) -> None:
        try:
            tell(*words)
        except Exception:
            self._broken(subscriber)

    def _broken(self, subscriber: ISubscriber) -> None:
        """What one subscriber raises ends that one, with a line in the log, and nobody else notices."""
        self._log.failure("a subscriber of {account} raised, and is dropped", account=self.account)
        self.unsubscribe(subscriber)
        try:
            subscriber.end(PlumberError("the subscriber broke"))
        except Exception:
            self._log.failure("it raised again when it was told to end")

    # Replay

    def _replay_failed(self, failure: Failure, subscriber: ISubscriber) -> None:
        error = blame(failure, self._log, "a replay failed")
        self.unsubscribe(subscriber)
        self._guarded(subscriber, subscriber.end, error)

    async def _replay(self, subscriber: ISubscriber, after: Cursor | str) -> None:
        """Hand over pages until the subscriber stands where the live ones stand, or is gone."""
        await self._hub.replays.acquire()
        try:
            stand = after if isinstance(after, Cursor) else await self._earliest()
            opened = False
            while subscriber in self._joining and stand != self.delivered:
                try:
                    page = await self._page(stand)
                except CursorLost as lost:
                    if after == EARLIEST and not opened:
                        stand = await self._earliest()  # forgotten between the two questions
                        continue
                    self._missed(subscriber, stand, lost.position, opened)
                    return
                if subscriber not in self._joining:
                    return
                if not opened:
                    subscriber.opened(stand)
                    opened = True
                if page:
                    subscriber.deliver(Batch(page))
                    stand = page[-1].cursor
                    await subscriber.drained()
            if subscriber in self._joining:
                self._go_live(subscriber, opened)
        finally:
            self._hub.replays.release()

    def _missed(self, subscriber: ISubscriber, stand: Cursor, position: Position, opened: bool) -> None:
        if subscriber in self._joining:
            assert self.delivered is not None
            epoch, seq = self.delivered
            self._go_live(subscriber, opened)
            self._guarded(subscriber, subscriber.missed, stand, Position(epoch, seq, min(position.floor, seq)))

    async def _earliest(self) -> Cursor:
        position = await self._hub.history.position(self.account)
        return Cursor(position.epoch, position.floor)

    async def _page(self, stand: Cursor) -> Sequence[Event]:
        """The next events after `stand`, none beyond what the live ones have.  Fails with `CursorLost`."""
        history, delivered = self._hub.history, self.delivered
        assert delivered is not None
        if stand.epoch == delivered.epoch and stand.seq <= delivered.seq:
            return await history.read(self.account, stand, delivered.seq, PAGE)
        # It comes from an instance that was faster than this one, or from a dream: the history knows.
        await history.read(self.account, stand, None, 1)
        await self.catch_up()
        await self._turn()
        return ()

    def _turn(self) -> Deferred[None]:
        return deferLater(self._hub.clock, 0, lambda: None)

    # Events arrive

    def arrive(self, event: Event) -> None:
        """Put an event in its place.  Events may come in any order and any number of times; `drain` sends them on."""
        if self._order.arrive(event):
            self.catch_up()

    def is_behind(self, head: Cursor | None) -> bool:
        """Whether the history, whose head this is (None: it has no such account), has something that has not arrived here."""
        return head is not None and self._order.is_behind(head)

    def catch_up(self) -> Deferred[None]:
        """Fetch from the history what has not arrived.  @return: Deferred that fires when that is done or has failed."""
        done: Deferred[None] = Deferred()
        if self._catching_up is not None:
            self._catching_up.append(done)
            return done
        self._catching_up = [done]
        Deferred.fromCoroutine(self._fetch()).addErrback(self._not_fetched).addCallback(self._caught_up)
        return done

    def _not_fetched(self, failure: Failure) -> None:
        # The next comparison of positions tries again.
        self._log.warn("{account} cannot catch up yet: {error}", account=self.account, error=failure.getErrorMessage())

    def _caught_up(self, _: None) -> None:
        waiting, self._catching_up = self._catching_up or [], None
        for done in waiting:
            done.callback(None)

    async def _fetch(self) -> None:
        while self._hub.is_open(self) and (head := self._order.head) is not None:
            try:
                page = await self._hub.history.read(self.account, head, None, PAGE)
            except CursorLost as lost:
                self._lost = lost.position
                self.drain()
                return
            if not page:
                return
            for event in page:
                self._order.arrive(event)
            self.drain()
            while self._draining:
                await self._turn()

    # Events leave

    def drain(self) -> None:
        """Send on what is in the queue.  One draining is under way at a time, so that order holds."""
        if not self._draining and self.delivered is not None:
            self._draining = True
            self._send_on()

    def _send_on(self) -> None:
        while (batch := self._order.take()) is not None:
            listeners = list(self.live)
            self.delivered = batch.events[-1].cursor
            self._hub.delivered += len(listeners) * len(batch.events)
            if len(listeners) > SLICE:
                self._serve_in_slices(batch, listeners, 0)
                return
            self._serve(batch, listeners)
        self._draining = False
        if self._lost is not None:
            self._jump()

    def whisper(self, draft: Draft) -> int:
        """Deliver to those who are live here, without a place in the history.  @return: how many they are."""
        listeners = list(self.live)
        self._serve(Batch([placed(draft, "", 0)]), listeners)
        return len(listeners)

    def _serve(self, batch: Batch, listeners: Sequence[ISubscriber]) -> None:
        for subscriber in listeners:
            try:
                subscriber.deliver(batch)
            except Exception:
                self._broken(subscriber)

    def _serve_in_slices(self, batch: Batch, listeners: list[ISubscriber], start: int) -> None:
        """Serve some now and the rest in the reactor's next turns; what arrives meanwhile goes out together afterwards."""
        live = self.live
        self._serve(batch, [subscriber for subscriber in listeners[start : start + SLICE] if subscriber in live])
        start += SLICE
        if start < len(listeners):
            self._hub.clock.callLater(0, self._serve_in_slices, batch, listeners, start)
        else:
            self._send_on()

    def _jump(self) -> None:
        """The history does not reach back to where we stand: say so, and go on from its head."""
        position, self._lost = self._lost, None
        stood = self.delivered
        assert position is not None
        assert stood is not None
        self.delivered = position.cursor
        self._order.jump(position)
        for subscriber in list(self.live):
            self._guarded(subscriber, subscriber.missed, stood, position)
        self.drain()
