"""Each rule by which reports are taken, at one instance."""

from __future__ import annotations

import json

from twisted.internet.defer import Deferred

from asyncplumber.core.tasks.errors import ResultGone, Superseded, TaskEnded
from asyncplumber.core.tasks.reports import RETRY
from asyncplumber.core.tasks.settings import TaskSettings
from asyncplumber.errors import InsufficientScope, TooLarge, Unavailable
from asyncplumber.event import Cursor
from asyncplumber.grant import Accounts, Grant
from asyncplumber.task import (
    FORMER_RUNS,
    MAX_PROGRESS_BYTES,
    MAX_ROW_RESULT_BYTES,
    NEVER,
    PATIENCE,
    PROGRESS_INTERVAL,
    START_DEADLINE,
    TaskState,
)
from harness.tasks import ACCOUNT, KEY, TasksCase, report_of

SUBMITTED, RUNNING = TaskState.SUBMITTED, TaskState.RUNNING
COMPLETED, FAILED, CANCELED = TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELED
LOST = TaskState.LOST


class NoRowTests(TasksCase):
    """(a) A task that nobody knows."""

    def test_a_beginning_makes_a_row_with_the_run_that_is_given(self) -> None:
        reported = self.report(RUNNING, b'{"page": 1}', run="r1", begins=True)
        self.assertEqual((reported.task.run, reported.task.state), ("r1", RUNNING))
        self.assertEqual(self.types, ["started"])
        self.assertEqual(self.first.subscriber.events[0].data, {"page": 1})
        self.assertEqual(self.row().deadline, self.clock.seconds() + PATIENCE)

    def test_one_that_is_submitted_has_the_deadline_of_a_start(self) -> None:
        self.assertIs(self.report(SUBMITTED, begins=True).task.state, SUBMITTED)
        self.assertEqual(self.row().deadline, self.clock.seconds() + START_DEADLINE)
        self.assertEqual(self.types, ["submitted"])

    def test_an_end_is_all_that_is_ever_reported(self) -> None:
        for number in (1, 2):
            reported = self.report(COMPLETED, b"%d" % number)
            self.assertFalse(reported.receipt is None or reported.receipt.duplicate)
        self.assertEqual(self.types, ["completed", "completed"])
        first, second = [event.task for event in self.first.subscriber.events]
        assert first is not None
        assert second is not None
        self.assertNotEqual(first["run"], second["run"])
        self.assertEqual(self.row().former, (first["run"],))

    def test_its_deadline_is_what_the_report_says(self) -> None:
        self.report(RUNNING, patience=60.0)
        row = self.row()
        self.assertEqual((row.patience, row.deadline), (60.0, self.clock.seconds() + 60))
        self.report(RUNNING, key="for ever", patience=NEVER)
        self.assertIsNone(self.row("for ever").deadline)


class OtherRunTests(TasksCase):
    """(b) The report names another run than the row."""

    def test_while_a_run_is_live_no_other_one_is_heard(self) -> None:
        run = self.start().task.run
        for state in (SUBMITTED, RUNNING, COMPLETED, FAILED, CANCELED):
            error = self.refused(Superseded, state, b"1", run="other")
            self.assertEqual(error.task.run, run)
        self.assertEqual(self.types, ["submitted"])

    def test_a_former_run_is_superseded_for_as_long_as_it_is_remembered(self) -> None:
        for number in range(FORMER_RUNS + 2):
            self.report(COMPLETED, b"1", run=f"r{number}")
        for number in range(1, FORMER_RUNS + 1):
            self.refused(Superseded, COMPLETED, b"2", run=f"r{number}")
        self.report(COMPLETED, b"2", run="r0")  # nobody knows it any more

    def test_an_unknown_run_begins_after_the_end_of_the_row(self) -> None:
        self.report(COMPLETED, b"1", run="r1")
        self.report(RUNNING, b"2", run="r2")
        self.assertEqual(self.types, ["completed", "started"])
        self.assertEqual((self.row().run, self.row().former), ("r2", ("r1",)))


class NoRunTests(TasksCase):
    """(c) The report names no run, and the run of the row has ended."""

    def setUp(self) -> None:
        super().setUp()
        self.report(COMPLETED, b"1", run="r1", id="end-1")

    def test_a_word_that_begins_begins_a_run(self) -> None:
        for state in (SUBMITTED, RUNNING):
            reported = self.report(state, begins=True)
            self.assertNotIn(reported.task.run, ("", "r1"))
            self.report(COMPLETED, b"2")
        self.assertEqual(
            self.types, ["completed", "submitted", "completed", "started", "completed"]
        )

    def test_a_word_that_goes_on_is_refused(self) -> None:
        for body in (b"", b"1"):
            error = self.refused(TaskEnded, RUNNING, body)
            self.assertIs(error.task.state, COMPLETED)
        self.assertEqual(self.types, ["completed"])

    def test_the_same_end_is_a_duplicate(self) -> None:
        again = self.report(COMPLETED, b"1", id="end-1").receipt
        assert again is not None
        self.assertTrue(again.duplicate)
        self.assertEqual(Cursor.parse(again.cursor), self.first.subscriber.events[0].cursor)

    def test_another_end_is_that_of_a_new_run(self) -> None:
        self.report(FAILED, b"2", id="end-2")
        self.assertEqual(self.types, ["completed", "failed"])
        self.assertNotEqual(self.row().run, "r1")

    def test_the_end_of_a_lost_run_is_late(self) -> None:
        self.report(RUNNING, begins=True, patience=5.0)
        self.wait(11)
        self.assertIs(self.row().state, LOST)
        self.report(COMPLETED, b"2")
        self.assertEqual(self.types[-2:], ["lost", "completed"])
        self.assertTrue(self.last["late"])


class EndedTests(TasksCase):
    """(d) The report names the run of the row, which has ended."""

    def test_the_same_state_is_a_duplicate_with_the_first_cursor(self) -> None:
        for state in (COMPLETED, FAILED, CANCELED):
            run = f"run-{state.value}"
            first = self.report(state, b"1", run=run).receipt
            again = self.report(state, b"2", run=run).receipt
            assert first is not None
            assert again is not None
            self.assertEqual((again.cursor, again.duplicate), (first.cursor, True))
        self.assertEqual(len(self.types), 3)

    def test_any_other_is_refused_with_the_row(self) -> None:
        self.report(COMPLETED, b"1", run="r1")
        for state, begins in [
            (FAILED, False),
            (CANCELED, False),
            (RUNNING, False),
            (RUNNING, True),
            (SUBMITTED, True),
        ]:
            error = self.refused(TaskEnded, state, b"2", run="r1", begins=begins)
            self.assertEqual((error.task.run, error.task.result), ("r1", b'"data":1'))
        self.assertEqual(self.types, ["completed"])

    def test_a_result_beats_a_guess_once(self) -> None:
        self.report(RUNNING, run="r1", patience=5.0)
        self.wait(11)
        self.refused(TaskEnded, RUNNING, b"1", run="r1")
        self.report(FAILED, b'{"type": "Boom"}', run="r1")
        self.refused(TaskEnded, COMPLETED, b"1", run="r1")
        self.assertEqual(self.types, ["started", "lost", "failed"])
        row = self.row()
        self.assertEqual((row.is_late, row.state, row.is_announced), (True, FAILED, True))
        self.assertEqual(json.loads(row.error or b"")["type"], "Boom")

    def test_it_is_silent_after_its_patience_and_not_before(self) -> None:
        self.report(RUNNING, run="r1", patience=60.0)
        self.wait(59)
        self.assertEqual(self.types, ["started"])
        self.wait(6.1)  # a sweep comes every 5 seconds
        self.assertEqual(self.types, ["started", "lost"])
        self.assertEqual(self.last["error"]["type"], "silent")

    def test_one_that_is_never_lost(self) -> None:
        self.report(RUNNING, run="r1", patience=NEVER)
        self.wait(3 * PATIENCE)
        self.assertIs(self.row().state, RUNNING)


class ProgressTests(TasksCase):
    """(e) Beats and progress."""

    def progress(self) -> list[object]:
        events = self.first.subscriber.events
        return [event.data for event in events if event.type == "task.progress"]

    def test_the_first_report_of_work_says_that_it_started(self) -> None:
        run = self.start().task.run
        self.report(RUNNING, run=run)
        self.assertEqual(self.types, ["submitted", "started"])
        self.assertEqual(self.first.subscriber.events[1].data, None)
        self.assertIsNone(self.row().input)

    def test_a_beat_is_no_event_and_moves_the_deadline(self) -> None:
        self.report(RUNNING, run="r1", patience=60.0)
        for _ in range(30):
            self.wait(20)
            reported = self.report(RUNNING, run="r1", patience=60.0)
            self.assertEqual((reported.receipt, reported.is_conflated), (None, False))
        self.assertEqual(self.types, ["started"])

    def test_the_row_is_written_three_times_in_the_patience(self) -> None:
        self.report(RUNNING, run="r1", patience=60.0)
        before = self.first.rows.count("change")
        for _ in range(600):
            self.report(RUNNING, run="r1", patience=60.0)
            self.wait(0.1)
        self.assertLessEqual(self.first.rows.count("change") - before, 4)
        self.assertGreater(self.row().deadline or 0.0, self.clock.seconds() + 39)

    def test_another_patience_is_written_at_once(self) -> None:
        self.report(RUNNING, run="r1", patience=60.0)
        self.report(RUNNING, run="r1", patience=600.0)
        self.assertEqual(self.row().deadline, self.clock.seconds() + 600)
        self.report(RUNNING, run="r1")  # it says nothing about that
        self.assertEqual(self.row().patience, 600)

    def test_a_clock_that_differs_from_that_of_the_store_loses_nothing(self) -> None:
        now = self.clock.seconds
        self.first.tasks._now = self.first.tasks._reports._now = lambda: now() - 300.0
        self.report(RUNNING, run="r1", patience=60.0)
        for _ in range(20):
            self.wait(25)
            self.report(RUNNING, run="r1", patience=60.0)
        self.assertEqual(self.types, ["started"])

    def test_a_request_to_cancel_moves_no_deadline(self) -> None:
        self.report(RUNNING, run="r1", patience=60.0)
        self.wait(40)
        self.done(self.tasks.cancel(ACCOUNT, KEY))
        self.report(RUNNING, run="r1")
        self.wait(40)
        self.assertEqual(self.types, ["started"])

    def test_what_comes_too_fast_is_conflated_and_the_last_one_is_kept(self) -> None:
        self.report(RUNNING, run="r1")
        self.wait(PROGRESS_INTERVAL)
        first = self.report(RUNNING, b"1", run="r1")
        self.assertFalse(first.is_conflated)
        for number in range(2, 50):
            reported = self.report(RUNNING, b"%d" % number, run="r1")
            self.assertEqual((reported.is_conflated, reported.receipt), (True, None))
        self.assertEqual(self.progress(), [1])
        self.wait(PROGRESS_INTERVAL)
        self.assertEqual(self.progress(), [1, 49])
        self.assertEqual(self.row().progress, b'"data":49')

    def test_the_interval_holds_for_all_instances(self) -> None:
        self.report(RUNNING, run="r1")
        self.wait(PROGRESS_INTERVAL)
        self.report(RUNNING, b"1", run="r1")
        for number in range(2, 10):
            there = self.second.tasks.report(report_of(RUNNING, b"%d" % number, run="r1"))
            self.assertTrue(self.done(there).is_conflated)
        self.wait(PROGRESS_INTERVAL)
        self.assertEqual(self.progress(), [1, 9])

    def test_an_older_value_at_another_instance_does_not_replace_a_newer_one(self) -> None:
        self.report(RUNNING, run="r1")
        self.wait(PROGRESS_INTERVAL - 0.1)
        self.report(RUNNING, b"1", run="r1")
        self.wait(0.01)
        self.done(self.second.tasks.report(report_of(RUNNING, b"2", run="r1")))
        self.wait(2 * PROGRESS_INTERVAL)
        self.assertEqual(self.progress()[-1], 2)
        self.assertEqual(self.row().progress, b'"data":2')

    def test_what_waits_at_two_instances_comes_in_order_and_not_at_once(self) -> None:
        """Both wait for the same moment.  The older one may be stored there, but nothing else."""
        self.report(RUNNING, b"0", run="r1")
        begin = self.clock.seconds()
        for number in (1, 2):
            self.wait(0.1)
            tasks = self.instances[number - 1].tasks
            reported = self.done(tasks.report(report_of(RUNNING, b"%d" % number, run="r1")))
            self.assertTrue(reported.is_conflated)
        self.wait(begin + PROGRESS_INTERVAL - self.clock.seconds())
        self.assertEqual(self.row().progress, b'"data":1')
        self.assertEqual(self.progress(), [1])
        self.wait(PROGRESS_INTERVAL)
        self.assertEqual(self.progress(), [1, 2])
        self.assertEqual(self.row().progress, b'"data":2')

    def test_the_last_value_is_kept_where_a_clock_is_behind(self) -> None:
        now = self.clock.seconds
        self.second.tasks._reports._now = lambda: now() - 0.3
        self.report(RUNNING, b"0", run="r1")
        self.wait(2 * PROGRESS_INTERVAL)
        for instance, number in ((self.second, 1), (self.first, 2), (self.second, 3)):
            self.done(instance.tasks.report(report_of(RUNNING, b"%d" % number, run="r1")))
            self.wait(0.15)
        self.wait(2 * PROGRESS_INTERVAL)
        self.assertEqual(self.progress(), [1, 2, 3])

    def test_an_older_value_whose_write_comes_late_replaces_nothing(self) -> None:
        self.report(RUNNING, b"0", run="r1")
        self.wait(0.1)
        self.report(RUNNING, b"1", run="r1")
        self.wait(0.1)
        self.done(self.second.tasks.report(report_of(RUNNING, b"2", run="r1")))
        self.first.rows.held.add("change")
        self.wait(PROGRESS_INTERVAL)
        self.assertEqual(self.progress(), [2])
        self.first.rows.release()
        self.wait(PROGRESS_INTERVAL)
        self.assertEqual(self.progress(), [2])
        self.assertEqual(self.row().progress, b'"data":2')

    def test_a_thousand_in_ten_seconds_are_at_most_twenty_one(self) -> None:
        self.report(RUNNING, run="r1")
        for number in range(1000):
            self.report(RUNNING, b"%d" % number, run="r1")
            self.wait(0.01)
        self.wait(1)
        self.assertLessEqual(len(self.progress()), 21)
        self.assertEqual(self.progress()[-1], 999)

    def test_the_end_stores_what_waits_first(self) -> None:
        self.report(RUNNING, b"0", run="r1")
        self.report(RUNNING, b"1", run="r1")
        self.report(COMPLETED, b"2", run="r1")
        self.assertEqual(self.types, ["started", "progress", "completed"])
        self.wait(5)
        self.assertEqual(self.types, ["started", "progress", "completed"])

    def test_a_stop_stores_what_waits(self) -> None:
        self.report(RUNNING, b"0", run="r1")
        self.report(RUNNING, b"1", run="r1")
        drained = self.tasks.drain()
        self.done(Deferred.fromCoroutine(drained))
        self.assertEqual(self.progress(), [1])

    def test_what_the_store_does_not_take_is_stored_later(self) -> None:
        self.report(RUNNING, b"0", run="r1")
        self.report(RUNNING, b"1", run="r1")
        self.first.rows.failures = 1
        self.wait(PROGRESS_INTERVAL)
        self.assertEqual(self.progress(), [])
        self.wait(RETRY)
        self.assertEqual(self.progress(), [1])

    def test_progress_at_the_limit_and_one_byte_beyond(self) -> None:
        self.report(RUNNING, run="r1")
        largest = b'"%b"' % (b"x" * (MAX_PROGRESS_BYTES - 2))
        self.report(RUNNING, largest, run="r1")
        self.refused(TooLarge, RUNNING, largest[:-1] + b'x"', run="r1")
        self.report(COMPLETED, largest[:-1] + b'x"', run="r1")

    def test_back_in_the_queue_is_progress(self) -> None:
        self.report(RUNNING, run="r1")
        self.wait(1)
        self.report(SUBMITTED, b'{"retry": 1}', run="r1", begins=True)
        self.assertEqual(self.types, ["started", "progress"])
        self.assertIs(self.row().state, RUNNING)

    def test_a_queue_that_takes_long_keeps_its_place_by_beats(self) -> None:
        run = self.start().task.run
        for _ in range(10):
            self.wait(START_DEADLINE / 2)
            self.report(SUBMITTED, run=run)
        self.assertEqual(self.types, ["submitted"])

    def test_no_room_for_what_waits_stores_it_at_once(self) -> None:
        self.patch(type(self.tasks._progress), "has_room", property(lambda self: False))
        self.report(RUNNING, b"0", run="r1")
        self.assertFalse(self.report(RUNNING, b"1", run="r1").is_conflated)
        self.assertEqual(self.progress(), [1])


class EndTests(TasksCase):
    """(f) What an end says, and where its result is."""

    def test_the_error_of_a_failure(self) -> None:
        self.report(FAILED, b'{"type": "Boom", "message": "no", "code": 3}', run="r1")
        self.assertEqual(self.last["error"], {"type": "Boom", "message": "no", "code": 3})
        self.report(CANCELED, run="r2")
        self.assertEqual(self.last["error"]["type"], "canceled")

    def test_a_small_result_stays_in_the_row(self) -> None:
        self.report(COMPLETED, b"7", run="r1")
        row = self.row()
        self.assertEqual((row.result, row.is_announced), (b'"data":7', True))
        self.assertEqual(self.done(self.tasks.result(row)), row)

    def test_a_large_one_is_read_from_the_history(self) -> None:
        body = b'"%b"' % (b"x" * (MAX_ROW_RESULT_BYTES + 1))
        self.report(COMPLETED, body, run="r1")
        row = self.row()
        self.assertIsNone(row.result)
        self.assertEqual(self.done(self.tasks.result(row)).result, b'"data":' + body)

    def test_and_is_gone_when_the_history_has_dropped_it(self) -> None:
        self.report(COMPLETED, b'"%b"' % (b"x" * (MAX_ROW_RESULT_BYTES + 1)), run="r1")
        for number in range(1001):
            self.store.history.append([report_of(RUNNING, b"1").draft._replace(key=f"k{number}")])
        self.failed(self.tasks.result(self.row()), ResultGone)

    def test_an_end_without_a_body_has_null(self) -> None:
        self.report(COMPLETED, run="r1")
        self.assertEqual(self.row().result, b'"data":null')
        self.assertIsNone(self.first.subscriber.events[0].data)

    def test_every_receipt_tells_of_a_request_to_cancel(self) -> None:
        self.report(RUNNING, run="r1")
        self.done(self.tasks.cancel(ACCOUNT, KEY))
        for body in (b"", b"1", b"2"):
            self.assertTrue(self.report(RUNNING, body, run="r1").task.is_cancel_requested)
        self.assertTrue(self.report(COMPLETED, b"3", run="r1").task.is_cancel_requested)

    def test_the_next_run_was_not_asked_to_stop(self) -> None:
        self.report(RUNNING, run="r1")
        self.done(self.tasks.cancel(ACCOUNT, KEY))
        self.report(COMPLETED, run="r1")
        self.assertFalse(self.report(RUNNING, run="r2").task.is_cancel_requested)


class RefusedTests(TasksCase):
    """Reports that are not taken at all."""

    settings = TaskSettings(patience=60.0)

    def test_whoever_may_not_publish(self) -> None:
        grant = Grant("reader", Accounts(every=True))
        refused = self.tasks.report(report_of(COMPLETED, b"1"), grant)
        self.failed(refused, InsufficientScope)
        self.assertEqual(self.types, [])

    def test_while_the_instance_stops(self) -> None:
        self.done(Deferred.fromCoroutine(self.tasks.drain()))
        self.refused(Unavailable, COMPLETED, b"1")
        self.assertIsNone(self.successResultOf(self.store.tasks.get(ACCOUNT, KEY)))

    def test_while_the_store_is_away(self) -> None:
        self.first.rows.error = Unavailable()
        self.refused(Unavailable, COMPLETED, b"1", run="r1", id="e1")
        self.first.rows.error = None
        receipt = self.report(COMPLETED, b"1", run="r1", id="e1").receipt
        assert receipt is not None
        self.assertFalse(receipt.duplicate)

    def test_an_end_whose_event_is_not_kept_is_taken_when_it_is_repeated(self) -> None:
        self.history_fails(1)
        self.refused(Unavailable, COMPLETED, b"1", run="r1", id="e1")
        self.assertEqual((self.row().state, self.row().is_announced), (COMPLETED, False))
        receipt = self.report(COMPLETED, b"1", run="r1", id="e1").receipt
        assert receipt is not None
        self.assertEqual(self.types, ["completed"])
        self.assertEqual(receipt.cursor, str(self.first.subscriber.events[0].cursor))

    def history_fails(self, times: int) -> None:
        self.first.history.failures = times
