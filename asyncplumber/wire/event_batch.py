"""
What one instance sends to another: many events in one body.  Pure.

A batch is newline-delimited JSON, one array an event, in the order of `Event`'s fields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from asyncplumber.errors import BadRequest
from asyncplumber.event import RESERVED_TYPES, Cursor, Event, checked_account, is_plain
from asyncplumber.wire.payload import is_payload

CONTENT_TYPE = b"application/vnd.asyncplumber.event-batch"


BATCH_BYTES = 512 * 1024  # bytes of payloads in one batch; one event may have more
ENVELOPE = 512  # bytes that an event has besides its payload, usually


_TIME = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", re.ASCII
)  # RFC 3339 in UTC, as every draft has it


def weight(events: Iterable[Event]) -> int:
    """Bytes of these events in a batch, roughly."""
    return sum([len(event.payload) + ENVELOPE for event in events])


def pieces(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    """The same events in batches that are not too large."""
    start = size = 0
    for index, event in enumerate(events):
        more = weight([event])
        size += more
        if size > BATCH_BYTES and index > start:
            yield events[start:index]
            start, size = index, more
    yield events[start:]


def batch_limit(body_limit: int) -> int:
    """
    Bytes that a batch may have where a POST may have `body_limit`.

    A payload is JSON inside JSON, so its quotes double, and base64 adds a third; peers may have
    other limits than ours.
    """
    return 4 * (body_limit + BATCH_BYTES) + 1024 * 1024


def pack(events: Iterable[Event]) -> bytes:
    """The body that carries these events."""
    return b"\n".join(
        [
            json.dumps([*event[:-1], event.payload.decode()], ensure_ascii=False).encode()
            for event in events
        ]
    )


def unpack(body: bytes) -> list[Event]:
    """
    The events in a batch, each as a POST could have brought it.

    Raises `BadRequest` if one of them is none; then nothing of the batch may be delivered.
    """
    try:
        return [_event(*json.loads(line)) for line in body.split(b"\n")]
    except (ValueError, TypeError, AttributeError, RecursionError, BadRequest):
        raise BadRequest("this is no batch of events") from None


def _event(
    account: str,
    epoch: str,
    seq: int,
    id: str,
    type: str,
    time: str,
    content_type: str,
    payload: str,
) -> Event:
    """The event of these fields.  Raises whatever comes of values that are none."""
    if isinstance(seq, bool) or not isinstance(seq, int) or seq < 1:
        raise ValueError("an event has a number from 1 on")
    if not isinstance(epoch, str):
        raise TypeError("an epoch is text")
    Cursor.parse(f"{epoch}.{seq}")
    checked_account(account)
    if not (is_plain(id) and is_plain(type) and is_plain(content_type)) or type.startswith(
        RESERVED_TYPES
    ):
        raise ValueError("an id, a type or a content type is none that a POST may have")
    if not _TIME.fullmatch(time):
        raise ValueError("an event has its time in UTC")
    datetime.fromisoformat(time)
    member = payload.encode()
    if not is_payload(member):
        raise ValueError("a payload is one member of the envelope")
    return Event(account, epoch, seq, id, type, time, content_type, member)
