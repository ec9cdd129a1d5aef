"""
Tests for `asyncplumber.client.outbox`: with senders that are told what to do, and in processes that
end in every way.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from twisted.python.filepath import FilePath
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.client import Outbox, Receipt, Refused, RetryPolicy, Undelivered
from asyncplumber.client import outbox as outbox_module
from asyncplumber.client.request import Request
from harness.processes import ROOT
from harness.receiver import Receiver, Step, respond, stall

LOG = "asyncplumber.client"
ANSWER = 30.0  # seconds that a real thread or process may take


class Script:
    """
    A sender that does as it is told: what is in `outcomes` is raised, or waited for if it is an
    event.
    """

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.tried: list[str] = []

    def deliver(self, request: Request) -> Receipt:
        self.tried.append(request.id)
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, threading.Event):
            outcome.wait(ANSWER)
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
    """With senders that do as they are told."""

    def outbox(
        self, quick: Script, patient: Script, seconds: float = ANSWER, **options: Any
    ) -> Outbox:
        """One whose senders are these."""

        def make(url: str, *, retry_policy: RetryPolicy, **_: Any) -> Script:
            return quick if retry_policy.attempts == 1 else patient

        outbox = Outbox("http://127.0.0.1:1", exit_timeout=seconds, sender_factory=make, **options)
        self.addCleanup(outbox.close, 0.0)
        return outbox


class OutboxTests(OutboxTestCase):
    """What keeps a worker from waiting, and its events from being lost."""

    def test_in_line(self) -> None:
        """Normally an event is sent before the call returns."""
        quick, patient = Script(), Script()
        self.outbox(quick, patient).put(request("a"), inline=True)
        self.assertEqual((quick.tried, patient.tried), (["a"], []))

    def test_main_process(self) -> None:
        """Who may not wait does not."""
        quick, patient = Script(), Script()
        outbox = self.outbox(quick, patient)
        outbox.put(request("a"), inline=False)
        outbox.flush()
        self.assertEqual((quick.tried, patient.tried), ([], ["a"]))

    def test_held_up_once(self) -> None:
        """
        As long as one event waits the others wait behind it, and no task waits again for an absent
        plumber.
        """
        back = threading.Event()
        quick, patient = Script(down()), Script(back)
        outbox = self.outbox(quick, patient)
        for id in "abc":
            outbox.put(request(id), inline=True)
        self.assertEqual(quick.tried, ["a"])
        back.set()
        outbox.flush()
        self.assertEqual(patient.tried, ["a", "b", "c"])

    def test_in_line_again(self) -> None:
        """When the outbox is empty events are sent in line again."""
        quick, patient = Script(down()), Script()
        outbox = self.outbox(quick, patient)
        outbox.put(request("a"), inline=True)
        outbox.flush()
        outbox.put(request("b"), inline=True)
        self.assertEqual((quick.tried, patient.tried), (["a", "b"], ["a"]))

    def test_refused(self) -> None:
        """What is refused does not come back, and does not hold up what is behind it."""
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
        """
        A soft time limit that strikes while an event is sent reaches the task, and the event is
        sent all the same.
        """
        quick, patient = Script(SoftTimeLimitExceeded()), Script()
        outbox = self.outbox(quick, patient)
        self.assertRaises(SoftTimeLimitExceeded, outbox.put, request("a"), inline=True)
        outbox.flush()
        self.assertEqual(patient.tried, ["a"])

    def test_a_time_limit_may_strike_while_the_log_is_written(self) -> None:
        """Between the failed try and the outbox the event is nowhere; it is kept all the same."""

        def struck(*_: Any) -> None:
            raise SoftTimeLimitExceeded

        quick, patient = Script(down()), Script()
        outbox = self.outbox(quick, patient)
        self.patch(outbox_module._log, "warning", struck)
        self.assertRaises(SoftTimeLimitExceeded, outbox.put, request("a"), inline=True)
        self.assertTrue(outbox.flush())
        self.assertEqual(patient.tried, ["a"])

    def test_bounded(self) -> None:
        """
        An absent plumber costs a bounded number of events and of bytes, to the last that fits; what
        is over is lost.
        """
        back = threading.Event()
        self.addCleanup(back.set)
        outbox = self.outbox(Script(), Script(back, back), seconds=0.0, max_events=3, max_bytes=10)
        with self.assertLogs(LOG, "ERROR") as logs:
            for id, size in (("a", 8), ("large", 3), ("b", 1), ("c", 1), ("full", 0)):
                outbox.put(request(id, bytes(size)), inline=False)
            self.assertEqual(outbox.dropped, 2)
            back.set()
            self.assertTrue(outbox.flush(ANSWER))
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

    def test_losses_are_told_once_in_a_while(self) -> None:
        """
        The first loss is told at once, all that follow within the interval in one line, with their
        number.
        """
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

    def test_end_does_not_wait_for_ever(self) -> None:
        """A process ends although the plumber is away, and names what is lost."""
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

    def test_an_attempt_that_fails_after_a_close_is_the_last(self) -> None:
        """The event is counted as lost once, and what comes later is sent."""
        receiver = Receiver(respond(503), respond(503))
        self.addCleanup(receiver.stop)
        policy = RetryPolicy(deadline=300.0, initial_backoff=60.0, max_backoff=60.0)
        outbox = Outbox(receiver.url, retry_policy=policy)
        outbox.send("42", 1, id="a")
        receiver.wait_for(1)
        with self.assertLogs(LOG, "ERROR"):
            self.assertFalse(outbox.close(0.0))
            self.assertTrue(outbox.flush())
        self.assertEqual(outbox.dropped, 1)
        outbox.send("42", 2, id="b")
        outbox.flush()
        self.assertEqual([each.id for each in receiver.received], ["a", "b", "b"])

    def test_a_flush_loses_nothing(self) -> None:
        """
        Waiting in vain is no reason to give up: what waits is still sent later, and the log says
        that it waits.
        """
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

    def test_no_thread_to_be_had(self) -> None:
        """
        Where no thread can be started the event waits for the next call, and nothing is raised.
        """
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
        """Whatever is wrong with an event is told to the log and not to the caller."""
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
        """What breaks into a task is not for us to swallow."""

        class Late(dict[str, int]):
            def items(self) -> Any:
                raise SoftTimeLimitExceeded

        outbox = self.outbox(Script(), Script())
        self.assertRaises(SoftTimeLimitExceeded, outbox.send, "42", Late(a=1))

    def test_it_says_when_it_happened(self) -> None:
        """
        However long an event waits, its time is that of the call, unless the caller says another.
        """
        receiver = Receiver()
        self.addCleanup(receiver.stop)
        outbox = Outbox(receiver.url)
        before = datetime.now(UTC)
        outbox.send(42, {"total": 7}, id="t-1")
        outbox.send("42", 1, time="2012-09-28T11:00:00Z")
        self.assertTrue(outbox.flush())
        first, second = receiver.received
        self.assertEqual((first.path, first.id, first.body), ("/hooks/42", "t-1", b'{"total":7}'))
        self.assertTrue(
            before <= datetime.fromisoformat(first.headers["ce-time"]) <= datetime.now(UTC)
        )
        self.assertEqual(second.headers["ce-time"], "2012-09-28T11:00:00Z")

    def test_a_silent_plumber_holds_up_nobody(self) -> None:
        """
        A thousand events for a plumber that takes connections and says nothing: the caller goes on.
        """
        receiver = Receiver(stall)
        self.addCleanup(receiver.stop)
        outbox = Outbox(
            receiver.url, retry_policy=RetryPolicy(timeout=60.0, deadline=60.0), exit_timeout=0.0
        )
        self.addCleanup(outbox.close)
        began = time.monotonic()
        for number in range(1000):
            outbox.send("42", number)
        self.assertLess(
            time.monotonic() - began, 10.0
        )  # one attempt that was waited for would take 60
        self.assertEqual(outbox.dropped, 0)


class ProcessTests(SynchronousTestCase):
    """Every way in which a process ends."""

    def run_script(self, code: str, *script: Step) -> tuple[Receiver, str]:
        """Run this with `outbox` at hand, to its end.  What came in, and what it said."""
        receiver = Receiver(*script)
        self.addCleanup(receiver.stop)
        begin = "import multiprocessing, os, sys, time\n"
        begin += "from asyncplumber.client import Outbox, RetryPolicy\n"
        begin += "outbox = Outbox(sys.argv[1], exit_timeout=float(sys.argv[2]))\n"
        folder = Path(mkdtemp(prefix="asyncplumber-test-"))
        self.addCleanup(FilePath(folder).remove)
        (folder / "script.py").write_text(begin + code)
        exit_timeout = "0.05" if script else str(ANSWER)
        command = [sys.executable, str(folder / "script.py"), receiver.url, exit_timeout]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * ANSWER, env=env)
        self.assertEqual(done.returncode, 0, done.stderr)
        return receiver, done.stderr

    def bodies(self, receiver: Receiver) -> list[bytes]:
        return [request.body for request in receiver.received]

    def test_end(self) -> None:
        """A program that ends sends first what waits."""
        receiver, said = self.run_script("for n in range(100): outbox.send('42', n)")
        self.assertEqual((self.bodies(receiver), said), ([b"%d" % n for n in range(100)], ""))

    def test_end_while_the_plumber_is_away(self) -> None:
        """
        It does not wait for ever: after its time it ends, with status 0, and says what is lost.
        """
        began = time.monotonic()
        code = "outbox.send('42', 1, id='t-1'); outbox.send('42', 2, id='t-2')"
        _, said = self.run_script(code, stall)
        self.assertLess(time.monotonic() - began, ANSWER)
        self.assertIn("event t-2 is lost: the outbox was closed\n", said)
        self.assertIn("event t-1 is lost unless the attempt under way succeeds\n", said)

    def test_fork(self) -> None:
        """
        Parent and child send what is theirs, each once, also where the child ends without a
        close_going_away after a flush.
        """
        receiver, said = self.run_script(
            "outbox.send('42', 1)\n"
            "if not (child := os.fork()): outbox.send('42', 2); outbox.flush(); os._exit(0)\n"
            "os.waitpid(child, 0); outbox.send('42', 3)\n"
        )
        self.assertEqual((sorted(self.bodies(receiver)), said), ([b"1", b"2", b"3"], ""))

    def test_a_fork_while_the_thread_works(self) -> None:
        """
        A child that is forked in the middle of a send has a whole outbox of its own, whatever its
        parent's thread held.
        """
        receiver, said = self.run_script(
            "for n in range(20):\n"
            "    outbox.send('42', n)\n"
            "    if not (child := os.fork()): outbox.send('42', 100 + n); sys.exit()\n"
            "    os.waitpid(child, 0)\n"
        )
        sent = sorted([b"%d" % n for n in range(20)] + [b"%d" % (100 + n) for n in range(20)])
        self.assertEqual((sorted(self.bodies(receiver)), said), (sent, ""))

    def test_multiprocessing(self) -> None:
        """
        The children of `multiprocessing`, which end without `atexit`, send what waits, however they
        were started.
        """
        for method in ("fork", "spawn"):
            receiver, said = self.run_script(
                "def work(n): outbox.send('42', n)\n"
                "if __name__ == '__main__':\n"
                f"    context = multiprocessing.get_context('{method}')\n"
                "    process = context.Process(target=work, args=(7,))\n"
                "    process.start(); process.join()\n"
            )
            self.assertEqual((self.bodies(receiver), said), ([b"7"], ""), method)
