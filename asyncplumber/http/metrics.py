"""The figures of an instance, or of all workers of a server, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from asyncplumber.core.status import Figure, Figures
from asyncplumber.http.responses import Response

# Our names have only letters and underscores, so that this format and the newer ones are the same.
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
PREFIX = "asyncplumber_"


def _family(name: str, figure: Figure) -> Metric:
    families = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
    family: Metric = families[figure.kind](PREFIX + name, figure.help, value=figure.value)
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
            yield _family(name, figure)

    def response(self) -> Response:
        """Return the response to ``GET /metrics``."""
        return Response(200, CONTENT_TYPE, generate_latest(self._registry))
