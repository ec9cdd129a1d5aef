"""The bodies of a POST from instance to instance: that of the request, and that of the response."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer


@implementer(IBodyProducer)
class Body:
    """
    A batch, written in one go.  treq's own way with bytes takes a turn of the global reactor for
    each piece.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """It is written already."""

    resumeProducing = stopProducing = pauseProducing


class Answer(Protocol):
    """
    The body of an answer; whoever stops waiting for `whole` hangs up, as there is no other use for
    the connection.
    """

    def __init__(self) -> None:
        self.whole: Deferred[bytes] = Deferred(self._hang_up)
        self._parts: list[bytes] = []

    def _hang_up(self, _: Deferred[bytes]) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        self._parts.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.whole.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.whole.callback(b"".join(self._parts))
        else:
            self.whole.errback(reason)
