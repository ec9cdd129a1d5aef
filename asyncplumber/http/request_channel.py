"""
The full path: hands a request that `Connection` has read to twisted.web, and so to Klein.

``twisted.web.http.Request`` talks to an HTTP channel.  `RequestChannel` is that channel, for one
request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IProducer,
    IPushProducer,
    ISSLTransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http_headers import Headers
from zope.interface import implementer

from asyncplumber.errors import BadRequest
from asyncplumber.grant import Grant
from asyncplumber.http.request import IGrant, Request
from asyncplumber.http.responses import error_response


class Responder(Protocol):
    """What a channel needs of the connection."""

    transport: Any

    def write(self, data: bytes) -> None:
        """Send a piece of the response."""

    def drained(self) -> Deferred[None]:
        """Return a Deferred that fires when nothing is queued, or the client disconnects."""

    def response_written(self, close: bool) -> None:
        """Take note that the response is written, and whether to close the connection."""


@implementer(IConsumer)
class RequestChannel:
    """The HTTP channel of one request, as ``twisted.web.http.Request`` knows it."""

    _log = Logger()

    def __init__(
        self,
        connection: Responder,
        site: server.Site,
        *,
        close: bool,
        headers: Sequence[tuple[bytes, bytes]] = (),
        note: Callable[[int, int], None] | None = None,
    ) -> None:
        """
        Args:
            connection: Where the response goes.
            site: Where the request goes.
            close: Whether the connection is closed after the response.
            headers: Added to those of the response.
            note: Called with status and number of bytes when the response is written.
        """
        self.transport = connection.transport
        self.site = self.factory = site
        self.request: server.Request | None = None
        self._connection = connection
        self._close = close
        self._headers = headers
        self._note = note
        self._producer: Any = None
        self._is_push = False  # of the producer
        self._is_paused = False

    def handle(self, request: Request, grant: Grant) -> None:
        """Let twisted.web answer this request, which may do what ``grant`` allows."""
        handled = self.request = self.site.requestFactory(self)
        handled.setComponent(IGrant, grant)
        for name, value in request.raw_headers:
            handled.requestHeaders.addRawHeader(name, value)
        handled.parseCookies()
        handled.gotLength(len(request.body))
        if request.body:
            handled.handleContentChunk(request.body)
        handled.requestReceived(request.method, request.target, b"HTTP/1.1")

    def connection_lost(self, reason: Failure) -> None:
        """Stop: the client does not wait for the response any more."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        request, self.request = self.request, None
        if request is not None:
            request.connectionLost(reason)

    # What Request calls

    def getPeer(self) -> IAddress:
        return self.transport.getPeer()  # type: ignore[no-any-return]

    def getHost(self) -> IAddress:
        return self.transport.getHost()  # type: ignore[no-any-return]

    def isSecure(self) -> bool:
        return bool(ISSLTransport.providedBy(self.transport))

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        headers.removeHeader(b"server")  # it would tell the version of Twisted
        lines = [
            b"%b: %b\r\n" % (name, value)
            for name, values in headers.getAllRawHeaders()
            for value in values
        ]
        lines += [b"%b: %b\r\n" % header for header in self._headers]
        if self._close:
            lines.append(b"Connection: close\r\n")
        self.write(b"HTTP/1.1 %b %b\r\n%b\r\n" % (code, reason, b"".join(lines)))

    def write(self, data: bytes) -> None:
        self._connection.write(data)
        if self._producer is not None and self._is_push:
            self._pause_until_drained()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def requestDone(self, request: server.Request) -> None:
        self.request = None
        if self._note is not None:
            self._note(request.code, request.sentLength)
        self._connection.response_written(self._close)

    def loseConnection(self) -> None:
        """Close the connection after this response."""
        self._close = True

    def abortConnection(self) -> None:
        """Close the connection at once."""
        self.transport.abortConnection()

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Refuse a form that `Request` cannot parse."""
        response = error_response(BadRequest("this is not the form that it says it is"))
        self.write(response.head(close=True) + response.body)
        self._connection.response_written(True)

    # A producer sends no faster than the client reads

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        if self._producer is not None:
            raise RuntimeError("a response has one producer at a time")
        self._producer, self._is_push, self._is_paused = producer, streaming, False
        if streaming:
            self._pause_until_drained()
        else:
            self._pull_later(None, producer)

    def unregisterProducer(self) -> None:
        self._producer = None

    def _pause_until_drained(self) -> None:
        drained = self._connection.drained()
        if not (self._is_paused or drained.called):
            self._is_paused = True
            self._producer.pauseProducing()
            drained.addCallback(self._resume, self._producer)

    def _resume(self, _: None, producer: IPushProducer) -> None:
        if self._producer is producer:
            self._is_paused = False
            self._guarded(producer.resumeProducing)

    def _pull_later(self, _: None, producer: IProducer) -> None:
        # Other connections have a turn between two pieces.
        self.site.reactor.callLater(0, self._pull, producer)

    def _pull(self, producer: Any) -> None:
        if self._producer is producer:
            self._guarded(producer.resumeProducing)
            if self._producer is producer:
                self._connection.drained().addCallback(self._pull_later, producer)

    def _guarded(self, produce: Callable[[], None]) -> None:
        """Let the producer produce.  If it raises, the rest of its response will never come."""
        try:
            produce()
        except Exception:
            self._log.failure("a producer failed; its connection is closed")
            self.abortConnection()
