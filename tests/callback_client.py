"""Callback URLs as those see them who make them and who POST to them, in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.logger import capturedLogs, formatEvent

from asyncplumber.testing import ClientResponse, MemoryServer

BASE = "http://127.0.0.1:8080"


class CallbackCase:
    """A server in memory, and an account that has callback URLs."""

    make_server: type[MemoryServer] = MemoryServer
    plumber: dict[str, Any] = {}
    body_limit = 10_000
    server: MemoryServer
    assertEqual: Any
    assertIn: Any

    def setUp(self) -> None:
        """Make a server whose account 42 has a listener."""
        self.server = self.make_server(plumber=self.plumber, body_limit=self.body_limit)
        self.events: list[Any] = []
        self.listen("42")

    def listen(self, account: str) -> None:
        """Collect the events of an account."""
        self.server.plumber.register(account, self.events.append)
        self.server.settle()

    @property
    def types(self) -> list[str]:
        """The types of the events that came."""
        return [event.type for event in self.events]

    def mint(self, account: str = "42", **members: Any) -> dict[str, Any]:
        """Return what is told of a new URL."""
        body = json.dumps({"account": account, **members}).encode()
        reply = self.server.request("POST", "/callbacks", body=body)
        self.assertEqual(reply.status, 201, reply.body)
        told: dict[str, Any] = json.loads(reply.body)
        return told

    def path(self, account: str = "42", **members: Any) -> str:
        """Return the path of a new URL."""
        url: str = self.mint(account, **members)["url"]
        self.assertIn(BASE, url)
        return url.removeprefix(BASE)

    def post(
        self, path: str, body: Any = None, *headers: tuple[str, str]
    ) -> tuple[int, dict[str, Any]]:
        """POST this, as JSON unless it is bytes; return status and JSON of the answer."""
        data = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        reply = self.server.request("POST", path, headers, data)
        return reply.status, json.loads(reply.body)

    def get(self, path: str, *headers: tuple[str, str]) -> ClientResponse:
        """Return the answer to a GET."""
        return self.server.request("GET", path, headers)

    def refusals(self) -> dict[str, float]:
        """Return what was refused, by reason."""
        figure = self.server.plumber.figures.collect()["refused_total"]
        found = zip(figure.series, figure.numbers, strict=True)
        return {reason: number for (reason,), number in found if number}


@contextmanager
def all_logged() -> Iterator[list[str]]:
    """Collect everything that is logged: the lines, and all that belongs to them."""
    lines: list[str] = []
    with capturedLogs() as events:
        yield lines
    for event in events:
        failure = event.get("log_failure")
        trace = failure.getTraceback(detail="verbose") if failure is not None else ""
        lines.append(f"{formatEvent(event)} {event!r} {trace}")
