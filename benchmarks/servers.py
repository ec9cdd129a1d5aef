"""The contestants: the project with its stores, and other servers that are installed."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import machine
from benchmarks.generator import Figures, Load
from harness.ports import reserve_port

HERE = Path(__file__).parent
PEERS = HERE / "peers"
_NGINX_MODULES = (
    "/usr/lib/nginx/modules",
    "/usr/lib64/nginx/modules",
    "/usr/local/lib/nginx/modules",
    "/etc/nginx/modules",
)

_NGINX = """\
load_module {module};
worker_processes 1;
daemon off;
{user}
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ worker_connections 20000; }}
http {{
  access_log off;
  keepalive_requests 100000000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  nchan_shared_memory_size 256M;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location ~ ^/events/(\\w+)$ {{
      nchan_subscriber websocket eventsource; nchan_channel_id $1;
      nchan_subscriber_first_message newest;
    }}
    location ~ ^/hooks/(\\w+)$ {{
      nchan_publisher; nchan_channel_id $1; nchan_message_buffer_length 100;
    }}
  }}
}}
"""

_ABLE = frozenset({"sse", "batch", "resume"})  # what the project can do


@dataclass(frozen=True)
class Contestant:
    """A server that is measured.  ``command`` gets a port and an empty folder."""

    name: str
    command: Callable[[int, Path], list[str]]
    missing: str = ""  # why it cannot be started here
    able: frozenset[str] = frozenset()  # of sse, batch, resume
    environ: Mapping[str, str] = field(default_factory=dict)
    mongodb: str = ""  # URI of the database that it uses, with {port}


def project(
    name: str = "asyncplumber",
    options: str = "--store memory:",
    missing: str = "",
    mongodb: str = "",
) -> Contestant:
    """Return the project itself.  ``{folder}`` in the options is an empty folder of its own."""

    def command(port: int, folder: Path) -> list[str]:
        start = [
            sys.executable,
            "-c",
            "from twisted.scripts.twistd import run; run()",
            "-n",
            "--pidfile=",
            "asyncplumber",
        ]
        return [
            *start,
            "--port",
            str(port),
            *shlex.split(options.replace("{folder}", str(folder)).replace("{port}", str(port))),
        ]

    return Contestant(name, command, missing, _ABLE, {"PYTHONPATH": str(HERE.parent)}, mongodb)


def on_mongodb() -> Contestant:
    """
    Return the project on MongoDB.

    The MongoDB server runs until this process ends, or is the one that the environment names.
    """
    from unittest import SkipTest

    from harness.mongod import shared_uri, with_database

    try:
        uri = with_database(shared_uri(), "benchmark_{port}")
    except SkipTest as error:
        return project("mongodb", missing=str(error))
    uri = uri.replace("%7Bport%7D", "{port}")
    return project("mongodb", "--store " + uri, mongodb=uri)


def nchan() -> Contestant:
    """Return nginx with nchan, in C: the baseline."""
    nginx = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    module = next(
        (
            path
            for folder in _NGINX_MODULES
            if (path := Path(folder, "ngx_nchan_module.so")).exists()
        ),
        None,
    )

    def command(port: int, folder: Path) -> list[str]:
        user = "user root;" if os.getuid() == 0 else ""
        (folder / "nginx.conf").write_text(
            _NGINX.format(module=module, user=user, folder=folder, port=port)
        )
        return [str(nginx), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]

    missing = (
        "" if nginx and module else "nginx with nchan is not installed (Debian: libnginx-mod-nchan)"
    )
    return Contestant("nchan", command, missing, frozenset({"sse"}))


def node_ws() -> Contestant:
    """
    Return a hub on node's package ``ws``.

    The package is searched where ``NODE_PATH`` says, and in a ``node_modules`` beside the project.
    """
    node = shutil.which("node")
    found = False
    if node:
        look = subprocess.run(
            [node, "-e", "require('ws')"], cwd=HERE, capture_output=True, check=False
        )
        found = look.returncode == 0
    missing = (
        ""
        if found
        else "node or its package ws is not installed (npm install ws; NODE_PATH says where)"
    )
    return Contestant(
        "node-ws",
        lambda port, folder: [str(node), str(PEERS / "ws_hub.js"), str(port)],
        missing,
        frozenset({"sse"}),
        {"NODE_ENV": "production"},
    )


def klein_hub() -> Contestant:
    """Return a hub on Klein and Autobahn, as anyone would write it."""
    return Contestant(
        "klein+autobahn",
        lambda port, folder: [sys.executable, str(PEERS / "klein_hub.py"), str(port)],
    )


def also(text: str) -> Contestant:
    """
    Return the contestant ``NAME=COMMAND`` of the command line.

    The command contains ``{port}`` and may contain ``{folder}``.
    """
    name, _, command = text.partition("=")
    if not command or "{port}" not in command:
        raise SystemExit(f"--also {text!r} is not NAME=COMMAND with {{port}} in it")
    return Contestant(
        name,
        lambda port, folder: shlex.split(
            command.replace("{port}", str(port)).replace("{folder}", str(folder))
        ),
        able=_ABLE,
    )


class Failed(Exception):
    """A server did not start, or does not answer."""


class Server:
    """A running contestant, as a context manager that stops only what it started."""

    def __init__(self, contestant: Contestant, seconds: float = 3) -> None:
        """
        Args:
        contestant: What to start.
        seconds: The value of ``{seconds}`` in the arguments of a load.
        """
        self.contestant = contestant
        self._seconds = seconds
        self._loads: list[Load] = []
        self.port = reserve_port()
        self.pids: list[int] = []

    def __enter__(self) -> Server:
        self._folder = tempfile.TemporaryDirectory(prefix="asyncplumber-benchmark-")
        folder = Path(self._folder.name)
        self._log = folder / "log"
        environ = {**os.environ, **self.contestant.environ}
        with self._log.open("wb") as log:
            command = self.contestant.command(self.port, folder)
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, cwd=folder
            )
        try:
            self._await()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _await(self) -> None:
        """Wait until a subscriber gets an event."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.05)
                continue
            self.pids = machine.family(self._process.pid)
            if self.load("--events 1 --patience 2 --prefix hello --settle 0.1")["ok"]:
                self.load(
                    "--accounts 4 --subscribers 10 --events 200 --publishers 2 --seconds 1 "
                    "--prefix warm --settle 0.1"
                )
                self.settle()
                return
            time.sleep(0.2)
        raise Failed(
            f"{self.contestant.name} does not serve: {self._log.read_text(errors='replace')[-600:]}"
        )

    def start_load(self, arguments: str) -> Load:
        """Start the load generator."""
        self.pids = machine.family(self._process.pid)
        load = Load(self.port, self.pids, arguments.replace("{seconds}", str(self._seconds)))
        self._loads.append(load)
        return load

    def load(self, arguments: str) -> Figures:
        """Run the load generator and return its figures."""
        return self.start_load(arguments).result()

    def settle(self) -> None:
        """Wait until the server has nothing left to do, at most five seconds."""
        before, calm = machine.cpu(self.pids), 0
        for _ in range(50):
            time.sleep(0.1)
            after = machine.cpu(self.pids)
            calm = calm + 1 if after - before < 0.015 else 0
            before = after
            if calm == 2:
                return

    def __exit__(self, *_: object) -> None:
        for load in self._loads:
            load.stop()
        pids = machine.family(self._process.pid)
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            for pid in {*pids, *machine.family(self._process.pid)}:
                os.kill(pid, signal.SIGKILL)
            self._process.wait()
        self._folder.cleanup()
