"""A request as it came over the wire, growing as it is read."""

from __future__ import annotations

import re
from typing import Any

from asyncplumber.errors import BadRequest, NotImplementedHere, PlumberError
from asyncplumber.http.webhook import ODD_HEADER, ODD_PATH, SPLITTING

HEADERS = 100  # lines
METHODS = frozenset(
    {b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT"}
)


class HeadersTooLarge(PlumberError):
    """Request line and headers are beyond the limit (RFC 6585, 5)."""

    status, code, default = 431, "headers-too-large", "the request line and headers are too large"


# A proxy's client sends a whole URL, and every server must take it (RFC 9112, 3.2.2).
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)(.*)", re.DOTALL)


class Request:
    """
    A request.  Header names are lower-case; a repeated header has its values joined by commas.
    """

    __slots__ = (
        "_more",
        "body",
        "counted",
        "expects_continue",
        "fed",
        "headed",
        "headers",
        "is_current",
        "keep_alive",
        "length",
        "limit",
        "method",
        "raw_headers",
        "size",
        "target",
        "upgrade",
    )

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self._more: bytearray | None = None  # the body while it comes in pieces
        self.counted = 0  # bytes of it that are counted as those of a large one
        self.limit = 0  # bytes that the body may have
        self.length = 0  # bytes of the body, as announced
        self.size = 0  # bytes of the head, as far as it is known
        self.fed = 0  # bytes read in pieces that had nothing else in them
        self.headed = False  # the head is complete
        self.is_current = True  # it is HTTP/1.1
        self.keep_alive = True
        self.upgrade = False  # to a WebSocket, that is
        self.expects_continue = False

    def complete_head(self, parser: Any) -> PlumberError | None:
        """The head is complete; `parser` is llhttp.  @return: what is wrong with it."""
        error = self._take_headers()
        headers, version = self.headers, parser.get_http_version()
        is_current = self.is_current = version == "1.1"
        self.headed = True
        self.method = parser.get_method()
        is_named = b"host" in headers
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
        if SPLITTING.search(self.target):
            return BadRequest(ODD_PATH)
        if self.method not in METHODS:
            return NotImplementedHere()
        if b"transfer-encoding" in headers and headers[b"transfer-encoding"].lower() != b"chunked":
            # Any other coding changes the body, and would be kept as if it were the result (RFC
            # 9112, 6.1).
            return NotImplementedHere(
                "chunked is the only Transfer-Encoding that is understood here"
            )
        if is_current and not is_named:
            return BadRequest("HTTP/1.1 requires a Host header")
        return None

    def _take_absolute_target(self) -> None:
        """A target that is a whole URL counts more than Host does (RFC 9112, 3.2.2)."""
        absolute = _ABSOLUTE.fullmatch(self.target)
        if absolute is not None:
            host, rest = absolute.groups()
            self.target = rest if rest[:1] == b"/" else b"/" + rest
            self.headers[b"host"] = host

    def _take_headers(self) -> PlumberError | None:
        headers, raw, size = self.headers, self.raw_headers, self.size
        for index, (name, value) in enumerate(raw):
            size += len(name) + len(value) + 4
            stripped = value.strip(b" \t")
            if stripped is not value:  # bytes that need no stripping come back themselves
                raw[index] = name, stripped
            name = name.lower()
            if name in headers:
                if name == b"host":
                    return BadRequest("a request has one Host header")
                stripped = headers[name] + b", " + stripped
            headers[name] = stripped
        self.size = size
        return BadRequest(ODD_HEADER) if SPLITTING.search(b"".join(headers.values())) else None

    def take_body(self, body: bytes) -> int:
        """
        The next bytes of the body; nearly always they are all of it.  @return: how many there are
        now.
        """
        if self._more is not None:
            self._more += body
            return len(self._more)
        if self.body:
            self._more = bytearray(self.body)
            self._more += body
            return len(self._more)
        self.body = body
        return len(body)

    def complete_body(self) -> None:
        """There are no more."""
        if self._more is not None:
            self.body, self._more = bytes(self._more), None

    @property
    def has_body(self) -> bool:
        """Whether the head announces a body."""
        return self.length > 0 or b"transfer-encoding" in self.headers

    def without_upgrade(self) -> bytes:
        """The head as it would be if no other protocol was asked for."""
        lines = [b"%b %b HTTP/1.1" % (self.method, self.target)]
        lines += [
            b"%b: %b" % (name, value)
            for name, value in self.raw_headers
            if name.lower() not in (b"upgrade", b"connection")
        ]
        if not self.keep_alive:
            lines.append(b"Connection: close")
        return b"\r\n".join([*lines, b"", b""])
