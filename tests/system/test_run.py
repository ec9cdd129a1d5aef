"""`asyncplumber run`, with real commands, and with a server that stands for the plumber."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from twisted.trial.unittest import SynchronousTestCase

from harness.processes import ROOT, start_server
from harness.receiver import Receiver, Step, close, respond, stall, task_receipt

LONG = 30.0  # seconds that a process may take on a busy machine
DELAY = 1.0  # seconds by which an absent plumber may delay a command
LIVE = {"run": "theirs", "state": "running", "done": False}
SUPERSEDED = respond(409, {"error": {"code": "superseded", "message": "no"}, "task": LIVE})


class RunTestCase(SynchronousTestCase):
    """Commands that are run as tasks."""

    before: tuple[str, ...] = ()  # the words before those of `asyncplumber run`

    def receiver(self, *script: Step) -> Receiver:
        receiver = Receiver(*script)
        self.addCleanup(receiver.stop)
        return receiver

    def start(self, url: str, *words: str, **env: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "asyncplumber", "run", "--account", "42", "--task", "t"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "ASYNCPLUMBER_URL": url}
        return subprocess.Popen(
            [*self.before, *command, *words],
            env={**environment, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run_command(self, receiver: Receiver, *words: str, **env: str) -> tuple[int, str, str]:
        """Run it; return its status, and what it printed."""
        process = self.start(receiver.url, *words, **env)
        out, err = process.communicate(timeout=2 * LONG)
        return process.returncode, out, err

    def told(self, receiver: Receiver, number: int = 0) -> list[tuple[str, Any]]:
        """Return the states and bodies of the reports, of which there are at least so many."""
        return [
            (request.headers["task-state"], json.loads(request.body) if request.body else None)
            for request in receiver.wait_for(number, LONG)
            if "task-state" in request.headers and request.headers["task-state"] != "running"
        ]


class OutcomeTests(RunTestCase):
    """What is reported of a command, and how `run` ends."""

    def test_a_command_that_fails(self) -> None:
        """The status is its own; the report has it, and the end of its errors."""
        receiver = self.receiver(task_receipt("r"), respond(404))
        shell = "echo '{\"a\":1}'; echo oops >&2; exit 3"
        done = self.run_command(receiver, "--", "sh", "-c", shell)
        self.assertEqual(done, (3, '{"a":1}\n', "oops\n"))
        error = {"type": "Exit", "code": 3, "message": "oops"}
        self.assertEqual(self.told(receiver), [("started", None), ("failed", error)])
        first, *_, last = receiver.received
        self.assertEqual((first.path, first.headers["task"]), ("/hooks/42", "t"))
        self.assertEqual(first.headers["task-deadline"], "60")
        self.assertEqual(first.headers["task-run"], last.headers["task-run"])

    def test_a_command_that_succeeds(self) -> None:
        """Its output is the result; it may report its progress to a URL, with no credential."""
        url = "http://127.0.0.1:1/callbacks/x"
        folder = Path(self.mktemp())
        folder.write_text("secret\n")
        folder.chmod(0o600)
        receiver = self.receiver(task_receipt("r"), respond(201, {"url": url}))
        shell = 'printf \'{"url": "%s"}\' "$ASYNCPLUMBER_CALLBACK"'
        done = self.run_command(receiver, "--token-file", str(folder), "--", "sh", "-c", shell)
        self.assertEqual(done, (0, f'{{"url": "{url}"}}', ""))
        self.assertEqual(self.told(receiver)[-1], ("completed", {"url": url}))
        start, mint, end = receiver.received
        self.assertEqual(
            {each.headers["authorization"] for each in receiver.received}, {"Bearer secret"}
        )
        asked = {"account": "42", "task": "t", "run": start.headers["task-run"]}
        self.assertEqual((mint.path, json.loads(mint.body)), ("/callbacks", asked))
        self.assertEqual(end.headers["content-type"], "application/json")

    def test_too_much_output(self) -> None:
        """It is a failure of its own, with the status of the command; or left alone."""
        receiver = self.receiver()
        words = ("--max-result", "10", "--", "sh", "-c", "echo 0123456789")
        self.assertEqual(self.run_command(receiver, *words), (0, "0123456789\n", ""))
        state, error = self.told(receiver)[-1]
        self.assertEqual((state, error["type"], error["size"]), ("failed", "too-large", 11))
        self.assertEqual(self.run_command(receiver, "--no-output", *words[2:])[0], 0)
        self.assertEqual(self.told(receiver)[-1], ("completed", None))

    def test_a_closed_output(self) -> None:
        """What the command prints goes to nobody, and not into a connection to the plumber."""
        self.before = ("sh", "-c", 'exec "$@" >&-', "sh")
        receiver = self.receiver(task_receipt("r"), respond(404))
        self.assertEqual(self.run_command(receiver, "--", "echo", "5"), (0, "", ""))
        self.assertEqual(self.told(receiver), [("started", None), ("completed", 5)])

    def test_a_process_that_is_left_behind(self) -> None:
        """It is not waited for, although it could still print."""
        began = time.monotonic()
        status, out, _ = self.run_command(self.receiver(), "--", "sh", "-c", "sleep 60 & echo a")
        self.assertLess(time.monotonic() - began, LONG)
        self.assertEqual((status, out), (0, "a\n"))

    def test_a_command_that_dies_or_is_not_there(self) -> None:
        """The status is that of a shell."""
        receiver = self.receiver()
        self.assertEqual(self.run_command(receiver, "--", "sh", "-c", "kill -9 $$")[0], 137)
        error = self.told(receiver)[-1][1]
        self.assertEqual((error["code"], error["signal"]), (137, "SIGKILL"))
        self.assertEqual(self.run_command(receiver, "--", "/nonsense")[0], 127)
        self.assertEqual(self.told(receiver)[-1][1]["code"], 127)


class ServerTests(RunTestCase):
    """With a real server (scenario 18)."""

    def test_one_of_two_that_start_at_once_runs(self) -> None:
        """The other one ends as it did; the account hears of one run, and of its progress."""
        server = start_server()
        self.addCleanup(server.kill)
        folder = Path(self.mktemp())
        folder.mkdir()
        shell = (
            f"echo ran >>{folder}/ran; sleep 1; echo oops >&2; "
            'curl -sS -d \'{"page": 3}\' "$ASYNCPLUMBER_CALLBACK?state=running" >/dev/null; '
            "echo '{\"a\":1}'; exit 3"
        )
        runs = [self.start(server.url, "--", "sh", "-c", shell) for _ in range(3)]
        outputs = [run.communicate(timeout=2 * LONG) for run in runs]
        self.assertEqual([run.returncode for run in runs], [3, 3, 3], outputs)
        self.assertEqual((folder / "ran").read_text(), "ran\n", outputs)
        self.assertEqual(sorted(out for out, _ in outputs), ["", "", '{"a":1}\n'])
        with urlopen(f"{server.url}/events/42?after=earliest&wait=0") as response:
            events = json.load(response)["events"]
        self.assertEqual(
            [(event["type"], event["data"]) for event in events],
            [
                ("task.started", None),
                ("task.progress", {"page": 3}),
                ("task.failed", {"type": "Exit", "code": 3, "message": "oops"}),
            ],
        )


class AbsentPlumberTests(RunTestCase):
    """A plumber that is down, hangs, or refuses."""

    def test_the_command_is_not_delayed(self) -> None:
        """Its status is its own, and it ends within a second."""
        words = ("--linger", "0", "--", "sh", "-c", "exit 3")
        began = time.monotonic()
        self.assertEqual(self.run_command(self.receiver(), *words)[0], 3)
        usual = time.monotonic() - began
        gone = self.receiver()
        gone.server_close()
        for receiver in (gone, self.receiver(*[stall] * 9), self.receiver(*[respond(503)] * 9)):
            began = time.monotonic()
            status, _, err = self.run_command(receiver, *words)
            self.assertLess(time.monotonic() - began - usual, DELAY)
            self.assertEqual(status, 3)
            self.assertIn("the command runs all the same", err)

    def test_the_end_is_reported_when_it_is_back(self) -> None:
        """By a process in the background, as reports that were made before."""
        receiver = self.receiver(close, close, close)
        status = self.run_command(receiver, "--", "sh", "-c", "exit 3")[0]
        self.assertEqual(status, 3)
        end = time.monotonic() + LONG
        while not (told := self.told(receiver)) or told[-1][0] != "failed":
            self.assertLess(time.monotonic(), end)
            time.sleep(0.02)
        ids = [request.id for request in receiver.received]
        self.assertEqual(len(set(ids)), 2)  # the beginning, and the end


class StopTests(RunTestCase):
    """Somebody stops the command."""

    def test_cancel(self) -> None:
        """The answer to a beat says so; the command gets SIGTERM, and may end as it likes."""
        receiver = self.receiver(task_receipt("r"), respond(404), task_receipt("r", cancel=True))
        shell = "trap 'exit 5' TERM; while :; do sleep 0.05; done"
        status = self.run_command(receiver, "--deadline", "1", "--", "sh", "-c", shell)[0]
        self.assertEqual(status, 5)
        state, error = self.told(receiver)[-1]
        self.assertEqual((state, error["code"]), ("canceled", 5))

    def test_signals_are_passed_on(self) -> None:
        """The command gets them."""
        receiver = self.receiver()
        shell = (
            "trap 'echo usr1' USR1; trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"
        )
        process = self.start(receiver.url, "--", "sh", "-c", shell)
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), "ready\n")
        process.send_signal(signal.SIGUSR1)
        self.assertEqual(process.stdout.readline(), "usr1\n")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LONG)
        self.assertEqual(process.returncode, 7)
        self.assertEqual(self.told(receiver)[-1][0], "canceled")


class JoinTests(RunTestCase):
    """The task runs already."""

    def test_it_waits_for_that_run(self) -> None:
        """And prints its result."""
        done = {**LIVE, "state": "completed", "done": True}
        receiver = self.receiver(
            SUPERSEDED, respond(200, LIVE), respond(200, done), respond(200, {"total": 7})
        )
        status, out, err = self.run_command(receiver, "--", "sh", "-c", "exit 9")
        self.assertEqual((status, out), (0, '{"total": 7}'), err)
        self.assertEqual(
            [request.path for request in receiver.received],
            ["/hooks/42", *["/tasks/42/t?wait=25"] * 2, "/tasks/42/t/result"],
        )

    def test_it_ends_as_that_run(self) -> None:
        """With the status of its command, or with one that says why there is none."""
        for state, error, status in (
            ("failed", {"type": "Exit", "code": 3, "message": "oops"}, 3),
            ("failed", {"type": "ValueError", "message": "oops"}, 1),
            ("lost", {"type": "silent", "message": "gone"}, 75),
        ):
            task = {**LIVE, "state": state, "done": True, "error": error}
            receiver = self.receiver(SUPERSEDED, respond(200, task))
            self.assertEqual(self.run_command(receiver, "--", "true")[0], status)

    def test_it_may_not_read(self) -> None:
        """It cannot know how the run ends; the command is not run a second time."""
        receiver = self.receiver(SUPERSEDED, respond(403))
        status, _, err = self.run_command(receiver, "--", "echo", "no")
        self.assertEqual(status, 75)
        self.assertIn("may not read", err)

    def test_it_does_not_wait(self) -> None:
        """If that is wanted."""
        receiver = self.receiver(SUPERSEDED)
        self.assertEqual(self.run_command(receiver, "--no-wait", "--", "echo")[0], 75)

    def test_a_run_that_somebody_else_started(self) -> None:
        """The command executes it."""
        waiting = {"run": "theirs", "state": "submitted", "done": False}
        receiver = self.receiver(respond(409, {"task": waiting}), task_receipt("theirs"))
        self.assertEqual(self.run_command(receiver, "--", "true")[0], 0)
        runs = [request.headers.get("task-run") for request in receiver.received]
        self.assertEqual((runs[1], runs[-1]), ("theirs", "theirs"))
