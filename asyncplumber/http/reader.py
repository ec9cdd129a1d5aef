"""From bytes to requests, within limits, by llhttp (httptools).  No sockets, no clock."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
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
from asyncplumber.http.bodies import Bodies
from asyncplumber.http.request import MAX_HEADER_LINES, HeadersTooLarge, Request
from asyncplumber.http.syntax import AMBIGUOUS_HEADER, AMBIGUOUS_PATH, METHODS, UPGRADE_WITH_BODY

# Bytes on the wire for one byte of a chunked body, at most: six, if each is a chunk of its own.
CHUNK_OVERHEAD = 8


class ReaderLimits(Protocol):
    """The limits that a reader keeps to."""

    head_limit: int  # bytes of request line and headers
    bodies: Bodies

    def body_limit_of(self, target: bytes) -> int:
        """Return how many bytes a body that is sent to this path may have."""


# A request line with a method of any name (RFC 9110, 5.6.2): llhttp stops inside the method.
_REQUEST_LINE = re.compile(rb"^([!#$%&'*+.^_`|~0-9A-Za-z-]+) \S+ HTTP/1\.[01]\r?\n", re.MULTILINE)


def _explained(error: HttpParserError, data: bytes) -> PlumberError:
    # The wrong request is the last one in `data`, but where it begins is not known.
    if isinstance(error, HttpParserInvalidMethodError) and any(
        line[1] not in METHODS for line in _REQUEST_LINE.finditer(data)
    ):
        return NotImplementedHere()
    if isinstance(error, HttpParserInvalidURLError):
        return BadRequest(AMBIGUOUS_PATH)
    if "header value char" in str(error):
        return BadRequest(AMBIGUOUS_HEADER)
    return BadRequest("this is not HTTP/1.1")


class Reader:
    """
    Reads the requests of one connection.

    Complete requests are in `requests`, in their order.  What ends the reading is in `refusal`.
    """

    __slots__ = (
        "_check_head",
        "_limits",
        "_parser",
        "closed",
        "counted_bytes",
        "refusal",
        "refused",
        "request",
        "request_started",
        "requests",
        "wants_continue",
    )

    def __init__(
        self, limits: ReaderLimits, check_head: Callable[[Request], PlumberError | None]
    ) -> None:
        """
        Args:
            limits: The limits.
            check_head: Called with each request whose head is complete.  Returns the error that
                it is refused with, if it is.
        """
        self._limits = limits
        self._check_head = check_head
        self._parser: HttpRequestParser | None = None  # a new one costs as much as a request
        self.request: Request | None = None  # that is being read
        self.requests: deque[Request] = deque()  # read, and not answered yet
        self.refusal: PlumberError | None = None  # the response after those to `requests`
        self.refused: Request | None = None  # the request that it refuses, if its head was read
        self.counted_bytes = 0  # of this connection, in the sum of all large bodies
        self.closed = False  # nothing is read any more
        self.request_started = False  # set at a request's first byte; the owner resets it
        self.wants_continue = False  # the client waits for a "100 Continue"

    def feed(self, data: bytes) -> bytes:
        """
        Read these bytes.

        Returns:
            The bytes that follow a request for another protocol.  If the answer to that request
            is no, they are to be fed again.
        """
        request, rest = self.request, b""
        if self._parser is None:
            self._parser = HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            rest = self._upgrade(data[upgrade.args[0] :])
        except HttpParserError as error:
            self.refuse(_explained(error, data))
        if request is not None and self.request is request:
            # All of `data` belongs to this request.  llhttp collects names and values of any
            # length before it shows them, so their bytes are counted here.
            request.bytes_fed += len(data)
            if not request.head_complete:
                if request.bytes_fed > self._limits.head_limit:
                    self.refuse(HeadersTooLarge())
            elif request.bytes_fed > self._limits.head_limit + CHUNK_OVERHEAD * request.limit:
                self._refuse_large(request)
        return rest

    def refuse(self, error: PlumberError) -> None:
        """Read no more.  ``error`` is the response after those to the requests before it."""
        if not self.closed:
            request = self.request
            self.close()
            self.refusal = error
            self.refused = request if request is not None and request.head_complete else None

    def close(self) -> None:
        """Read no more, and give no response to what is half read."""
        self.closed = True
        self.request = self.refused = None
        self.refusal = None
        self.recount()

    def discard(self) -> None:
        """Forget all that was read: the connection ends, or is a stream from now on."""
        self.requests.clear()
        self.request = None
        self.recount()

    def recount(self) -> None:
        """Count the large bodies again after some of them were answered or dropped."""
        if self.counted_bytes:
            counted = sum([request.counted_bytes for request in self.requests])
            if self.request is not None:
                counted += self.request.counted_bytes
            self._limits.bodies.release(self.counted_bytes - counted)
            self.counted_bytes = counted

    def _refuse_large(self, request: Request) -> None:
        self.refuse(TooLarge(f"a body has at most {request.limit} bytes"))

    def _upgrade(self, rest: bytes) -> bytes:
        """Go on after a head that asks for another protocol; llhttp has stopped behind it."""
        self._parser = None
        if self.closed or not self.requests:
            return b""
        request = self.requests[-1]
        if request.method == b"CONNECT":
            self.requests.pop()
            self.refuse(BadRequest("this is no proxy"))
        elif request.upgrade and request.has_body:
            self.requests.pop()
            self.refuse(BadRequest(UPGRADE_WITH_BODY))
        elif request.upgrade:
            return rest  # WebSocket frames, or HTTP if the handshake is refused
        else:
            # Any other protocol, such as HTTP/2, may be ignored (RFC 9110, 7.8), and is.  Then
            # the request may have a body.
            self.requests.pop()
            return request.without_upgrade() + rest
        return b""

    # llhttp calls these

    def on_message_begin(self) -> None:
        if not self.closed:
            self.request = Request()
            self.request_started = True

    def on_url(self, url: bytes) -> None:
        request = self.request
        if request is not None:
            request.target += url
            request.size += len(url)
            if request.size > self._limits.head_limit:
                self.refuse(HeadersTooLarge())

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self.request
        if request is not None and not request.head_complete:  # trailers are ignored
            request.raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        request = self.request
        if request is None:
            return
        assert self._parser is not None  # it calls this
        error = request.complete_head(self._parser)
        if request.size > self._limits.head_limit or len(request.raw_headers) > MAX_HEADER_LINES:
            error = HeadersTooLarge()
        request.limit = self._limits.body_limit_of(request.target)
        if error is not None:
            self.refuse(error)
        elif request.length > request.limit:
            self._refuse_large(request)
        elif (refusal := self._check_head(request)) is not None and not request.is_small:
            self.refuse(refusal)  # before its body is read
        else:
            self.wants_continue = request.expects_continue

    def on_body(self, body: bytes) -> None:
        request = self.request
        if request is not None:
            self.wants_continue = False
            size = request.take_body(body)
            if size > request.limit:
                self._refuse_large(request)
            elif size > request.uncounted:
                more, request.counted_bytes = size - request.counted_bytes, size
                self.counted_bytes += more
                if not self._limits.bodies.has_room(more, self.counted_bytes):
                    self.refuse(TooManyRequests("too many large bodies wait here", retry_after=1))

    def on_message_complete(self) -> None:
        request = self.request
        if request is not None:
            self.request = None
            self.wants_continue = False
            request.complete_body()
            self.requests.append(request)
