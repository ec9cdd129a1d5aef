"""
One connection at the door: reads requests with llhttp (by httptools), within limits, and has them answered one by one.

Nothing here knows what a request means: a complete `Call` goes to the listener.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol
from zope.interface import implementer

from asyncplumber.errors import BadRequest, PlumberError, TooLarge, TooSlow
from asyncplumber.web.answers import Answer, error_answer
from asyncplumber.web.webhook import SPLITTING

if TYPE_CHECKING:
    from asyncplumber.web.listener import Listener

HEADERS = 100  # lines
BACKLOG = 64 * 1024  # bytes read ahead while an answer is awaited
LINGER = 2.0  # seconds that a refused client may go on sending: closing with bytes unread would destroy the answer


class HeadersTooLarge(PlumberError):
    """Request line and headers are beyond the limit (RFC 6585, 5)."""

    status, code, default = 431, "headers-too-large", "the request line and headers are too large"


class Call:
    """A request as it came over the wire.  Header names are lower-case; a repeated header has its values joined by commas."""

    __slots__ = ("body", "headers", "keep_alive", "method", "parts", "raw_headers", "rest", "size", "target", "upgrade")

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.parts: list[bytes] = []
        self.size = 0
        self.body = b""
        self.rest = b""  # after an upgrade: what the client has said already
        self.keep_alive = True
        self.upgrade = False


@implementer(IProtocol)
class Connection:
    """An HTTP/1.1 server connection."""

    __slots__ = (
        "_backlog",
        "_busy",
        "_call",
        "_calls",
        "_lost",
        "_parser",
        "_refused",
        "_waiting",
        "deadline",
        "gone",
        "house",
        "paused",
        "transport",
    )

    def __init__(self, house: Listener) -> None:
        self.house = house
        self.transport: Any = None
        self.deadline: float | None = house.now + house.idle_timeout
        self.gone: Any = None  # called when the client goes away before it is answered
        self._parser = HttpRequestParser(self)
        self._call: Call | None = None
        self._calls: deque[Call] = deque()
        self._backlog: list[bytes] = []
        self._busy = False
        self._refused = False

    # IProtocol

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport
        self.house.connections.add(self)
        with suppress(AttributeError, OSError):  # a UNIX socket, or a transport in memory
            transport.setTcpNoDelay(True)

    def connectionMade(self) -> None:
        pass

    def connectionLost(self, reason: Any) -> None:
        self.house.connections.discard(self)
        gone, self.gone = self.gone, None
        if gone is not None:
            gone(reason)

    def dataReceived(self, data: bytes) -> None:
        if self._busy:
            self._backlog.append(data)
            if sum(map(len, self._backlog)) > BACKLOG:
                self.transport.pauseProducing()
        elif not self._refused:
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        if self._call is None:
            self.deadline = self.house.now + self.house.request_timeout
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            call = self._calls[-1] if self._calls else None
            if call is not None:
                call.rest = data[upgrade.args[0] :]
        except HttpParserError:
            self.refuse(BadRequest("this is not HTTP/1.1"))
        if self._calls and not self._busy:
            self._next()

    # llhttp calls

    def on_message_begin(self) -> None:
        self._call = Call()

    def on_url(self, url: bytes) -> None:
        call = self._call
        if call is not None:
            call.target += url
            call.size += len(url)
            if call.size > self.house.head_limit:
                self.refuse(HeadersTooLarge())

    def on_header(self, name: bytes, value: bytes) -> None:
        call = self._call
        if call is None or self._refused:
            return
        call.size += len(name) + len(value) + 4
        call.raw_headers.append((name, value))
        name = name.lower()
        call.headers[name] = call.headers[name] + b", " + value if name in call.headers else value
        if call.size > self.house.head_limit or len(call.raw_headers) > HEADERS:
            self.refuse(HeadersTooLarge())
        elif SPLITTING.search(value):
            self.refuse(BadRequest("a header has a byte that not every server reads alike"))

    def on_headers_complete(self) -> None:
        call = self._call
        if call is None or self._refused:
            return
        parser, headers = self._parser, call.headers
        call.method = parser.get_method()
        call.keep_alive = parser.should_keep_alive()
        call.upgrade = parser.should_upgrade()
        call.size = 0
        if SPLITTING.search(call.target):
            self.refuse(BadRequest("the path has a byte that not every server reads alike"))
        elif b"host" not in headers and parser.get_http_version() == "1.1":
            self.refuse(BadRequest("HTTP/1.1 requires a Host header"))
        elif int(headers.get(b"content-length", b"0")) > self.house.body_limit:
            self.refuse(TooLarge(f"a body has at most {self.house.body_limit} bytes"))
        elif headers.get(b"expect", b"").lower() == b"100-continue" and not self._calls and not self._busy:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        call = self._call
        if call is None or self._refused:
            return
        call.parts.append(body)
        call.size += len(body)
        if call.size > self.house.body_limit:
            self.refuse(TooLarge(f"a body has at most {self.house.body_limit} bytes"))

    def on_message_complete(self) -> None:
        call, self._call = self._call, None
        if call is not None and not self._refused:
            call.body = call.parts[0] if len(call.parts) == 1 else b"".join(call.parts)
            self._calls.append(call)

    # Answering

    def _next(self) -> None:
        """Have the next request answered, if there is one."""
        while self._calls and not self._busy and not self._refused:
            self._busy = True
            self.deadline = None
            call = self._calls.popleft()
            self.house.answer(self, call)
        if not self._busy and self._backlog and not self._refused:
            data, self._backlog = b"".join(self._backlog), []
            self.transport.resumeProducing()
            self._feed(data)

    def reply(self, call: Call, answer: Answer) -> None:
        """Write the answer, and go on to the next request."""
        self.gone = None
        close = not call.keep_alive or self.house.stopping
        head = answer.head(close=close)
        self.transport.write(head if call.method == b"HEAD" else head + answer.body)
        self.answered(close)

    def reply_later(self, call: Call, answer: Deferred[Answer]) -> None:
        """Write the answer when it is there."""
        answer.addCallback(lambda answer: self.reply(call, answer) if self.transport is not None else None)

    def answered(self, close: bool) -> None:
        """The answer is written."""
        self.gone = None
        self._busy = False
        if close:
            self._refused = True
            self.transport.loseConnection()
            return
        self.deadline = self.house.now + self.house.idle_timeout
        if self._calls or self._backlog:
            self._next()

    def refuse(self, error: PlumberError) -> None:
        """Answer with an error although the request is not complete, and hang up once the client has had time to read that."""
        if self._refused:
            return
        self._refused = True
        self._call = None
        self._calls.clear()
        if self._busy:
            # An earlier request is being answered: its answer goes first, and then this connection is of no use.
            self.transport.loseConnection()
            return
        answer = error_answer(error)
        self.transport.write(answer.head(close=True) + answer.body)
        self.deadline = self.house.now + LINGER
        try:
            self.transport.loseWriteConnection()
        except AttributeError:
            self.transport.loseConnection()

    def hand_over(self, protocol: Any) -> Any:
        """The connection is a stream from now on, and `protocol` has it.  @return: the transport."""
        self.house.connections.discard(self)
        self.gone = None
        transport, self.transport = self.transport, None
        if hasattr(transport, "wrappedProtocol"):
            transport.wrappedProtocol = protocol
        else:
            transport.protocol = protocol
        return transport

    def expired(self) -> None:
        """The deadline has passed."""
        if self._refused:
            self.transport.abortConnection()
        elif self._call is not None:
            self.refuse(TooSlow())
        else:
            self._refused = True
            self.transport.loseConnection()
