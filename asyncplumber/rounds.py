"""What is done again and again, whatever becomes of one time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.errors import PlumberError


class Round:
    """
    A periodic job that survives its own failures: a LoopingCall ends for good at the first one that reaches it.

    One that takes longer than its interval is not started a second time.
    """

    _log = Logger()

    def __init__(self, work: Callable[[], Coroutine[Any, Any, Any]], interval: float, clock: Any) -> None:
        """`interval` in seconds; the first time is one interval after the start."""
        self._work = work
        self._interval = interval
        self._loop = LoopingCall(self._once)
        self._loop.clock = clock

    def start(self) -> None:
        """Begin."""
        self._loop.start(self._interval, now=False)

    def stop(self) -> None:
        """End; what is under way goes on."""
        if self._loop.running:
            self._loop.stop()

    def _once(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._work()).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        if isinstance(failure.value, PlumberError):
            self._log.warn("{error}; it is tried again in {interval} s", error=failure.value.message, interval=self._interval)
        else:
            self._log.failure("a round failed", failure)
