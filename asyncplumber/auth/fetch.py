"""
Requests to servers that the operator names: to an issuer for its keys, to the application.

The URLs come from the operator's configuration, never from a token or another request.  What
answers is not trusted to be small, quick or honest: no redirect is followed, the time and the bytes
of a response are limited, nothing is unpacked, and no cookie is kept.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from ipaddress import ip_address
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse
from zope.interface import implementer

from asyncplumber._twisted_compat import RequestNotSent, quieten
from asyncplumber.http_bodies import BodyTooLong, BytesProducer, ResponseBody, drop

BODY_LIMIT = 64 * 1024  # bytes
MAX_PER_HOST = 64  # connections that are kept open to one host
IDLE_TIMEOUT = 30  # seconds that a connection without a request is kept


class FetchFailed(Exception):
    """
    There is no whole response.

    Attributes:
        reason: One of a few words, for metrics: ``timeout``, ``too-large``, ``encoded`` or
            ``connection``.
        head: The response without its body, where only that cannot be used; None if there is no
            response at all.
    """

    def __init__(self, reason: str, message: str, head: Reply | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.head = head


class Reply(NamedTuple):
    """A whole response, with the names of its headers in lower case."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes

    def max_age(self) -> int | None:
        """
        Return for how many seconds the response may be kept (RFC 9111, 5.2.2).

        0 if it may not be kept; None if it does not say.
        """
        found: int | None = None
        for directive in self.headers.get(b"cache-control", b"").lower().split(b","):
            name, _, value = directive.strip().partition(b"=")
            if name in (b"no-store", b"no-cache"):
                return 0
            value = value.strip(b'"')
            if name == b"max-age" and value.isdigit() and len(value) < 10:
                found = int(value)
        return found


class Fetch(Protocol):
    """A GET: `Fetcher.get`, or a fake of a test."""

    def __call__(
        self, url: str, headers: Mapping[bytes, bytes], *, timeout: float, limit: int = BODY_LIMIT
    ) -> Deferred[Reply]: ...


class Post(Protocol):
    """A POST: `Fetcher.post`, or a fake of a test."""

    def __call__(
        self,
        url: str,
        headers: Mapping[bytes, bytes],
        body: bytes,
        *,
        timeout: float,
        limit: int = BODY_LIMIT,
    ) -> Deferred[Reply]: ...


class UrlChecked(NamedTuple):
    """A URL of the configuration, and whether what is sent there cannot be read on the way."""

    url: str
    is_private: bool


def check_url(url: object) -> UrlChecked:
    """
    Check the URL of a server that we ask.

    It is private with ``https``, and with ``http`` to a loopback address or ``localhost``.

    Raises:
        ValueError: It is no such URL, or has a user, a password or a fragment.
    """
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        port = parts.port if parts is not None else None
    except ValueError:
        parts = port = None
    if (
        parts is None
        or not isinstance(url, str)
        or parts.scheme not in ("http", "https")
        or not parts.hostname
        or port == 0
        or not url.isascii()
        or not url.isprintable()
        or " " in url
    ):
        raise ValueError("this is an http:// or https:// URL, in ASCII")
    if "@" in parts.netloc or parts.fragment:
        raise ValueError("the URL has no user, no password and no fragment")
    return UrlChecked(url, parts.scheme == "https" or _is_loopback(parts.hostname))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"


@implementer(IAgent)
class _PlainAgent:
    """
    Asks for responses that are not packed, and refuses those that are.

    treq unpacks gzip without a limit: some kilobytes would become gigabytes.
    """

    def __init__(self, agent: IAgent) -> None:
        self._agent = agent

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: Any = None
    ) -> Deferred[IResponse]:
        headers = Headers() if headers is None else headers.copy()
        headers.setRawHeaders(b"accept-encoding", [b"identity"])
        return self._agent.request(method, uri, headers, bodyProducer).addCallback(self._check)

    @staticmethod
    def _check(response: IResponse) -> IResponse:
        coding = response.headers.getRawHeaders(b"content-encoding", [b"identity"])
        if [name.strip().lower() for name in coding] != [b"identity"]:
            drop(response)
            message = "the response is compressed, and nobody asked for that"
            raise FetchFailed("encoded", message, _reply(response, b""))
        return response


class Fetcher:
    """Fetches by treq."""

    def __init__(
        self, agent: IAgent, clock: IReactorTime, pool: HTTPConnectionPool | None = None
    ) -> None:
        """
        Args:
            agent: Sends the requests, and follows no redirects.
            clock: Measures their time.
            pool: The connections that `close` closes.
        """
        self._agent = _PlainAgent(agent)
        self._clock = clock
        self._pool = pool

    @classmethod
    def over_treq(cls, reactor: Any) -> Fetcher:
        """
        Make a fetcher with a pool of connections of its own.

        Certificates are verified with those that the system trusts (``SSL_CERT_FILE`` names
        others), and compared with the host of the URL.
        """
        pool = HTTPConnectionPool(reactor, persistent=True)
        pool.maxPersistentPerHost = MAX_PER_HOST
        pool.cachedConnectionTimeout = IDLE_TIMEOUT
        quieten(pool)
        return cls(Agent(reactor, pool=pool), reactor, pool)

    def get(
        self, url: str, headers: Mapping[bytes, bytes], *, timeout: float, limit: int = BODY_LIMIT
    ) -> Deferred[Reply]:
        """
        Send a GET.

        Args:
            url: From the configuration, see `check_url`.
            headers: All that are sent beside ``Host`` and ``Accept-Encoding``.
            timeout: Seconds until the whole response must be there.
            limit: The most bytes of its body.

        Returns:
            A Deferred of the response, whatever its status is.  Fails with `FetchFailed`, and with
            nothing else unless it is cancelled.
        """
        return self._bounded(self._exchange("GET", url, headers, None, limit), timeout)

    def post(
        self,
        url: str,
        headers: Mapping[bytes, bytes],
        body: bytes,
        *,
        timeout: float,
        limit: int = BODY_LIMIT,
    ) -> Deferred[Reply]:
        """
        Send a POST that may arrive twice.

        It is sent again, at once, if the connection ends before there is a response: most likely
        the other side has closed it while it was idle.

        Args:
            url: From the configuration, see `check_url`.
            headers: All that are sent beside ``Host``, ``Content-Length`` and ``Accept-Encoding``.
            body: The body.
            timeout: Seconds until the whole response must be there.
            limit: The most bytes of the response's body.

        Returns:
            As `get`.
        """
        return self._bounded(self._post(url, headers, body, limit), timeout)

    def _bounded(self, exchange: Coroutine[Any, Any, Reply], timeout: float) -> Deferred[Reply]:
        fetched = Deferred.fromCoroutine(exchange)
        fetched.addTimeout(timeout, self._clock, self._timed_out)
        return fetched.addErrback(self._failed)

    async def _post(
        self, url: str, headers: Mapping[bytes, bytes], body: bytes, limit: int
    ) -> Reply:
        try:
            return await self._exchange("POST", url, headers, body, limit)
        except (ResponseNeverReceived, RequestNotSent) as error:
            reasons = error.reasons if isinstance(error, ResponseNeverReceived) else ()
            if any(reason.check(CancelledError, FetchFailed) for reason in reasons):
                raise
            return await self._exchange("POST", url, headers, body, limit)

    async def _exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[bytes, bytes],
        data: bytes | None,
        limit: int,
    ) -> Reply:
        # A client has a jar: with one client for all requests, the cookies that the application
        # sets for one user would be sent for the next.
        client = HTTPClient(self._agent, data_to_body_producer=BytesProducer)
        response: IResponse = await client.request(
            method,
            url,
            headers=Headers({name: [value] for name, value in headers.items()}),
            data=data,
            allow_redirects=False,
            unbuffered=True,
        )
        body = ResponseBody(limit)
        if isinstance(response.length, int) and response.length > limit:
            drop(response)
            raise _too_large(response)
        response.deliverBody(body)
        try:
            return _reply(response, await body.complete)
        except BodyTooLong:
            raise _too_large(response) from None

    @staticmethod
    def _timed_out(result: Any, timeout: float) -> Any:
        if isinstance(result, Failure):
            raise FetchFailed("timeout", f"no whole response within {timeout:g} s")
        return result

    @staticmethod
    def _failed(failure: Failure) -> Failure:
        failure.trap(Exception)
        if failure.check(FetchFailed, CancelledError):
            return failure
        error = failure.value
        # A list of reasons, as Twisted has for what fails below HTTP, says more than its own text.
        reasons = getattr(error, "reasons", None) or [failure]
        for reason in reasons:
            if reason.check(FetchFailed, CancelledError):
                return Failure(reason.value)
        names = ", ".join(type(reason.value).__name__ for reason in reasons)
        return Failure(FetchFailed("connection", f"{names}: {reasons[0].getErrorMessage()}"))

    def close(self) -> Deferred[None]:
        """Close the idle connections."""
        if self._pool is None:
            return succeed(None)
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed


def _reply(response: IResponse, body: bytes) -> Reply:
    found = {
        name.lower(): b", ".join(values) for name, values in response.headers.getAllRawHeaders()
    }
    return Reply(response.code, found, body)


def _too_large(response: IResponse) -> FetchFailed:
    return FetchFailed("too-large", "the response is too long", _reply(response, b""))
