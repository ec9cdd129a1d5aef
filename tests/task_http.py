"""What the tests of ``/tasks`` share: a server of each kind with a starter, and its clients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from asyncplumber.interfaces import Dispatch, IStarter, Later
from asyncplumber.testing import ClientResponse, MemoryClient, MemoryServer, parse_responses

Lines = Sequence[tuple[str, str]]
JSON = ("Content-Type", "application/json")


@implementer(IStarter)
class FakeStarter:
    """
    Records what is dispatched, and answers as it is told.

    Attributes:
        answer: What it answers; an exception is raised.
        dispatched: What it was given, in order.
        canceled: The runs that are not wanted any more.
    """

    def __init__(self) -> None:
        self.answer: Any = Later()
        self.dispatched: list[Dispatch] = []
        self.canceled: list[str] = []

    def start(self, dispatch: Dispatch) -> Deferred[Any]:
        self.dispatched.append(dispatch)
        if isinstance(self.answer, Deferred):
            return self.answer
        return fail(self.answer) if isinstance(self.answer, Exception) else succeed(self.answer)

    def cancel(self, account: str, task: str, run: str) -> Deferred[None]:
        self.canceled.append(run)
        return succeed(None)

    @property
    def run(self) -> str:
        """The run that was dispatched last."""
        return self.dispatched[-1].run


class TaskCase(SynchronousTestCase):
    """A server with a starter."""

    make_server: type[MemoryServer] = MemoryServer

    def setUp(self) -> None:
        self.starter = FakeStarter()
        self.server = self.make_server(**self.options())
        self.addCleanup(self.stop)

    def options(self) -> dict[str, Any]:
        """Return the arguments of the server."""
        return {"plumber": {"starter": self.starter}}

    def stop(self) -> None:
        """Stop the server."""
        self.server.stop()
        self.server.advance(30)

    def ask(self, method: str, path: str, body: bytes = b"", *lines: tuple[str, str]) -> Any:
        """Return the response to a request that is answered in this moment."""
        return self.server.request(method, path, lines, body)

    def send(self, method: str, path: str, body: bytes = b"", *lines: tuple[str, str]) -> Any:
        """Send a request that is held, and return its client."""
        client = self.server.connect()
        named = [f"{name}: {value}\r\n" for name, value in lines]
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{''.join(named)}"
        client.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return client

    def heard(self, client: MemoryClient) -> ClientResponse:
        """Return the one response that a client has received."""
        (reply,) = parse_responses(client.received())
        return reply

    def report(self, key: str, state: str, body: bytes = b"", *lines: tuple[str, str]) -> Any:
        """Report, and return the response."""
        task = (("Task", key), ("Task-State", state))
        content = (JSON,) if body else ()
        return self.server.post("42", body, *task, *content, *lines)

    def events(self) -> list[dict[str, Any]]:
        """Return all events of account 42."""
        reply = self.server.request("GET", "/events/42?after=earliest&wait=0")
        found: list[dict[str, Any]] = json.loads(reply.body)["events"]
        return found

    def types(self) -> list[str]:
        """Return the types of all events of account 42."""
        return [event["type"] for event in self.events()]


def told(reply: ClientResponse) -> Any:
    """Return the JSON of a response."""
    return json.loads(reply.body)


def header(reply: ClientResponse, name: str) -> str | None:
    """Return a header of a response; None if it is not there."""
    value = reply.headers.get(name.lower().encode())
    return None if value is None else value.decode()
