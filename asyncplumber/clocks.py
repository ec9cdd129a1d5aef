"""
Two clocks: one for time-outs, which nobody can set, and the time of day, which stamps what is kept.

Twisted's reactors measure time-outs by the time of day (`reactor.seconds` is `time.time`): when an
administrator or NTP sets the clock back by an hour, every timer of the process is an hour late.
"""

from __future__ import annotations

from time import monotonic, time
from typing import Any


class WallClock:
    """
    The time of day, in seconds since 1970.  It may be set at any moment: never measure with it.
    """

    @staticmethod
    def seconds() -> float:
        return time()


class _SteadySeconds:
    """Tells the time of day as it was when it began, plus the time that has gone by since."""

    def __init__(self) -> None:
        self._ahead = time() - monotonic()

    def __call__(self) -> float:
        return monotonic() + self._ahead


def steady(reactor: Any) -> None:
    """
    Have all timers of this reactor follow a clock that cannot be set (CLOCK_MONOTONIC).

    From now on `reactor.seconds()` differs from the time of day by as much as that was set.  Timers
    that are under way keep their time.  Call it before the reactor runs; a second call changes
    nothing.
    """
    if not isinstance(reactor.seconds, _SteadySeconds):
        reactor.seconds = _SteadySeconds()
