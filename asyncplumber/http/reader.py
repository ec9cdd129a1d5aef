"""
Bytes become requests, by llhttp (httptools), within limits.  No sockets, no clock.

What is read and complete is in `calls`, in its order; what ends the reading is in `refusal`.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Protocol

from httptools import (
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserInvalidURLError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from asyncplumber.errors import (
    BadRequest,
    NotImplementedHere,
    PlumberError,
    TooLarge,
    TooManyRequests,
)
from asyncplumber.http.bodies import LARGE, Bodies
from asyncplumber.http.request import HEADERS, METHODS, HeadersTooLarge, Request
from asyncplumber.http.webhook import ODD_HEADER, ODD_PATH

CHUNKED = (
    8  # bytes on the wire for one of a chunked body, at most: six, if each is a chunk of its own
)


class Limits(Protocol):
    """What the reader asks of the house."""

    head_limit: int
    bodies: Bodies

    def limit_of(self, target: bytes) -> int:
        """Bytes of a body that may be sent to this path."""


# A request line with a method of any name (RFC 9110, 5.6.2): llhttp stops inside the method.
_REQUEST_LINE = re.compile(rb"^([!#$%&'*+.^_`|~0-9A-Za-z-]+) \S+ HTTP/1\.[01]\r?\n", re.MULTILINE)


def _explained(error: HttpParserError, data: bytes) -> PlumberError:
    # The request is the last of those in `data`, and its place there is not known.
    if isinstance(error, HttpParserInvalidMethodError) and any(
        line[1] not in METHODS for line in _REQUEST_LINE.finditer(data)
    ):
        return NotImplementedHere()
    if isinstance(error, HttpParserInvalidURLError):
        return BadRequest(ODD_PATH)
    return BadRequest(ODD_HEADER if "header value char" in str(error) else "this is not HTTP/1.1")


class Reader:
    """The requests of one connection."""

    __slots__ = (
        "_limits",
        "_parser",
        "began",
        "call",
        "calls",
        "continues",
        "deaf",
        "held",
        "refusal",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parser: HttpRequestParser | None = None  # one costs as much as a request
        self.call: Request | None = None  # being read
        self.calls: deque[Request] = deque()  # read, and not answered yet
        self.refusal: PlumberError | None = None  # to be said after those answers
        self.held = 0  # bytes of large bodies that are counted for this connection
        self.deaf = False  # nothing is read any more
        self.began = False  # a request has begun since this was last looked at
        self.continues = False  # the client waits for a word before it sends the body

    def feed(self, data: bytes) -> bytes:
        """
        Read on.  @return: what is to be read again, or by another protocol: a request asked for an
        upgrade.
        """
        call, rest = self.call, b""
        if self._parser is None:
            self._parser = HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            rest = self._upgrade(data[upgrade.args[0] :])
        except HttpParserError as error:
            self.refuse(_explained(error, data))
        if call is not None and self.call is call:
            # All of `data` belongs to this one.  The parser collects names and values of any length
            # before it shows them.
            call.fed += len(data)
            if not call.headed and call.fed > self._limits.head_limit:
                self.refuse(HeadersTooLarge())
            elif call.fed > self._limits.head_limit + CHUNKED * call.limit and call.headed:
                self._refuse_large(call)
        return rest

    def refuse(self, error: PlumberError) -> None:
        """Read no more; what was read before is answered first."""
        if not self.deaf:
            self.silence()
            self.refusal = error

    def silence(self) -> None:
        """Read no more, and say nothing of it."""
        self.deaf = True
        self.call = None
        self.refusal = None
        self.recount()

    def recount(self) -> None:
        """Some of what was counted is answered, or will not be: count what is still to come."""
        if self.held:
            held = sum([call.counted for call in self.calls]) + (
                self.call.counted if self.call is not None else 0
            )
            self._limits.bodies.release(self.held - held)
            self.held = held

    def _refuse_large(self, call: Request) -> None:
        self.refuse(TooLarge(f"a body has at most {call.limit} bytes"))

    def _upgrade(self, rest: bytes) -> bytes:
        """The parser read a head that asks for another protocol, and nothing after it."""
        self._parser = None
        if self.deaf or not self.calls:
            return b""
        call = self.calls[-1]
        if call.method == b"CONNECT":
            self.calls.pop()
            self.refuse(BadRequest("this is no proxy"))
        elif call.upgrade and call.has_body:
            self.calls.pop()
            self.refuse(BadRequest("a WebSocket handshake has no body"))
        elif call.upgrade:
            return rest  # for the stream; or if it comes to nothing, in HTTP still
        else:
            # It may be ignored (RFC 9110, 7.8), and is, as with HTTP/2; then there may be a body.
            self.calls.pop()
            return call.without_upgrade() + rest
        return b""

    # llhttp calls

    def on_message_begin(self) -> None:
        if not self.deaf:
            self.call = Request()
            self.began = True

    def on_url(self, url: bytes) -> None:
        call = self.call
        if call is not None:
            call.target += url
            call.size += len(url)
            if call.size > self._limits.head_limit:
                self.refuse(HeadersTooLarge())

    def on_header(self, name: bytes, value: bytes) -> None:
        call = self.call
        if call is not None and not call.headed:  # trailers are not for us
            call.raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        call = self.call
        if call is None:
            return
        error = call.complete_head(self._parser)
        if call.size > self._limits.head_limit or len(call.raw_headers) > HEADERS:
            error = HeadersTooLarge()
        call.limit = self._limits.limit_of(call.target)
        if error is not None:
            self.refuse(error)
        elif call.length > call.limit:
            self._refuse_large(call)
        else:
            self.continues = call.expects_continue

    def on_body(self, body: bytes) -> None:
        call = self.call
        if call is not None:
            self.continues = False
            size = call.take_body(body)
            if size > call.limit:
                self._refuse_large(call)
            elif size > LARGE:
                more, call.counted = size - call.counted, size
                self.held += more
                if not self._limits.bodies.has_room(more, self.held):
                    self.refuse(TooManyRequests("too many large bodies wait here", retry_after=1))

    def on_message_complete(self) -> None:
        call = self.call
        if call is not None:
            self.call = None
            self.continues = False
            call.complete_body()
            self.calls.append(call)
