"""How many subscribers were given an event."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.core.delivery_counts import REMEMBERED_BATCHES, DeliveryCounts
from harness.core import event


class DeliveryCountsTests(SynchronousTestCase):
    """Counts by the number of an event."""

    def test_each_event_of_a_batch_has_its_count(self) -> None:
        """The first, the last, and none beside them; a number of another epoch is another event."""
        counts = DeliveryCounts()
        counts.add([event(1), event(2), event(3)], 5)
        counts.add([event(4)], 0)
        self.assertEqual([counts.count(event(seq)) for seq in range(6)], [None, 5, 5, 5, 0, None])
        self.assertIsNone(counts.count(event(2, epoch="f")))

    def test_only_the_latest_are_remembered(self) -> None:
        """At the edge."""
        counts = DeliveryCounts()
        for seq in range(2 * REMEMBERED_BATCHES):
            counts.add([event(seq)], seq)
        self.assertEqual(counts.count(event(0)), 0)
        counts.add([event(2 * REMEMBERED_BATCHES)], 7)
        edge = (REMEMBERED_BATCHES - 1, REMEMBERED_BATCHES, 2 * REMEMBERED_BATCHES)
        remembered = [counts.count(event(seq)) for seq in edge]
        self.assertEqual(remembered, [None, REMEMBERED_BATCHES, 7])
