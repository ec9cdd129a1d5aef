"""Subscribers by Server-Sent Events (WHATWG HTML, 9.2)."""

from __future__ import annotations

from typing import Any

from asyncplumber.core.channel import Channel
from asyncplumber.errors import PlumberError
from asyncplumber.event import Cursor, Position
from asyncplumber.http.responses import date_line
from asyncplumber.transports.connected_clients import ConnectedClients
from asyncplumber.transports.stream import Stream
from asyncplumber.wire.delivery import Delivery
from asyncplumber.wire.envelope import gap, notice
from asyncplumber.wire.sse import chunk, record

# milliseconds that a browser waits before it reconnects; the specification suggests "a few seconds"
RETRY = 3000
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store, no-transform\r\n"
    b"X-Accel-Buffering: no\r\nX-Content-Type-Options: nosniff\r\n%b%b%b\r\n%b"
)


class EventStream(Stream):
    """
    A Server-Sent Events client.

    The answer has no end: whenever we close the connection there are more events to come.  So to
    HTTP/1.1 clients it is sent in chunks, and the last chunk never comes: to some clients a clean
    end means that all is done, and they do not connect again (fetch-event-source).  HTTP/1.0 has no
    other end than that of the connection.
    """

    __slots__ = ("_chunked",)

    def __init__(
        self, channel: Channel, clients: ConnectedClients, clock: Any, *, chunked: bool
    ) -> None:
        super().__init__(channel, clients, clock)
        self._chunked = chunked

    def head(self, cors: bytes) -> bytes:
        """
        The head of the answer, and the first lines of the stream; `cors` is further header lines.
        """
        retry = b"retry: %d\n\n" % RETRY
        if self._chunked:
            # And no "Connection: close", after which Node takes whatever end for a clean one.
            return _HEAD % (date_line(), b"Transfer-Encoding: chunked\r\n", cors, chunk(retry))
        return _HEAD % (date_line(), b"Connection: close\r\n", cors, retry)

    def _write(self, data: bytes) -> None:
        self.send_buffer.write(chunk(data) if self._chunked else data)

    def dataReceived(self, data: bytes) -> None:
        """It has nothing to say."""

    def deliver(self, batch: Delivery) -> None:
        self.send_buffer.write(batch.chunk if self._chunked else batch.records)

    def opened(self, cursor: Cursor) -> None:
        self._write(
            record(str(cursor), "plumber.open", notice("plumber.open", self.account, cursor))
        )

    def missed(self, cursor: Cursor, position: Position) -> None:
        self._write(
            record(str(position.cursor), "plumber.gap", gap(self.account, cursor, position))
        )

    def beat(self) -> None:
        if not self.is_leaving:
            self._write(b":\n\n")

    def close_going_away(self, reconnect_after: float) -> None:
        if not self.is_leaving:
            # Without a cursor: one that is being replayed stands elsewhere than the live ones.
            bye = notice("plumber.bye", self.account, None, reconnect_after=reconnect_after)
            self._write(b"retry: %d\n%b" % (1000 * reconnect_after, record("", "plumber.bye", bye)))
        self._close()

    def end(self, error: PlumberError | None) -> None:
        self._close()
