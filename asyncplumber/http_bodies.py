"""The bodies of requests that we send: of the request, and of the response."""

from __future__ import annotations

from math import inf

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface import implementer

from asyncplumber._twisted_compat import abort_response


class BodyTooLong(Exception):
    """A response is longer than it may be."""


@implementer(IBodyProducer)
class BytesProducer:
    """
    Writes a body in one go, for ``HTTPClient(data_to_body_producer=BytesProducer)``.

    treq's default producer writes in pieces, each in a turn of its own of the global reactor.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Do nothing: the body is written already."""

    resumeProducing = stopProducing = pauseProducing


class ResponseBody(Protocol):
    """
    Collects the body of a response.

    ``twisted.web.client.readBody`` cannot be used: when it is cancelled, the connection stays open
    (the transport that a response has knows no ``abortConnection``).
    """

    def __init__(self, limit: float = inf) -> None:
        """``limit`` is the most bytes; a longer body fails, and closes the connection."""
        #: Fires with the body.  Cancelled, it closes the connection.
        self.complete: Deferred[bytes] = Deferred(self._hang_up)
        self._parts: list[bytes] = []
        self._room = limit

    def _hang_up(self, _: Deferred[bytes]) -> None:
        self._parts = []
        if self.transport is not None:
            abort_response(self.transport)

    def dataReceived(self, data: bytes) -> None:
        if self.complete.called:
            return
        self._room -= len(data)
        if self._room >= 0:
            self._parts.append(data)
        else:
            self._hang_up(self.complete)
            self.complete.errback(BodyTooLong())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.complete.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.complete.callback(b"".join(self._parts))
        else:
            self.complete.errback(reason)


def drop(response: IResponse) -> None:
    """Close the connection of a response whose body is not wanted."""
    body = ResponseBody(0)
    body.complete.addErrback(lambda _: None)
    response.deliverBody(body)
    body.complete.cancel()
