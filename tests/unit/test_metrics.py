"""The figures of an instance, as Prometheus reads them."""

from __future__ import annotations

import json

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.core.status import Figure, Figures
from asyncplumber.http.metrics import CONTENT_TYPE, Metrics
from asyncplumber.testing import ClientResponse, MemoryServer


def samples(text: bytes) -> dict[str, tuple[str, float]]:
    """Return kind and value of each sample, by name."""
    return {
        sample.name: (family.type, sample.value)
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
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
        self.assertEqual(
            samples(response.body),
            {
                "asyncplumber_subscribers": ("gauge", 1),
                "asyncplumber_open_channels": ("gauge", 1),
                "asyncplumber_events_accepted_total": ("counter", 2),
                "asyncplumber_events_delivered_total": ("counter", 2),
                "asyncplumber_events_relayed_total": ("counter", 0),
                "asyncplumber_event_batches_failed_total": ("counter", 0),
            },
        )

    def test_each_has_a_help_text(self) -> None:
        """A sentence that says what it counts."""
        families = list(text_string_to_metric_families(self.metrics().body.decode()))
        for family in families:
            self.assertTrue(family.documentation.endswith("."), family.name)

    def test_the_values_are_not_rounded(self) -> None:
        """A counter beyond a million still counts by one."""
        metrics = Metrics(lambda: {"many_total": Figure("counter", "Many.", 12_345_678)})
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
            return {name: each._replace(value=2 * each.value) for name, each in figures.items()}

        self.server.plumber.metrics.combine = double
        self.server.post("a", b"1")
        self.assertEqual(
            samples(self.metrics().body)["asyncplumber_events_accepted_total"], ("counter", 2)
        )

    def test_they_are_those_of_the_status(self) -> None:
        """There is one read model."""
        self.server.post("a", json.dumps("x").encode())
        expected = {
            f"asyncplumber_{name}": (figure.kind, figure.value)
            for name, figure in self.server.plumber.status().figures.items()
        }
        self.assertEqual(samples(self.metrics().body), expected)
