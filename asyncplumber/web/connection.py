"""
One connection at the door: reads requests with llhttp (by httptools), within limits, and has them answered one by one.

Nothing here knows what a request means: a complete `Call` goes to the listener.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from httptools import HttpParserError, HttpParserInvalidURLError, HttpParserUpgrade, HttpRequestParser
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IPushProducer, ISSLTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from asyncplumber.errors import BadRequest, PlumberError, TooLarge, TooSlow, blame
from asyncplumber.web.answers import Answer, error_answer
from asyncplumber.web.call import HEADERS, Call, HeadersTooLarge
from asyncplumber.web.webhook import ODD_HEADER, ODD_PATH

if TYPE_CHECKING:
    from asyncplumber.web.listener import Listener

BACKLOG = 64 * 1024  # bytes read ahead while an answer is awaited
LINGER = 2.0  # seconds that a refused client may go on sending: closing with bytes unread would destroy the answer
CHUNKED = 8  # bytes on the wire for one of a chunked body, at most: six, if each is a chunk of its own


def _explained(error: HttpParserError) -> BadRequest:
    if isinstance(error, HttpParserInvalidURLError):
        return BadRequest(ODD_PATH)
    return BadRequest(ODD_HEADER if "header value char" in str(error) else "this is not HTTP/1.1")


@implementer(IProtocol, IPushProducer)
class Connection:
    """An HTTP/1.1 server connection.  It is its transport's producer, so that answers do not pile up for who takes none."""

    __slots__ = (
        "_backlog",
        "_busy",
        "_call",
        "_calls",
        "_closing",
        "_deaf",
        "_full",
        "_going",
        "_lost",
        "_parser",
        "_paused",
        "_refusal",
        "_spoke",
        "deadline",
        "gone",
        "house",
        "transport",
    )
    _log = Logger()

    def __init__(self, house: Listener) -> None:
        self.house = house
        self.transport: Any = None
        self.deadline: float | None = house.now + house.idle_timeout
        self.gone: Any = None  # called when the client goes away before it is answered
        self._parser = HttpRequestParser(self)
        self._call: Call | None = None  # being read
        self._calls: deque[Call] = deque()  # read, and not answered yet
        self._backlog = bytearray()  # not read yet: an answer is awaited
        self._refusal: PlumberError | None = None  # to be said after those answers
        self._busy = False  # an answer is awaited
        self._closing = False  # the last word is written
        self._deaf = False  # nothing is read any more
        self._full = False  # the client does not take its answers
        self._going = False  # `_go_on` is under way
        self._lost = False
        self._paused = False
        self._spoke = False  # something was written, and may wait in the transport

    # IProtocol

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport
        self.house.connections.add(self)
        with suppress(AttributeError, OSError):  # a UNIX socket, or a transport in memory
            transport.setTcpNoDelay(True)
        transport.registerProducer(self, True)

    def connectionMade(self) -> None:
        pass

    def connectionLost(self, reason: Any) -> None:
        self._lost = True
        self.house.connections.discard(self)
        gone, self.gone = self.gone, None
        if gone is not None:
            gone(reason)

    def dataReceived(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._busy or self._full:
            self._keep(data)
        else:
            self._feed(data)
            self._go_on()

    def _keep(self, data: bytes) -> None:
        self._backlog += data
        self._listen_or_not()

    def _listen_or_not(self) -> None:
        """Read no more while the client is too far ahead of us or of its own reading; one that is refused is heard to the end."""
        paused = not self._deaf and (self._full or len(self._backlog) > BACKLOG)
        if paused is not self._paused:
            self._paused = paused
            self.transport.pauseProducing() if paused else self.transport.resumeProducing()

    def _feed(self, data: bytes) -> None:
        call = self._call
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        except HttpParserError as error:
            self.refuse(_explained(error))
        if call is not None and self._call is call:
            # All of `data` belongs to this one.  The parser collects names and values of any length before it shows them.
            call.fed += len(data)
            if not call.headed and call.fed > self.house.head_limit:
                self.refuse(HeadersTooLarge())
            elif call.fed > self.house.head_limit + CHUNKED * self.house.body_limit:
                self._refuse_large()

    def _upgrade(self, rest: bytes) -> None:
        """The parser read a head that asks for another protocol, and nothing after it."""
        self._parser = HttpRequestParser(self)
        if self._deaf or not self._calls:
            return
        call = self._calls[-1]
        if call.method == b"CONNECT":
            self._calls.pop()
            self.refuse(BadRequest("this is no proxy"))
        elif call.upgrade and call.has_body:
            self._calls.pop()
            self.refuse(BadRequest("a WebSocket handshake has no body"))
        elif call.upgrade:
            self._backlog += rest  # for the stream; or if it comes to nothing, in HTTP still
        else:
            # It may be ignored (RFC 9110, 7.8), and is, as with HTTP/2; then there may be a body.
            self._calls.pop()
            self._backlog += call.without_upgrade() + rest

    # llhttp calls

    def on_message_begin(self) -> None:
        if not self._deaf:
            self._call = Call()
            self.deadline = self.house.now + self.house.request_timeout

    def on_url(self, url: bytes) -> None:
        call = self._call
        if call is not None:
            call.target += url
            call.size += len(url)
            if call.size > self.house.head_limit:
                self.refuse(HeadersTooLarge())

    def on_header(self, name: bytes, value: bytes) -> None:
        call = self._call
        if call is None or call.headed:  # trailers are not for us
            return
        error = call.take_header(name, value)
        if call.size > self.house.head_limit or len(call.raw_headers) > HEADERS:
            error = HeadersTooLarge()
        if error is not None:
            self.refuse(error)

    def on_headers_complete(self) -> None:
        call = self._call
        if call is None:
            return
        error = call.complete_head(self._parser)
        if error is not None:
            self.refuse(error)
        elif call.length > self.house.body_limit:
            self._refuse_large()
        elif call.expects_continue and not self._calls and not self._busy:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        call = self._call
        if call is not None and call.take_body(body) > self.house.body_limit:
            self._refuse_large()

    def on_message_complete(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.complete_body()
            self._calls.append(call)

    # Answering

    def _go_on(self) -> None:
        """Have what was read answered, in order, and read on: until an answer has to be awaited, or all is done."""
        if self._going:
            return
        self._going = True
        while self.transport is not None and not (self._busy or self._full or self._lost):
            if self._calls:
                self._busy = True
                self.deadline = None
                self.house.answer(self, self._calls.popleft())
            elif self._refusal is not None:
                self._say_no(self._refusal)
            elif self._backlog:
                data = bytes(self._backlog)
                self._backlog.clear()
                self._listen_or_not()
                self._feed(data)
            else:
                break
        self._going = False

    def _write(self, data: bytes) -> None:
        self._spoke = True
        self.transport.write(data)

    def reply(self, call: Call, answer: Answer) -> None:
        """Write the answer, and go on to the next request."""
        if self._lost or self.transport is None:
            return
        close = not call.keep_alive or self.house.stopping
        head = answer.head(close=close)
        self._write(head if call.method == b"HEAD" else head + answer.body)
        self.answered(close)

    def reply_later(self, call: Call, answer: Deferred[Answer]) -> None:
        """Write the answer when it is there."""
        answer.addErrback(self._broken).addCallback(lambda answer: self.reply(call, answer))

    def _broken(self, failure: Failure) -> Answer:
        return error_answer(blame(failure, self._log, "a request failed"))

    def answered(self, close: bool) -> None:
        """The answer is written."""
        self.gone = None
        self._busy = False
        self._spoke = True
        if close:
            self.hang_up()
        else:
            timeout = self.house.idle_timeout if self._call is None else self.house.request_timeout
            self.deadline = self.house.now + timeout
            self._go_on()

    def refuse(self, error: PlumberError) -> None:
        """Read no more; what was read before is answered first, then this error is, and then we hang up."""
        if not self._deaf:
            self._deafen()
            self._refusal = error

    def _refuse_large(self) -> None:
        self.refuse(TooLarge(f"a body has at most {self.house.body_limit} bytes"))

    def _deafen(self) -> None:
        self._deaf = True
        self._call = None
        self._refusal = None
        self._backlog.clear()
        self._listen_or_not()

    def _say_no(self, error: PlumberError) -> None:
        self._refusal = None
        self._closing = True
        answer = error_answer(error)
        self.transport.unregisterProducer()
        self._write(answer.head(close=True) + answer.body)
        self.deadline = self.house.now + LINGER
        if ISSLTransport.providedBy(self.transport) or not hasattr(self.transport, "loseWriteConnection"):
            self.transport.loseConnection()  # TLS says goodbye, and listens until it is answered
        else:
            self.transport.loseWriteConnection()

    def hang_up(self) -> None:
        """Close, once the client has taken what was written; it has as much time for that as for a request."""
        if self._closing:
            return
        self._closing = True
        self._calls.clear()
        self._deafen()
        self.deadline = self.house.now + self.house.request_timeout
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request."""
        return not (self._busy or self._deaf or self._calls or self._call is not None)

    def expired(self) -> None:
        """The deadline has passed."""
        if self._deaf:
            self.transport.abortConnection()
        elif self._call is not None and not self._full:
            self.refuse(TooSlow())
            self._go_on()
        else:
            self.hang_up()

    # The transport speaks: it is full, or empty again

    def pauseProducing(self) -> None:
        self._full = True
        self._listen_or_not()

    def resumeProducing(self) -> None:
        self._full = False
        self._listen_or_not()
        self._go_on()

    def stopProducing(self) -> None:
        pass

    def hand_over(self, protocol: Any) -> tuple[Any, bool, bytes]:
        """
        The connection is a stream from now on, and `protocol` has it.

        @return: the transport; whether it may still have something of ours to send; what the client has said already.
        """
        self.house.connections.discard(self)
        self.gone = None
        rest = bytes(self._backlog)
        self._backlog.clear()
        self._listen_or_not()
        transport, self.transport = self.transport, None
        transport.unregisterProducer()
        if hasattr(transport, "wrappedProtocol"):
            transport.wrappedProtocol = protocol
        else:
            transport.protocol = protocol
        return transport, self._spoke, rest
