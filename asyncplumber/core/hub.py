"""
The channels of this instance, by account.

A channel opens when the first subscriber of its account comes: the hook is put into the registry,
and *then* the position is read from the history, so that no event falls between the two.  It
closes, and the hook is taken out, some seconds after the last subscriber left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.concurrency import Semaphore, SingleFlight, Waiters
from asyncplumber.core.channel import Channel, Shared, Totals
from asyncplumber.errors import (
    InsufficientScope,
    PlumberError,
    TooManyRequests,
    Unavailable,
    to_client_error,
)
from asyncplumber.event import Cursor, Draft, Event
from asyncplumber.grant import OPEN, Action, Grant
from asyncplumber.interfaces import IHistory

LINGER = 10.0  # seconds a channel outlives its last subscriber: a page that reloads finds it open
MAX_SUBSCRIBERS = 100_000  # at one instance; beyond that a new one is refused
# Subscriptions that read the history at once: a storm of returning clients must not starve the
# connected ones.
MAX_REPLAYS = 64


class Hooks(Protocol):
    """Where the hub registers this instance for its accounts: `Leases`, or nowhere."""

    def register(self, account: str) -> Deferred[None]:
        """Fires when the hook is in the registry; fails with `Unavailable`."""

    def unregister(self, account: str) -> None:
        """Take the hook out, soon."""


class NoHooks:
    """For a store that no other process uses: nobody would look for the hooks."""

    def register(self, account: str) -> Deferred[None]:
        return succeed(None)

    def unregister(self, account: str) -> None:
        """Do nothing."""


class _Opening:
    """A channel that is about to open."""

    __slots__ = ("has_missed_events", "is_cancelled", "waiters")

    def __init__(self) -> None:
        self.waiters = Waiters()
        self.has_missed_events = False  # some arrived meanwhile, and nothing keeps them
        self.is_cancelled = False


class Hub:
    """Delivers events to the subscribers of this instance."""

    _log = Logger()

    def __init__(
        self,
        history: IHistory,
        clock: IReactorTime,
        *,
        hooks: Hooks | None = None,
        linger: float = LINGER,
        subscriber_limit: int = MAX_SUBSCRIBERS,
    ) -> None:
        """
        Args:
            history: Where the events are kept.
            clock: The reactor's clock.
            hooks: Puts this instance's hooks into the registry; None: there are no other instances.
            linger: Seconds that a channel outlives its last subscriber.
            subscriber_limit: The most subscribers of this instance.
        """
        self.history = history
        self.clock = clock
        self.replays = Semaphore(MAX_REPLAYS)
        self.waiting = 0  # admissions whose channel is about to open
        self._totals = Totals()
        self._shared = Shared(history, clock, self._totals, self.replays, linger, self._close)
        self._hooks: Hooks = hooks or NoHooks()
        self._limit = subscriber_limit
        self._opening: dict[str, _Opening] = {}
        self._channels: dict[str, Channel] = {}  # those that are open
        self._checks = SingleFlight(self.check, "comparing positions with the history")
        self._refusal: PlumberError | None = None  # None: subscribers are admitted
        #: Called with each account that `serves` returns no more.
        self.on_close: Callable[[str], object] = lambda account: None

    @property
    def subscribers(self) -> int:
        """How many subscribers this instance has."""
        return self._totals.subscribers

    @property
    def delivered(self) -> int:
        """How many events were handed to subscribers; an event counts once for each of them."""
        return self._totals.delivered

    def count(self, account: str) -> int:
        """Return how many subscribers of this account are live here."""
        channel = self._channels.get(account)
        return len(channel.live) if channel is not None else 0

    def serves(self, account: str) -> bool:
        """Whether the account has a channel here, with or without subscribers at the moment."""
        return account in self._channels or account in self._opening

    @property
    def accounts(self) -> list[str]:
        """The accounts that have a channel here, open or about to open."""
        return [*self._channels, *self._opening]

    def place(self, account: str) -> tuple[int, Cursor | None]:
        """Return number of subscribers and cursor of one channel (None: it opens, or is none)."""
        channel = self._channels.get(account)
        return (len(channel.live), channel.delivered) if channel is not None else (0, None)

    def channels(self) -> list[tuple[str, int, Cursor | None]]:
        """Return account, number of subscribers and cursor of each channel (None: it opens)."""
        found: list[tuple[str, int, Cursor | None]] = [
            (account, len(channel.live), channel.delivered)
            for account, channel in self._channels.items()
        ]
        return found + [(account, 0, None) for account in self._opening]

    # Subscribers come

    def admit(self, account: str, grant: Grant = OPEN) -> Deferred[Channel]:
        """
        Open the account's channel, unless it is open.  The caller then subscribes at once.

        Args:
            account: The account whose events are wanted.
            grant: What the subscriber may do; this program's own need no other than the default.

        Returns:
            A Deferred that has fired already if the channel is open.  It can be cancelled.  Fails
            with `Unavailable` while the store is away, and with `TooManyRequests` at the limit of
            subscribers, and with `InsufficientScope` if the grant does not allow it.
        """
        if not grant.allows(Action.SUBSCRIBE, account):
            return fail(InsufficientScope())
        if self._refusal is not None:
            return fail(self._refusal)
        if self._totals.subscribers + self.waiting >= self._limit:
            return fail(
                TooManyRequests("this instance has no room for more subscribers", retry_after=5)
            )
        channel = self._channels.get(account)
        if channel is not None:
            return succeed(channel)
        opening = self._opening.get(account)
        if opening is not None:
            return self._wait(account, opening)
        opening = self._opening[account] = _Opening()
        admitted = self._wait(account, opening)
        Deferred.fromCoroutine(self._open(account, opening))
        return admitted

    def _wait(self, account: str, opening: _Opening) -> Deferred[Channel]:
        self.waiting += 1

        def opened(result: Failure | None) -> Failure | Channel:
            self.waiting -= 1
            if result is not None:
                return result
            channel = self._channels.get(account)
            # Another waiter may have stopped the hub a moment ago.
            return channel if channel is not None else Failure(Unavailable())

        return opening.waiters.wait().addBoth(opened)

    async def _open(self, account: str, opening: _Opening) -> None:
        try:
            await self._hooks.register(account)
            position = await self.history.ensure(account)
        except Exception:
            if not opening.is_cancelled:
                error = to_client_error(Failure(), self._log, "a channel cannot be opened")
                self._cancel_opening(account, error)
            return
        if opening.is_cancelled:
            return
        del self._opening[account]
        channel = self._channels[account] = Channel(account, position.cursor, self._shared)
        opening.waiters.release()
        if opening.has_missed_events:
            channel.catch_up_soon()

    def _cancel_opening(self, account: str, error: PlumberError) -> None:
        opening = self._opening.pop(account)
        opening.is_cancelled = True
        self._hooks.unregister(account)
        self.on_close(account)
        opening.waiters.fail(error)

    def _close(self, channel: Channel) -> None:
        del self._channels[channel.account]
        channel.close()
        self._hooks.unregister(channel.account)
        self.on_close(channel.account)

    # Events come

    def publish(self, events: Sequence[Event]) -> list[int]:
        """
        Deliver events that are in the history to the subscribers here.

        Events may come in any order and more than once.  What is missing before them is fetched.

        Returns:
            For each event, how many subscribers were given it, now or before.
        """
        arrived = []
        for event in events:
            channel = self._channels.get(event.account)
            if channel is not None:
                channel.arrive(event)
            elif (opening := self._opening.get(event.account)) is not None:
                opening.has_missed_events = True
            arrived.append((channel, event))
        for channel, _ in arrived:
            if channel is not None:
                channel.drain()  # the first time all of the channel's events, together
        return [channel.count(event) if channel is not None else 0 for channel, event in arrived]

    def deliver_ephemeral(self, drafts: Iterable[Draft]) -> int:
        """
        Deliver to the subscribers here only, past the history.

        Returns:
            How many subscribers the last draft was given to.
        """
        count = 0
        for draft in drafts:
            channel = self._channels.get(draft.account)
            count = channel.deliver_ephemeral(draft) if channel is not None else 0
        return count

    # Events that did not come

    def check_soon(self) -> None:
        """
        Compare positions now: something may have been missed.

        Requests that arrive during a comparison are coalesced into one more comparison.
        """
        self._checks.request()

    async def check(self) -> int:
        """
        Compare the positions of the channels with the history, and fetch what is missing.

        This heals what a lost relay, a pause or a partition left out.

        Returns:
            How many channels were behind.

        Raises:
            Unavailable: The store is away.
        """
        channels = list(self._channels.values())
        if not channels:
            return 0
        heads = await self.history.heads([channel.account for channel in channels])
        behind = [
            channel
            for channel in channels
            if channel.account in heads and channel.is_behind(heads[channel.account])
        ]
        for channel in behind:
            channel.catch_up_soon()
        return len(behind)

    # Stopping

    def refuse(self) -> None:
        """Admit no more subscribers.  Those who are here stay."""
        self._refusal = Unavailable("this instance is about to stop", retry_after=1)

    def resume(self) -> None:
        """Admit subscribers again, after a stop."""
        self._refusal = None

    def stop(self) -> None:
        """Close all channels.  Their subscribers have been told before."""
        self.refuse()
        for channel in list(self._channels.values()):
            self._close(channel)
        for account in list(self._opening):
            self._cancel_opening(
                account, Unavailable("this instance is about to stop", retry_after=1)
            )
