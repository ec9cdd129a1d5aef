"""
One account's stream at this instance: everything in order, once, without a hole, to each
subscriber.

`delivered` is where the live subscribers stand.  Events may arrive early, twice or not at all:
early ones wait, doubles are dropped, what is missing is fetched from the history.  A subscriber
that resumes is replayed up to `delivered` and then goes live, see `replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.core.delivery_counts import DeliveryCounts
from asyncplumber.core.replay import PAGE, Replay
from asyncplumber.core.resequencer import Resequencer
from asyncplumber.core.subscription import Subscription
from asyncplumber.errors import PlumberError
from asyncplumber.event import Cursor, Draft, Event, Position
from asyncplumber.interfaces import CursorLost, CursorMoved, ISubscriber
from asyncplumber.wire.delivery import Delivery

if TYPE_CHECKING:
    from asyncplumber.core.hub import Hub

SLICE = 256  # subscribers served before the reactor has a turn: about a millisecond


class Channel:
    """The stream of one account, and those who listen to it here."""

    _log = Logger()

    def __init__(self, account: str, hub: Hub) -> None:
        self.account = account
        self.delivered: Cursor | None = None  # None: not open yet
        self.live: dict[Subscription, None] = {}
        self._joining: dict[Subscription, None] = {}
        self._hub = hub
        self._order = Resequencer()
        self._given = DeliveryCounts()
        self._lost: tuple[Cursor, Position] | None = (
            None  # where we stood when the history did not reach back to it
        )
        self._draining = False
        self._catching_up: list[Deferred[None]] | None = None
        self._asked = False
        self._waiters: list[Deferred[Channel]] | None = []
        self._closing: Any = None

    # Opening and closing

    def when_open(self) -> Deferred[Channel]:
        """A Deferred of this channel that fires when it is open.  Fails with `Unavailable`."""
        waiter: Deferred[Channel] = Deferred(self._give_up)
        if self._waiters is None:
            waiter.callback(self)
        else:
            self._waiters.append(waiter)
            self._hub.waiting += 1
        return waiter

    def _give_up(self, waiter: Deferred[Channel]) -> None:
        if self._waiters is not None:
            self._waiters.remove(waiter)
            self._hub.waiting -= 1

    def open_at(self, cursor: Cursor) -> None:
        """
        The history's position is known: what arrived meanwhile falls into place, and those who wait
        come in.
        """
        self.delivered = cursor
        is_missing = self._order.begin(cursor)
        self.drain()
        for waiter in self._admitted():
            if not waiter.called:
                waiter.callback(self)
        self._leave_open()
        if is_missing:
            self.catch_up()

    def fail_open(self, error: PlumberError) -> None:
        """It cannot be opened: those who wait are told why."""
        for waiter in self._admitted():
            if not waiter.called:
                waiter.errback(error)

    def _admitted(self) -> list[Deferred[Channel]]:
        waiters, self._waiters = self._waiters or [], None
        self._hub.waiting -= len(waiters)
        return waiters

    def close(self) -> None:
        """Nobody is served any more."""
        self._stay()
        self._hub.subscribers -= len(self.live) + len(self._joining)
        self.live.clear()
        self._joining.clear()
        self._order.clear()
        self._lost = None

    def _stay(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _leave_open(self) -> None:
        """If nobody is left, close after the linger."""
        if (
            not self.live
            and not self._joining
            and self._closing is None
            and self._hub.is_open(self)
        ):
            self._closing = self._hub.clock.callLater(self._hub.linger, self._left)

    def _left(self) -> None:
        self._closing = None
        self._hub.close(self)

    # Subscribers come and go

    def subscribe(self, subscriber: ISubscriber) -> Subscription:
        """
        Add a subscriber.  The channel is open.  Nothing is delivered before `Subscription.start`.
        """
        self._stay()
        self._hub.subscribers += 1
        subscription = Subscription(self, subscriber)
        self._joining[subscription] = None
        return subscription

    def start(self, subscription: Subscription, after: Cursor | str | None) -> None:
        """See `Subscription.start`."""
        if not self.is_joining(subscription):
            return
        if after is None or after == self.delivered:
            self.go_live(subscription, False)
        else:
            Replay(self, self._hub, subscription, after).start()

    def remove(self, subscription: Subscription) -> None:
        """See `Subscription.cancel`."""
        if subscription in self.live:
            del self.live[subscription]
        elif subscription in self._joining:
            del self._joining[subscription]
        else:
            return
        self._hub.subscribers -= 1
        self._leave_open()

    def is_joining(self, subscription: Subscription) -> bool:
        """Whether it is neither live nor cancelled."""
        return subscription in self._joining

    def go_live(self, subscription: Subscription, opened: bool) -> None:
        """
        From here on it gets what the live ones get.  `opened` says whether it was told where it
        stands.
        """
        assert self.delivered is not None
        del self._joining[subscription]
        self.live[subscription] = None
        if not opened:
            self.tell(subscription, subscription.subscriber.opened, self.delivered)
        self.tell(subscription, subscription.subscriber.caught_up)

    def tell(self, subscription: Subscription, word: Callable[..., None], *words: Any) -> None:
        """Call one method of a live subscriber, guarded."""
        if subscription in self.live:
            try:
                word(*words)
            except Exception:
                self._broken(subscription)

    def dismiss(self, subscription: Subscription, error: PlumberError) -> None:
        """See `Subscription.end`."""
        self.remove(subscription)
        try:
            subscription.subscriber.end(error)
        except Exception:
            self._log.failure(
                "a subscriber of {account} raised when it was told to end", account=self.account
            )

    def _broken(self, subscription: Subscription) -> None:
        """
        What one subscriber raises ends that one, with a line in the log, and nobody else notices.
        """
        self._log.failure("a subscriber of {account} raised, and is dropped", account=self.account)
        self.dismiss(subscription, PlumberError("the subscriber broke"))

    # Events arrive

    def arrive(self, event: Event) -> None:
        """
        Put an event in its place.  Events may come in any order and any number of times; `drain`
        sends them on.
        """
        if self._order.arrive(event):
            self.catch_up()

    def is_behind(self, head: Cursor | None) -> bool:
        """
        Whether the history, whose head this is (None: it has no such account), has something that
        has not arrived here.
        """
        return head is not None and self._order.is_behind(head)

    def catch_up(self) -> Deferred[None]:
        """
        Fetch from the history what has not arrived.  @return: Deferred that fires when that is done
        or has failed.
        """
        done: Deferred[None] = Deferred()
        # What is under way may have asked the history before it had what is wanted now.
        self._asked = True
        if self._catching_up is not None:
            self._catching_up.append(done)
            return done
        self._catching_up = [done]
        Deferred.fromCoroutine(self._fetch()).addErrback(self._not_fetched).addCallback(
            self._caught_up
        )
        return done

    def _not_fetched(self, failure: Failure) -> None:
        # The next comparison of positions tries again.
        self._log.warn(
            "{account} cannot catch up yet: {error}",
            account=self.account,
            error=failure.getErrorMessage(),
        )

    def _caught_up(self, _: None) -> None:
        waiting, self._catching_up = self._catching_up or [], None
        for done in waiting:
            done.callback(None)

    async def _fetch(self) -> None:
        while self._hub.is_open(self) and (head := self._order.head) is not None:
            self._asked = False
            page: Sequence[Event] = ()
            try:
                page = await self._hub.history.read(self.account, head, None, PAGE)
            except CursorMoved as moved:
                self._move(moved.cursor)
                continue
            except CursorLost as lost:
                self._lost = head, lost.position
            for event in page:
                self._order.arrive(event)
            self.drain()
            while self._draining:
                await deferLater(self._hub.clock, 0, lambda: None)
            if not page and not self._asked:
                return

    def _move(self, cursor: Cursor) -> None:
        """Where we stand is called otherwise today.  Nothing was sent from there yet."""
        self.delivered = cursor
        self._order.begin(cursor)

    # Events leave

    def drain(self) -> None:
        """
        Send on what is in the queue.  One draining is under way at a time, so that order holds.
        """
        if not self._draining and self.delivered is not None:
            self._draining = True
            self._send_on()

    def _send_on(self) -> None:
        spent = 0
        while (batch := self._order.take()) is not None:
            listeners = list(self.live)
            self.delivered = self._order.head if not self._order.is_due else batch.events[-1].cursor
            self._hub.delivered += len(listeners) * len(batch.events)
            if len(listeners) > SLICE:
                self._given.add(batch.events, len(listeners))  # as good as given
                self._serve_in_slices(batch, listeners, 0)
                return
            self._serve(batch, listeners)
            live = len(self.live)
            # Who left meanwhile was too slow to take it.
            self._given.add(batch.events, live if live < len(listeners) else len(listeners))
            spent += len(listeners)
            if spent > SLICE and self._order.is_due:
                self._hub.clock.callLater(0, self._send_on)
                return
        self._draining = False
        if self._lost is not None:
            self._jump(*self._lost)

    def given(self, event: Event) -> int:
        """
        How many were given this event when it went out; while it waits for that, how many will be.
        """
        count = self._given.count(event)
        if count is not None:
            return count
        # Epochs sort by time, as cursors do.
        return len(self.live) if self.delivered is not None and event.cursor > self.delivered else 0

    def deliver_ephemeral(self, draft: Draft) -> int:
        """
        Deliver to those who are live here, without a place in the history.  @return: how many they
        are.
        """
        listeners = list(self.live)
        self._serve(Delivery([Event.from_draft(draft, "", 0)]), listeners)
        return len(listeners)

    def _serve(self, batch: Delivery, listeners: Sequence[Subscription]) -> None:
        """Serve those of the listeners that are still live."""
        live = self.live
        for subscription in listeners:
            if subscription in live:
                try:
                    subscription.subscriber.deliver(batch)
                except Exception:
                    self._broken(subscription)

    def _serve_in_slices(self, batch: Delivery, listeners: list[Subscription], start: int) -> None:
        """
        Serve some now and the rest in the reactor's next turns; what arrives meanwhile goes out
        together afterwards.
        """
        self._serve(batch, listeners[start : start + SLICE])
        start += SLICE
        if start < len(listeners):
            self._hub.clock.callLater(0, self._serve_in_slices, batch, listeners, start)
        else:
            self._send_on()

    def _jump(self, head: Cursor, position: Position) -> None:
        """
        The history does not reach back to `head`, where we stood: say so, and go on from its own
        head.
        """
        self._lost = None
        if self._order.head != head:
            self.catch_up()  # what came late led on from there: perhaps nothing is lost
            return
        stood = self.delivered
        self.delivered = position.cursor
        is_missing = self._order.jump(position)
        for subscription in list(self.live):
            self.tell(subscription, subscription.subscriber.missed, stood, position)
        self.drain()
        if is_missing:
            self.catch_up()
