"""
Sending from a program on Twisted, over treq.

The requests, the meaning of the responses and the pauses are those of ``asyncplumber.client.send``;
this module only waits in another way.
"""

from __future__ import annotations

import random as random_module
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

from asyncplumber.client.request import Endpoint, Request
from asyncplumber.client.response import BODY_LIMIT, Response
from asyncplumber.client.retry import RetryPolicy, RetryState
from asyncplumber.sending import DEFAULT_TYPE, Key, Receipt, Time

_FAILURES = (OSError, ConnectError, ConnectionClosed, RequestTransmissionFailed, ResponseFailed)


class _TimedOut(Exception):
    """There was no response in the time of one attempt."""


class TreqSender:
    """
    Sends events to one plumber.

    Connections stay open if the agent of the client has a persistent pool.
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
        random: Callable[[], float] = random_module.random,
    ) -> None:
        """
        Open nothing yet.

        Args:
            url: Where the plumber is, such as ``http://127.0.0.1:8080``.
            client: For example ``HTTPClient(Agent(reactor, pool=HTTPConnectionPool(reactor)))``.
            clock: For example the reactor.
            token: Sent as ``Authorization: Bearer``.
            headers: Added to each request.
            retry_policy: How long to try with each event.
            random: Returns a number from 0 to 1; the pauses between attempts depend on it.

        Raises:
            ValueError: The URL, the token or a header cannot be used.
        """
        self._endpoint = Endpoint(url, token, headers)
        self._client = client
        self._clock = clock
        self._retry_policy = retry_policy
        self._random = random

    async def send(
        self,
        account: Key,
        data: Any,
        *,
        id: Key | None = None,
        type: str = DEFAULT_TYPE,
        content_type: str | None = None,
        time: Time | None = None,
    ) -> Receipt:
        """
        Send one event, and wait until it is kept.

        Arguments and errors are those of ``asyncplumber.client.Sender.send``.

        ``Deferred.fromCoroutine`` makes a Deferred of it, which can be cancelled at any moment.
        Nothing is sent after that; a request that is under way may still arrive.
        """
        request = self._endpoint.request(
            account, data, id=id, type=type, content_type=content_type, time=time
        )
        now = self._clock.seconds
        state = RetryState(self._retry_policy, request.id, now(), self._random)
        while True:
            try:
                response = await self._attempt(request, state.timeout(now()))
            except (_TimedOut, *_FAILURES) as error:
                pause = state.failed(_description(error), now())
            else:
                outcome = state.responded(response, now())
                if isinstance(outcome, Receipt):
                    return outcome
                pause = outcome
            await deferLater(self._clock, pause)

    async def _attempt(self, request: Request, timeout: float) -> Response:
        """
        Send the request once, and wait ``timeout`` seconds for the response.

        Raises:
            _TimedOut: It did not come in time.
            CancelledError: The caller cancelled.
            Exception: One of ``_FAILURES``.
        """
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            work.cancel()

        work = Deferred.fromCoroutine(self._exchange(request))
        timer = self._clock.callLater(timeout, expire)
        try:
            return await work
        except (CancelledError, *_FAILURES) as error:
            if expired:
                raise _TimedOut(f"no response in {timeout:g} seconds") from error
            # A cancelled request may fail with what the cancelling did to its connection.
            if _was_cancelled(error):
                raise CancelledError from error
            raise
        finally:
            if timer.active():
                timer.cancel()

    async def _exchange(self, request: Request) -> Response:
        try:
            return await self._post(request)
        except ResponseNeverReceived as error:
            if _was_cancelled(error):
                raise
            # The server has probably closed the connection while it was idle in the pool.  That is
            # no failed attempt.
            return await self._post(request)

    async def _post(self, request: Request) -> Response:
        response: IResponse = await self._client.post(
            self._endpoint.root + request.path,
            data=request.body,
            headers=Headers({name: [value] for name, value in request.headers.items()}),
            allow_redirects=False,
            unbuffered=True,
            # treq would use no more than its clock, and only for a timeout of its own.
            reactor=cast(Any, self._clock),
        )
        body = await _read_body(response)
        headers = {
            name.decode("latin-1").lower(): values[-1].decode("latin-1")
            for name, values in response.headers.getAllRawHeaders()
        }
        return Response(response.code, headers, body)


class _BodyCollector(Protocol):
    """
    Collects the beginning of a body, and reads the rest away so that the connection can be reused.

    The server has another collector for what its instances respond to each other
    (``asyncplumber.relays``).  It belongs to another program, and reads bodies whole.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self.done: Deferred[bytes] = Deferred(self._cancel)

    def _cancel(self, done: Deferred[bytes]) -> None:
        # ``treq.collect`` would leave the connection open to a server that never ends its response.
        done.errback(CancelledError())
        if self.transport is not None:
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        self._data += data[: BODY_LIMIT - len(self._data)]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(bytes(self._data))
        else:
            self.done.errback(reason)


def _read_body(response: IResponse) -> Deferred[bytes]:
    """
    Read at most ``BODY_LIMIT`` bytes of a body.

    Returns:
        A Deferred of the bytes.  Cancelling it closes the connection.
    """
    collector = _BodyCollector()
    response.deliverBody(collector)
    return collector.done


def _was_cancelled(error: BaseException) -> bool:
    reasons = getattr(error, "reasons", ())
    return isinstance(error, CancelledError) or any(
        reason.check(CancelledError) for reason in reasons
    )


def _description(error: BaseException) -> str:
    reasons = getattr(error, "reasons", ())
    if reasons:
        return f"{type(error).__name__}: {reasons[0].type.__name__}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
