"""
What WebSocket and Server-Sent Events clients have in common.

A stream takes over its connection from the HTTP server.  From then on it is the protocol of the
transport, and everything it sends goes through the connection's ``SendBuffer``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple
from typing import Protocol as Interface

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IProtocol, IReactorTime
from zope.interface import implementer

from asyncplumber.core.subscription import Subscribable
from asyncplumber.errors import GrantExpired, GrantRevoked, PlumberError
from asyncplumber.event import Cursor, Position
from asyncplumber.grant import Grant
from asyncplumber.interfaces import ITaskSubscriber
from asyncplumber.transports.closes import ABNORMAL
from asyncplumber.transports.connected_clients import ConnectedClients
from asyncplumber.transports.progress import progress
from asyncplumber.transports.send_buffer import SendBuffer
from asyncplumber.wire.delivery import Delivery
from asyncplumber.wire.envelope import notice

CLOSE_TIMEOUT = 5.0  # seconds in which a closing client must take some bytes, or is cut off


class Detached(NamedTuple):
    """What an HTTP connection hands over to a stream."""

    transport: Any
    send_buffer: SendBuffer  # may still hold bytes of earlier responses
    unread: bytes  # what the client has sent after its request
    hold: Hold | None = None  # what the connection counts as until it is closed


class Hold(Interface):
    """What a connection counts as, for limits."""

    def release(self) -> None:
        """Count it no more.  Harmless if it was released before."""


class Visit(Hold, Interface):
    """What a subscriber counts as, for limits."""

    def replayed(self, size: int) -> None:
        """Count so many bytes that were read from the history for it."""

    def check_post(self, grant: Grant, size: int) -> None:
        """Count what it sends as a POST of so many bytes.  Raises `TooManyRequests`."""


class StreamConnection(Interface):
    """What a stream needs of the HTTP connection that it takes over."""

    def detach(self, protocol: IProtocol) -> Detached:
        """Make ``protocol`` the transport's protocol, and let go of the connection."""


class SlowReader(PlumberError):
    """Too many bytes are queued for this client.  It may reconnect and resume from its cursor."""

    status, code, default = (
        503,
        "slow-reader",
        "too much was waiting for you; come back with your cursor",
    )


@implementer(IProtocol, ITaskSubscriber)
class Stream(ABC):
    """
    A connected client that is sent events until one side closes.

    There is one per connection, often ten thousands of them, so it has few attributes.
    """

    __slots__ = (
        "_clients",
        "_clock",
        "_close_timer",
        "_group",
        "_hold",
        "_subscription",
        "expires",
        "grant",
        "send_buffer",
        "transport",
        "visit",
    )

    left_code = ABNORMAL  # of a client that ends the connection without a word

    def __init__(
        self, channel: Subscribable, clients: ConnectedClients, clock: IReactorTime, grant: Grant
    ) -> None:
        self._subscription = channel.subscribe(self)
        self._clients = clients
        self._clock = clock
        self.grant = grant
        #: What it counts as, for limits; None where it has none.
        self.visit: Visit | None = None
        self._hold: Hold | None = None
        #: When it ends; see `Deadlines`.
        self.expires: int | None = None
        self._group = clients.add(self)
        clients.deadlines.add(self)
        # Runs from the close on, and cuts off a client that stays.
        self._close_timer: IDelayedCall | None = None
        self.transport: Any = None
        self.send_buffer: SendBuffer = None  # type: ignore[assignment]  # there from `begin` on

    @property
    def account(self) -> str:
        """The account whose events it is sent."""
        return self._subscription.account

    @property
    def page_size(self) -> int:
        """Bytes of a replay that may be queued for it."""
        return self.send_buffer.limit

    def begin(
        self, connection: StreamConnection, head: bytes, limit: int, after: Cursor | str | None
    ) -> None:
        """
        Take over the connection, send the response ``head``, and subscribe.

        Args:
            connection: The HTTP connection whose request is answered by this stream.
            head: Status line and headers of the response.
            limit: Bytes that may be queued for the client; see ``SendBuffer``.
            after: Where the client resumes; None for live events only.
        """
        try:
            self.transport, self.send_buffer, unread, self._hold = connection.detach(self)
        except Exception:
            self._subscription.cancel()
            self._forget()
            raise
        self._clients.reads.watch(self.transport)
        self.send_buffer.rebind(self._overflow, limit)
        # The first event about the stream nearly always follows at once: one write for both.
        with self.send_buffer.corked():
            self._open(head, after)
        if unread:
            self.dataReceived(unread)

    def _open(self, head: bytes, after: Cursor | str | None) -> None:
        self.send_buffer.write(head)
        self._subscription.start(after)

    # IProtocol

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport

    def connectionMade(self) -> None:  # noqa: B027
        """Do nothing: the connection was made before the stream took it over."""

    @abstractmethod
    def dataReceived(self, data: bytes) -> None:
        """Take what the client sends."""

    def connectionLost(self, reason: Any) -> None:
        if not self.is_closing:
            has_left = reason.check(ConnectionDone) is not None
            self._clients.closes.note(self.left_code if has_left else ABNORMAL)
        self._subscription.cancel()
        self._forget()
        self.send_buffer.forget()
        if self._close_timer is not None and self._close_timer.active():
            self._close_timer.cancel()

    def _forget(self) -> None:
        self._clients.discard(self, self._group)
        self._clients.deadlines.discard(self)
        for hold in (self._hold, self.visit):
            if hold is not None:
                hold.release()

    # ISubscriber: what differs between transports is abstract

    @abstractmethod
    def deliver(self, batch: Delivery) -> None: ...

    @abstractmethod
    def opened(self, cursor: Cursor) -> None: ...

    @abstractmethod
    def missed(self, cursor: Cursor, position: Position) -> None: ...

    @abstractmethod
    def notify(self, type: str, envelope: bytes) -> None: ...

    @abstractmethod
    def ping(self) -> None:
        """Send a heartbeat; cut off a client that has shown no sign of life for too long."""

    @abstractmethod
    def close_going_away(self, reconnect_after: float) -> None:
        """Tell the client to come back after so many seconds, and close."""

    @abstractmethod
    def end(self, error: PlumberError | None) -> None:
        """Close, and tell the client why if the transport has a way to."""

    def replayed(self, size: int) -> None:
        if self.visit is not None:
            self.visit.replayed(size)

    def caught_up(self) -> None:  # noqa: B027
        """Do nothing: a stream treats replayed and live events alike."""

    def await_notice(self) -> None:  # noqa: B027
        """Do nothing: a stream has no end that could come too soon."""

    def drained(self) -> Deferred[None]:
        return self.send_buffer.drained()

    def open_notice(self, cursor: Cursor) -> bytes:
        """Return the envelope of ``plumber.open``, which says how long the grant lasts."""
        left = self._clients.deadlines.expires_in(self.grant)
        data = {} if left is None else {"expires_in": int(left)}
        return notice("plumber.open", self.account, cursor, **data)

    def end_if(self, matches: Callable[[Grant, str], bool], error: PlumberError) -> bool:
        """End with this error if its grant and account match; return whether they do."""
        matched = not self.is_closing and matches(self.grant, self.account)
        if matched:
            self.end(error)
        return matched

    def bye_notice(self, error: PlumberError) -> bytes | None:
        """Return the envelope that tells why a grant has ended; None for other errors."""
        if not isinstance(error, GrantExpired | GrantRevoked):
            return None
        return notice("plumber.bye", self.account, None, reason=error.code, reconnect_after=0)

    def _overflow(self) -> None:
        if not self.is_closing:
            closes = self._clients.closes
            closes.slow_reader(self.account, self.send_buffer.limit, self.transport)
        self.end(SlowReader())

    def abort(self) -> None:
        """Close the connection at once, and drop what is queued."""
        self.transport.abortConnection()

    @property
    def is_closing(self) -> bool:
        """Whether everything that this stream will ever send has been written."""
        return self._close_timer is not None

    def _stop_serving(self) -> None:
        """
        Unsubscribe, and give the client time to take the last bytes and to close.

        A client that takes nothing for ``CLOSE_TIMEOUT`` seconds is cut off.  A slow one is not,
        because a reset would destroy what is on its way.
        """
        self._subscription.cancel()
        if self._close_timer is None:
            self._wait_for_end()

    def _wait_for_end(self) -> None:
        self._close_timer = self._clock.callLater(
            CLOSE_TIMEOUT, self._abort_or_wait, progress(self.transport)
        )

    def _abort_or_wait(self, before: object | None) -> None:
        if progress(self.transport) == before:
            self.abort()
        else:
            self._wait_for_end()

    def _close(self) -> None:
        """Close when the transport has sent what it has; see ``_stop_serving`` for how long."""
        self._stop_serving()
        self.send_buffer.flush()
        self.transport.loseConnection()
