"""An HTTP request, which grows while it is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol
from urllib.parse import parse_qs

from twisted.internet.defer import Deferred
from zope.interface import Interface

from asyncplumber.errors import BadRequest, NotImplementedHere, PlumberError
from asyncplumber.http.bodies import LARGE
from asyncplumber.http.client_address import NOWHERE
from asyncplumber.http.syntax import AMBIGUOUS_BYTES, AMBIGUOUS_HEADER, AMBIGUOUS_PATH, METHODS
from asyncplumber.interfaces import Decision

MAX_HEADER_LINES = 100
SMALL_BODY = 16 * 1024  # bytes


class IGrant(Interface):
    """The component of a twisted.web request that says what it may do: a `Grant`."""


class HeadersTooLarge(PlumberError):
    """The request line and headers are beyond the limit (RFC 6585, 5)."""

    status, code, default = 431, "headers-too-large", "the request line and headers are too large"


class HeadParser(Protocol):
    """What llhttp knows of a request when its head is complete."""

    def get_method(self) -> bytes: ...
    def get_http_version(self) -> str: ...
    def should_keep_alive(self) -> bool: ...
    def should_upgrade(self) -> bool: ...


# A client of a proxy sends a whole URL, and every server must accept it (RFC 9112, 3.2.2).
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)(.*)", re.DOTALL)


class Request:
    """
    A request.

    Header names are in lower case; the values of a repeated header are joined by commas.
    """

    __slots__ = (
        "_pieces",
        "awaited_since",
        "began",
        "body",
        "bytes_fed",
        "client",
        "counted_bytes",
        "expects_continue",
        "grant",
        "head_complete",
        "headers",
        "is_current",
        "keep_alive",
        "length",
        "limit",
        "method",
        "raw_headers",
        "refusal",
        "root",
        "size",
        "target",
        "uncounted",
        "upgrade",
    )

    def __init__(self) -> None:
        #: When it was read whole, in seconds of the request log; None if nobody wants to know.
        self.began: float | None = None
        self.method = b""
        self.target = b""  # path and query, as they were sent
        self.root = b""  # the path in front of ``target`` where ours are mounted in a site
        self.headers: dict[bytes, bytes] = {}
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self._pieces: bytearray | None = None  # the body while it comes in pieces
        self.counted_bytes = 0  # of the body, in the sum of all large bodies
        self.uncounted = LARGE  # bytes of a body that is too short to be in that sum
        self.awaited_since: float | None = None  # the clock's seconds; None: for no body yet
        self.client = NOWHERE  # where it came from, for limits
        self.limit = 0  # bytes that the body may have
        self.length = 0  # bytes of the body, as announced
        self.size = 0  # bytes of the head, as far as it was read
        self.bytes_fed = 0  # read in pieces that held nothing of any other request
        self.head_complete = False
        self.is_current = True  # HTTP/1.1, and not 1.0
        self.keep_alive = True
        self.upgrade = False  # to a WebSocket, that is
        self.expects_continue = False
        # What the gate has decided: a grant, or a Deferred that never fails; see `Gate.check_head`.
        self.grant: Decision | Deferred[Decision | PlumberError] | None = None
        self.refusal: PlumberError | None = None  # why it is not to be handled

    @property
    def query(self) -> Mapping[str, Sequence[str]]:
        """The query parameters, each with all its values; an empty value is kept."""
        text = self.target.partition(b"?")[2].decode("ascii", "replace")
        return parse_qs(text, keep_blank_values=True) if text else {}

    @property
    def has_body(self) -> bool:
        """Whether the head announces a body."""
        return self.length > 0 or b"transfer-encoding" in self.headers

    @property
    def is_small(self) -> bool:
        """Whether its body is so short that it is easier to read it than to close after it."""
        return (
            self.length <= SMALL_BODY
            and not self.expects_continue
            and b"transfer-encoding" not in self.headers
        )

    def complete_head(self, parser: HeadParser) -> PlumberError | None:
        """Take what ``parser`` knows when the head is complete; return what is wrong with it."""
        error = self.take_headers()
        headers, version = self.headers, parser.get_http_version()
        is_current = self.is_current = version == "1.1"
        self.head_complete = True
        self.method = parser.get_method()
        has_host = b"host" in headers
        if self.target[:1] != b"/":
            self._take_absolute_target()
        self.keep_alive = is_current and parser.should_keep_alive()
        if b"upgrade" in headers:
            self.upgrade = parser.should_upgrade() and headers[b"upgrade"].lower() == b"websocket"
        if b"expect" in headers:
            self.expects_continue = is_current and headers[b"expect"].lower() == b"100-continue"
        if b"content-length" in headers:
            self.length = int(headers[b"content-length"])
        if error is not None:
            return error
        if not is_current and version != "1.0":
            return BadRequest("this is not HTTP/1.1")
        if AMBIGUOUS_BYTES.search(self.target):
            return BadRequest(AMBIGUOUS_PATH)
        if self.method not in METHODS:
            return NotImplementedHere()
        if b"transfer-encoding" in headers and headers[b"transfer-encoding"].lower() != b"chunked":
            # Any other coding changes the body, which would be kept as if it were the result
            # (RFC 9112, 6.1).
            return NotImplementedHere("the only Transfer-Encoding that is understood is chunked")
        if is_current and not has_host:
            return BadRequest("HTTP/1.1 requires a Host header")
        return None

    def _take_absolute_target(self) -> None:
        """Take host and path from a target that is a whole URL; Host is ignored then."""
        absolute = _ABSOLUTE.fullmatch(self.target)
        if absolute is not None:
            host, rest = absolute.groups()
            self.target = rest if rest[:1] == b"/" else b"/" + rest
            self.headers[b"host"] = host

    def take_headers(self) -> PlumberError | None:
        """Fill ``headers`` from ``raw_headers``; return what is wrong with them."""
        headers, raw, size = self.headers, self.raw_headers, self.size
        for index, (name, value) in enumerate(raw):
            size += len(name) + len(value) + 4
            stripped = value.strip(b" \t")
            if stripped is not value:  # `strip` returns the same object if nothing is to strip
                raw[index] = name, stripped
            name = name.lower()
            if name in headers:
                if name == b"host":
                    return BadRequest("a request has one Host header")
                stripped = headers[name] + b", " + stripped
            headers[name] = stripped
        self.size = size
        if AMBIGUOUS_BYTES.search(b"".join(headers.values())):
            return BadRequest(AMBIGUOUS_HEADER)
        return None

    @property
    def received(self) -> int:
        """Bytes of the body that are there."""
        return len(self.body if self._pieces is None else self._pieces)

    def take_body(self, body: bytes) -> int:
        """Take the next bytes of the body, nearly always all of it; return how many there are."""
        if self._pieces is not None:
            self._pieces += body
            return len(self._pieces)
        if self.body:
            self._pieces = bytearray(self.body)
            self._pieces += body
            return len(self._pieces)
        self.body = body
        return len(body)

    def complete_body(self) -> None:
        """Put the pieces of the body together: there are no more."""
        if self._pieces is not None:
            self.body, self._pieces = bytes(self._pieces), None

    def without_upgrade(self) -> bytes:
        """Return the head as it would be if it asked for no other protocol."""
        lines = [b"%b %b HTTP/1.1" % (self.method, self.target)]
        if b"host" in self.headers:  # not the raw one: an absolute target overrides it
            lines.append(b"Host: " + self.headers[b"host"])
        lines += [
            b"%b: %b" % (name, value)
            for name, value in self.raw_headers
            if name.lower() not in (b"upgrade", b"connection", b"host")
        ]
        if not self.keep_alive:
            lines.append(b"Connection: close")
        return b"\r\n".join([*lines, b"", b""])
