"""Subscribers by Server-Sent Events (WHATWG HTML, 9.2)."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from asyncplumber.core.subscription import Subscribable
from asyncplumber.errors import PlumberError
from asyncplumber.event import Cursor, Position
from asyncplumber.grant import Grant
from asyncplumber.transports.closes import GOING_AWAY, NORMAL
from asyncplumber.transports.connected_clients import ConnectedClients
from asyncplumber.transports.refusal import end_code
from asyncplumber.transports.stream import Stream
from asyncplumber.wire.delivery import Delivery
from asyncplumber.wire.envelope import gap, notice
from asyncplumber.wire.sse import chunk, record

# Milliseconds that a browser waits before it reconnects; the standard suggests "a few seconds".
RETRY = 3000


class EventStream(Stream):
    """
    A Server-Sent Events client.

    HTTP/1.1 clients get the stream in chunks, and the last chunk of the response is never sent:
    some clients (fetch-event-source) take a clean end for the end of all events, and do not
    reconnect.  HTTP/1.0 has no other end than that of the connection.
    """

    __slots__ = ("_chunked",)
    left_code = NORMAL  # it has no other way to close

    def __init__(
        self,
        channel: Subscribable,
        clients: ConnectedClients,
        clock: IReactorTime,
        grant: Grant,
        *,
        chunked: bool,
    ) -> None:
        """``chunked`` says whether the response is sent in chunks (HTTP/1.1)."""
        super().__init__(channel, clients, clock, grant)
        self._chunked = chunked

    def _open(self, head: bytes, after: Cursor | str | None) -> None:
        retry = b"retry: %d\n\n" % RETRY
        super()._open(head + (chunk(retry) if self._chunked else retry), after)

    def _write(self, data: bytes) -> None:
        self.send_buffer.write(chunk(data) if self._chunked else data)

    def dataReceived(self, data: bytes) -> None:
        """Drop it: the client of an event stream has nothing to say."""

    def deliver(self, batch: Delivery) -> None:
        self.send_buffer.write(batch.chunk if self._chunked else batch.records)

    def opened(self, cursor: Cursor) -> None:
        self._write(record(str(cursor), "plumber.open", self.open_notice(cursor)))

    def missed(self, cursor: Cursor, position: Position) -> None:
        self._write(
            record(str(position.cursor), "plumber.gap", gap(self.account, cursor, position))
        )

    def notify(self, type: str, envelope: bytes) -> None:
        self._write(record("", type, envelope))

    def ping(self) -> None:
        if not self.is_closing:
            self._write(b":\n\n")

    def close_going_away(self, reconnect_after: float) -> None:
        if not self.is_closing:
            self._clients.closes.note(GOING_AWAY)
            # Without a cursor: a client whose replay is under way is not yet where the live
            # subscribers are.
            bye = notice("plumber.bye", self.account, None, reconnect_after=reconnect_after)
            self._write(b"retry: %d\n%b" % (1000 * reconnect_after, record("", "plumber.bye", bye)))
        self._close()

    def end(self, error: PlumberError | None) -> None:
        bye = self.bye_notice(error) if error is not None else None
        if not self.is_closing:
            self._clients.closes.note(end_code(error))
        if bye is not None and not self.is_closing:
            self._write(record("", "plumber.bye", bye))
        self._close()
