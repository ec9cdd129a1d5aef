"""Events are put into their order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.core import resequencer
from asyncplumber.core.resequencer import MAX_BATCH_BYTES, MAX_EARLY_BYTES, Resequencer
from asyncplumber.event import Cursor
from harness.core import event


def taken(queue: Resequencer) -> list[tuple[str, int]]:
    """Take all that is due."""
    found: list[tuple[str, int]] = []
    while queue.due:
        found += [(each.epoch, each.seq) for each in queue.take().events]
    return found


def numbers(queue: Resequencer) -> list[int]:
    """Take all that is due, and return the numbers."""
    return [seq for _, seq in taken(queue)]


class ResequencerTests(SynchronousTestCase):
    """A queue that begins after e.0."""

    def setUp(self) -> None:
        self.queue = Resequencer(Cursor("e", 0))

    @given(st.data(), st.integers(1, 12))
    def test_any_arrivals_with_refills_come_out_once_and_in_order(
        self, data: st.DataObject, count: int
    ) -> None:
        """Events are lost, doubled and early; a caller that fetches what is missing gets 1 to n."""
        arrivals = data.draw(st.lists(st.integers(1, count), max_size=30))
        queue, out = Resequencer(Cursor("e", 0)), []
        for seq in arrivals:
            is_missing = queue.arrive(event(seq))
            self.assertEqual(is_missing, queue.head.seq < seq)
            if is_missing and data.draw(st.booleans()):
                for missing in range(queue.head.seq + 1, data.draw(st.integers(seq, count)) + 1):
                    queue.arrive(event(missing))
            if data.draw(st.booleans()):
                out += numbers(queue)
        if queue.is_behind(Cursor("e", count)):
            for missing in range(queue.head.seq + 1, count + 1):
                queue.arrive(event(missing))
        out += numbers(queue)
        self.assertEqual(out, list(range(1, count + 1)))
        self.assertFalse(queue.is_behind(Cursor("e", count)))

    def test_an_older_epoch_is_dropped_and_a_newer_one_waits(self) -> None:
        """Epochs sort by time."""
        self.assertFalse(self.queue.arrive(event(1, "d")))
        self.assertTrue(self.queue.arrive(event(1, "f")))
        self.assertTrue(self.queue.is_behind(Cursor("e", 0)))
        self.assertEqual(numbers(self.queue), [])
        self.queue.restart(Cursor("f", 0))
        self.assertEqual(taken(self.queue), [("f", 1)])

    def test_the_early_ones_are_bounded(self) -> None:
        """A flood with a hole at its beginning is not kept in memory; it is fetched later."""
        self.patch(resequencer, "MAX_EARLY_EVENTS", 3)
        for seq in range(2, 10):
            self.queue.arrive(event(seq))
        self.queue.arrive(event(1))
        self.assertEqual(numbers(self.queue), [1, 2, 3, 4])
        self.assertTrue(self.queue.is_behind(Cursor("e", 9)))

    def test_the_early_ones_are_bounded_in_bytes(self) -> None:
        """What is dropped is missing, and what is delivered makes room again."""
        third = b'"data":"%b"' % (b"x" * (MAX_EARLY_BYTES // 3 - 9))
        for seq in range(2, 9):
            self.assertTrue(self.queue.arrive(event(seq, payload=third)))
        self.queue.arrive(event(1))
        self.assertEqual(numbers(self.queue), [1, 2, 3, 4])
        for seq in (6, 7, 8, 9, 7):
            self.queue.arrive(event(seq, payload=third))
        self.queue.arrive(event(5))
        self.assertEqual(numbers(self.queue), [5, 6, 7, 8])
        self.queue.arrive(event(20, payload=third * 4))
        self.assertFalse(self.queue.arrive(event(9)))
        self.assertEqual(numbers(self.queue), [9])
        self.queue.restart(Cursor("e", 19))
        self.assertEqual(numbers(self.queue), [])

    def test_a_restart_makes_room_for_early_ones(self) -> None:
        """Its bytes are counted anew."""
        whole = b'"data":"%b"' % (b"x" * (MAX_EARLY_BYTES - 9))
        for head, seq in ((0, 5), (10, 15), (20, 25)):
            self.queue.restart(Cursor("e", head))
            self.queue.arrive(event(seq, payload=whole))
            self.queue.restart(Cursor("e", seq - 1))
            self.assertEqual(numbers(self.queue), [seq])

    def test_a_batch_is_bounded_in_bytes(self) -> None:
        """But one event goes out, however large."""
        half = b'"data":"%b"' % (b"x" * (MAX_BATCH_BYTES // 2 - 9))
        for seq, payload in enumerate((half, half, half, half * 3, b'"data":1'), 1):
            self.queue.arrive(event(seq, payload=payload))
        sizes = []
        while self.queue.due:
            sizes.append(len(self.queue.take().events))
        self.assertEqual(sizes, [2, 1, 1, 1])

    def test_a_history_restored_from_a_backup_is_noticed(self) -> None:
        """Its numbers are given out again, and would all look like duplicates."""
        self.queue.restart(Cursor("e", 9))
        self.assertTrue(self.queue.is_behind(Cursor("e", 5)))
        self.assertFalse(self.queue.is_behind(Cursor("e", 9)))

    def test_a_restart_drops_what_is_before_the_new_head(self) -> None:
        """It keeps what is early."""
        self.queue.arrive(event(15))
        self.queue.arrive(event(22))
        self.queue.restart(Cursor("e", 20))
        self.assertEqual((self.queue.due, self.queue.head), ([], Cursor("e", 20)))
        self.assertTrue(self.queue.is_behind(Cursor("e", 20)))
        self.queue.arrive(event(21))
        self.assertEqual(numbers(self.queue), [21, 22])

    def test_a_restart_would_lose_what_is_due(self) -> None:
        """So it is an error to restart then."""
        self.queue.arrive(event(1))
        with self.assertRaises(AssertionError):
            self.queue.restart(Cursor("e", 20))

    def test_after_clear_nothing_waits(self) -> None:
        """Neither what was due nor what was early."""
        self.queue.arrive(event(1))
        self.queue.arrive(event(5))
        self.queue.clear()
        self.assertEqual(numbers(self.queue), [])
        self.assertFalse(self.queue.is_behind(self.queue.head))
