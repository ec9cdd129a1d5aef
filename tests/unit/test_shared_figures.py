"""The figures of several workers, in one table."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.core.status import Figure, Figures
from asyncplumber.server.shared_figures import COLUMNS, SharedFigures, WorkerFigures
from asyncplumber.testing import MemoryServer


def figures(accepted: float, subscribers: float) -> Figures:
    return {
        "events_accepted_total": Figure("counter", "", accepted),
        "subscribers": Figure("gauge", "", subscribers),
    }


def values(told: Figures) -> list[float]:
    return [value for _, _, value in told.values()]


class SharedFiguresTests(SynchronousTestCase):
    """Two workers and their successors."""

    def setUp(self) -> None:
        self.table = SharedFigures.for_workers(2)
        self.addCleanup(self.table.close)
        self.one, self.other = WorkerFigures(self.table, 1), WorkerFigures(self.table, 2)

    def test_each_tells_the_sums(self) -> None:
        """Of what all have noted last."""
        self.assertEqual(values(self.one.combine(figures(5, 2))), [5, 2])
        self.assertEqual(values(self.other.combine(figures(7, 1))), [12, 3])
        self.assertEqual(values(self.one.combine(figures(6, 0))), [13, 1])

    def test_what_the_dead_have_counted_stays(self) -> None:
        """Counters go on from there; who was connected to it is not."""
        self.one.combine(figures(5, 2))
        self.other.combine(figures(7, 1))
        self.table.clear(1)
        self.assertEqual(values(self.other.combine(figures(7, 1))), [12, 1])
        successor = WorkerFigures(self.table, 1)
        self.assertEqual(values(successor.combine(figures(0, 0))), [12, 1])
        self.assertEqual(values(successor.combine(figures(1, 1))), [13, 2])

    def test_another_version_with_other_figures_begins_anew(self) -> None:
        """
        After an upgrade under a running parent, numbers of one figure are not taken for those of
        another.
        """
        self.one.combine(figures(5, 2))
        self.other.combine(figures(7, 1))
        self.table.clear(1)
        newer = WorkerFigures(self.table, 1)
        more: Figures = {"refused_total": Figure("counter", "", 1), **figures(0, 0)}
        self.assertEqual(values(newer.combine(more)), [1, 0, 0])
        self.assertEqual(values(self.other.combine(figures(7, 1))), [7, 1])

    def test_as_many_figures_as_there_are_columns(self) -> None:
        """One more is an error; ours fit in."""
        most: Figures = {
            f"{number}_total": Figure("counter", "", 1) for number in range(COLUMNS - 2)
        }
        self.assertEqual(values(self.one.combine(most)), [1] * len(most))
        with self.assertRaises(ValueError):
            WorkerFigures(self.table, 2).combine({**most, "more": Figure("gauge", "", 1)})
        self.assertLess(len(MemoryServer().plumber.metrics.combined()), COLUMNS - 2)
