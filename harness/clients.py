"""
Small real clients for the tests of many instances, and the ledger that compares what was accepted
with what arrived.

A subscriber knows only what a browser knows: some URLs and its last cursor.  Whatever happens to
its connection, it comes back with that cursor, at the next instance.  Nothing here shares code with
the server.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar

from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

# seconds that a client waits for a connection and the beginning of an answer, before it goes
# elsewhere
PATIENCE = 2.0
PAUSE = 0.05  # seconds before it does
LONGEST_PAUSE = (
    0.3  # seconds: however politely it is asked to wait longer, a test has no time for that
)


def sleep(seconds: float) -> Deferred[None]:
    """Let the reactor run for a while."""
    return deferLater(reactor, seconds, lambda: None)


class Broken(Exception):
    """The connection ended before the answer, or never was."""


class Reply:
    """An HTTP answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def read_head(data: bytes) -> tuple[int, dict[str, str], bytes] | None:
    """Status, headers and the rest, when the head is there."""
    head, blank, rest = data.partition(b"\r\n\r\n")
    if not blank:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    return int(first.split(" ")[1]), headers, rest


class Line(Protocol):
    """One connection, one HTTP request after the other."""

    def __init__(self) -> None:
        self._data = b""
        self._answer: Deferred[Reply] | None = None
        self.lost = False

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        patience: float = 15.0,
        withhold: int = 0,
    ) -> Deferred[Reply]:
        """
        Send all but the last `withhold` bytes.  Fails with `Broken`, as it does after `patience`
        seconds.
        """
        assert self._answer is None, "one at a time"
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        answer = self._answer = Deferred()
        if self.lost:
            self._finish(Broken("the connection is closed"))
            return answer
        late = reactor.callLater(patience, self.transport.abortConnection)
        self.transport.write(
            "\r\n".join(lines).encode() + b"\r\n\r\n" + body[: len(body) - withhold]
        )
        return answer.addBoth(lambda result: (late.cancel() if late.active() else None, result)[1])

    def _finish(self, result: Any) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.errback(result) if isinstance(result, Exception) else answer.callback(result)

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
            self._finish(Reply(status, headers, rest[:length]))

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True
        self._finish(Broken("the connection was lost"))

    def close(self) -> None:
        self.lost = True
        self.transport.loseConnection()


async def connect(port: int, protocol: Protocol) -> Any:
    """Fails with `Broken`."""
    factory = Factory.forProtocol(lambda: protocol)
    factory.noisy = False
    try:
        return await HostnameEndpoint(reactor, "127.0.0.1", port, timeout=PATIENCE).connect(factory)
    except Exception as error:
        raise Broken(str(error)) from error


async def ask(
    port: int, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> Reply:
    """One request on a connection of its own."""
    line = await connect(port, Line())
    try:
        return await line.request(method, path, body, headers)
    finally:
        line.transport.abortConnection()


class Ledger:
    """What was accepted, and what reached whom."""

    def __init__(self) -> None:
        self.accepted: dict[str, dict[int, str]] = {}  # account → number → id
        self.kept_at: dict[str, float] = {}  # id → when the receipt came
        self.subscribers: list[Subscriber] = []
        self.problems: list[str] = []
        self.refused: dict[
            int, int
        ] = {}  # how often each status other than 201 and 202 was answered
        self.delays: list[float] = []

    def keep(self, account: str, id: str, receipt: Mapping[str, Any]) -> None:
        """A POST was answered with this receipt."""
        seq = int(receipt["cursor"].partition(".")[2])
        numbers = self.accepted.setdefault(account, {})
        if numbers.setdefault(seq, id) != id:
            self.problems.append(f"{account}: number {seq} was given to {numbers[seq]} and to {id}")
        self.kept_at.setdefault(id, time.monotonic())

    @property
    def events(self) -> int:
        return sum(map(len, self.accepted.values()))

    @property
    def deliveries(self) -> int:
        return sum(len(subscriber.events) for subscriber in self.subscribers)

    @property
    def duplicates(self) -> int:
        return sum(
            len(each.events) - len({seq for seq, _ in each.events}) for each in self.subscribers
        )

    def missing(self) -> list[str]:
        """What was accepted and has not arrived where it is waited for."""
        lines = []
        for subscriber in self.subscribers:
            arrived = dict(subscriber.events)
            wanted = self.accepted.get(subscriber.account, {})
            lost = [
                seq
                for seq, id in wanted.items()
                if seq > (subscriber.start or 0) and arrived.get(seq) != id
            ]
            if lost:
                lines.append(
                    f"{subscriber}: {len(lost)} of {len(wanted)} missing, first {min(lost)}, at {subscriber.cursor}"
                )
        return lines

    def wrong(self) -> list[str]:
        """What can never become right again: doubles, disorder, holes, gaps."""
        return self.problems + [
            f"{each}: {problem}" for each in self.subscribers for problem in each.problems
        ]


class Publisher:
    """
    POSTs one event after the other to one account, each until it is accepted, and keeps the
    receipts.
    """

    def __init__(self, ledger: Ledger, ports: Sequence[int], account: str, name: str) -> None:
        self._ledger = ledger
        self._ports = list(ports)
        self._line: Line | None = None
        self.account = account
        self.name = name
        self.sent = 0
        self.stopping = False
        self.abandoned = False
        self.done: Deferred[None] = succeed(None)

    async def post(self, data: str = "") -> Mapping[str, Any]:
        """
        One event.  A POST without an answer may have been accepted or not, so it is repeated with
        the same id.
        """
        self.sent += 1
        id = f"{self.name}-{self.sent}"
        headers = {"Webhook-Id": id, "Content-Type": "application/json"}
        body = json.dumps({"n": self.sent, "data": data}).encode()
        while not self.abandoned:
            try:
                if self._line is None or self._line.lost:
                    self._line = await connect(self._ports[0], Line())
                reply = await self._line.request(
                    "POST", f"/hooks/{self.account}", body, headers, patience=12.0
                )
            except Broken:
                self._elsewhere()
            else:
                if reply.status in (201, 202):
                    self._ledger.keep(self.account, id, reply.json)
                    return reply.json
                self._ledger.refused[reply.status] = self._ledger.refused.get(reply.status, 0) + 1
                if "retry-after" not in reply.headers:
                    raise AssertionError(f"{reply.status} without Retry-After: {reply.body!r}")
                self._elsewhere()
            await sleep(PAUSE)
        raise Broken("given up")

    def _elsewhere(self) -> None:
        self._ports.append(self._ports.pop(0))
        self.close()

    def close(self) -> None:
        if self._line is not None:
            self._line.transport.abortConnection()
            self._line = None

    async def _run(self, count: int, pause: float, data: str) -> None:
        while self.sent < count and not self.stopping:
            await self.post(data)
            if pause:
                await sleep(pause)
        self.close()

    def run(self, count: int = 10**9, pause: float = 0.0, data: str = "") -> Deferred[None]:
        """Send so many, or until `stop`; fires when the last has been accepted."""
        self.done = Deferred.fromCoroutine(self._run(count, pause, data))
        return self.done

    def stop(self) -> Deferred[None]:
        """Fires when what is under way has been accepted."""
        self.stopping = True
        return self.done

    def abandon(self) -> Deferred[None]:
        """Give up what is under way as well."""
        self.stopping = self.abandoned = True
        self.close()
        return self.done.addErrback(lambda failure: failure.trap(Broken) and None)


class Subscriber:
    """Connected to one of some instances, always; notes down everything."""

    transport_name: ClassVar[str]

    def __init__(self, ledger: Ledger, ports: Sequence[int], account: str, after: str = "") -> None:
        ledger.subscribers.append(self)
        self._ledger = ledger
        self._ports = list(ports)
        self.connection: Any = None
        self._opened: Deferred[Subscriber] | None = Deferred()
        self._done: Deferred[None] = succeed(None)
        self.account = account
        self.cursor = after
        self.start: int | None = None  # the number at which it first stood
        self.events: list[tuple[int, str]] = []
        self.whispers: list[Any] = []
        self.problems: list[str] = []
        self.closes: list[int] = []  # codes of the closes, 0 where the connection just ended
        self.cuts = 0  # how often a request was cut off that waited for its answer
        self.byes = 0
        self.bye_advice = 0.0
        self.connections = 0
        self.running = False
        self.advice = 0.0

    def __repr__(self) -> str:
        return f"{self.transport_name} subscriber of {self.account}"

    @property
    def port(self) -> int:
        """Of the instance that it is connected to, or tries next."""
        return self._ports[0]

    def begin(self) -> Deferred[Subscriber]:
        """Fires when it stands somewhere for the first time."""
        self.running = True
        self._done = Deferred.fromCoroutine(self._run()).addErrback(
            lambda failure: self.problems.append(failure.getTraceback())
        )
        assert self._opened is not None
        return self._opened

    def end(self) -> Deferred[None]:
        """Fires when it is gone."""
        self.running = False
        self.hang_up()
        return self._done

    def hang_up(self) -> None:
        """Lose the connection, and come back."""
        if self.connection is not None:
            self.connection.abortConnection()

    async def _run(self) -> None:
        while self.running:
            self.advice = PAUSE
            with suppress(Broken):
                await self._stay()
            if self.running:
                self._ports.append(self._ports.pop(0))
                await sleep(min(self.advice, LONGEST_PAUSE))

    async def _stay(self) -> None:
        """Connect, and return when the connection has ended.  Fails with `Broken`."""
        raise NotImplementedError

    def stand(self, cursor: str) -> None:
        """The server says where this client stands."""
        if self.cursor and self.cursor != "earliest" and self.cursor != cursor:
            self.problems.append(f"came back with {self.cursor} and was put at {cursor}")
        self.cursor = cursor
        if self.start is None:
            self.start = int(cursor.partition(".")[2])
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.callback(self)

    def take(self, envelope: dict[str, Any]) -> None:
        """A message came."""
        type, cursor = envelope["type"], envelope["cursor"]
        if type == "plumber.open":
            self.stand(cursor)
        elif type == "plumber.bye":
            self.byes += 1
            self.advice = self.bye_advice = envelope["data"]["reconnect_after"]
        elif type.startswith("plumber."):
            self.problems.append(json.dumps(envelope))
        elif cursor is None:
            self.whispers.append(envelope.get("data"))
        else:
            epoch, _, seq = self.cursor.partition(".")
            if cursor != f"{epoch}.{int(seq) + 1}":
                self.problems.append(f"{cursor} came after {self.cursor}")
            self.cursor = cursor
            self.events.append((int(cursor.partition(".")[2]), envelope["id"]))
            kept_at = self._ledger.kept_at.get(envelope["id"])
            self._ledger.delays.append(time.monotonic() - kept_at if kept_at is not None else 0.0)


class _Stream(Protocol):
    """A connection whose answer goes on and on."""

    def __init__(
        self, request: str, opened: Callable[[int], bool], read: Callable[[bytes], bytes]
    ) -> None:
        self._request = request
        self._opened = opened
        self._read = read
        self._data = b""
        self._reading = False
        self.ended: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self._late = reactor.callLater(PATIENCE, self.transport.abortConnection)
        self.transport.write(self._request.encode())

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if not self._reading:
            parsed = read_head(self._data)
            if parsed is None:
                return
            self._late.cancel()
            status, _, self._data = parsed
            self._reading = self._opened(status)
            if not self._reading:
                self.transport.abortConnection()
                return
        self._data = self._read(self._data)

    def connectionLost(self, reason: Any = None) -> None:
        if self._late.active():
            self._late.cancel()
        self.ended.callback(None)


class _Streaming(Subscriber):
    """What WebSocket and Server-Sent Events have in common."""

    status: ClassVar[int]

    def _head(self) -> list[str]:
        raise NotImplementedError

    def _read(self, data: bytes) -> bytes:
        """Take whole messages.  The rest is kept."""
        raise NotImplementedError

    def _answered(self, status: int) -> bool:
        self.connections += status == self.status
        return status == self.status

    async def _stay(self) -> None:
        query = f"?after={self.cursor}" if self.cursor else ""
        lines = [f"GET /events/{self.account}{query} HTTP/1.1", "Host: localhost", *self._head()]
        codes = len(self.closes)
        stream = await connect(
            self.port, _Stream("\r\n".join(lines) + "\r\n\r\n", self._answered, self._read)
        )
        self.connection = stream.transport
        if not self.running:
            self.connection.abortConnection()
        await stream.ended
        self.connection = None
        if len(self.closes) == codes:
            self.closes.append(0)


class WebSocket(_Streaming):
    """RFC 6455, as much as a subscriber needs."""

    transport_name = "WebSocket"
    status = 101
    answers_close = True

    def _head(self) -> list[str]:
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        return [
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
        ]

    def _say(self, opcode: int, payload: bytes) -> None:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        self.connection.write(bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked)

    def _read(self, data: bytes) -> bytes:
        at = 0
        while len(data) - at >= 2:
            opcode, size, start = data[at] & 15, data[at + 1] & 127, at + 2
            if size > 125:
                wide = 2 if size == 126 else 8
                start += wide
                size = (
                    int.from_bytes(data[at + 2 : start], "big") if len(data) >= start else len(data)
                )
            if len(data) < start + size:
                break
            payload = data[start : start + size]
            at = start + size
            if opcode == 1:
                self.take(json.loads(payload))
            elif opcode == 9:
                self._say(10, payload)
            elif opcode == 8:
                self.closes.append(int.from_bytes(payload[:2], "big"))
                if self.answers_close:
                    self._say(8, payload[:2])
                    self.connection.loseConnection()
        return data[at:]


class EventSource(_Streaming):
    """Server-Sent Events."""

    transport_name = "SSE"
    status = 200

    def _head(self) -> list[str]:
        return [
            "Accept: text/event-stream",
            *([f"Last-Event-ID: {self.cursor}"] if self.cursor else []),
        ]

    def _answered(self, status: int) -> bool:
        self._text = b""
        return super()._answered(status)

    def _read(self, data: bytes) -> bytes:
        """Take whole chunks, and what is whole in them."""
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
                    self.take(json.loads(line[6:]))
        return data


class LongPoll(Subscriber):
    """One request after the other."""

    transport_name = "long-poll"

    async def _stay(self) -> None:
        line = await connect(self.port, Line())
        self.connection = line.transport
        try:
            while self.running and not line.lost:
                wait = 5 if self.cursor else 0
                try:
                    reply = await line.request(
                        "GET",
                        f"/events/{self.account}?after={self.cursor}&wait={wait}",
                        patience=7.0,
                    )
                except Broken:
                    self.cuts += self.running
                    raise
                self.closes.append(reply.status)
                if reply.status != 200:
                    return
                answer = reply.json
                self.connections += 1
                if self._opened is not None:
                    epoch, _, seq = answer["cursor"].partition(".")
                    self.stand(f"{epoch}.{int(seq) - len(answer['events'])}")
                for envelope in answer["events"]:
                    self.take(envelope)
                if answer["cursor"] != self.cursor:
                    self.problems.append(
                        f"the answer's cursor is {answer['cursor']}, its last event's is {self.cursor}"
                    )
                    return
        finally:
            self.connection = None
            line.transport.abortConnection()


TRANSPORTS: tuple[type[Subscriber], ...] = (WebSocket, EventSource, LongPoll)
