"""
The long way in: a request that `connection` has read is handed to twisted.web, and so to Klein.

twisted.web's `Request` speaks to an HTTP channel; `RequestChannel` is that channel, for one
request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ISSLTransport
from twisted.web.http_headers import Headers
from twisted.web.server import Request, Site


class RequestChannel:
    """What a `twisted.web.server.Request` needs of its channel."""

    def __init__(
        self,
        transport: Any,
        write: Callable[[bytes], None],
        drained: Callable[[], Deferred[None]],
        site: Site,
        close: bool,
        extra: Sequence[tuple[bytes, bytes]],
        done: Callable[[bool], None],
    ) -> None:
        """
        `write` sends to the client, and `extra` headers go with the answer.  `drained` returns a
        Deferred that fires when the client has room for more.

        `done` is called when that is written, with whether to close the connection.
        """
        self.transport = transport
        self._write = write
        self._drained = drained
        self._producer: Any = None
        self._is_push = False  # what kind of producer it is
        self._is_paused = False
        self.site = site
        self.factory = site
        self._close = close
        self._extra = extra
        self._done = done
        self.request: Request | None = None

    def handle(
        self, method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> None:
        """Let twisted.web answer this request."""
        request = self.request = self.site.requestFactory(self)
        for name, value in headers:
            request.requestHeaders.addRawHeader(name, value)
        request.parseCookies()
        request.gotLength(len(body))
        if body:
            request.handleContentChunk(body)
        request.requestReceived(method, target, b"HTTP/1.1")

    def connection_lost(self, reason: Any) -> None:
        """The client did not wait for the answer."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        if self.request is not None:
            self.request.connectionLost(reason)

    # What Request calls

    def getPeer(self) -> Any:
        return self.transport.getPeer()

    def getHost(self) -> Any:
        return self.transport.getHost()

    def isSecure(self) -> bool:
        return bool(ISSLTransport.providedBy(self.transport))

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        headers.removeHeader(b"server")  # Twisted's version is nobody's business
        lines = [
            b"%b: %b\r\n" % (name, value)
            for name, values in headers.getAllRawHeaders()
            for value in values
        ]
        lines += [b"%b: %b\r\n" % header for header in self._extra]
        if self._close:
            lines.append(b"Connection: close\r\n")
        self.write(b"HTTP/1.1 %b %b\r\n%b\r\n" % (code, reason, b"".join(lines)))

    def write(self, data: bytes) -> None:
        self._write(data)
        if self._producer is not None and self._is_push:
            self._pause_until_drained()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        self._close = True

    # A resource with a producer sends no faster than the client takes it

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._producer, self._is_push = producer, streaming
        if streaming:
            self._pause_until_drained()
        else:
            self._pull_later(None)

    def unregisterProducer(self) -> None:
        self._producer = None

    def _pause_until_drained(self) -> None:
        room = self._drained()
        if not (self._is_paused or room.called):
            self._is_paused = True
            self._producer.pauseProducing()
            room.addCallback(self._resume)

    def _resume(self, _: None) -> None:
        self._is_paused = False
        if self._producer is not None:
            self._producer.resumeProducing()

    def _pull_later(self, _: None) -> None:
        self.site.reactor.callLater(0, self._pull)  # others have a turn between two pieces

    def _pull(self) -> None:
        if self._producer is not None:
            self._producer.resumeProducing()
            self._drained().addCallback(self._pull_later)

    def _respondToBadRequestAndDisconnect(
        self,
    ) -> None:  # what Request calls when it cannot parse a form
        self.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        self._done(True)

    def requestDone(self, request: Request) -> None:
        self.request = None
        self._done(self._close)
