"""
An application that executes tasks: what stands behind ``--starter`` in the tests.

It speaks HTTP only, and shares no code with the server.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from twisted.internet.defer import Deferred
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from harness.clients import ConnectionFailed, HttpResponse, fetch, sleep
from harness.reactor import reactor

RETRY = 0.1  # seconds until a report is sent again


@dataclass
class Run:
    """
    A dispatch as it came in.

    Attributes:
        account: ``Plumber-Account``.
        task: ``Plumber-Task``.
        id: ``Plumber-Run``.
        callback: ``Plumber-Callback``.
        body: The input.
        headers: All headers, in lower case.
    """

    account: str
    task: str
    id: str
    callback: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class Answer(NamedTuple):
    """What a dispatch is answered with."""

    status: int = 202
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


LATER = Answer()
Behaviour = Callable[[Run], "Answer | Awaitable[Answer]"]


class _Work(Resource):
    isLeaf = True

    def __init__(self, application: Application) -> None:
        super().__init__()
        self._application = application

    def render_POST(self, request: Request) -> int:
        Deferred.fromCoroutine(self._answer(request)).addErrback(self._application.failed)
        return NOT_DONE_YET

    async def _answer(self, request: Request) -> None:
        gone: list[object] = []
        request.notifyFinish().addErrback(gone.append)
        headers = {
            name.decode().lower(): values[-1].decode()
            for name, values in request.requestHeaders.getAllRawHeaders()
        }
        assert request.content is not None
        answer = await self._application.take(headers, request.content.read())
        if gone:
            return
        request.setResponseCode(answer.status)
        request.setHeader("Content-Type", answer.content_type)
        for name, value in answer.headers:
            request.setHeader(name, value)
        request.write(answer.body)
        request.finish()


class _Channel(HTTPChannel):
    """A connection that its site knows."""

    def connectionMade(self) -> None:
        super().connectionMade()
        self.factory.connections.add(self)

    def connectionLost(self, reason: Any) -> None:
        super().connectionLost(reason)
        self.factory.connections.discard(self)


class _Site(Site):
    """A site that can close its connections."""

    noisy = False

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource)
        self.connections: set[Any] = set()

    def buildProtocol(self, addr: Any) -> Any:
        channel: Any = _Channel()
        channel.requestFactory = self.requestFactory
        channel.site = self
        channel.factory = self
        channel.timeOut = self.timeOut
        return channel

    def log(self, request: Any) -> None:
        """Log nothing."""


class Application:
    """
    Takes dispatches.

    Attributes:
        behaviour: Called with each `Run` that comes in; returns what it is answered with.
        runs: All that came in, also repeated ones, in order.
        canceled: The runs that it was told are not wanted any more.
        problems: What failed in it.
    """

    def __init__(self, behaviour: Behaviour = lambda run: LATER) -> None:
        self.behaviour = behaviour
        self.runs: list[Run] = []
        self.canceled: list[str] = []
        self.problems: list[str] = []
        self.port = 0
        self._busy = 0  # dispatches that are not answered yet

    async def open(self) -> Application:
        """Listen, on a free port the first time and on the same one from then on."""
        self._site = _Site(_Work(self))
        self._listening: Any = reactor.listenTCP(self.port, self._site, interface="127.0.0.1")
        self.port = self._listening.getHost().port
        return self

    async def close(self) -> None:
        """Listen no more, and close all connections."""
        await self._listening.stopListening()
        for connection in list(self._site.connections):
            connection.transport.abortConnection()
        while self._site.connections or self._busy:
            await sleep(0.01)

    @property
    def url(self) -> str:
        """What ``--starter`` is given."""
        return f"http://127.0.0.1:{self.port}/work"

    def failed(self, failure: Any) -> None:
        """Note what failed."""
        self.problems.append(failure.getTraceback())

    async def take(self, headers: dict[str, str], body: bytes) -> Answer:
        """Take a dispatch, or a notice that a run is canceled."""
        if headers.get("event-type") == "task.cancel":
            self.canceled.append(headers["plumber-run"])
            return Answer(204)
        run = Run(
            headers["plumber-account"],
            headers["plumber-task"],
            headers["plumber-run"],
            headers.get("plumber-callback", ""),
            body,
            headers,
        )
        self.runs.append(run)
        self._busy += 1
        try:
            answer = self.behaviour(run)
            return answer if isinstance(answer, Answer) else await answer
        finally:
            self._busy -= 1

    @property
    def ids(self) -> set[str]:
        """The ids of the runs that came in."""
        return {run.id for run in self.runs}


async def report(
    port: int, run: Run, state: str, data: Any = None, *, deadline: float | None = None
) -> HttpResponse:
    """
    Report a run at an instance: by its callback URL if it has one, else at the webhook.

    Args:
        port: Where that instance listens.
        run: The run.
        state: ``running``, ``completed`` …
        data: The body as JSON; None for none.
        deadline: ``Task-Deadline``, in seconds.

    Raises:
        ConnectionFailed: There was no answer.
    """
    headers = {"Task-State": state, "Content-Type": "application/json"}
    if deadline is not None:
        headers["Task-Deadline"] = str(deadline)
    path = urlsplit(run.callback).path
    if not path:
        path = f"/hooks/{quote(run.account, safe='')}"
        headers |= {"Task": run.task, "Task-Run": run.id}
    body = b"" if data is None else json.dumps(data).encode()
    return await fetch(port, "POST", path, body, headers)


async def report_until_taken(
    ports: Sequence[int], run: Run, state: str, data: Any = None, *, deadline: float | None = None
) -> HttpResponse:
    """Report at one instance after the other until one has answered, as a good sender does."""
    attempt = 0
    while True:
        try:
            port = ports[attempt % len(ports)]
            answer = await report(port, run, state, data, deadline=deadline)
            if answer.status not in (408, 429, 500, 502, 503):
                return answer
        except ConnectionFailed:
            pass
        attempt += 1
        await sleep(RETRY)
