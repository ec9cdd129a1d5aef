"""The commands and programs that the how-to guides and the README show do what they say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.request import urlopen

from twisted.trial.unittest import SynchronousTestCase

from harness.documents import named_blocks
from harness.processes import ROOT, Process, Server, start_server


class DocumentsTestCase(SynchronousTestCase):
    """A server, to which a documented program sends."""

    def setUp(self) -> None:
        self.server = start_server()
        self.addCleanup(self.server.kill)

    def run_code(self, command: list[str], text: str) -> str:
        """Run a documented command or program with the server's port in it.  Its output."""
        text = text.replace("127.0.0.1:8080", f"127.0.0.1:{self.server.port}")
        environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
        environ["ASYNCPLUMBER_URL"] = self.server.url
        done = subprocess.run(
            [*command, text], env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def events(self, account: str) -> list[dict[str, Any]]:
        """Return all events of an account, without those about the stream."""
        url = f"{self.server.url}/events/{account}?after=earliest&wait=0"
        with urlopen(url, timeout=20) as response:
            found: list[dict[str, Any]] = json.load(response)["events"]
        return [event for event in found if not event["type"].startswith("plumber.")]


class SendTests(DocumentsTestCase):
    """The guide about sending."""

    def test_from_a_shell(self) -> None:
        """A command without an ID sends each time; one with an ID once."""
        blocks = named_blocks("howto/send.rst")
        for name in ("shell", "shell-with-id", "shell-with-id"):
            receipt = json.loads(self.run_code(["sh", "-c"], blocks[name]))
            self.assertEqual(receipt["status"], "ok")
        self.assertTrue(receipt["duplicate"])
        self.assertEqual([event["type"] for event in self.events("42")], ["result", "report"])

    def test_from_python(self) -> None:
        """With and without waiting; a program that ends empties its outbox."""
        blocks = named_blocks("howto/send.rst")
        for name in ("send.py", "outbox.py"):
            self.run_code([sys.executable, "-c"], blocks[name])
        self.assertEqual([event["data"] for event in self.events("42")], [{"total": 7}] * 2)

    def test_tasks(self) -> None:
        """A block, a function, a coroutine and a command are tasks, and have one end each."""
        blocks = named_blocks("howto/send.rst")
        for name in ("task.py", "decorator.py", "asyncio_task.py"):
            self.run_code([sys.executable, "-c"], blocks[name])
        command = blocks["run"].replace("asyncplumber", f"{sys.executable} -m asyncplumber")
        options = f"run --url {self.server.url}"
        command = command.replace("run", options, 1)
        self.assertEqual(self.run_code(["sh", "-c"], command), '{"rows": 7}\n')
        ends = [event for event in self.events("42") if event["task"]["done"]]
        self.assertEqual(
            [(event["task"]["task"], event["data"]) for event in ends],
            [*((f"invoice-{n}", {"total": 7}) for n in (7, 8, 9)), ("nightly", {"rows": 7})],
        )
        for event in ends:
            self.assertEqual(event["type"], "task.completed")

    def test_the_readme(self) -> None:
        """Its four ways to send that need no broker."""
        text = (ROOT / "README.rst").read_text(encoding="utf-8")
        blocks = [dedent(block) for block in re.findall(r"::\n\n((?:    .*\n|\n)+)", text)]
        programs = [block for block in blocks if re.match(r"from asyncplumber.client", block)]
        self.assertEqual(len(programs), 3)
        for program in programs:
            self.run_code([sys.executable, "-c"], program)
        [curl] = [block for block in blocks if block.startswith("curl -d")]
        self.run_code(["sh", "-c"], curl)
        events = self.events("demo")
        events = [event for event in events if event["type"] in ("result", "task.completed")]
        self.assertEqual([event["data"] for event in events], [{"total": 7}] * 4)


class AdminTests(SynchronousTestCase):
    """The guide about the admin page."""

    def run_shell(self, text: str, folder: str | None = None) -> str:
        done = subprocess.run(
            ["sh", "-c", text], cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_the_documents(self) -> None:
        """Each command gets a document in JSON; the last one has the event of the one before."""
        server = start_server("--private-listen", "0")
        self.addCleanup(server.kill)
        private = server.wait_for(r"the admin page is at http://(\S+)/admin/")[1]
        block = named_blocks("howto/admin.rst")["admin-documents"]
        for command in block.strip().splitlines():
            answer = json.loads(self.run_shell(command.replace("127.0.0.1:9090", private)))
        self.assertEqual([event["data"] for event in answer["events"]], [{"hello": "world"}])

    def test_the_key(self) -> None:
        """It opens the documents."""
        folder = self.mktemp()
        Path(folder).mkdir()
        key = self.run_shell(named_blocks("howto/admin.rst")["admin-key"], folder).strip()
        server = start_server("--auth", str((Path(folder) / "auth.toml").absolute()))
        self.addCleanup(server.kill)
        ask = f"curl -s -o /dev/null -w '%{{http_code}}' {server.url}/admin/cluster"
        self.assertEqual(self.run_shell(ask), "401")
        self.assertEqual(self.run_shell(f"{ask} -H 'Authorization: Bearer {key}'"), "200")


class EmbedTests(SynchronousTestCase):
    """The guide about a plumber in an application."""

    def test_it_sends_and_receives(self) -> None:
        """The program of the page ends, and prints what it says."""
        code = named_blocks("howto/embed.rst")["embedded.py"]
        process = Process([sys.executable, "-c", code])
        self.addCleanup(process.kill)
        self.assertEqual(process.wait(), 0, process.output)
        lines = process.output.splitlines()
        self.assertEqual(lines[1:2], ["invoice {'total': 7}"], process.output)

    def test_it_executes_tasks(self) -> None:
        """A task of the application itself, and one that it reports."""
        code = named_blocks("howto/embed.rst")["embedded_tasks.py"]
        process = Process([sys.executable, "-c", code])
        self.addCleanup(process.kill)
        self.assertEqual(process.wait(), 0, process.output)
        expected = ["completed {'total': 7}", "{'rows': 9}"]
        self.assertEqual(process.output.splitlines(), expected)


class ClientTests(SynchronousTestCase):
    """The guide about clients."""

    def start(self, path: Path, port: str = "0") -> Server:
        server = start_server("--store", f"sqlite:{path}", "--port", port)
        self.addCleanup(server.kill)
        return server

    def test_the_client_resumes(self) -> None:
        """It prints what is kept, what comes, and what came while the server was away."""
        path = Path(self.mktemp()).absolute()
        server = self.start(path)
        code = named_blocks("howto/write-a-client.rst")["client.py"]
        self.post(server, 1)
        client = Process([sys.executable, "-u", "-c", code, server.url, "a"])
        self.addCleanup(client.kill)
        client.wait_for(r"^result 1$")
        self.post(server, 2)
        client.wait_for(r"^result 2$")
        server.stop()
        server = self.start(path, str(server.port))
        self.post(server, 3)
        client.wait_for(r"^result 3$")
        self.assertEqual(re.findall(r"^result (\d)$", client.output, re.MULTILINE), ["1", "2", "3"])

    def post(self, server: Server, data: int) -> None:
        """Post a number to the account ``a``."""
        urlopen(f"{server.url}/hooks/a", str(data).encode(), timeout=20).close()


class TestingTests(SynchronousTestCase):
    """The guide about tests."""

    def test_the_tests_pass(self) -> None:
        """Each program of the page is a test that trial runs."""
        for name, code in named_blocks("howto/test-your-application.rst").items():
            folder = Path(self.mktemp()).absolute()
            folder.mkdir()
            (folder / "test_shown.py").write_text(code, encoding="utf-8")
            done = subprocess.run(
                [sys.executable, "-m", "twisted.trial", "test_shown"],
                cwd=folder,
                env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{folder}"},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            self.assertEqual(done.returncode, 0, f"{name}\n{done.stdout}{done.stderr}")
            self.assertIn("PASSED", done.stdout)
