"""Beats of a task in a program on Twisted."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.python.threadable import isInIOThread


class ReactorBeats:
    """Beats of a reactor."""

    def __init__(self, clock: Any, beat: Callable[[], None], interval: float) -> None:
        """Call ``beat`` each ``interval`` seconds, by the clock."""
        self._beat = beat
        self._thread, self._is_stopped = get_ident(), False
        self._call = LoopingCall(self._due)
        self._call.clock = clock
        self._call.start(interval, now=False)

    def _due(self) -> None:
        if self._is_stopped:
            self._call.stop()
        else:
            self._beat()

    def stop(self) -> None:
        """Beat no more.  Any thread may call this, and more than once."""
        self._is_stopped = True
        # No other thread may touch a timer of the reactor.
        if get_ident() == self._thread and self._call.running:
            self._call.stop()


def reactor_beats(
    beat: Callable[[], None], interval: float, clock: Any = None
) -> ReactorBeats | None:
    """
    Return beats of the reactor, None if this is not its thread.

    Args:
        beat: Called when one is due.
        interval: Seconds between two.
        clock: For example a reactor; None takes the one of the process.
    """
    if clock is None:
        if not isInIOThread():
            return None
        from twisted.internet import reactor as clock
    return ReactorBeats(clock, beat, interval)
