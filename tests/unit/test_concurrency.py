"""Waiters, single flights, periodic tasks and semaphores, with no reactor running."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.concurrency import PeriodicTask, Semaphore, SingleFlight, Waiters
from asyncplumber.errors import Unavailable


class WaitersTests(SynchronousTestCase):
    """Deferreds that are released together."""

    def test_release_fires_all_waiters(self) -> None:
        """Each one, once."""
        waiters = Waiters()
        first, second = waiters.wait(), waiters.wait()
        waiters.release()
        waiters.release()
        self.assertIsNone(self.successResultOf(first))
        self.assertIsNone(self.successResultOf(second))
        self.assertEqual(len(waiters), 0)

    def test_fail_fails_all_waiters(self) -> None:
        """With the same error."""
        waiters = Waiters()
        waiting = [waiters.wait(), waiters.wait()]
        waiters.fail(Unavailable())
        for waiter in waiting:
            self.failureResultOf(waiter, Unavailable)

    def test_waiting_again_inside_a_release_waits_for_the_next_one(self) -> None:
        """A waiter that waits again in its callback does not keep the release busy for ever."""
        waiters = Waiters()
        again: list[Deferred[None]] = []
        waiters.wait().addCallback(lambda _: again.append(waiters.wait()))
        waiters.release()
        self.assertNoResult(again[0])
        waiters.release()
        self.assertIsNone(self.successResultOf(again[0]))

    def test_a_cancelled_waiter_is_forgotten(self) -> None:
        """It holds no memory, and it is not fired a second time."""
        waiters = Waiters()
        gone, stays = waiters.wait(), waiters.wait()
        gone.addErrback(lambda failure: None)
        gone.cancel()
        self.assertEqual(len(waiters), 1)
        waiters.release()
        self.assertIsNone(self.successResultOf(stays))

    def test_thousands_can_be_cancelled(self) -> None:
        """In any order, and none is left."""
        waiters = Waiters()
        waiting = [waiters.wait().addErrback(lambda failure: None) for _ in range(2000)]
        for waiter in reversed(waiting):
            waiter.cancel()
        self.assertEqual(len(waiters), 0)

    def test_one_waiter_may_cancel_another_during_a_release(self) -> None:
        """The one that was cancelled is left out."""
        waiters = Waiters()
        first, second = waiters.wait(), waiters.wait()
        ended: list[str] = []
        first.addCallback(lambda _: second.cancel())
        second.addCallbacks(lambda _: ended.append("fired"), lambda _: ended.append("cancelled"))
        waiters.release()
        self.assertEqual(ended, ["cancelled"])


class SingleFlightTests(SynchronousTestCase):
    """One run at a time; requests meanwhile are one more run."""

    def setUp(self) -> None:
        self.runs: list[Deferred[None]] = []
        self.flight = SingleFlight(self.work)

    async def work(self) -> None:
        """A run that ends when the test says so."""
        self.runs.append(Deferred())
        await self.runs[-1]

    def test_a_request_during_a_run_leads_to_one_more_run(self) -> None:
        """The run under way may have looked before there was something to see."""
        first = self.flight.run()
        others = [self.flight.run() for _ in range(3)]
        self.assertEqual(len(self.runs), 1)
        self.runs[0].callback(None)
        self.successResultOf(first)
        for other in others:
            self.assertNoResult(other)
        self.assertEqual(len(self.runs), 2)
        self.runs[1].callback(None)
        for other in others:
            self.successResultOf(other)
        self.assertFalse(self.flight.is_running)

    def test_a_failure_reaches_the_waiters_of_that_run_only(self) -> None:
        """The next run is another try."""
        first, second = self.flight.run(), self.flight.run()
        self.runs[0].errback(Unavailable())
        self.failureResultOf(first, Unavailable)
        self.runs[1].callback(None)
        self.successResultOf(second)

    def test_a_failure_that_nobody_waits_for_is_logged(self) -> None:
        """It is not lost."""
        self.flight.request()
        self.runs[0].errback(ZeroDivisionError())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_an_expected_failure_that_nobody_waits_for_is_a_warning(self) -> None:
        """It says what was being done, and why it failed; there is no traceback."""
        flight = SingleFlight(self.work, "a look at the weather")
        with capturedLogs() as events:
            flight.request()
            self.runs[0].errback(Unavailable("it is foggy"))
        self.assertEqual(
            [formatEvent(event) for event in events],
            ["a look at the weather failed: it is foggy"],
        )

    def test_runs_that_end_at_once_need_no_stack(self) -> None:
        """Ten thousand runs, each asked for in the one before it."""
        left = [10_000]

        async def work() -> None:
            left[0] -= 1
            if left[0]:
                flight.request()

        flight = SingleFlight(work)
        self.successResultOf(flight.run())
        self.assertEqual(left, [0])

    def test_asking_in_answer_to_the_end_begins_another_run(self) -> None:
        """A callback of the first run may want a second one."""
        ended: list[int] = []

        def again(_: None) -> None:
            ended.append(1)
            self.flight.run().addCallback(lambda _: ended.append(2))

        self.flight.run().addCallback(again)
        self.runs[0].callback(None)
        self.assertEqual(len(self.runs), 2)
        self.runs[1].callback(None)
        self.assertEqual(ended, [1, 2])


class PeriodicTaskTests(SynchronousTestCase):
    """A repeated job that survives its failures."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.count = 0

    def task(self, work: Callable[[], None], now: bool = False) -> PeriodicTask:
        """A task of two seconds that counts its runs."""

        async def counted() -> None:
            self.count += 1
            work()

        task = PeriodicTask(counted, 2.0, self.clock, now=now)
        task.start()
        self.addCleanup(task.stop)
        return task

    def test_it_is_repeated_until_it_is_stopped(self) -> None:
        """The first run is one interval after the start."""
        task = self.task(lambda: None)
        self.assertEqual(self.count, 0)
        self.clock.pump([2, 2])
        self.assertEqual(self.count, 2)
        task.stop()
        task.stop()
        self.clock.pump([2, 2])
        self.assertEqual(self.count, 2)

    def test_now_begins_at_once(self) -> None:
        """For a job that is due when the service starts."""
        self.task(lambda: None, now=True)
        self.assertEqual(self.count, 1)

    def test_a_failure_does_not_end_it(self) -> None:
        """An expected one is a warning; an unexpected one is logged with its traceback."""

        def fail() -> None:
            if self.count == 1:
                raise Unavailable
            raise ZeroDivisionError

        self.task(fail)
        self.clock.pump([2, 2, 2])
        self.assertEqual(self.count, 3)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_the_job_may_be_a_plain_function(self) -> None:
        """A job with nothing to await."""
        seen: list[float] = []
        task = PeriodicTask(lambda: seen.append(self.clock.seconds()), 1.0, self.clock)
        task.start()
        self.clock.pump([1, 1])
        task.stop()
        self.assertEqual(seen, [1.0, 2.0])

    def test_a_long_run_is_not_doubled(self) -> None:
        """The next one begins when it has ended."""
        running: list[Deferred[None]] = []

        async def work() -> None:
            running.append(Deferred())
            await running[-1]

        task = PeriodicTask(work, 1.0, self.clock)
        task.start()
        self.clock.pump([1, 1, 1])
        self.assertEqual(len(running), 1)
        running[0].callback(None)
        self.clock.pump([1])
        self.assertEqual(len(running), 2)
        task.stop()
        running[1].callback(None)

    def test_started_again_during_a_run_it_goes_on_once(self) -> None:
        """The first run after the start waits for that run, and a stop ends all of it."""
        seen: list[float] = []
        first: Deferred[None] = Deferred()

        async def work() -> None:
            seen.append(self.clock.seconds())
            if len(seen) == 1:
                await first

        task = PeriodicTask(work, 1.0, self.clock, now=True)
        task.start()
        task.stop()
        task.start()
        self.assertEqual(seen, [0.0])
        self.clock.advance(0.5)
        first.callback(None)
        self.assertEqual(seen, [0.0, 0.5])
        self.clock.pump([0.5, 1])
        self.assertEqual(seen, [0.0, 0.5, 1.0, 2.0])
        task.stop()
        self.clock.pump([1, 1])
        self.assertEqual((len(seen), self.clock.getDelayedCalls()), (4, []))

    def test_a_run_that_waits_when_it_is_stopped_never_begins(self) -> None:
        """The job may need what is closed by then."""
        running: list[Deferred[None]] = []

        async def work() -> None:
            running.append(Deferred())
            await running[-1]

        task = PeriodicTask(work, 1.0, self.clock, now=True)
        for _ in range(2):
            task.start()
            task.stop()
        running[0].callback(None)
        self.assertEqual(len(running), 1)


class SemaphoreTests(SynchronousTestCase):
    """Tokens, and callers that wait for one."""

    def test_waiters_are_served_in_their_order(self) -> None:
        """One token that is given back resumes one waiter."""
        semaphore = Semaphore(2)
        self.successResultOf(semaphore.acquire())
        self.successResultOf(semaphore.acquire())
        waiters = [semaphore.acquire() for _ in range(3)]
        semaphore.release()
        self.successResultOf(waiters[0])
        self.assertNoResult(waiters[1])
        semaphore.release()
        semaphore.release()
        self.successResultOf(waiters[2])
        self.assertEqual(semaphore.tokens, 0)

    def test_waiters_that_release_at_once_do_not_nest(self) -> None:
        """Ten thousand of them, far more than the stack is deep, leave every token where it was."""
        semaphore = Semaphore(1)
        semaphore.acquire()
        for _ in range(10_000):
            semaphore.acquire().addCallback(lambda _: semaphore.release())
        semaphore.release()
        self.assertEqual(semaphore.tokens, 1)

    def test_a_waiter_that_raises_does_not_disturb_the_others(self) -> None:
        """What is raised stays in that waiter's Deferred."""
        semaphore = Semaphore(1)
        semaphore.acquire()
        broken = semaphore.acquire().addCallback(lambda _: 1 // 0)
        after: Deferred[None] = semaphore.acquire()
        semaphore.release()
        self.failureResultOf(broken, ZeroDivisionError)
        semaphore.release()
        self.successResultOf(after)

    def test_a_cancelled_waiter_takes_no_token(self) -> None:
        """The token goes to the next one."""
        semaphore = Semaphore(1)
        semaphore.acquire()
        cancelled, after = semaphore.acquire(), semaphore.acquire()
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        semaphore.release()
        self.successResultOf(after)
        semaphore.release()
        self.assertEqual(semaphore.tokens, 1)
