"""Tasks of Celery as the starter: what is published, and a real worker that runs it."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import mkdtemp
from threading import Event
from time import sleep
from typing import Any

from celery import Celery
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, gatherResults
from twisted.internet.threads import deferToThread
from twisted.python.filepath import FilePath
from twisted.trial.unittest import SynchronousTestCase, TestCase

from asyncplumber.interfaces import Dispatch, IStoppableStarter, Later, StarterFailed
from asyncplumber.starters import open_starter
from asyncplumber.starters.address import parse_address
from asyncplumber.starters.celery import THREADS, CeleryStarter, arguments, find_app
from harness.application import Answer, HttpClient
from harness.processes import celery_settings, start_server, start_worker

ANSWER = 30.0  # seconds that a real worker may take
CALLBACK = "https://push.example.com/callbacks/Zx8"


def dispatch(
    body: bytes = b"", content_type: str = "application/json", run: str = "r-1"
) -> Dispatch:
    return Dispatch("42", "report/7", run, content_type, body, CALLBACK)


class ArgumentTests(SynchronousTestCase):
    """What a task is called with."""

    def test_json(self) -> None:
        """An array is the arguments, an object those with a name, all else is the only one."""
        for body, expected in (
            (b"", ([], {})),
            (b"[3, 4]", ([3, 4], {})),
            (b'{"pages": 3}', ([], {"pages": 3})),
            (b"7", ([7], {})),
            (b'"a"', (["a"], {})),
            (b"null", ([None], {})),
        ):
            for kind in ("application/json", "", "application/vnd.a+json; charset=utf-8"):
                self.assertEqual(arguments(kind, body), expected)

    def test_text_and_bytes(self) -> None:
        """One argument; a text that looks like JSON is a text."""
        self.assertEqual(arguments("text/plain", b"[3]"), (["[3]"], {}))
        self.assertEqual(arguments("text/plain", "ü".encode()), (["ü"], {}))
        self.assertEqual(arguments("image/png", b"\x89PNG"), ([b"\x89PNG"], {}))
        self.assertEqual(arguments("application/json", b"{"), (["{"], {}))

    def test_an_app_that_cannot_be_had(self) -> None:
        """A sentence that names it."""
        for name in ("no_such_module:app", "harness.processes:Server", "json"):
            error = self.assertRaises(ValueError, find_app, name)
            self.assertIn(name, str(error))
            address = parse_address(f"celery:{name}#a")
            assert address is not None
            self.assertRaises(
                ValueError,
                open_starter,
                address,
                reactor,
                lambda: 0.0,
                timeout=1.0,
                answer_limit=1,
            )


class BlockedApp:
    """Stands for an app whose broker does not answer."""

    backend = None

    def __init__(self) -> None:
        self.go_on = Event()
        self.sent: list[str] = []

    def send_task(self, name: str, *, task_id: str, **_: Any) -> None:
        self.go_on.wait(ANSWER)
        self.sent.append(task_id)


class PublishTests(TestCase):
    """With Celery's broker in memory."""

    def starter(self, app: Any, task: str = "shop.render", **options: Any) -> CeleryStarter:
        starter = CeleryStarter(app, task, reactor, **options)
        self.addCleanup(starter.stop)
        return starter

    async def test_a_message(self) -> None:
        """The run is its id; its headers say whose task it is, and Celery's own are whole."""
        app = Celery("shop", broker="memory://", set_as_current=False)
        starter = self.starter(app)
        self.assertTrue(IStoppableStarter.providedBy(starter))
        self.assertEqual(await starter.start(dispatch(b'{"pages": 3}')), Later())
        with app.connection() as connection, connection.SimpleQueue("celery") as queue:
            message = queue.get(timeout=ANSWER)
            message.ack()
        headers = message.headers
        self.assertEqual((headers["task"], headers["id"]), ("shop.render", "r-1"))
        self.assertEqual((headers["account"], headers["plumber_task"]), ("42", "report/7"))
        self.assertEqual(headers["plumber_callback"], CALLBACK)
        args, kwargs, _ = json.loads(message.body)
        self.assertEqual((args, kwargs), ([], {"pages": 3}))

    async def test_a_broker_that_is_away(self) -> None:
        """It is tried again by the dispatcher; the broker's password is in no message."""
        app = Celery("shop", broker="amqp://u:sesame@127.0.0.1:1//", set_as_current=False)
        error = await self.assertFailure(self.starter(app).start(dispatch()), StarterFailed)
        self.assertNotIn("sesame", str(error))

    async def test_a_value_that_the_serializer_cannot_express(self) -> None:
        """It fails as such, and not the threads."""
        app = Celery("shop", broker="memory://", set_as_current=False)
        starter = self.starter(app)
        app.conf.task_serializer = "yaml-or-so"
        for _ in range(THREADS + 1):
            await self.assertFailure(starter.start(dispatch()), StarterFailed)

    async def test_a_broker_without_answer(self) -> None:
        """The reactor goes on; who waits in vain is told, and is not sent later."""
        app = BlockedApp()
        self.addCleanup(app.go_on.set)
        starter = self.starter(app, timeout=0.05, waiting=2)
        runs = [f"r-{number}" for number in range(THREADS + 3)]
        started = [starter.start(dispatch(run=run)) for run in runs]
        errors = await gatherResults([self.assertFailure(each, StarterFailed) for each in started])
        self.assertIn("too many", str(errors[-1]))
        given_up = self.starter(app).start(dispatch(run="never"))
        given_up.cancel()
        await self.assertFailure(given_up, CancelledError)
        app.go_on.set()
        app.sent.clear()
        self.assertEqual(await self.starter(app).start(dispatch(run="again")), Later())
        self.assertEqual(await starter.start(dispatch(run="last")), Later())
        self.assertEqual(set(app.sent) - {*runs[:THREADS], "never"}, {"again", "last"})

    async def test_it_goes_on_after_a_stop(self) -> None:
        """The threads end, and others begin."""
        app = BlockedApp()
        app.go_on.set()
        starter = self.starter(app)
        for run in ("a", "b"):
            self.assertEqual(await starter.start(dispatch(run=run)), Later())
            await starter.stop()
        self.assertEqual(app.sent, ["a", "b"])


class WorkerTests(TestCase):
    """A server that starts a task of Celery, and a real worker, whose tasks run in processes."""

    async def setUp(self) -> None:
        folder = Path(mkdtemp())
        self.addCleanup(FilePath(str(folder)).remove)
        celery_settings(folder)
        env = {"CELERY_TEST_FOLDER": str(folder), "ASYNCPLUMBER_URL": "http://127.0.0.1:1"}
        starter = ("--starter", "celery:tests.celery_app:app#tests.celery_app.sleep")
        self.server = await deferToThread(start_server, *starter, env=env)
        self.addCleanup(self.server.kill)
        env["ASYNCPLUMBER_URL"] = self.server.url
        options = ("--pool", "prefork", "--concurrency", "1")
        worker = await deferToThread(start_worker, "tests.celery_app", *options, env=env)
        self.addCleanup(worker.kill)
        self.client = HttpClient(reactor)
        self.addCleanup(self.client.close)

    async def ask(self, method: str, path: str, input: Any = None, **headers: str) -> Answer:
        return await self.client.send(method, self.server.url + path, input, headers)

    async def test_from_request_to_result(self) -> None:
        """One task runs to its end, and another is canceled while it runs."""
        found = await self.ask("PUT", "/tasks/42/short", {"seconds": 0.2}, Prefer="wait=30")
        self.assertEqual((found.status, found.json), (200, None))
        found = await self.ask("PUT", "/tasks/42/long", [600], Prefer="respond-async")
        self.assertEqual(found.status, 202)
        while (await self.ask("GET", "/tasks/42/long")).json["state"] != "running":
            await deferToThread(sleep, 0.1)
        self.assertEqual((await self.ask("POST", "/tasks/42/long/cancel")).status, 202)
        found = await self.ask("GET", "/tasks/42/long?wait=30")
        self.assertEqual(found.json["state"], "canceled")
        events = (await self.ask("GET", "/events/42?after=earliest&wait=0")).json["events"]
        self.assertEqual(
            [(each["task"]["task"], each["type"]) for each in events],
            [
                (key, f"task.{state}")
                for key, end in (("short", "completed"), ("long", "canceled"))
                for state in ("submitted", "started", end)
            ],
        )
        self.assertEqual(len({each["task"]["run"] for each in events}), 2)
