"""
What one instance sends to another: many events in one body.  Pure.

A batch is newline-delimited JSON: an array for each event, with the fields of `Event` in order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from asyncplumber.errors import BadRequest
from asyncplumber.event import RESERVED_TYPES, TASK_TYPES, Cursor, Event, checked_account, is_plain
from asyncplumber.wire.payload import is_payload, is_task_payload

CONTENT_TYPE = b"application/vnd.asyncplumber.event-batch"
BATCH_BYTES = 512 * 1024  # in one batch, by `weight`; a single event may be larger
ENVELOPE_BYTES = 512  # that an event usually has besides its payload
# RFC 3339 in UTC, as every draft has it.
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", re.ASCII)


def weight(events: Iterable[Event]) -> int:
    """Return roughly how many bytes these events are in a batch."""
    return sum([len(event.payload) + ENVELOPE_BYTES for event in events])


def pieces(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    """Yield these events in batches of up to `BATCH_BYTES`."""
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
    Return how many bytes a batch may have where a POST may have `body_limit`.

    A payload is JSON inside JSON, which doubles its quotes, and base64 adds a third.  Other
    instances may have other limits.
    """
    return 4 * (body_limit + BATCH_BYTES) + 1024 * 1024


def pack(events: Iterable[Event]) -> bytes:
    """Return the body that carries these events."""
    return b"\n".join(
        [
            json.dumps([*event[:-1], event.payload.decode()], ensure_ascii=False).encode()
            for event in events
        ]
    )


def unpack(body: bytes) -> list[Event]:
    """
    Return the events in a batch.  A POST could have brought each of them.

    Raises:
        BadRequest: One of them is no such event; nothing of the batch may be delivered.
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
    """Return the event with these fields, or raise one of the errors that `unpack` catches."""
    if isinstance(seq, bool) or not isinstance(seq, int) or seq < 1:
        raise ValueError("an event has a number from 1 on")
    if not isinstance(epoch, str):
        raise TypeError("an epoch is text")
    Cursor.parse(f"{epoch}.{seq}")
    checked_account(account)
    if not (is_plain(id) and is_plain(type) and is_plain(content_type)):
        raise ValueError("an id, a type and a content type have no control characters")
    if type.startswith(RESERVED_TYPES):
        raise ValueError("a type is none of the reserved ones")
    if not _TIME.fullmatch(time):
        raise ValueError("an event has its time in UTC")
    datetime.fromisoformat(time)
    member = payload.encode()
    if not is_payload(member) and not (type.startswith(TASK_TYPES) and is_task_payload(member)):
        raise ValueError("a payload is one member of the envelope")
    return Event(account, epoch, seq, id, type, time, content_type, member)
