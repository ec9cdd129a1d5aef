"""
A real MongoDB for the tests.

`shared_uri` is one server for a whole run, started at the first use.  `Mongod` is a
server of one's own, to be killed, stopped in its tracks, and started again.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from twisted.trial.unittest import SkipTest

from harness.ports import reserve_port

ENVIRONMENT = "ASYNCPLUMBER_TEST_MONGODB"
UP = 20.0  # seconds; a loaded machine may need some
# Reads a pipe whose other end its parent holds, until that is closed: so the server dies with the
# tests, however they die. What the server prints, before it has opened its log, must not come
# between us and its process id.
_SHIM = """
import os, signal, subprocess, sys
server = subprocess.Popen(
    sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
)
print(server.pid, flush=True)
sys.stdin.buffer.read()
try:
    os.kill(server.pid, signal.SIGCONT)
    server.kill()
except OSError:
    pass
server.wait()
"""


def program() -> str:
    """
    Return the path of a mongod.

    Raises:
        SkipTest: There is none.
    """
    found = shutil.which("mongod")
    if found:
        return found
    spec = importlib.util.find_spec("fiftyone")
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / "db" / "bin" / "mongod"
        if path.exists():
            if not os.access(path, os.X_OK):
                path.chmod(0o755)
            return str(path)
    raise SkipTest(
        f"no MongoDB: set {ENVIRONMENT} to a URI, put mongod on the PATH, or install fiftyone-db"
    )


class Mongod:
    """A server with its own folder and port, which is not started yet."""

    def __init__(self, *flags: str, replica_set: str = "", initiate: bool = True) -> None:
        """
        Args:
            flags: Further arguments of mongod.
            replica_set: The name of its replica set; ``""`` makes it a single server.
            initiate: Whether it is a replica set alone.  If not, the caller makes it a member.
        """
        self.program = program()
        self.port = reserve_port()
        self.replica_set = replica_set
        self._initiates = bool(replica_set) and initiate
        self._flags = [*flags, *(["--replSet", replica_set] if replica_set else [])]
        self._folder = tempfile.mkdtemp(prefix="asyncplumber-mongod-")
        self._shim: subprocess.Popen[bytes] | None = None
        self.pid = 0

    @property
    def uri(self) -> str:
        """The URI, without a database."""
        return f"mongodb://127.0.0.1:{self.port}/" + (
            f"?replicaSet={self.replica_set}" if self.replica_set else ""
        )

    def start(self) -> Mongod:
        """Start, and wait until it takes connections."""
        log = Path(self._folder, "log")
        command = [
            self.program,
            *(
                "--dbpath",
                self._folder,
                "--port",
                str(self.port),
                "--bind_ip",
                "127.0.0.1",
                "--nounixsocket",
            ),
            *(
                "--wiredTigerCacheSizeGB",
                "0.25",
                "--wiredTigerEngineConfigString",
                "log=(file_max=8MB,prealloc=false)",
            ),
            *(
                "--setParameter",
                "diagnosticDataCollectionEnabled=false",
                "--setParameter",
                "ttlMonitorSleepSecs=1",
            ),
            *("--logpath", str(log)),
            *self._flags,
        ]
        log.unlink(missing_ok=True)
        self._shim = subprocess.Popen(
            [sys.executable, "-c", _SHIM, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A signal to the group of the tests must not end the shim before its server.
            start_new_session=True,
        )
        assert self._shim.stdout is not None
        self.pid = int(self._shim.stdout.readline())
        self._wait(log)
        if self._initiates:
            self._initiate()
        return self

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + UP
        while time.monotonic() < deadline:
            for line in log.read_text(errors="replace").splitlines() if log.exists() else ():
                with contextlib.suppress(ValueError):
                    if json.loads(line).get("msg") == "Waiting for connections":
                        return
            assert self._shim is not None
            if self._shim.poll() is not None:
                break
            time.sleep(0.02)
        self.stop()
        raise SkipTest("mongod does not start on this machine")

    def _initiate(self) -> None:
        import pymongo

        with pymongo.MongoClient("127.0.0.1", self.port, directConnection=True) as client:
            member = {"_id": 0, "host": f"127.0.0.1:{self.port}"}
            with contextlib.suppress(
                pymongo.errors.OperationFailure
            ):  # it is initiated already, after a restart
                client.admin.command(
                    "replSetInitiate", {"_id": self.replica_set, "members": [member]}
                )
            deadline = time.monotonic() + UP
            while (
                not client.admin.command("hello")["isWritablePrimary"]
                and time.monotonic() < deadline
            ):
                time.sleep(0.02)

    def _terminate(self) -> None:
        if self._shim is not None:
            shim, self._shim = self._shim, None
            assert shim.stdin is not None
            assert shim.stdout is not None
            shim.stdin.close()
            shim.wait()
            shim.stdout.close()

    def kill(self) -> None:
        """Send SIGKILL.  Only what the operating system has already taken survives."""
        self._terminate()

    def pause(self) -> None:
        """Let it hang: connections stay, and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on where it was."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Kill it if it runs, and start it again with what it has on disk."""
        self._terminate()
        Path(self._folder, "mongod.lock").unlink(missing_ok=True)
        self.start()

    def stop(self) -> None:
        """Kill it if it runs, and delete its folder."""
        self._terminate()
        shutil.rmtree(self._folder, ignore_errors=True)


_shared: list[str] = []


def shared_uri() -> str:
    """
    Return the URI, without a database, of a server that runs until the tests end.

    Raises:
        SkipTest: There is no mongod.
    """
    if not _shared:
        uri = os.environ.get(ENVIRONMENT)
        if not uri:
            server = Mongod().start()
            atexit.register(server.stop)
            uri = server.uri
        _shared.append(uri)
    return _shared[0]


def with_database(uri: str, name: str = "") -> str:
    """Return the URI with a database of that name; ``""`` is a new one."""
    return urlunsplit(urlsplit(uri)._replace(path="/" + (name or f"test_{secrets.token_hex(6)}")))


def fresh_uri() -> str:
    """
    Return the URI of a new database on the shared server.

    Raises:
        SkipTest: There is no mongod.
    """
    return with_database(shared_uri())
