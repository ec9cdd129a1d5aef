"""Real processes for tests: a server, a Celery worker.

Each process leads a process group of its own.  The group is killed when the test ends (``stop`` as
a clean-up), when the interpreter exits and, on Linux, when the interpreter is killed.  The output
of a process is kept, and is part of the message when the process does not do what it should.
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
START = 30.0  # seconds until a server is ready, on a machine that is busy with other tests
STOP = 15.0  # seconds from SIGTERM to the end

# Runs in the child before the command.  This interpreter has threads, so Popen's ``preexec_fn``
# could deadlock.
#  - Signals: a background job of a shell script ignores SIGINT and SIGQUIT, and one under nohup
#    ignores SIGHUP.  So would its children.
#  - PR_SET_PDEATHSIG (1): the kernel sends SIGTERM when the parent dies.  It outlives the exec.
#  - The parent may have died before that call.
_LAUNCHER = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class ProcessFailed(AssertionError):
    """A process did not do in time what it should.  The message has its output."""


class Process:
    """A command in a process group and in a temporary folder of its own."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="asyncplumber-test-")
        self._lines: list[str] = []
        self._ended = False  # its output has ended
        self._reaped = False  # its process id may belong to another process
        self._output_changed = threading.Condition()
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self._child = subprocess.Popen(
            [sys.executable, "-S", "-c", _LAUNCHER, str(os.getpid()), *command],
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
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        atexit.register(self.kill)

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            with self._output_changed:
                self._lines.append(line)
                self._output_changed.notify_all()
        with self._output_changed:
            self._ended = True
            self._output_changed.notify_all()

    @property
    def pid(self) -> int:
        """The id of the process and of its group."""
        return self._child.pid

    @property
    def output(self) -> str:
        """Standard output and standard error so far."""
        with self._output_changed:
            return "".join(self._lines)

    def wait_for(self, pattern: str, seconds: float = START) -> re.Match[str]:
        """Wait until a line of the output matches.

        Raises:
            ProcessFailed: the output ended first, or ``seconds`` passed.
        """
        found: list[re.Match[str]] = []

        def said() -> bool:
            found.extend(match for line in self._lines if (match := re.search(pattern, line)))
            return bool(found) or self._ended

        with self._output_changed:
            self._output_changed.wait_for(said, seconds)
        if not found:
            why = "it ended" if self._ended else f"not in {seconds:g} seconds"
            raise ProcessFailed(f"never said {pattern!r}: {why}\n{self.output}")
        return found[0]

    def terminate(self) -> None:
        """Send SIGTERM and do not wait."""
        if self._child.poll() is None:
            self._child.terminate()

    def stop(self, seconds: float = STOP) -> int:
        """Send SIGTERM, wait, and return the exit status.  Idempotent.

        Raises:
            ProcessFailed: it did not end in ``seconds`` and was killed.
        """
        self.terminate()
        return self.wait(seconds)

    def wait(self, seconds: float = STOP) -> int:
        """Wait until it ends by itself, and return the exit status.

        Raises:
            ProcessFailed: it did not end in ``seconds`` and was killed.
        """
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ProcessFailed(f"did not end in {seconds:g} seconds\n{self.output}") from None
        self.kill()  # processes of its group that are left
        return self._child.returncode

    def kill(self) -> None:
        """Kill the whole group (SIGKILL).  Idempotent."""
        if self._reaped:
            return
        self._reaped = True
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        self._reader.join(STOP)
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._folder.cleanup()
        atexit.unregister(self.kill)


class Server(Process):
    """A running asyncplumber.  ``url`` has no slash at its end."""

    url = ""
    port = 0


def start_server(*options: str, env: Mapping[str, str] | None = None) -> Server:
    """Start ``twistd -n asyncplumber`` on a port that the system chooses; wait until it is ready.

    The history is in memory, unless ``options`` name a store.

    Raises:
        ProcessFailed: the server ended, or is not ready in time.
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
    """Return settings for Celery with messages and results in files: no broker is needed.

    Creates the folders that are missing in ``folder``.
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
    """Start ``celery -A app worker`` and wait until it takes tasks.

    Raises:
        ProcessFailed: the worker ended, or is not ready in time.
    """
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "info"]
    worker = Process([sys.executable, "-m", "celery", "-A", app, "worker", *quiet, *options], env)
    try:
        worker.wait_for(r" ready\.$")
    except BaseException:
        worker.kill()
        raise
    return worker
