"""Tasks from the request of a client to its result, with an application behind ``--starter``."""

from __future__ import annotations

import base64
import hmac
import os
import shutil
import time
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.python.filepath import FilePath
from twisted.trial.unittest import SkipTest, TestCase

from harness.application import Answer, Application, HttpClient
from harness.documents import named_blocks
from harness.ports import reserve_port
from harness.processes import Process, Server, start_server

SECRET = b"a secret between server and application"
EARLY = 1000 if os.environ.get("ASYNCPLUMBER_MORE") else 100  # tasks that are reported early


class StarterCase(TestCase):
    """An application, and servers on one SQLite file that start tasks at it."""

    instances = 2

    async def setUp(self) -> None:
        self.application = Application(reactor)
        self.addCleanup(self.application.listen().stopListening)
        self.addCleanup(self.application.close)
        self.client = HttpClient(reactor)
        self.addCleanup(self.client.close)
        self.folder = Path(mkdtemp())
        self.addCleanup(FilePath(str(self.folder)).remove)
        secret = self.folder / "starter.secret"
        secret.touch(0o600)
        secret.write_bytes(b"whsec_" + base64.b64encode(SECRET))
        options = [
            *("--store", f"sqlite:{self.folder}/plumber.sqlite"),
            *("--starter", self.application.url, "--starter-timeout", "2s"),
            *("--starter-secret-file", str(secret), "--max-body", "64KiB"),
        ]
        self.servers: list[Server] = []
        for _ in range(self.instances):
            server = await deferToThread(start_server, *options)
            self.addCleanup(server.kill)
            self.servers.append(server)

    async def put(
        self, key: str, input: Any, prefer: str = "wait=10", server: int = 0, **headers: str
    ) -> Answer:
        url = f"{self.servers[server].url}/tasks/42/{key}"
        return await self.client.send("PUT", url, input, {"Prefer": prefer, **headers})


class ApplicationTests(StarterCase):
    """Scenarios 2 and 4, and each kind of answer, with one set of servers."""

    async def test_from_request_to_result(self) -> None:
        """One after the other: to start two servers takes longer than all of it."""
        await self.the_answer_is_the_result()
        await self.a_callback_at_another_instance()
        await self.callbacks_before_the_answer()
        await self.refusals()
        await self.an_answer_that_is_too_large()
        await self.a_second_try()
        await self.cancel()

    async def the_answer_is_the_result(self) -> None:
        found = await self.put("sum%2F%C3%BC", {"answer": 200, "body": {"total": 7}})
        self.assertEqual((found.status, found.json), (200, {"total": 7}))
        self.assertEqual(found.headers["task-state"], "completed")
        [started] = self.application.started
        headers = started.headers
        self.assertEqual(headers["plumber-task"], "sum%2F%C3%BC")
        self.assertEqual(headers["plumber-run"], found.headers["task-run"])
        self.assertEqual(headers["idempotency-key"], f'"{headers["plumber-run"]}"')
        self.assertTrue(headers["plumber-callback"].startswith(f"{self.servers[0].url}/callbacks/"))

    async def a_callback_at_another_instance(self) -> None:
        """Scenario 2: the client that waits gets it when it comes in there."""
        self.application.callback_base = self.servers[1].url
        began = time.monotonic()
        found = await self.put("report", {"reports": [[2.0, "", {"total": 7}]]})
        took = time.monotonic() - began
        self.assertEqual((found.status, found.json), (200, {"total": 7}))
        self.assertTrue(2.0 <= took < 3.0, took)
        self.application.callback_base = ""

    async def callbacks_before_the_answer(self) -> None:
        """Scenario 4: at random within 5 ms, at either instance (pushpin#48221)."""
        random = Random(4)

        async def one(number: int) -> None:
            wish = {
                "pause": random.uniform(0.0, 0.005),
                "reports": [[random.uniform(0.0, 0.005), "", number]],
            }
            found = await self.put(f"early-{number}", wish, server=number % 2)
            self.assertEqual((found.status, found.json), (200, number))

        for first in range(0, EARLY, 20):
            numbers = range(first, min(first + 20, EARLY))
            await gatherResults([Deferred.fromCoroutine(one(number)) for number in numbers])

    async def refusals(self) -> None:
        for status, seen in ((404, 404), (422, 422), (302, 502)):
            before = len(self.application.started)
            wish = {"answer": status, "body": {"why": "no"}, "headers": {"Location": "/elsewhere"}}
            found = await self.put(f"refused-{status}", wish)
            self.assertEqual(found.status, seen, found.body)
            self.assertEqual(found.json["task"]["error"]["type"], "refused")
            self.assertEqual(found.json["task"]["error"]["status"], status)
            self.assertEqual(len(self.application.started), before + 1)

    async def an_answer_that_is_too_large(self) -> None:
        found = await self.put("large", {"answer": 200, "size": 65537})
        self.assertEqual(found.status, 502)
        self.assertEqual(found.json["task"]["error"]["type"], "too-large")

    async def a_second_try(self) -> None:
        """A slow answer, then 503: the same run each time, until it is reported."""
        before = len(self.application.started)
        found = await self.put("slow", {"pause": 60, "reports": [[3.0, "", "done"]]})
        self.assertEqual((found.status, found.json), (200, "done"))
        runs = [each.headers["plumber-run"] for each in self.application.started[before:]]
        self.assertGreater(len(runs), 1)
        self.assertEqual(len(set(runs)), 1)

    async def cancel(self) -> None:
        """One POST, which is signed as the one before it."""
        found = await self.put("long", {"answer": 202}, "respond-async")
        self.assertEqual(found.status, 202)
        while not any(each.headers["plumber-task"] == "long" for each in self.application.started):
            await deferToThread(time.sleep, 0.02)
        url = f"{self.servers[0].url}/tasks/42/long/cancel"
        for _ in range(100):  # the answer 202 may not have been noted yet
            canceled = await self.client.send("POST", url)
            self.assertEqual(canceled.status, 202, canceled.body)
            if canceled.json["state"] != "canceled":
                break
        while self.application.started[-1].headers["event-type"] != "task.cancel":
            await deferToThread(time.sleep, 0.02)
        last = self.application.started[-1]
        run = found.headers["task-run"]
        self.assertEqual(last.input, {"account": "42", "task": "long", "run": run})
        content = f"{run}.cancel.{last.headers['webhook-timestamp']}.".encode()
        body = f'{{"account": "42", "task": "long", "run": "{run}"}}'.encode()
        digest = base64.b64encode(hmac.digest(SECRET, content + body, "sha256")).decode()
        self.assertEqual(last.headers["webhook-signature"], f"v1,{digest}")


class NodeTests(TestCase):
    """The program in a real Node, and a real server that starts tasks at it."""

    async def test_from_request_to_result(self) -> None:
        """A task of three pages."""
        node = shutil.which("node")
        if node is None:
            raise SkipTest("there is no node on the PATH")
        file = Path(self.mktemp()).with_suffix(".mjs").absolute()
        file.write_text(named_blocks("howto/tasks.rst")["node_starter.mjs"], encoding="utf-8")
        port = reserve_port()
        process = Process([node, str(file)], {"PORT": str(port)})
        self.addCleanup(process.kill)
        server = await deferToThread(
            start_server, "--starter", f"http://127.0.0.1:{port}/", env=dict(os.environ)
        )
        self.addCleanup(server.kill)
        client = HttpClient(reactor)
        self.addCleanup(client.close)
        found = await client.send(
            "PUT", f"{server.url}/tasks/42/report-7", {"pages": 3}, {"Prefer": "wait=20"}
        )
        self.assertEqual((found.status, found.json), (200, {"pages": 3}))
        self.assertEqual(found.headers["content-type"], "application/json")
