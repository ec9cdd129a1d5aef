"""
Sending from any synchronous program, over ``http.client``.

Needs only the standard library.
"""

from __future__ import annotations

import os
import random as random_module
import ssl
import time as time_module
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Self

from asyncplumber.client.request import Endpoint, Request
from asyncplumber.client.response import BODY_LIMIT, Response, TryLater, interpret
from asyncplumber.client.retry import Answer, RetryPolicy, RetryState
from asyncplumber.sending import DEFAULT_TYPE, Key, Receipt, Time

IDLE_CONNECTIONS = 8  # kept open per process; more threads than this open a new one each time


class Sender:
    """
    Sends events to one plumber, over connections that stay open.

    Threads may share it, and it works on both sides of a fork.  An event goes to ``url`` or to no
    other place: proxy settings of the environment are not read, and redirects not followed.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        retry_policy: RetryPolicy = RetryPolicy(),
        tls: ssl.SSLContext | None = None,
        body_limit: int = BODY_LIMIT,
        clock: Callable[[], float] = time_module.monotonic,
        sleep: Callable[[float], None] = time_module.sleep,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        """
        Open nothing yet.

        Args:
            url: Where the plumber is, such as ``http://127.0.0.1:8080``.
            token: Sent as ``Authorization: Bearer``.
            headers: Added to each request.
            retry_policy: How long to try with each event.
            tls: For a private certificate authority; None trusts what the system trusts.
            body_limit: The most bytes of a response that are read.
            clock: Returns seconds, and is monotonic.
            sleep: Waits for so many seconds.
            random: Returns a number from 0 to 1; the pauses between attempts depend on it.

        Raises:
            ValueError: The URL, the token or a header cannot be used.
        """
        self._endpoint = Endpoint(url, token, headers)
        self._retry_policy = retry_policy
        self._tls = (tls or ssl.create_default_context()) if self._endpoint.secure else None
        self._clock, self._sleep, self._random = clock, sleep, random
        self._body_limit = body_limit
        # By process: a connection that was open at a fork belongs to the parent.  There is no lock,
        # because a fork could copy it while it is held.
        self._idle: dict[int, deque[HTTPConnection]] = {}

    def send(
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

        Args:
            account: Whose subscribers get it.
            data: Sent as it is if it is bytes, as text if it is a str, and else as JSON.  In JSON,
                dates and times become ISO 8601, and Decimals and UUIDs strings.
            id: Two sends with the same id are one event; None makes a new id.
            type: What kind of event it is.
            content_type: What ``data`` is; None takes it from the type of ``data``.
            time: When it happened: a datetime with a time zone, or RFC 3339.  None is when it
                arrives.

        Raises:
            Refused: The plumber does not accept it, and never will.
            Undelivered: The plumber could not be reached in time.
            ValueError: A value cannot be sent.
            TypeError: An argument has the wrong type.
        """
        return self.deliver(
            self._endpoint.request(
                account, data, id=id, type=type, content_type=content_type, time=time
            )
        )

    def deliver(self, request: Request) -> Receipt:
        """
        Send a request that was built before.

        Raises:
            Refused, Undelivered: As ``send`` does.
        """
        return self.exchange(request, interpret)

    def exchange(
        self,
        request: Request,
        understand: Callable[[Response], Answer | TryLater],
        deadline: float | None = None,
    ) -> Answer:
        """
        Send a request until there is an answer.

        Args:
            request: The request.
            understand: Says what a response means.
            deadline: Seconds for all attempts; None takes those of the retry policy.

        Raises:
            Refused, Undelivered: As ``send`` does.
        """
        policy = self._retry_policy
        if deadline is not None:
            policy = policy._replace(deadline=deadline)
        state = RetryState(policy, request.id, self._clock(), self._random)
        while True:
            try:
                response = self._exchange(request, state.timeout(self._clock()))
            except ssl.SSLCertVerificationError as error:
                raise state.fatal(_description(error)) from error
            except (OSError, HTTPException) as error:
                pause = state.failed(_description(error), self._clock())
            else:
                outcome = state.understood(understand(response), self._clock())
                if not isinstance(outcome, float):
                    return outcome
                pause = outcome
            self._sleep(pause)

    def close(self) -> None:
        """Close the idle connections of this process.  The sender can still be used."""
        idle = self._connections()
        while idle:
            idle.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _connections(self) -> deque[HTTPConnection]:
        pid = os.getpid()
        for other in [other for other in self._idle if other != pid]:
            for connection in self._idle.pop(other, ()):
                connection.close()  # closes our copy of the descriptor, and not the parent's
        return self._idle.setdefault(pid, deque())

    def _exchange(self, request: Request, timeout: float) -> Response:
        try:
            connection = self._connections().pop()
        except IndexError:
            return self._exchange_over(self._new_connection(timeout), request, timeout)
        try:
            return self._exchange_over(connection, request, timeout)
        except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            # The server has probably closed it while it was idle.  That is no failed attempt.
            return self._exchange_over(self._new_connection(timeout), request, timeout)

    def _new_connection(self, timeout: float) -> HTTPConnection:
        host, port = self._endpoint.host, self._endpoint.port
        if self._tls is not None:
            return HTTPSConnection(host, port, timeout=timeout, context=self._tls)
        return HTTPConnection(host, port, timeout=timeout)

    def _exchange_over(
        self, connection: HTTPConnection, request: Request, timeout: float
    ) -> Response:
        try:
            if connection.sock is None:
                connection.connect()
            connection.sock.settimeout(timeout)
            # A server that refuses a large body may respond without reading it: read what it says.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(
                    request.method, request.path, request.body or None, dict(request.headers)
                )
            response = connection.getresponse()
            body = response.read(self._body_limit)
        except BaseException:
            # Also for a time limit that interrupts us: the next response on this connection would
            # be the response to this request.
            connection.close()
            raise
        idle = self._connections()
        if response.isclosed() and not response.will_close and len(idle) < IDLE_CONNECTIONS:
            idle.append(connection)
        else:
            connection.close()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, headers, body)


def _description(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def from_environment(url: str | None = None, token: str | None = None) -> tuple[str, str | None]:
    """
    Return the URL and the token to use.

    Where an argument is None, ``ASYNCPLUMBER_URL`` or ``ASYNCPLUMBER_TOKEN`` takes its place; the
    URL is ``http://127.0.0.1:8080`` if that is not set either.
    """
    url = url or os.environ.get("ASYNCPLUMBER_URL", "http://127.0.0.1:8080")
    return url, token or os.environ.get("ASYNCPLUMBER_TOKEN")


@lru_cache(maxsize=4)
def _sender(url: str, token: str | None) -> Sender:
    return Sender(url, token=token)


def send(
    account: Key,
    data: Any,
    *,
    id: Key | None = None,
    type: str = DEFAULT_TYPE,
    content_type: str | None = None,
    time: Time | None = None,
) -> Receipt:
    """
    Send one event to the plumber that the environment names, and wait until it is kept.

    Its URL is ``ASYNCPLUMBER_URL``, by default ``http://127.0.0.1:8080``, and the token is
    ``ASYNCPLUMBER_TOKEN``, by default none.  Arguments and errors are those of ``Sender.send``.
    """
    return _sender(*from_environment()).send(
        account, data, id=id, type=type, content_type=content_type, time=time
    )
