"""
Bytes for the wire, made once per event (or batch) and not once per subscriber.  Pure functions and values.

Envelope: the JSON object every transport carries.  Frame: RFC 6455, 5.2.  Record: WHATWG HTML, 9.2 (Server-Sent Events).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from asyncplumber.event import Cursor, Event, Position

_encoded = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make an encoder at each call


def envelope(event: Event) -> bytes:
    """The JSON text, UTF-8 in one line, that tells a subscriber everything about an event (no epoch: it is in no history)."""
    account, epoch, seq, id, type, time, content_type, payload = event
    cursor = f'"{epoch}.{seq}"' if epoch else "null"
    return b"%b%b}" % (
        (
            f'{{"id":{quoted(id)},"account":{quoted(account)},"cursor":{cursor},"type":{quoted(type)},'
            f'"time":"{time}","content_type":{quoted(content_type)},'
        ).encode("ascii"),
        payload,
    )


def frame(payload: bytes) -> bytes:
    """One unmasked, unfragmented WebSocket text message."""
    size = len(payload)
    if size < 126:
        return b"\x81%c%b" % (size, payload)
    if size < 65536:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), payload)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), payload)


def record(cursor: str, type: str, data: bytes) -> bytes:
    """
    One Server-Sent Event.  Neither `type` nor `data` may hold a line break: envelopes never do.

    An empty `cursor` leaves the client's last event id as it was.
    """
    id = b"id: %b\n" % cursor.encode("ascii") if cursor else b""
    return b"%bevent: %b\ndata: %b\n\n" % (id, type.encode(), data)


def chunk(data: bytes) -> bytes:
    """One chunk of an HTTP/1.1 answer (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _cursor(event: Event) -> str:
    return f"{event.epoch}.{event.seq}" if event.epoch else ""


# What a transport puts around an envelope, besides the type: a record of Server-Sent Events has the
# cursor a second time.
_SURROUNDINGS = 96  # bytes


def first_page(events: Sequence[Event], size: int) -> Batch:
    """The first of these events that fit into `size` bytes on any transport; at least one."""
    count = 0
    envelopes: list[bytes] = []
    for event in events:
        text = envelope(event)
        size -= len(text) + len(event.type.encode()) + _SURROUNDINGS
        if count and size < 0:
            break
        envelopes.append(text)
        count += 1
    return Batch(events[:count], envelopes)


class Batch:
    """Some events of one account, in order, with the bytes that carry them, each kind built when first asked for."""

    __slots__ = ("_chunk", "_envelopes", "_frames", "_records", "events")

    def __init__(self, events: Sequence[Event], envelopes: list[bytes] | None = None) -> None:
        """`envelopes` are those of the events, where they were built before."""
        self.events = events
        self._envelopes = envelopes
        self._frames: bytes | None = None
        self._records: bytes | None = None
        self._chunk: bytes | None = None

    @property
    def envelopes(self) -> list[bytes]:
        """An envelope for each event."""
        if self._envelopes is None:
            self._envelopes = [*map(envelope, self.events)]
        return self._envelopes

    @property
    def frames(self) -> bytes:
        """All the events as WebSocket messages, one after the other."""
        if self._frames is None:
            self._frames = b"".join(map(frame, self.envelopes))
        return self._frames

    @property
    def records(self) -> bytes:
        """All the events as Server-Sent Events."""
        if self._records is None:
            self._records = b"".join(
                record(_cursor(event), event.type, text) for event, text in zip(self.events, self.envelopes, strict=True)
            )
        return self._records

    @property
    def chunk(self) -> bytes:
        """The same as one chunk."""
        if self._chunk is None:
            self._chunk = chunk(self.records)
        return self._chunk


def notice(type: str, account: str, cursor: Cursor | None, **data: Any) -> bytes:
    """The envelope of an event about the stream itself: in no history; `cursor` says where you stand, None that you know."""
    stand = str(cursor) if cursor is not None else None
    return _encoded({"type": type, "account": account, "cursor": stand, "data": data}).encode()


def gap(account: str, cursor: Cursor, position: Position) -> bytes:
    """
    The notice ``plumber.gap``: nothing between `cursor` and the head of the history will be replayed.

    ``oldest`` is the first event that is still kept, or null; who wants it subscribes anew with ``after=earliest``.
    """
    oldest = str(Cursor(position.epoch, position.floor + 1)) if position.head > position.floor else None
    stand = position.cursor
    return notice("plumber.gap", account, stand, **{"from": str(cursor), "to": str(stand), "oldest": oldest})
