"""Callback URLs on real sockets: services that know nothing but a URL (scenario 20)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from redis import Redis
from redis.exceptions import ConnectionError as NotYet
from rq import Queue
from twisted.python.filepath import FilePath
from twisted.trial.unittest import SynchronousTestCase

from harness.documents import named_blocks
from harness.processes import Process, start_server
from tests import signing

SOON = 30.0  # seconds that something may take on a busy machine
PAGE = "howto/callback-urls.rst"
PREDICTION = {"id": "p1", "version": "v", "input": {"prompt": "a plumber"}, "urls": {}}


class Answer(NamedTuple):
    """Status, body and headers of a response."""

    status: int
    body: str
    headers: Any

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class ServiceTests(SynchronousTestCase):
    """One server with SQLite, which logs every request."""

    def setUp(self) -> None:
        folder = Path(mkdtemp(prefix="asyncplumber-test-"))
        self.addCleanup(FilePath(str(folder)).remove)
        self.folder = folder
        store = f"sqlite:{folder / 'results'}"
        self.server = start_server("--store", store, "--log-requests", "--callback-rate", "50")
        self.addCleanup(self.server.kill)
        self.tokens: list[str] = []

    def ask(self, method: str, url: str, body: bytes | None = None, **headers: str) -> Answer:
        """Send a request, as any program does."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = Request(url, body, named, method=method)
        try:
            with urlopen(request, timeout=SOON) as response:
                return Answer(response.status, response.read().decode(), response.headers)
        except HTTPError as error:
            with error:
                return Answer(error.code, error.read().decode(), error.headers)

    def mint(self, account: str = "42", **members: Any) -> dict[str, Any]:
        """Return what is told of a new URL."""
        body = json.dumps({"account": account, **members}).encode()
        answer = self.ask("POST", f"{self.server.url}/callbacks", body)
        self.assertEqual(answer.status, 201, answer.body)
        told: dict[str, Any] = answer.json
        self.tokens.append(told["token"])
        return told

    def send(self, url: str, body: object, **headers: str) -> Answer:
        """POST this as JSON."""
        headers.setdefault("Content_Type", "application/json")
        return self.ask("POST", url, json.dumps(body).encode(), **headers)

    def events(self, account: str) -> list[dict[str, Any]]:
        """Return the events of an account."""
        answer = self.ask("GET", f"{self.server.url}/events/{account}?after=earliest&wait=0")
        return list(answer.json["events"])

    def told(self, account: str) -> list[tuple[str, str]]:
        """Return task and type of the events of an account."""
        return [(event["task"]["task"], event["type"]) for event in self.events(account)]

    def test_services(self) -> None:
        """What each of them sends, one after the other; and no token is in the log."""
        self.replicate()
        self.agent()
        self.handshakes()
        self.refusals()
        self.shown()
        self.server.stop()
        log = self.server.output
        self.assertIn("/callbacks/…", log)
        for token in self.tokens:
            self.assertNotIn(token, log)

    def replicate(self) -> None:
        url = self.mint("r", task="picture")["url"]
        series = [("starting", None), *[("processing", [n]) for n in range(3)]]
        for word, output in series:
            answer = self.send(url, {**PREDICTION, "status": word, "output": output})
            self.assertIn(answer.status, (201, 202), answer.body)
        done = {**PREDICTION, "status": "succeeded", "output": [1, 2, 3]}
        first, again = self.send(url, done), self.send(url, done)
        self.assertEqual((again.status, again.json["duplicate"]), (200, True))
        self.assertEqual(again.json["cursor"], first.json["cursor"])
        late = self.send(url, {**PREDICTION, "status": "processing"})
        self.assertEqual((late.status, late.json["ignored"]), (200, "the run has ended"))
        types = [type for _, type in self.told("r")]
        self.assertEqual(types[:2], ["task.submitted", "task.started"])
        self.assertEqual(types.count("task.completed"), 1)
        last = self.events("r")[-1]
        self.assertEqual((last["type"], last["data"]), ("task.completed", done))

    def agent(self) -> None:
        told = self.mint("a", task="trip", verify={"scheme": "bearer"})["a2a"]
        proof = told["authentication"]
        for word in ("TASK_STATE_WORKING", "TASK_STATE_COMPLETED"):
            update = {"statusUpdate": {"taskId": "x", "status": {"state": word}}}
            refused = self.send(told["url"], update)
            self.assertEqual(refused.status, 401)
            authorization = f"{proof['scheme']} {proof['credentials']}"
            self.send(told["url"], update, Authorization=authorization)
        self.assertEqual(self.told("a"), [("trip", "task.started"), ("trip", "task.completed")])

    def handshakes(self) -> None:
        url = self.mint("h")["url"]
        answer = self.send(url, {"type": "url_verification", "challenge": "3eZbrw1a"})
        self.assertEqual((answer.status, answer.body), (200, "3eZbrw1a"))
        self.assertEqual(answer.headers["Content-Type"], "text/plain; charset=utf-8")
        answer = self.ask("OPTIONS", url, WebHook_Request_Origin="events.example.com")
        self.assertEqual(answer.headers["WebHook-Allowed-Origin"], "events.example.com")
        self.assertEqual(answer.headers["WebHook-Allowed-Rate"], "50")
        answer = self.ask("GET", f"{url}?challenge=%3Cscript%3E")
        self.assertEqual((answer.status, "<script>" in answer.body), (400, False))
        self.assertEqual(self.events("h"), [])

    def refusals(self) -> None:
        secret = "s" * 32
        signed = self.mint("g", verify={"scheme": "github", "secret": secret})["url"]
        for known, status in (("t" * 32, 401), (secret, 202)):
            headers = dict(signing.github(known, b"{}"))
            self.assertEqual(self.ask("POST", signed, b"{}", **headers).status, status)
        self.assertEqual([event["type"] for event in self.events("g")], ["push"])
        short = self.mint("g", expires_in=1)["url"]
        end = time.monotonic() + SOON
        while self.send(short, 1).status != 410:
            self.assertLess(time.monotonic(), end, "it never expires")
            time.sleep(0.1)
        self.assertEqual(self.send(f"{short}x", 1).status, 404)

    def shown(self) -> None:
        """The commands of the page do what it says."""
        blocks = named_blocks(PAGE)
        told = json.loads(self.shell(blocks["make"]))
        self.tokens.append(told["token"])
        shown = set(told) - {"a2a", "states", "url"}
        for name in shown:
            self.assertIn(f'"{name}"', (Path(__file__).parents[2] / "docs" / PAGE).read_text())
        self.shell(blocks["report"], URL=told["url"])
        self.assertEqual(
            self.told("42"), [("report-7", "task.started"), ("report-7", "task.completed")]
        )
        github = json.loads(self.shell(blocks["github"]))
        self.tokens.append(github["token"])
        headers = dict(signing.github(github["secret"], b"{}"))
        self.ask("POST", github["url"], b"{}", **headers)
        self.assertEqual([event["type"] for event in self.events("ci")], ["github.push"])
        listed, removed = self.shell(blocks["remove"], ID=told["id"]).splitlines()
        self.assertEqual([row["id"] for row in json.loads(listed)["callbacks"]], [told["id"]])
        self.assertEqual(json.loads(removed), {"status": "ok"})
        self.assertEqual(self.send(told["url"], 1).status, 404)

    def shell(self, text: str, **variables: str) -> str:
        """Return what commands of the page print."""
        done = subprocess.run(
            ["sh", "-ec", text.replace("http://127.0.0.1:8080", self.server.url)],
            env={"PATH": "/usr/bin:/bin", **variables},
            capture_output=True,
            text=True,
            timeout=SOON,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_rq_calls_by_itself(self) -> None:
        """A real worker, which knows nothing of us, calls the URLs of the page's jobs."""
        queue = self.queue()
        for key, function in (("good", "time.time"), ("bad", "math.sqrt")):
            code = named_blocks(PAGE)["enqueue.py"].replace("app.render", function)
            names: dict[str, Any] = {}
            exec(compile(code, "enqueue.py", "exec"), names)
            names["enqueue"](queue, self.mint("q", task=key)["url"])
        url = f"unix://{self.folder / 'redis.sock'}"
        worker = Process([sys.executable, "-m", "rq.cli", "worker", "--burst", "--url", url])
        self.addCleanup(worker.kill)
        self.assertEqual(worker.wait(), 0, worker.output)
        self.assertEqual(
            sorted(self.told("q")), [("bad", "task.failed"), ("good", "task.completed")]
        )
        [bad] = [event for event in self.events("q") if event["task"]["task"] == "bad"]
        self.assertRegex(bad["task"]["error"]["message"], "^TypeError: ")
        self.assertNotIn("Traceback", json.dumps(bad))

    def queue(self) -> Queue:
        """Return a queue in a Redis of its own."""
        if shutil.which("redis-server") is None:
            self.skipTest("no redis-server on the PATH")
        socket = self.folder / "redis.sock"
        redis_server = Process(
            ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", ""]
        )
        self.addCleanup(redis_server.stop)
        redis = Redis(unix_socket_path=str(socket))
        self.addCleanup(redis.close)
        end = time.monotonic() + SOON
        while True:
            try:
                redis.ping()
                return Queue(connection=redis)
            except NotYet:
                self.assertLess(time.monotonic(), end, "redis does not answer")
                time.sleep(0.02)
