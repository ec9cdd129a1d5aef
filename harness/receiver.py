"""An HTTP server that stands for a plumber, and responds to each POST as a test's script says."""

from __future__ import annotations

import json
import ssl
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Received(NamedTuple):
    """A request as it came in; `client` is the address of its connection."""

    path: str
    headers: dict[str, str]
    body: bytes
    client: tuple[str, int]

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


Step = Callable[["Handler"], None]


def respond(status: int, body: object = None, hang_up: bool = False, **headers: str) -> Step:
    """
    Return a step that responds with this status and body.

    `hang_up` closes the connection afterwards, although the response does not announce it.
    """

    def step(handler: Handler) -> None:
        text = json.dumps(body).encode() if body is not None else b""
        handler.send_response_only(status)
        for name, value in {"Content-Length": str(len(text)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(text)
        handler.close_connection = hang_up

    return step


def receive(handler: Handler) -> None:
    """Respond with a receipt, as a plumber does."""
    receipt = {
        "id": handler.headers["Webhook-Id"],
        "cursor": "e.1",
        "duplicate": False,
        "subscribers": 2,
    }
    respond(201, {"status": "ok", **receipt, "instances": {"ok": 1, "failed": 0}})(handler)


def task_receipt(run: str, state: str = "running", cancel: bool = False) -> Step:
    """Return a step that responds to a report of a task."""
    return respond(202, {"status": "ok", "task": {"run": run, "state": state, "cancel": cancel}})


def close(handler: Handler) -> None:
    """Close the connection without a response."""
    handler.close_connection = True


def stall(handler: Handler) -> None:
    """Send nothing until the test is over."""
    handler.server.over.wait()
    handler.close_connection = True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.note(Received(self.path, headers, body, self.client_address))(self)

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.note(Received(self.path, headers, b"", self.client_address))(self)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class Receiver(ThreadingHTTPServer):
    """Takes POSTs on a free port; follows the script, and then responds with receipts."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *script: Step, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.server_port}"
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.over = threading.Event()
        self.received: list[Received] = []
        self._script = deque(script)
        self._news = threading.Condition()
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def note(self, request: Received) -> Step:
        with self._news:
            self.received.append(request)
            self._news.notify_all()
            return self._script.popleft() if self._script else receive

    def wait_for(self, number: int, seconds: float = 30.0) -> list[Received]:
        """Wait until so many requests have come in, or so many seconds; return what came in."""
        with self._news:
            self._news.wait_for(lambda: len(self.received) >= number, seconds)
            return list(self.received)

    def handle_error(self, *_: object) -> None:
        """In many scripts a client goes away; that is no error."""

    def stop(self) -> None:
        self.over.set()
        self.shutdown()
        self._thread.join()
        self.server_close()
