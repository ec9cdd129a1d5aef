"""
Tasks on three instances and a real mongod: one start, one end, whoever dies.

The loops are short here; with ASYNCPLUMBER_MORE=1 they are as long as the promises say.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import time
from typing import Any
from unittest import skipUnless

from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from harness.clients import ConnectionFailed, HttpResponse, fetch, sleep
from harness.cluster import Cluster, until
from harness.task_application import LATER, Answer, Application, Run, report, report_until_taken

MORE = bool(os.environ.get("ASYNCPLUMBER_MORE"))
_shared: list[tuple[Cluster, Application]] = []
ENDS = ("task.completed", "task.failed", "task.canceled", "task.lost")


async def shared() -> tuple[Cluster, Application]:
    """Return three instances and the application that they start tasks of."""
    if not _shared:
        application = Application()
        await application.open()
        await application.close()
        cluster = Cluster(3, "--history-length", "20000", "--starter", application.url)
        atexit.register(cluster.down)
        _shared.append((cluster, application))
    return _shared[0]


class TaskClusterTests(TestCase):
    """What people see of tasks."""

    timeout = 600 if MORE else 60

    async def setUp(self) -> None:  # type: ignore[override]
        self.cluster, self.application = await shared()
        await self.application.open()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.application.close()))
        self.addCleanup(self.cluster.log_news)
        await self.cluster.up()
        self.application.behaviour = lambda run: LATER
        self.ports = self.cluster.ports
        self.account = self.id().rpartition(".")[2]

    async def put(
        self, port: int, key: str, *, body: bytes = b"[3,4]", prefer: str = "wait=10"
    ) -> HttpResponse:
        headers = {"Prefer": prefer, "Content-Type": "application/json"}
        return await fetch(port, "PUT", f"/tasks/{self.account}/{key}", body, headers)

    async def history(self, port: int | None = None) -> list[dict[str, Any]]:
        """Return all events of the account, as an instance tells them."""
        events: list[dict[str, Any]] = []
        after = "earliest"
        while True:
            path = f"/events/{self.account}?after={after}&wait=0"
            page = (await fetch(port or self.ports[0], "GET", path)).json
            if not page["events"]:
                return events
            events += page["events"]
            after = page["cursor"]

    async def dispatched(self, key: str) -> Run:
        """Return the run of a task, when the application was told of it."""

        return (await until(lambda: self.runs_of(key), f"{key} is dispatched"))[0]

    def runs_of(self, key: str) -> list[Run]:
        """Return the dispatches of a task so far."""
        runs = self.application.runs
        return [run for run in runs if (run.account, run.task) == (self.account, key)]

    async def ends(self, key: str, port: int | None = None) -> list[str]:
        return [
            event["type"] + ("+late" if event["task"].get("late") else "")
            for event in await self.history(port)
            if event["type"] in ENDS and event["task"]["task"] == key
        ]

    async def ended(self, key: str, seconds: float = 30.0) -> list[str]:
        deadline = time.monotonic() + seconds
        while not (found := await self.ends(key)) and time.monotonic() < deadline:
            await sleep(0.1)
        return found

    async def test_02_an_answer_at_another_instance_is_heard_at_the_first(self) -> None:
        done: list[HttpResponse] = []

        async def work(run: Run) -> None:
            await sleep(0.5)
            done.append(await report(self.ports[1], run, "completed", {"total": 7}))

        def begin(run: Run) -> Answer:
            Deferred.fromCoroutine(work(run)).addErrback(self.application.failed)
            return LATER

        self.application.behaviour = begin
        began = time.monotonic()
        answer = await self.put(self.ports[0], "sum")
        self.assertEqual((answer.status, answer.json), (200, {"total": 7}))
        self.assertLess(time.monotonic() - began, 5)
        self.assertEqual(answer.headers["task-state"], "completed")
        self.assertEqual(await self.ends("sum", self.ports[2]), ["task.completed"])
        await until(lambda: done, "the report is answered")
        self.assertIn(done[0].status, (200, 201, 202))

    async def test_04_an_answer_before_the_202_is_never_lost(self) -> None:
        dice = random.Random(1)

        async def early(run: Run) -> Answer:
            told = report(dice.choice(self.ports), run, "completed", {"of": run.task})
            await gatherResults([Deferred.fromCoroutine(told)])
            await sleep(dice.uniform(0, 0.005))
            return LATER

        self.application.behaviour = early
        for number in range(1000 if MORE else 40):
            answer = await self.put(dice.choice(self.ports), f"t{number}")
            self.assertEqual((answer.status, answer.json), (200, {"of": f"t{number}"}))

    async def test_07_a_202_ends_although_its_instance_is_killed(self) -> None:
        async def work(run: Run) -> None:
            await report_until_taken(self.ports[1:], run, "completed", {"of": run.task})

        def begin(run: Run) -> Answer:
            Deferred.fromCoroutine(work(run)).addErrback(self.application.failed)
            return LATER

        self.application.behaviour = begin
        node = self.cluster.nodes[0]
        for number in range(100 if MORE else 2):
            key = f"t{number}"
            answer = await self.put(node.port, key, prefer="respond-async")
            node.kill()
            self.assertEqual(answer.status, 202)
            restarted = Deferred.fromCoroutine(node.start())
            self.assertEqual(await self._settled(key), ["task.completed"])
            self.assertEqual(len({run.id for run in self.runs_of(key)}), 1)
            await restarted

    async def _settled(self, key: str) -> list[str]:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            path = f"/events/{self.account}?after=earliest&wait=0"
            try:
                page = (await fetch(self.ports[1], "GET", path)).json
            except ConnectionFailed:
                continue
            if any(each["type"] in ENDS and each["task"]["task"] == key for each in page["events"]):
                break
            await sleep(0.1)
        return await self.ends(key, self.ports[1])

    async def test_08_a_worker_that_dies_is_lost_once_and_can_be_started_again(self) -> None:
        first = await self.put(self.ports[0], "sum", prefer="respond-async")
        run = await self.dispatched("sum")
        await report(self.ports[1], run, "running", {"done": 1}, deadline=1)
        said = time.monotonic()
        self.assertEqual(await self.ended("sum"), ["task.lost"])
        self.assertLess(time.monotonic() - said, 1 + 5 + 3)
        for port in self.ports:
            self.assertEqual(await self.ends("sum", port), ["task.lost"])
        state = (await fetch(self.ports[2], "GET", f"/tasks/{self.account}/sum")).json
        self.assertEqual((state["state"], state["error"]["type"]), ("lost", "silent"))
        again = await self.put(self.ports[1], "sum", prefer="respond-async")
        self.assertEqual((again.status, again.headers["task-joined"]), (202, "false"))
        self.assertNotEqual(again.headers["task-run"], first.headers["task-run"])

    async def test_09_the_end_and_the_sweeps_at_the_same_moment(self) -> None:
        dice = random.Random(2)
        keys = [f"t{number}" for number in range(200 if MORE else 24)]
        await gatherResults(
            [
                Deferred.fromCoroutine(self.put(dice.choice(self.ports), key, prefer="wait=0"))
                for key in keys
            ]
        )
        runs = {key: await self.dispatched(key) for key in keys}

        async def compete(key: str) -> None:
            await report_until_taken(self.ports, runs[key], "running", deadline=1)
            await sleep(dice.uniform(1, 7))
            await report_until_taken([dice.choice(self.ports)], runs[key], "completed", {"of": key})

        await gatherResults([Deferred.fromCoroutine(compete(key)) for key in keys])
        allowed = (["task.completed"], ["task.lost", "task.completed+late"])
        seen = [await self.ends(key) for key in keys]
        self.assertEqual([each for each in seen if each not in allowed], [])

    @skipUnless(MORE, "three minutes without servers: ASYNCPLUMBER_MORE=1; test_tasks has the rule")
    async def test_12_nobody_is_lost_while_all_servers_are_away(self) -> None:
        keys = [f"t{number}" for number in range(20)]
        for key in keys:
            await self.put(self.ports[0], key, prefer="wait=0")
        runs = {key: await self.dispatched(key) for key in keys}
        for key in keys:
            await report(self.ports[1], runs[key], "running", {"done": 1}, deadline=60)
        await gatherResults([Deferred.fromCoroutine(node.stop()) for node in self.cluster.nodes])
        self.cluster.mongod.kill()
        await sleep(180)
        self.cluster.mongod.restart()
        await self.cluster.up()
        for key in keys:
            await report_until_taken(self.ports, runs[key], "completed", {"of": key})
        seen = [await self.ends(key) for key in keys]
        self.assertEqual(seen, [["task.completed"]] * len(keys))
        self.assertEqual(json.dumps(self.application.problems), "[]")
