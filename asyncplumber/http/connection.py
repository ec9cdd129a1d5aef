"""
One connection at the door: has the requests that `reading` finds in its bytes answered, one by one,
in time.

Nothing here knows what a request means: a complete `Request` goes to the listener.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from asyncplumber._twisted_compat import replace_protocol
from asyncplumber.errors import PlumberError, TooSlow, to_client_error
from asyncplumber.http.reader import Reader
from asyncplumber.http.request import Request
from asyncplumber.http.responses import Response, error_response
from asyncplumber.transports.progress import progress
from asyncplumber.transports.send_buffer import SendBuffer, send_buffer_for
from asyncplumber.transports.stream import Detached

if TYPE_CHECKING:
    from asyncplumber.http.listener import Listener

BACKLOG = 64 * 1024  # bytes read ahead while an answer is awaited
# seconds that a refused client may go on sending: closing with bytes unread would destroy the
# answer
LINGER = 2.0


@implementer(IProtocol, IHalfCloseableProtocol)
class Connection:
    """
    An HTTP/1.1 server connection.  While a client does not take its answers, no more of its
    requests are read.
    """

    __slots__ = (
        "_backlog",
        "_busy",
        "_closing",
        "_full",
        "_going",
        "_lost",
        "_outbox",
        "_paused",
        "_progress",
        "_reader",
        "deadline",
        "gone",
        "has_ended",
        "house",
        "is_waiting",
        "transport",
    )
    _log = Logger()

    def __init__(self, house: Listener) -> None:
        self.house = house
        self.transport: Any = None
        self.deadline: float | None = house.now + house.idle_timeout
        self.gone: Any = None  # called when the client goes away before it is answered
        self.is_waiting = False  # the answer is awaited until there is an event
        self._reader = Reader(house)
        self._backlog = bytearray()  # not read yet: an answer is awaited
        self._busy = False  # an answer is awaited
        self._closing = False  # the last word is written
        self.has_ended = False  # the client has sent all that it will send
        self._full = False  # the client does not take its answers
        self._going = False  # `_go_on` is under way
        self._lost = False
        self._paused = False
        self._progress: object | None = None  # when the deadline last passed
        # there from `makeConnection` on
        self._outbox: SendBuffer = None  # type: ignore[assignment]

    # IProtocol

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport
        self.house.connections.add(self)
        with suppress(AttributeError, OSError):  # a UNIX socket, or a transport in memory
            transport.setTcpNoDelay(True)
        self._outbox = send_buffer_for(transport, transport.abortConnection)

    def connectionMade(self) -> None:
        pass

    def connectionLost(self, reason: Any) -> None:
        self._lost = True
        self._outbox.forget()
        self._let_go()
        gone, self.gone = self.gone, None
        if gone is not None:
            gone(reason)

    def readConnectionLost(self) -> None:
        """
        The client has sent all that it will send (``shutdown``).  What it asked is still answered.

        A client that went away looks the same.  So one that waits for events is taken for that: to
        count it as a subscriber would be wrong more often.
        """
        self.has_ended = True
        if self.is_waiting:
            self.hang_up()  # and no reset: the answer to an earlier request may be on its way
        elif self._closing:
            self.transport.loseConnection()  # both directions have ended now
        elif not self._busy:
            self._go_on()

    def writeConnectionLost(self) -> None:
        """We have ended our direction ourselves."""

    def _let_go(self) -> None:
        """Nothing more is read here."""
        self.house.connections.discard(self)
        self._reader.calls.clear()
        self._reader.call = None
        self._reader.recount()

    def dataReceived(self, data: bytes) -> None:
        if self._reader.deaf:
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
        """
        Read no more while the client is too far ahead of us or of its own reading; one that is
        refused is heard to the end.
        """
        paused = not self._reader.deaf and (self._full or len(self._backlog) > BACKLOG)
        if paused is not self._paused:
            self._paused = paused
            self.transport.pauseProducing() if paused else self.transport.resumeProducing()

    def _feed(self, data: bytes) -> None:
        reader = self._reader
        rest = reader.feed(data)
        if rest:
            self._backlog += rest
        if reader.began:
            reader.began = False
            self.deadline = self.house.now + self.house.request_timeout
        if reader.deaf:
            self._backlog.clear()
            self._listen_or_not()

    # Answering

    def _go_on(self) -> None:
        """
        Have what was read answered, in order, and read on: until an answer has to be awaited, or
        all is done.
        """
        if self._going:
            return
        self._going = True
        while self.transport is not None and not (self._busy or self._full or self._lost):
            if self._reader.calls:
                self._busy = True
                self.deadline = None
                self.house.answer(self, self._reader.calls.popleft())
            elif self._reader.refusal is not None:
                self._say_no(self._reader.refusal)
            elif self._reader.continues:
                self._reader.continues = False
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            elif self._backlog:
                data = bytes(self._backlog)
                self._backlog.clear()
                self._listen_or_not()
                self._feed(data)
            elif self.has_ended:
                self.hang_up()
                break
            else:
                break
        self._going = False

    def write(self, data: bytes) -> None:
        """Send a piece of an answer."""
        send_buffer = self._outbox
        send_buffer.write(data)
        if not send_buffer.ready and not self._full:
            self._full = True
            self._listen_or_not()
            send_buffer.drained().addCallback(self._emptied)

    def drained(self) -> Deferred[None]:
        """Return a Deferred that fires when the client has taken what was written, or is gone."""
        return self._outbox.drained()

    def _emptied(self, _: None) -> None:
        self._full = False
        if not self._lost and self.transport is not None:
            self._listen_or_not()
            self._go_on()

    def reply(self, call: Request, answer: Response) -> None:
        """Write the answer, and go on to the next request."""
        if self._lost or self.transport is None:
            return
        close = not call.keep_alive or self.house.stopping
        head = answer.head(close=close)
        self.write(head if call.method == b"HEAD" else head + answer.body)
        self.answered(close)

    def reply_later(self, call: Request, answer: Deferred[Response]) -> None:
        """Write the answer when it is there."""
        answer.addCallbacks(
            lambda answer: self.reply(call, answer),
            lambda failure: self.reply(call, self._broken(failure)),
        )

    def _broken(self, failure: Failure) -> Response:
        return error_response(to_client_error(failure, self._log, "a request failed"))

    def answered(self, close: bool) -> None:
        """The answer is written."""
        self.gone = None
        self.is_waiting = False
        self._busy = False
        if self._reader.held:
            self._reader.recount()
        if close:
            self.hang_up()
        else:
            house, reader = self.house, self._reader
            self.deadline = house.now + (
                house.idle_timeout if reader.call is None else house.request_timeout
            )
            if (
                reader.calls
                or self._backlog
                or reader.refusal is not None
                or reader.continues
                or self.has_ended
            ):
                self._go_on()

    def refuse(self, error: PlumberError) -> None:
        """
        Read no more; what was read before is answered first, then this error is, and then we hang
        up.
        """
        self._reader.refuse(error)
        self._backlog.clear()
        self._listen_or_not()

    def _say_no(self, error: PlumberError) -> None:
        self._reader.refusal = None
        self._closing = True
        answer = error_response(error)
        self.write(answer.head(close=True) + answer.body)
        self.deadline = self.house.now + LINGER
        self._outbox.end()

    def hang_up(self) -> None:
        """
        Close, once the client has taken what was written; it has as much time for that as for a
        request.
        """
        if self._closing:
            return
        self._closing = True
        self._reader.calls.clear()
        self._reader.silence()
        self._backlog.clear()
        self._listen_or_not()
        self.deadline = self.house.now + self.house.request_timeout
        self._outbox.flush()
        self.transport.loseConnection()

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request."""
        return not (
            self._busy or self._reader.deaf or self._reader.calls or self._reader.call is not None
        )

    def expired(self) -> None:
        """The deadline has passed."""
        before, self._progress = self._progress, progress(self.transport)
        if self._progress is not None and self._progress != before:
            # It is slow to take an answer, and a reset would destroy what is on its way.
            self.deadline = self.house.now + self.house.request_timeout
        elif self._reader.deaf:
            self.transport.abortConnection()
        elif self._reader.call is not None and not self._full:
            self.refuse(TooSlow())
            self._go_on()
        else:
            self.hang_up()

    def detach(self, protocol: Any) -> Detached:
        """
        The connection is a stream from now on, and `protocol` has it.

        @return: the transport; its send_buffer, which may still have something of ours; what the
        client has said already.
        """
        self._let_go()
        self.gone = None
        rest = bytes(self._backlog)
        self._backlog.clear()
        self._listen_or_not()
        transport, self.transport = self.transport, None
        replace_protocol(transport, protocol)
        return Detached(transport, self._outbox, rest)
