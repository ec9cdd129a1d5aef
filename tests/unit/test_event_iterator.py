"""``async for event in plumber.events(…)``."""

from __future__ import annotations

import gc
import threading
from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber import BadAccount, BadCursor, Event, EventsMissed, Plumber, Retention, Unavailable
from asyncplumber.core import callbacks
from harness.garbage import collect_only_new_objects


class EventsCase(SynchronousTestCase):
    """A plumber in memory."""

    retention = Retention()

    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.plumber = Plumber(
            "memory:", retention=self.retention, reactor=self.clock, wall=self.clock
        )
        self.plumber.startService()
        self.seen: list[Any] = []

    def settle(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        for _ in range(20):
            self.clock.advance(0)

    def run_coroutine(self, coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
        running = Deferred.fromCoroutine(coroutine)
        self.settle()
        return running

    def send(self, *data: Any, account: str = "a") -> None:
        for each in data:
            self.successResultOf(self.run_coroutine(self.plumber.send(account, each)))

    @property
    def subscribers(self) -> float:
        return self.plumber.status().figures["subscribers"].value

    async def read(self, stop_at: Any = None, **options: Any) -> Event | None:
        """Note what comes, and return the event with the data `stop_at`."""
        async for event in self.plumber.events("a", **options):
            self.seen.append(event.data)
            if event.data == stop_at:
                return event
        return None


class LoopTests(EventsCase):
    """What a loop gets, and how it ends."""

    def test_it_gets_the_events_as_they_come(self) -> None:
        """In order, those of its account only."""
        reading = self.run_coroutine(self.read(stop_at=3))
        self.send(0, account="b")
        self.send(1, 2)
        self.assertEqual(self.seen, [1, 2])
        self.send(3)
        self.assertEqual(self.successResultOf(reading).data, 3)
        self.assertEqual(self.seen, [1, 2, 3])

    def test_it_begins_where_it_is_told_to(self) -> None:
        """At all that is kept, or after the cursor of an event or of a receipt."""
        self.send(1, 2, 3)
        event = self.successResultOf(self.run_coroutine(self.read(2, after="earliest")))
        for after in (event.cursor, str(event.cursor)):
            self.seen.clear()
            self.successResultOf(self.run_coroutine(self.read(3, after=after)))
            self.assertEqual(self.seen, [3])

    def test_an_account_may_be_a_number(self) -> None:
        """As with the senders."""
        reading = Deferred.fromCoroutine(anext(self.plumber.events(42, after="earliest")))
        self.send("x", account="42")
        self.assertEqual(self.successResultOf(reading).data, "x")

    def test_what_cannot_be_is_refused_at_once(self) -> None:
        """Not at the first event."""
        with self.assertRaises(BadAccount):
            self.plumber.events("")
        with self.assertRaises(BadCursor):
            self.plumber.events("a", after="never")

    def test_leaving_it_unsubscribes(self) -> None:
        """By break or return, without any call."""
        reading = self.run_coroutine(self.read(stop_at=1))
        self.assertEqual(self.subscribers, 1)
        self.send(1)
        self.successResultOf(reading)
        self.assertEqual(self.subscribers, 0)

    def test_an_exception_in_it_unsubscribes(self) -> None:
        """Once the exception is not referenced any more."""

        async def fails() -> None:
            async for _ in self.plumber.events("a"):
                raise KeyError

        collect_only_new_objects(self)
        reading = self.run_coroutine(fails())
        self.send(1)
        self.failureResultOf(reading, KeyError)
        del reading
        gc.collect()
        self.assertEqual(self.subscribers, 0)

    def test_it_can_be_closed(self) -> None:
        """By `aclose`, or at the end of ``async with``; then it has ended."""

        async def closes() -> list[Event]:
            async with self.plumber.events("a", after="earliest") as events:
                self.seen.append((await anext(events)).data)
            self.assertEqual(self.subscribers, 0)
            await events.aclose()
            return [event async for event in events]

        self.send(1, 2)
        self.assertEqual(self.successResultOf(self.run_coroutine(closes())), [])
        self.assertEqual(self.seen, [1])

    def test_one_that_waits_ends_when_it_is_closed(self) -> None:
        """The loop ends as if there were no more events."""
        events = self.plumber.events("a")

        async def reads() -> str:
            async for _ in events:
                pass
            return "ended"

        reading = self.run_coroutine(reads())
        self.assertNoResult(reading)
        self.run_coroutine(events.aclose())
        self.assertEqual(self.successResultOf(reading), "ended")

    def test_a_cancelled_loop_unsubscribes(self) -> None:
        """The coroutine that waits for an event may be cancelled."""
        collect_only_new_objects(self)
        reading = self.run_coroutine(self.read())
        reading.cancel()
        self.failureResultOf(reading, CancelledError)
        gc.collect()
        self.assertEqual(self.subscribers, 0)

    def test_one_that_another_thread_collects_unsubscribes_in_the_reactor(self) -> None:
        """A garbage collection may run in any thread, and the hub belongs to the reactor's."""
        calls: list[tuple[Any, ...]] = []
        self.clock.callFromThread = lambda *call: calls.append(call)  # type: ignore[attr-defined]
        waiting = [self.plumber.events("a")]
        self.settle()
        thread = threading.Thread(target=waiting.clear)
        thread.start()
        thread.join()
        self.assertEqual(self.subscribers, 1)
        ((end, *arguments),) = calls
        end(*arguments)
        self.assertEqual(self.subscribers, 0)

    def test_a_cancelled_wait_takes_no_event(self) -> None:
        """The next wait gets it."""
        events = self.plumber.events("a")
        waiting = self.run_coroutine(events.__anext__())
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.send(1)
        self.assertEqual(self.successResultOf(self.run_coroutine(events.__anext__())).data, 1)

    def test_two_cannot_wait_at_once(self) -> None:
        """An iterator has one reader."""
        events = self.plumber.events("a")
        self.run_coroutine(events.__anext__()).addErrback(lambda _: None)
        self.failureResultOf(self.run_coroutine(events.__anext__()), RuntimeError)


class BackPressureTests(EventsCase):
    """A loop that takes its time."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(callbacks, "MAX_QUEUED", 5)

    def test_it_gets_each_event_once(self) -> None:
        """However many came meanwhile: beyond a bound they are read from the history."""
        permits: list[Deferred[None]] = []

        async def slow() -> None:
            async for event in self.plumber.events("a"):
                self.seen.append(event.data)
                permit: Deferred[None] = Deferred()
                permits.append(permit)
                await permit
                if event.data == 29:
                    return

        reading = self.run_coroutine(slow())
        self.send(*range(20))
        self.assertEqual((self.seen, self.subscribers), ([0], 0))
        while permits:
            if len(self.seen) == 10:
                self.send(*range(20, 30))
            permits.pop().callback(None)
            self.settle()
        self.successResultOf(reading)
        self.assertEqual(self.seen, list(range(30)))


class StopTests(EventsCase):
    """When the plumber stops."""

    def test_a_loop_ends_with_an_error(self) -> None:
        """Not as if there were no more events."""
        reading = self.run_coroutine(self.read())
        self.plumber.stopService()
        self.settle()
        self.failureResultOf(reading, Unavailable)

    def test_the_cursor_of_the_last_event_resumes_it(self) -> None:
        """Events that were not handed over come after the next start."""
        self.send(1, 2, 3)
        event = self.successResultOf(self.run_coroutine(self.read(1, after="earliest")))
        self.plumber.stopService()
        self.settle()
        reading = self.run_coroutine(self.read(3, after=event.cursor))
        self.assertNoResult(reading)
        self.plumber.startService()
        self.settle()
        self.successResultOf(reading)
        self.assertEqual(self.seen, [1, 2, 3])


class GapTests(EventsCase):
    """Events that are beyond the retention."""

    retention = Retention(length=3)

    def test_a_gap_is_an_error_and_says_where_to_begin_anew(self) -> None:
        """No event is skipped in silence."""
        self.send(1)
        event = self.successResultOf(self.run_coroutine(self.read(1, after="earliest")))
        self.send(2, 3, 4, 5)
        missed = self.failureResultOf(
            self.run_coroutine(self.read(after=event.cursor)), EventsMissed
        ).value
        self.assertEqual((self.seen, missed.cursor), ([1], event.cursor))
        self.assertEqual(self.subscribers, 0)
        self.successResultOf(self.run_coroutine(self.read(5, after=missed.oldest)))
        self.assertEqual(self.seen, [1, 3, 4, 5])
        reading = self.run_coroutine(self.read(6, after=missed.head))
        self.send(6)
        self.successResultOf(reading)
        self.assertEqual(self.seen, [1, 3, 4, 5, 6])
