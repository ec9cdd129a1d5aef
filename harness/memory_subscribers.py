"""Clients of a ``MemoryServer`` that subscribe to one account, one class for each transport.

They parse what the server sends by the specifications and share no code with it.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from typing import Any

from asyncplumber.testing import MemoryClient, MemoryServer, parse_responses
from harness.frames import CLOSE, TEXT, close_code, handshake_request, server_frames

TASKS = "&tasks"  # asks for the live tasks


class MemorySubscriber(ABC):
    """A client of one account, on any transport."""

    @abstractmethod
    def envelopes(self) -> list[dict[str, Any]]:
        """Return the events and notices since the last call."""

    @abstractmethod
    def leave(self) -> None:
        """Close the connection without a message."""

    @property
    @abstractmethod
    def cursor(self) -> str:
        """The client's position, by what the server has sent so far."""

    def results(self) -> list[dict[str, Any]]:
        """Return the events since the last call, without the notices."""
        return [
            envelope for envelope in self.envelopes() if not envelope["type"].startswith("plumber.")
        ]


class StreamingSubscriber(MemorySubscriber):
    """A client whose response does not end."""

    def __init__(self, server: MemoryServer, request: bytes, after: str) -> None:
        self.client: MemoryClient = server.connect()
        self.client.send(request)
        self._head: bytes | None = None
        self._data = b""
        self._cursor = after

    @property
    def head(self) -> bytes:
        """Status line and headers of the response; empty until they have come."""
        self._read()
        return self._head or b""

    def body(self) -> bytes:
        """Return the bytes after the head, since the last call."""
        self._read()
        data, self._data = (self._data, b"") if self._head is not None else (b"", self._data)
        return data

    def _read(self) -> None:
        self._data += self.client.received()
        if self._head is None:
            head, blank, rest = self._data.partition(b"\r\n\r\n")
            if blank:
                self._head, self._data = head, rest

    def leave(self) -> None:
        self.client.disconnect()

    @property
    def cursor(self) -> str:
        return self._cursor


class MemoryWebSocket(StreamingSubscriber):
    """A WebSocket client (RFC 6455)."""

    def __init__(
        self,
        server: MemoryServer,
        account: str = "a",
        after: str = "",
        more: bytes = b"",
        *lines: str,
        tasks: bool = False,
    ) -> None:
        """Connect; ``more`` is sent in the packet of the handshake, ``lines`` are more headers."""
        request = handshake_request(f"/events/{account}?after={after}{TASKS * tasks}", *lines)
        super().__init__(server, request + more, after)

    def frames(self) -> list[tuple[int, bytes]]:
        """Return opcode and payload of each frame since the last call."""
        return server_frames(self.body())

    def envelopes(self) -> list[dict[str, Any]]:
        envelopes = [json.loads(payload) for opcode, payload in self.frames() if opcode == TEXT]
        for envelope in envelopes:
            self._cursor = envelope["cursor"] or self._cursor
        return envelopes

    def closed(self) -> tuple[int, str]:
        """Return code and reason of the last frame, which is a close frame."""
        opcode, payload = self.frames()[-1]
        assert opcode == CLOSE
        return close_code(payload), payload[2:].decode()


def parse_event_stream(stream: bytes) -> list[dict[str, str]]:
    """Read the events of a stream (WHATWG HTML, 9.2.6), each with the last event ID."""
    events = []
    last_id = ""
    event: dict[str, str] = {}
    lines = re.split("\r\n|\n|\r", stream.decode())
    for line in lines[:-1]:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if "data" in event:
                events.append({"event": "message", **event, "id": last_id})
            event = {}
        elif name == "data":
            event["data"] = event["data"] + "\n" + value if "data" in event else value
        elif name == "id":
            last_id = value
        elif name in ("event", "retry"):
            event[name] = value
    return events


def dechunked(data: bytes) -> tuple[bytes, bytes]:
    """Decode complete chunks (RFC 9112, 7.1).

    Returns:
        What the chunks carry, and the bytes after the last complete one.

    Raises:
        ValueError: The last chunk came, which an event stream never sends.
    """
    found = b""
    while b"\r\n" in data:
        head, _, rest = data.partition(b"\r\n")
        size = int(head, 16)
        if len(rest) < size + 2:
            break
        if not size or rest[size : size + 2] != b"\r\n":
            raise ValueError(f"the stream ends, or is no chunk: {data[:20]!r}")
        found += rest[:size]
        data = rest[size + 2 :]
    return found, data


class MemoryEventSource(StreamingSubscriber):
    """A client of Server-Sent Events."""

    def __init__(
        self,
        server: MemoryServer,
        account: str = "a",
        after: str = "",
        *lines: str,
        version: str = "1.1",
        tasks: bool = False,
    ) -> None:
        """Connect; ``lines`` are more headers, ``version`` is that of HTTP."""
        head = [
            f"GET /events/{account}{'?tasks' * tasks} HTTP/{version}",
            "Host: localhost",
            "Accept: text/event-stream",
            *lines,
        ]
        if after:
            head.append(f"Last-Event-ID: {after}")
        super().__init__(server, "\r\n".join([*head, "", ""]).encode(), after)
        self._chunks = b""

    def body(self) -> bytes:
        if b"\r\nTransfer-Encoding: chunked" not in self.head:
            return super().body()
        data, self._chunks = dechunked(self._chunks + super().body())
        return data

    def events(self) -> list[dict[str, str]]:
        """Return the events since the last call, as a browser reads them."""
        events = parse_event_stream(self.body())
        for event in events:
            self._cursor = event["id"] or self._cursor
        return events

    def envelopes(self) -> list[dict[str, Any]]:
        return [json.loads(event["data"]) for event in self.events()]


class MemoryLongPoll(MemorySubscriber):
    """A client that polls again after each response."""

    def __init__(
        self, server: MemoryServer, account: str = "a", after: str = "", *, tasks: bool = False
    ) -> None:
        self._server = server
        self._account = account
        self._cursor = after
        self._tasks = tasks  # whether the next poll asks for them: the first, and one after a gap
        self.poll()

    def poll(self) -> None:
        """Ask for the events after the client's position."""
        self.client = self._server.connect()
        path = f"/events/{self._account}?after={self._cursor}{TASKS * self._tasks}"
        self.client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    def envelopes(self) -> list[dict[str, Any]]:
        found = []
        while heard := self.client.received():
            response = json.loads(parse_responses(heard)[0].body)
            found += response["events"]
            self._tasks = False
            self._cursor = response["cursor"]
            self.client.disconnect()
            self.poll()
        return found

    def leave(self) -> None:
        self.client.disconnect()

    @property
    def cursor(self) -> str:
        if not self._cursor:
            # Nothing came yet.  The response to an empty poll tells the position.
            reply = self._server.request("GET", f"/events/{self._account}?wait=0")
            self._cursor = json.loads(reply.body)["cursor"]
        return self._cursor
