"""The whole server in memory, and clients that talk to it byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import ITransport
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from asyncplumber.http.listener import Listener
from asyncplumber.interfaces import IStore
from asyncplumber.plumber import Plumber
from asyncplumber.server.service import Place, Server
from asyncplumber.transports.connected_clients import ConnectedClients

NOW = 1_800_000_000.0  # seconds since 1970: the time at which a ``MemoryServer`` begins


class ClientResponse(NamedTuple):
    """An HTTP response as a client reads it; header names are in lower case."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


def parse_responses(data: bytes, has_bodies: bool = True) -> list[ClientResponse]:
    """
    Return the responses in ``data``, each with a Content-Length.

    Args:
        data: What a client received.
        has_bodies: False for responses to HEAD, whose length is that of a body which is not there.

    Raises:
        ValueError: The last response is not complete.
    """
    found = []
    begin = 0  # of the next response
    while begin < len(data):
        end = data.find(b"\r\n\r\n", begin)
        head = data[begin:] if end < 0 else data[begin:end]
        body = len(data) if end < 0 else end + 4
        first, *lines = head.split(b"\r\n")
        headers: dict[bytes, bytes] = {}
        for line in lines:
            name, _, value = line.partition(b": ")
            known = headers.get(name.lower())
            headers[name.lower()] = value if known is None else known + b", " + value
        length = int(headers.get(b"content-length", b"0")) if has_bodies else 0
        begin = body + length
        if not first.startswith(b"HTTP/1.1 ") or len(data) < begin:
            raise ValueError(f"{head!r} is not a complete response")
        found.append(ClientResponse(int(first.split()[1]), headers, data[body:begin]))
    return found


@implementer(ITransport)
class MemoryClient(StringTransport):
    """
    The client's end of a connection to a ``MemoryServer``.  It is the server's transport as well.

    Attributes:
        protocol: The server's protocol.
        reading: Whether the client takes what the server writes.  If not, the transport is full.
        ended: How the connection ended; None while it is open.
    """

    def __init__(self, server: MemoryServer, protocol: Any) -> None:
        here = IPv4Address("TCP", "127.0.0.1", 8080)
        super().__init__(hostAddress=here, peerAddress=server.client_address)
        self.protocol = protocol
        self.reading = True
        self.ended: type[Exception] | None = None
        self._server = server
        self._taken = 0

    def send(self, data: bytes) -> None:
        """Send bytes, and let the server work on them.  Lost if the connection has ended."""
        if self.ended is None:
            self.protocol.dataReceived(data)
        self._server.settle()

    def received(self) -> bytes:
        """Return what the server has sent since the last call."""
        value: bytes = self.value()
        data, self._taken = value[self._taken :], len(value)
        return data

    def disconnect(self) -> None:
        """Close the connection."""
        self._end(ConnectionDone)

    def resume_reading(self) -> None:
        """Take what is waiting, and all that comes from now on."""
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
    The server that ``twistd asyncplumber`` starts, without a network.  It runs already.

    Args:
        store: A URI, a store, or a function that makes one from the server's clock.
        clock: The reactor to run on, if several servers share one.
        body_limit: The most bytes in the body of a POST.
        plumber: Further arguments for ``asyncplumber.Plumber``.
        limits: Further limits, those of the listener.

    Attributes:
        clock: The reactor and its clock.
        plumber: The ``asyncplumber.Plumber`` that is served.
        service: The service that listens.
        client_address: The address from which clients connect.
    """

    def __init__(
        self,
        *,
        store: str | IStore | Callable[[Any], IStore] = "memory:",
        clock: MemoryReactorClock | None = None,
        body_limit: int = 1024 * 1024,
        plumber: Mapping[str, Any] | None = None,
        **limits: Any,
    ) -> None:
        """Make the server, and start it."""
        if clock is None:
            clock = MemoryReactorClock()
            clock.rightNow = NOW
        self.clock = clock
        self.client_address = IPv4Address("TCP", "127.0.0.1", 50000)
        if callable(store):
            store = store(self.clock)
        options = {"reactor": self.clock, "wall": self.clock, **(plumber or {})}
        self.plumber = Plumber(store, "http://127.0.0.1:8080", body_limit=body_limit, **options)
        places = [Place(serverFromString(self.clock, "tcp:8080"), "a port in memory")]
        self.service = Server(self.plumber, places, self.clock, **limits)
        self.service.privilegedStartService()
        self.service.startService()
        self.listener = cast(Listener, self.clock.tcpServers[-1][1])
        self.clients: ConnectedClients = self.plumber.front.clients
        self.settle()

    def settle(self) -> None:
        """Let the reactor turn until nothing is due.  No time passes."""
        for _ in range(1000):
            now = self.clock.seconds()
            if not any(call.getTime() <= now for call in self.clock.getDelayedCalls()):
                return
            self.clock.advance(0)

    def advance(self, seconds: float) -> None:
        """Let time pass, in steps of at most half a second."""
        while seconds > 0:
            self.clock.advance(min(0.5, seconds))
            seconds -= 0.5
        self.settle()

    def connect(self) -> MemoryClient:
        """Return a client that is connected, and has sent nothing yet."""
        protocol: Any = self.listener.buildProtocol(self.client_address)
        client = MemoryClient(self, protocol)
        protocol.makeConnection(client)
        return client

    def exchange(self, data: bytes, has_bodies: bool = True) -> list[ClientResponse]:
        """Send bytes on a new connection, and return the responses."""
        client = self.connect()
        client.send(data)
        received = client.received()
        client.disconnect()
        return parse_responses(received, has_bodies)

    def request(
        self, method: str, path: str, headers: Sequence[tuple[str, str]] = (), body: bytes = b""
    ) -> ClientResponse:
        """Send one request, and return its response.  Host and Content-Length are added."""
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: localhost",
            *[f"{name}: {value}" for name, value in headers],
        ]
        if body or method == "POST":
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        return self.exchange(head + body, method != "HEAD")[-1]

    def post(self, account: str, body: bytes, *headers: tuple[str, str]) -> ClientResponse:
        """POST an event to an account whose name needs no encoding."""
        return self.request("POST", f"/hooks/{account}", headers, body)

    def stop(self) -> Deferred[None]:
        """
        Stop the server.

        Returns:
            A Deferred that fires when it has stopped.  ``advance`` until then.
        """
        stopped = self.service.stopService()
        self.settle()
        return stopped
