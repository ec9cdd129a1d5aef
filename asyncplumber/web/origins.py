"""
Whose pages may do what: a browser sends the requests of any page with the standing of its user (RFC 6455, 10.2).

Programs send no Origin, and are not meant.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from asyncplumber.errors import NotAllowed
from asyncplumber.posted import Headers

PREFLIGHT = 600  # seconds that a browser may remember what it was allowed


class Origins:
    """Our own pages, and those of the origins named."""

    def __init__(self, allowed: Collection[str] = ()) -> None:
        """``*`` among `allowed` lets all."""
        self._allowed = frozenset(origin.encode() for origin in allowed)

    def allows(self, headers: Headers) -> bool:
        """Whether the request is of a page of an origin that was named."""
        origin = headers.get(b"origin")
        return origin is not None and (b"*" in self._allowed or origin in self._allowed)

    def check(self, headers: Headers) -> None:
        """Raises `NotAllowed` for a page of an origin that is neither our own nor named."""
        origin = headers.get(b"origin")
        if origin is None or self.allows(headers):
            return
        try:
            place = urlsplit(origin).netloc.lower()
        except ValueError:
            place = b""
        if not place or place != headers.get(b"host", b"").lower():
            raise NotAllowed("pages of that origin may not do this; see --allow-origin")

    def cors(self, headers: Headers) -> tuple[tuple[bytes, bytes], ...]:
        """The headers that let the page read the answer (WHATWG Fetch, 3.2); none for our own, which needs none."""
        if not self.allows(headers):
            return ()
        return (
            (b"Access-Control-Allow-Origin", headers[b"origin"]),
            (b"Access-Control-Expose-Headers", b"Retry-After"),
            (b"Vary", b"Origin"),
        )

    def preflight(self, headers: Headers) -> tuple[tuple[bytes, bytes], ...]:
        """The headers that let the page ask what it is about to ask."""
        return (
            *self.cors(headers),
            (b"Access-Control-Allow-Methods", b"GET, POST"),
            (b"Access-Control-Allow-Headers", headers.get(b"access-control-request-headers", b"*")),
            (b"Access-Control-Max-Age", b"%d" % PREFLIGHT),
        )
