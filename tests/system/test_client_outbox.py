"""The outbox, with a real HTTP server, and in processes that end in every way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.client import Outbox, RetryPolicy
from harness.processes import ROOT
from harness.receiver import Receiver, Step, respond, stall

LOG = "asyncplumber.client"
LONG = 30.0  # seconds that a process may take on a busy machine


class ServerTests(SynchronousTestCase):
    """Real requests."""

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

    def test_it_says_when_it_happened(self) -> None:
        """Its time is that of the call, unless the caller says another one."""
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
        """Run a program that has an ``outbox``; return what received it, and its standard error."""
        receiver = Receiver(*script)
        self.addCleanup(receiver.stop)
        begin = "import multiprocessing, os, sys, time\n"
        begin += "from asyncplumber.client import Outbox, RetryPolicy\n"
        begin += "outbox = Outbox(sys.argv[1], exit_timeout=float(sys.argv[2]))\n"
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "script.py").write_text(begin + code)
        exit_timeout = "0.05" if script else str(LONG)
        command = [sys.executable, str(folder / "script.py"), receiver.url, exit_timeout]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * LONG, env=env)
        self.assertEqual(done.returncode, 0, done.stderr)
        return receiver, done.stderr

    def bodies(self, receiver: Receiver) -> list[bytes]:
        return [request.body for request in receiver.received]

    def test_end(self) -> None:
        """A program that ends sends what waits first."""
        receiver, output = self.run_script("for n in range(100): outbox.send('42', n)")
        self.assertEqual((self.bodies(receiver), output), ([b"%d" % n for n in range(100)], ""))

    def test_end_while_the_plumber_is_away(self) -> None:
        """It ends after a bounded time, with status 0, and logs what is lost."""
        began = time.monotonic()
        code = "outbox.send('42', 1, id='t-1'); outbox.send('42', 2, id='t-2')"
        _, output = self.run_script(code, stall)
        self.assertLess(time.monotonic() - began, LONG)
        self.assertIn("event t-2 is lost: the outbox was closed\n", output)
        self.assertIn("event t-1 is lost unless the attempt under way succeeds\n", output)

    def test_fork(self) -> None:
        """Parent and child send their own events once, also if the child ends without atexit."""
        receiver, output = self.run_script(
            "outbox.send('42', 1)\n"
            "if not (child := os.fork()): outbox.send('42', 2); outbox.flush(); os._exit(0)\n"
            "os.waitpid(child, 0); outbox.send('42', 3)\n"
        )
        self.assertEqual((sorted(self.bodies(receiver)), output), ([b"1", b"2", b"3"], ""))

    def test_a_fork_while_the_thread_works(self) -> None:
        """The child has a working outbox of its own, whatever its parent's thread held."""
        receiver, output = self.run_script(
            "for n in range(20):\n"
            "    outbox.send('42', n)\n"
            "    if not (child := os.fork()): outbox.send('42', 100 + n); sys.exit()\n"
            "    os.waitpid(child, 0)\n"
        )
        sent = sorted([b"%d" % n for n in range(20)] + [b"%d" % (100 + n) for n in range(20)])
        self.assertEqual((sorted(self.bodies(receiver)), output), (sent, ""))

    def test_multiprocessing(self) -> None:
        """The children of `multiprocessing` end without `atexit`, and send what waits."""
        for method in ("fork", "spawn"):
            receiver, output = self.run_script(
                "def work(n): outbox.send('42', n)\n"
                "if __name__ == '__main__':\n"
                f"    context = multiprocessing.get_context('{method}')\n"
                "    process = context.Process(target=work, args=(7,))\n"
                "    process.start(); process.join()\n"
            )
            self.assertEqual((self.bodies(receiver), output), ([b"7"], ""), method)
