"""
The hooks of each task queue at their edges: with the real library in this process, and a sender in
memory.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NoReturn

import dramatiq
from apscheduler.executors.pool import ProcessPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from dramatiq.brokers.stub import StubBroker
from huey import MemoryHuey
from huey.exceptions import CancelExecution, RetryTask
from redis import Redis
from rq import Queue, Retry
from taskiq import Context, InMemoryBroker, SimpleRetryMiddleware, TaskiqDepends
from taskiq.exceptions import NoResultError
from twisted.python.filepath import FilePath
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from asyncplumber.client import Outbox
from asyncplumber.client.request import Request
from asyncplumber.integrations import apscheduler, huey, rq, taskiq
from asyncplumber.integrations import dramatiq as dramatiq_integration
from asyncplumber.integrations.announcer import Announcer
from harness.processes import Process
from tests.unit.test_client_task import CANCEL, LONG, FakeSender

ERROR = {"type": "ValueError", "message": "no"}


for _name in ("dramatiq", "huey", "taskiq", "apscheduler"):
    # Tasks fail here, which the queues log; without a handler that would go to standard error.
    logging.getLogger(_name).addHandler(logging.NullHandler())


def fail() -> NoReturn:
    """Do what cannot be done."""
    raise ValueError("no")


def ask_again() -> Retry:
    """Return what makes RQ try a job again, once."""
    return Retry(1)


class HookTestCase(SynchronousTestCase):
    """An announcer whose sender is in memory."""

    def setUp(self) -> None:
        self.sender = FakeSender()
        self.outbox = Outbox("http://127.0.0.1:1", sender_factory=lambda *_, **__: self.sender)
        self.addCleanup(self.outbox.close, 0.0)
        self.addCleanup(self.sender.is_open.set)
        self.announcer = Announcer(self.outbox)

    def reports(self) -> list[tuple[str, Any]]:
        """Return state and body of what was sent so far, and forget it."""
        self.assertTrue(self.outbox.flush(LONG))
        requests: list[Request] = list(self.sender.requests)
        self.sender.requests.clear()
        return [
            (request.headers["Task-State"], json.loads(request.body) if request.body else None)
            for request in requests
        ]

    def states(self) -> list[str]:
        """Return the states that were reported."""
        return [state for state, _ in self.reports()]


class DramatiqTests(HookTestCase):
    """The middleware."""

    def setUp(self) -> None:
        super().setUp()
        self.calls = 0
        self.broker = StubBroker()
        self.broker.add_middleware(dramatiq_integration.Announcements(self.announcer))
        self.worker = dramatiq.Worker(self.broker, worker_timeout=10, worker_threads=1)
        self.addCleanup(self.worker.stop)

    def run_actor(self, work: Any, options: dict[str, Any], **message: Any) -> None:
        """Send a message, and wait until it is done."""

        def call() -> Any:
            self.calls += 1
            return work()

        make_actor: Any = dramatiq.actor
        actor = make_actor(
            call, broker=self.broker, actor_name="work", min_backoff=1, max_backoff=2, **options
        )
        actor.send_with_options(**message)
        self.worker.start()
        self.broker.join("default", fail_fast=False, timeout=20_000)
        self.worker.join()
        self.worker.stop()

    def test_a_message_for_nobody(self) -> None:
        """It is not reported, and progress does nothing."""
        self.run_actor(lambda: dramatiq_integration.progress(1), {})
        self.assertEqual((self.calls, self.reports()), (1, []))

    def test_an_error_that_is_never_retried(self) -> None:
        """It has failed at once."""
        options = {"throws": ValueError, "max_retries": 5}
        self.run_actor(fail, options, **rq.for_account("42"))
        self.assertEqual(self.reports(), [("started", None), ("failed", ERROR)])

    def test_a_message_that_is_too_old(self) -> None:
        """It has failed without a beginning."""
        self.run_actor(fail, {}, max_age=-1, **rq.for_account("42"))
        [(state, error)] = self.reports()
        self.assertEqual((state, error["type"], self.calls), ("failed", "SkipMessage", 0))

    def test_a_message_without_an_actor(self) -> None:
        """It has failed: nobody will ever process it."""
        message = dramatiq.Message("default", "nothing", (), {}, rq.for_account("42"))
        self.broker.declare_queue("default")
        self.broker.enqueue(message)
        self.worker.start()
        self.broker.join("default", fail_fast=False, timeout=20_000)
        [(state, error)] = self.reports()
        self.assertEqual((state, error["type"]), ("failed", "ActorNotFound"))

    def test_a_canceled_task_is_not_tried_again(self) -> None:
        """Whatever the actor says about retries."""
        self.sender.answers = [CANCEL]

        def stops() -> None:
            end = time.monotonic() + LONG
            while not dramatiq_integration.is_canceled() and time.monotonic() < end:
                time.sleep(0.01)
            dramatiq_integration.progress(1, raise_on_cancel=True)

        self.run_actor(stops, {"max_retries": 3}, **rq.for_account("42"))
        self.assertEqual((self.states()[-1], self.calls), ("canceled", 1))


class HueyTests(HookTestCase):
    """Signals and hooks; tasks run at once, where they are called."""

    def setUp(self) -> None:
        super().setUp()
        self.huey = MemoryHuey(immediate=True)
        huey.announce(self.huey, self.announcer)
        self.calls: list[Any] = []

    def run_task(self, *works: Any, **options: Any) -> Any:
        """Call a task whose attempts do these things."""
        attempts = iter(works)

        def call(*args: Any, **named: Any) -> Any:
            self.calls.append((args, named))
            return next(attempts)()

        return self.huey.task(name="work", **options)(call)("x", **huey.for_account("42"))

    def test_the_function_does_not_get_our_argument(self) -> None:
        """In no attempt, and its own it gets."""
        result = self.run_task(fail, fail, lambda: 7, retries=2)
        self.assertEqual(result(), 7)
        self.assertEqual(self.calls, [(("x",), {})] * 3)
        retries = [("running", {"retry": number, "error": ERROR}) for number in (1, 2)]
        self.assertEqual(
            self.reports(),
            [
                ("started", None),
                retries[0],
                ("started", None),
                retries[1],
                ("started", None),
                ("completed", 7),
            ],
        )

    def test_a_task_that_asks_to_be_retried(self) -> None:
        """It has no retries of its own; the run goes on."""

        def again() -> None:
            raise RetryTask

        self.run_task(again, lambda: 7)
        self.assertEqual(self.states(), ["started", "running", "started", "completed"])

    def test_a_task_that_cancels_itself(self) -> None:
        """It ends as canceled."""

        def stop() -> None:
            raise CancelExecution(retry=False)

        self.run_task(stop)
        end = {"type": "Canceled", "message": "the task was canceled"}
        self.assertEqual(self.reports(), [("started", None), ("canceled", end)])

    def test_a_hook_that_forbids_a_task(self) -> None:
        """It ends as canceled, and its function is not called."""

        @self.huey.pre_execute()
        def forbid(task: Any) -> None:
            raise CancelExecution

        self.run_task(fail)
        self.assertEqual((self.states(), self.calls), (["started", "canceled"], []))

    def test_a_revoked_and_an_expired_task(self) -> None:
        """They end as canceled without a beginning."""

        @self.huey.task()
        def work() -> None:
            """Nobody calls it."""

        work.revoke()
        work(**huey.for_account("42"))
        self.assertEqual(
            self.reports(), [("canceled", {"type": "Revoked", "message": "the task is revoked"})]
        )
        work.restore()
        late = work.s(**huey.for_account("42"))
        late.expires_resolved = datetime(2012, 9, 28)
        self.huey.execute(late)
        self.assertEqual(self.states(), ["canceled"])

    def test_a_task_that_ends_its_worker(self) -> None:
        """Huey calls no hook for it."""

        def leave() -> None:
            raise SystemExit(3)

        with self.assertRaises(SystemExit):
            self.run_task(leave)
        [_, (state, error)] = self.reports()
        self.assertEqual((state, error["type"]), ("failed", "SystemExit"))


class TaskiqTests(HookTestCase):
    """The middleware, with tasks that run where they are sent."""

    def run_task(self, work: Any, *middlewares: Any, **labels: Any) -> Any:
        """Run a task and return its result."""
        broker = InMemoryBroker(await_inplace=True)
        broker = broker.with_middlewares(*middlewares, taskiq.Announcements(self.announcer))

        async def main() -> Any:
            task = broker.register_task(work, task_name="work", **labels)
            sent = await task.kicker().with_labels(**taskiq.for_account("42")).kiq()
            return await broker.result_backend.get_result(sent.task_id)

        return asyncio.run(main())

    def test_a_retry_inside_of_the_attempt(self) -> None:
        """The broker runs it before the first attempt is over; the order is right."""
        attempts: list[int] = []

        async def work() -> int:
            attempts.append(1)
            return fail() if len(attempts) == 1 else 7

        result = self.run_task(work, SimpleRetryMiddleware(), retry_on_error=True)
        self.assertEqual(result.return_value, 7)
        self.assertEqual(
            self.reports(),
            [
                ("started", None),
                ("running", {"retry": 1, "error": ERROR}),
                ("started", None),
                ("completed", 7),
            ],
        )

    def test_a_retry_that_keeps_the_error(self) -> None:
        """Also then it is no failure."""
        attempts: list[int] = []

        async def work() -> int:
            attempts.append(1)
            return fail() if len(attempts) == 1 else 7

        retry = SimpleRetryMiddleware(no_result_on_retry=False)
        self.run_task(work, retry, retry_on_error=True)
        self.assertEqual(self.states(), ["started", "running", "started", "completed"])

    def test_a_task_that_requeues_itself(self) -> None:
        """It goes on."""
        attempts: list[int] = []

        async def work(context: Context = TaskiqDepends()) -> int:
            attempts.append(1)
            if len(attempts) == 1:
                await context.requeue()
            return 7

        self.run_task(work)
        self.assertEqual(self.states().count("completed"), 1)
        self.assertEqual(len(attempts), 2)

    def test_a_task_that_wants_no_result(self) -> None:
        """It is completed all the same."""

        async def work() -> None:
            raise NoResultError

        with self.assertRaises(Exception):  # noqa: B017 - there is no result to get
            self.run_task(work)
        self.assertEqual(self.reports(), [("started", None), ("completed", None)])


class APSchedulerTests(HookTestCase):
    """The wrapper."""

    def test_names_of_any_kind(self) -> None:
        """They come back out of the id of the job."""
        for account, task in (("42", "nightly"), ("a/b c", "ü/%"), (7, 8)):
            address = apscheduler._address(apscheduler.for_account(account, task))
            self.assertEqual(address, (str(account), str(task), None))
        for other in ("nightly", "plumber:42", "plumber:/x", "plumber:42/"):
            self.assertIsNone(apscheduler._address(other))

    def run_job(self, work: Any, id: str) -> None:
        """Run a job once."""
        scheduler = BackgroundScheduler(timezone=UTC)
        apscheduler.announce(scheduler, self.announcer)
        scheduler.add_job(work, id=id)
        scheduler.start()
        end = time.monotonic() + LONG
        while scheduler.get_jobs() and time.monotonic() < end:
            time.sleep(0.01)
        scheduler.shutdown()

    def test_a_job_and_one_for_nobody(self) -> None:
        """Only that of an account is reported."""
        done: list[str] = []
        self.run_job(lambda: done.append("nobody"), "nightly")
        self.assertEqual((done, self.reports()), (["nobody"], []))
        self.run_job(fail, apscheduler.for_account("42", "nightly"))
        self.assertEqual(self.reports(), [("started", None), ("failed", ERROR)])

    def test_a_coroutine(self) -> None:
        """It runs in the loop, and is the current task there."""

        async def main() -> None:
            scheduler = AsyncIOScheduler(timezone=UTC)
            apscheduler.announce(scheduler, self.announcer)
            done = asyncio.Event()

            async def work() -> int:
                apscheduler.progress(1)
                await asyncio.sleep(0)
                done.set()
                return 7

            scheduler.add_job(work, id=apscheduler.for_account("42", "nightly"))
            scheduler.start()
            await asyncio.wait_for(done.wait(), LONG)
            while self.outbox.flush(LONG) and len(self.sender.requests) < 3:
                await asyncio.sleep(0.01)
            scheduler.shutdown()

        asyncio.run(main())
        self.assertEqual(self.reports(), [("started", None), ("running", 1), ("completed", 7)])

    def test_jobs_of_a_pool_of_processes(self) -> None:
        """They are left alone, and the log says so."""
        scheduler = BackgroundScheduler(timezone=UTC)
        scheduler.add_executor(ProcessPoolExecutor(1), "processes")
        with self.assertLogs("asyncplumber.integrations", "WARNING") as logs:
            apscheduler.announce(scheduler, self.announcer)
        self.assertIn("'processes'", logs.output[0])


class RQTests(HookTestCase):
    """The worker, in this process, with a real Redis."""

    if shutil.which("redis-server") is None:
        skip = "no redis-server on the PATH"

    def setUp(self) -> None:
        super().setUp()
        folder = Path(mkdtemp(prefix="asyncplumber-test-"))
        self.addCleanup(FilePath(str(folder)).remove)
        socket = str(folder / "redis.sock")
        server = Process(["redis-server", "--port", "0", "--unixsocket", socket, "--save", ""])
        self.addCleanup(server.kill)
        server.wait_for("eady to accept connections")
        self.redis = Redis(unix_socket_path=socket)
        self.addCleanup(self.redis.close)
        self.queue = Queue(connection=self.redis)

    def work(self) -> None:
        """Run all jobs."""
        worker = rq.SimpleWorker([self.queue], connection=self.redis)
        worker.announcer = self.announcer
        worker.work(burst=True, logging_level="CRITICAL")

    def runs(self) -> list[tuple[str, str]]:
        """Return state and run of what was reported."""
        self.assertTrue(self.outbox.flush(LONG))
        return [
            (request.headers["Task-State"], request.headers["Task-Run"])
            for request in self.sender.requests
        ]

    def test_a_job_that_is_started_again_after_its_end(self) -> None:
        """It is a new run; the id of the job is that of the first one."""
        job = self.queue.enqueue(fail, meta=rq.for_account("42"))
        self.work()
        self.queue.failed_job_registry.requeue(job)
        self.work()
        again = f"{job.id}.1"
        self.assertEqual(
            self.runs(),
            [("started", job.id), ("failed", job.id), ("started", again), ("failed", again)],
        )

    def test_a_job_that_returns_that_it_wants_to_be_tried_again(self) -> None:
        """It goes on, and has failed when that was too often."""
        self.queue.enqueue(ask_again, meta=rq.for_account("42"))
        self.work()
        reports = self.reports()
        self.assertEqual(
            [state for state, _ in reports], ["started", "running", "started", "failed"]
        )
        self.assertEqual(reports[-1][1]["type"], "MaxRetriesExceeded")

    def test_a_job_for_nobody(self) -> None:
        """It is not reported, and nothing of ours is in Redis."""
        job = self.queue.enqueue(len, "abc")
        self.work()
        self.assertEqual((job.return_value(), self.reports()), (3, []))
        self.assertNotIn(rq.ENDS.encode(), self.redis.hkeys(job.key))

    def test_a_job_that_leaves_nothing_behind(self) -> None:
        """RQ deletes it at once, and so do we."""
        job = self.queue.enqueue(len, "abc", result_ttl=0, meta=rq.for_account("42"))
        self.work()
        self.assertEqual(self.reports(), [("started", None), ("completed", 3)])
        self.assertEqual(self.redis.exists(job.key), 0)


class DjangoTests(HookTestCase):
    """The receivers, without a database."""

    def setUp(self) -> None:
        super().setUp()
        from django.conf import settings

        if not settings.configured:
            settings.configure()
        name = "django.tasks" if find_spec("django.tasks") else "django_tasks"
        if find_spec(name) is None:
            raise SkipTest("no tasks framework")
        from asyncplumber.integrations.django import _Announcements

        self.announcements = _Announcements(self.announcer)

    def result(self, status: str, **facts: Any) -> Any:
        from types import SimpleNamespace

        from asyncplumber.integrations.django import for_account

        return SimpleNamespace(
            id="job-1", status=status, kwargs={**for_account("42"), "x": 1}, **facts
        )

    def test_the_function_does_not_get_our_argument(self) -> None:
        """Its own it gets."""
        result = self.result("RUNNING")
        self.announcements.on_started(task_result=result)
        self.assertEqual(result.kwargs, {"x": 1})
        self.announcements.on_finished(task_result=self.result("SUCCESSFUL", return_value=7))
        self.assertEqual(self.reports(), [("started", None), ("completed", 7)])

    def test_an_error_of_which_only_the_traceback_is_left(self) -> None:
        """A backend that runs the task elsewhere has nothing else."""
        from types import SimpleNamespace

        error = SimpleNamespace(
            exception_class_path="shop.errors.NoMonth",
            traceback="Traceback (most recent call last):\n  …\nshop.errors.NoMonth: no: such\n",
        )
        self.announcements.on_finished(task_result=self.result("FAILED", errors=[error]))
        self.announcements.on_finished(task_result=self.result("FAILED", errors=[]))
        self.assertEqual(
            self.reports(),
            [
                ("failed", {"type": "NoMonth", "message": "no: such"}),
                ("failed", {"type": "Failed", "message": "the task failed"}),
            ],
        )


class AwayTests(HookTestCase):
    """A plumber that does not answer."""

    def test_no_task_waits(self) -> None:
        """The outcome is there at once, and the reports wait."""
        self.sender.is_open.clear()
        began = time.monotonic()
        tasks = MemoryHuey(immediate=True)
        huey.announce(tasks, self.announcer)
        task = tasks.task()(lambda: 7)
        self.assertEqual(task(**huey.for_account("42"))(), 7)
        self.assertLess(time.monotonic() - began, LONG / 10)
        self.assertEqual(self.sender.requests, [])
        self.sender.is_open.set()
        self.assertEqual(self.states(), ["started", "completed"])
