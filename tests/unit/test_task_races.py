"""Two instances on one store at the same moment, and instances that die in between."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred

from asyncplumber.core.tasks.errors import NothingCached, OtherInput, Superseded
from asyncplumber.core.tasks.settings import TaskSettings
from asyncplumber.core.tasks.sweeper import FORGET_INTERVAL, SWEEP_INTERVAL
from asyncplumber.errors import InsufficientScope, Unavailable
from asyncplumber.grant import OPEN, Accounts, Grant
from asyncplumber.interfaces import Finished, Later
from asyncplumber.task import DISPATCH_LEASE, START_DEADLINE, Task, TaskState
from harness.core import FaultProxy
from harness.tasks import ACCOUNT, KEY, START, TasksCase, report_of

RUNNING, COMPLETED, FAILED = TaskState.RUNNING, TaskState.COMPLETED, TaskState.FAILED


class StartRaceTests(TasksCase):
    """Claims and dispatches."""

    def test_of_two_starts_one_begins_and_both_hear_the_end(self) -> None:
        for instance in self.instances:
            instance.rows.held.add("claim")
        held = [each.tasks.start(START, 10.0) for each in self.instances]
        self.turn()
        for instance in self.instances:
            instance.rows.release()
        self.turn()
        self.assertEqual(len(self.starter.dispatched), 1)
        self.report(COMPLETED, b"7", run=self.starter.dispatched[0].run)
        outcomes = [self.successResultOf(each) for each in held]
        self.assertEqual(sorted(each.joined for each in outcomes), [False, True])
        self.assertEqual({each.data for each in outcomes}, {7})
        for instance in self.instances:
            self.assertEqual(instance.types, ["submitted", "completed"])

    def test_two_hundred_starts_at_two_instances_are_one_dispatch(self) -> None:
        held = [self.instances[n % 2].tasks.start(START, 10.0) for n in range(200)]
        self.turn()
        self.assertEqual(len(self.starter.dispatched), 1)
        self.second_reports(COMPLETED, b"7", self.starter.dispatched[0].run)
        outcomes = [self.successResultOf(each) for each in held]
        self.assertEqual(sum(not each.joined for each in outcomes), 1)
        self.assertEqual({each.data for each in outcomes}, {7})

    def second_reports(self, state: TaskState, body: bytes, run: str) -> Any:
        return self.done(self.second.tasks.report(report_of(state, body, run=run)))

    def test_an_instance_that_dies_before_the_dispatch_is_followed_by_another(self) -> None:
        self.first.history.held.add("append")  # it dies with its claim only
        self.tasks.start(START)
        self.turn()
        self.wait(DISPATCH_LEASE - 1)
        self.assertEqual(self.starter.dispatched, [])
        self.wait(SWEEP_INTERVAL + 1)
        self.assertEqual(len(self.starter.dispatched), 1)
        self.assertEqual(self.second.types, ["submitted"])
        self.second_reports(COMPLETED, b"7", self.starter.dispatched[0].run)
        self.assertEqual(self.second.types, ["submitted", "completed"])

    def test_one_that_dies_during_the_dispatch_leads_to_the_same_run_again(self) -> None:
        self.starter.answer = Deferred()
        self.start()
        Deferred.fromCoroutine(self.tasks.drain())
        self.starter.answer = Later()
        self.wait(DISPATCH_LEASE + SWEEP_INTERVAL + 1)
        runs = [each.run for each in self.starter.dispatched]
        self.assertEqual(runs, [runs[0]] * 2)
        self.wait(60)
        self.assertEqual(len(self.starter.dispatched), 2)

    def test_a_starter_that_takes_its_time_is_asked_once(self) -> None:
        self.starter.answer = Deferred()
        self.start()
        self.wait(10 * DISPATCH_LEASE)
        self.assertEqual(len(self.starter.dispatched), 1)
        self.starter.answer.callback(Finished("application/json", b"7"))
        self.turn()
        self.assertEqual(self.types, ["submitted", "completed"])

    def test_an_end_that_comes_before_the_answer_of_the_starter(self) -> None:
        self.starter.answer = Deferred()
        held = self.tasks.start(START, 10.0)
        self.turn()
        run = self.starter.dispatched[0].run
        self.second_reports(RUNNING, b"1", run)
        self.second_reports(COMPLETED, b"7", run)
        self.assertEqual(self.successResultOf(held).data, 7)
        self.starter.answer.callback(Later())
        self.wait(START_DEADLINE + 10)
        self.assertEqual(self.types, ["submitted", "started", "completed"])

    def test_a_run_that_has_reported_is_not_dispatched_again(self) -> None:
        self.starter.answer = Deferred()
        self.start()
        self.second_reports(RUNNING, b"1", self.starter.dispatched[0].run)
        self.first.tasks._dispatcher.stop()  # type: ignore[union-attr]
        self.wait(4 * DISPATCH_LEASE)
        self.assertEqual(len(self.starter.dispatched), 1)

    def test_a_start_while_the_store_is_away_dispatches_nothing(self) -> None:
        self.first.rows.error = Unavailable()
        self.failed(self.tasks.start(START, 10.0), Unavailable)
        self.assertEqual((self.starter.dispatched, self.types), ([], []))

    def test_the_answer_of_a_starter_waits_for_the_store(self) -> None:
        self.starter.answer = Deferred()
        self.start()
        self.first.rows.error = Unavailable()
        self.starter.answer.callback(Finished("application/json", b"7"))
        self.wait(10)
        self.first.rows.error = None
        self.wait(40)
        self.assertEqual(len(self.starter.dispatched), 1)
        self.assertEqual(self.types, ["submitted", "completed"])


class ReuseTests(TasksCase):
    """Inputs that differ, and results that are used again."""

    def again(self, body: bytes = b"[3,4]", **more: Any) -> Any:
        return self.tasks.start(replace(START, body=body, **more))

    def complete(self) -> None:
        self.report(COMPLETED, b"7", run=self.starter.dispatched[-1].run)

    def test_a_run_that_was_started_without_an_input_is_not_that_of_an_input(self) -> None:
        self.start(body=b"")
        self.failed(self.again(), OtherInput)
        self.assertTrue(self.done(self.again(b"")).joined)

    def test_a_run_that_was_only_reported_is_joined_by_any(self) -> None:
        self.report(RUNNING, begins=True)
        self.assertTrue(self.done(self.again()).joined)
        self.assertEqual(self.starter.dispatched, [])

    def test_another_content_type_is_another_input(self) -> None:
        self.start()
        error = self.failed(self.again(content_type="text/plain"), OtherInput)
        self.assertEqual(error.task.run, self.row().run)

    def test_a_result_is_used_again_up_to_its_age(self) -> None:
        self.start()
        self.complete()
        self.wait(60)
        outcome = self.done(self.again(max_age=60.0))
        self.assertEqual((outcome.joined, outcome.age, outcome.data), (True, 60, 7))
        self.assertTrue(self.done(self.again(b"", max_age=60.0)).joined)
        self.assertFalse(self.done(self.again(max_age=59.0)).joined)

    def test_the_result_of_another_input_is_not(self) -> None:
        self.start()
        self.complete()
        self.assertFalse(self.done(self.again(b"[5]", max_age=60.0)).joined)

    def test_only_completed_runs_are(self) -> None:
        self.start()
        self.report(FAILED, b"7", run=self.starter.dispatched[-1].run)
        self.assertFalse(self.done(self.again(max_age=60.0)).joined)

    def test_only_if_cached_begins_nothing(self) -> None:
        self.failed(self.again(only_if_cached=True), NothingCached)
        self.start()
        self.assertTrue(self.done(self.again(only_if_cached=True)).joined)
        self.failed(self.again(b"[5]", only_if_cached=True), OtherInput)
        self.complete()
        self.assertEqual(self.done(self.again(only_if_cached=True)).data, 7)
        self.wait(10)
        self.failed(self.again(only_if_cached=True, max_age=5.0), NothingCached)
        self.assertEqual(len(self.starter.dispatched), 1)

    def test_rights(self) -> None:
        reader = Grant("reader", subscribe=Accounts(every=True))
        starter = Grant("starter", start=Accounts(every=True))
        self.failed(self.tasks.start(START, 0.0, reader), InsufficientScope)
        self.assertFalse(self.done(self.tasks.start(START, 0.0, starter)).joined)
        for grant in (reader, starter):
            self.done(self.tasks.get(ACCOUNT, KEY, 0.0, grant))
        nobody = Grant("nobody", publish=Accounts(every=True))
        self.failed(self.tasks.get(ACCOUNT, KEY, 0.0, nobody), InsufficientScope)

    def test_nothing_is_told_after_the_grant_has_ended(self) -> None:
        grant = replace(OPEN, until=self.clock.seconds() + 3)
        held = self.tasks.start(START, 10.0, grant)
        self.wait(3.1)
        self.assertFalse(self.successResultOf(held).task.is_done)


class EndRaceTests(TasksCase):
    """Ends, and what nobody reports any more."""

    def begin(self, patience: float = 5.0) -> str:
        self.report(RUNNING, run="r1", patience=patience)
        return "r1"

    def test_an_end_that_is_faster_than_the_sweep(self) -> None:
        run = self.begin()
        self.second.rows.held.add("change")
        self.first.rows.error = Unavailable()  # only the second one sweeps
        self.wait(11)
        self.assertEqual(len(self.second.rows.waiting), 1)
        self.first.rows.error = None
        self.report(COMPLETED, b"7", run=run)
        self.second.rows.held.clear()
        self.second.rows.release()
        self.wait(20)
        self.assertEqual(self.types, ["started", "completed"])
        self.assertNotIn("late", self.last)

    def test_a_sweep_that_is_faster_than_the_end(self) -> None:
        run = self.begin()
        self.wait(4.9)
        self.first.rows.held.add("change")
        reported = self.first.tasks.report(report_of(COMPLETED, b"7", run=run))
        self.wait(6)  # the second one finds it lost
        self.first.rows.held.clear()
        self.first.rows.release()
        self.assertFalse(self.done(reported).receipt.duplicate)
        self.assertEqual(self.types, ["started", "lost", "completed"])
        self.assertTrue(self.last["late"])

    def test_a_late_end_never_overtakes_the_loss(self) -> None:
        run = self.begin()
        self.second.history.held.add("append")  # it finds the loss, and dies
        self.first.rows.error = Unavailable()
        self.wait(11)
        self.first.rows.error = None
        self.assertEqual((self.row().state, self.row().is_announced), (TaskState.LOST, False))
        self.report(COMPLETED, b"7", run=run)
        self.assertEqual(self.types, ["started", "lost", "completed"])
        self.second.history.held.clear()
        self.second.history.release()
        self.wait(30)
        self.assertEqual(self.types, ["started", "lost", "completed"])

    def test_two_ends_at_once_are_one(self) -> None:
        run = self.begin()
        for instance in self.instances:
            instance.rows.held.add("change")
        reports = [
            each.tasks.report(report_of(state, b"7", run=run))
            for each, state in zip(self.instances, (COMPLETED, FAILED), strict=True)
        ]
        self.turn()
        for instance in self.instances:
            instance.rows.held.clear()
            instance.rows.release()
        self.turn()
        self.assertFalse(self.successResultOf(reports[0]).receipt.duplicate)
        self.assertEqual(self.failureResultOf(reports[1]).value.code, "ended")
        self.assertEqual(self.types, ["started", "completed"])

    def test_an_end_whose_instance_died_is_told_by_another(self) -> None:
        run = self.begin()
        self.first.history.held.add("append")
        self.first.tasks.report(report_of(COMPLETED, b"7", run=run))
        self.wait(2 * SWEEP_INTERVAL + 1)
        self.assertEqual(self.second.types, ["started", "completed"])
        self.assertEqual(self.second.subscriber.events[-1].data, 7)

    def test_a_start_does_not_bury_such_an_end(self) -> None:
        run = self.begin()
        self.first.history.held.add("append")
        self.first.tasks.report(report_of(COMPLETED, b"7", run=run))
        self.turn()
        self.assertFalse(self.done(self.second.tasks.start(START)).joined)
        self.assertEqual(self.second.types, ["started", "completed", "submitted"])

    def test_a_late_end_after_the_next_run_is_refused(self) -> None:
        run = self.begin()
        self.wait(11)
        self.start()
        refused = self.second.tasks.report(report_of(COMPLETED, b"7", run=run))
        self.failed(refused, Superseded)
        self.assertEqual(self.types, ["started", "lost", "submitted"])

    def test_progress_that_slips_behind_an_end_changes_nothing(self) -> None:
        run = self.begin(60.0)
        self.wait(1)
        self.first.history.held.add("append")
        reported = self.first.tasks.report(report_of(RUNNING, b"1", run=run))
        self.turn()
        self.done(self.second.tasks.report(report_of(COMPLETED, b"7", run=run)))
        self.first.history.held.clear()
        self.first.history.release()
        self.done(reported)
        self.assertEqual(self.second.types, ["started", "completed", "progress"])
        self.assertEqual((self.row().state, self.row().result), (COMPLETED, b'"data":7'))
        # By its member a client sees that its run went on when it was sent.
        self.assertEqual(self.second.last["run"], run)

    def test_reports_of_one_task_keep_their_order_at_an_instance(self) -> None:
        self.first.rows.held.add("get")
        reports = [
            self.first.tasks.report(report_of(state, body, run="r1"))
            for state, body in [(RUNNING, b"1"), (RUNNING, b"2"), (COMPLETED, b"3")]
        ]
        self.turn()
        self.first.rows.held.clear()
        self.first.rows.release()
        self.turn()
        for reported in reports:
            self.successResultOf(reported)
        self.assertEqual([event.data for event in self.first.subscriber.events], [1, 2, 3])


class HoldTests(TasksCase):
    """A held request is a subscription for one event."""

    def hold(self, wait: float = 10.0, **more: Any) -> Any:
        held = self.tasks.start(START, wait, **more)
        self.turn()
        return held

    def end(self, body: bytes = b"7") -> None:
        run = self.starter.dispatched[-1].run
        self.done(self.second.tasks.report(report_of(COMPLETED, body, run=run)))

    def test_it_is_subscribed_before_the_dispatch(self) -> None:
        seen = []
        start = self.starter.start

        def started(dispatch: Any) -> Any:
            seen.append(self.first.hub.count(ACCOUNT))
            return start(dispatch)

        self.patch(self.starter, "start", started)
        self.hold()
        self.assertEqual(seen, [2])  # the subscriber of the test, and the hold

    def test_it_counts_as_a_subscriber_until_it_is_answered(self) -> None:
        before = self.first.hub.subscribers
        held = self.hold()
        self.assertEqual(self.first.hub.subscribers, before + 1)
        self.assertEqual(self.figure("task_holds"), 1)
        self.end()
        self.successResultOf(held)
        self.assertEqual((self.first.hub.subscribers, self.figure("task_holds")), (before, 0))

    def figure(self, name: str) -> float:
        metrics = {metric.name: metric for metric in self.tasks.figures.all}
        return metrics[name].figure().value

    def test_an_end_that_is_heard_before_the_row_is_known(self) -> None:
        self.report(RUNNING, run="r1")
        answers: list[Deferred[Task | None]] = []
        target = self.first.rows.target

        def get(account: str, key: str) -> Deferred[Task | None]:
            answers.append(target.get(account, key))
            waiting: Deferred[Task | None] = Deferred()
            self.release = lambda: answers[0].chainDeferred(waiting)
            return waiting

        late = FaultProxy(target)
        self.patch(late, "get", get)
        self.tasks._tasks = late  # type: ignore[assignment]
        held = self.tasks.get(ACCOUNT, KEY, 10.0)
        self.turn()
        self.done(self.second.tasks.report(report_of(COMPLETED, b"7", run="r1")))
        self.assertNoResult(held)
        self.release()
        self.assertEqual(self.successResultOf(held).data, 7)

    def test_the_end_of_another_task_or_run_is_not_meant(self) -> None:
        held = self.hold()
        self.report(COMPLETED, b'{"task":"sum"}', key="other")
        self.report(COMPLETED, b'{"data":{"task":"sum","run":"x"}}', key="sum2")
        self.assertNoResult(held)
        self.end()
        self.assertEqual(self.successResultOf(held).data, 7)

    def test_a_wait_that_is_over_has_the_row_as_it_is_then(self) -> None:
        held = self.hold(5.0)
        self.report(RUNNING, b'{"done": 3}', run=self.starter.dispatched[0].run)
        self.wait(4.9)
        self.assertNoResult(held)
        self.wait(0.2)
        task = self.successResultOf(held).task
        self.assertEqual((task.state, task.progress), (RUNNING, b'"data":{"done": 3}'))

    def test_the_wait_begins_with_the_request(self) -> None:
        self.first.rows.held.add("claim")
        held = self.hold(5.0)
        self.wait(3)
        self.first.rows.release()
        self.wait(2.1)
        self.assertFalse(self.successResultOf(held).task.is_done)

    def test_a_store_that_is_away_when_the_wait_is_over(self) -> None:
        held = self.hold(5.0)
        self.first.rows.error = Unavailable()
        self.wait(6)
        self.assertIs(self.successResultOf(held).task.state, TaskState.SUBMITTED)

    def test_events_that_were_missed_do_not_end_the_wait(self) -> None:
        held = self.hold()
        self.miss()
        self.assertNoResult(held)
        self.end()
        self.assertEqual(self.successResultOf(held).data, 7)

    def test_an_end_among_events_that_were_missed(self) -> None:
        held = self.hold()
        self.instances.remove(self.first)  # nothing is relayed to it any more
        self.end()
        self.assertNoResult(held)
        self.miss()
        self.assertEqual(self.successResultOf(held).data, 7)

    def miss(self) -> None:
        (hold,) = self.tasks._holds
        position = self.successResultOf(self.store.history.ensure(ACCOUNT))
        hold.missed(position.cursor, position)
        self.turn()

    def test_an_instance_that_stops_answers_that_it_goes_on(self) -> None:
        held = self.hold()
        Deferred.fromCoroutine(self.tasks.drain())
        self.turn()
        self.assertFalse(self.successResultOf(held).task.is_done)
        self.end()
        self.assertEqual(self.second.types, ["submitted", "completed"])

    def test_a_start_that_is_claimed_during_a_stop_is_dispatched_by_another_instance(self) -> None:
        self.first.rows.held.add("claim")
        self.tasks.start(START)
        self.turn()
        Deferred.fromCoroutine(self.tasks.drain())
        self.first.rows.release()
        self.turn()
        self.assertEqual(self.starter.dispatched, [])
        self.wait(DISPATCH_LEASE + SWEEP_INTERVAL)
        self.assertEqual(len(self.starter.dispatched), 1)

    def test_a_progress_that_is_being_taken_during_a_stop_is_stored(self) -> None:
        self.report(RUNNING, b"1", run="r1")
        self.first.rows.held.add("get")
        taken = self.tasks.report(report_of(RUNNING, b"2", run="r1"))
        stopped = Deferred.fromCoroutine(self.tasks.drain())
        self.first.rows.held.clear()
        self.first.rows.release()
        self.turn()
        self.assertTrue(self.successResultOf(taken).is_conflated)
        self.successResultOf(stopped)
        self.assertEqual(self.row().progress, b'"data":2')

    def test_a_client_that_leaves_stops_nothing(self) -> None:
        self.first.rows.held.add("claim")
        held = self.hold()
        held.addErrback(lambda _: None)
        held.cancel()
        self.first.rows.release()
        self.turn()
        self.assertEqual(len(self.starter.dispatched), 1)
        self.end()
        self.assertEqual(self.types, ["submitted", "completed"])
        self.assertEqual(self.figure("task_holds"), 0)

    def test_a_hold_that_is_left_is_given_up(self) -> None:
        before = self.first.hub.subscribers
        held = self.hold()
        held.addErrback(lambda _: None)
        held.cancel()
        self.assertEqual(self.first.hub.subscribers, before)
        self.assertFalse(self.row().is_done)


class AbsenceTests(TasksCase):
    """Nobody is lost because the servers were away."""

    def test_ten_minutes_without_any_instance(self) -> None:
        self.report(RUNNING, run="r1", patience=60.0)
        self.wait(10)
        for instance in self.instances:
            Deferred.fromCoroutine(instance.tasks.drain())
        self.instances.clear()
        self.clock.advance(600)
        instance = self.instance()
        self.turn()
        self.assertEqual(self.row().state, RUNNING)
        self.done(instance.tasks.report(report_of(COMPLETED, b"7", run="r1")))
        self.assertEqual(instance.types[-1:], ["completed"])

    def test_one_that_is_not_heard_after_it_is_lost(self) -> None:
        self.report(RUNNING, run="r1", patience=60.0)
        for instance in self.instances:
            Deferred.fromCoroutine(instance.tasks.drain())
        self.instances.clear()
        self.clock.advance(600)
        self.instance()
        self.wait(70)
        self.assertIs(self.row().state, TaskState.LOST)


class SweepTests(TasksCase):
    """What cannot be repaired does not stand in the way of the rest."""

    settings = TaskSettings(age=1000.0)

    def test_a_row_that_cannot_be_announced(self) -> None:
        for key in ("bad", "good"):
            self.report(RUNNING, key=key, patience=5.0)
        for instance in self.instances:
            announce = instance.tasks._journal.announce

            def broken(task: Task, *more: Any, announce: Any = announce) -> Any:
                if task.key == "bad":
                    raise RuntimeError("this one never works")
                return announce(task, *more)

            self.patch(instance.tasks._journal, "announce", broken)
        self.wait(20)
        self.assertTrue(self.flushLoggedErrors(RuntimeError))
        self.assertEqual(self.types, ["started", "started", "lost"])
        self.assertEqual(self.last["task"], "good")

    def test_ended_tasks_are_forgotten_after_their_age(self) -> None:
        self.report(COMPLETED, b"7")
        self.wait(999)
        self.assertEqual(self.row().state, COMPLETED)
        self.wait(FORGET_INTERVAL + 2)
        self.assertIsNone(self.successResultOf(self.store.tasks.get(ACCOUNT, KEY)))

    def test_the_callback_url_of_a_run_ends_a_day_after_it(self) -> None:
        self.start()
        url = self.starter.dispatched[0].callback
        self.assertTrue(url.startswith("https://push/callbacks/"))
        (row,) = self.successResultOf(self.store.callback_urls.of_account(ACCOUNT, 9))
        self.assertEqual(row.run, self.starter.dispatched[0].run)
        self.report(COMPLETED, b"7", run=row.run)
        (row,) = self.successResultOf(self.store.callback_urls.of_account(ACCOUNT, 9))
        self.assertAlmostEqual(row.expires_at, self.clock.seconds() + 86_400, delta=1)


class FigureTests(TasksCase):
    """What is counted."""

    def test_starts_ends_and_dispatches(self) -> None:
        for _ in range(3):
            self.start()
        self.report(COMPLETED, b"7", run=self.starter.dispatched[0].run)
        self.report(COMPLETED, b"7", run=self.starter.dispatched[0].run)
        self.report(RUNNING, key="other", patience=5.0)
        self.wait(11)
        figures = {metric.name: metric.figure() for metric in self.tasks.figures.all}
        self.assertEqual(figures["task_starts_total"].of("started"), 1)
        self.assertEqual(figures["task_starts_total"].of("joined"), 2)
        self.assertEqual(figures["task_ends_total"].of("completed"), 1)
        both = [
            metric.figure().of("lost")
            for each in self.instances
            for metric in each.tasks.figures.all
            if metric.name == "task_ends_total"
        ]
        self.assertEqual(sum(both), 1)
        self.assertEqual(figures["task_dispatch_seconds"].value, 1)
