"""
Sends results from a program on Twisted, over treq.

The requests, the meaning of the answers and the pauses are those of `asyncplumber.client.send`;
here is only how to wait.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, cast

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import (
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from asyncplumber.client.retry import (
    ANSWER_BYTES,
    DEFAULT_TYPE,
    Account,
    Address,
    Answer,
    Post,
    Receipt,
    RetryPolicy,
    Time,
    Tries,
)

_FAILURES = (OSError, ConnectError, ConnectionClosed, RequestTransmissionFailed, ResponseFailed)


class _TimedOut(Exception):
    """No answer in the time of one attempt."""


class TreqSender:
    """
    Sends events to one plumber.  Connections stay open if the agent of the client has a persistent
    pool.
    """

    def __init__(
        self,
        url: str,
        client: HTTPClient,
        clock: IReactorTime,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        retry_policy: RetryPolicy = RetryPolicy(),
        chance: Callable[[], float] = random.random,
    ) -> None:
        """
        For a start, `client` is ``HTTPClient(Agent(reactor, pool=HTTPConnectionPool(reactor)))``
        and `clock` the reactor.

        `token` is sent as ``Authorization: Bearer``; `headers` are added to each request.  Raises
        ValueError for a URL, token or header that cannot be used.
        """
        self._address = Address(url, token, headers)
        self._client = client
        self._clock = clock
        self._retry_policy = retry_policy
        self._chance = chance

    async def send(
        self,
        account: Account,
        data: Any,
        *,
        id: Account | None = None,
        type: str = DEFAULT_TYPE,
        content_type: str | None = None,
        time: Time | None = None,
    ) -> Receipt:
        """
        Send one event and wait until it is kept; for the arguments and the failures see
        `Sender.send`.

        A Deferred made of this with ``Deferred.fromCoroutine`` can be cancelled at any moment:
        nothing is sent after that, and what was on its way may have arrived.
        """
        post = self._address.post(
            account, data, id=id, type=type, content_type=content_type, time=time
        )
        tries = Tries(self._retry_policy, post.id, self._clock.seconds(), self._chance)
        while True:
            try:
                answer = await self._within(tries.timeout(self._clock.seconds()), post)
            except (_TimedOut, *_FAILURES) as error:
                pause = tries.failed(_described(error), self._clock.seconds())
            else:
                outcome = tries.answered(answer, self._clock.seconds())
                if isinstance(outcome, Receipt):
                    return outcome
                pause = outcome
            await deferLater(self._clock, pause)

    async def _within(self, seconds: float, post: Post) -> Answer:
        """
        One attempt.  Raises `_TimedOut`, `CancelledError` if it was somebody else who cancelled, or
        what befell it.
        """
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            work.cancel()

        work = Deferred.fromCoroutine(self._exchange(post))
        timer = self._clock.callLater(seconds, expire)
        try:
            return await work
        except (CancelledError, *_FAILURES) as error:
            if expired:
                raise _TimedOut(f"no answer in {seconds:g} seconds") from error
            # A request that is cancelled may fail with what the cancelling did to its connection.
            if _was_cancelled(error):
                raise CancelledError from error
            raise
        finally:
            if timer.active():
                timer.cancel()

    async def _exchange(self, post: Post) -> Answer:
        try:
            return await self._ask(post)
        except ResponseNeverReceived as error:
            if _was_cancelled(error):
                raise
            # Most likely the server had closed the connection while it was idle in the pool: that
            # is nobody's failure.
            return await self._ask(post)

    async def _ask(self, post: Post) -> Answer:
        response: IResponse = await self._client.post(
            self._address.root + post.path,
            data=post.body,
            headers=Headers({name: [value] for name, value in post.headers.items()}),
            allow_redirects=False,
            unbuffered=True,
            reactor=cast(
                Any, self._clock
            ),  # nothing but its clock would be used, and only for a time-out of treq's own
        )
        body = await _body(response)
        headers = {
            name.decode("latin-1").lower(): values[-1].decode("latin-1")
            for name, values in response.headers.getAllRawHeaders()
        }
        return Answer(response.code, headers, body)


class _Body(Protocol):
    """Collects the beginning of a body, which is all that is looked at."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self.complete: Deferred[bytes] = Deferred(self._drop)

    def _drop(self, complete: Deferred[bytes]) -> None:
        # treq.collect would leave the connection open, for a server that never ends its answer.
        complete.errback(CancelledError())
        if self.transport is not None:
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        self._bytes += data[: ANSWER_BYTES - len(self._bytes)]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.complete.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.complete.callback(bytes(self._bytes))
        else:
            self.complete.errback(reason)


def _body(response: IResponse) -> Deferred[bytes]:
    """At most `ANSWER_BYTES` of the body.  Cancelled, it closes the connection."""
    collector = _Body()
    response.deliverBody(collector)
    return collector.complete


def _was_cancelled(error: BaseException) -> bool:
    reasons = getattr(error, "reasons", ())
    return isinstance(error, CancelledError) or any(
        reason.check(CancelledError) for reason in reasons
    )


def _described(error: BaseException) -> str:
    reasons = getattr(error, "reasons", ())
    if reasons:
        return f"{type(error).__name__}: {reasons[0].type.__name__}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
