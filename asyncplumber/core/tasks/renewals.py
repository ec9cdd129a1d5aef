"""When this instance last moved the deadline of a run, so that not each beat writes its row."""

from __future__ import annotations

from collections.abc import Callable

from asyncplumber.core.tasks.turns import Place
from asyncplumber.task import NEVER, Task

PARTS = 3  # the deadline of a run is moved at most so often in the time of its patience
MAX_PLACES = 10_000  # tasks that are remembered; of the others each beat is written


class Renewals:
    """
    The last time for each task.

    It is measured by this instance's own steady clock.  The times in a row are the store's: a
    difference between the two clocks could let a run be lost that sends its beats in time.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        """`seconds` returns the time of a clock that is never set."""
        self._seconds = seconds
        self._last: dict[Place, tuple[str, float, float]] = {}  # run, patience and when

    def is_due(self, row: Task, patience: float) -> bool:
        """Whether a report of this run has to move the deadline, with this patience."""
        last = self._last.get((row.account, row.key))
        if last is None or last[:2] != (row.run, patience):
            return True
        return patience != NEVER and self._seconds() - last[2] >= patience / PARTS

    def renewed(self, row: Task, patience: float) -> None:
        """Note that the deadline was moved now."""
        place = row.account, row.key
        self._last.pop(place, None)
        self._last[place] = row.run, patience, self._seconds()
        if len(self._last) > MAX_PLACES:
            del self._last[next(iter(self._last))]

    def ended(self, row: Task) -> None:
        """Forget a task whose run has ended."""
        self._last.pop((row.account, row.key), None)
