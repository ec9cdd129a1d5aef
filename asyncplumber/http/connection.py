"""
One HTTP/1.1 connection: its requests are answered one by one, in order and in time.

Nothing here knows what a request means: its server does.  `connection_state` has the states.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from asyncplumber._twisted_compat import replace_protocol
from asyncplumber.errors import IllegalTransition, PlumberError, TooSlow
from asyncplumber.http.arrival import Arrival
from asyncplumber.http.connection_state import (
    ANSWERING,
    BLOCKED,
    CLOSING,
    DETACHED,
    LINGERING,
    LOST,
    READING,
    TRANSITIONS,
    State,
)
from asyncplumber.http.reader import Reader, ReaderLimits
from asyncplumber.http.request import Request
from asyncplumber.http.request_log import RequestLog
from asyncplumber.http.responses import Response, error_response
from asyncplumber.http.timeouts import Timeouts, body_deadline, input_deadline
from asyncplumber.transports.progress import progress
from asyncplumber.transports.send_buffer import SendBuffer, send_buffer_for
from asyncplumber.transports.stream import Detached

MAX_BACKLOG = 64 * 1024  # bytes that are read ahead while a request is being answered
# Seconds that a refused client may go on sending.  To close with bytes unread would reset the
# connection, and destroy the response.
LINGER = 2.0


class HttpServer(ReaderLimits, Timeouts, Protocol):
    """What a connection needs of the server that it belongs to."""

    stopping: bool  # each connection is closed after its next response
    connections: set[Connection]
    requests: RequestLog

    def address_of(self, request: Request | None, connection: Any) -> str:
        """Return the address of the client, which may be behind a proxy."""

    def handle(self, connection: Connection, request: Request) -> None:
        """Respond to this request, now or later, by ``connection``."""

    def check_head(self, request: Request, connection: Connection) -> PlumberError | None:
        """Return the error that a request is refused with, when its head is there."""

    def readable(self, request: Request, response: Response) -> Response:
        """Return a response that the page which sent the request can read."""


@implementer(IProtocol, IHalfCloseableProtocol)
class Connection:
    """A connection to an HTTP client."""

    __slots__ = (
        "_backlog",
        "_dispatching",
        "_paused",
        "_progress",
        "_reader",
        "_send_buffer",
        "_server",
        "_state",
        "arrival",
        "awaits_events",
        "deadline",
        "input_ended",
        "on_disconnect",
        "request",
        "transport",
    )
    can_detach = True  # a stream can have the transport

    def __init__(self, server: HttpServer, arrival: Arrival) -> None:
        self._server = server
        self.arrival = arrival
        self._state = READING
        self.transport: Any = None
        #: The clock's seconds at which `expired` is called; None while a response is our task.
        self.deadline: float | None = server.now + server.idle_timeout
        #: The request that is being answered.
        self.request: Request | None = None
        #: Called once if the client disconnects before its response is written.
        self.on_disconnect: Callable[[Failure], object] | None = None
        self.awaits_events = False  # the response waits for an event; see `readConnectionLost`
        self.input_ended = False  # the client will send no more
        self._reader = Reader(server, lambda request: server.check_head(request, self))
        self._backlog = bytearray()  # received, and not parsed yet
        self._dispatching = False  # `_dispatch` is running, and must not run inside itself
        self._paused = False  # the transport does not read
        self._progress: object | None = None  # of the client, when the deadline last passed
        # there from `makeConnection` on
        self._send_buffer: SendBuffer = None  # type: ignore[assignment]

    @property
    def state(self) -> State:
        """What the connection is doing."""
        return self._state

    def _enter(self, state: State) -> None:
        if state not in TRANSITIONS[self._state]:
            raise IllegalTransition("an HTTP connection", self._state, state)
        self._state = state

    # IProtocol, IHalfCloseableProtocol

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport
        self._server.connections.add(self)
        with suppress(AttributeError, OSError):  # a UNIX socket, or a transport in memory
            transport.setTcpNoDelay(True)
        self._send_buffer = send_buffer_for(transport, transport.abortConnection)

    def connectionMade(self) -> None:
        """Do nothing: `makeConnection` has done it."""

    def connectionLost(self, reason: Failure) -> None:
        self._enter(LOST)
        self._server.connections.discard(self)
        self._reader.discard()
        try:
            # First, so that a producer is stopped before the buffer says that there is room.
            self._notify_disconnect(reason)
        finally:
            self._send_buffer.forget()
            if self.arrival.hold is not None:
                self.arrival.hold.release()

    def readConnectionLost(self) -> None:
        """
        Take note that the client will send no more (``shutdown``).

        The requests that it has sent are still answered.  A client that has disconnected looks
        the same, however.  So a client whose response waits for an event is treated as
        disconnected: otherwise dead clients would be counted as subscribers.
        """
        self.input_ended = True
        state = self._state
        if state is LINGERING:
            self._enter(CLOSING)
            self.transport.loseConnection()  # both directions have ended
        elif state is CLOSING:
            self.transport.loseConnection()
        elif self.awaits_events:
            # Without a reset: the response to an earlier request may be on its way.
            self.hang_up()
        elif state is READING:
            self._dispatch()

    def writeConnectionLost(self) -> None:
        """Do nothing: we have ended our direction ourselves."""

    def _notify_disconnect(self, reason: Failure) -> None:
        notify, self.on_disconnect = self.on_disconnect, None
        if notify is not None:
            notify(reason)

    # Reading

    def dataReceived(self, data: bytes) -> None:
        if self._state is READING:
            self._parse(data)
            self._dispatch()
        elif not self._reader.closed:
            self._backlog += data
            self._pause_or_resume()

    def _parse(self, data: bytes) -> None:
        reader = self._reader
        rest = reader.feed(data)
        if rest:
            self._backlog += rest
        if reader.request_started:
            reader.request_started = False
            self.deadline = self._server.now + self._server.head_timeout
        request = reader.request
        if request is not None and request.head_complete and request.awaited_since is None:
            self.deadline = input_deadline(self._server, request)
        if reader.closed:
            self._drop_backlog()

    def _drop_backlog(self) -> None:
        self._backlog.clear()
        self._pause_or_resume()

    def _pause_or_resume(self) -> None:
        """
        Pause reading while the backlog is full or the client does not read.

        After a refusal keep reading, so that the response is not lost to a reset.
        """
        paused = not self._reader.closed and (
            self._state is BLOCKED or len(self._backlog) > MAX_BACKLOG
        )
        if paused is not self._paused:
            self._paused = paused
            self.transport.pauseProducing() if paused else self.transport.resumeProducing()

    def _dispatch(self) -> None:
        """Have the requests answered in order, until one takes its time or all are done."""
        if self._dispatching:
            return  # by the loop below, which called what called this
        self._dispatching = True
        reader = self._reader
        try:
            while self._state is READING:
                if reader.requests:
                    self._enter(ANSWERING)
                    self.deadline = None
                    request = self.request = reader.requests.popleft()
                    self._server.handle(self, request)
                elif reader.refusal is not None:
                    self._send_refusal(reader.refusal)
                elif reader.wants_continue:
                    reader.wants_continue = False
                    self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    if not self._send_buffer.ready:
                        self._block()
                elif self._backlog:
                    data = bytes(self._backlog)
                    self._drop_backlog()
                    self._parse(data)
                elif self.input_ended:
                    self.hang_up()
                else:
                    break
        finally:
            self._dispatching = False

    # Responding

    def respond(self, response: Response) -> None:
        """
        Write the response to `request`, and go on to the next one.

        Does nothing if the client has disconnected.
        """
        state, request = self._state, self.request
        if state is not ANSWERING or request is None:
            if state < LINGERING:
                raise RuntimeError("a request has one response")
            return
        if response.error is not None or self._server.requests.every:
            self.note(request, response.status, len(response.body), response.error)
        close = not request.keep_alive or self._server.stopping
        head = response.head(close=close)
        self._send_buffer.write(head if request.method == b"HEAD" else head + response.body)
        self.response_written(close)

    def note(
        self, request: Request | None, status: int, size: int, error: PlumberError | None = None
    ) -> None:
        """Count and log a response; `RequestLog.answered` has the arguments."""
        client = self._server.address_of(request, self.transport)
        self._server.requests.answered(request, status, size, error, client)

    def write(self, data: bytes) -> None:
        """Send a piece of a response."""
        self._send_buffer.write(data)
        if self._state is ANSWERING and not self._send_buffer.ready:
            # The client has to take this before the response can go on.
            self.deadline = self._server.now + self._server.request_timeout

    def drained(self) -> Deferred[None]:
        """Return a Deferred that fires when nothing is queued, or the client disconnects."""
        return self._send_buffer.drained()

    def response_written(self, close: bool) -> None:
        """Go on after a response that was sent in pieces; ``close`` ends the connection."""
        if self._state is not ANSWERING:
            return
        self.request = self.on_disconnect = None
        self.awaits_events = False
        reader = self._reader
        if reader.counted_bytes:
            reader.recount()
        if close:
            self.hang_up()
            return
        self.deadline = input_deadline(self._server, reader.request)
        if self._send_buffer.ready:
            self._enter(READING)
        else:
            self._block()
        if (
            reader.requests
            or self._backlog
            or reader.refusal is not None
            or reader.wants_continue
            or self.input_ended
        ):
            self._dispatch()

    def _block(self) -> None:
        """Read nothing until the client has taken its responses."""
        self._enter(BLOCKED)
        self._pause_or_resume()
        self._send_buffer.drained().addCallback(self._unblock)

    def _unblock(self, _: None) -> None:
        if self._state is BLOCKED:
            self._enter(READING)
            self._pause_or_resume()
            self._dispatch()

    # Ending

    def _send_refusal(self, error: PlumberError) -> None:
        request = self._reader.refused
        self._reader.refusal = self._reader.refused = None
        self._enter(LINGERING)
        response = error_response(error)
        if request is not None:
            response = self._server.readable(request, response)
        self.note(request, response.status, len(response.body), error)
        self._send_buffer.write(response.head(close=True) + response.body)
        self.deadline = self._server.now + LINGER
        self._send_buffer.end()

    def hang_up(self) -> None:
        """
        Close when the client has taken what is written.

        It has `HttpServer.request_timeout` seconds for that.  A request that is being answered
        gets no response.
        """
        if self._state >= LINGERING:
            return
        self._enter(CLOSING)
        self._reader.close()
        self._reader.discard()
        self._drop_backlog()
        self.deadline = self._server.now + self._server.request_timeout
        self._notify_disconnect(Failure(ConnectionDone()))
        self._send_buffer.flush()
        self.transport.loseConnection()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being read or answered."""
        reader = self._reader
        return self._state in (READING, BLOCKED) and not (
            reader.closed or reader.requests or reader.request is not None
        )

    def expired(self) -> None:
        """End what has taken too long: the deadline has passed."""
        before, self._progress = self._progress, progress(self.transport)
        state = self._state
        if self._progress is not None and self._progress != before:
            # The client is slow to take a response; a reset would destroy what is on its way.
            self.deadline = self._server.now + self._server.request_timeout
        elif state is ANSWERING and self._send_buffer.ready:
            self.deadline = None  # it has taken all that there was
        elif state is LINGERING or state is CLOSING:
            self.transport.abortConnection()
        elif state is READING and self._reader.request is not None:
            self.deadline = body_deadline(self._server, self._reader.request)
            if self.deadline <= self._server.now:
                self._reader.refuse(TooSlow())
                self._drop_backlog()
                self._dispatch()
        else:
            self.hang_up()

    def detach(self, protocol: IProtocol) -> Detached:
        """Give the transport to ``protocol``: the response to `request` is a stream."""
        request = self.request
        if request is not None and self._server.requests.every:
            self.note(request, 101 if request.upgrade else 200, 0)
        self._enter(DETACHED)
        self._server.connections.discard(self)
        self._reader.discard()
        self.deadline = self.request = self.on_disconnect = None
        unread = bytes(self._backlog)
        if unread:
            self._drop_backlog()
        transport, self.transport = self.transport, None
        replace_protocol(transport, protocol)
        return Detached(transport, self._send_buffer, unread, self.arrival.hold)
