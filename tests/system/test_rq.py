"""The example for RQ, with a real Redis server and a real worker, which forks for each job."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.request import urlopen

from redis import Redis
from redis.exceptions import ConnectionError as NotYet
from rq import Queue, Retry
from rq.job import Job
from twisted.python.filepath import FilePath
from twisted.trial.unittest import SynchronousTestCase

from harness.ports import reserve_port
from harness.processes import ROOT, Process, start_server
from harness.receiver import Receiver, Step, respond, stall

EXAMPLES = ROOT / "docs" / "examples"
SOON = 30.0  # seconds that a worker may take on a busy machine
DELAY_LIMIT = 5.0  # seconds; a job that waited for an absent plumber would take 30


class RQTests(SynchronousTestCase):
    """The outcome of a job whose result is announced, or cannot be."""

    if shutil.which("redis-server") is None:
        skip = "no redis-server on the PATH"

    def setUp(self) -> None:
        folder = Path(mkdtemp(prefix="asyncplumber-test-"))
        self.addCleanup(FilePath(str(folder)).remove)
        self.socket = folder / "redis.sock"
        server = Process(
            ["redis-server", "--port", "0", "--unixsocket", str(self.socket), "--save", ""]
        )
        self.addCleanup(server.stop)
        self.redis = Redis(unix_socket_path=str(self.socket))
        self.addCleanup(self.redis.close)
        self.until(self.is_up, "redis answers")
        self.queue = Queue(connection=self.redis)

    def is_up(self) -> bool:
        try:
            return bool(self.redis.ping())
        except NotYet:
            return False

    def until(self, condition: Any, what: str) -> None:
        end = time.monotonic() + SOON
        while not condition():
            self.assertLess(time.monotonic(), end, f"not in time: {what}")
            time.sleep(0.02)

    def environment(self, url: str) -> dict[str, str]:
        paths = f"{ROOT}:{EXAMPLES}"
        return {"ASYNCPLUMBER_URL": url, "PYTHONPATH": paths, "REDIS_URL": f"unix://{self.socket}"}

    def worker(self, url: str) -> Process:
        options = ["--worker-class", "asyncplumber.integrations.rq.Worker"]
        code = "import sys; from rq.cli import main; sys.exit(main())"
        worker = Process(
            [sys.executable, "-c", code, "worker", "--url", f"unix://{self.socket}", *options],
            self.environment(url),
        )
        self.addCleanup(worker.kill)
        worker.wait_for("Listening on default")
        return worker

    def ended(self, job: Job, worker: Process) -> float:
        """Wait until the job has succeeded; return the seconds that it took."""
        began = time.monotonic()
        self.until(
            lambda: job.get_status(refresh=True) in ("finished", "failed"), "the job has ended"
        )
        took = time.monotonic() - began
        self.assertEqual(job.get_status(), "finished", worker.output)
        return took

    def run_example(self, url: str) -> tuple[Job, Process]:
        """Start a job as a reader of the example does."""
        worker = self.worker(url)
        command = [sys.executable, str(EXAMPLES / "rq_tasks.py"), "42"]
        subprocess.run(command, env=self.environment(url), check=True, capture_output=True)
        ids = [
            *self.queue.get_job_ids(),
            *self.queue.started_job_registry.get_job_ids(cleanup=False),
        ]
        ids += self.queue.finished_job_registry.get_job_ids(cleanup=False)
        return Job.fetch(ids[0], connection=self.redis), worker

    def events(self, url: str, wait: int) -> list[dict[str, Any]]:
        """Return the events of tasks of account 42."""
        with urlopen(f"{url}/events/42?after=earliest&wait={wait}", timeout=30) as answer:
            events: list[dict[str, Any]] = json.load(answer)["events"]
        return [event for event in events if event["type"].startswith("task.")]

    def test_a_job_does_not_wait_for_a_plumber_that_is_away(self) -> None:
        """
        It ends without delay, and its process by ``os._exit``.  What it reported is sent by the
        worker, when the plumber is there.
        """
        port = reserve_port()
        url = f"http://127.0.0.1:{port}"
        job, worker = self.run_example(url)
        self.assertLess(self.ended(job, worker), DELAY_LIMIT)
        server = start_server("--port", str(port))
        self.addCleanup(server.kill)
        events: list[dict[str, Any]] = []

        def has_ended() -> bool:
            events[:] = self.events(url, 0)
            return any(event["type"] == "task.completed" for event in events)

        self.until(has_ended, "the end of the job is sent")
        types = [event["type"] for event in events]
        self.assertEqual((types[0], types[-1]), ("task.started", "task.completed"))
        self.assertEqual(events[-1]["data"], {"pages": 3})
        self.assertEqual({event["task"]["run"] for event in events}, {job.id})

    def test_a_job_stays_finished_if_the_plumber_hangs(self) -> None:
        """Nor does it wait if the plumber accepts the connection and does not respond."""
        for step in (stall, respond(413)):
            receiver = self.receiver(step)
            job, worker = self.run_example(receiver.url)
            self.assertLess(self.ended(job, worker), DELAY_LIMIT)
            self.assertGreaterEqual(len(receiver.wait_for(1)), 1)
            worker.kill()
            self.redis.flushall()

    def receiver(self, *script: Step) -> Receiver:
        receiver = Receiver(*script)
        self.addCleanup(receiver.stop)
        return receiver

    def test_sending_as_a_job_of_its_own(self) -> None:
        """RQ keeps it, and runs it again if it failed: no result is lost."""
        receiver = self.receiver(respond(403), respond(403))
        worker = self.worker(receiver.url)
        job = self.queue.enqueue(
            "asyncplumber.client.send", "42", {"total": 7}, id="t-1", retry=Retry(max=3)
        )
        self.ended(job, worker)
        self.assertEqual([request.id for request in receiver.received], ["t-1"] * 3)
