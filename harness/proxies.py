"""The proxies of ``docs/examples``, unchanged except for addresses, in front of local servers."""

from __future__ import annotations

import re
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from harness.ports import reserve_port
from harness.processes import ROOT, Process, ProcessFailed

EXAMPLES = ROOT / "docs/examples"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
NO_NGINX = None if NGINX else "nginx is not installed (Debian: apt-get install nginx)"
NO_HAPROXY = None if HAPROXY else "HAProxy is not installed (Debian: apt-get install haproxy)"
_SOON = 15.0  # seconds

_AROUND_NGINX = """
daemon off;
master_process off;
pid {folder}/pid;
error_log stderr warn;
events {{ worker_connections 4000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/example.conf;
}}
"""


class Proxy(Process):
    """A running proxy.  ``port`` is where it listens."""

    port = 0
    folder: tempfile.TemporaryDirectory[str]

    def kill(self) -> None:
        super().kill()
        self.folder.cleanup()


def _replaced(pattern: str, lines: Sequence[str], text: str) -> str:
    """Replace everything from the first match to the last by ``lines``.  There must be a match."""
    found = list(re.finditer(pattern, text, re.MULTILINE))
    assert found, f"the example has nothing like {pattern!r} any more"
    return text[: found[0].start()] + "\n".join(lines) + text[found[-1].end() :]


def nginx_example(port: int, servers: Sequence[int]) -> str:
    """Return the example for nginx with these ports of 127.0.0.1."""
    text = (EXAMPLES / "nginx.conf").read_text(encoding="utf-8")
    match = re.search(r"^    server \S+?:8080(.*);", text, re.MULTILINE)
    assert match is not None
    lines = [f"    server 127.0.0.1:{server}{match[1]};" for server in servers]
    text = _replaced(r"^    server \S+?:8080.*;$", lines, text)
    return _replaced(r"^    listen 80;$", [f"    listen 127.0.0.1:{port};"], text)


def haproxy_example(port: int, servers: Sequence[int]) -> str:
    """Return the example for HAProxy with these ports of 127.0.0.1."""
    text = (EXAMPLES / "haproxy.cfg").read_text(encoding="utf-8")
    lines = [f"    server s{number} 127.0.0.1:{server}" for number, server in enumerate(servers)]
    text = _replaced(r"^    server \S+ +\S+:8080$", lines, text)
    return _replaced(r"^    bind :80$", [f"    bind 127.0.0.1:{port}"], text)


def _started(command: Sequence[str], port: int, folder: tempfile.TemporaryDirectory[str]) -> Proxy:
    proxy = Proxy(command)
    proxy.folder, proxy.port = folder, port
    end = time.monotonic() + _SOON
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return proxy
        time.sleep(0.05)
    output = proxy.output
    proxy.kill()
    raise ProcessFailed(f"nothing listens on port {port}\n{output}")


def start_nginx(*servers: int) -> Proxy:
    """Start nginx with the example, in front of servers at these ports.

    Raises:
        ProcessFailed: it does not listen in time.
    """
    folder = tempfile.TemporaryDirectory(prefix="asyncplumber-nginx-")
    port = reserve_port()
    path = Path(folder.name)
    (path / "example.conf").write_text(nginx_example(port, servers), encoding="utf-8")
    (path / "nginx.conf").write_text(_AROUND_NGINX.format(folder=path), encoding="utf-8")
    return _started(
        [str(NGINX), "-e", "stderr", "-p", str(path), "-c", str(path / "nginx.conf")], port, folder
    )


def start_haproxy(*servers: int) -> Proxy:
    """Start HAProxy with the example, in front of servers at these ports.

    Raises:
        ProcessFailed: it does not listen in time.
    """
    folder = tempfile.TemporaryDirectory(prefix="asyncplumber-haproxy-")
    port = reserve_port()
    path = Path(folder.name, "haproxy.cfg")
    path.write_text(haproxy_example(port, servers), encoding="utf-8")
    return _started([str(HAPROXY), "-db", "-f", str(path)], port, folder)
