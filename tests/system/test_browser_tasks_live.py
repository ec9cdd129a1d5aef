"""Tasks in a real Chromium, with a real server: over each transport, and across its death."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from twisted.trial.unittest import SynchronousTestCase

from harness.browser import Browser, browser, missing
from harness.ports import reserve_port
from harness.processes import ROOT, Process, Server, start_server

EXAMPLE = ROOT / "docs/examples/tasks/application.py"
COMMAND = [
    sys.executable,
    "-c",
    "from twisted.scripts.twistd import run; run()",
    "-n",
    "--pidfile=",
]


def ask(method: str, url: str, data: Any = None, **headers: str) -> Any:
    """Send a request, and return the JSON of the response."""
    body = None if data is None else json.dumps(data).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        named["Content-Type"] = "application/json"
    with urlopen(Request(url, body, named, method=method), timeout=30) as answer:
        return json.loads(answer.read())


class LiveCase(SynchronousTestCase):
    """A page of a server, which has the client."""

    skip = missing()

    def visit(self, url: str) -> Browser:
        page = browser()
        page.errors()
        page.go(f"{url}/#nobody")
        self.addCleanup(page.go, "about:blank")
        return page


class TransportTests(LiveCase):
    """The example of the tutorial, asked by a script of a page."""

    def serve(self) -> str:
        """Start the example, and return the URL of its plumber."""
        port = reserve_port()
        environ = {"PORT": str(port), "STORE": "memory:"}
        process = Process([*COMMAND, "-y", str(EXAMPLE)], environ)
        self.addCleanup(process.stop)
        process.wait_for("starting up")
        url = f"http://127.0.0.1:{port}/plumber"
        process.wait_for("Starting factory")
        return url

    def test_a_page_starts_and_cancels_over_each_transport(self) -> None:
        """All see one task; a malformed message is answered, and the stream goes on."""
        url = self.serve()
        page = self.visit(url)
        page.run(
            "window.all = ['websocket', 'sse', 'longpoll'].map((name) => new Asyncplumber("
            "  args[0], {account: 'demo', transports: [name]}));"
            "window.ends = all.map(() => []);"
            "all.forEach((plumber, at) => plumber.task('shared').on("
            "  'end', ({state}) => ends[at].push(state)));",
            url,
        )
        page.until("return all.every(({state}) => state === 'open')")
        for number in range(3):
            result = page.run(
                "const task = all[args[0]].start('mine' + args[0], {pages: 1});"
                "return await task.result",
                number,
            )
            self.assertEqual(result, {"pages": 1, "words": 250})
        for number in range(3):
            page.run("all[args[0]].start('shared', {pages: 100})", number)
            page.until("return all.every((plumber) => plumber.task('shared').progress?.page > 0)")
            page.run("await all[args[0]].task('shared').cancel()", number)
            page.until("return ends.every((states) => states.length > args[0])", number)
        self.assertEqual(page.run("return ends"), [["canceled"] * 3] * 3)
        self.check_messages(page, url)
        # A browser logs each 404: by a request it is asked where a task is that nobody knows yet.
        self.assertEqual([line for line in page.errors() if "/shared" not in line], [])

    def check_messages(self, page: Browser, url: str) -> None:
        """A WebSocket and a PUT join one run, and both are given its end (scenario 17)."""
        page.run(
            "window.got = [];"
            "window.socket = new WebSocket(args[0].replace('http', 'ws') + '/events/demo');"
            "socket.onmessage = ({data}) => got.push(JSON.parse(data));"
            "await new Promise((resolve) => { socket.onopen = resolve; });"
            "socket.send('nonsense');"
            "const text = {id: 7, method: 'start', task: 'both', input: {pages: 2}, wait: 20};"
            "socket.send(JSON.stringify(text));",
            url,
        )
        page.until("return got.some(({type}) => type === 'task.submitted')")
        answer = ask("PUT", f"{url}/tasks/demo/both", {"pages": 2}, Prefer="wait=20")
        reply = page.until("return got.find(({id}) => id === 7)")
        self.assertEqual((reply["status"], reply["data"]["result"]), (200, answer))
        wrong = page.run("return got.find(({type}) => type === 'plumber.reply')")
        self.assertEqual((wrong["status"], wrong["id"]), (400, None))
        page.run("socket.close()")


class LateComerTests(LiveCase):
    """A task that a worker reports, on SQLite (scenario 14)."""

    def serve(self, *options: str) -> Server:
        server = start_server(*options)
        self.addCleanup(server.stop)
        return server

    def report(self, server: Server, state: str, data: Any) -> None:
        ask("POST", f"{server.url}/hooks/crew", data, Task="sum", Task_Run="r1", Task_State=state)

    def test_a_late_comer_survives_the_death_of_the_server(self) -> None:
        """The live task comes first, with its last progress; then each event once, and one end."""
        with tempfile.TemporaryDirectory() as folder:
            store = [
                "--store",
                f"sqlite:{Path(folder) / 'history.db'}",
                "--progress-interval",
                "0.1",
            ]
            first = self.serve(*store)
            self.report(first, "started", None)
            self.report(first, "running", {"page": 1})
            page = self.visit(first.url)
            page.run(
                "window.heard = [], window.shown = [];"
                "window.plumber = new Asyncplumber(args[0], {account: 'crew', backoff: [50, 200]});"
                "const progress = (tasks) => tasks.map((row) => row.progress);"
                "plumber.on('tasks', ({tasks}) => heard.push(['tasks', progress(tasks)]));"
                "plumber.on('event', ({type, cursor}) => heard.push([type, cursor]));"
                "window.task = plumber.task('sum');"
                "task.on('change', (now) => shown.push([now.state, now.progress]));"
                "task.on('end', () => shown.push('end'));",
                first.url,
            )
            page.until("return shown.length === 1")
            self.assertEqual(
                page.run("return [heard, shown]"),
                [[["tasks", [{"page": 1}]]], [["running", {"page": 1}]]],
            )
            self.report(first, "running", {"page": 2})
            page.until("return shown.length === 2")
            first.kill()
            page.until("return plumber.state !== 'open'")
            elsewhere = self.serve(*store)
            self.report(elsewhere, "running", {"page": 3})
            self.report(elsewhere, "completed", {"pages": 3})
            elsewhere.stop()
            again = self.serve(*store, "--port", str(first.port))
            page.until("return task.done")
            self.assertEqual(page.run("return await task.result"), {"pages": 3})
            self.report(again, "completed", {"pages": 3})  # the worker repeats itself
            page.run("await new Promise((resolve) => setTimeout(resolve, 200))")
            heard, shown = page.run("return [heard, shown]")
            events = [each for each in heard if each[0] != "tasks"]
            self.assertEqual(
                [type for type, _ in events],
                ["task.progress", "task.progress", "task.completed"],
            )
            self.assertEqual(shown.count("end"), 1)
            self.assertEqual(shown[-1], "end")
            again.stop()
