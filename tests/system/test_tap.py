"""The command: how it starts, and how it ends if it cannot."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

from twisted.trial.unittest import TestCase

from harness.processes import Process

ROOT = Path(__file__).resolve().parent.parent.parent
TWISTD = [
    sys.executable,
    "-c",
    "from twisted.scripts.twistd import run; run()",
    "-n",
    "--pidfile=",
    "asyncplumber",
]
_TWIST = "from twisted.application.twist._twist import Twist; Twist.main()"
TWIST = [sys.executable, "-c", _TWIST, "--log-format=text", "asyncplumber"]
COMMAND = [sys.executable, "-m", "asyncplumber"]
READY = r"asyncplumber is ready at http://127\.0\.0\.1:(\d+)/"


def ended(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in a folder of its own."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            command, capture_output=True, text=True, cwd=folder, env=environ, timeout=60
        )


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run twistd for a command line that it refuses."""
    return ended([*TWISTD, *words])


def run_command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run ``asyncplumber`` for a command line that it refuses."""
    return ended([*COMMAND, *words])


class ProcessTests(TestCase):
    def test_a_wrong_option_ends_with_status_1(self) -> None:
        """A supervisor looks at the status.  A person sees one sentence, and not all the usage."""
        ended = run("--history-length", "none")
        self.assertEqual(ended.returncode, 1)
        self.assertEqual(ended.stdout, "")
        self.assertTrue(
            ended.stderr.startswith("asyncplumber: --history-length: 'none' is not a number"),
            ended.stderr,
        )

    def test_a_store_with_wrong_words_ends_without_a_traceback(self) -> None:
        """The last line of what is said is the sentence."""
        done = run("--store", "sqlite:x?foo=1", "--port", "0")
        self.assertEqual(done.returncode, 1)
        self.assertNotIn("Traceback", done.stdout + done.stderr)
        self.assertIn("--store: the only options of a sqlite: store", done.stdout + done.stderr)

    def test_a_taken_port_ends_with_status_1(self) -> None:
        """A deaf server must not run on."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            ended = run("--port", str(taken.getsockname()[1]), "--store", "memory:")
        self.assertEqual(ended.returncode, 1)
        self.assertIn("cannot listen", ended.stdout + ended.stderr)

    def test_a_file_that_is_no_database_ends_with_status_1(self) -> None:
        """And the file is left as it was."""
        with tempfile.NamedTemporaryFile(suffix=".sqlite") as file:
            file.write(b"my diary, not yours" * 100)
            file.flush()
            ended = run("--port", "0", "--store", f"sqlite:{file.name}")
            self.assertEqual(Path(file.name).read_bytes(), b"my diary, not yours" * 100)
        self.assertEqual(ended.returncode, 1)
        self.assertIn(os.path.basename(file.name), ended.stdout + ended.stderr)

    def test_twist_runs_it(self) -> None:
        """
        The newer of Twisted's two commands, alone and with workers; a taken port ends it, too.
        """
        for options in ((), ("--workers", "2")):
            server = Process([*TWIST, "--port", "0", "--store", "sqlite:a.sqlite", *options])
            self.addCleanup(server.kill)
            port = server.wait_for(READY)[1]
            with urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
                self.assertEqual(answer.status, 200)
            second = Process([*TWIST, "--port", port, "--store", "sqlite:b.sqlite", *options])
            self.addCleanup(second.kill)
            second.wait_for("cannot listen on")
            server.stop()
            self.assertNotIn("Traceback", server.output)

    def test_the_command_serves_until_it_is_stopped(self) -> None:
        """``python -m asyncplumber serve``: each signal ends it, after a clean stop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            server = Process([*COMMAND, "serve", "--port", "0", "--store", "memory:"])
            self.addCleanup(server.kill)
            port = server.wait_for(READY)[1]
            with urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
                self.assertEqual(answer.status, 200)
            os.kill(server.pid, number)
            self.assertEqual(server.wait(), -number)
            self.assertIn("Server Shut Down.", server.output)

    def test_the_command_refuses_a_wrong_option(self) -> None:
        """As twistd does, for it is the same program."""
        for words in (["serve", "--history-length", "none"], ["nonsense"], []):
            refused = run_command(*words)
            self.assertEqual((refused.returncode, refused.stdout), (1, ""))
            self.assertTrue(refused.stderr.startswith("asyncplumber: "), refused.stderr)

    def test_a_second_server_in_the_same_folder(self) -> None:
        """The command of the README, twice in one folder and with two ports."""
        [words] = re.findall(
            r"bin/(twistd .*) --port 8080$", (ROOT / "README.rst").read_text(), re.M
        )
        with tempfile.TemporaryDirectory() as folder:
            code = f"import os; os.chdir({folder!r}); from twisted.scripts.twistd import run; run()"
            for _ in range(2):
                server = Process([sys.executable, "-c", code, *words.split()[1:], "--port", "0"])
                self.addCleanup(server.kill)
                server.wait_for(READY)
