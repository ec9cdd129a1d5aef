"""
Two clocks: a steady one for time-outs, and the time of day, which stamps what is kept.

Twisted's reactors measure time-outs by the time of day (``reactor.seconds`` is ``time.time``).  If
an administrator or NTP sets the clock back by an hour, every timer of the process is an hour late.
"""

from __future__ import annotations

from time import monotonic, time
from typing import Any, Protocol


class TimeSource(Protocol):
    """Anything that tells the time: `WallClock`, a reactor, a `twisted.internet.task.Clock`."""

    def seconds(self) -> float:
        """Return the time in seconds."""


class WallClock:
    """
    The time of day, in seconds since 1970.

    It may be set at any moment, so never measure an interval with it.
    """

    @staticmethod
    def seconds() -> float:
        return time()


class SteadyClock:
    """Seconds that only count up, from an arbitrary start (CLOCK_MONOTONIC).  Safe in threads."""

    @staticmethod
    def seconds() -> float:
        return monotonic()


class _SteadySeconds:
    """The time of day as it was when this object was made, plus the time that has passed since."""

    def __init__(self) -> None:
        self._ahead = time() - monotonic()

    def __call__(self) -> float:
        return monotonic() + self._ahead


def steady(reactor: Any) -> None:
    """
    Make all timers of this reactor follow a clock that cannot be set (CLOCK_MONOTONIC).

    From now on ``reactor.seconds()`` differs from the time of day by every step that the time of
    day makes.  Timers under way keep their time.  Call this before the reactor runs; a second call
    changes nothing.
    """
    if not isinstance(reactor.seconds, _SteadySeconds):
        reactor.seconds = _SteadySeconds()
