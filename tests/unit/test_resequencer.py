"""Events fall into their order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.core import resequencer as order
from asyncplumber.core.resequencer import AHEAD_BYTES, COALESCED, Resequencer
from asyncplumber.event import Cursor, Position
from harness.core import event


def taken(queue: Resequencer) -> list[tuple[str, int]]:
    """All that is due."""
    found: list[tuple[str, int]] = []
    while (batch := queue.take()) is not None:
        found += [(each.epoch, each.seq) for each in batch.events]
    return found


def numbers(queue: Resequencer) -> list[int]:
    return [seq for _, seq in taken(queue)]


class OrderTests(SynchronousTestCase):
    """A queue that begins after e.0."""

    def setUp(self) -> None:
        self.order = Resequencer(Cursor("e", 0))

    @given(st.data(), st.integers(1, 12))
    def test_any_arrivals_with_refills_come_out_once_and_in_order(
        self, data: st.DataObject, count: int
    ) -> None:
        """
        Lost, doubled, early: whoever fetches when told that something is missing gets exactly 1 to
        n.
        """
        arrivals = data.draw(st.lists(st.integers(1, count), max_size=30))
        queue, out = Resequencer(Cursor("e", 0)), []
        for seq in arrivals:
            told_missing = queue.arrive(event(seq))
            self.assertEqual(told_missing, queue.head is not None and queue.head.seq < seq)
            if told_missing and data.draw(st.booleans()):
                assert queue.head is not None
                for missing in range(queue.head.seq + 1, data.draw(st.integers(seq, count)) + 1):
                    queue.arrive(event(missing))
            if data.draw(st.booleans()):
                out += numbers(queue)
        assert queue.head is not None
        if queue.is_behind(Cursor("e", count)):
            for missing in range(queue.head.seq + 1, count + 1):
                queue.arrive(event(missing))
        out += numbers(queue)
        self.assertEqual(out, list(range(1, count + 1)))
        self.assertFalse(queue.is_behind(Cursor("e", count)))

    def test_nothing_is_due_before_it_begins(self) -> None:
        """
        What arrives while the position is asked for waits; what is older than the position is
        dropped.
        """
        queue = Resequencer()
        for seq in (3, 5, 4, 2):
            self.assertFalse(queue.arrive(event(seq)))
        self.assertFalse(queue.is_due)
        self.assertFalse(queue.begin(Cursor("e", 3)))
        self.assertEqual(numbers(queue), [4, 5])

    def test_whoever_begins_learns_of_a_hole(self) -> None:
        """So that it is fetched at once."""
        queue = Resequencer()
        queue.arrive(event(7))
        self.assertTrue(queue.begin(Cursor("e", 5)))

    def test_an_older_numbering_is_dropped_and_a_newer_one_waits(self) -> None:
        """Epochs sort by time."""
        self.assertFalse(self.order.arrive(event(1, "d")))
        self.assertTrue(self.order.arrive(event(1, "f")))
        self.assertTrue(self.order.is_behind(Cursor("e", 0)))
        self.assertEqual(numbers(self.order), [])
        self.assertFalse(self.order.jump(Position("f", 0, 0)))
        self.assertEqual(taken(self.order), [("f", 1)])

    def test_the_early_ones_are_bounded(self) -> None:
        """A flood with a hole at its beginning is not kept in memory; it is fetched later."""
        self.patch(order, "AHEAD", 3)
        for seq in range(2, 10):
            self.order.arrive(event(seq))
        self.order.arrive(event(1))
        self.assertEqual(numbers(self.order), [1, 2, 3, 4])
        self.assertTrue(self.order.is_behind(Cursor("e", 9)))

    def test_the_early_ones_are_bounded_in_bytes(self) -> None:
        """
        Each account may have a megabyte of them; what is dropped is missing, and what is delivered
        makes room again.
        """
        third = b'"data":"%b"' % (b"x" * (AHEAD_BYTES // 3 - 9))
        for seq in range(2, 9):
            self.assertTrue(self.order.arrive(event(seq, payload=third)))
        self.order.arrive(event(1))
        self.assertEqual(numbers(self.order), [1, 2, 3, 4])
        for seq in (6, 7, 8, 9, 7):
            self.order.arrive(event(seq, payload=third))
        self.order.arrive(event(5))
        self.assertEqual(numbers(self.order), [5, 6, 7, 8])
        self.order.arrive(event(20, payload=third * 4))
        self.assertFalse(self.order.arrive(event(9)))
        self.order.jump(Position("e", 19, 0))
        self.assertEqual(numbers(self.order), [])

    def test_what_was_dropped_before_the_beginning_is_missing(self) -> None:
        """Whoever begins fetches it at once, although nothing waits."""
        queue = Resequencer()
        queue.arrive(event(7, payload=b'"data":"%b"' % (b"x" * AHEAD_BYTES)))
        self.assertTrue(queue.begin(Cursor("e", 6)))
        self.assertFalse(queue.begin(Cursor("e", 7)))

    def test_a_batch_is_bounded_in_bytes(self) -> None:
        """But one event goes out, however large."""
        half = b'"data":"%b"' % (b"x" * (COALESCED // 2 - 9))
        for seq, payload in enumerate((half, half, half, half * 3, b'"data":1'), 1):
            self.order.arrive(event(seq, payload=payload))
        sizes = []
        while (batch := self.order.take()) is not None:
            sizes.append(len(batch.events))
        self.assertEqual(sizes, [2, 1, 1, 1])

    def test_a_history_put_back_from_a_backup_is_noticed(self) -> None:
        """Its numbers are given out again, and would all look like doubles."""
        self.order.begin(Cursor("e", 9))
        self.assertTrue(self.order.is_behind(Cursor("e", 5)))
        self.assertFalse(self.order.is_behind(Cursor("e", 9)))

    def test_a_jump_forgets_what_was_due(self) -> None:
        """And says whether something is missing after it."""
        self.order.arrive(event(1))
        self.order.arrive(event(22))
        self.assertTrue(self.order.jump(Position("e", 20, 10)))
        self.assertEqual(self.order.head, Cursor("e", 20))
        self.order.clear()
        self.assertFalse(self.order.is_behind(Cursor("e", 20)))
