"""The how-to about starting tasks: its programs do what it says."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

from celery import Celery
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from asyncplumber import Plumber
from asyncplumber.client import Outbox
from asyncplumber.starters.secrets import parse_starter_secrets
from asyncplumber.starters.webhook import WebhookStarter
from harness.documents import named_blocks
from harness.receiver import Receiver

SECRET = "whsec_" + base64.b64encode(b"a secret of the page, for tests").decode()
RUN = "mf3k9x2a"


def as_it_is(*_: Any, **__: Any) -> Any:
    """Return a decorator that changes nothing."""
    return lambda view: view


class ProgramTests(SynchronousTestCase):
    """Each program by itself, with stand-ins for what is around it in an application."""

    def setUp(self) -> None:
        self.blocks = named_blocks("howto/tasks.rst")

    def run_python(self, name: str, **names: Any) -> dict[str, Any]:
        exec(self.blocks[name], names)
        return names

    def test_flask(self) -> None:
        """The answer is 202, and the reports come from a thread."""
        receiver = Receiver()
        self.addCleanup(receiver.stop)
        threads: list[threading.Thread] = []

        def thread(**how: Any) -> threading.Thread:
            threads.append(threading.Thread(**how))
            return threads[-1]

        about = {"Plumber-Account": "42", "Plumber-Task": "r%C3%BC", "Plumber-Run": RUN}
        request = SimpleNamespace(
            headers={"Event-Type": "task.start", **about}, get_json=lambda: {"pages": 2}
        )
        names = {"app": SimpleNamespace(post=as_it_is), "request": request, "Thread": thread}
        self.blocks["flask_starter.py"] = self.blocks["flask_starter.py"].replace(
            "http://127.0.0.1:8080", receiver.url
        )
        page = self.run_python("flask_starter.py", Outbox=Outbox, unquote=unquote, **names)
        self.assertEqual(page["work"](), ("", 202))
        threads[0].join(30)
        page["plumber"].close()
        last = receiver.received[-1]
        self.assertEqual((last.path, json.loads(last.body)), ("/hooks/42", {"pages": 2}))
        headers = last.headers
        self.assertEqual((headers["task-run"], headers["task-state"]), (RUN, "completed"))
        self.assertEqual(headers["task"].encode("latin-1").decode(), "rü")
        request.headers["Event-Type"] = "task.cancel"
        self.assertEqual((page["work"](), len(threads)), (("", 202), 1))

    def test_fastapi(self) -> None:
        """The answer is the result."""
        page = self.run_python("fastapi_starter.py", app=SimpleNamespace(post=as_it_is))
        self.assertEqual(asyncio.run(page["work"]([3, 4])), {"total": 7})

    def headers(self, body: bytes, **options: Any) -> Mapping[str, str]:
        """Return the headers of a signed POST, as the starter makes them."""
        time = f"{datetime.now(UTC).timestamp():.0f}"
        content = f"{RUN}.{time}.".encode() + body
        key = base64.b64decode(SECRET.removeprefix("whsec_"))
        signature = base64.b64encode(hmac.digest(key, content, "sha256")).decode()
        return {
            "webhook-id": RUN,
            "webhook-timestamp": time,
            "webhook-signature": f"v1,AAAA v1,{signature}",
            "Plumber-Run": RUN,
            "Plumber-Callback": "http://127.0.0.1:1/callbacks/Zx8",
            "Event-Type": "task.start",
            **options,
        }

    def verify(self) -> Any:
        names = {"SECRET": SECRET, "hmac": hmac, "base64": base64, "UTC": UTC}
        return self.run_python("verify.py", datetime=datetime, **names)["is_from_the_plumber"]

    def test_the_signature(self) -> None:
        """It is taken, and none that differs in anything that it covers."""
        verify = self.verify()
        good = self.headers(b"[3,4]")
        self.assertTrue(verify(good, b"[3,4]"))
        self.assertFalse(verify(good, b"[3,5]"))
        old = str(int(good["webhook-timestamp"]) - 301)
        for change in (
            {"webhook-id": "other"},
            {"Plumber-Run": "other"},
            {"webhook-timestamp": old},
            {"webhook-signature": "v1,AAAA"},
        ):
            self.assertFalse(verify({**good, **change}, b"[3,4]"), change)

    def test_the_signature_of_the_starter_itself(self) -> None:
        """For a start, and for a cancel."""
        from asyncplumber.interfaces import Dispatch
        from tests.unit.test_webhook_starter import ADDRESS, Application

        application = Application()
        now = datetime.now(UTC).timestamp()
        starter = WebhookStarter(
            ADDRESS,
            application.post,
            SimpleNamespace(seconds=lambda: 0.0),  # type: ignore[arg-type]
            lambda: now,
            secrets=parse_starter_secrets(SECRET.encode()),
        )
        starter.start(Dispatch("42", "t", RUN, "", b"[3,4]"))
        starter.cancel("42", "t", RUN)
        for sent in application.posts:
            headers = {name.decode(): value.decode() for name, value in sent.headers.items()}
            headers["Plumber-Run"] = headers["plumber-run"]
            self.assertTrue(self.verify()(headers, sent.body))

    def test_a_secret(self) -> None:
        """The file that the command makes is one that the server takes."""
        command = self.blocks["starter-secret.sh"]
        folder = Path(self.mktemp())
        folder.mkdir()
        subprocess.run(["sh", "-ec", command], cwd=folder, check=True, timeout=60)
        file = folder / "starter.secret"
        self.assertEqual(file.stat().st_mode & 0o777, 0o600)
        self.assertEqual(len(parse_starter_secrets(file.read_bytes())[0]), 32)

    def test_django(self) -> None:
        """The real decorators and responses; a run that is known is not begun again."""
        if find_spec("django") is None:
            raise SkipTest("Django is not installed")
        program = "\n".join(
            [
                _DJANGO,
                f"SECRET = {SECRET!r}",
                self.blocks["verify.py"],
                self.blocks["django_starter.py"],
                f"good = {dict(self.headers(b'[3,4]'))!r}",
                _DJANGO_REQUESTS,
            ]
        )
        found = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
        )
        self.assertEqual(found.returncode, 0, found.stderr)
        self.assertEqual(found.stdout.split(), ["202", "202", "1", "401", "405", "204"])

    def test_celery(self) -> None:
        """The task reports what it does, for the account that its message names."""
        receiver = Receiver()
        self.addCleanup(receiver.stop)
        app = Celery("shop", set_as_current=False)
        app.conf.task_always_eager = True
        text = self.blocks["celery_starter.py"].replace("http://127.0.0.1:8080", receiver.url)
        names: dict[str, Any] = {"app": app, "__name__": "shop.tasks"}
        exec(text, names)
        headers = {"account": "42", "plumber_task": "report-7"}
        outcome = names["render"].apply_async((2,), headers=headers, task_id=RUN)
        self.assertEqual(outcome.get(), {"pages": 2})
        self.assertEqual({each.path for each in receiver.received}, {"/hooks/42"})
        self.assertEqual({each.headers["task"] for each in receiver.received}, {"report-7"})
        last = receiver.received[-1]
        self.assertEqual(json.loads(last.body), {"pages": 2})
        headers = last.headers
        self.assertEqual((headers["task-run"], headers["task-state"]), (RUN, "completed"))


_DJANGO = """
import base64, hmac, json
from datetime import UTC, datetime
from types import SimpleNamespace
from django.conf import settings
settings.configure()
from django.http import HttpResponse
from django.test import RequestFactory
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

enqueued, jobs = [], {}

def get_or_create(run):
    is_new = run not in jobs
    return jobs.setdefault(run, SimpleNamespace()), is_new

Job = SimpleNamespace(objects=SimpleNamespace(
    get_or_create=get_or_create,
    filter=lambda run: SimpleNamespace(update=lambda canceled: None),
))
render = SimpleNamespace(enqueue=lambda *arguments: enqueued.append(arguments))
"""
_DJANGO_REQUESTS = """
def post(body, **changes):
    headers = {"HTTP_" + name.upper().replace("-", "_"): value
               for name, value in {**good, **changes}.items()}
    request = RequestFactory().post("/work", body, content_type="application/json", **headers)
    return work(request).status_code

print(post(b"[3,4]"), post(b"[3,4]"), len(enqueued))
print(post(b"[3,5]"), work(RequestFactory().get("/work")).status_code)
print(post(b"[3,4]", **{"Event-Type": "task.cancel"}))
assert enqueued == [([3, 4], good["Plumber-Callback"])]
"""


class InProcessTests(TestCase):
    """The program with a plumber in it."""

    async def test_from_start_to_result(self) -> None:
        """On a file of its own."""
        drawn: list[int] = []

        async def draw(page: int) -> None:
            drawn.append(page)

        text = named_blocks("howto/tasks.rst")["in_process.py"]
        names: dict[str, Any] = {"Plumber": Plumber, "draw": draw}
        exec(text.replace("plumber.sqlite", self.mktemp()), names)
        plumber: Plumber = names["plumber"]
        plumber.startService()
        self.addCleanup(plumber.stopService)
        await plumber.when_running()
        outcome = await plumber.start_task("42", "report-7", {"pages": 2}, wait=20)
        self.assertEqual((outcome.data, drawn), ({"pages": 2}, [0, 1]))
