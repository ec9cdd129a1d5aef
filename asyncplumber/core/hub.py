"""
Who waits for which account at this instance: order, replay and guarded fan-out.  No sockets, no
store of its own.

Each account with subscribers here has a `Channel`.  It opens by putting the hook into the registry
and *then* reading the position; it closes, and the hook is withdrawn, some seconds after the last
subscriber left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.concurrency import Semaphore
from asyncplumber.core.channel import Channel
from asyncplumber.errors import PlumberError, TooManyRequests, Unavailable, to_client_error
from asyncplumber.event import Cursor, Draft, Event
from asyncplumber.interfaces import IHistory

LINGER = 10.0  # seconds a channel outlives its last subscriber: a page that reloads finds it open
SUBSCRIBERS = 100_000  # at one instance; beyond that a new one is refused
REPLAYS = 64  # under way at once: a storm of returning clients must not starve the connected ones


def _unheld(account: str) -> Deferred[None]:
    return succeed(None)


class Hub:
    """Knows this instance's subscribers, by account."""

    _log = Logger()

    def __init__(
        self,
        history: IHistory,
        clock: Any,
        *,
        hold: Callable[[str], Deferred[None]] = _unheld,
        release: Callable[[str], Any] = _unheld,
        linger: float = LINGER,
        subscribers: int = SUBSCRIBERS,
    ) -> None:
        """
        `hold` puts this instance's hook for an account into the registry, `release` takes it out
        again.
        """
        self.history = history
        self.clock = clock
        self.linger = linger
        self.replays = Semaphore(REPLAYS)
        self._hold = hold
        self._release = release
        self._limit = subscribers
        self._channels: dict[str, Channel] = {}
        self._stopping: PlumberError | None = None
        self._asked = False  # for a comparison of positions
        self._checking = False
        self.subscribers = 0
        self.waiting = 0  # those whose channel is about to open
        self.delivered = 0

    def count(self, account: str) -> int:
        """How many subscribers of this account are live here."""
        channel = self._channels.get(account)
        return len(channel.live) if channel is not None else 0

    def serves(self, account: str) -> bool:
        """
        Whether this instance has a channel for the account, with or without subscribers at the
        moment.
        """
        return account in self._channels

    @property
    def accounts(self) -> list[str]:
        """The accounts that have a channel here."""
        return list(self._channels)

    def channels(self) -> list[tuple[str, int, Cursor | None]]:
        """Return account, number of subscribers and cursor of each channel (None: it opens)."""
        return [
            (account, len(channel.live), channel.delivered)
            for account, channel in self._channels.items()
        ]

    def admit(self, account: str) -> Deferred[Channel]:
        """
        Open the account's channel, or find it open; the caller then subscribes to it without delay.

        Returns:
            A Deferred, already fired where the channel is open.  It can be cancelled.  Fails with
            `Unavailable` while the store is away, and with `TooManyRequests` at the limit of
            subscribers.
        """
        if self._stopping is not None:
            return fail(self._stopping)
        if self.subscribers + self.waiting >= self._limit:
            return fail(
                TooManyRequests("this instance has no room for more subscribers", retry_after=5)
            )
        channel = self._channels.get(account)
        if channel is not None:
            return channel.when_open()
        channel = self._channels[account] = Channel(account, self)
        opened = channel.when_open()  # before the question: it may fail at once
        Deferred.fromCoroutine(self._open(channel)).addErrback(self._not_opened, channel)
        return opened

    async def _open(self, channel: Channel) -> None:
        await self._hold(channel.account)
        position = await self.history.ensure(channel.account)
        if self.is_open(channel):
            channel.open_at(position.cursor)

    def _not_opened(self, failure: Failure, channel: Channel) -> None:
        error = to_client_error(failure, self._log, "a channel cannot be opened")
        self.close(channel)
        channel.fail_open(error)

    def publish(self, events: Sequence[Event]) -> list[int]:
        """
        Deliver events that are in the history to the subscribers here.  Idempotent; any order,
        holes are filled.

        Returns for each event how many it was given to, now or before.
        """
        touched: dict[Channel, None] = {}
        channels = self._channels
        for event in events:
            channel = channels.get(event.account)
            if channel is not None:
                channel.arrive(event)
                touched[channel] = None
        if not touched:
            return [0] * len(events)
        for channel in touched:
            channel.drain()
        return [
            channel.given(event) if (channel := channels.get(event.account)) is not None else 0
            for event in events
        ]

    def deliver_ephemeral(self, drafts: Iterable[Draft]) -> int:
        """Deliver to the subscribers here only, in no history.  @return: how many there were."""
        listeners = 0
        for draft in drafts:
            channel = self._channels.get(draft.account)
            listeners = channel.deliver_ephemeral(draft) if channel is not None else 0
        return listeners

    def check_soon(self) -> None:
        """
        Compare positions now: somebody has reason to think that something was missed.

        Whoever asks while it is being done is served by one more comparison afterwards, however
        many they are.
        """
        self._asked = True
        if not self._checking:
            self._checking = True
            Deferred.fromCoroutine(self._check_what_is_asked()).addErrback(self._not_checked)

    async def _check_what_is_asked(self) -> None:
        while self._asked:
            self._asked = False
            await self.check()
        self._checking = False

    def _not_checked(self, failure: Failure) -> None:
        self._checking = False
        to_client_error(failure, self._log, "a check failed")

    async def check(self) -> int:
        """
        Compare where the channels stand with the history, and fetch what is missing.

        Heals whatever a lost relay, a pause or a partition left out.  Fails with `Unavailable`.
        Returns how many channels were behind.
        """
        open_channels = [
            channel for channel in self._channels.values() if channel.delivered is not None
        ]
        if not open_channels:
            return 0
        heads: dict[str, Cursor] = await self.history.heads(
            [channel.account for channel in open_channels]
        )
        behind = [
            channel for channel in open_channels if channel.is_behind(heads.get(channel.account))
        ]
        for channel in behind:
            channel.catch_up()
        return len(behind)

    def is_open(self, channel: Channel) -> bool:
        """Whether this is the account's channel, and not one that was closed."""
        return self._channels.get(channel.account) is channel

    def close(self, channel: Channel) -> None:
        """
        Nobody listens to it any more, or it could not be opened: take its hook out of the registry.
        """
        if self.is_open(channel):
            del self._channels[channel.account]
            channel.close()
            self._release(channel.account)

    def refuse(self) -> None:
        """Admit nobody any more; those who are here stay."""
        self._stopping = Unavailable("this instance is about to stop", retry_after=1)

    def resume(self) -> None:
        """Admit again, after a stop."""
        self._stopping = None

    def stop(self) -> None:
        """Close all channels; their subscribers have been told before."""
        self.refuse()
        for channel in list(self._channels.values()):
            self.close(channel)
            channel.fail_open(Unavailable("this instance is about to stop", retry_after=1))
