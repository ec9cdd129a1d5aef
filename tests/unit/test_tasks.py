"""The life of tasks: start, join, report, hold, cancel, sweep."""

from __future__ import annotations

from asyncplumber.core.tasks.errors import OtherInput, Superseded, TaskEnded
from asyncplumber.interfaces import Finished, Refused, StarterFailed
from asyncplumber.task import StartRequest, TaskState
from harness.tasks import TasksCase


class LifeTests(TasksCase):
    """The life of a run."""

    def test_an_answer_at_once_is_the_result(self) -> None:
        self.starter.answer = Finished("application/json", b'{"total": 7}')
        held = self.tasks.start(StartRequest("42", "sum", "application/json", b"[3,4]"), 10.0)
        outcome = self.done(held)
        self.assertEqual((outcome.task.state, outcome.joined), (TaskState.COMPLETED, False))
        self.assertEqual(outcome.task.result, b'"data":{"total": 7}')
        self.assertEqual(self.types, ["submitted", "completed"])
        self.assertEqual(self.first.subscriber.events[1].data, {"total": 7})
        row = self.done(self.tasks.get("42", "sum")).task
        self.assertEqual((row.result, row.is_announced), (outcome.task.result, True))

    def test_a_result_that_comes_later_is_heard_by_all_who_wait(self) -> None:
        request = StartRequest("42", "sum", "application/json", b"[3,4]")
        held = [self.tasks.start(request, 10.0) for _ in range(3)]
        for _ in range(20):
            self.clock.advance(0)
        self.assertEqual(len(self.starter.dispatched), 1)
        run = self.starter.dispatched[0].run
        self.assertNoResult(held[0])
        self.report(TaskState.RUNNING, b'{"done": 3}', run=run)
        self.report(TaskState.COMPLETED, b'{"total": 7}', run=run)
        outcomes = [self.successResultOf(each) for each in held]
        self.assertEqual([each.joined for each in outcomes], [False, True, True])
        self.assertEqual({each.task.result for each in outcomes}, {b'"data":{"total": 7}'})
        self.assertEqual(self.types, ["submitted", "started", "completed"])

    def test_a_wait_that_is_over_returns_a_live_task(self) -> None:
        held = self.tasks.start(StartRequest("42", "sum"), 10.0)
        for _ in range(12):
            self.clock.advance(1)
        self.assertFalse(self.successResultOf(held).task.is_done)

    def test_another_input_is_refused_while_it_is_live(self) -> None:
        self.start()
        refused = self.tasks.start(StartRequest("42", "sum", "application/json", b"[5]"))
        for _ in range(20):
            self.clock.advance(0)
        self.failureResultOf(refused, OtherInput)
        self.assertTrue(self.start(body=b"").joined)

    def test_nobody_reports_and_it_is_lost_once_and_late(self) -> None:
        run = self.start().task.run
        self.report(TaskState.RUNNING, run=run, patience=60.0)
        for _ in range(70):
            self.clock.advance(1)
        self.assertEqual(self.types, ["submitted", "started", "lost"])
        self.report(TaskState.COMPLETED, b"7", run=run)
        self.refused(TaskEnded, TaskState.FAILED, b"7", run=run)
        self.assertEqual(self.types[3:], ["completed"])
        self.assertTrue(self.last["late"])

    def test_an_old_run_is_heard_no_more(self) -> None:
        run = self.start().task.run
        self.report(TaskState.COMPLETED, b"7", run=run)
        self.start()
        self.refused(Superseded, TaskState.COMPLETED, b"8", run=run)
        self.assertEqual(self.types, ["submitted", "completed", "submitted"])

    def test_a_retried_end_is_a_duplicate_and_a_second_one_is_refused(self) -> None:
        run = self.start().task.run
        first = self.report(TaskState.COMPLETED, b"7", run=run)
        again = self.report(TaskState.COMPLETED, b"7", run=run)
        self.assertEqual(again.receipt.cursor, first.receipt.cursor)
        self.assertTrue(again.receipt.duplicate)
        self.refused(TaskEnded, TaskState.FAILED, b"8", run=run)
        self.refused(TaskEnded, TaskState.RUNNING, b"9", run=run)
        self.assertEqual(self.types, ["submitted", "completed"])

    def test_progress_is_conflated_and_the_last_one_is_kept(self) -> None:
        run = self.start().task.run
        for number in range(1000):
            self.report(TaskState.RUNNING, b"%d" % number, run=run)
            self.clock.advance(0.01)
        self.clock.advance(1)
        self.clock.advance(0)
        progress = [event.data for event in self.first.subscriber.events if event.data is not None]
        self.assertLessEqual(len(progress), 21)
        self.assertEqual(progress[-1], 999)

    def test_the_end_comes_behind_the_last_progress(self) -> None:
        run = self.start().task.run
        for number in range(3):
            self.report(TaskState.RUNNING, b"%d" % number, run=run)
        self.report(TaskState.COMPLETED, b"7", run=run)
        self.assertEqual([event.data for event in self.first.subscriber.events], [None, 0, 2, 7])

    def test_a_starter_that_fails_is_asked_again(self) -> None:
        self.starter.answer = StarterFailed("no answer")
        self.start()
        self.starter.answer = Finished("text/plain", b"ok")
        for _ in range(10):
            self.clock.advance(0.5)
        self.assertEqual(len({each.run for each in self.starter.dispatched}), 1)
        self.assertEqual(self.types, ["submitted", "completed"])

    def test_a_task_that_nobody_takes_is_lost(self) -> None:
        self.starter.answer = StarterFailed("no answer")
        self.start()
        for _ in range(620):
            self.clock.advance(1)
        self.assertEqual(self.types, ["submitted", "lost"])
        self.assertEqual(self.last["error"]["type"], "not-started")

    def test_what_is_refused_has_failed(self) -> None:
        self.starter.answer = Refused(400, "application/json", b'{"why": "no"}')
        self.start()
        error = self.done(self.tasks.get("42", "sum")).task.error
        self.assertIn(b'"refused"', error)

    def test_cancel_is_a_request_to_a_run_that_was_handed_over(self) -> None:
        run = self.start().task.run
        self.assertTrue(self.done(self.tasks.cancel("42", "sum")).is_cancel_requested)
        self.assertEqual(self.starter.canceled, [("42", "sum", run)])
        reported = self.report(TaskState.RUNNING, b"1", run=run)
        self.assertTrue(reported.task.is_cancel_requested)
        self.report(TaskState.CANCELED, run=run)
        self.assertEqual(self.types[-1], "canceled")

    def test_a_report_without_a_row_makes_one(self) -> None:
        self.report(TaskState.COMPLETED, b"7", key="nightly")
        self.report(TaskState.COMPLETED, b"8", key="nightly")
        self.assertEqual(self.types, ["completed", "completed"])
        self.assertEqual([event.data for event in self.first.subscriber.events], [7, 8])
