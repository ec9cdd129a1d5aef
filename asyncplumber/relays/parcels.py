"""
What one instance sends to another: many events in one body.  Pure.

A parcel is newline-delimited JSON, one array an event, in the order of `Event`'s fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from asyncplumber.errors import BadRequest
from asyncplumber.event import Event

CONTENT_TYPE = b"application/vnd.asyncplumber.parcel"


PARCEL = 512 * 1024  # bytes of payloads in one parcel; one event may have more
ENVELOPE = 512  # bytes that an event has besides its payload, usually


def weight(events: Iterable[Event]) -> int:
    """Bytes of these events in a parcel, roughly."""
    return sum([len(event.payload) + ENVELOPE for event in events])


def pieces(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    """The same events in parcels that are not too large."""
    start = size = 0
    for index, event in enumerate(events):
        more = weight([event])
        size += more
        if size > PARCEL and index > start:
            yield events[start:index]
            start, size = index, more
    yield events[start:]


def parcel_limit(body_limit: int) -> int:
    """
    Bytes that a parcel may have where a POST may have `body_limit`.

    A payload is JSON inside JSON, so its quotes double, and base64 adds a third; peers may have other limits than ours.
    """
    return 4 * (body_limit + PARCEL) + 1024 * 1024


def pack(events: Iterable[Event]) -> bytes:
    """The body that carries these events."""
    return b"\n".join([json.dumps([*event[:-1], event.payload.decode()], ensure_ascii=False).encode() for event in events])


def unpack(body: bytes) -> list[Event]:
    """The events in a parcel.  Raises `BadRequest` if it is none."""
    events = []
    try:
        for line in body.split(b"\n"):
            account, epoch, seq, id, type, time, content_type, payload = json.loads(line)
            if (
                isinstance(seq, bool)
                or not isinstance(seq, int)
                or seq < 1
                or not all(isinstance(text, str) for text in (account, epoch, id, type, time, content_type))
            ):
                raise ValueError
            events.append(Event(account, epoch, seq, id, type, time, content_type, payload.encode()))
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise BadRequest("this is no parcel of events") from None
    return events
