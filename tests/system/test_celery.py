"""
Tests for `asyncplumber.integrations.celery`: in this process, and with real workers that send to a
real server.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.client import HTTPConnection
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlencode
from uuid import UUID

from celery import Celery, signals
from celery.exceptions import Ignore
from twisted.python.filepath import FilePath
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.client import RetryPolicy
from asyncplumber.integrations.celery import announce, for_account
from harness.processes import Process, Server, celery_settings, start_server, start_worker
from harness.receiver import Receiver, Step, receive, respond, task_receipt

APP = "tests.celery_app"
ANSWER = 30.0  # seconds that a real worker may take until an event is there


class Unspeakable:
    """A result without a repr."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")


class Speaking:
    """A result that tells kombu what it is in JSON."""

    def __json__(self) -> list[int]:
        return [1, 2]


class EagerTests(SynchronousTestCase):
    """Announcements without a worker: tasks run in this process."""

    def begin(self, *script: Step, **options: Any) -> None:
        self.receiver = Receiver(*script)
        self.addCleanup(self.receiver.stop)
        self.app = Celery("eager", set_as_current=False)
        self.app.conf.task_always_eager = True

        @self.app.task(name="tests.work")
        def task() -> Any:
            return self.work()

        self.task = task
        retry_policy = RetryPolicy(deadline=20.0, initial_backoff=0.0, max_backoff=0.0)
        self.plumber = announce(self.app, self.receiver.url, retry_policy=retry_policy, **options)

    def run_task(self, work: Callable[[], Any], **options: Any) -> Any:
        """Run a function as a task for account 42, and return its result."""
        self.work = work
        return self.task.apply_async(**{**for_account("42"), **options})

    def announced(self) -> list[tuple[str, Any]]:
        """Return the states and bodies of the reports."""
        signals.worker_process_shutdown.send(sender=None)  # the outbox is emptied
        return [
            (request.headers["task-state"], json.loads(request.body) if request.body else None)
            for request in self.receiver.received
        ]

    def test_result(self) -> None:
        """It goes to the account of the task, which the Celery id names there, as does the run."""
        self.begin()
        self.run_task(lambda: [1, 2], task_id="t-1")
        self.assertEqual(self.announced(), [("started", None), ("completed", [1, 2])])
        for request in self.receiver.received:
            self.assertEqual(
                (request.path, request.headers["task"], request.headers["task-run"]),
                ("/hooks/42", "t-1", "t-1"),
            )

    def test_a_name_of_its_own(self) -> None:
        """The account may know the task by another name; the run is the Celery id."""
        self.begin()
        self.run_task(lambda: 1, task_id="t-1", **for_account("42", "invoice-7"))
        self.announced()
        for request in self.receiver.received:
            said = (request.headers["task"], request.headers["task-run"])
            self.assertEqual(said, ("invoice-7", "t-1"))

    def test_the_end_is_kept_when_the_task_is_done(self) -> None:
        """A worker that is killed after it has lost nothing."""
        self.begin()
        self.run_task(lambda: 1)
        self.assertEqual(len(self.receiver.received), 2)

    def test_failure(self) -> None:
        """It has type and message of the error, and no traceback."""
        self.begin()
        outcome = self.run_task(lambda: 1 // 0)
        self.assertEqual(outcome.state, "FAILURE")
        error = {"type": "ZeroDivisionError", "message": "integer division or modulo by zero"}
        self.assertEqual(self.announced(), [("started", None), ("failed", error)])

    def test_traceback(self) -> None:
        """Tracebacks are sent if the application asks for them."""
        self.begin(tracebacks=True)
        self.run_task(lambda: 1 // 0)
        self.assertIn("Traceback (most recent call last)", self.announced()[-1][1]["traceback"])

    def test_no_account(self) -> None:
        """A task without an account is not announced."""
        self.begin()
        self.run_task(lambda: self.plumber.progress(1), headers=None)
        self.run_task(lambda: self.plumber.progress(1), headers={"other": "header"})
        self.assertEqual(self.announced(), [])

    def test_other_app(self) -> None:
        """Signals reach all apps of a process; tasks of another app are ignored."""
        self.begin()
        other = Celery("other", set_as_current=False)
        other.conf.task_always_eager = True

        @other.task
        def work() -> int:
            return 1

        self.assertEqual(work.apply_async(**for_account("42")).get(), 1)
        self.assertEqual(self.announced(), [])

    def test_progress(self) -> None:
        """By ``progress``, and by Celery's own ``update_state``."""
        self.begin()

        def work() -> str:
            for done in range(2):
                self.plumber.progress({"done": done})
                self.receiver.wait_for(done + 2)
            self.task.update_state(state="PROGRESS", meta={"done": 2})
            self.task.update_state(state="CONVERTING")
            return "ok"

        self.run_task(work)
        self.assertEqual(
            self.announced(),
            [
                ("started", None),
                *[("running", {"done": done}) for done in range(3)],
                ("completed", "ok"),
            ],
        )

    def test_progress_outside(self) -> None:
        """Outside of a task it does nothing, and nothing is canceled."""
        self.begin()
        self.plumber.progress(1, raise_on_cancel=True)
        self.assertFalse(self.plumber.canceled)
        self.assertEqual(self.announced(), [])

    def test_cancel(self) -> None:
        """The task hears of it by the answer to a report, and ends as Celery's revoked do."""
        told = task_receipt("t-1", cancel=True)
        self.begin(told, told)
        passed = []

        def work() -> None:
            self.receiver.wait_for(1)
            end = time.monotonic() + ANSWER
            while not self.plumber.canceled and time.monotonic() < end:
                time.sleep(0.01)
            passed.append(1)
            self.plumber.progress(1, raise_on_cancel=True)
            passed.append(2)

        self.run_task(work, task_id="t-1")
        self.assertEqual(passed, [1])
        state, error = self.announced()[-1]
        self.assertEqual((state, error["type"]), ("canceled", "Canceled"))

    def test_ignored(self) -> None:
        """A task that tells Celery to ignore it has an end all the same."""
        self.begin()

        def work() -> None:
            raise Ignore

        self.run_task(work)
        state, error = self.announced()[-1]
        self.assertEqual((state, error["type"]), ("canceled", "Ignored"))

    def test_too_large(self) -> None:
        """The run has failed; the task has not."""
        self.begin(task_receipt("t"), respond(413))
        self.assertEqual(self.run_task(lambda: "x" * 1000).get(), "x" * 1000)
        state, error = self.announced()[-1]
        self.assertEqual((state, error["type"], error["size"]), ("failed", "too-large", 1002))

    def test_beyond_json(self) -> None:
        """Values of Celery's JSON arrive bare; other results arrive as their repr."""
        self.begin()
        self.run_task(lambda: datetime(2012, 9, 28, tzinfo=UTC))
        self.run_task(lambda: {"nan": float("nan")})
        self.run_task(lambda: Unspeakable())
        self.run_task(lambda: {"key": UUID(int=7), "price": Decimal("1.50"), "own": Speaking()})
        said = [data for state, data in self.announced() if state == "completed"]
        self.assertEqual(said[0], "2012-09-28T00:00:00+00:00")
        self.assertEqual(said[1], {"repr": "{'nan': nan}"})
        self.assertIn("Unspeakable", said[2]["repr"])
        self.assertEqual(said[3], {"key": str(UUID(int=7)), "price": "1.50", "own": [1, 2]})

    def test_account_is_a_number(self) -> None:
        """A task may be started for the number or the UUID that a database has as key."""
        self.begin()
        for account in (7, UUID(int=7)):
            self.run_task(lambda: 1, **for_account(account))
        self.run_task(lambda: 1, headers={"account": 7})
        self.announced()
        paths = [request.path for request in self.receiver.received]
        expected = ["/hooks/7", f"/hooks/{UUID(int=7)}", "/hooks/7"]
        self.assertEqual(paths[::2], expected)
        self.assertEqual(paths[1::2], expected)

    def test_outcome_stays(self) -> None:
        """A refusal, or an impossible account, does not change the outcome of a task."""
        self.begin(respond(403), respond(403))
        self.assertEqual(self.run_task(lambda: 1).get(), 1)
        self.assertEqual(self.run_task(lambda: 2, headers={"account": ""}).get(), 2)
        self.assertEqual(self.run_task(lambda: 3, headers={"account": "\ud800"}).get(), 3)
        self.announced()
        self.assertEqual(len(self.receiver.received), 2)

    def test_comes_back(self) -> None:
        """Reports that were not accepted at once are sent later, in order, the newest progress."""
        self.begin(*[respond(503)] * 3)
        self.run_task(lambda: [self.plumber.progress(done) for done in range(3)] and "ok")
        kept = self.announced()[3:]
        self.assertEqual(kept, [("started", None), ("running", 2), ("completed", "ok")])

    def test_time_of_event(self) -> None:
        """A report says when it happened, however long it was in the outbox."""
        self.begin(respond(503))
        before = datetime.now(UTC)
        self.run_task(lambda: 1)
        self.announced()
        times = [request.headers["ce-time"] for request in self.receiver.received]
        self.assertEqual(len(set(times)), 2)
        for moment in times:
            self.assertTrue(before <= datetime.fromisoformat(moment) <= datetime.now(UTC))


class WorkerTestCase(SynchronousTestCase):
    """Starts a real worker, and tasks for it from a process without asyncplumber."""

    def client(self) -> Celery:
        self.folder = Path(mkdtemp(prefix="asyncplumber-test-"))
        self.addCleanup(FilePath(str(self.folder)).remove)
        client = Celery("client", set_as_current=False)
        client.conf.update(celery_settings(self.folder))
        self.addCleanup(client.close)
        return client

    def worker(self, url: str, *options: str) -> Process:
        env = {"CELERY_TEST_FOLDER": str(self.folder), "ASYNCPLUMBER_URL": url}
        worker = start_worker(APP, *options, env=env)
        self.addCleanup(worker.kill)
        return worker


# A suite that is mixed into a test case; for mypy it is one.
if TYPE_CHECKING:
    _Case = WorkerTestCase
else:
    _Case = object


class _AnyPool(_Case):
    """What holds with every pool of Celery, with a real server."""

    pool: ClassVar[str]
    server: Server

    def setUp(self) -> None:
        self.server = start_server()
        self.addCleanup(self.server.kill)
        self.tasks = self.client()
        self.process = self.worker(self.server.url, "--pool", self.pool, "--concurrency", "2")

    def start(self, name: str, account: str, *args: Any, **options: Any) -> str:
        return self.tasks.send_task(
            f"{APP}.{name}", args, headers={"account": account}, **options
        ).id

    def events(self, account: str, number: int) -> list[dict[str, Any]]:
        """Return so many events of the account, read by long-poll."""
        return self.read(account, lambda events: len(events) >= number)

    def until_done(self, account: str) -> list[dict[str, Any]]:
        """Return the events of the account up to the end of its task."""
        return self.read(account, lambda events: bool(events) and events[-1]["task"]["done"])

    def read(
        self, account: str, is_enough: Callable[[list[dict[str, Any]]], bool]
    ) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=2 * ANSWER)
        after = "earliest"
        while not is_enough(events):
            connection.request(
                "GET", f"/events/{account}?{urlencode({'after': after, 'wait': ANSWER})}"
            )
            page = json.loads(connection.getresponse().read())
            if not page["events"]:
                break
            events += page["events"]
            after = page["cursor"]
        connection.close()
        self.assertTrue(is_enough(events), (events, self.process.output))
        return events

    def test_announces(self) -> None:
        """Each task is started and has one end; an attempt that is repeated is no end."""
        added = self.start("add", "result", 20, 22)
        self.start("fail", "failure")
        self.start("report", "progress", 3)
        again = self.start("second_time", "retry")
        self.start("rich", "rich")
        self.start("odd", "odd")
        self.start("add", "late", 1, 1, expires=datetime.now(UTC) - timedelta(hours=1))

        started, event = self.events("result", 2)
        self.assertEqual((started["type"], event["type"]), ("task.started", "task.completed"))
        self.assertEqual((event["data"], event["content_type"]), (42, "application/json"))
        self.assertEqual(
            event["task"], {"task": added, "run": added, "state": "completed", "done": True}
        )
        event = self.events("failure", 2)[1]
        error = {"type": "ValueError", "message": "no such thing"}
        self.assertEqual((event["type"], event["task"]["error"]), ("task.failed", error))
        told = self.until_done("progress")[:-1]
        self.assertEqual(told[-1]["type"], "task.progress")
        self.assertEqual(told[-1]["data"], {"done": 2, "of": 3})  # the last one always arrives
        told = self.until_done("retry")
        self.assertEqual({event["task"]["run"] for event in told}, {again})
        self.assertEqual(told[-1]["data"], "at last")
        self.assertEqual(
            self.until_done("rich")[-1]["data"], {"day": "2012-09-28", "price": "1.50"}
        )
        self.assertEqual(self.until_done("odd")[-1]["data"], {"repr": "<something odd>"})
        [event] = self.events("late", 1)
        self.assertEqual((event["type"], event["data"]["type"]), ("task.canceled", "Expired"))
        self.check_cancel()

    def check_cancel(self) -> None:
        """The task sees it at its next progress, and ends canceled (scenario 15)."""
        self.start("endless", "cancel", task_id="t-1")
        self.assertEqual(self.events("cancel", 1)[0]["type"], "task.started")
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=2 * ANSWER)
        self.addCleanup(connection.close)
        connection.request("POST", "/tasks/cancel/t-1/cancel")
        with connection.getresponse() as response:
            self.assertEqual((response.status, response.read() != b""), (202, True))
        connection.request("GET", f"/tasks/cancel/t-1?wait={ANSWER:.0f}")
        with connection.getresponse() as response:
            task = json.loads(response.read())
        self.assertEqual((task["state"], task["error"]["type"]), ("canceled", "Canceled"))
        connection.request("POST", "/tasks/cancel/t-1/cancel")
        with connection.getresponse() as response:
            self.assertEqual(response.status, 409)


class PreforkTests(_AnyPool, WorkerTestCase):
    """Celery's usual pool: each task runs in a child process."""

    pool = "prefork"

    def test_lost(self) -> None:
        """The main process tells for a child that died, or was killed by a limit or by Celery."""
        self.start("die", "killed")
        self.start("sleep", "slow", 600, time_limit=1)
        for account, error in (("killed", "WorkerLostError"), ("slow", "TimeLimitExceeded")):
            end = self.until_done(account)[-1]
            self.assertEqual((end["type"], end["data"]["type"]), ("task.failed", error))
        # A task that Celery ends has been canceled.
        id = self.start("sleep", "revoked", 600)
        self.events("revoked", 1)
        self.tasks.control.revoke(id, terminate=True)
        end = self.until_done("revoked")[-1]
        self.assertEqual((end["type"], end["data"]["type"]), ("task.canceled", "Terminated"))


class SoloTests(_AnyPool, WorkerTestCase):
    """Tasks run in the main process."""

    pool = "solo"


class ThreadsTests(_AnyPool, WorkerTestCase):
    """Tasks run in threads of the main process."""

    pool = "threads"


class AbsentPlumberTests(WorkerTestCase):
    """No result is lost if its process ends while the plumber is away for a moment."""

    def end_while_away(self, end: str, *options: str) -> None:
        """Run one task; the plumber comes back only when the process says that it ends."""
        back = threading.Event()
        received: list[str] = []

        def away(handler: Any) -> None:
            if back.is_set():
                received.append(handler.headers["Task-State"])
            (receive if back.is_set() else respond(503))(handler)

        receiver = Receiver(*[away] * 1000)
        self.addCleanup(receiver.stop)
        tasks = self.client()
        process = self.worker(receiver.url, "--concurrency", "1", *options)
        tasks.send_task(f"{APP}.add", (1, 1), headers={"account": "42"})
        receiver.wait_for(1)
        if "--max-tasks-per-child" not in options:
            process.terminate()
        process.wait_for(end)
        back.set()
        self.assertEqual(process.stop(), 0, process.output)
        self.assertEqual(received, ["started", "completed"], process.output)

    def test_child_is_recycled(self) -> None:
        """A child that reaches its number of tasks empties its outbox before it exits."""
        self.end_while_away(
            "worker_process_shutdown", "--pool", "prefork", "--max-tasks-per-child", "1"
        )

    def test_child_is_stopped(self) -> None:
        """A child empties its outbox before its worker ends."""
        self.end_while_away("worker_process_shutdown", "--pool", "prefork")

    def test_solo_is_stopped(self) -> None:
        """A worker without children empties its own."""
        self.end_while_away("worker_shutdown", "--pool", "solo")

    def test_threads_are_stopped(self) -> None:
        """A worker with threads does the same."""
        self.end_while_away("worker_shutdown", "--pool", "threads")
