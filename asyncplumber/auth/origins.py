"""
The origins of web pages that may subscribe and post (RFC 6455, section 10.2).

A browser attaches the user's cookies to the requests of any page.  Requests without Origin come
from programs, or from elements such as ``<img>``, which `asyncplumber.auth.fetch_metadata`
recognizes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from time import monotonic
from typing import NoReturn
from urllib.parse import urlsplit

from twisted.logger import Logger

from asyncplumber.errors import NotAllowed
from asyncplumber.rate_limited_log import RateLimitedLog
from asyncplumber.wire.fields import Headers

PREFLIGHT_MAX_AGE = 600  # seconds that a browser may cache the answer to a preflight request
MAX_LOGGED_LENGTH = 200  # bytes of an origin that go to the log
# Responses differ by what a page may do.  A cache must not give the one to the other.
VARY = (b"Vary", b"Origin, Sec-Fetch-Site")
# Headers that a page may read, beside the few that Fetch always shows.
_EXPOSED = (
    b"Access-Control-Expose-Headers",
    b"Age, Location, Preference-Applied, Retry-After, Task-Joined, Task-Run, Task-State, "
    b"WWW-Authenticate",
)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAME = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"  # one label of a host
_HOST = re.compile(rf"(?:\*\.)?(?:{_NAME}\.)*{_NAME}|\[[0-9a-f:.]+\]")


class ForeignOrigin(NotAllowed):
    """A page of an origin that may not do this."""

    reason = "foreign origin"


def parse_origin(text: str) -> str:
    """
    Return an origin as browsers send it, or a pattern such as ``https://*.example.com``.

    The asterisk stands for one or more labels on the left.  Raises ValueError, with a sentence for
    the user, for what no browser sends, and for a pattern that allows domains of other people.
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
                f"{text!r} would allow pages of anybody; write an asterisk before your own domain"
            )
    return (
        f"{parts.scheme}://{host}"
        if port in (None, _DEFAULT_PORTS[parts.scheme])
        else f"{parts.scheme}://{host}:{port}"
    )


def _pattern(origin: str) -> re.Pattern[bytes]:
    """Return a pattern that matches the origins below a wildcard."""
    scheme, _, rest = origin.partition("*")
    return re.compile(rf"{re.escape(scheme)}(?:{_NAME}\.)*{_NAME}{re.escape(rest)}".encode("ascii"))


def _is_own(origin: bytes, headers: Headers) -> bool:
    """Whether the page came from the host that it asks, by whatever scheme."""
    try:
        netloc = urlsplit(origin).netloc.lower()
    except ValueError:
        return False
    return bool(netloc) and netloc == headers.get(b"host", b"").lower()


class Origins:
    """Allows our own pages, and those of some other origins."""

    _log = Logger()

    def __init__(
        self, allowed: Collection[str] = (), seconds: Callable[[], float] = monotonic
    ) -> None:
        """
        Args:
            allowed: Origins as `parse_origin` takes them, or ``*`` for all.
            seconds: Returns the time, which limits the rate of log lines.

        Raises ValueError.
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
        Whether the request has an Origin that is allowed explicitly.

        ``*`` allows each that has a scheme and a host.  ``null`` is no origin: every page that
        hides its own, such as one in a sandbox, sends it.
        """
        origin = headers.get(b"origin")
        return origin is not None and ((self._all and b"://" in origin) or self._names(origin))

    def check(self, headers: Headers) -> None:
        """Raise `ForeignOrigin`, and log it, if the page's origin is neither ours nor allowed."""
        origin = headers.get(b"origin")
        if origin is None or self.allows(headers) or _is_own(origin, headers):
            return
        self.refuse(origin)

    def refuse(self, page: bytes) -> NoReturn:
        """Raise `ForeignOrigin`, and log what is known of the page."""
        self._refused.warn(
            "a page of {page!r} was refused; --allow-origin would allow it",
            page=page[:MAX_LOGGED_LENGTH].decode("latin-1"),
        )
        raise ForeignOrigin("pages of that origin may not do this; see --allow-origin")

    def cors(self, headers: Headers) -> tuple[tuple[bytes, bytes], ...]:
        """
        Return the headers that let the page read the response (WHATWG Fetch, section 3.2).

        There are none for our own pages, which need none.
        """
        if not self.allows(headers):
            return ()
        origin = headers[b"origin"]
        found = ((b"Access-Control-Allow-Origin", origin), _EXPOSED, VARY)
        # Credentials only for origins that are named: with ``*`` any page could act as its user.
        return (
            (*found, (b"Access-Control-Allow-Credentials", b"true"))
            if self._names(origin)
            else found
        )

    def preflight(self, headers: Headers) -> tuple[tuple[bytes, bytes], ...]:
        """Return the headers that answer a preflight request of an allowed page."""
        return (
            *self.cors(headers),
            (b"Access-Control-Allow-Methods", b"GET, POST, PUT, DELETE"),
            (b"Access-Control-Allow-Headers", headers.get(b"access-control-request-headers", b"*")),
            (b"Access-Control-Max-Age", b"%d" % PREFLIGHT_MAX_AGE),
        )
