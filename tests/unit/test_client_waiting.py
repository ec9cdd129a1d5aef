"""What waits in an outbox, and what gives way when there is too much."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.client.request import Request
from asyncplumber.client.waiting import Entry, Kind, WaitingEntries

ROOM = 4  # entries
BYTES = 100


def entry(kind: Kind, owner: object = None, size: int = 1, **fields: Any) -> Entry:
    return Entry(Request("", "", {}, bytes(size)), kind, owner=owner, **fields)


class WaitingTestCase(SynchronousTestCase):
    """A small queue."""

    def setUp(self) -> None:
        self.waiting = WaitingEntries(ROOM, BYTES)

    def add(self, *entries: Entry, now: float = 0.0) -> list[list[Entry] | None]:
        return [self.waiting.add(each, now) for each in entries]

    def left(self) -> list[Entry]:
        """Return what waits, in order, and empty the queue."""
        return self.waiting.clear()


class RunTests(WaitingTestCase):
    """What waits of one run."""

    def test_at_most_three_reports_wait(self) -> None:
        """The beginning, the newest progress in the place of the first, and the end."""
        run = object()
        begin, end = entry(Kind.BEGIN, run), entry(Kind.END, run)
        first, newest = entry(Kind.PROGRESS, run, 10), entry(Kind.PROGRESS, run, 20)
        self.add(begin, first, entry(Kind.PROGRESS, run, 70), newest, entry(Kind.BEAT, run), end)
        self.assertEqual(len(self.waiting), 3)
        left = self.left()
        self.assertEqual(left, [begin, first, end])
        self.assertIs(left[1].request, newest.request)

    def test_what_is_being_sent_is_not_replaced(self) -> None:
        """The plumber may have it already; the newer progress waits behind it."""
        run = object()
        first, second = entry(Kind.PROGRESS, run), entry(Kind.PROGRESS, run)
        self.add(first)
        self.waiting.sending = first
        self.add(second)
        self.assertEqual(len(self.waiting), 2)
        self.waiting.remove(first)
        self.add(entry(Kind.PROGRESS, run))
        self.assertEqual(self.left(), [second])

    def test_a_beat_gives_way_to_anything_of_its_run(self) -> None:
        """Each report says that the run goes on."""
        run, other = object(), object()
        beat, progress = entry(Kind.BEAT, run), entry(Kind.PROGRESS, run)
        others = entry(Kind.BEAT, other)
        self.add(beat, entry(Kind.BEAT, run), others, progress)
        self.assertEqual(self.left(), [others, progress])


class RoomTests(WaitingTestCase):
    """A queue that is full."""

    def test_ends_and_events_take_the_place_of_what_is_said_again(self) -> None:
        """The lowest kind first; never of each other."""
        beat, progress, begin = (
            entry(kind, object()) for kind in (Kind.BEAT, Kind.PROGRESS, Kind.BEGIN)
        )
        end = entry(Kind.END, object())
        self.add(begin, progress, beat, end)
        events = [entry(Kind.EVENT) for _ in range(4)]
        self.assertEqual(self.add(*events), [[beat], [progress], [begin], None])
        self.assertIsNone(self.add(entry(Kind.END, object()))[0])
        self.assertEqual(self.left(), [end, *events[:3]])

    def test_progress_takes_no_place_of_an_end(self) -> None:
        """It is lost."""
        ends = [entry(Kind.END, object()) for _ in range(ROOM)]
        self.assertEqual(self.add(*ends), [[]] * ROOM)
        for kind in (Kind.PROGRESS, Kind.BEGIN, Kind.BEAT):
            self.assertIsNone(self.add(entry(kind, object()))[0])
        self.assertEqual(self.left(), ends)

    def test_what_has_expired_gives_way(self) -> None:
        """Of any kind, but only if there is no room."""
        old = entry(Kind.END, object(), expires=10.0)
        self.add(old, *[entry(Kind.END, object()) for _ in range(ROOM - 1)])
        self.assertIsNone(self.add(entry(Kind.EVENT), now=9.9)[0])
        self.assertEqual(self.add(entry(Kind.EVENT), now=10.0), [[old]])

    def test_bytes(self) -> None:
        """Exactly so many fit; a larger progress in the place of a smaller one counts too."""
        run = object()
        progress = entry(Kind.PROGRESS, run, 10)
        self.add(progress, entry(Kind.EVENT, size=89))
        self.assertIsNone(self.add(entry(Kind.EVENT, size=101))[0])
        self.assertEqual(self.add(entry(Kind.PROGRESS, run, 11)), [[]])
        self.assertIsNone(self.add(entry(Kind.PROGRESS, run, 12))[0])
        self.assertEqual(len(progress.request.body), 11)
        self.assertEqual(self.add(entry(Kind.EVENT, size=11)), [[progress]])

    def test_what_is_being_sent_stays(self) -> None:
        """It cannot give way."""
        beats = [entry(Kind.BEAT, object()) for _ in range(ROOM)]
        self.add(*beats)
        self.waiting.sending = beats[0]
        event = entry(Kind.EVENT)
        self.assertEqual(self.add(event), [[beats[1]]])
        self.assertEqual(self.left(), [*beats[2:], event])
        self.assertEqual(len(self.waiting), 1)


class NextTests(WaitingTestCase):
    """What is sent next."""

    def test_progress_waits_for_its_time_and_nothing_waits_for_it(self) -> None:
        """Except what is of the same run."""
        run = object()
        progress, event = entry(Kind.PROGRESS, run, not_before=10.0), entry(Kind.EVENT)
        self.assertIsNone(self.waiting.next(0.0))
        self.add(progress, event)
        self.assertIs(self.waiting.next(9.9), event)
        self.assertIs(self.waiting.next(10.0), progress)
        self.assertIs(self.waiting.next(float("inf")), progress)
        self.waiting.remove(event)
        self.assertEqual(self.waiting.next(9.9), 10.0)
        self.add(entry(Kind.END, run))
        self.assertIs(self.waiting.next(9.9), progress)
