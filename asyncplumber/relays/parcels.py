"""
What one instance sends to another: many events in one body.  Pure.

A parcel is newline-delimited JSON, one array an event, in the order of `Event`'s fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from asyncplumber.errors import BadRequest
from asyncplumber.event import Event

CONTENT_TYPE = b"application/vnd.asyncplumber.parcel"


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
