"""
Who is connected: heartbeats for all, spread over time, and the close_going_away at the end.

A heartbeat finds dead connections and keeps middle boxes awake.  Subscribers are dealt to as many
groups as the interval has seconds, so that ten thousand of them are not served at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from asyncplumber.transports.dosed_reads import DosedReadsOf

HEARTBEAT = 15.0  # seconds between heartbeats: proxies drop what is silent for 30 or 60
SLICE = 200  # subscribers served before the reactor has a turn
RECONNECT = 3.0  # seconds over which those who were sent away are to come back
FAREWELL = 5.0  # seconds that the connections have to end after the close_going_away


class Pingable(Protocol):
    """What the clients asks of a subscriber."""

    def beat(self) -> None:
        """Say something, and hang up on a client that has been silent for too long."""

    def close_going_away(self, reconnect_after: float) -> None:
        """Advise the client to come back after so many seconds, and close."""

    def abort(self) -> None:
        """Hang up at once."""


class ConnectedClients:
    """All connected subscribers of this instance."""

    _log = Logger()

    def __init__(
        self, clock: Any, random: Callable[[], float], interval: float = HEARTBEAT
    ) -> None:
        """
        `random` gives numbers between 0 and 1.  `interval` is in seconds; 0 means no heartbeats.
        """
        self._clock = clock
        self._random = random
        count = max(1, round(interval))
        self._groups: list[dict[Pingable, None]] = [{} for _ in range(count)]
        self.reads = DosedReadsOf()
        self._turn = 0
        self._empty: Deferred[None] | None = None
        self._beats = LoopingCall(self._beat)
        self._beats.clock = clock
        self._interval = interval / count

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def __iter__(self) -> Iterator[Pingable]:
        for group in self._groups:
            yield from list(group)

    def start(self) -> None:
        """Begin the heartbeats."""
        if self._interval:
            self._beats.start(self._interval, now=False)

    def enter(self, subscriber: Pingable) -> int:
        """@return: the number of the group, to be named when it leaves."""
        # The group that was served last: the first heartbeat is a whole interval away.
        self._groups[self._turn - 1][subscriber] = None
        return self._turn - 1

    def leave(self, subscriber: Pingable, group: int) -> None:
        """It is gone.  Harmless if it was not there."""
        self._groups[group].pop(subscriber, None)
        if self._empty is not None and not len(self):
            empty, self._empty = self._empty, None
            empty.callback(None)

    def _beat(self) -> None:
        group = self._groups[self._turn]
        self._turn = (self._turn + 1) % len(self._groups)
        Deferred.fromCoroutine(self._in_slices([group], lambda subscriber: subscriber.beat()))

    async def _in_slices(
        self, groups: list[dict[Pingable, None]], tell: Callable[[Pingable], None]
    ) -> None:
        """Tell all who are there now, but for those who have left before their turn comes."""
        present = [(subscriber, group) for group in groups for subscriber in group]
        for start in range(0, len(present), SLICE):
            if start:
                await deferLater(self._clock, 0, lambda: None)
            for subscriber, group in present[start : start + SLICE]:
                if subscriber in group:
                    self._guarded(subscriber, tell)

    def _guarded(self, subscriber: Pingable, tell: Callable[[Pingable], None]) -> None:
        try:
            tell(subscriber)
        except Exception:
            self._log.failure("a subscriber raised")
            subscriber.abort()

    async def dismiss(self) -> None:
        """
        Send everybody away, politely; return when all are gone, or after `FAREWELL` seconds, when
        the rest is hung up on.
        """
        if self._beats.running:
            self._beats.stop()
        if not len(self):
            return
        empty: Deferred[None] = Deferred()
        self._empty = empty
        await self._in_slices(
            self._groups,
            lambda subscriber: subscriber.close_going_away(round(self._random() * RECONNECT, 2)),
        )
        if not len(self):
            return
        late = self._clock.callLater(FAREWELL, self._hang_up)
        await empty
        if late.active():
            late.cancel()

    def _hang_up(self) -> None:
        for subscriber in self:
            subscriber.abort()
        if self._empty is not None and not self._empty.called:
            empty, self._empty = self._empty, None
            empty.callback(None)
