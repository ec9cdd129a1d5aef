"""
One subscriber's place in one account's stream: it joins, goes live, and is cancelled.

A subscription that resumes is replayed from its cursor to where the live subscriptions are, at
its client's own pace.  It goes live in one step, with nothing between the last page and that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVarTuple

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.concurrency import Semaphore
from asyncplumber.core.replay import PAGE_EVENTS, catch_up
from asyncplumber.errors import PlumberError, to_client_error
from asyncplumber.event import EARLIEST, Cursor, Event, Position
from asyncplumber.interfaces import IHistory, ISubscriber, ITaskSubscriber
from asyncplumber.wire.delivery import Delivery

Arguments = TypeVarTuple("Arguments")


class SubscribedChannel(Protocol):
    """
    What a subscription needs of its channel.

    Attributes:
        account: The account whose events are delivered.
        delivered: Where the live subscriptions are.
        joining: The subscriptions that are not live yet, and whether each has started.
        live: The live subscriptions.
    """

    account: str
    delivered: Cursor
    joining: dict[Subscription, bool]
    live: dict[Subscription, None]

    @property
    def history(self) -> IHistory:
        """Where the events are kept."""

    @property
    def replays(self) -> Semaphore:
        """Bounds how many subscriptions of this instance read the history at once."""

    def go_live(self, subscription: Subscription) -> None:
        """Deliver to it, from now on, what the live subscriptions get."""

    def remove(self, subscription: Subscription) -> None:
        """Deliver to it no more."""

    def catch_up(self) -> Deferred[None]:
        """Bring the live subscriptions to the head of the history."""


class Subscribed(Protocol):
    """What a subscriber knows of its subscription: a `Subscription`, or one with more in it."""

    @property
    def account(self) -> str:
        """The account whose events it gets."""

    def start(self, after: Cursor | str | None) -> None:
        """Begin to deliver; see `Subscription.start`."""

    def cancel(self) -> None:
        """Deliver nothing more; see `Subscription.cancel`."""


class Subscribable(Protocol):
    """What a client of a transport can subscribe to: a channel, or a channel with tasks."""

    def subscribe(self, subscriber: ITaskSubscriber) -> Subscribed:
        """Add a subscriber; see `Channel.subscribe`."""


class Subscription:
    """
    The link between a subscriber and a channel.

    Each `Channel.subscribe` makes a new one, also for a subscriber that was there before.  A
    connection that follows several accounts holds several subscriptions, each with an `ISubscriber`
    of its own.

    It is *joining*, then *live*, then gone; the channel's collections say which.  There is no way
    back: a subscriber that returns gets a new subscription.
    """

    __slots__ = ("channel", "subscriber")
    _log = Logger()

    def __init__(self, channel: SubscribedChannel, subscriber: ISubscriber) -> None:
        self.channel = channel
        self.subscriber = subscriber

    @property
    def account(self) -> str:
        """The account whose events it gets."""
        return self.channel.account

    def start(self, after: Cursor | str | None) -> None:
        """
        Begin to deliver.  Call this once; harmless if it was cancelled before.

        The subscriber is told where it begins by ``opened`` before anything else.  It may cancel
        at any time, also while this call runs.

        Args:
            after: None means live events only.  A `Cursor`, or ``EARLIEST``, means the events after
                it from the history, and then live events.
        """
        channel = self.channel
        if self in channel.live or channel.joining.get(self):
            raise RuntimeError("this subscription has started already")
        if self not in channel.joining:
            return  # it was cancelled already
        channel.joining[self] = True
        if after is None or after == channel.delivered:
            self.go_live(opened=False)
        else:
            _Replay(self, after).start()

    def go_live(self, *, opened: bool) -> None:
        """Join the live subscriptions.  ``opened``: whether the subscriber knows where it is."""
        channel = self.channel
        channel.go_live(self)
        if not opened:
            self.tell(self.subscriber.opened, channel.delivered)
        self.tell(self.subscriber.caught_up)

    def tell(self, method: Callable[[*Arguments], None], *arguments: *Arguments) -> None:
        """Call a method of the subscriber while it is live.  If it raises, `drop` it."""
        if self in self.channel.live:
            try:
                method(*arguments)
            except Exception:
                self.drop()

    def cancel(self) -> None:
        """Deliver nothing more.  Harmless if it was cancelled before, or has ended."""
        self.channel.remove(self)

    def end(self, error: PlumberError) -> None:
        """Cancel, and tell the subscriber why."""
        self.cancel()
        try:
            self.subscriber.end(error)
        except Exception:
            self._log.failure(
                "a subscriber of {account} raised when it was ended", account=self.account
            )

    def drop(self) -> None:
        """End a subscriber that raised, from within its ``except``.  The others do not notice."""
        self._log.failure("a subscriber of {account} raised, and is dropped", account=self.account)
        self.end(PlumberError("the subscriber broke"))


class _Replay:
    """The `Reader` that brings one subscription to where the live ones are."""

    _log = Logger()
    cursor: Cursor

    def __init__(self, subscription: Subscription, after: Cursor | str) -> None:
        self._subscription = subscription
        self._subscriber = subscription.subscriber
        self._channel = subscription.channel
        self._after = after
        self._opened = False

    def start(self) -> None:
        """Begin.  A failure ends the subscription."""
        Deferred.fromCoroutine(self._run()).addErrback(self._failed)

    async def _run(self) -> None:
        after = self._after
        self.cursor = after if isinstance(after, Cursor) else await self._earliest()
        await catch_up(self)
        if self._is_wanted:
            self._subscription.go_live(opened=self._opened)

    def _failed(self, failure: Failure) -> None:
        error = to_client_error(failure, self._log, "a replay failed")
        if self._is_wanted:
            self._subscription.end(error)

    @property
    def _is_wanted(self) -> bool:
        return self._subscription in self._channel.joining

    async def _earliest(self) -> Cursor:
        position = await self._channel.history.ensure(self._channel.account)
        return Cursor(position.epoch, position.floor)

    # Reader

    @property
    def is_behind(self) -> bool:
        return self._is_wanted and self.cursor != self._channel.delivered

    async def read(self, cursor: Cursor) -> Sequence[Event]:
        """
        Read the next events, none beyond what the live subscriptions have.

        The page is empty if the cursor is ahead of the live subscriptions.
        """
        channel = self._channel
        await channel.replays.acquire()
        try:
            if not self._is_wanted:
                return ()
            epoch, last = channel.delivered
            return await channel.history.read(
                channel.account,
                cursor,
                last if cursor.epoch == epoch else 0,
                PAGE_EVENTS,
                self._subscriber.page_size,
            )
        finally:
            # Not held while the client reads: slow clients must not keep others from resuming.
            channel.replays.release()

    def take(self, page: Sequence[Event]) -> Deferred[None]:
        """Deliver as much of the page as may be queued for the client; the rest is read again."""
        if self._is_wanted and not self._opened:
            self._opened = True
            self._subscriber.opened(self.cursor)
        if not self._is_wanted:
            return succeed(None)
        if not page:
            # The cursor is valid, but not where the live subscriptions are: another instance was
            # faster than this one.
            return self._channel.catch_up()
        batch = Delivery.page(page, self._subscriber.page_size)
        self._subscriber.replayed(sum([len(event.payload) for event in batch.events]))
        self._subscriber.deliver(batch)
        self.cursor = batch.events[-1].cursor
        return self._subscriber.drained()

    def moved(self, cursor: Cursor, now: Cursor) -> None:
        self.cursor = now

    async def lost(self, cursor: Cursor, position: Position) -> None:
        """Go live, and tell the subscriber of the gap."""
        channel = self._channel
        if self._after == EARLIEST and not self._opened:
            # The oldest event was deleted between the two calls.
            self.cursor = await self._earliest()
            return
        if channel.delivered.epoch != position.epoch:
            # The numbering began anew and this instance did not know.  The live subscriptions are
            # told first; so this one is told once, and not again when they are.
            await channel.catch_up()
        if self._is_wanted:
            epoch, head = channel.delivered
            floor = min(position.floor, head) if position.epoch == epoch else head
            self._subscription.go_live(opened=self._opened)
            self._subscription.tell(self._subscriber.missed, cursor, Position(epoch, head, floor))
