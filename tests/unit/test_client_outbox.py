"""The outbox, with senders in memory that follow a script."""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.client import Outbox, Receipt, Refused, Undelivered
from asyncplumber.client.request import Request

LOG = "asyncplumber.client"
LONG = 30.0  # seconds that a thread may take on a busy machine


PAUSE = object()  # in a script: an attempt fails, and the next one is made when the plumber is back


class Script:
    """A sender that follows a script: it raises an outcome, or waits for it if it is an event."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.tried: list[str] = []
        self.requests: list[Request] = []
        self.back = threading.Event()

    def begin(self, pause: Any) -> Script:
        self.pause = pause
        return self

    def exchange(self, request: Request, understand: Any, deadline: float | None = None) -> Any:
        self.tried.append(request.id)
        self.requests.append(request)
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is PAUSE:
            self.pause(0.0)
            outcome = self.back
        if isinstance(outcome, threading.Event):
            outcome.wait(LONG)
        elif isinstance(outcome, Exception):
            raise outcome
        elif outcome is not None:
            return outcome
        return Receipt(request.id, "e.1", False, 0, {})

    def close(self) -> None:
        """Nothing is open."""


def request(id: str, body: bytes = b"1") -> Request:
    return Request(id, "/hooks/42", {}, body)


def down() -> Undelivered:
    return Undelivered("t", 1, "nobody there")


class OutboxTestCase(SynchronousTestCase):
    """Outboxes whose senders follow a script."""

    def outbox(self, script: Script, seconds: float = LONG, **options: Any) -> Outbox:
        """Return an outbox whose sender follows this script."""
        outbox = Outbox(
            "http://127.0.0.1:1",
            exit_timeout=seconds,
            sender_factory=lambda *_, **options: script.begin(options["sleep"]),
            **options,
        )
        self.addCleanup(outbox.close, 0.0)
        return outbox


class OutboxTests(OutboxTestCase):
    """A worker does not wait, and its events are not lost."""

    def test_a_caller_can_wait(self) -> None:
        """Until the event is sent."""
        script = Script()
        self.assertTrue(self.outbox(script).put(request("a"), wait=LONG))
        self.assertEqual(script.tried, ["a"])

    def test_a_caller_does_not_wait_by_itself(self) -> None:
        """The event is sent in the background."""
        back = threading.Event()
        script = Script(back)
        outbox = self.outbox(script)
        self.assertFalse(outbox.put(request("a")))
        back.set()
        self.assertTrue(outbox.flush())
        self.assertEqual(script.tried, ["a"])

    def test_nobody_waits_for_a_plumber_that_is_away(self) -> None:
        """The first caller waits until an attempt has failed, and nobody after it."""
        script = Script(PAUSE)
        outbox = self.outbox(script)
        for id in "abc":
            self.assertFalse(outbox.put(request(id), wait=10 * LONG))
        self.assertEqual(script.tried, ["a"])
        script.back.set()
        outbox.flush()
        self.assertEqual(script.tried, ["a", "b", "c"])

    def test_one_caller_waits_for_a_plumber_that_hangs(self) -> None:
        """As long as it wants; the others do not."""
        back = threading.Event()
        script = Script(back)
        outbox = self.outbox(script)
        self.assertFalse(outbox.put(request("a"), wait=0.01))
        for id in "bc":
            self.assertFalse(outbox.put(request(id), wait=10 * LONG))
        back.set()
        outbox.flush()
        self.assertEqual(script.tried, ["a", "b", "c"])

    def test_when_it_is_back_callers_wait_again(self) -> None:
        """What a caller waits for is sent when the call returns."""
        script = Script(down())
        outbox = self.outbox(script)
        outbox.put(request("a"), wait=LONG)
        outbox.put(request("b"))
        outbox.flush()
        self.assertTrue(outbox.put(request("c"), wait=LONG))

    def test_refused(self) -> None:
        """A refused event is not tried again, and does not delay the events behind it."""
        script = Script(*[Refused(413, "too-large", "")] * 2)
        outbox = self.outbox(script)
        self.assertTrue(outbox.put(request("a"), wait=LONG))
        for id in "bc":
            outbox.put(request(id))
        outbox.flush()
        self.assertEqual((script.tried, outbox.dropped), (["a", "b", "c"], 2))

    def test_a_time_limit_interrupts_a_caller(self) -> None:
        """It reaches the caller, and the event goes on waiting."""
        back = threading.Event()
        script = Script(back)
        outbox = self.outbox(script)

        def interrupt(*_: Any) -> None:
            raise SoftTimeLimitExceeded

        self.patch(outbox._thread._changed, "wait_for", interrupt)
        self.assertRaises(SoftTimeLimitExceeded, outbox.put, request("a"), wait=LONG)
        del outbox._thread._changed.wait_for  # type: ignore[method-assign]
        back.set()
        self.assertTrue(outbox.flush())
        self.assertEqual(script.tried, ["a"])

    def test_bounded(self) -> None:
        """Events beyond the limit of events or bytes are lost."""
        back = threading.Event()
        self.addCleanup(back.set)
        outbox = self.outbox(Script(back, back), seconds=0.0, max_events=3, max_bytes=10)
        with self.assertLogs(LOG, "ERROR") as logs:
            for id, size in (("a", 8), ("large", 3), ("b", 1), ("c", 1), ("full", 0)):
                outbox.put(request(id, bytes(size)))
            self.assertEqual(outbox.dropped, 2)
            back.set()
            self.assertTrue(outbox.flush(LONG))
        lost = ["event large is lost: the outbox is full", "event full is lost: the outbox is full"]
        self.assertEqual([line.partition("losses:")[2] for line in logs.output], lost)

    def test_default_bounds(self) -> None:
        """Without options these are 1,000 events and 16 MiB."""
        back = threading.Event()
        self.addCleanup(back.set)
        outbox = self.outbox(Script(back), seconds=0.0)
        with self.assertLogs(LOG, "ERROR"):
            outbox.put(request("large", bytes(17 * 1024 * 1024)))
            for number in range(1001):
                outbox.put(request(str(number)))
        self.assertEqual(outbox.dropped, 2)

    def test_losses_are_logged_once_per_interval(self) -> None:
        """The first loss is logged at once, and those within the interval in one line."""
        now = [100.0]
        outbox = self.outbox(Script(), max_events=0, clock=lambda: now[0])
        for moment in (100.0, 101.0, 109.9, 110.0, 119.9):
            now[0] = moment
            with self.assertLogs(LOG, "ERROR") as logs:
                outbox.put(request(str(moment)))
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
        outbox = self.outbox(Script(back), seconds=0.01)
        outbox.put(request("a"))
        with self.assertLogs(LOG, "ERROR") as logs:
            outbox.close()
        self.assertIn("event a is lost", logs.output[0])

    def test_an_event_that_is_sent_during_a_close_is_not_lost(self) -> None:
        """The attempt decides about it; only the events behind it are lost."""
        back = threading.Event()
        patient = Script(back)
        outbox = self.outbox(patient)
        for id in "ab":
            outbox.put(request(id))
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
        outbox.put(request("c"))
        back.set()
        self.assertTrue(outbox.flush())
        self.assertEqual((patient.tried, outbox.dropped), (["a", "c"], 1))

    def test_a_flush_loses_nothing(self) -> None:
        """What still waits is sent later, and the log says that it waits."""
        back = threading.Event()
        patient = Script(back)
        outbox = self.outbox(patient)
        outbox.put(request("a"))
        with self.assertLogs(LOG, "WARNING") as logs:
            self.assertFalse(outbox.flush(0.01))
        self.assertIn("1 event is not sent within 0.01 seconds", logs.output[0])
        back.set()
        self.assertTrue(outbox.flush())
        self.assertEqual((patient.tried, outbox.dropped), (["a"], 0))

    def test_no_thread_can_be_started(self) -> None:
        """If no thread can be started, the event waits for the next call."""
        patient = Script()
        outbox = self.outbox(patient)
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
        outbox = self.outbox(Script())
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

        outbox = self.outbox(Script())
        self.assertRaises(SoftTimeLimitExceeded, outbox.send, "42", Late(a=1))
