"""Tasks as their programs report them, with a sender in memory."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.client import Outbox, Refused, TaskCanceled, Undelivered, current_task
from asyncplumber.client.request import Request
from asyncplumber.client.response import Noted

LOG = "asyncplumber.client"
LONG = 30.0  # seconds that a thread may take on a busy machine
OK = Noted("r1", "running", False)
CANCEL = Noted("r1", "running", True)


class FakeSender:
    """Answers as it is told: an answer, or an exception; `OK` when there is nothing left."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answers: list[Any] = []
        self.is_open = threading.Event()
        self.is_open.set()
        self.heard: Any = lambda number: None

    def exchange(self, request: Request, understand: Any, deadline: float | None = None) -> Any:
        self.is_open.wait(LONG)
        self.requests.append(request)
        self.heard(len(self.requests))
        answer = self.answers.pop(0) if self.answers else OK
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Nothing is open."""


def noting(cancel: Callable[[], None], threads: set[int]) -> Callable[[], None]:
    """Return the same function, which notes the threads that call it."""

    def noted() -> None:
        threads.add(threading.get_ident())
        cancel()

    return noted


class TaskTestCase(SynchronousTestCase):
    """An outbox whose sender is in memory."""

    def setUp(self) -> None:
        self.sender = FakeSender()
        self.plumber = Outbox("http://127.0.0.1:1", sender_factory=lambda *_, **__: self.sender)
        self.addCleanup(self.plumber.close, 0.0)
        self.addCleanup(self.sender.is_open.set)

    def said(self) -> list[tuple[str, Any]]:
        """Return state and body of each report."""
        self.assertTrue(self.plumber.flush(LONG))
        return [
            (request.headers["Task-State"], json.loads(request.body) if request.body else None)
            for request in self.sender.requests
        ]


class BlockTests(TaskTestCase):
    """``with plumber.task(account, key) as task``."""

    def test_a_block_has_a_beginning_and_an_end(self) -> None:
        """Its progress is between, and its result is what was set."""
        with self.plumber.task("42", "invoice-7") as task:
            self.plumber.flush()  # otherwise only the newest progress is sent
            task.progress({"done": 1})
            self.plumber.flush()
            task.progress({"done": 2})
            task.result = {"total": 7}
        self.assertEqual(
            self.said(),
            [
                ("started", None),
                ("running", {"done": 1}),
                ("running", {"done": 2}),
                ("completed", {"total": 7}),
            ],
        )
        first, *later = self.sender.requests
        self.assertEqual((first.path, first.headers["Task"]), ("/hooks/42", "invoice-7"))
        self.assertEqual(first.headers["Task-Deadline"], "60")
        self.assertNotIn("Task-Run", first.headers)
        self.assertEqual({request.headers["Task-Run"] for request in later}, {"r1"})
        self.assertEqual(task.run, "r1")

    def test_a_run_that_somebody_else_started(self) -> None:
        """Its id is in each report."""
        with self.plumber.task("42", "t", run="mine"):
            pass
        self.said()
        self.assertEqual([r.headers["Task-Run"] for r in self.sender.requests], ["mine"] * 2)

    def test_names_of_any_language(self) -> None:
        """A key goes out in UTF-8; ``http.client`` encodes headers in latin-1."""
        self.plumber.task("42", "Müller 7").complete()
        self.said()
        sent = self.sender.requests[0].headers["Task"].encode("latin-1")
        self.assertEqual(sent.decode(), "Müller 7")

    def test_an_exception_is_a_failure_and_goes_on(self) -> None:
        """With its type and message, and without the code that raised it."""
        with self.assertRaises(ValueError), self.plumber.task("42", "t"):
            raise ValueError("no such thing")
        self.assertEqual(
            self.said()[-1], ("failed", {"type": "ValueError", "message": "no such thing"})
        )

    def test_a_traceback_if_it_is_asked_for(self) -> None:
        """It shows the code."""
        with self.assertRaises(ValueError), self.plumber.task("42", "t", tracebacks=True):
            raise ValueError("no such thing")
        self.assertIn("raise ValueError", self.said()[-1][1]["traceback"])

    def test_a_program_that_ends_as_it_should(self) -> None:
        """``sys.exit(0)`` is no failure, ``sys.exit(3)`` is one."""
        for status, state in ((0, "completed"), (None, "completed"), (3, "failed")):
            with self.assertRaises(SystemExit), self.plumber.task("42", "t"):
                raise SystemExit(status)
            self.assertEqual(self.said()[-1][0], state)

    def test_a_program_that_is_stopped(self) -> None:
        """It is canceled, by the key, by asyncio and by Twisted."""
        for error in (KeyboardInterrupt(), asyncio.CancelledError(), CancelledError()):
            with self.assertRaises(type(error)), self.plumber.task("42", "t"):
                raise error
            state, body = self.said()[-1]
            self.assertEqual((state, body["type"]), ("canceled", type(error).__name__))

    def test_what_cannot_be_sent(self) -> None:
        """A progress is lost, a result is sent as its repr; the program does not hear of it."""
        with self.assertLogs(LOG), self.plumber.task("42", "t") as task:
            task.progress(object())
            task.result = {1, 2}
        self.assertEqual(self.said(), [("started", None), ("completed", {"repr": "{1, 2}"})])
        self.assertEqual(self.plumber.dropped, 1)

    def test_a_task_without_a_name(self) -> None:
        """The block runs, and nothing is sent."""
        ran = []
        with self.assertLogs(LOG):
            for account, key in ((None, "t"), ("42", None), ("42", ""), ("42", "a\nb")):
                with self.plumber.task(account, key) as task:
                    task.progress(1)
                    ran.append(key)
        self.assertEqual((self.said(), len(ran), self.plumber.dropped), ([], 4, 4))

    def test_the_task_of_the_code_that_runs(self) -> None:
        """The innermost one."""
        self.assertIsNone(current_task())
        with self.plumber.task("42", "a") as outer:
            with self.plumber.task("42", "b") as inner:
                self.assertIs(current_task(), inner)
            self.assertIs(current_task(), outer)
        self.assertIsNone(current_task())

    def test_a_loop_that_reports_without_end(self) -> None:
        """There are at most ten reports in a second, and the last one is sent in any case."""
        sent = threading.Event()
        self.sender.heard = lambda number: number == 3 and sent.set()
        with self.plumber.task("42", "t") as task:
            for number in range(5000):
                task.progress(number)
            self.assertTrue(sent.wait(LONG))
            task.progress("last")
        self.plumber.flush(LONG)
        bodies = [request.body for request in self.sender.requests]
        self.assertLess(len(bodies), 100)
        self.assertEqual(bodies[-2], b"last")

    def test_a_plumber_that_is_away(self) -> None:
        """The block does not wait; one progress waits, the newest, and order holds."""
        self.sender.is_open.clear()
        with self.plumber.task("42", "t") as task:
            for number in range(1000):
                task.progress(number)
            task.result = "done"
        self.sender.is_open.set()
        self.assertTrue(self.plumber.flush(LONG))
        states = [request.headers["Task-State"] for request in self.sender.requests]
        bodies = [request.body for request in self.sender.requests]
        self.assertEqual(states, ["started", "running", "completed"])
        self.assertEqual(bodies, [b"", b"999", b"done"])

    def test_a_plumber_that_has_no_answer(self) -> None:
        """What the block does is not changed."""
        self.sender.answers = [Undelivered("x", 1, "nobody there")] * 3
        with self.assertLogs(LOG, "ERROR"), self.plumber.task("42", "t") as task:
            task.result = 1
            self.plumber.flush(LONG)
        with self.assertLogs(LOG, "ERROR"):
            self.said()
        self.assertEqual(self.plumber.dropped, 2)


class AnswerTests(TaskTestCase):
    """What the plumber answers to reports."""

    def test_cancel(self) -> None:
        """The flag is up after the report whose answer says so; ``raise_on_cancel`` raises."""
        self.sender.answers = [OK, CANCEL]
        passed = []
        with self.plumber.task("42", "t") as task:
            self.plumber.flush()
            self.assertFalse(task.canceled)
            task.progress(1, raise_on_cancel=True)
            self.plumber.flush()
            self.assertTrue(task.canceled)
            passed.append(1)
            try:
                task.progress(2, raise_on_cancel=True)
            except Exception:
                self.fail("`except Exception` must not catch it")
            passed.append(2)
        self.assertEqual(passed, [1])
        self.assertEqual(self.said()[-1][0], "canceled")

    def test_a_task_may_complete_although_it_was_to_stop(self) -> None:
        """The wish binds nobody."""
        self.sender.answers = [CANCEL]
        with self.plumber.task("42", "t") as task:
            task.result = 1
        self.assertEqual(self.said()[-1], ("completed", 1))

    def test_somebody_is_called(self) -> None:
        """Once."""
        heard = []
        self.sender.answers = [CANCEL, CANCEL, CANCEL]
        task = self.plumber.task("42", "t")
        task.on_cancel = lambda: heard.append(task)
        task.start(beats=False)
        task.beat()
        task.complete()
        self.said()
        self.assertEqual(heard, [task])

    def test_a_run_that_has_ended_or_is_not_the_newest(self) -> None:
        """It reports no further progress, but its end: a lost run may still end."""
        for code in ("ended", "superseded"):
            self.sender.requests.clear()
            self.sender.answers = [OK, Refused(409, code, "no")]
            with self.assertLogs(LOG, "INFO"), self.plumber.task("42", "t") as task:
                self.plumber.flush()
                for number in range(3):
                    task.progress(number)
                    self.plumber.flush()
            self.assertEqual(
                [state for state, _ in self.said()], ["started", "running", "completed"]
            )
            self.assertFalse(task.canceled)
        self.assertEqual(self.plumber.dropped, 0)

    def test_a_run_that_somebody_canceled(self) -> None:
        """It is to stop."""
        self.sender.answers = [OK, Refused(409, "ended", "no", {"state": "canceled"})]
        with self.plumber.task("42", "t") as task:
            task.progress(1)
            self.plumber.flush()
            self.assertTrue(task.canceled)

    def test_a_result_that_is_too_large(self) -> None:
        """The run has failed, and says so."""
        self.sender.answers = [OK, Refused(413, "too-large", "")]
        with self.assertLogs(LOG, "ERROR"):
            with self.plumber.task("42", "t") as task:
                task.result = "x" * 5000
            self.plumber.flush(LONG)
        last = self.sender.requests[-1]
        error = json.loads(last.body)
        self.assertEqual(
            (last.headers["Task-State"], error["type"], error["size"]),
            ("failed", "too-large", 5000),
        )

    def test_an_end_can_be_waited_for(self) -> None:
        """Until the plumber has it."""
        task = self.plumber.task("42", "t").start(beats=False)
        self.assertTrue(task.complete(7, wait=LONG))
        self.assertEqual(len(self.sender.requests), 2)

    def test_a_run_ends_once(self) -> None:
        """The first end counts."""
        with self.plumber.task("42", "t") as task:
            task.fail({"type": "bad", "message": "no"})
            task.progress(1)
            task.result = 1
        self.assertEqual([state for state, _ in self.said()], ["started", "failed"])


class BeatTests(TaskTestCase):
    """The reports that a run goes on."""

    def test_a_thread_beats(self) -> None:
        """While the block runs, and not after it."""
        beaten = threading.Event()
        self.sender.heard = lambda number: number == 4 and beaten.set()
        with self.plumber.task("42", "t", beat_interval=0.01) as task:
            self.assertTrue(beaten.wait(LONG))
            task.result = 1
        said = self.said()
        self.assertEqual([state for state, _ in said[:4]], ["started"] + ["running"] * 3)
        self.assertEqual(said[-1], ("completed", 1))
        self.assertIsNone(self.plumber._thread._schedule.next())

    def test_a_loop_of_asyncio_beats(self) -> None:
        """From the loop, so that a loop that hangs is seen."""

        async def work() -> None:
            async with self.plumber.task("42", "t", beat_interval=0.001) as task:
                loop = asyncio.get_running_loop()
                end = loop.time() + LONG
                while len(self.sender.requests) < 3 and loop.time() < end:
                    await asyncio.sleep(0.001)
                task.result = "done"

        asyncio.run(work())
        self.plumber.flush(LONG)
        states = [request.headers["Task-State"] for request in self.sender.requests]
        self.assertEqual(states[:3], ["started", "running", "running"])
        self.assertEqual(states[-1], "completed")

    def test_a_clock_of_twisted_beats(self) -> None:
        """By a `LoopingCall`."""
        clock = Clock()
        waiting: Deferred[str] = Deferred()

        async def work() -> None:
            async with self.plumber.task("42", "t", clock=clock) as task:
                task.result = await waiting

        done = Deferred.fromCoroutine(work())
        for seconds in (19.0, 1.0, 20.0):
            clock.advance(seconds)
            self.plumber.flush(LONG)
        waiting.callback("done")
        self.successResultOf(done)
        self.plumber.flush(LONG)
        states = [request.headers["Task-State"] for request in self.sender.requests]
        self.assertEqual(states, ["started", "running", "running", "completed"])
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_the_thread_that_sends_touches_no_timer_of_the_reactor(self) -> None:
        """It hears that the run has ended; the reactor takes the timer away."""
        for seconds in (0.0, 20.0):  # the end comes before the next beat is due, or after it
            clock = Clock()
            threads: set[int] = set()
            task = self.plumber.task("42", "t", clock=clock)
            with task:
                self.plumber.flush(LONG)
                (call,) = clock.getDelayedCalls()
                self.patch(call, "cancel", noting(call.cancel, threads))
                self.sender.answers = [Refused(409, "ended", "it has ended")]
                task.progress(1)
                self.plumber.flush(LONG)
                self.assertIsNotNone(task.conflict)
                sent = len(self.sender.requests)
                clock.advance(seconds)
                self.plumber.flush(LONG)
                self.assertEqual(len(self.sender.requests), sent)
            self.assertEqual(clock.getDelayedCalls(), [])
            self.assertLessEqual(threads, {threading.get_ident()})

    def test_a_beat_waits_only_if_nothing_else_does(self) -> None:
        """A plumber that was away is not flooded."""
        self.sender.is_open.clear()
        task = self.plumber.task("42", "t").start(beats=False)
        for _ in range(100):
            task.beat()
        task.progress(1)
        task.complete()
        self.sender.is_open.set()
        self.assertEqual([state for state, _ in self.said()], ["started", "running", "completed"])


class DecoratorTests(TaskTestCase):
    """``@plumber.task(account, key)``."""

    def test_what_it_returns_is_the_result(self) -> None:
        """Each call is a run."""

        @self.plumber.task("42", "sum")
        def add(x: int, y: int) -> int:
            """Add."""
            self.assertEqual(current_task().key, "sum")
            return x + y

        self.assertEqual((add(1, 2), add(3, y=4), add.__doc__), (3, 7, "Add."))
        self.assertEqual([body for state, body in self.said() if state == "completed"], [3, 7])

    def test_the_arguments_say_which_task_it_is(self) -> None:
        """By functions of them."""

        @self.plumber.task(lambda user, **_: user, lambda user, order: f"order-{order}")
        def work(user: int, order: int) -> None: ...

        work(42, order=7)
        self.said()
        self.assertEqual(
            {(r.path, r.headers["Task"]) for r in self.sender.requests}, {("/hooks/42", "order-7")}
        )

    def test_arguments_that_say_nothing(self) -> None:
        """The function runs."""

        @self.plumber.task("42", lambda nothing: nothing.name)
        def work(nothing: object) -> int:
            return 7

        with self.assertLogs(LOG):
            self.assertEqual(work(None), 7)
        self.assertEqual(self.said(), [])

    def test_a_coroutine_function(self) -> None:
        """It stays one."""

        @self.plumber.task("42", "t")
        async def work() -> int:
            await asyncio.sleep(0)
            return 7

        self.assertEqual(asyncio.run(work()), 7)
        self.assertEqual(self.said(), [("started", None), ("completed", 7)])

    def test_a_function_that_returns_a_deferred(self) -> None:
        """The run goes on until that has a result."""
        clock = Clock()
        results: list[Deferred[int]] = []

        @self.plumber.task("42", "t", clock=clock)
        def work() -> Deferred[int]:
            results.append(Deferred())
            return results[-1]

        first, second = work(), work()
        clock.advance(20.0)
        self.assertNotIn("completed", [state for state, _ in self.said()])
        results[0].callback(7)
        results[1].errback(ValueError("no"))
        self.assertEqual(self.successResultOf(first), 7)
        self.failureResultOf(second, ValueError)
        self.assertEqual([state for state, _ in self.said()][-2:], ["completed", "failed"])
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_a_canceled_call_returns_none(self) -> None:
        """As a block that is left."""

        @self.plumber.task("42", "t")
        def work() -> int:
            raise TaskCanceled

        self.assertIsNone(work())
        self.assertEqual(self.said()[-1][0], "canceled")
