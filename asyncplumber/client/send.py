"""
Sends results from any synchronous program; needs nothing but Python.

What is sent and what the answers mean is in `delivery`; this does it over `http.client`.
"""

from __future__ import annotations

import os
import random
import ssl
import time as time_module
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Self

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

IDLE_CONNECTIONS = 8  # kept per process; more threads than this may send, they dial anew


class Sender:
    """
    Sends events to one plumber, over connections that stay open.

    May be shared by threads, and used on both sides of a fork.  Proxy settings of the environment
    are not read and redirects are not followed, so an event goes where `url` says or nowhere.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        retry_policy: RetryPolicy = RetryPolicy(),
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time_module.monotonic,
        sleep: Callable[[float], None] = time_module.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """
        `token` is sent as ``Authorization: Bearer``; `headers` are added to each request.

        `tls` is for a private certificate authority; None trusts what the system trusts.  Raises
        ValueError for a URL, token or header that cannot be used.
        """
        self._address = Address(url, token, headers)
        self._retry_policy = retry_policy
        self._tls = (tls or ssl.create_default_context()) if self._address.secure else None
        self._clock, self._sleep, self._chance = clock, sleep, chance
        # By process: a connection that was open at a fork belongs to the parent.  No lock: one
        # could be held at a fork.
        self._idle: dict[int, deque[HTTPConnection]] = {}

    def send(
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
        Send one event and wait until it is kept.

        `data` goes out as JSON, or as text if it is a str, or as it is if it is bytes.  Dates and
        times in it become ISO 8601, Decimals and UUIDs strings.  `id` makes two sends the same
        event; None makes a new one.  `time` is when it happened; None is when it arrives.

        Raises `Refused`, `Undelivered`, or ValueError and TypeError for what cannot be sent at all.
        """
        return self.deliver(
            self._address.post(
                account, data, id=id, type=type, content_type=content_type, time=time
            )
        )

    def deliver(self, post: Post) -> Receipt:
        """Send a request that was built before.  Raises `Refused` or `Undelivered`."""
        tries = Tries(self._retry_policy, post.id, self._clock(), self._chance)
        while True:
            try:
                answer = self._exchange(post, tries.timeout(self._clock()))
            except ssl.SSLCertVerificationError as error:
                raise tries.hopeless(_described(error)) from error
            except (OSError, HTTPException) as error:
                pause = tries.failed(_described(error), self._clock())
            else:
                outcome = tries.answered(answer, self._clock())
                if isinstance(outcome, Receipt):
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
                connection.close()  # our copy of it: says nothing to the server
        return self._idle.setdefault(pid, deque())

    def _exchange(self, post: Post, timeout: float) -> Answer:
        try:
            connection = self._connections().pop()
        except IndexError:
            return self._ask(self._dial(timeout), post, timeout)
        try:
            return self._ask(connection, post, timeout)
        except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            # Most likely the server had closed it while it was idle: that is nobody's failure, so
            # it counts for nothing.
            return self._ask(self._dial(timeout), post, timeout)

    def _dial(self, timeout: float) -> HTTPConnection:
        host, port = self._address.host, self._address.port
        if self._tls is not None:
            return HTTPSConnection(host, port, timeout=timeout, context=self._tls)
        return HTTPConnection(host, port, timeout=timeout)

    def _ask(self, connection: HTTPConnection, post: Post, timeout: float) -> Answer:
        try:
            if connection.sock is None:
                connection.connect()
            connection.sock.settimeout(timeout)
            # A server that refuses a large body may answer without reading it: see what it said.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request("POST", post.path, post.body, dict(post.headers))
            response = connection.getresponse()
            body = response.read(ANSWER_BYTES)
        except BaseException:  # a time limit, say, that breaks in: the next answer on this connection would be the wrong one
            connection.close()
            raise
        idle = self._connections()
        if response.isclosed() and not response.will_close and len(idle) < IDLE_CONNECTIONS:
            idle.append(connection)
        else:
            connection.close()
        return Answer(
            response.status, {name.lower(): value for name, value in response.getheaders()}, body
        )


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def from_environment(url: str | None = None, token: str | None = None) -> tuple[str, str | None]:
    """`url` and `token`, or where they are None ``ASYNCPLUMBER_URL`` and ``ASYNCPLUMBER_TOKEN``."""
    url = url or os.environ.get("ASYNCPLUMBER_URL", "http://127.0.0.1:8080")
    return url, token or os.environ.get("ASYNCPLUMBER_TOKEN")


@lru_cache(maxsize=4)
def _sender(url: str, token: str | None) -> Sender:
    return Sender(url, token=token)


def send(account: Account, data: Any, **options: Any) -> Receipt:
    """
    `Sender.send` to the plumber that the environment names.

    ``ASYNCPLUMBER_URL``, by default ``http://127.0.0.1:8080``, and ``ASYNCPLUMBER_TOKEN``, by
    default none.
    """
    return _sender(*from_environment()).send(account, data, **options)
