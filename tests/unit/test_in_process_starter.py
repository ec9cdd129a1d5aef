"""Tasks that run in this process: a value, an awaitable, LATER, progress and cancel."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.core.tasks import journal
from asyncplumber.core.tasks.errors import TaskEnded, UnknownTask
from asyncplumber.core.tasks.settings import TaskSettings
from asyncplumber.errors import BadAccount, NotFound, TooLarge, Unavailable
from asyncplumber.interfaces import Dispatch
from asyncplumber.plumber import Plumber
from asyncplumber.starters.in_process import BEAT_INTERVAL, LATER, Run
from asyncplumber.stores.memory import MemoryStore
from asyncplumber.stores.retention import Retention
from asyncplumber.task import TaskState

LIMIT = 1000  # bytes


class InProcessCase(SynchronousTestCase):
    """A plumber with a callable, on a clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.runs: list[Run] = []
        self.answer: Callable[[Run], Any] = lambda run: 7
        self.store = MemoryStore(Retention(), self.clock)
        self.plumber = Plumber(
            self.store,
            starter=self.call,
            task_settings=TaskSettings(progress_interval=0.5),
            body_limit=LIMIT,
            reactor=self.clock,
            wall=self.clock,
        )
        self.events: list[Any] = []
        self.plumber.register("42", self.events.append)
        self.plumber.startService()
        self.turns()
        self.addCleanup(self.stop)

    def stop(self) -> None:
        stopped = self.plumber.stopService()
        for _ in range(100):
            self.clock.advance(0.1)
        self.successResultOf(stopped)

    def call(self, run: Run) -> Any:
        self.runs.append(run)
        return self.answer(run)

    def turns(self, count: int = 20) -> None:
        for _ in range(count):
            self.clock.advance(0)

    def done(self, coroutine: Any) -> Any:
        result = Deferred.fromCoroutine(coroutine)
        self.turns()
        return self.successResultOf(result)

    def failed(self, error: type[Exception], coroutine: Any) -> None:
        result = Deferred.fromCoroutine(coroutine)
        self.turns()
        self.failureResultOf(result, error)

    def start(self, data: Any = None, **more: Any) -> Any:
        return self.done(self.plumber.start_task("42", "sum", data, **more))

    def find(self) -> Any:
        return self.done(self.plumber.find_task("42", "sum"))

    @property
    def types(self) -> list[str]:
        return [event.type.removeprefix("task.") for event in self.events]


class AnswerTests(InProcessCase):
    """What a callable returns."""

    def test_a_value_is_the_result(self) -> None:
        self.answer = lambda run: {"total": sum(run.data)}
        outcome = self.start([3, 4], wait=10)
        self.assertEqual((outcome.data, outcome.error), ({"total": 7}, None))
        self.assertIs(outcome.task.state, TaskState.COMPLETED)
        self.assertEqual((self.runs[0].account, self.runs[0].task), ("42", "sum"))
        self.assertEqual(self.types, ["submitted", "completed"])

    def test_text_and_bytes_and_nothing_are_results_as_well(self) -> None:
        for value in ("a text", b"\x00\xff", None):
            self.answer = lambda run, value=value: value
            self.assertEqual(self.start(wait=10).data, value)

    def test_a_deferred_that_has_fired_is_a_value(self) -> None:
        self.answer = lambda run: succeed(7)
        self.assertEqual(self.start(wait=10).data, 7)
        self.assertEqual(self.types, ["submitted", "completed"])

    def test_a_coroutine_runs_until_it_returns(self) -> None:
        gate: Deferred[None] = Deferred()

        async def work(run: Run) -> int:
            await gate
            return 7

        self.answer = work
        self.assertFalse(self.start().task.is_done)
        self.assertIs(self.find().task.state, TaskState.RUNNING)
        gate.callback(None)
        self.turns()
        self.assertEqual(self.find().data, 7)
        self.assertEqual(self.types, ["submitted", "started", "completed"])

    def test_an_exception_is_the_error(self) -> None:
        def broken(run: Run) -> Any:
            raise LookupError("there is no such month")

        async def broken_later(run: Run) -> Any:
            await Deferred.fromCoroutine(self._gate())
            raise LookupError("there is no such month")

        self.gate: Deferred[None] = Deferred()
        for answer in (
            broken,
            lambda run: fail(LookupError("there is no such month")),
            broken_later,
        ):
            self.answer = answer
            self.start()
            if not self.gate.called and answer is broken_later:
                self.gate.callback(None)
                self.turns()
            self.assertEqual(
                self.find().error, {"type": "LookupError", "message": "there is no such month"}
            )
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 3)
        self.assertEqual([each for each in self.types if each == "failed"], ["failed"] * 3)

    async def _gate(self) -> None:
        await self.gate

    def test_what_json_cannot_express_has_failed(self) -> None:
        self.answer = lambda run: {1, 2}
        self.assertEqual(self.start(wait=10).error["type"], "TypeError")
        self.flushLoggedErrors(TypeError)

    def test_a_result_at_the_limit_and_one_beyond_it(self) -> None:
        gate: Deferred[str] = Deferred()
        for size, answer in [(LIMIT, str), (LIMIT + 1, str), (LIMIT + 1, lambda text: gate)]:
            self.answer = lambda run, text="x" * size, answer=answer: answer(text)
            self.start()
            if answer is not str:
                gate.callback("x" * size)
                self.turns()
            outcome = self.find()
            if size == LIMIT:
                self.assertEqual(outcome.data, "x" * LIMIT)
            else:
                self.assertIs(outcome.task.state, TaskState.FAILED)
                self.assertEqual(outcome.error["type"], "too-large")

    def test_later_leaves_the_report_to_somebody_else(self) -> None:
        self.answer = lambda run: LATER
        self.start()
        run = self.runs[0].run
        self.done(self.plumber.report_task("42", "sum", {"total": 7}, run=run))
        self.assertEqual(self.find().data, {"total": 7})

    def test_a_starter_that_cannot_be_called(self) -> None:
        self.assertRaises(TypeError, Plumber, starter="http://example", reactor=self.clock)


class LifeTests(InProcessCase):
    """While an awaitable is not done."""

    def begin(self) -> Deferred[Any]:
        work: Deferred[Any] = Deferred()
        self.answer = lambda run: work
        self.start()
        return work

    def test_it_beats_as_long_as_it_takes(self) -> None:
        work = self.begin()
        for _ in range(100):
            self.clock.advance(BEAT_INTERVAL)
            self.turns(5)
        self.assertIs(self.find().task.state, TaskState.RUNNING)
        work.callback(7)
        self.turns()
        self.assertEqual(self.types, ["submitted", "started", "completed"])

    def test_it_reports_progress(self) -> None:
        work = self.begin()
        for number in range(100):
            self.runs[0].progress({"done": number})
            self.clock.advance(0.01)
        work.callback(7)
        self.turns()
        data = [event.data for event in self.events if event.type == "task.progress"]
        self.assertLess(len(data), 5)
        self.assertEqual(data[-1], {"done": 99})

    def test_a_loop_of_progress_leaves_one_report_under_way_and_the_newest(self) -> None:
        work = self.begin()
        starter = self.plumber.tasks._starter
        take, taken = self.plumber.tasks.report, []
        held: Deferred[None] = Deferred()

        def report(report: Any) -> Deferred[Any]:
            taken.append(report.draft.payload)
            return held.addCallback(lambda _: take(report))

        starter.report = report
        told = [self.runs[0].progress(number) for number in range(1000)]
        self.assertEqual(taken, [b'"data":0'])
        work.callback(7)
        self.assertEqual(taken, [b'"data":0', b'"data":999', b'"data":7'])
        held.callback(None)
        self.turns()
        self.assertEqual({self.successResultOf(each) for each in told}, {None})

    def test_progress_in_a_thread_is_handed_to_the_reactor_once(self) -> None:
        work = self.begin()
        handed: list[Callable[[], object]] = []
        self.clock.callFromThread = handed.append  # type: ignore[attr-defined]
        thread = Thread(target=lambda: [self.runs[0].progress(number) for number in range(1000)])
        thread.start()
        thread.join()
        self.assertEqual(len(handed), 1)
        handed[0]()
        self.turns()
        work.callback(7)
        self.turns()
        progress = [event.data for event in self.events if event.type == "task.progress"]
        self.assertEqual(progress, [999])

    def test_cancel_cancels_the_awaitable(self) -> None:
        self.begin()
        self.assertTrue(self.done(self.plumber.cancel_task("42", "sum")).is_cancel_requested)
        self.turns()
        self.assertTrue(self.runs[0].is_canceled)
        self.assertIs(self.find().task.state, TaskState.CANCELED)
        self.assertEqual(self.types, ["submitted", "started", "canceled"])
        self.failed(TaskEnded, self.plumber.cancel_task("42", "sum"))

    def test_a_run_may_complete_although_it_is_asked_to_stop(self) -> None:
        async def stubborn(run: Run) -> str:
            try:
                await Deferred()
            except CancelledError:
                return "half of it"
            return "all"

        self.answer = stubborn
        self.start()
        self.done(self.plumber.cancel_task("42", "sum"))
        self.turns()
        self.assertEqual(self.find().data, "half of it")

    def test_its_end_is_reported_until_it_is_taken(self) -> None:
        work = self.begin()
        take = self.plumber.tasks.report
        answers: list[Exception] = [Unavailable(), Unavailable()]
        starter = self.plumber.tasks._starter
        starter.report = lambda report: fail(answers.pop()) if answers else take(report)
        work.callback(7)
        for _ in range(30):
            self.clock.advance(0.1)
        self.assertEqual(self.find().data, 7)

    def test_a_result_that_the_store_does_not_take_has_failed(self) -> None:
        work = self.begin()
        take = self.plumber.tasks.report
        answers: list[Exception] = [TooLarge("a document has at most 16 MiB")]
        starter = self.plumber.tasks._starter
        starter.report = lambda report: fail(answers.pop()) if answers else take(report)
        work.callback("x" * 500)
        self.turns()
        error = {"type": "too-large", "message": "a document has at most 16 MiB", "size": 502}
        self.assertEqual(self.find().error, error)

    def test_a_run_that_is_dispatched_again_is_not_called_again(self) -> None:
        self.begin()
        starter = self.plumber.tasks._starter
        run = self.runs[0]
        again = starter.start(Dispatch("42", "sum", run.run, "", b""))
        self.assertIs(self.successResultOf(again), LATER)
        self.assertEqual(len(self.runs), 1)

    def test_a_cancel_at_another_instance_is_heard_with_the_next_beat(self) -> None:
        self.begin()
        row = self.find().task
        self.store.tasks.change(row, {"is_cancel_requested": True})
        self.clock.advance(BEAT_INTERVAL)
        self.turns()
        self.assertIs(self.find().task.state, TaskState.CANCELED)


class ApplicationTests(InProcessCase):
    """What an application calls in its own process."""

    def test_an_unknown_task(self) -> None:
        self.failed(UnknownTask, self.plumber.find_task("42", "none"))
        self.failed(UnknownTask, self.plumber.cancel_task("42", "none"))

    def test_names_are_checked(self) -> None:
        self.failed(BadAccount, self.plumber.start_task("", "sum"))
        self.failed(TypeError, self.plumber.start_task("42", 1.5))  # type: ignore[arg-type]
        self.failed(ValueError, self.plumber.report_task("42", "sum", state="lost"))

    def test_a_report_of_the_application_itself(self) -> None:
        report = self.plumber.report_task
        self.done(report("42", "nightly", state="started", deadline=60))
        self.done(report("42", "nightly", {"done": 1}, state="running"))
        self.done(report("42", "nightly", {"rows": 9}))
        self.assertEqual(self.done(self.plumber.find_task("42", "nightly")).data, {"rows": 9})
        self.assertEqual(self.types, ["started", "progress", "completed"])

    def test_a_young_result_is_used_again(self) -> None:
        self.assertFalse(self.start(wait=10).joined)
        self.clock.advance(30)
        again = self.start(wait=10, max_age=60)
        self.assertEqual((again.joined, round(again.age), again.data), (True, 30, 7))
        self.assertEqual(len(self.runs), 1)
        self.clock.advance(31)
        self.assertFalse(self.start(wait=10, max_age=60).joined)

    def test_a_large_result_is_used_again_as_well(self) -> None:
        self.patch(journal, "MAX_ROW_RESULT_BYTES", 10)
        self.answer = lambda run: "x" * 100
        self.start()
        again = self.start(wait=10, max_age=60)
        self.assertEqual((again.joined, again.data), (True, "x" * 100))
        self.assertIsNone(self.successResultOf(self.plumber.tasks.get("42", "sum")).task.result)

    def test_without_a_starter_tasks_are_only_reported(self) -> None:
        plumber = Plumber(reactor=self.clock, wall=self.clock)
        self.assertFalse(plumber.tasks.can_start)
        result = Deferred.fromCoroutine(plumber.start_task("42", "sum"))
        self.assertEqual(self.failureResultOf(result).value.status, NotFound.status)
