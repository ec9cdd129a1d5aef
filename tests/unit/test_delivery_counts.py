"""How many subscribers were given an event."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.core.delivery_counts import REMEMBERED, DeliveryCounts
from harness.core import event


class GivenTests(SynchronousTestCase):
    """Counts by the number of an event."""

    def test_each_event_of_a_batch_has_its_count(self) -> None:
        """The first, the last, and none beside them; a number of another epoch is another event."""
        given = DeliveryCounts()
        given.add([event(1), event(2), event(3)], 5)
        given.add([event(4)], 0)
        self.assertEqual([given.count(event(seq)) for seq in range(6)], [None, 5, 5, 5, 0, None])
        self.assertIsNone(given.count(event(2, epoch="f")))

    def test_only_the_latest_are_remembered(self) -> None:
        """At the edge."""
        given = DeliveryCounts()
        for seq in range(2 * REMEMBERED):
            given.add([event(seq)], seq)
        self.assertEqual(given.count(event(0)), 0)
        given.add([event(2 * REMEMBERED)], 7)
        counts = [given.count(event(seq)) for seq in (REMEMBERED - 1, REMEMBERED, 2 * REMEMBERED)]
        self.assertEqual(counts, [None, REMEMBERED, 7])
