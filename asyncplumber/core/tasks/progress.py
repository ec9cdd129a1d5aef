"""Progress that comes too fast: the newest of each task waits, in place of the others."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.core.tasks.turns import Place
from asyncplumber.errors import to_client_error
from asyncplumber.task import Report

MAX_WAITING_BYTES = 16 * 1024 * 1024  # of all progress that waits at one instance


class Waiting(NamedTuple):
    """
    A progress that waits.

    Attributes:
        report: The report.
        run: The run that it is of.
        came_at: When it came in, in seconds since 1970.
        former: The `Task.progressed_at` of the row that it is to replace.
    """

    report: Report
    run: str
    came_at: float
    former: float


class ConflatedProgress:
    """
    The progress that waits at this instance.

    It is lost if the process dies, as its sender was told.  An end of the run and a stop store it.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        """`clock` measures the waits."""
        self._clock = clock
        self._waiting: dict[Place, tuple[Waiting, IDelayedCall]] = {}
        self._stored: dict[Place, tuple[float, IDelayedCall]] = {}  # when, for some time
        self._size = 0  # bytes of the payloads that wait
        #: Stores the progress of a task whose time has come; it calls `take`.  True stores it
        #: although another instance may have stored one a moment ago.
        self.store: Callable[[Place, bool], Coroutine[Any, Any, None]]

    def stored(self, place: Place, interval: float) -> None:
        """Note that a progress of this task is stored now, and the next one not so soon."""
        self._forget(place)
        call = self._clock.callLater(interval, self._forget, place)
        self._stored[place] = self._clock.seconds(), call

    def _forget(self, place: Place) -> None:
        _, call = self._stored.pop(place, (0.0, None))
        if call is not None and call.active():
            call.cancel()

    def wait_of(self, place: Place, interval: float) -> float:
        """Return the seconds until a progress may be stored, 0 for now."""
        stored = self._stored.get(place)
        return 0.0 if stored is None else max(0.0, stored[0] + interval - self._clock.seconds())

    def holds(self, place: Place) -> bool:
        """Whether a progress of this task waits."""
        return place in self._waiting

    @property
    def has_room(self) -> bool:
        """Whether one more progress may wait; if not, it is stored at once."""
        return self._size < MAX_WAITING_BYTES

    def hold(self, place: Place, waiting: Waiting, delay: float) -> None:
        """Hold a progress for so many seconds, or for as long as the one whose place it takes."""
        former = self._waiting.get(place)
        call = self._clock.callLater(delay, self._due, place) if former is None else former[1]
        if former is not None:
            # Its time was set when that was the row: it may have been replaced since then.
            waiting = waiting._replace(former=former[0].former)
        self._waiting[place] = waiting, call
        self._size += _size(waiting) - (_size(former[0]) if former is not None else 0)

    def take(self, place: Place) -> Waiting | None:
        """Return the progress of a task that waits, and let it wait no more."""
        found = self._waiting.pop(place, None)
        if found is None:
            return None
        waiting, call = found
        self._size -= _size(waiting)
        if call.active():
            call.cancel()
        return waiting

    def _due(self, place: Place) -> None:
        Deferred.fromCoroutine(self.store(place, False)).addErrback(self._not_stored)

    def _not_stored(self, failure: Failure) -> None:
        error = to_client_error(failure, self._log, "a progress could not be stored")
        self._log.debug("a progress was not stored: {error}", error=error.message)

    async def flush(self) -> None:
        """Store all that waits, and forget the rest; what the store does not take now is lost."""
        for place in list(self._waiting):
            try:
                await self.store(place, True)
            except Exception:
                self._not_stored(Failure())
            self.take(place)
        for place in list(self._stored):
            self._forget(place)


def _size(waiting: Waiting) -> int:
    return len(waiting.report.draft.payload) + 1000  # with what the objects around it take
