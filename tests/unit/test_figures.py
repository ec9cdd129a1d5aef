"""Counters, histograms and gauges, and the set of them."""

from __future__ import annotations

import math

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.figures import (
    SECONDS,
    Counter,
    Figure,
    FigureSet,
    Gauge,
    Histogram,
    Info,
    LabelledCounter,
    LabelledGauge,
    ReadCounter,
    TableCounter,
)


class CounterTests(SynchronousTestCase):
    """What counts up."""

    def test_a_counter(self) -> None:
        """By one or by more."""
        counter = Counter("things_total", "Things.")
        counter.add()
        counter.add(5)
        self.assertEqual(counter.figure(), Figure("counter", "Things.", (6,)))
        self.assertEqual(counter.figure().value, 6)

    def test_each_value_of_a_label_has_its_own_count(self) -> None:
        """All are there from the beginning, so that a rate can be taken of the first one."""
        counter = LabelledCounter("ends_total", "Ends.", "code", ["1001", "4401"])
        counter.add("4401")
        self.assertEqual(counter.figure().labels, ("code",))
        self.assertEqual(counter.figure().series, (("1001",), ("4401",), ("other",)))
        self.assertEqual(counter.figure().numbers, (0, 1, 0))
        self.assertEqual(counter.figure().of("4401"), 1)

    def test_a_value_that_is_not_on_the_list_is_other(self) -> None:
        """So that no client can make the list longer."""
        counter = LabelledCounter("ends_total", "Ends.", "code", ["1001"])
        for code in ("1002", "9999", "other"):
            counter.add(code)
        self.assertEqual(counter.figure().numbers, (0, 3))

    def test_two_labels(self) -> None:
        """Each combination has its count; a value that is not on its list is other."""
        labels = {"mechanism": ["token", "key"], "result": ["ok"]}
        counter = TableCounter("auth_total", "Answers.", labels)
        counter.add("key", "ok")
        counter.add("key", "strange")
        counter.add("strange", "ok")
        figure = counter.figure()
        self.assertEqual(figure.labels, ("mechanism", "result"))
        self.assertEqual(len(figure.series), 6)
        self.assertEqual(figure.of("key", "ok"), 1)
        self.assertEqual(figure.of("key", "other"), 1)
        self.assertEqual(figure.of("other", "ok"), 1)
        self.assertEqual(figure.value, 3)

    def test_two_labels_have_two_values(self) -> None:
        """One too few is a bug of ours."""
        counter = TableCounter("auth_total", "Answers.", {"mechanism": ["key"], "result": ["ok"]})
        with self.assertRaises(ValueError):
            counter.add("key")

    def test_a_count_that_something_else_keeps(self) -> None:
        """It is read when it is asked for."""
        counts = [3]
        counter = ReadCounter("things_total", "Things.", lambda: counts[0])
        counts[0] = 4
        self.assertEqual(counter.figure(), Figure("counter", "Things.", (4,)))


class HistogramTests(SynchronousTestCase):
    """What is observed."""

    def test_a_value_at_a_bound_is_in_its_bucket(self) -> None:
        """As Prometheus wants it: a bucket's bound is included (``le``)."""
        histogram = Histogram("wait_seconds", "Waits.", [0.1, 1])
        for value in (0.0, 0.1, 0.10001, 1, 1.5, math.inf):
            histogram.observe(value)
        self.assertEqual(histogram.figure().numbers[:-1], (2, 2, 2))
        self.assertEqual(histogram.figure().value, 6)

    def test_it_sums_up(self) -> None:
        """The sum is the last number."""
        histogram = Histogram("wait_seconds", "Waits.", [1])
        histogram.observe(0.25)
        histogram.observe(2.0, 3)
        self.assertEqual(histogram.figure().numbers, (1, 3, 6.25))
        self.assertEqual(histogram.figure().value, 4)

    def test_bounds_rise_and_are_finite(self) -> None:
        """Anything else would count into the wrong buckets."""
        for bounds in ([1, 1], [2, 1], [math.inf], [math.nan]):
            with self.assertRaises(ValueError):
                Histogram("wait_seconds", "Waits.", bounds)
        Histogram("wait_seconds", "Waits.", SECONDS)


class GaugeTests(SynchronousTestCase):
    """What is read."""

    def test_a_gauge(self) -> None:
        """It may say how several workers' gauges make one."""
        gauge = Gauge("start_time_seconds", "When.", lambda: 7.5, "min")
        self.assertEqual(gauge.figure(), Figure("gauge", "When.", (7.5,), merge="min"))

    def test_a_gauge_with_a_label(self) -> None:
        """One number for each value."""
        ages = {"a": 1.0, "b": 2.0}
        gauge = LabelledGauge("age_seconds", "Ages.", "issuer", list(ages), ages.__getitem__)
        self.assertEqual(gauge.figure().of("b"), 2.0)

    def test_what_the_process_is(self) -> None:
        """Always 1; what it tells is in the labels, and several workers are still 1."""
        info = Info("build_info", "The build.", {"version": "1.2", "python": "3.11"})
        self.assertEqual(info.figure().of("1.2", "3.11"), 1)
        self.assertEqual(info.figure().merge, "max")


class FigureSetTests(SynchronousTestCase):
    """All of them."""

    def test_they_are_in_the_order_in_which_they_were_added(self) -> None:
        """A page shows them in that order."""
        figures = FigureSet(Counter("b_total", "B."))
        figures.add(Counter("a_total", "A."), Counter("c_total", "C."))
        self.assertEqual(list(figures.collect()), ["b_total", "a_total", "c_total"])
        self.assertEqual([metric.name for metric in figures], ["b_total", "a_total", "c_total"])

    def test_a_name_is_given_once(self) -> None:
        """Prometheus would refuse the whole scrape."""
        figures = FigureSet(Counter("a_total", "A."))
        with self.assertRaises(ValueError):
            figures.add(Counter("a_total", "A."))

    def test_names_are_those_of_prometheus(self) -> None:
        """A counter ends in _total, a histogram in its unit; a help text is a sentence."""
        for make in (
            lambda: Counter("things", "Things."),
            lambda: Counter("Things_total", "Things."),
            lambda: Counter("my-things_total", "Things."),
            lambda: Counter("things_total", "things"),
            lambda: Histogram("wait", "Waits."),
            lambda: Histogram("wait_milliseconds_total", "Waits."),
            lambda: Gauge("things_total", "Things.", lambda: 1),
            lambda: LabelledCounter("things", "Things.", "code", []),
        ):
            with self.assertRaises(ValueError):
                make()
