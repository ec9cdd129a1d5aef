"""
Whose pages may do what: a browser sends the requests of any page with the standing of its user (RFC
6455, 10.2).

Programs send no Origin, and are not meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from time import monotonic
from urllib.parse import urlsplit

from twisted.logger import Logger

from asyncplumber.errors import NotAllowed
from asyncplumber.rate_limited_log import RateLimitedLog
from asyncplumber.wire.parse import Headers

PREFLIGHT = 600  # seconds that a browser may remember what it was allowed
LOGGED = 200  # bytes of an origin that go to the log
_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAME = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"  # one label of a host
_HOST = re.compile(rf"(?:\*\.)?(?:{_NAME}\.)*{_NAME}|\[[0-9a-f:.]+\]")


def parse_origin(text: str) -> str:
    """
    Return the origin that `text` names, as browsers send it; or the pattern,
    ``https://*.example.com``.

    The asterisk stands for one or more whole labels on the left.  Raises ValueError, with a
    sentence for the user, for what no browser would ever send, and for a pattern that lets half the
    world in.
    """
    error = ValueError(
        f"{text!r} is not an origin such as https://www.example.com or https://*.example.com, nor *"
    )
    try:
        parts = urlsplit(text.lower())
        port = parts.port
    except ValueError:
        raise error from None
    host = parts.netloc.removesuffix(f":{port}")
    if (
        parts.scheme not in _DEFAULT_PORTS
        or not _HOST.fullmatch(host)
        or text.lower() != f"{parts.scheme}://{parts.netloc}"
    ):
        raise error
    if host.startswith("*."):
        last = host.rpartition(".")[2]
        if last.isdigit() or (host.count(".") == 1 and last != "localhost"):
            raise ValueError(
                f"{text!r} would let in pages of anybody; an asterisk stands before a domain of your own"
            )
    return (
        f"{parts.scheme}://{host}"
        if port in (None, _DEFAULT_PORTS[parts.scheme])
        else f"{parts.scheme}://{host}:{port}"
    )


def _pattern(origin: str) -> re.Pattern[bytes]:
    """What the origins below a wildcard look like."""
    scheme, _, rest = origin.partition("*")
    return re.compile(rf"{re.escape(scheme)}(?:{_NAME}\.)*{_NAME}{re.escape(rest)}".encode("ascii"))


class Origins:
    """Our own pages, and those of the origins named."""

    _log = Logger()

    def __init__(
        self, allowed: Collection[str] = (), seconds: Callable[[], float] = monotonic
    ) -> None:
        """
        ``*`` among `allowed` lets all; the others are as `parse_origin` takes them.

        `seconds` tells the time, for the log.  Raises ValueError.
        """
        origins = [parse_origin(origin) for origin in allowed if origin != "*"]
        self._all = "*" in allowed
        self._named = frozenset(origin.encode("ascii") for origin in origins if "*" not in origin)
        self._patterns = [_pattern(origin) for origin in origins if "*" in origin]
        self._refused = RateLimitedLog(self._log, seconds)

    def _names(self, origin: bytes) -> bool:
        return origin in self._named or any(pattern.fullmatch(origin) for pattern in self._patterns)

    def allows(self, headers: Headers) -> bool:
        """
        Whether the request is of a page of an origin that was named, or of any page if all are let
        in.
        """
        origin = headers.get(b"origin")
        return origin is not None and (self._all or self._names(origin))

    def check(self, headers: Headers) -> None:
        """
        Raises `NotAllowed` for a page of an origin that is neither our own nor named; with a line
        in the log.
        """
        origin = headers.get(b"origin")
        if origin is None or self.allows(headers):
            return
        try:
            place = urlsplit(origin).netloc.lower()
        except ValueError:
            place = b""
        if not place or place != headers.get(b"host", b"").lower():
            page = origin[:LOGGED].decode("latin-1")
            self._refused.warn(
                "a page of {page!r} was refused; --allow-origin would let it in", page=page
            )
            raise NotAllowed("pages of that origin may not do this; see --allow-origin")

    def cors(self, headers: Headers) -> tuple[tuple[bytes, bytes], ...]:
        """
        The headers that let the page read the answer (WHATWG Fetch, 3.2); none for our own, which
        needs none.
        """
        if not self.allows(headers):
            return ()
        origin = headers[b"origin"]
        found = (
            (b"Access-Control-Allow-Origin", origin),
            (b"Access-Control-Expose-Headers", b"Retry-After"),
            (b"Vary", b"Origin"),
        )
        # Cookies only to whom the operator named: with a star every page could act as its reader.
        return (
            (*found, (b"Access-Control-Allow-Credentials", b"true"))
            if self._names(origin)
            else found
        )

    def preflight(self, headers: Headers) -> tuple[tuple[bytes, bytes], ...]:
        """The headers that let the page ask what it is about to ask."""
        return (
            *self.cors(headers),
            (b"Access-Control-Allow-Methods", b"GET, POST"),
            (b"Access-Control-Allow-Headers", headers.get(b"access-control-request-headers", b"*")),
            (b"Access-Control-Max-Age", b"%d" % PREFLIGHT),
        )
