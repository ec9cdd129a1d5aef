"""What a POST may say about its events: header values, ids, types and the size of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from asyncplumber.errors import BadRequest, TooLarge
from asyncplumber.event import NAME_LENGTH, RESERVED_TYPES, is_plain

T = TypeVar("T")
Headers = Mapping[bytes, bytes]  # names in lower case

BATCH_LENGTH = 10_000  # events in one POST; the limit on the body is usually reached before


def header_text(headers: Headers, name: bytes) -> str | None:
    """
    Return the value of a header; None if it is missing.

    Raises:
        BadRequest: The value is not UTF-8.
    """
    value = headers.get(name)
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"the header {name.decode('ascii')} is not UTF-8") from None


def checked_name(value: Any, name: str) -> str:
    """
    Return `value` if an event may have it as its id, type or source.

    Args:
        value: What the sender wrote.
        name: What it is, for the message.

    Raises:
        BadRequest: It is no text, empty, too long, or has control characters.
    """
    if not isinstance(value, str) or not is_plain(value):
        raise BadRequest(
            f"{name} must be 1 to {NAME_LENGTH} characters, without control characters"
        )
    return value


def checked_type(value: Any, name: str) -> str:
    """
    Return `value` if an event may have it as its type.  For `name` see `checked_name`.

    Raises:
        BadRequest: It is no name, or begins with ``plumber.``.
    """
    if checked_name(value, name).startswith(RESERVED_TYPES):
        raise BadRequest(f"{name} begins with {RESERVED_TYPES!r}, which is reserved")
    return str(value)


def checked_batch(events: Sequence[T]) -> Sequence[T]:
    """
    Return `events` if a POST may bring so many.

    Raises:
        BadRequest: There is none.
        TooLarge: There are more than `BATCH_LENGTH`.
    """
    if not events:
        raise BadRequest("there is no event in this batch")
    if len(events) > BATCH_LENGTH:
        raise TooLarge(f"a batch has at most {BATCH_LENGTH} events")
    return events
