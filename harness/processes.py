"""
Real processes for tests: a server, a Celery worker.

Each runs in a process group of its own, which is killed when the test ends (`stop` as a clean-up),
when the interpreter ends, or, on Linux, when it is killed.  What a process says is kept, and is in
the message if it does not do as it should.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START = 30.0  # seconds; a machine that is busy with other tests needs some
STOP = 15.0
_PR_SET_PDEATHSIG = 1


class ProcessFailed(AssertionError):
    """
    A process ended, or did not say or do in time what it should have; the message holds its output.
    """


def _begin() -> None:
    """
    End with the parent, and heed SIGINT: a background job of a script ignores it, and its children
    with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Process:
    """A command that runs in its own process group and in a folder of its own."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="asyncplumber-test-")
        self._lines: list[str] = []
        self._ended = False  # it says nothing more
        self._gone = False  # its process id may be another's by now
        self._news = threading.Condition()
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._folder.name,
            env={
                **os.environ,
                "PYTHONUNBUFFERED": "1",
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                **(env or {}),
            },
            start_new_session=True,
            preexec_fn=_begin,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        atexit.register(self.kill)

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self._child.pid

    @property
    def output(self) -> str:
        """All that it has said so far, standard output and error together."""
        with self._news:
            return "".join(self._lines)

    def wait_for(self, pattern: str, seconds: float = START) -> re.Match[str]:
        """
        Wait until a line of its output matches.  Raises `ProcessFailed` if it ends before, or after
        so many seconds.
        """
        found: list[re.Match[str]] = []

        def said() -> bool:
            found.extend(match for line in self._lines if (match := re.search(pattern, line)))
            return bool(found) or self._ended

        with self._news:
            self._news.wait_for(said, seconds)
        if not found:
            why = "it ended" if self._ended else f"not in {seconds:g} seconds"
            raise ProcessFailed(f"never said {pattern!r}: {why}\n{self.output}")
        return found[0]

    def terminate(self) -> None:
        """Ask it to end (SIGTERM), and do not wait."""
        if self._child.poll() is None:
            self._child.terminate()

    def stop(self, seconds: float = STOP) -> int:
        """
        Ask it to end (SIGTERM) and wait.  Its exit status; `ProcessFailed` if it had to be killed.
        Idempotent.
        """
        self.terminate()
        return self.wait(seconds)

    def wait(self, seconds: float = STOP) -> int:
        """Wait until it ends by itself.  The same status; `ProcessFailed` if it had to be killed."""
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ProcessFailed(f"did not end in {seconds:g} seconds\n{self.output}") from None
        self.kill()  # what it may have left behind in its group
        return self._child.returncode

    def kill(self) -> None:
        """End its whole group at once (SIGKILL).  Idempotent."""
        if self._gone:
            return
        self._gone = True
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        self._reader.join(STOP)
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._folder.cleanup()
        atexit.unregister(self.kill)


class Server(Process):
    """A running asyncplumber; `url` has no slash at its end."""

    url = ""
    port = 0


def start_server(*options: str, env: Mapping[str, str] | None = None) -> Server:
    """
    Start ``twistd -n asyncplumber`` on a free port of 127.0.0.1 and wait until it is ready.

    It keeps its history in memory, unless `options` say otherwise.  Raises `ProcessFailed`.
    """
    twistd = [
        sys.executable,
        "-c",
        "from twisted.scripts.twistd import run; run()",
        "--nodaemon",
        "--pidfile=",
    ]
    server = Server([*twistd, "asyncplumber", "--port", "0", "--store", "memory:", *options], env)
    try:
        ready = server.wait_for(r"asyncplumber is ready at (https?://\S+?:(\d+))/?(\s|$)")
    except BaseException:
        server.kill()
        raise
    server.url, server.port = ready[1], int(ready[2])
    return server


def celery_settings(folder: Path) -> dict[str, object]:
    """
    For a Celery whose messages and results are files in `folder`: no broker is needed.  Makes what
    is missing there.
    """
    from harness.celery_transport import SCHEME

    for name in ("queue", "control", "results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    queue = str(folder / "queue")
    return {
        "broker_url": f"{SCHEME}://",
        "broker_transport_options": {
            "data_folder_in": queue,
            "data_folder_out": queue,
            "control_folder": str(folder / "control"),
            "polling_interval": 0.02,  # seconds
        },
        "broker_connection_retry_on_startup": False,
        "result_backend": f"file://{folder / 'results'}",
    }


def start_worker(app: str, *options: str, env: Mapping[str, str] | None = None) -> Process:
    """Start ``celery -A app worker`` and wait until it takes tasks.  Raises `ProcessFailed`."""
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "info"]
    worker = Process([sys.executable, "-m", "celery", "-A", app, "worker", *quiet, *options], env)
    try:
        worker.wait_for(r" ready\.$")
    except BaseException:
        worker.kill()
        raise
    return worker
