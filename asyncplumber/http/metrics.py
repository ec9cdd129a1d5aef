"""The figures of an instance, or of all workers of a server, in the text format of Prometheus."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from asyncplumber.figures import Figure, Figures
from asyncplumber.http.responses import Response

# Our names have only letters and underscores, so that this format and the newer ones are the same.
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
PREFIX = "asyncplumber_"


def _histogram(name: str, figure: Figure) -> Metric:
    *counts, total = figure.numbers
    bounds = [floatToGoString(bound) for bound in (*figure.bounds, math.inf)]
    family = HistogramMetricFamily(name, figure.help)
    family.add_metric([], list(zip(bounds, accumulate(counts), strict=True)), total)
    return family


def _family(name: str, figure: Figure) -> Metric:
    if figure.kind == "histogram":
        return _histogram(name, figure)
    kind = CounterMetricFamily if figure.kind == "counter" else GaugeMetricFamily
    family: CounterMetricFamily | GaugeMetricFamily
    family = kind(name, figure.help, labels=figure.labels)
    for values, number in zip(figure.series, figure.numbers, strict=True):
        if not math.isnan(number):  # else it is not known
            family.add_metric(values, number)
    return family


class Metrics(Collector):
    """
    Collects figures when they are asked for.

    It has a registry of its own, so that two plumbers in one process do not meet, and nothing that
    an application registers shows up here.
    """

    def __init__(self, figures: Callable[[], Figures]) -> None:
        """``figures`` returns those of this instance."""
        self._figures = figures
        self._registry = CollectorRegistry()
        self._registry.register(self)
        #: Takes the figures of this instance, and returns those to show.  A server with several
        #: workers replaces it, to show the sums over all of them.
        self.combine: Callable[[Figures], Figures] = lambda figures: figures

    def combined(self) -> Figures:
        """Return the figures to show: those of this instance, or of all workers."""
        return self.combine(self._figures())

    def describe(self) -> Iterator[Metric]:
        """Describe no metric in advance: the names are known only once all parts exist."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, as ``Collector`` wants it."""
        for name, figure in self.combined().items():
            yield _family(PREFIX + name, figure)

    def response(self) -> Response:
        """Return the response to ``GET /metrics``."""
        return Response(200, CONTENT_TYPE, generate_latest(self._registry))
