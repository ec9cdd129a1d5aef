"""What is counted about tasks."""

from __future__ import annotations

from collections.abc import Callable

from asyncplumber.figures import Counter, Gauge, Histogram, LabelledCounter, Metric
from asyncplumber.task import TaskState

_ENDS = tuple(state.value for state in TaskState if state.is_done)
_STARTS = ("started", "joined")


class TaskFigures:
    """Counts of one instance."""

    def __init__(self, held: Callable[[], int]) -> None:
        """`held` returns how many requests are held now."""
        self._starts = LabelledCounter(
            "task_starts_total", "Requests that started or joined a task.", "how", _STARTS
        )
        self._ends = LabelledCounter(
            "task_ends_total", "Runs whose end this instance took or found.", "state", _ENDS
        )
        self._dispatches = Histogram(
            "task_dispatch_seconds", "Time in which the starter has answered, or failed."
        )
        self._failures = Counter(
            "task_dispatch_failures_total",
            "Dispatches that failed, and are repeated.",
        )
        self._held = Gauge(
            "task_holds", "Requests that are held until a task ends.", lambda: float(held())
        )

    def started(self, *, joined: bool) -> None:
        """Count a request that started or joined a task."""
        self._starts.add("joined" if joined else "started")

    def ended(self, state: TaskState) -> None:
        """Count the end of a run."""
        self._ends.add(state.value)

    def dispatched(self, seconds: float) -> None:
        """Note how long a starter has taken to answer."""
        self._dispatches.observe(seconds)

    def dispatch_failed(self) -> None:
        """Count an answer that has to be asked for again."""
        self._failures.add()

    @property
    def all(self) -> tuple[Metric, ...]:
        """All of them."""
        return self._starts, self._ends, self._held, self._dispatches, self._failures
