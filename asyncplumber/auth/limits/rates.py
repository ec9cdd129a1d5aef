"""
How often, and how many: the two kinds of limits that strangers meet.  No sockets, no HTTP.

`Limiter` bounds a rate by GCRA, the generic cell rate algorithm of ATM networks: it is a token
bucket that keeps one number for each key.  `Counts` bounds how many things are open at a time.
Both are for one process: a count over all instances is not worth a round trip to the store.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

KEYS = 100_000  # addresses or subjects that one limiter remembers
# Seconds by which a sum of floats may be wrong.  What comes exactly at its time must pass.
_TOLERANCE = 1e-6


class Rate(NamedTuple):
    """
    A rate, and how much may come at once.

    Attributes:
        burst: What may come at once after a rest.
        per_second: What may come in each second from then on; greater than 0.
    """

    burst: float
    per_second: float


class Limiter:
    """
    Bounds the rate of each key.

    It keeps the *theoretical arrival time* of each key: the moment at which all that came would be
    done, if it was done at exactly this rate.  A key may be ahead of the clock by the time that
    its burst takes.

    Keys are in two generations.  A key that is used comes into the young one.  When the clock has
    passed all times of the old generation, it is dropped, and the young one is old from then on.
    That also happens when the young one is full.  So a flood of keys costs no more memory than
    that; it forgives what the oldest keys did, and locks nobody out.
    """

    __slots__ = ("_ahead", "_half", "_latest", "_old", "_old_until", "_seconds", "_step", "_young")

    def __init__(self, rate: Rate, seconds: Callable[[], float], keys: int = KEYS) -> None:
        """
        Args:
            rate: That of each key.
            seconds: Returns the time in seconds, by a clock that is never set.
            keys: How many keys are remembered.
        """
        self._step = 1.0 / rate.per_second  # seconds for a cost of 1
        self._ahead = rate.burst * self._step + _TOLERANCE
        self._seconds = seconds
        self._half = keys // 2
        self._young: dict[Hashable, float] = {}
        self._old: dict[Hashable, float] = {}
        self._old_until = 0.0  # no time in the old generation is later
        self._latest = 0.0  # no time that was charged is later

    def __len__(self) -> int:
        """Return how many keys are remembered; one may count twice."""
        return len(self._young) + len(self._old)

    def __contains__(self, key: Hashable) -> bool:
        """Whether anything was counted for this key, as far as it is remembered."""
        return key in self._young or key in self._old

    def take(self, key: Hashable, cost: float = 1.0) -> float:
        """
        Count this if the rate allows it.

        Returns:
            0 if it was counted.  Otherwise the seconds after which it would be, and nothing was
            counted.  A ``cost`` above the burst is never counted; see `charge`.
        """
        now = self._seconds()
        arrival = self._young.get(key)
        if arrival is None:
            arrival = self._find(key, now)
        arrival = (now if arrival < now else arrival) + cost * self._step
        late = arrival - now - self._ahead
        if late > 0:
            return late
        self._young[key] = arrival
        return 0.0

    def charge(self, key: Hashable, cost: float) -> float:
        """
        Count this unless the key owes something already.

        Other than with `take`, the key may owe something afterwards: so what is larger than the
        burst passes once.

        Returns:
            0 if it was counted.  Otherwise the seconds after which the key owes nothing.
        """
        now = self._seconds()
        arrival = self._young.get(key)
        if arrival is None:
            arrival = self._find(key, now)
        late = arrival - now - self._ahead
        if late > 0:
            return late
        arrival = self._young[key] = (now if arrival < now else arrival) + cost * self._step
        if arrival > self._latest:
            self._latest = arrival
        return 0.0

    def owe(self, key: Hashable, cost: float) -> None:
        """Count this, whatever the key owes already."""
        now = self._seconds()
        arrival = self._young.get(key)
        if arrival is None:
            arrival = self._find(key, now)
        self._young[key] = arrival = max(now, arrival) + cost * self._step
        self._latest = max(self._latest, arrival)

    def wait(self, key: Hashable, cost: float = 0.0) -> float:
        """Return the seconds after which `take` would count this, or 0.  Counts nothing."""
        now = self._seconds()
        arrival = self._young.get(key)
        if arrival is None:
            arrival = self._find(key, now)
        return max(0.0, max(now, arrival) + cost * self._step - now - self._ahead)

    def _find(self, key: Hashable, now: float) -> float:
        """Return the time of a key that is not in the young generation."""
        if now >= self._old_until or len(self._young) >= self._half:
            self._old, self._young = self._young, {}
            self._old_until = max(now + self._ahead, self._latest)
            self._latest = 0.0
        return self._old.get(key, now)


class Counts:
    """How many things each key has open."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[Hashable, int] = {}

    def __getitem__(self, key: Hashable) -> int:
        return self._counts.get(key, 0)

    def __len__(self) -> int:
        """Return how many keys have something open."""
        return len(self._counts)

    def enter(self, key: Hashable, limit: int) -> bool:
        """Count one more, unless there are as many as ``limit``; tell whether it was counted."""
        count = self._counts.get(key, 0)
        if count >= limit:
            return False
        self._counts[key] = count + 1
        return True

    def leave(self, key: Hashable) -> None:
        """Count one less.  Raises KeyError if there is none: a bug of the caller."""
        count = self._counts[key] - 1
        if count:
            self._counts[key] = count
        else:
            del self._counts[key]
