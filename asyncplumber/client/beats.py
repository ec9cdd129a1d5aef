"""
Beats: the reports, again and again, that a task goes on.

A thread's beats prove that the process lives.  Those of an event loop prove that the loop turns as
well.  Needs only the standard library.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle


class Beats(Protocol):
    """Beats that go on until they are stopped."""

    def stop(self) -> None:
        """Beat no more.  Any thread may call this, and more than once."""


class LoopBeats:
    """Beats of a loop of asyncio."""

    def __init__(self, loop: AbstractEventLoop, beat: Callable[[], None], interval: float) -> None:
        """Call ``beat`` each ``interval`` seconds, in the loop."""
        self._loop, self._beat, self._interval = loop, beat, interval
        self._thread, self._is_stopped = get_ident(), False
        self._timer: TimerHandle = loop.call_later(interval, self._due)

    def _due(self) -> None:
        if not self._is_stopped:
            self._timer = self._loop.call_later(self._interval, self._due)
            self._beat()

    def stop(self) -> None:
        """Beat no more."""
        self._is_stopped = True
        if get_ident() == self._thread:  # no other thread may touch a timer of the loop
            self._timer.cancel()


class Schedule:
    """When which beat of a thread is due.  Its caller has the lock and the clock."""

    def __init__(self) -> None:
        self._due: dict[ThreadBeats, float] = {}

    def __len__(self) -> int:
        return len(self._due)

    def put(self, beats: ThreadBeats, moment: float) -> None:
        """Have this beat done at this moment."""
        self._due[beats] = moment

    def remove(self, beats: ThreadBeats) -> None:
        """Have this beat done no more."""
        self._due.pop(beats, None)

    def next(self) -> float | None:
        """Return when the next beat is due; None if there is none."""
        return min(self._due.values(), default=None)

    def take(self, now: float) -> list[ThreadBeats]:
        """Return the beats that are due, and have each done again after its interval."""
        due = [beats for beats, moment in self._due.items() if moment <= now]
        for beats in due:
            self._due[beats] = now + beats.interval
        return due


class ThreadBeats:
    """Beats of the thread of an outbox."""

    def __init__(
        self, beat: Callable[[], None], interval: float, stop: Callable[[ThreadBeats], None]
    ) -> None:
        """
        Args:
            beat: Called when one is due.
            interval: Seconds between two.
            stop: Called by ``stop``.
        """
        self.beat, self.interval = beat, interval
        self._stop = stop

    def stop(self) -> None:
        """Beat no more."""
        self._stop(self)


def beats_of_this_loop(
    beat: Callable[[], None], interval: float, clock: Any = None
) -> Beats | None:
    """
    Return beats of the event loop that this code runs in, None if it runs in none.

    Args:
        beat: Called when one is due.
        interval: Seconds between two.
        clock: A clock of Twisted, for example the reactor; None finds the loop.
    """
    if clock is None:
        asyncio = sys.modules.get("asyncio")
        try:
            if asyncio is not None:
                return LoopBeats(asyncio.get_running_loop(), beat, interval)
        except RuntimeError:
            pass  # there is none in this thread
        if "twisted.internet.reactor" not in sys.modules:
            return None
    # A program without Twisted is not to load it.
    beats: Beats | None = import_module("asyncplumber.client.reactor_beats").reactor_beats(
        beat, interval, clock
    )
    return beats
