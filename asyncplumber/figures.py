"""
What a server counts and measures, and the values that a reader of the figures gets.

A part of the program makes its own counters and histograms, and counts with them.  A `FigureSet`
knows all those of one plumber, and `FigureSet.collect` reads them.  To count costs less than a
microsecond: nothing is formatted, looked up in a registry or locked.

Names follow the rules of Prometheus, without the prefix ``asyncplumber_``: a counter ends in
``_total``, a histogram in its base unit.  The values of a label are fixed, so that no client can
make a server remember more and more of them: an account or a subject is never a label.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, Protocol

Kind = Literal["counter", "gauge", "histogram"]
# How the gauges of several workers make one.
Merge = Literal["sum", "min", "max"]

OTHER = "other"  # counts what has none of the values of a label
# Upper bounds in seconds: from a POST to a process on the same machine up to a store that is slow.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_ENDS: Mapping[Kind, tuple[str, ...]] = {
    "counter": ("_total",),
    "histogram": ("_seconds", "_bytes"),
    "gauge": ("",),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """
    One metric, at one moment.

    Attributes:
        kind: In Prometheus' words.
        help: A sentence that says what it is.
        numbers: Of a counter or a gauge, one for each series; NaN means that it is not known.  Of a
            histogram, the observations in each bucket, and then the sum of all.
        labels: The names of the labels.
        series: The values of the labels, for each series.
        bounds: The upper bounds of a histogram's buckets, without the last one, which is infinite.
        merge: How the gauges of several workers make one.
    """

    kind: Kind
    help: str
    numbers: tuple[float, ...]
    labels: tuple[str, ...] = ()
    series: tuple[tuple[str, ...], ...] = ((),)
    bounds: tuple[float, ...] = ()
    merge: Merge = "sum"

    @property
    def value(self) -> float:
        """The sum over all series; of a histogram, how many observations there were."""
        return sum(self.numbers[:-1] if self.kind == "histogram" else self.numbers)

    def of(self, *values: str) -> float:
        """Return the number of one series."""
        return self.numbers[self.series.index(values)]

    @property
    def shape(self) -> str:
        """What the numbers mean, apart from the name: the same for two that can be added."""
        return repr((self.kind, self.labels, self.series, self.bounds, self.merge))


Figures = Mapping[str, Figure]  # by name, without the prefix


class Metric(Protocol):
    """What can be added to a `FigureSet`."""

    name: str

    def figure(self) -> Figure:
        """Return its numbers as they are now."""


def _check(kind: Kind, name: str, help: str) -> None:
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or not name.endswith(_ENDS[kind]):
        raise ValueError(f"{name!r} is no name of a {kind}")
    if kind == "gauge" and name.endswith("_total"):
        raise ValueError(f"{name!r} is the name of a counter")
    if not help.endswith("."):
        raise ValueError(f"{name}: {help!r} is no sentence")


class Counter:
    """Counts up."""

    __slots__ = ("help", "name", "value")

    def __init__(self, name: str, help: str) -> None:
        _check("counter", name, help)
        self.name, self.help = name, help
        self.value = 0

    def add(self, amount: int = 1) -> None:
        """Count; on the hottest paths add to ``value`` itself."""
        self.value += amount

    def figure(self) -> Figure:
        """Return its number as it is now."""
        return Figure("counter", self.help, (self.value,))


class LabelledCounter:
    """Counts up, for each value of one label.  What has none of the values is `OTHER`."""

    __slots__ = ("_label", "_numbers", "help", "name")

    def __init__(self, name: str, help: str, label: str, values: Sequence[str]) -> None:
        """
        Args:
            name: Ends in ``_total``.
            help: A sentence.
            label: The name of the label.
            values: All of its values.
        """
        _check("counter", name, help)
        self.name, self.help = name, help
        self._label = label
        self._numbers = dict.fromkeys([*values, OTHER], 0)

    def add(self, value: str, amount: int = 1) -> None:
        """Count for this value of the label."""
        numbers = self._numbers
        numbers[value if value in numbers else OTHER] += amount

    def figure(self) -> Figure:
        """Return its numbers as they are now."""
        numbers = self._numbers
        series = tuple((value,) for value in numbers)
        return Figure("counter", self.help, tuple(numbers.values()), (self._label,), series)


class TableCounter:
    """Counts up, for each combination of the values of several labels."""

    __slots__ = ("_labels", "_numbers", "_values", "help", "name")

    def __init__(self, name: str, help: str, labels: Mapping[str, Sequence[str]]) -> None:
        """
        Args:
            name: Ends in ``_total``.
            help: A sentence.
            labels: All values of each label.
        """
        _check("counter", name, help)
        self.name, self.help = name, help
        self._labels = tuple(labels)
        self._values = [frozenset(values) for values in labels.values()]
        columns = [[*values, OTHER] for values in labels.values()]
        self._numbers = dict.fromkeys(product(*columns), 0)

    def add(self, *values: str) -> None:
        """Count one for these values, in the order of the labels."""
        numbers = self._numbers
        if values not in numbers:
            known = zip(values, self._values, strict=True)
            values = tuple(value if value in all_ else OTHER for value, all_ in known)
        numbers[values] += 1

    def figure(self) -> Figure:
        """Return its numbers as they are now."""
        numbers = self._numbers
        return Figure("counter", self.help, tuple(numbers.values()), self._labels, tuple(numbers))


class Histogram:
    """Counts observations in buckets, and sums them up."""

    __slots__ = ("_bounds", "_counts", "help", "name", "sum")

    def __init__(self, name: str, help: str, buckets: Sequence[float] = SECONDS) -> None:
        """
        Args:
            name: Ends in the unit, which is ``_seconds`` or ``_bytes``.
            help: A sentence.
            buckets: The upper bounds, rising.  One more bucket takes what is beyond the last.
        """
        _check("histogram", name, help)
        if list(buckets) != sorted(set(buckets)) or not all(map(math.isfinite, buckets)):
            raise ValueError(f"{name}: the bounds {buckets!r} do not rise")
        self.name, self.help = name, help
        self._bounds = tuple(map(float, buckets))
        self._counts = [0] * (len(buckets) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Note an observation, or several of the same value."""
        self._counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    def figure(self) -> Figure:
        """Return its numbers as they are now."""
        return Figure("histogram", self.help, (*self._counts, self.sum), bounds=self._bounds)


class Gauge:
    """A number that something else knows, read when it is asked for."""

    kind: Kind = "gauge"

    def __init__(
        self, name: str, help: str, read: Callable[[], float], merge: Merge = "sum"
    ) -> None:
        """
        Args:
            name: Ends in the unit, if there is one.
            help: A sentence.
            read: Returns the number; NaN means that it is not known.
            merge: How the numbers of several workers make one.
        """
        _check(self.kind, name, help)
        self.name, self.help = name, help
        self._read = read
        self._merge = merge

    def figure(self) -> Figure:
        """Return its number as it is now."""
        return Figure(self.kind, self.help, (self._read(),), merge=self._merge)


class ReadCounter(Gauge):
    """A count that something else keeps, read when it is asked for.  It never goes down."""

    kind: Kind = "counter"

    def __init__(self, name: str, help: str, read: Callable[[], float]) -> None:
        super().__init__(name, help, read)


class LabelledGauge:
    """Numbers that something else knows, one for each value of a label."""

    def __init__(
        self,
        name: str,
        help: str,
        label: str,
        values: Sequence[str],
        read: Callable[[str], float],
        merge: Merge = "sum",
    ) -> None:
        """``read`` is called with each value of the label; see `Gauge` for the rest."""
        _check("gauge", name, help)
        self.name, self.help = name, help
        self._label, self._values = label, tuple(values)
        self._read = read
        self._merge = merge

    def figure(self) -> Figure:
        """Return its numbers as they are now."""
        return Figure(
            "gauge",
            self.help,
            tuple(map(self._read, self._values)),
            (self._label,),
            tuple((value,) for value in self._values),
            merge=self._merge,
        )


class Info:
    """A gauge that is always 1, and whose labels tell something about the process."""

    def __init__(self, name: str, help: str, labels: Mapping[str, str]) -> None:
        _check("gauge", name, help)
        self.name, self.help = name, help
        self._labels = dict(labels)

    def figure(self) -> Figure:
        """Return it."""
        labels = self._labels
        series = (tuple(labels.values()),)
        return Figure("gauge", self.help, (1.0,), tuple(labels), series, merge="max")


class FigureSet:
    """All the metrics of one plumber, in the order in which they are shown."""

    def __init__(self, *metrics: Metric) -> None:
        self._metrics: dict[str, Metric] = {}
        self.add(*metrics)

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._metrics.values())

    def add(self, *metrics: Metric) -> None:
        """
        Add metrics.

        Raises:
            ValueError: There is one of that name.
        """
        for metric in metrics:
            if metric.name in self._metrics:
                raise ValueError(f"there are two metrics {metric.name}")
            self._metrics[metric.name] = metric

    def collect(self) -> Figures:
        """Return the numbers as they are now."""
        return {name: metric.figure() for name, metric in self._metrics.items()}
