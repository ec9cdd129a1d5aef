"""An application that a server starts tasks at, and a client of both; in the reactor of a test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from asyncplumber.http_bodies import BytesProducer, ResponseBody


class Answer(NamedTuple):
    """A response, with the names of its headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The value of its body."""
        return json.loads(self.body)


class HttpClient:
    """Sends requests, each on a connection that stays open."""

    def __init__(self, reactor: Any) -> None:
        self._pool = HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = 256
        self._agent = Agent(reactor, pool=self._pool)

    def close(self) -> Deferred[None]:
        """Close its connections."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed

    async def send(
        self, method: str, url: str, value: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request; a value is its body, as JSON."""
        named = Headers({name: [text] for name, text in (headers or {}).items()})
        body = None
        if value is not None:
            named.addRawHeader("content-type", "application/json")
            body = BytesProducer(json.dumps(value).encode())
        response = await self._agent.request(method.encode(), url.encode(), named, body)
        found = {
            name.decode().lower(): values[0].decode()
            for name, values in response.headers.getAllRawHeaders()
        }
        collected = ResponseBody()
        response.deliverBody(collected)
        return Answer(response.code, found, await collected.complete)


class Started(NamedTuple):
    """A POST of a server: its headers with names in lower case, and the input."""

    headers: Mapping[str, str]
    input: Any


class Application(Resource):
    """
    Does what the input of a task says, an object in JSON with these members.

    Attributes of the input:
        answer: The status of the answer.
        body: What is in the answer.
        size: Bytes of the answer, in place of a body.
        headers: Its headers.
        reports: A list of ``[seconds, path and query, value]``: what is POSTed to the callback URL,
            how long after the POST came in.
        pause: Seconds until the answer.
    """

    isLeaf = True

    def __init__(self, reactor: Any) -> None:
        super().__init__()
        self._reactor = reactor
        self.client = HttpClient(reactor)
        self._calls: list[Any] = []
        #: What was POSTed.
        self.started: list[Started] = []
        #: What the callback URLs answered.
        self.receipts: list[Answer] = []
        #: Replaces the beginning of callback URLs, if it is there.
        self.callback_base = ""

    def listen(self) -> Any:
        """Listen on a free port, which is returned."""
        self.port = self._reactor.listenTCP(0, Site(self), interface="127.0.0.1")
        return self.port

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port.getHost().port}/work"

    def render_POST(self, request: Any) -> Any:
        headers = {
            name.decode().lower(): values[0].decode()
            for name, values in request.requestHeaders.getAllRawHeaders()
        }
        body = request.content.read()
        wish: Any = json.loads(body) if body else None
        self.started.append(Started(headers, wish))
        wish = wish if isinstance(wish, dict) else {}
        for seconds, query, value in wish.get("reports", []):
            url = headers["plumber-callback"] + query
            if self.callback_base:
                url = f"{self.callback_base}/callbacks/{url.rpartition('/')[2]}"
            self._calls.append(self._reactor.callLater(seconds, self._report, url, value))
        pause = wish.get("pause", 0.0)
        self._calls.append(self._reactor.callLater(pause, self._answer, request, wish))
        return NOT_DONE_YET

    def close(self) -> Deferred[None]:
        """Answer and report no more, and close the connections to callback URLs."""
        for call in self._calls:
            if call.active():
                call.cancel()
        return self.client.close()

    def _report(self, url: str, value: Any) -> None:
        sent = Deferred.fromCoroutine(self.client.send("POST", url, value))
        sent.addCallback(self.receipts.append)

    @staticmethod
    def _answer(request: Any, wish: dict[str, Any]) -> None:
        if request._disconnected:
            return
        request.setResponseCode(wish.get("answer", 202))
        for name, text in wish.get("headers", {}).items():
            request.setHeader(name, text)
        if "size" in wish:
            request.write(b"x" * wish["size"])
        if "body" in wish:
            request.setHeader("content-type", "application/json")
            request.write(json.dumps(wish["body"]).encode())
        request.finish()
