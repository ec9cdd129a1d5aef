"""The tutorial, as its reader follows it: the commands and files of the page, with other ports."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from harness.browser import Browser, browser, missing
from harness.documents import named_blocks
from harness.ports import reserve_port
from harness.processes import ROOT, Process

SOON = 20.0  # seconds
# A folder to which the picture of the tutorial is written, if it is set.
PICTURES = os.environ.get("ASYNCPLUMBER_PICTURES")


class TutorialTests(SynchronousTestCase):
    """Each chapter ends as the page says."""

    def setUp(self) -> None:
        self.blocks = named_blocks("tutorial.rst")
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        (self.folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
        (self.folder / "docs").symlink_to(ROOT / "docs")
        self.ports = {port: str(reserve_port()) for port in ("8080", "8000", "6379")}

    def text(self, name: str) -> str:
        """Return a block of the page with the ports of this test in it."""
        pattern = re.compile("|".join(self.ports))
        return pattern.sub(lambda found: self.ports[found[0]], self.blocks[name])

    def run_command(self, name: str) -> str:
        """Run a command of the page to its end, and return what it printed."""
        found = subprocess.run(
            ["sh", "-c", self.text(name)],
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual(found.returncode, 0, found.stderr)
        return found.stdout

    def start(self, name: str, ready: str) -> Process:
        """Start a command of the page that keeps running, until a line of its output matches."""
        command = self.text(name).strip().rpartition(" && ")[2]
        environ = {"PORT": self.ports["8000"]}
        process = Process(["sh", "-c", f"cd '{self.folder}' && exec {command}"], environ)
        self.addCleanup(process.kill)
        process.wait_for(ready)
        return process

    def start_server(self) -> Process:
        """Start the server of the first chapter."""
        return self.start("server", "asyncplumber is ready at")

    def events(self) -> list[dict[str, Any]]:
        """Return the events that the tutorial's long-poll shows."""
        found = json.loads(self.run_command("poll"))["events"]
        return [event for event in found if not event["type"].startswith("plumber.")]

    def until(self, condition: Any, what: str) -> None:
        """Poll with a deadline."""
        end = time.monotonic() + SOON
        while not condition():
            self.assertLess(time.monotonic(), end, f"not in time: {what}")
            time.sleep(0.05)

    def test_a_first_result(self) -> None:
        """It is there for a client, also after a restart of the server."""
        server = self.start_server()
        self.assertEqual(json.loads(self.run_command("send"))["status"], "ok")
        self.assertEqual([event["data"] for event in self.events()], [{"total": 7}])
        server.stop()
        self.start_server()
        self.assertEqual([event["data"] for event in self.events()], [{"total": 7}])

    def test_the_server_is_that_of_the_readme(self) -> None:
        """Both pages begin with the same command."""
        readme = (ROOT / "README.rst").read_text(encoding="utf-8")
        self.assertIn(f"    {self.blocks['server']}", readme)

    def test_a_celery_task(self) -> None:
        """Its progress arrives, and then its result."""
        if shutil.which("redis-server") is None:
            raise SkipTest("no redis-server on the PATH")
        redis = Process(["redis-server", "--port", self.ports["6379"], "--save", ""])
        self.addCleanup(redis.kill)
        redis.wait_for("Ready to accept connections")
        self.start_server()
        (self.folder / "shop.py").write_text(self.text("shop.py"), encoding="utf-8")
        self.start("worker", r" ready\.$")
        self.run_command("start-task")
        self.until(
            lambda: any(event["type"] == "task.completed" for event in self.events()),
            "the end of the task",
        )
        first, *progress, end = self.events()
        self.assertEqual(first["type"], "task.started")
        self.assertEqual({event["type"] for event in progress}, {"task.progress"})
        self.assertEqual(progress[-1]["data"], {"page": 3, "of": 3})
        self.assertEqual((end["type"], end["data"]), ("task.completed", {"pages": 3}))

    def test_an_application_of_ones_own(self) -> None:
        """Its callback is called, so its own page knows the result."""
        self.start("application", "starting up")
        self.until(self.is_received, "the application takes a result")
        self.assertEqual(json.loads(self.run_command("latest")), {"42": {"total": 8}})

    def test_a_page_that_starts_a_task(self) -> None:
        """Three tabs agree, also one that was loaded again; a shell joins; and it is canceled."""
        if why := missing():
            raise SkipTest(why)
        self.start("task-application", "starting up")
        page = browser()
        tabs = page.open_tabs(2)
        self.addCleanup(page.go, "about:blank")
        self.addCleanup(page.close_tabs, tabs)
        self.until(self.has_task_page, "the application answers")
        for tab in tabs:
            page.switch_to(tab)
            page.errors()
            page.go(f"http://127.0.0.1:{self.ports['8000']}/")
            page.until("return plumber.state === 'open'")
        self.assertEqual(self.states(page, tabs), ["No report yet"] * 3)

        page.run("document.getElementById('pages').value = 6")
        page.click("start")
        for tab in tabs:
            page.switch_to(tab)
            page.until("return document.getElementById('bar').value > 0")
        self.assertEqual(self.states(page, tabs), ["Being made"] * 3)

        page.switch_to(tabs[1])
        before = page.run("return document.getElementById('bar').value")
        page.reload()
        page.until(
            "return task.progress && document.getElementById('bar').value >= args[0]", before
        )
        self.assertEqual(self.states(page, tabs), ["Being made"] * 3)
        if PICTURES:
            page.resize(640, 300)
            page.until("return document.getElementById('bar').value >= 0.5")
            page.screenshot(Path(PICTURES) / "tutorial-task.png")

        joined = json.loads(self.run_command("join"))
        self.assertEqual(joined, {"pages": 6, "words": 1500})
        for tab in tabs:
            page.switch_to(tab)
            page.until("return document.getElementById('state').innerText === 'Done'")
            outcome = page.until("return document.getElementById('outcome').innerText")
            self.assertEqual(outcome, "6 pages with 1500 words")

        page.run("document.getElementById('pages').value = 100")
        page.click("start")
        page.switch_to(tabs[0])
        page.until("return document.getElementById('bar').value > 0 && !task.done")
        page.click("cancel")
        for tab in tabs:
            page.switch_to(tab)
            page.until("return document.getElementById('state').innerText === 'Canceled'")
            self.assertEqual(page.errors(), [])

    def has_task_page(self) -> bool:
        """Return whether the last application of the page answers."""
        url = f"http://127.0.0.1:{self.ports['8000']}/plumber/readyz"
        try:
            with urlopen(url) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    @staticmethod
    def states(page: Browser, tabs: list[str]) -> list[str]:
        """Return what each tab says about the task."""
        found = []
        for tab in tabs:
            page.switch_to(tab)
            found.append(page.run("return document.getElementById('state').innerText"))
        return found

    def is_received(self) -> bool:
        """Send to the application; tell whether its callback was given the event."""
        try:
            receipt = json.loads(self.run_command("send-to-application"))
        except self.failureException:
            return False  # nothing listens yet
        return receipt.get("subscribers") == 1  # before: its store or its subscription opens
