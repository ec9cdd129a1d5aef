"""
Ends streams before their grants end.

Tokens that were issued together would end together, and all their clients would come back in one
second.  So each stream ends at a time of its own in the last fifth of what its grant has left.
There is one timer for all streams, and one set of streams for each of its ticks.
"""

from __future__ import annotations

from collections.abc import Callable
from math import floor
from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from asyncplumber.concurrency import PeriodicTask
from asyncplumber.errors import GrantExpired, PlumberError
from asyncplumber.grant import Grant

TICK = 0.25  # seconds between looks at the deadlines; a stream ends up to two ticks earlier
SPREAD = 0.2  # of what a grant has left: the part in which its stream may end
MAX_SPREAD = 300.0  # seconds of that part, at most


class Expiring(Protocol):
    """A stream."""

    grant: Grant
    expires: int | None  # the tick at which it ends; None: never by itself

    def end(self, error: PlumberError | None) -> None:
        """Close, and tell the client why."""


class Deadlines:
    """The streams whose grants end, by the tick at which they are closed."""

    _log = Logger()

    def __init__(
        self, clock: IReactorTime, now: Callable[[], float], random: Callable[[], float]
    ) -> None:
        """
        Args:
            clock: The reactor's clock, which is never set.
            now: Returns the time in seconds since 1970, which grants are compared with.
            random: Returns a number from 0 to 1.
        """
        self._clock = clock
        self._now = now
        self._random = random
        self._by_tick: dict[int, set[Expiring]] = {}
        self._next = self._tick_of(clock.seconds())  # the first tick that is not done
        self._ticks = PeriodicTask(self._tick, TICK, clock)

    def start(self) -> None:
        """Begin to look."""
        self._ticks.start()

    def stop(self) -> None:
        """Stop looking."""
        self._ticks.stop()

    def expires_in(self, grant: Grant) -> float | None:
        """Return the seconds that a grant has left, 0 at least; None if it does not end."""
        return None if grant.until is None else max(0.0, grant.until - self._now())

    def add(self, stream: Expiring) -> None:
        """Choose when this stream ends, and remember it.  Does nothing if its grant never ends."""
        left = self.expires_in(stream.grant)
        if left is None:
            return
        # Two ticks less: one for the rounding, one because `_tick` never comes late.
        spread = max(0.0, min(left * SPREAD, MAX_SPREAD) - 2 * TICK)
        deadline = self._clock.seconds() + left - self._random() * spread
        stream.expires = max(self._tick_of(deadline), self._next)
        self._by_tick.setdefault(stream.expires, set()).add(stream)

    def discard(self, stream: Expiring) -> None:
        """Forget this stream.  Harmless if it is not there."""
        tick = stream.expires
        if tick is not None and (streams := self._by_tick.get(tick)) is not None:
            streams.discard(stream)
            if not streams:
                del self._by_tick[tick]

    @staticmethod
    def _tick_of(seconds: float) -> int:
        return floor(seconds / TICK)

    async def _tick(self) -> None:
        """End what would be late at the next tick."""
        first, self._next = self._next, self._tick_of(self._clock.seconds() + TICK) + 1
        for tick in range(first, self._next):
            for stream in self._by_tick.pop(tick, ()):
                try:
                    stream.end(GrantExpired())
                except Exception:
                    self._log.failure("a stream could not be ended")
