"""The example for RQ, with a real Redis server and a real worker, which forks for each job."""

from __future__ import annotations

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

from harness.processes import ROOT, Process, start_server
from harness.receiver import Receiver, Step, respond, stall

EXAMPLES = ROOT / "docs" / "examples"
SOON = 30.0  # seconds that a worker may take on a busy machine
DELAY_LIMIT = 10.0  # seconds; a job that waited for an absent plumber would take 30


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
        code = "import sys; from rq.cli import main; sys.exit(main())"
        worker = Process(
            [sys.executable, "-c", code, "worker", "--url", f"unix://{self.socket}"],
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

    def test_a_result_arrives(self) -> None:
        """The process of a job ends by ``os._exit``, and its event is in the history."""
        server = start_server()
        self.addCleanup(server.kill)
        job, worker = self.run_example(server.url)
        self.ended(job, worker)
        with urlopen(f"{server.url}/events/42?after=earliest&wait=20") as answer:
            said = answer.read().decode()
        self.assertIn(f'"id":"{job.id}"', said)
        self.assertIn('"data":{"pages":3}', said)

    def test_a_job_stays_finished_without_a_plumber(self) -> None:
        """It does not fail, and ends without delay."""
        absent = Receiver()
        absent.stop()
        job, worker = self.run_example(absent.url)
        self.assertLess(self.ended(job, worker), DELAY_LIMIT)
        worker.wait_for("1 event is not sent within 1 seconds")

    def test_a_job_stays_finished_if_the_plumber_hangs(self) -> None:
        """Nor if the plumber accepts the connection and does not respond, or refuses."""
        for step in (stall, respond(413)):
            receiver = self.receiver(step)
            job, worker = self.run_example(receiver.url)
            self.assertLess(self.ended(job, worker), DELAY_LIMIT)
            self.assertEqual(len(receiver.wait_for(1)), 1)
            worker.stop()
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
