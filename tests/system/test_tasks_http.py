"""``/tasks`` over real sockets: one suite on each store, with one process and with workers."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import mkdtemp
from time import monotonic
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.python.filepath import FilePath
from twisted.trial.unittest import TestCase

from harness.application import Answer, Application, HttpClient
from harness.clients import EventSource, sleep
from harness.cluster import eventually, until
from harness.ledger import Ledger
from harness.mongod import fresh_uri
from harness.processes import start_server

# In the run of every day, a tenth of the progress.
REPORTS, SECONDS = (1000, 10.0) if os.environ.get("ASYNCPLUMBER_MORE") else (100, 1.0)
CLIENTS = 200


class Scenarios:
    """Scenarios 1, 3, 5, 6, 11, 13 and 16 at one server."""

    def __init__(self, case: TestCase, *options: str) -> None:
        """Prepare for a server with these options; ``case`` asserts."""
        self._case = case
        self._options = options
        self.application = Application(reactor)
        case.addCleanup(self.application.listen().stopListening)
        case.addCleanup(self.application.close)
        # A runner reports on connections of its own, which reach several workers.
        self.client, *self.runners = (HttpClient(reactor) for _ in range(9))
        for client in (self.client, *self.runners):
            case.addCleanup(client.close)

    async def run(self) -> None:
        """Start the server, and run one scenario after the other."""
        options = (*self._options, "--starter", self.application.url, "--hold", "1s")
        self.server = await deferToThread(start_server, *options)
        self._case.addCleanup(self.server.kill)
        await self.an_answer_at_once()
        await self.a_wait_that_is_too_short()
        await self.many_join_one_run()
        await self.another_input()
        await self.progress_after_the_end()
        await self.much_progress()
        await self.results_of_the_past()
        await self.a_client_that_leaves()

    async def put(self, key: str, input: Any = None, **headers: str) -> Answer:
        """Start a task of account 42."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.send("PUT", f"{self.server.url}/tasks/42/{key}", input, named)

    async def get(self, path: str) -> Answer:
        """Ask for something."""
        return await self.client.send("GET", f"{self.server.url}{path}")

    async def report(self, key: str, state: str, value: Any = None, **more: str) -> Answer:
        """Report how far a task is."""
        headers = {"Task": key, "Task-State": state}
        headers |= {name.replace("_", "-"): text for name, text in more.items()}
        self.runners.append(runner := self.runners.pop(0))
        return await runner.send("POST", f"{self.server.url}/hooks/42", value, headers)

    async def events(self) -> list[dict[str, Any]]:
        """Return all events of the account."""
        return (await self.get("/events/42?after=earliest&wait=0")).json["events"]

    async def an_answer_at_once(self) -> None:
        """Scenario 1, with two subscribers by Server-Sent Events."""
        ledger = Ledger()
        subscribers = [EventSource(ledger, [self.server.port], "42") for _ in range(2)]
        for subscriber in subscribers:
            await subscriber.begin()
        found = await self.put("sum", {"answer": 200, "body": {"total": 7}, "pause": 0.1})
        self._case.assertEqual((found.status, found.json), (200, {"total": 7}))
        self._case.assertEqual(found.headers["task-joined"], "false")
        self._case.assertEqual(found.headers["location"], "/tasks/42/sum")
        stored = [(each["cursor"], each["type"]) for each in await self.events()]
        self._case.assertEqual([type for _, type in stored], ["task.submitted", "task.completed"])
        last = stored[-1][0]
        for subscriber in subscribers:
            await until(lambda: subscriber.cursor == last, "both have it")  # noqa: B023
            await subscriber.end()

    async def a_wait_that_is_too_short(self) -> None:
        """Scenario 3."""
        found = await self.put("late", {"reports": [[1.6, "", {"total": 7}]]}, Prefer="wait=1")
        self._case.assertEqual((found.status, found.json["done"]), (202, False))
        self._case.assertEqual(found.headers["preference-applied"], "wait=1")
        self._case.assertIn("retry-after", found.headers)
        began = monotonic()
        found = await self.get(f"{found.headers['location']}?wait=10")
        self._case.assertEqual((found.status, found.json["result"]), (200, {"total": 7}))
        self._case.assertLess(monotonic() - began, 5)
        self._case.assertEqual((await self.get("/tasks/42/late/result")).json, {"total": 7})

    async def many_join_one_run(self) -> None:
        """Scenario 5."""
        before = len(self.application.started)
        wish = {"reports": [[2.5, "", {"total": 7}]]}
        starts = [
            Deferred.fromCoroutine(self.put("shared", wish, Prefer="wait=20"))
            for _ in range(CLIENTS)
        ]
        found = await gatherResults(starts)
        self._case.assertEqual(
            {(each.status, each.body) for each in found}, {(200, b'{"total": 7}')}
        )
        self._case.assertEqual(len(self.application.started), before + 1)
        joined = [each.headers["task-joined"] for each in found]
        self._case.assertEqual((joined.count("false"), joined.count("true")), (1, CLIENTS - 1))

    async def another_input(self) -> None:
        """Scenario 6."""
        first = await self.put("input", {"n": 1}, Prefer="respond-async")
        other = await self.put("input", {"n": 2}, Prefer="respond-async")
        self._case.assertEqual((other.status, other.json["error"]["code"]), (422, "other-input"))
        self._case.assertEqual(other.json["task"]["run"], first.json["run"])
        joined = await self.put("input", Prefer="respond-async")
        self._case.assertEqual((joined.status, joined.headers["task-joined"]), (202, "true"))
        await self.report("input", "completed", 1, Task_Run=first.json["run"])
        again = await self.put("input", {"n": 2}, Prefer="respond-async")
        self._case.assertEqual((again.status, again.headers["task-joined"]), (202, "false"))
        self._case.assertNotEqual(again.json["run"], first.json["run"])

    async def progress_after_the_end(self) -> None:
        """Scenario 11."""
        await self.report("ended", "started")
        run = (await self.report("ended", "completed", 7)).json["task"]["run"]
        before = await self.events()
        refused = await self.report("ended", "running", {"done": 3}, Task_Run=run)
        self._case.assertEqual((refused.status, refused.json["error"]["code"]), (409, "ended"))
        self._case.assertEqual(await self.events(), before)
        self._case.assertEqual((await self.get("/tasks/42/ended")).json["state"], "completed")

    async def much_progress(self) -> None:
        """Scenario 13."""
        run = (await self.report("busy", "started")).json["task"]["run"]
        began, statuses = monotonic(), set()
        for number in range(REPORTS):
            statuses.add((await self.report("busy", "running", number, Task_Run=run)).status)
            await sleep(max(0.0, began + (number + 1) * SECONDS / REPORTS - monotonic()))
        self._case.assertLessEqual(statuses, {201, 202})

        async def progress() -> list[int]:
            found = await self.events()
            return [each["data"] for each in found if each["type"] == "task.progress"]

        async def newest() -> Any:
            return (await self.get("/tasks/42/busy")).json["progress"]

        # Each worker holds the newest that came to it; their times come one after the other.
        await eventually(newest, lambda value: value == REPORTS - 1, "the last progress is kept")
        took = monotonic() - began
        await sleep(0.7)
        stored = await progress()
        self._case.assertLessEqual(len(stored), took / 0.5 + 2)
        self._case.assertEqual(stored, sorted(stored))
        self._case.assertEqual(stored[-1], REPORTS - 1)
        self._case.assertEqual((await self.events())[0]["type"], "task.submitted")

    async def results_of_the_past(self) -> None:
        """Scenario 16."""
        wish = {"answer": 200, "body": {"total": 7}}
        found = await self.put("past", wish, Cache_Control="only-if-cached")
        self._case.assertEqual((found.status, found.json["error"]["code"]), (504, "nothing-cached"))
        await self.put("past", wish)
        before = len(self.application.started)
        found = await self.put("past", wish, Cache_Control="max-age=60")
        self._case.assertEqual((found.status, found.json), (200, {"total": 7}))
        self._case.assertLess(int(found.headers["age"]), 10)
        await self.put("live", {"x": 1}, Prefer="respond-async")
        found = await self.put("live", Prefer="respond-async", Cache_Control="no-cache")
        self._case.assertEqual((found.status, found.headers["task-joined"]), (202, "true"))
        await until(lambda: len(self.application.started) > before, "it is dispatched")
        self._case.assertEqual(len(self.application.started), before + 1)

    async def a_client_that_leaves(self) -> None:
        """The task goes on, and nothing is held any more."""
        start = Deferred.fromCoroutine(self.put("left", {"x": 1}, Prefer="wait=60"))
        start.addErrback(lambda _: None)
        await until(lambda: self.application.started[-1].headers["plumber-task"] == "left", "it")
        count = (await self.get("/accounts/42")).json["subscribers"]
        self._case.assertGreaterEqual(count, 1)
        start.cancel()
        began = monotonic()
        while (await self.get("/accounts/42")).json["subscribers"] >= count:
            self._case.assertLess(monotonic() - began, 10)
            await sleep(0.05)
        await self.report("left", "completed", 7)
        self._case.assertEqual((await self.get("/tasks/42/left/result")).json, 7)


class HttpTaskTests(TestCase):
    """The scenarios."""

    timeout = 300

    async def test_on_each_store_with_one_process_and_with_workers(self) -> None:
        """All at the same time: most of it is waiting."""
        folder = Path(mkdtemp())
        self.addCleanup(FilePath(str(folder)).remove)
        sqlite = f"sqlite:{folder}/plumber.sqlite"
        each = [
            Scenarios(self, "--store", "memory:"),
            Scenarios(self, "--store", sqlite, "--workers", "4"),
            Scenarios(self, "--store", fresh_uri()),
        ]
        await gatherResults([Deferred.fromCoroutine(one.run()) for one in each], consumeErrors=True)
