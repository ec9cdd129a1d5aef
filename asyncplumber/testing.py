"""
Fakes that are shipped: a subscriber that remembers, and a whole server in memory.  For our tests,
and for those of applications.

    server = MemoryServer() client = server.connect() client.say(b"GET /events/42
    HTTP/1.1\\r\\nHost: localhost\\r\\nAccept: text/event-stream\\r\\n\\r\\n") server.post("42",
    b'"done"') assert b'"data":"done"' in client.heard()

Nothing here opens a socket or waits: time is a clock that a test sets forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import ITransport
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from asyncplumber.errors import PlumberError
from asyncplumber.event import Cursor, Event, Position
from asyncplumber.http.listener import Listener
from asyncplumber.interfaces import PAGE_BYTES, IStore, ISubscriber
from asyncplumber.plumber import Plumber
from asyncplumber.server.service import Server
from asyncplumber.transports.connected_clients import ConnectedClients
from asyncplumber.wire.delivery import Delivery

NOW = 1_800_000_000.0  # seconds since 1970: the time at which a `MemoryServer` begins


@implementer(ISubscriber)
class RecordingSubscriber:
    """
    Remembers what it is told.  While `slow` is set, it has no room for a further page of a replay.
    """

    page_size = PAGE_BYTES

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stand: Cursor | None = None
        self.gaps: list[tuple[Cursor, Position]] = []
        self.ended: list[PlumberError | None] = []
        self.slow: Deferred[None] | None = None

    def opened(self, cursor: Cursor) -> None:
        self.stand = cursor

    def deliver(self, batch: Delivery) -> None:
        self.events.extend(batch.events)

    def caught_up(self) -> None:
        """It goes on as before."""

    def missed(self, cursor: Cursor, position: Position) -> None:
        self.gaps.append((cursor, position))

    def drained(self) -> Deferred[None]:
        return self.slow if self.slow is not None else succeed(None)

    def end(self, error: PlumberError | None) -> None:
        self.ended.append(error)


class Reply(NamedTuple):
    """An HTTP response, with its header names in lower case."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


def replies(data: bytes, bodies: bool = True) -> list[Reply]:
    """
    The responses in `data`, each with a Content-Length.  Raises ValueError if the last one is not
    whole.

    `bodies` is false where HEAD was asked, and so the length is that of a body which does not come.
    """
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        headers: dict[bytes, bytes] = {}
        for line in lines:
            name, _, value = line.partition(b": ")
            headers[name.lower()] = (
                value if name.lower() not in headers else headers[name.lower()] + b", " + value
            )
        length = int(headers.get(b"content-length", b"0")) if bodies else 0
        if not first.startswith(b"HTTP/1.1 ") or len(data) < length:
            raise ValueError(f"{head!r} is not a whole response")
        found.append(Reply(int(first.split()[1]), headers, data[:length]))
        data = data[length:]
    return found


@implementer(ITransport)
class MemoryClient(StringTransport):
    """
    The client's end of a connection to a `MemoryServer`, and the server's transport as well.

    While `reading` is false it takes nothing, and the server's transport is full.
    """

    def __init__(self, server: MemoryServer, protocol: Any) -> None:
        here = IPv4Address("TCP", "127.0.0.1", 8080)
        super().__init__(hostAddress=here, peerAddress=IPv4Address("TCP", "127.0.0.1", 50000))
        self.protocol = protocol
        self.reading = True
        self.ended: type[Exception] | None = None  # how the connection ended, once it has
        self._server = server
        self._told = 0

    def say(self, data: bytes) -> None:
        """Send bytes, and let the server answer; if it has hung up, nobody hears them."""
        if self.ended is None:
            self.protocol.dataReceived(data)
        self._server.settle()

    def heard(self) -> bytes:
        """What the server has sent since the last time this was asked."""
        value: bytes = self.value()
        data, self._told = value[self._told :], len(value)
        return data

    def leave(self) -> None:
        """Close the client's end."""
        self._end(ConnectionDone)

    def read(self) -> None:
        """Take what was sent, and whatever is sent from now on."""
        self.reading = True
        if self.producer is not None:
            self.producer.resumeProducing()
        if self.disconnecting:
            self._server.clock.callLater(0, self._end, ConnectionDone)
        self._server.settle()

    def _end(self, how: type[Exception]) -> None:
        if self.ended is None:
            self.ended = how
            self.protocol.connectionLost(Failure(how()))

    # The server's side

    def write(self, data: bytes) -> None:
        if self.ended is None and not self.disconnecting:
            super().write(data)
            if not self.reading and self.producer is not None:
                self.producer.pauseProducing()

    def loseConnection(self) -> None:
        super().loseConnection()
        if self.reading:
            self._server.clock.callLater(0, self._end, ConnectionDone)

    def abortConnection(self) -> None:
        self.disconnecting = True
        self._server.clock.callLater(0, self._end, ConnectionAborted)


class MemoryServer:
    """
    The server that ``twistd asyncplumber`` starts, without a network.  It is running from the
    beginning.
    """

    def __init__(
        self,
        *,
        store: str | IStore | Callable[[Any], IStore] = "memory:",
        body_limit: int = 1024 * 1024,
        plumber: Any = None,
        **limits: Any,
    ) -> None:
        """
        `store` is a URI, or a store, or what makes one when it is called with the server's clock.

        `limits` are those of `Listener`, `plumber` a dict of further arguments for `Plumber`.
        """
        self.clock = MemoryReactorClock()
        self.clock.rightNow = NOW
        if callable(store):
            store = store(self.clock)
        more = {"reactor": self.clock, "wall": self.clock, **(plumber or {})}
        self.plumber = Plumber(store, "http://127.0.0.1:8080", body_limit=body_limit, **more)
        endpoints = [(serverFromString(self.clock, "tcp:8080"), "a port in memory")]
        self.service = Server(self.plumber, endpoints, self.clock, **limits)
        self.service.privilegedStartService()
        self.service.startService()
        self.listener = cast(Listener, self.clock.tcpServers[0][1])
        self.clients: ConnectedClients = self.plumber.clients
        self.settle()

    def settle(self) -> None:
        """Let the reactor turn until nothing is due."""
        for _ in range(1000):
            if not any(
                call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()
            ):
                return
            self.clock.advance(0)

    def advance(self, seconds: float) -> None:
        """Let time pass, in steps of at most half a second."""
        while seconds > 0:
            self.clock.advance(min(0.5, seconds))
            seconds -= 0.5
        self.settle()

    def connect(self) -> MemoryClient:
        """A client that is connected and has not said anything."""
        protocol = self.listener.buildProtocol(None)
        client = MemoryClient(self, protocol)
        protocol.makeConnection(client)
        return client

    def ask(self, data: bytes, bodies: bool = True) -> list[Reply]:
        """What is answered to these bytes, on a connection of their own."""
        client = self.connect()
        client.say(data)
        heard = client.heard()
        client.leave()
        return replies(heard, bodies)

    def request(
        self, method: str, path: str, headers: Sequence[tuple[str, str]] = (), body: bytes = b""
    ) -> Reply:
        """What is answered to one request; Host and Content-Length need not be said."""
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: localhost",
            *[f"{name}: {value}" for name, value in headers],
        ]
        if body or method == "POST":
            lines.append(f"Content-Length: {len(body)}")
        return self.ask("\r\n".join([*lines, "", ""]).encode("latin-1") + body, method != "HEAD")[
            -1
        ]

    def post(self, account: str, body: bytes, *headers: tuple[str, str]) -> Reply:
        """POST a result to an account, whose name needs no encoding."""
        return self.request("POST", f"/hooks/{account}", headers, body)

    def stop(self) -> Deferred[None]:
        """@return: Deferred that fires when the server has stopped; let time pass until then."""
        stopped = self.service.stopService()
        self.settle()
        return stopped
