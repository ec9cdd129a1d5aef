"""What all integrations have in common, with a sender in memory."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.client import Outbox, TaskCanceled, current_task
from asyncplumber.client.request import Request
from asyncplumber.integrations import handover as handover_module
from asyncplumber.integrations.announcer import (
    QUEUE_DEADLINE,
    Address,
    Announcer,
    Attempt,
    address_in,
    address_in_call,
    for_account,
    for_call,
    guarded,
)
from asyncplumber.integrations.handover import Handover
from tests.unit.test_client_task import LONG, FakeSender

PLACE = Address("42", "report-7", "job-1")


class AddressTests(SynchronousTestCase):
    """Whose a task is."""

    def test_an_account_alone(self) -> None:
        """The library's id names the task and its run."""
        self.assertEqual(for_account(42), {"account": "42"})
        self.assertEqual(address_in(for_account(42), "job-1"), ("42", "job-1", "job-1"))

    def test_a_task_and_a_run(self) -> None:
        """They take the place of the library's id."""
        place = for_account("42", "report-7", "mf3k9x2a")
        self.assertEqual(address_in(place, "job-1"), ("42", "report-7", "mf3k9x2a"))

    def test_numbers_that_came_through_json(self) -> None:
        """A program in another language may put them there."""
        self.assertEqual(address_in({"account": 42, "task": 7}, "job-1"), ("42", "7", "job-1"))

    def test_what_names_no_account_is_not_announced(self) -> None:
        """Whatever there is in its place."""
        for place in (None, {}, {"account": None}, {"account": ""}, {"task": "x"}, "42", 42):
            self.assertIsNone(address_in(place, "job-1"))
            self.assertIsNone(address_in_call({"plumber": place}, "job-1"))
        self.assertIsNone(address_in_call({}, "job-1"))

    def test_a_keyword_argument(self) -> None:
        """For libraries whose calls have no other place."""
        self.assertEqual(for_call("42", 7), {"plumber": {"account": "42", "task": "7"}})
        self.assertEqual(address_in_call(for_call("42", 7), "job-1"), ("42", "7", "job-1"))

    def test_what_is_no_key_is_refused_where_it_is_said(self) -> None:
        """In the program that starts the task, and not in its worker."""
        for wrong in (1.5, True, b"42", ["42"]):
            with self.assertRaises(TypeError):
                for_account(wrong)  # type: ignore[arg-type]


class AttemptTestCase(SynchronousTestCase):
    """An announcer whose sender is in memory."""

    def setUp(self) -> None:
        self.sender = FakeSender()
        self.outbox = self.make_outbox(self.sender)
        self.announcer = Announcer(self.outbox, deadline=60.0, beat_interval=20.0)

    def make_outbox(self, sender: FakeSender) -> Outbox:
        outbox = Outbox("http://127.0.0.1:1", sender_factory=lambda *_, **__: sender)
        self.addCleanup(outbox.close, 0.0)
        self.addCleanup(sender.is_open.set)
        return outbox

    def reports(self) -> list[tuple[Any, Any]]:
        """Return state and body of each report."""
        self.assertTrue(self.outbox.flush(LONG))
        return [
            (request.headers["Task-State"], json.loads(request.body) if request.body else None)
            for request in self.sender.requests
        ]


class AttemptTests(AttemptTestCase):
    """Attempts at a task."""

    def test_a_success(self) -> None:
        """It is the current task until it ends."""
        attempt = self.announcer.begin(PLACE)
        self.assertIs(current_task(), attempt.run)
        attempt.succeed([1])
        self.assertIsNone(current_task())
        self.assertEqual(self.reports(), [("started", None), ("completed", [1])])
        [started, _] = self.sender.requests
        self.assertEqual(started.path, "/hooks/42")
        named = started.headers["Task"], started.headers["Task-Run"]
        self.assertEqual(named, ("report-7", "job-1"))

    def test_a_failure(self) -> None:
        """With type and message; an error that has none is told as it is."""
        self.announcer.begin(PLACE).fail(ValueError("no"))
        self.announcer.attempt(PLACE).give_up("Missed", "too late")
        self.assertEqual(
            self.reports(),
            [
                ("started", None),
                ("failed", {"type": "ValueError", "message": "no"}),
                ("failed", {"type": "Missed", "message": "too late"}),
            ],
        )

    def test_a_retry_does_not_end_the_run(self) -> None:
        """It has an hour to begin again, beyond its pause; then the deadline is the usual one."""
        self.announcer.begin(PLACE).retry(ValueError("no"), number=1, delay=30.0)
        self.announcer.begin(PLACE).succeed(1)
        error = {"type": "ValueError", "message": "no"}
        self.assertEqual(
            self.reports(),
            [
                ("started", None),
                ("running", {"retry": 1, "error": error}),
                ("started", None),
                ("completed", 1),
            ],
        )
        deadlines = [request.headers["Task-Deadline"] for request in self.sender.requests]
        self.assertEqual(deadlines, ["60", f"{QUEUE_DEADLINE + 30:g}", "60", "60"])
        self.assertEqual(
            {request.headers["Task-Run"] for request in self.sender.requests}, {"job-1"}
        )

    def test_the_next_attempt_does_not_overtake_a_retry(self) -> None:
        """Its deadline would be that of the retry; so a retry does not wait as progress does."""
        attempt = self.announcer.begin(PLACE)
        attempt.run.progress({"done": 1})
        self.assertTrue(self.outbox.flush(LONG))
        attempt.run.progress({"done": 2})
        attempt.retry(None, number=1)
        heard = threading.Event()
        self.sender.heard = lambda number: heard.set() if number == 4 else None
        self.announcer.begin(PLACE).release()
        heard.wait(LONG)
        said = [request.headers["Task-Deadline"] for request in self.sender.requests]
        self.assertEqual(said, ["60", "60", f"{QUEUE_DEADLINE:g}", "60"])

    def test_an_attempt_that_is_over_says_nothing_more(self) -> None:
        """A second end, or progress after one, is not sent."""
        attempt = self.announcer.begin(PLACE)
        attempt.retry(None)
        attempt.succeed(1)
        attempt.run.progress(2)
        self.assertEqual(self.reports(), [("started", None), ("running", {"retry": True})])

    def test_a_task_that_was_asked_to_stop(self) -> None:
        """It ends as canceled, even if the queue tries it again."""
        for end in (Attempt.fail, Attempt.retry):
            self.sender.requests.clear()
            end(self.announcer.begin(PLACE), TaskCanceled("stop"))
            self.assertEqual([state for state, _ in self.reports()], ["started", "canceled"])

    def test_tracebacks_only_if_they_are_wanted(self) -> None:
        """They show code to subscribers."""
        self.announcer = Announcer(self.outbox, tracebacks=True)
        try:
            raise ValueError("no")
        except ValueError as error:
            self.announcer.begin(PLACE).retry(error)
            self.announcer.begin(PLACE).fail(error)
        [_, (_, retried), _, (_, failed)] = self.reports()
        for described in (retried["error"], failed):
            self.assertIn('raise ValueError("no")', described["traceback"])

    def test_a_hook_raises_nothing(self) -> None:
        """What goes wrong in it is logged; a time limit passes through."""

        @guarded
        def hook(error: BaseException) -> int:
            raise error

        with self.assertLogs("asyncplumber.integrations", logging.ERROR):
            self.assertIsNone(hook(RuntimeError("no")))
        with self.assertRaises(KeyboardInterrupt):
            hook(KeyboardInterrupt())


class HandoverTests(AttemptTestCase):
    """What a process that ends gives to its parent."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(handover_module, "PATIENCE", 0.01)

    def test_what_is_sent_is_not_handed_over(self) -> None:
        """A plumber that is there has it already."""
        handover = Handover()
        self.announcer.begin(PLACE).succeed(1)
        self.assertTrue(self.outbox.flush(LONG))
        handover.give(self.outbox)
        sender = FakeSender()
        parent = self.make_outbox(sender)
        handover.receive(parent)
        self.assertTrue(parent.flush(LONG))
        self.assertEqual(len(self.sender.requests), 2)
        self.assertEqual(sender.requests, [])

    def test_what_is_left_is_sent_by_the_parent(self) -> None:
        """In order, the same reports, with names and bytes of any kind."""
        self.sender.is_open.clear()
        attempt = self.announcer.begin(Address("42", "Rechnung ü", "job ü"))
        attempt.succeed(b"\x00\xff")
        handover = Handover()
        handover.give(self.outbox)
        sender = FakeSender()
        parent = self.make_outbox(sender)
        handover.receive(parent)
        self.assertTrue(parent.flush(LONG))
        self.assertEqual(
            [request.headers["Task-State"] for request in sender.requests],
            ["started", "completed"],
        )
        end: Request = sender.requests[1]
        self.assertEqual(end.body, b"\x00\xff")
        self.assertEqual(end.headers["Task"].encode("latin-1").decode(), "Rechnung ü")
        self.assertEqual(end.headers["Task-Run"].encode("latin-1").decode(), "job ü")

    def test_an_event_that_is_no_report(self) -> None:
        """The program may send some by the same outbox."""
        self.sender.is_open.clear()
        self.outbox.send("42", {"total": 7}, id="e-1")
        handover = Handover()
        handover.give(self.outbox)
        sender = FakeSender()
        parent = self.make_outbox(sender)
        handover.receive(parent)
        self.assertTrue(parent.flush(LONG))
        self.assertEqual([request.id for request in sender.requests], ["e-1"])

    def test_a_line_that_was_cut_off(self) -> None:
        """Its writer was killed; what it wrote before counts."""
        self.sender.is_open.clear()
        self.announcer.begin(PLACE).succeed(1)
        handover = Handover()
        handover.give(self.outbox)
        handover._file.seek(-5, 2)
        handover._file.truncate()
        sender = FakeSender()
        parent = self.make_outbox(sender)
        handover.receive(parent)
        self.assertTrue(parent.flush(LONG))
        self.assertEqual(
            [request.headers["Task-State"] for request in sender.requests], ["started"]
        )
