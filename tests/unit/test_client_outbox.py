"""The outbox, with senders in memory that follow a script."""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.client import Outbox, Receipt, Refused, RetryPolicy, Undelivered
from asyncplumber.client import outbox as outbox_module
from asyncplumber.client.request import Request

LOG = "asyncplumber.client"
LONG = 30.0  # seconds that a thread may take on a busy machine


class Script:
    """A sender that follows a script: it raises an outcome, or waits for it if it is an event."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.tried: list[str] = []

    def deliver(self, request: Request) -> Receipt:
        self.tried.append(request.id)
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, threading.Event):
            outcome.wait(LONG)
        elif outcome is not None:
            raise outcome
        return Receipt(request.id, "e.1", False, 0, {})

    def close(self) -> None:
        """Nothing is open."""


def request(id: str, body: bytes = b"1") -> Request:
    return Request(id, "/hooks/42", {}, body)


def down() -> Undelivered:
    return Undelivered("t", 1, "nobody there")


class OutboxTestCase(SynchronousTestCase):
    """Outboxes whose senders follow a script."""

    def outbox(
        self, quick: Script, patient: Script, seconds: float = LONG, **options: Any
    ) -> Outbox:
        """Return an outbox with these senders."""

        def make_sender(url: str, *, retry_policy: RetryPolicy, **_: Any) -> Script:
            return quick if retry_policy.attempts == 1 else patient

        outbox = Outbox(
            "http://127.0.0.1:1", exit_timeout=seconds, sender_factory=make_sender, **options
        )
        self.addCleanup(outbox.close, 0.0)
        return outbox


class OutboxTests(OutboxTestCase):
    """A worker does not wait, and its events are not lost."""

    def test_inline(self) -> None:
        """Normally an event is sent before the call returns."""
        quick, patient = Script(), Script()
        self.outbox(quick, patient).put(request("a"), inline=True)
        self.assertEqual((quick.tried, patient.tried), (["a"], []))

    def test_main_process(self) -> None:
        """A process that may not wait does not try inline."""
        quick, patient = Script(), Script()
        outbox = self.outbox(quick, patient)
        outbox.put(request("a"), inline=False)
        outbox.flush()
        self.assertEqual((quick.tried, patient.tried), ([], ["a"]))

    def test_one_task_waits_and_not_each(self) -> None:
        """While one event waits, the others wait behind it, and no task waits again."""
        back = threading.Event()
        quick, patient = Script(down()), Script(back)
        outbox = self.outbox(quick, patient)
        for id in "abc":
            outbox.put(request(id), inline=True)
        self.assertEqual(quick.tried, ["a"])
        back.set()
        outbox.flush()
        self.assertEqual(patient.tried, ["a", "b", "c"])

    def test_inline_again(self) -> None:
        """When the outbox is empty, events are sent inline again."""
        quick, patient = Script(down()), Script()
        outbox = self.outbox(quick, patient)
        outbox.put(request("a"), inline=True)
        outbox.flush()
        outbox.put(request("b"), inline=True)
        self.assertEqual((quick.tried, patient.tried), (["a", "b"], ["a"]))

    def test_refused(self) -> None:
        """A refused event is not tried again, and does not delay the events behind it."""
        quick, patient = (
            Script(Refused(413, "too-large", "")),
            Script(Refused(413, "too-large", "")),
        )
        outbox = self.outbox(quick, patient)
        outbox.put(request("a"), inline=True)
        for id in "bc":
            outbox.put(request(id), inline=False)
        outbox.flush()
        self.assertEqual((quick.tried, patient.tried), (["a"], ["b", "c"]))

    def test_time_limit(self) -> None:
        """A soft time limit during an attempt reaches the task, and the event is queued."""
        quick, patient = Script(SoftTimeLimitExceeded()), Script()
        outbox = self.outbox(quick, patient)
        self.assertRaises(SoftTimeLimitExceeded, outbox.put, request("a"), inline=True)
        outbox.flush()
        self.assertEqual(patient.tried, ["a"])

    def test_a_time_limit_during_the_log_line(self) -> None:
        """The event is not lost between the failed attempt and the queue."""

        def interrupt(*_: Any) -> None:
            raise SoftTimeLimitExceeded

        quick, patient = Script(down()), Script()
        outbox = self.outbox(quick, patient)
        self.patch(outbox_module._log, "warning", interrupt)
        self.assertRaises(SoftTimeLimitExceeded, outbox.put, request("a"), inline=True)
        self.assertTrue(outbox.flush())
        self.assertEqual(patient.tried, ["a"])

    def test_bounded(self) -> None:
        """Events beyond the limit of events or bytes are lost."""
        back = threading.Event()
        self.addCleanup(back.set)
        outbox = self.outbox(Script(), Script(back, back), seconds=0.0, max_events=3, max_bytes=10)
        with self.assertLogs(LOG, "ERROR") as logs:
            for id, size in (("a", 8), ("large", 3), ("b", 1), ("c", 1), ("full", 0)):
                outbox.put(request(id, bytes(size)), inline=False)
            self.assertEqual(outbox.dropped, 2)
            back.set()
            self.assertTrue(outbox.flush(LONG))
        lost = ["event large is lost: the outbox is full", "event full is lost: the outbox is full"]
        self.assertEqual([line.partition("losses:")[2] for line in logs.output], lost)

    def test_default_bounds(self) -> None:
        """Without options these are 1,000 events and 16 MiB."""
        back = threading.Event()
        self.addCleanup(back.set)
        outbox = self.outbox(Script(), Script(back), seconds=0.0)
        with self.assertLogs(LOG, "ERROR"):
            outbox.put(request("large", bytes(17 * 1024 * 1024)), inline=False)
            for number in range(1001):
                outbox.put(request(str(number)), inline=False)
        self.assertEqual(outbox.dropped, 2)

    def test_losses_are_logged_once_per_interval(self) -> None:
        """The first loss is logged at once, and those within the interval in one line."""
        now = [100.0]
        outbox = self.outbox(Script(), Script(), max_events=0, clock=lambda: now[0])
        for moment in (100.0, 101.0, 109.9, 110.0, 119.9):
            now[0] = moment
            with self.assertLogs(LOG, "ERROR") as logs:
                outbox.put(request(str(moment)), inline=False)
                if moment in (101.0, 109.9, 119.9):
                    logging.getLogger(LOG).error("nothing")
            expected = {100.0: "event 100.0 is lost: the outbox is full"}
            expected[110.0] = "event 110.0 is lost: the outbox is full; and 2 before it"
            self.assertEqual(logs.records[0].getMessage(), expected.get(moment, "nothing"))
        with self.assertLogs(LOG, "ERROR") as logs:
            outbox.flush()
        self.assertEqual(logs.records[0].getMessage(), "event 119.9 is lost: the outbox is full")
        self.assertEqual(outbox.dropped, 5)

    def test_the_end_has_a_time_limit(self) -> None:
        """A process ends although the plumber is away, and logs what is lost."""
        back = threading.Event()
        self.addCleanup(back.set)
        outbox = self.outbox(Script(), Script(back), seconds=0.01)
        outbox.put(request("a"), inline=False)
        with self.assertLogs(LOG, "ERROR") as logs:
            outbox.close()
        self.assertIn("event a is lost", logs.output[0])

    def test_an_event_that_is_sent_during_a_close_is_not_lost(self) -> None:
        """The attempt decides about it; only the events behind it are lost."""
        back = threading.Event()
        patient = Script(back)
        outbox = self.outbox(Script(), patient)
        for id in "ab":
            outbox.put(request(id), inline=False)
        with self.assertLogs(LOG, "ERROR") as logs:
            self.assertFalse(outbox.close(0.01))
        self.assertEqual(
            [record.getMessage() for record in logs.records],
            [
                "event b is lost: the outbox was closed",
                "event a is lost unless the attempt under way succeeds",
            ],
        )
        self.assertEqual(outbox.dropped, 1)
        outbox.put(request("c"), inline=False)
        back.set()
        self.assertTrue(outbox.flush())
        self.assertEqual((patient.tried, outbox.dropped), (["a", "c"], 1))

    def test_a_flush_loses_nothing(self) -> None:
        """What still waits is sent later, and the log says that it waits."""
        back = threading.Event()
        patient = Script(back)
        outbox = self.outbox(Script(), patient)
        outbox.put(request("a"), inline=False)
        with self.assertLogs(LOG, "WARNING") as logs:
            self.assertFalse(outbox.flush(0.01))
        self.assertIn("1 event is not sent within 0.01 seconds", logs.output[0])
        back.set()
        self.assertTrue(outbox.flush())
        self.assertEqual((patient.tried, outbox.dropped), (["a"], 0))

    def test_no_thread_can_be_started(self) -> None:
        """If no thread can be started, the event waits for the next call."""
        patient = Script()
        outbox = self.outbox(Script(), patient)
        start = threading.Thread.start

        def no_start(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        self.patch(threading.Thread, "start", no_start)
        with self.assertLogs(LOG, "WARNING"):
            outbox.send("42", 1, id="a")
        self.patch(threading.Thread, "start", start)
        self.assertTrue(outbox.flush())
        self.assertEqual(patient.tried, ["a"])


class SendTests(OutboxTestCase):
    """`Outbox.send`: no waiting, no raising."""

    def test_what_cannot_be_sent_is_a_loss(self) -> None:
        """The log says what is wrong with an event; the caller is not told."""
        outbox = self.outbox(Script(), Script())
        loop: list[Any] = []
        loop.append(loop)
        wrong: list[dict[str, Any]] = [
            {"account": None},
            {"account": ""},
            {"data": object()},
            {"data": loop},
        ]
        wrong += [
            {"id": "a\nb"},
            {"id": 1.5},
            {"type": 1},
            {"time": "\ud800"},
            {"account": "\ud800"},
        ]
        with self.assertLogs(LOG, "ERROR") as logs:
            for arguments in wrong:
                outbox.send(**{"account": "42", "data": 1, **arguments})
        self.assertEqual(outbox.dropped, len(wrong))
        self.assertIn(
            "TypeError: account is a str, an int or a UUID, and not NoneType", logs.output[0]
        )

    def test_a_time_limit_reaches_the_task(self) -> None:
        """It is not swallowed."""

        class Late(dict[str, int]):
            def items(self) -> Any:
                raise SoftTimeLimitExceeded

        outbox = self.outbox(Script(), Script())
        self.assertRaises(SoftTimeLimitExceeded, outbox.send, "42", Late(a=1))
