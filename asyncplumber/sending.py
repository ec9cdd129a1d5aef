"""
What a program says about an event that it sends, and the receipt that it gets.

The senders of ``asyncplumber.client`` and ``Plumber.send`` share this module.  So one call means
the same event in all of them.  It needs only the standard library: a worker that sends loads
nothing of the server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import quote
from uuid import UUID, uuid4

Key = str | int | UUID  # an account or an id: databases have numbers and UUIDs as keys
Time = datetime | str

DEFAULT_TYPE = "result"
# The headers of a message that starts a task by a queue: whose task it is, and how it is reported.
# The id of the message is the run.  Not ``task``: in Celery that is the name of the task.
ACCOUNT_HEADER = "account"
TASK_HEADER = "plumber_task"
CALLBACK_HEADER = "plumber_callback"
_HEADER_VALUE = re.compile("[!-~]([ -~]*[!-~])?")


class Receipt(NamedTuple):
    """
    The answer to an event that was sent: the event is kept.

    Attributes:
        id: The event's id.
        cursor: Its place in the history of its account, to be given as ``after``.  Empty if the
            event is in no history.
        duplicate: Whether an event with this id was kept before.  Then the cursor is that event's.
        subscribers: How many got the event at once.  0 is no failure: those who subscribe later
            find it in the history.
        instances: How many instances with subscribers took it (``ok``), did not take it
            (``failed``), or had not answered yet (``pending``).
    """

    id: str
    cursor: str
    duplicate: bool
    subscribers: int
    instances: Mapping[str, int]


class Message(NamedTuple):
    """One event as the headers and the body of a POST."""

    account: str
    id: str
    headers: dict[str, str]
    body: bytes


def message(
    account: Key,
    data: Any,
    *,
    id: Key | None = None,
    type: str = DEFAULT_TYPE,
    content_type: str | None = None,
    time: Time | None = None,
) -> Message:
    """
    Build the message for one event.

    Args:
        account: Whose subscribers get it.
        data: Bytes and text go out as they are, all else as JSON (see ``encode``).
        id: Two sends with the same id are one event; None makes a new id.
        type: What kind of event it is.
        content_type: What ``data`` is; None takes it from the type of ``data``.
        time: When it happened; None is when it arrives.

    Raises:
        ValueError: A value cannot be sent.
        TypeError: An argument has the wrong type; the message names it.
    """
    name = key_text("account", account)
    if not name:
        raise ValueError("an account has a name")
    event_id = str(uuid4()) if id is None else key_text("id", id)
    kind, body = encode(data)
    if content_type is not None:
        kind = _checked_text("content_type", content_type) or kind
    headers = {"Webhook-Id": event_id, "Event-Type": _checked_text("type", type)}
    headers["Content-Type"] = kind
    if time is not None:
        headers |= _cloudevent_headers(event_id, type, time)
    for header, value in headers.items():
        if not is_header_value(value):
            raise ValueError(f"{header} is one or more characters of visible ASCII")
    return Message(name, event_id, headers, body)


def is_header_value(text: str) -> bool:
    """Whether ``text`` is visible ASCII with spaces only inside, and not empty."""
    return _HEADER_VALUE.fullmatch(text) is not None


def key_text(argument: str, value: Any) -> str:
    """
    Return an account or an id as text.

    Raises:
        TypeError: It is not a str, an int or a UUID; the message names ``argument``.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int | UUID) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"{argument} is a str, an int or a UUID, and not {type(value).__name__}")


def _checked_text(argument: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    raise TypeError(f"{argument} is a str, and not {type(value).__name__}")


def encode(data: Any) -> tuple[str, bytes]:
    """
    Return the content type and the bytes of ``data``.

    Raises:
        ValueError, TypeError: JSON cannot express it.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        return "application/octet-stream", bytes(data)
    if isinstance(data, str):
        return "text/plain; charset=utf-8", data.encode()
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), default=json_text)
    return "application/json", text.encode()


def json_text(value: Any) -> str:
    """
    Return the text that stands in JSON for a value of a type that JSON does not have.

    Dates and times become ISO 8601.  A Decimal becomes a string of digits, so that it stays exact.
    A UUID is written as usual.

    Raises:
        TypeError: The value is of any other type.
    """
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be expressed in JSON")


def _cloudevent_headers(id: str, type: str, time: Time) -> dict[str, str]:
    """
    Return the headers that say when an event happened.

    HTTP has no header for that.  CloudEvents in binary mode have ``ce-time``, which needs the other
    attributes beside it.
    """
    if isinstance(time, datetime):
        if time.tzinfo is None:
            raise ValueError("a time needs a time zone")
        time = time.astimezone(UTC).isoformat().replace("+00:00", "Z")
    elif not isinstance(time, str):
        raise TypeError(f"time is a datetime or a str, and not {time.__class__.__name__}")
    attributes = {
        "ce-specversion": "1.0",
        "ce-source": "/asyncplumber/client",
        "ce-id": id,
        "ce-type": type,
        "ce-time": time,
    }
    return {
        name: quote(value, safe="!#$&'()*+,-./:;<=>?@[\\]^_`{|}~")
        for name, value in attributes.items()
    }
