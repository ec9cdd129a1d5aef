"""
Tests for `asyncplumber.integrations.celery`: in this process, and with real workers that send to a
real server.
"""

from __future__ import annotations

import json
import threading
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
from twisted.python.filepath import FilePath
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.client import RetryPolicy
from asyncplumber.integrations.celery import announce, for_account
from harness.processes import Process, Server, celery_settings, start_server, start_worker
from harness.receiver import Receiver, Step, receive, respond

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
        return [
            (request.headers["event-type"], json.loads(request.body))
            for request in self.receiver.received
        ]

    def test_result(self) -> None:
        """It goes to the account of the task, with an id made of the task's id."""
        self.begin()
        self.run_task(lambda: [1, 2], task_id="t-1")
        self.assertEqual(
            self.announced(),
            [
                (
                    "result",
                    {"task": "tests.work", "task_id": "t-1", "state": "SUCCESS", "result": [1, 2]},
                )
            ],
        )
        [request] = self.receiver.received
        self.assertEqual((request.path, request.id), ("/hooks/42", "t-1:SUCCESS"))

    def test_failure(self) -> None:
        """It has type and message of the error, and no traceback."""
        self.begin()
        outcome = self.run_task(lambda: 1 // 0)
        self.assertEqual(outcome.state, "FAILURE")
        [(type, data)] = self.announced()
        self.assertEqual((type, data["state"]), ("failure", "FAILURE"))
        self.assertEqual(
            data["error"],
            {"type": "ZeroDivisionError", "message": "integer division or modulo by zero"},
        )

    def test_traceback(self) -> None:
        """Tracebacks are sent if the application asks for them."""
        self.begin(tracebacks=True)
        self.run_task(lambda: 1 // 0)
        self.assertIn(
            "Traceback (most recent call last)", self.announced()[0][1]["error"]["traceback"]
        )

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
        """It is sent while the task runs, each report as an event of its own."""
        self.begin()
        self.run_task(lambda: [self.plumber.progress({"done": done}) for done in range(2)] and "ok")
        self.assertEqual([type for type, _ in self.announced()], ["progress", "progress", "result"])
        self.assertEqual(
            [data.get("progress") for _, data in self.announced()], [{"done": 0}, {"done": 1}, None]
        )
        self.assertEqual(len({request.id for request in self.receiver.received}), 3)

    def test_progress_outside(self) -> None:
        """Outside of a task it does nothing."""
        self.begin()
        self.plumber.progress(1)
        self.assertEqual(self.announced(), [])

    def test_beyond_json(self) -> None:
        """Values of Celery's JSON arrive bare; other results arrive as their repr, with a mark."""
        self.begin()
        self.run_task(lambda: datetime(2012, 9, 28, tzinfo=UTC))
        self.run_task(lambda: {"nan": float("nan")})
        self.run_task(lambda: Unspeakable())
        self.run_task(lambda: {"key": UUID(int=7), "price": Decimal("1.50"), "own": Speaking()})
        said = [data for _, data in self.announced()]
        self.assertEqual(
            (said[0]["result"], "repr" in said[0]), ("2012-09-28T00:00:00+00:00", False)
        )
        self.assertEqual((said[1]["result"], said[1]["repr"]), ("{'nan': nan}", True))
        self.assertIn("Unspeakable", said[2]["result"])
        self.assertEqual(
            said[3]["result"], {"key": str(UUID(int=7)), "price": "1.50", "own": [1, 2]}
        )

    def test_account_is_a_number(self) -> None:
        """A task may be started for the number or the UUID that a database has as key."""
        self.begin()
        for account in (7, UUID(int=7)):
            self.run_task(lambda: 1, **for_account(account))
        self.run_task(lambda: 1, headers={"account": 7})
        paths = [request.path for request in self.receiver.received]
        self.assertEqual(paths, ["/hooks/7", f"/hooks/{UUID(int=7)}", "/hooks/7"])

    def test_outcome_stays(self) -> None:
        """A refusal, or an impossible account, does not change the outcome of a task."""
        self.begin(respond(413))
        self.assertEqual(self.run_task(lambda: 1).get(), 1)
        self.assertEqual(self.run_task(lambda: 2, headers={"account": ""}).get(), 2)
        self.assertEqual(self.run_task(lambda: 3, headers={"account": "\ud800"}).get(), 3)
        self.assertEqual(len(self.receiver.received), 1)

    def test_comes_back(self) -> None:
        """Events that were not accepted at once are sent later, in order."""
        self.begin(*[respond(503)] * 3)
        self.run_task(lambda: [self.plumber.progress(done) for done in range(3)] and "ok")
        signals.worker_process_shutdown.send(sender=None)
        kept = [data.get("progress", "ok") for _, data in self.announced()[3:]]
        self.assertEqual(kept, [0, 1, 2, "ok"])

    def test_time_of_event(self) -> None:
        """An event says when it happened, however long it was in the outbox."""
        self.begin(respond(503))
        before = datetime.now(UTC)
        self.run_task(lambda: 1)
        signals.worker_process_shutdown.send(sender=None)
        times = {request.headers["ce-time"] for request in self.receiver.received}
        self.assertEqual(len(times), 1)
        self.assertTrue(before <= datetime.fromisoformat(times.pop()) <= datetime.now(UTC))


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
        events: list[dict[str, Any]] = []
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=2 * ANSWER)
        after = "earliest"
        while len(events) < number:
            connection.request(
                "GET", f"/events/{account}?{urlencode({'after': after, 'wait': ANSWER})}"
            )
            page = json.loads(connection.getresponse().read())
            if not page["events"]:
                break
            events += page["events"]
            after = page["cursor"]
        connection.close()
        self.assertEqual(len(events), number, self.process.output)
        return events

    def test_announces(self) -> None:
        """Results, failures, retries, progress and expired tasks reach their subscribers."""
        added = self.start("add", "result", 20, 22)
        self.start("fail", "failure")
        self.start("report", "progress", 3)
        again = self.start("second_time", "retry")
        self.start("rich", "rich")
        self.start("odd", "odd")
        self.start("add", "late", 1, 1, expires=datetime.now(UTC) - timedelta(hours=1))

        [event] = self.events("result", 1)
        self.assertEqual(
            (event["id"], event["type"], event["content_type"]),
            (f"{added}:SUCCESS", "result", "application/json"),
        )
        self.assertEqual(
            event["data"],
            {"task": f"{APP}.add", "task_id": added, "state": "SUCCESS", "result": 42},
        )
        [event] = self.events("failure", 1)
        self.assertEqual(
            (event["type"], event["data"]["error"]),
            ("failure", {"type": "ValueError", "message": "no such thing"}),
        )
        told = self.events("progress", 4)
        self.assertEqual([event["type"] for event in told], ["progress"] * 3 + ["result"])
        self.assertEqual([event["data"]["progress"]["done"] for event in told[:3]], [0, 1, 2])
        # Celery starts the next run before it says that there will be one: either event may be
        # first.
        result, retry = sorted(self.events("retry", 2), key=lambda event: event["type"])
        self.assertEqual(
            (retry["type"], retry["id"], retry["data"]["retries"]), ("retry", f"{again}:RETRY:0", 0)
        )
        self.assertEqual(retry["data"]["error"], {"type": "OSError", "message": "try again"})
        self.assertEqual((result["type"], result["data"]["result"]), ("result", "at last"))
        self.assertEqual(
            self.events("rich", 1)[0]["data"]["result"], {"day": "2012-09-28", "price": "1.50"}
        )
        self.assertEqual(self.events("odd", 1)[0]["data"]["result"], "<something odd>")
        [event] = self.events("late", 1)
        self.assertEqual((event["type"], event["data"]["state"]), ("failure", "REVOKED"))
        self.assertEqual(event["data"]["error"]["type"], "Expired")


class PreforkTests(_AnyPool, WorkerTestCase):
    """Celery's usual pool: each task runs in a child process."""

    pool = "prefork"

    def test_lost(self) -> None:
        """The main process announces for a child that died or was killed by a time limit."""
        self.start("die", "killed")
        self.start("sleep", "slow", 600, time_limit=1)
        [killed] = self.events("killed", 1)
        self.assertEqual(
            (killed["type"], killed["data"]["error"]["type"]), ("failure", "WorkerLostError")
        )
        [slow] = self.events("slow", 1)
        self.assertEqual(
            (slow["type"], slow["data"]["error"]["type"]), ("failure", "TimeLimitExceeded")
        )


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
                received.append(handler.headers["Webhook-Id"])
            (receive if back.is_set() else respond(503))(handler)

        receiver = Receiver(*[away] * 1000)
        self.addCleanup(receiver.stop)
        tasks = self.client()
        process = self.worker(receiver.url, "--concurrency", "1", *options)
        id = tasks.send_task(f"{APP}.add", (1, 1), headers={"account": "42"}).id
        receiver.wait_for(1)
        if "--max-tasks-per-child" not in options:
            process.terminate()
        process.wait_for(end)
        back.set()
        self.assertEqual(process.stop(), 0, process.output)
        self.assertEqual(received, [f"{id}:SUCCESS"], process.output)

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
