"""The figures of an instance, as Prometheus reads them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.figures import (
    Counter,
    Figure,
    Figures,
    FigureSet,
    Gauge,
    Histogram,
    LabelledCounter,
)
from asyncplumber.http.metrics import CONTENT_TYPE, Metrics
from asyncplumber.testing import ClientResponse, MemoryServer


def read(figures: Figures) -> dict[str, tuple[str, float]]:
    """Return kind and value of each figure that is one number, by name."""
    return {
        f"asyncplumber_{name}": (figure.kind, figure.value)
        for name, figure in figures.items()
        if len(figure.numbers) == 1 and not figure.labels
    }


def samples(text: bytes) -> dict[str, tuple[str, float]]:
    """Return kind and value of each sample without labels, by name."""
    return {
        sample.name: (family.type, sample.value)
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if not sample.labels and family.type != "histogram"
    }


class MetricsTests(SynchronousTestCase):
    """``GET /metrics`` of a server in memory."""

    def setUp(self) -> None:
        self.server = MemoryServer()

    def metrics(self) -> ClientResponse:
        return self.server.request("GET", "/metrics")

    def test_they_are_prometheus_text_and_count(self) -> None:
        """Each figure has its kind, and counts in its own unit."""
        subscriber = self.server.connect()
        subscriber.send(
            b"GET /events/a HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        )
        self.server.post("a", b"1")
        self.server.post("a", b"2")
        response = self.metrics()
        self.assertEqual(response.headers[b"content-type"], CONTENT_TYPE)
        expected = {
            "asyncplumber_subscribers": ("gauge", 1),
            "asyncplumber_open_channels": ("gauge", 1),
            "asyncplumber_events_accepted_total": ("counter", 2),
            "asyncplumber_events_delivered_total": ("counter", 2),
            "asyncplumber_events_relayed_total": ("counter", 0),
            "asyncplumber_event_batches_failed_total": ("counter", 0),
        }
        found = samples(response.body)
        self.assertEqual({name: found[name] for name in expected}, expected)

    def test_each_has_a_help_text(self) -> None:
        """A sentence that says what it counts."""
        families = list(text_string_to_metric_families(self.metrics().body.decode()))
        for family in families:
            self.assertTrue(family.documentation.endswith("."), family.name)

    def test_the_values_are_not_rounded(self) -> None:
        """A counter beyond a million still counts by one."""
        metrics = Metrics(lambda: {"many_total": Figure("counter", "Many.", (12_345_678,))})
        self.assertEqual(
            samples(metrics.response().body), {"asyncplumber_many_total": ("counter", 12_345_678)}
        )

    def test_two_plumbers_in_one_process_do_not_meet(self) -> None:
        """Nor does anything that the application itself registers show up."""
        MemoryServer().post("a", b"1")
        self.assertEqual(
            samples(self.metrics().body)["asyncplumber_events_accepted_total"], ("counter", 0)
        )
        self.assertNotIn(b"python_info", self.metrics().body)

    def test_workers_can_show_their_sums(self) -> None:
        """`combine` replaces the figures of this instance by those of all."""

        def double(figures: Figures) -> Figures:
            return {
                name: replace(each, numbers=tuple(2 * number for number in each.numbers))
                for name, each in figures.items()
            }

        self.server.plumber.front.metrics.combine = double
        self.server.post("a", b"1")
        self.assertEqual(
            samples(self.metrics().body)["asyncplumber_events_accepted_total"], ("counter", 2)
        )

    def test_they_are_those_of_the_status(self) -> None:
        """There is one read model."""
        self.server.post("a", json.dumps("x").encode())
        expected = read(self.server.plumber.status().figures)
        expected["asyncplumber_connections"] = ("gauge", 1)  # that of the request
        self.assertEqual(samples(self.metrics().body), expected)


class RenderingTests(SynchronousTestCase):
    """Each kind of figure as Prometheus' own parser reads it."""

    def setUp(self) -> None:
        self.figures = FigureSet()
        self.metrics = Metrics(self.figures.collect)

    def sampled(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """Return the value of each sample by its name and the values of its labels."""
        return {
            (sample.name.removeprefix("asyncplumber_"), tuple(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(self.metrics.response().body.decode())
            for sample in family.samples
        }

    def test_labels(self) -> None:
        """Each series has its line; a value is quoted as the format wants it."""
        counter = LabelledCounter("ends_total", "Ends.", "why", ["plain", 'a "b" \\ c\n'])
        counter.add('a "b" \\ c\n', 2)
        self.figures.add(counter)
        self.assertEqual(
            self.sampled(),
            {
                ("ends_total", ("plain",)): 0,
                ("ends_total", ('a "b" \\ c\n',)): 2,
                ("ends_total", ("other",)): 0,
            },
        )

    def test_a_histogram_is_cumulative(self) -> None:
        """Its last bucket is the count."""
        histogram = Histogram("wait_seconds", "Waits.", [0.5, 1])
        for value in (0.25, 0.75, 0.75, 8):
            histogram.observe(value)
        self.figures.add(histogram)
        self.assertEqual(
            self.sampled(),
            {
                ("wait_seconds_bucket", ("0.5",)): 1,
                ("wait_seconds_bucket", ("1.0",)): 3,
                ("wait_seconds_bucket", ("+Inf",)): 4,
                ("wait_seconds_count", ()): 4,
                ("wait_seconds_sum", ()): 9.75,
            },
        )

    def test_a_number_that_is_not_known_is_left_out(self) -> None:
        """A line with NaN would break every sum over servers."""
        self.figures.add(
            Counter("things_total", "Things."), Gauge("size_bytes", "Size.", lambda: math.nan)
        )
        self.assertEqual(self.sampled(), {("things_total", ()): 0})
