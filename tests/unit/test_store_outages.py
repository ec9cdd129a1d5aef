"""What log and metrics tell of a store that stops answering."""

from __future__ import annotations

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.figures import FigureSet
from asyncplumber.stores.outage import Outage


class OutageTests(SynchronousTestCase):
    """One line at its begin and one at its end."""

    def setUp(self) -> None:
        self.outage = Outage("mongodb://db")

    def figures(self) -> tuple[float, float]:
        collected = FigureSet(*self.outage.figures).collect()
        return collected["store_up"].value, collected["store_outages_total"].value

    def test_it_is_counted_once(self) -> None:
        """However many calls fail, for whatever reasons."""
        self.assertEqual(self.figures(), (1, 0))
        with capturedLogs() as events:
            for reason in ("refused", "refused", "no primary", "refused"):
                self.outage.began(reason)
            self.assertEqual(self.figures(), (0, 1))
            self.outage.over()
            self.outage.over()
        self.assertEqual(self.figures(), (1, 1))
        self.assertEqual(
            [formatEvent(event) for event in events],
            [
                "the store mongodb://db is unavailable: refused",
                "the store mongodb://db is unavailable: no primary",
                "the store mongodb://db is unavailable: refused",
                "the store mongodb://db is back",
            ],
        )

    def test_the_next_one_is_another(self) -> None:
        """It counts again."""
        for _ in range(2):
            self.outage.began("refused")
            self.outage.over()
        self.assertEqual(self.figures(), (1, 2))

    def test_a_call_that_began_before_the_end_tells_nothing(self) -> None:
        """It fails late, when the store is back."""
        before = self.outage.recoveries
        self.outage.began("refused", before)
        self.outage.over()
        self.outage.began("no answer in time", before)
        self.assertEqual(self.figures(), (1, 1))
        self.outage.began("refused", self.outage.recoveries)
        self.assertEqual(self.figures(), (0, 2))
