"""
One account's stream at this instance: each event in order, once, to each live subscription.

An event *arrives* and is put in its place, is *drained* from the queue, and is *delivered*.  What
is missing is read from the history.  `delivered` is where the live subscriptions are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from asyncplumber.concurrency import Semaphore, SingleFlight, Waiters
from asyncplumber.core.delivery_counts import DeliveryCounts
from asyncplumber.core.replay import PAGE_EVENTS, catch_up
from asyncplumber.core.resequencer import Resequencer
from asyncplumber.core.subscription import Subscription
from asyncplumber.event import Cursor, Draft, Event, Position
from asyncplumber.interfaces import IHistory, ISubscriber
from asyncplumber.wire.delivery import Delivery

DELIVERIES_PER_TURN = 256  # of one channel, then the reactor has a turn: about a millisecond


@dataclass(slots=True)
class Totals:
    """What the channels of one instance count together."""

    subscribers: int = 0  # now
    delivered: int = 0  # events times subscribers, since the start


@dataclass(frozen=True, slots=True)
class Shared:
    """
    What all channels of one instance share.

    Attributes:
        history: Where the events are kept.
        clock: The reactor's clock.
        totals: Counts over all channels.
        replays: Bounds how many subscriptions read the history at once.
        linger: Seconds that a channel outlives its last subscription.
        on_idle: Called when a channel had no subscription for ``linger`` seconds.
    """

    history: IHistory
    clock: IReactorTime
    totals: Totals
    replays: Semaphore
    linger: float
    on_idle: Callable[[Channel], None]


class Channel:
    """The stream of one account, and its subscriptions at this instance."""

    __slots__ = (
        "_counts",
        "_deliveries",
        "_drained",
        "_fetching",
        "_linger_timer",
        "_queue",
        "_shared",
        "account",
        "delivered",
        "is_closed",
        "joining",
        "live",
    )

    def __init__(self, account: str, cursor: Cursor, shared: Shared) -> None:
        """Open the channel at ``cursor``, the head of the account's history."""
        self.account = account
        self.delivered = cursor
        self.joining: dict[Subscription, bool] = {}  # with whether it has started
        self.live: dict[Subscription, None] = {}
        self.is_closed = False
        self._shared = shared
        self._queue = Resequencer(cursor)
        self._counts = DeliveryCounts()
        # These are None while they are not needed, as most channels are idle.
        self._deliveries: Iterator[None] | None = None  # what `_deliver` has under way
        self._drained: Waiters | None = None
        self._fetching: SingleFlight | None = None
        self._linger_timer: IDelayedCall | None = None
        self._linger()

    # Subscriptions

    def subscribe(self, subscriber: ISubscriber) -> Subscription:
        """Add a subscriber.  Nothing is delivered before `Subscription.start`."""
        if self.is_closed:
            raise RuntimeError("this channel is closed; ask the hub for an open one")
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None
        self._shared.totals.subscribers += 1
        subscription = Subscription(self, subscriber)
        self.joining[subscription] = False
        return subscription

    def go_live(self, subscription: Subscription) -> None:
        """Deliver to a joining subscription, from now on, what the live ones get."""
        del self.joining[subscription]
        if not self.joining:
            self.joining.clear()  # an idle channel keeps no memory for what was in it
        self.live[subscription] = None

    def remove(self, subscription: Subscription) -> None:
        """Deliver to it no more.  Harmless if it is not there."""
        if subscription in self.live:
            del self.live[subscription]
        elif subscription in self.joining:
            del self.joining[subscription]
        else:
            return
        self._shared.totals.subscribers -= 1
        if not self.live and not self.joining:
            self._linger()

    def _linger(self) -> None:
        self._linger_timer = self._shared.clock.callLater(self._shared.linger, self._idle)

    def _idle(self) -> None:
        self._linger_timer = None
        self._shared.on_idle(self)

    def close(self) -> None:
        """Serve nobody any more.  The subscribers are not told."""
        self.is_closed = True
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None
        self._shared.totals.subscribers -= len(self.live) + len(self.joining)
        self.live.clear()
        self.joining.clear()
        self._queue.clear()

    # Events arrive

    @property
    def head(self) -> Cursor:
        """The last event that arrived in its place; `delivered` follows it."""
        return self._queue.head

    def arrive(self, event: Event) -> None:
        """
        Put an event in its place, and fetch what is missing before it.

        Events may arrive in any order and any number of times.  `drain` delivers them.
        """
        if self._queue.arrive(event):
            self.catch_up_soon()

    def drain(self) -> None:
        """
        Deliver what is in the queue.

        One delivery is under way at a time, so that order holds: what arrives meanwhile is
        delivered after it, together.
        """
        if self._deliveries is None and self._queue.due:
            self._deliveries = self._deliver()
            self._continue()

    def _continue(self) -> None:
        if self._deliveries is not None:
            for _ in self._deliveries:
                self._shared.clock.callLater(0, self._continue)
                return
            self._deliveries = None
        if self._drained is not None:
            drained, self._drained = self._drained, None
            drained.release()

    def _deliver(self) -> Iterator[None]:
        """Deliver the queue.  Yields where the reactor is to have a turn."""
        queue, totals = self._queue, self._shared.totals
        spent = 0  # deliveries in this turn
        while queue.due:
            batch = queue.take()
            # A subscription that goes live from here on begins after this batch.
            self.delivered = batch.events[-1].cursor if queue.due else queue.head
            subscriptions = list(self.live)
            count = len(subscriptions)
            totals.delivered += count * len(batch.events)
            if spent + count <= DELIVERIES_PER_TURN:
                spent += count
                self._serve(batch, subscriptions)
                # A subscriber that left during its delivery was too slow to take it.
                self._counts.add(batch.events, min(count, len(self.live)))
                continue
            self._counts.add(batch.events, count)  # receipts do not wait for the last slice
            for start in range(0, count, DELIVERIES_PER_TURN):
                if spent:
                    yield
                part = subscriptions[start : start + DELIVERIES_PER_TURN]
                self._serve(batch, part)
                spent = len(part)

    def _serve(self, batch: Delivery, subscriptions: Sequence[Subscription]) -> None:
        """Deliver to those of the subscriptions that are still live."""
        live = self.live
        for subscription in subscriptions:
            if subscription in live:
                try:
                    subscription.subscriber.deliver(batch)
                except Exception:
                    subscription.drop()

    def drained(self) -> Deferred[None]:
        """Deliver what is in the queue.  The Deferred fires when that is done."""
        self.drain()
        if self._deliveries is None:
            return succeed(None)
        if self._drained is None:
            self._drained = Waiters()
        return self._drained.wait()

    def deliver_ephemeral(self, draft: Draft) -> int:
        """Deliver to the live subscriptions, past the history.  Returns how many they are."""
        subscriptions = list(self.live)
        self._serve(Delivery([Event.from_draft(draft, "", 0)]), subscriptions)
        return len(subscriptions)

    def count(self, event: Event) -> int:
        """Return how many subscribers were given this event, or will be if it is queued."""
        count = self._counts.count(event)
        if count is None:
            # Cursors sort by time, as epochs do.
            return len(self.live) if event.cursor > self.delivered else 0
        return count

    # Events that did not arrive

    def is_behind(self, head: Cursor) -> bool:
        """Whether the history, whose head is given, may have events that did not arrive here."""
        return self._queue.is_behind(head)

    def catch_up(self) -> Deferred[None]:
        """
        Read from the history, and deliver, what did not arrive.

        Returns:
            A Deferred that fires when the live subscriptions have what was in the history at the
            time of this call.  Fails with `Unavailable`.
        """
        return self._single_flight().run()

    def catch_up_soon(self) -> None:
        """Do the same without waiting.  A failure is logged; the next `Hub.check` tries again."""
        self._single_flight().request()

    def _single_flight(self) -> SingleFlight:
        if self._fetching is None:
            self._fetching = SingleFlight(
                lambda: catch_up(_HeadReader(self)), f"catching up with {self.account}"
            )
        return self._fetching

    def restart(self, cursor: Cursor) -> None:
        """Continue after ``cursor``.  Nothing is queued, and no delivery is under way."""
        self.delivered = cursor
        self._queue.restart(cursor)

    @property
    def history(self) -> IHistory:
        """Where the events are kept."""
        return self._shared.history

    @property
    def replays(self) -> Semaphore:
        """Bounds how many subscriptions of this instance read the history at once."""
        return self._shared.replays


class _HeadReader:
    """The `Reader` that brings a channel to the head of the history."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._at_end = False

    @property
    def cursor(self) -> Cursor:
        return self._channel.head

    @property
    def is_behind(self) -> bool:
        return not self._at_end and not self._channel.is_closed

    async def read(self, cursor: Cursor) -> Sequence[Event]:
        channel = self._channel
        return await channel.history.read(channel.account, cursor, None, PAGE_EVENTS)

    def take(self, page: Sequence[Event]) -> Deferred[None]:
        self._at_end = not page
        for event in page:
            self._channel.arrive(event)
        return self._channel.drained()

    def moved(self, cursor: Cursor, now: Cursor) -> None:
        if self._channel.head == cursor:  # nothing has arrived meanwhile
            self._channel.restart(now)
            self._channel.drain()

    async def lost(self, cursor: Cursor, position: Position) -> None:
        """Tell the live subscriptions of the gap, and continue from the head of the history."""
        channel = self._channel
        await channel.drained()
        if channel.is_closed or channel.head != cursor:
            return  # late events led on from there: perhaps nothing is lost
        channel.restart(position.cursor)
        for subscription in list(channel.live):
            subscription.tell(subscription.subscriber.missed, cursor, position)
        channel.drain()
