"""
The integrations, each with the real library and a real worker process, and one server for all.

All workers run at once, and everything is over before the first test looks at what happened: the
scene takes about ten seconds, and the tests only read.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.request import Request, urlopen

import yaml
from twisted.python.filepath import FilePath
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from harness.documents import named_blocks
from harness.processes import Process, start_server
from tests.workers.work import NAMES

QUEUES = ("apscheduler", "django", "dramatiq", "huey", "rq", "taskiq")
WITHOUT_RETRIES = ("apscheduler", "django")
SOON = 60.0  # seconds that the scene may take on a busy machine
ENDS = {"task.completed", "task.failed", "task.canceled", "task.lost"}

# What an application does with the function of the page for Node.
NODE = """
asTask(URL, "42", "node", async (task) => {
  await task.progress({done: 1, of: 2});
  return {pages: 3};
});
const failing = async () => { throw new RangeError("no such page"); };
asTask(URL, "42", "node-fails", failing).catch(() => 0);
"""


class Scene:
    """Workers of all task queues, and what the server has of their tasks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.failure = ""
        self._server = start_server()
        self._workers: dict[str, Process] = {}
        self._redis: Process | None = None
        self._page: dict[str, Process] = {}  # the programs of the how-to
        self.statuses: dict[str, int] = {}
        self._canceled: set[str] = set()
        self._killed: set[str] = set()
        self._abandoned = False

    def play(self) -> None:
        """Start the workers, cancel a task of each, kill them, and wait for the loss."""
        end = time.monotonic() + SOON
        self._start()
        while not all(self._is_over(queue) for queue in self._workers):
            if time.monotonic() > end:
                raise AssertionError(f"not over in {SOON:g} seconds:\n{self._report()}")
            time.sleep(0.1)
            for queue in self._workers:
                self._go_on(queue)
        for name, program in self._page.items():
            self.statuses[name] = program.wait()
        self.events["42"] = self._fetch("42")

    def _start(self) -> None:
        socket = self.folder / "redis.sock"
        if shutil.which("redis-server") is not None:
            self._redis = Process(
                ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", ""]
            )
            self._redis.wait_for("eady to accept connections")
        for queue in QUEUES:
            if queue != "rq" or self._redis is not None:
                self._workers[queue] = self._worker(queue)
        self._start_page()

    def _start_page(self) -> None:
        """Start the programs of the how-to, all for account 42."""
        blocks = named_blocks("howto/integrations.rst")
        url = {"ASYNCPLUMBER_URL": self._server.url}
        self._page["page"] = Process([sys.executable, "-m", "tests.workers.page"], url)
        cron = blocks["crontab"].strip().split("  ", 1)[1]
        cron = cron.replace("asyncplumber run", f"{sys.executable} -m asyncplumber run")
        nightly = """sh -c 'echo "{\\"rows\\": 3}"'"""
        cron = cron.replace("/usr/local/bin/nightly", nightly)
        self._page["cron"] = Process(["sh", "-c", cron], url)
        self._page["github"] = Process(
            ["sh", "-ec", _github(blocks["github.yaml"])], self._github()
        )
        if shutil.which("node") is not None:
            program = blocks["task.js"] + NODE.replace("URL", json.dumps(self._server.url))
            self._page["node"] = Process(["node", "-e", program])

    def _github(self) -> dict[str, str]:
        """Return what the runner of GitHub puts into the environment of a step."""
        return {
            "PLUMBER": self._server.url,
            "TOKEN": "t",
            "TASK": "github",
            "RUN": "1-1",
            "STATUS": "success",
        }

    def _worker(self, queue: str, *options: str) -> Process:
        environment = {
            "ASYNCPLUMBER_URL": self._server.url,
            "ACCOUNT": queue,
            "REDIS_SOCKET": str(self.folder / "redis.sock"),
            "HUEY_FILE": str(self.folder / "huey.sqlite"),
            "DJANGO_FILE": str(self.folder / "django.sqlite"),
        }
        command = [sys.executable, "-m", f"tests.workers.{queue}_worker", *options]
        return Process(command, environment)

    def _go_on(self, queue: str) -> None:
        """Do what is due for one queue."""
        self.events[queue] = self._fetch(queue)
        if queue not in self._canceled and self.of(queue, "stops"):
            self._canceled.add(queue)
            path = f"/tasks/{queue}/stops/cancel"
            urlopen(Request(self._server.url + path, b"", method="POST"), timeout=10).close()
        if queue not in self._killed and self._is_only_hanging(queue):
            self._killed.add(queue)
            self._kill(self._workers[queue])
        if queue == "rq" and not self._abandoned and "task.lost" in self.types(queue, "hangs"):
            # Another worker finds the job, as if a minute had passed.
            self._abandoned = True
            self._workers[queue] = self._worker(queue, "abandon")

    def _is_only_hanging(self, queue: str) -> bool:
        """Return whether all other tasks have ended."""
        names = set(NAMES) - ({"flaky"} if queue in WITHOUT_RETRIES else set())
        live = {name for name in names if not ENDS & set(self.types(queue, name))}
        return live == {"hangs"} and bool(self.of(queue, "hangs"))

    def _kill(self, worker: Process) -> None:
        """Kill a worker, and the process of its task, which leads a group of its own."""
        pid = worker.wait_for(r"hangs in (\d+)")[1]
        os.killpg(worker.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
        worker.kill()

    def _is_over(self, queue: str) -> bool:
        hung = self.types(queue, "hangs")
        if queue == "rq":
            return "task.failed" in hung
        return "task.lost" in hung

    def _fetch(self, account: str) -> list[dict[str, Any]]:
        url = f"{self._server.url}/events/{account}?after=earliest&wait=0"
        with urlopen(url, timeout=10) as response:
            events: list[dict[str, Any]] = json.load(response)["events"]
        return [event for event in events if event["type"].startswith("task.")]

    def of(self, queue: str, name: str) -> list[dict[str, Any]]:
        """Return the events of one task."""
        return [event for event in self.events[queue] if event["task"]["task"] == name]

    def types(self, queue: str, name: str) -> list[str]:
        """Return the types of its events."""
        return [event["type"] for event in self.of(queue, name)] if queue in self.events else []

    def end(self) -> None:
        """Stop everything."""
        for process in self._processes():
            process.kill()
        self._server.kill()
        if self._redis is not None:
            self._redis.kill()
        FilePath(str(self.folder)).remove()

    def _processes(self) -> list[Process]:
        return [*self._workers.values(), *self._page.values()]

    def _report(self) -> str:
        lines = [
            f"{queue} {event['task']['task']}: {event['type']}"
            for queue, events in self.events.items()
            for event in events
        ]
        return "\n".join([*lines, *(worker.output[-2000:] for worker in self._processes())])


def _github(workflow: str) -> str:
    """Return what the steps of a workflow run, as one script; its build succeeds."""
    steps = yaml.safe_load(workflow)["jobs"]["build"]["steps"]
    return "\n".join("true" if step["run"] == "make" else step["run"] for step in steps)


@cache
def scene() -> Scene:
    """Return the scene, played once."""
    played = Scene(Path(mkdtemp(prefix="asyncplumber-test-")))
    try:
        played.play()
    except Exception as error:
        played.failure = str(error)  # the next test need not wait for it again
    finally:
        played.end()
    return played


class IntegrationTests(SynchronousTestCase):
    """What subscribers see is the same, whatever queue runs a task."""

    def queues(self) -> list[str]:
        """Return the queues that could be tried here."""
        self.assertEqual(scene().failure, "")
        found = [queue for queue in QUEUES if queue in scene().events]
        self.assertEqual(
            set(QUEUES) - set(found), set() if shutil.which("redis-server") else {"rq"}
        )
        return found

    def test_a_success(self) -> None:
        """Started, progress, and the bare result, all of one run."""
        for queue in self.queues():
            events = scene().of(queue, "works")
            self.assertEqual(events[0]["type"], "task.started", queue)
            self.assertEqual(
                (events[-1]["type"], events[-1]["data"]), ("task.completed", {"pages": 1}), queue
            )
            self.assertIn({"attempt": 1}, [event["data"] for event in events], queue)
            self.assertEqual(len({event["task"]["run"] for event in events}), 1, queue)

    def test_retries(self) -> None:
        """Two failed attempts are progress of the one run, which completes."""
        for queue in self.queues():
            if queue in WITHOUT_RETRIES:
                continue
            events = scene().of(queue, "flaky")
            types = [event["type"] for event in events]
            self.assertEqual(types[0], "task.started", queue)
            self.assertEqual([type for type in types if type in ENDS], ["task.completed"], queue)
            self.assertEqual(events[-1]["data"], {"pages": 3}, queue)
            self.assertEqual(types.count("task.started"), 1, queue)
            self.assertEqual(len({event["task"]["run"] for event in events}), 1, queue)

    def test_a_failure(self) -> None:
        """It is said once, after the last attempt, with type and message."""
        for queue in self.queues():
            events = scene().of(queue, "fails")
            types = [event["type"] for event in events]
            self.assertEqual([type for type in types if type in ENDS], ["task.failed"], queue)
            error = {"type": "LookupError", "message": "not there"}
            self.assertEqual(events[-1]["task"]["error"], error, queue)

    def test_cancel(self) -> None:
        """The task hears of it, stops, and ends as canceled; the queue does not try it again."""
        for queue in self.queues():
            types = scene().types(queue, "stops")
            self.assertEqual(types[0], "task.started", queue)
            self.assertEqual([type for type in types if type in ENDS], ["task.canceled"], queue)

    def test_a_worker_that_is_killed(self) -> None:
        """The server says once that the run is lost."""
        for queue in self.queues():
            ends = [event for event in scene().of(queue, "hangs") if event["type"] in ENDS]
            self.assertEqual(ends[0]["type"], "task.lost", queue)
            self.assertEqual(ends[0]["task"]["error"]["type"], "silent", queue)
            if queue != "rq":
                self.assertEqual(len(ends), 1, queue)

    def test_a_job_that_a_dead_worker_left_behind(self) -> None:
        """Another worker of RQ finds it; that is the late end of the lost run."""
        if "rq" not in self.queues():
            raise SkipTest("no redis-server on the PATH")
        [_, late] = [event for event in scene().of("rq", "hangs") if event["type"] in ENDS]
        self.assertEqual((late["type"], late["task"]["late"]), ("task.failed", True))
        self.assertEqual(late["task"]["error"]["type"], "AbandonedJobError")

    def test_a_process_of_a_job_that_is_killed(self) -> None:
        """The worker of RQ outlives it, and tells of it."""
        if "rq" not in self.queues():
            raise SkipTest("no redis-server on the PATH")
        [end] = [event for event in scene().of("rq", "dies") if event["type"] in ENDS]
        self.assertEqual(end["type"], "task.failed")
        self.assertEqual(end["task"]["error"]["type"], "WorkHorseKilled")
        self.assertIn("signal 9", end["task"]["error"]["message"])

    def test_a_job_that_was_missed(self) -> None:
        """A scheduler that was down at that time says so."""
        [event] = scene().of("apscheduler", "late")
        self.assertEqual((event["type"], event["task"]["error"]["type"]), ("task.failed", "Missed"))


class PageTests(SynchronousTestCase):
    """The programs of the how-to do what it says."""

    def events(self, name: str) -> list[dict[str, Any]]:
        self.assertEqual(scene().failure, "")
        return scene().of("42", name)

    def ended(self, name: str, data: Any) -> list[dict[str, Any]]:
        """Check that a task began and completed, once, with this result; return its events."""
        events = self.events(name)
        self.assertEqual(events[0]["type"], "task.started", name)
        [end] = [event for event in events if event["type"] in ENDS]
        self.assertEqual((end["type"], end["data"]), ("task.completed", data), name)
        return events

    def test_programs_end_well(self) -> None:
        """Each has the exit status 0."""
        self.events("")
        self.assertEqual(set(scene().statuses.values()), {0}, scene().statuses)

    def test_queues(self) -> None:
        """Beginning, progress and result of each."""
        for name in ("dramatiq", "huey", "django", "taskiq"):
            self.ended(name, {"month": "2026-11"})
        self.ended("apscheduler", {"rows": 3})

    def test_fastapi(self) -> None:
        """The background task is the task."""
        self.ended("fastapi", {"month": "2026-11"})

    def test_cron(self) -> None:
        """The output of the command is the result."""
        self.ended("nightly", {"rows": 3})

    def test_github(self) -> None:
        """The status of the job is the state of the task."""
        events = self.ended("github", {"message": "success"})
        self.assertEqual({event["task"]["run"] for event in events}, {"1-1"})

    def test_airflow(self) -> None:
        """A retry is no failure, and a failure is one."""
        self.ended("airflow", {"rows": 3})
        end = self.events("airflow-fails")[-1]
        error = {"type": "ValueError", "message": "no such month"}
        self.assertEqual((end["type"], end["task"]["error"]), ("task.failed", error))

    def test_node(self) -> None:
        """The function reports what it is given to do."""
        if shutil.which("node") is None:
            raise SkipTest("no node on the PATH")
        self.ended("node", {"pages": 3})
        end = self.events("node-fails")[-1]
        error = {"type": "RangeError", "message": "no such page"}
        self.assertEqual((end["type"], end["task"]["error"]), ("task.failed", error))
