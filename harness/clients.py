"""Small clients with real connections, for the tests of several instances.

A subscriber knows only what a browser knows: some URLs and its last cursor.  When its connection
ends, it reconnects with that cursor, to the next instance.  Nothing here shares code with the
server.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from harness.frames import CLOSE, PING, PONG, TEXT, client_frame, close_code, handshake_request
from harness.reactor import reactor

if TYPE_CHECKING:
    from harness.ledger import Ledger

# Seconds for a connection and the beginning of a response, before a client tries the next instance.
CONNECT_TIMEOUT = 2.0
RECONNECT_DELAY = 0.05  # seconds before it tries the next one
MAX_RECONNECT_DELAY = 0.3  # seconds, also if the server asks for more: a test has not the time


def sleep(seconds: float) -> Deferred[None]:
    """Let the reactor run for a while."""
    return deferLater(reactor, seconds, lambda: None)


class ConnectionFailed(Exception):
    """The connection could not be made, or ended before the response."""


class HttpResponse:
    """A complete HTTP response."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def read_head(data: bytes) -> tuple[int, dict[str, str], bytes] | None:
    """Return status, headers and the bytes after the head; None while the head is incomplete."""
    head, blank, rest = data.partition(b"\r\n\r\n")
    if not blank:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    return int(first.split(" ")[1]), headers, rest


class HttpConnection(Protocol):
    """A connection for one HTTP request after the other."""

    transport: Any

    def __init__(self) -> None:
        self._data = b""
        self._response: Deferred[HttpResponse] | None = None
        self.lost = False

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout: float = 15.0,
        withhold: int = 0,
    ) -> Deferred[HttpResponse]:
        """Send a request.

        Args:
            method: The method.
            path: The target.
            body: The body.
            headers: More headers than Host and Content-Length.
            timeout: Seconds until the connection is aborted.
            withhold: The number of bytes at the end of the body that are not sent.

        Returns:
            A Deferred of the response.  Fails with ``ConnectionFailed``.
        """
        assert self._response is None, "one request at a time"
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        response = self._response = Deferred()
        if self.lost:
            self._finish(ConnectionFailed("the connection is closed"))
            return response
        timer = reactor.callLater(timeout, self.transport.abortConnection)
        head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        self.transport.write(head + body[: len(body) - withhold])

        def cancel(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            return result

        return response.addBoth(cancel)

    def _finish(self, result: HttpResponse | Exception) -> None:
        response, self._response = self._response, None
        if response is not None:
            if isinstance(result, Exception):
                response.errback(result)
            else:
                response.callback(result)

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        parsed = read_head(self._data)
        if parsed is None:
            return
        status, headers, rest = parsed
        length = int(headers["content-length"])
        if len(rest) >= length:
            self._data = rest[length:]
            if headers.get("connection") == "close":
                self.close()
            self._finish(HttpResponse(status, headers, rest[:length]))

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True
        self._finish(ConnectionFailed("the connection was lost"))

    def close(self) -> None:
        self.lost = True
        self.transport.loseConnection()


async def connect(port: int, protocol: Protocol) -> Any:
    """Connect to a port of this machine, and return the protocol.

    Raises:
        ConnectionFailed: It could not connect in time.
    """
    factory = Factory.forProtocol(lambda: protocol)
    factory.noisy = False
    endpoint = HostnameEndpoint(reactor, "127.0.0.1", port, timeout=CONNECT_TIMEOUT)
    try:
        return await endpoint.connect(factory)
    except Exception as error:
        raise ConnectionFailed(str(error)) from error


async def fetch(
    port: int, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> HttpResponse:
    """Send one request on a connection of its own, and return the response."""
    connection = await connect(port, HttpConnection())
    try:
        return await connection.request(method, path, body, headers)
    finally:
        connection.transport.abortConnection()


class Subscriber:
    """Stays connected to one of some instances, and records everything."""

    transport_name: ClassVar[str]

    def __init__(self, ledger: Ledger, ports: Sequence[int], account: str, after: str = "") -> None:
        """Join the ledger; ``after`` is a cursor, "earliest", or empty for new events only."""
        ledger.subscribers.append(self)
        self._ledger = ledger
        self._ports = list(ports)
        self._opened: Deferred[Subscriber] | None = Deferred()
        self._done: Deferred[None] = succeed(None)
        self.connection: Any = None  # the transport of the moment
        self.account = account
        self.cursor = after
        self.start: int | None = None  # the number at which it began
        self.events: list[tuple[int, str]] = []  # number and ID of each
        self.ephemeral: list[Any] = []  # the data of events that have no cursor
        self.problems: list[str] = []
        self.closes: list[int] = []  # the code of each close; 0 where the connection just ended
        self.aborted = 0  # requests that ended before their response
        self.byes = 0
        self.bye_delay = 0.0  # seconds that the last plumber.bye asked for
        self.connections = 0
        self.running = False
        self._reconnect_delay = 0.0

    def __repr__(self) -> str:
        return f"{self.transport_name} subscriber of {self.account}"

    @property
    def port(self) -> int:
        """The port of the instance that it is connected to, or tries next."""
        return self._ports[0]

    def begin(self) -> Deferred[Subscriber]:
        """Connect.  The Deferred fires when the server has told the first cursor."""
        self.running = True
        self._done = Deferred.fromCoroutine(self._run()).addErrback(
            lambda failure: self.problems.append(failure.getTraceback())
        )
        assert self._opened is not None
        return self._opened

    def end(self) -> Deferred[None]:
        """Disconnect for good.  The Deferred fires when that is done."""
        self.running = False
        self.disconnect()
        return self._done

    def disconnect(self) -> None:
        """Lose the connection, and reconnect."""
        if self.connection is not None:
            self.connection.abortConnection()

    async def _run(self) -> None:
        while self.running:
            self._reconnect_delay = RECONNECT_DELAY
            with suppress(ConnectionFailed):
                await self._stay()
            if self.running:
                self._ports.append(self._ports.pop(0))
                await sleep(min(self._reconnect_delay, MAX_RECONNECT_DELAY))

    async def _stay(self) -> None:
        """Connect, and return when the connection has ended.

        Raises:
            ConnectionFailed: It could not connect.
        """
        raise NotImplementedError

    def _open_at(self, cursor: str) -> None:
        """Take the position that the server has told."""
        if self.cursor and self.cursor != "earliest" and self.cursor != cursor:
            self.problems.append(f"resumed after {self.cursor} and was put at {cursor}")
        self.cursor = cursor
        if self.start is None:
            self.start = int(cursor.partition(".")[2])
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.callback(self)

    def _receive(self, envelope: dict[str, Any]) -> None:
        type, cursor = envelope["type"], envelope["cursor"]
        if type == "plumber.open":
            self._open_at(cursor)
        elif type == "plumber.bye":
            self.byes += 1
            self._reconnect_delay = self.bye_delay = envelope["data"]["reconnect_after"]
        elif type.startswith("plumber."):
            self.problems.append(json.dumps(envelope))
        elif cursor is None:
            self.ephemeral.append(envelope.get("data"))
        else:
            epoch, _, seq = self.cursor.partition(".")
            if cursor != f"{epoch}.{int(seq) + 1}":
                self.problems.append(f"{cursor} came after {self.cursor}")
            self.cursor = cursor
            self.events.append((int(cursor.partition(".")[2]), envelope["id"]))
            self._ledger.delivered(envelope["id"])


class _StreamProtocol(Protocol):
    """A connection whose response does not end."""

    transport: Any

    def __init__(
        self, request: str, opened: Callable[[int], bool], read: Callable[[bytes], bytes]
    ) -> None:
        """Prepare the request.

        Args:
            request: What is sent.
            opened: Called with the status; returns whether the stream is open.
            read: Called with the bytes that came; returns those that are not yet complete.
        """
        self._request = request
        self._opened = opened
        self._read = read
        self._data = b""
        self._is_open = False
        self.ended: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self._timer = reactor.callLater(CONNECT_TIMEOUT, self.transport.abortConnection)
        self.transport.write(self._request.encode())

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if not self._is_open:
            parsed = read_head(self._data)
            if parsed is None:
                return
            self._timer.cancel()
            status, _, self._data = parsed
            self._is_open = self._opened(status)
            if not self._is_open:
                self.transport.abortConnection()
                return
        self._data = self._read(self._data)

    def connectionLost(self, reason: Any = None) -> None:
        if self._timer.active():
            self._timer.cancel()
        self.ended.callback(None)


class _StreamSubscriber(Subscriber):
    """What WebSocket and Server-Sent Events have in common."""

    status: ClassVar[int]

    def _request(self, path: str) -> str:
        """Return the request that opens the stream."""
        raise NotImplementedError

    def _read(self, data: bytes) -> bytes:
        """Receive the complete messages, and return the rest."""
        raise NotImplementedError

    def _responded(self, status: int) -> bool:
        self.connections += status == self.status
        return status == self.status

    async def _stay(self) -> None:
        query = f"?after={self.cursor}" if self.cursor else ""
        request = self._request(f"/events/{self.account}{query}")
        codes = len(self.closes)
        stream = await connect(self.port, _StreamProtocol(request, self._responded, self._read))
        self.connection = stream.transport
        if not self.running:
            self.connection.abortConnection()
        await stream.ended
        self.connection = None
        if len(self.closes) == codes:
            self.closes.append(0)


class WebSocket(_StreamSubscriber):
    """RFC 6455, as much as a subscriber needs."""

    transport_name = "WebSocket"
    status = 101
    answers_close = True

    def _request(self, path: str) -> str:
        return handshake_request(path).decode()

    def _read(self, data: bytes) -> bytes:
        at = 0
        while len(data) - at >= 2:
            opcode, size, start = data[at] & 15, data[at + 1] & 127, at + 2
            if size > 125:
                start += 2 if size == 126 else 8
                if len(data) < start:
                    break
                size = int.from_bytes(data[at + 2 : start], "big")
            if len(data) < start + size:
                break
            self._frame_received(opcode, data[start : start + size])
            at = start + size
        return data[at:]

    def _frame_received(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT:
            self._receive(json.loads(payload))
        elif opcode == PING:
            self.connection.write(client_frame(payload, PONG))
        elif opcode == CLOSE:
            self.closes.append(close_code(payload))
            if self.answers_close:
                self.connection.write(client_frame(payload[:2], CLOSE))
                self.connection.loseConnection()


class EventSource(_StreamSubscriber):
    """Server-Sent Events."""

    transport_name = "SSE"
    status = 200

    def _request(self, path: str) -> str:
        lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Accept: text/event-stream"]
        if self.cursor:
            lines.append(f"Last-Event-ID: {self.cursor}")
        return "\r\n".join([*lines, "", ""])

    def _responded(self, status: int) -> bool:
        self._text = b""
        return super()._responded(status)

    def _read(self, data: bytes) -> bytes:
        while b"\r\n" in data:
            head, _, rest = data.partition(b"\r\n")
            size = int(head, 16)
            if len(rest) < size + 2:
                break
            self._text += rest[:size]
            data = rest[size + 2 :]
        *records, self._text = self._text.split(b"\n\n")
        for record in records:
            for line in record.split(b"\n"):
                if line.startswith(b"data: "):
                    self._receive(json.loads(line[6:]))
        return data


class LongPoll(Subscriber):
    """One request after the other."""

    transport_name = "long-poll"

    async def _stay(self) -> None:
        connection = await connect(self.port, HttpConnection())
        self.connection = connection.transport
        try:
            while self.running and not connection.lost and await self._poll(connection):
                pass
        finally:
            self.connection = None
            connection.transport.abortConnection()

    async def _poll(self, connection: HttpConnection) -> bool:
        """Send one request, and return whether the connection can be used again."""
        wait = 5 if self.cursor else 0
        path = f"/events/{self.account}?after={self.cursor}&wait={wait}"
        try:
            response = await connection.request("GET", path, timeout=7.0)
        except ConnectionFailed:
            self.aborted += self.running
            raise
        self.closes.append(response.status)
        if response.status != 200:
            return False
        self.connections += 1
        told, events = response.json["cursor"], response.json["events"]
        if self._opened is not None:
            epoch, _, seq = told.partition(".")
            self._open_at(f"{epoch}.{int(seq) - len(events)}")
        for envelope in events:
            self._receive(envelope)
        if told != self.cursor:
            self.problems.append(f"the response ends at {told}, its last event at {self.cursor}")
            return False
        return True


TRANSPORTS: tuple[type[Subscriber], ...] = (WebSocket, EventSource, LongPoll)
