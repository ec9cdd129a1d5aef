"""The figures of several workers, in one table."""

from __future__ import annotations

import math

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.figures import (
    Figure,
    Figures,
    FigureSet,
    Gauge,
    Histogram,
    LabelledCounter,
)
from asyncplumber.server.shared_figures import COLUMNS, SharedFigures, WorkerFigures
from asyncplumber.testing import MemoryServer


def figures(accepted: float, subscribers: float) -> Figures:
    return {
        "events_accepted_total": Figure("counter", "", (accepted,)),
        "subscribers": Figure("gauge", "", (subscribers,)),
    }


def values(told: Figures) -> list[float]:
    return [number for figure in told.values() for number in figure.numbers]


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
        more: Figures = {"refused_total": Figure("counter", "", (1,)), **figures(0, 0)}
        self.assertEqual(values(newer.combine(more)), [1, 0, 0])
        self.assertEqual(values(self.other.combine(figures(7, 1))), [7, 1])

    def test_a_figure_with_other_labels_is_another_figure(self) -> None:
        """Its numbers would be taken for those of other labels."""
        for number, codes in ((1, ["a", "b"]), (2, ["a", "c"])):
            counter = LabelledCounter("ends_total", "Ends.", "code", codes)
            counter.add("a")
            totals = WorkerFigures(self.table, number).combine(FigureSet(counter).collect())
            self.assertEqual(totals["ends_total"].of("a"), 1)

    def test_labels_and_buckets_are_summed(self) -> None:
        """Of workers that live, and of those that have died."""

        def worker(number: int) -> tuple[LabelledCounter, Histogram, WorkerFigures]:
            counter = LabelledCounter("ends_total", "Ends.", "code", ["1", "2"])
            histogram = Histogram("wait_seconds", "Waits.", [1.0, 2.0])
            return counter, histogram, WorkerFigures(self.table, number)

        for number, code, wait in ((1, "1", 0.5), (2, "2", 1.5), (1, "1", 9.0)):
            counter, histogram, shared = worker(number)
            counter.add(code)
            histogram.observe(wait, 2)
            totals = shared.combine(FigureSet(counter, histogram).collect())
            self.table.clear(number)
        self.assertEqual(totals["ends_total"].numbers, (2, 1, 0))
        self.assertEqual(totals["wait_seconds"].numbers, (2, 2, 2, 22.0))

    def test_some_gauges_are_no_sums(self) -> None:
        """Of those, the least or the greatest is shown; one that is not known does not count."""
        for number, start, size in ((1, 20.0, math.nan), (2, 10.0, 5.0)):
            figures = FigureSet(
                Gauge("start_time_seconds", "Start.", lambda: start, "min"),  # noqa: B023
                Gauge("size_bytes", "Size.", lambda: size, "max"),  # noqa: B023
            )
            totals = WorkerFigures(self.table, number).combine(figures.collect())
        self.assertEqual(values(totals), [10.0, 5.0])

    def test_what_no_worker_knows_is_not_known(self) -> None:
        """It is no zero."""
        figures = FigureSet(Gauge("size_bytes", "Size.", lambda: math.nan, "max"))
        totals = WorkerFigures(self.table, 1).combine(figures.collect())
        self.assertTrue(math.isnan(totals["size_bytes"].value))

    def test_as_many_numbers_as_there_are_columns(self) -> None:
        """One more is an error.  Ours need a tenth at most, and only they take memory."""
        most: Figures = {"ends_total": Figure("counter", "", (1.0,) * COLUMNS)}
        self.assertEqual(values(self.one.combine(most)), [1] * COLUMNS)
        with self.assertRaises(ValueError):
            WorkerFigures(self.table, 2).combine({**most, "more": Figure("gauge", "", (1.0,))})
        ours = MemoryServer().plumber.front.metrics.combined().values()
        self.assertLess(sum(len(figure.numbers) for figure in ours), COLUMNS / 10)
