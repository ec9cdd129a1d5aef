"""
CloudEvents 1.0 over HTTP, in the modes structured, batched and binary.  Pure.

See https://github.com/cloudevents/spec, version 1.0.2: the specification, its JSON event format and
its HTTP protocol binding.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as BadBase64
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from asyncplumber.errors import BadRequest, UnsupportedMediaType
from asyncplumber.event import Draft, is_plain, timestamp
from asyncplumber.wire.fields import (
    Headers,
    checked_batch,
    checked_name,
    checked_type,
    header_text,
)
from asyncplumber.wire.json_text import elements, members, one_line, value
from asyncplumber.wire.payload import bytes_member, payload_of

PREFIX = "application/cloudevents"  # of the content types of the structured and the batched mode
BINARY_MODE = b"ce-specversion"  # the header that says it
_STRUCTURED = f"{PREFIX}+json"
_BATCHED = f"{PREFIX}-batch+json"
_ATTRIBUTES = ("specversion", "id", "source", "type", "time")


def structured_drafts(account: str, kind: str, body: bytes, now: str) -> list[Draft]:
    """
    Return the drafts of a body in structured or batched mode.

    Args:
        account: The account of the POST.
        kind: The content type without parameters; it begins with `PREFIX`.
        body: The body.
        now: When it arrived (RFC 3339), for events that have no time.

    Raises:
        BadRequest: The body, or one of its events, is not understood.
        TooLarge: There are too many events.
        UnsupportedMediaType: It is a format other than JSON.
    """
    if kind == _STRUCTURED:
        return [_structured_draft(account, one_line(body), now)]
    if kind == _BATCHED:
        text = one_line(body)
        if not text.startswith(b"["):
            raise BadRequest("a batch of CloudEvents is a JSON array")
        return [_structured_draft(account, event, now) for event in checked_batch(elements(text))]
    raise UnsupportedMediaType(f"CloudEvents are accepted as {_STRUCTURED} or {_BATCHED}")


def binary_draft(account: str, headers: Headers, content_type: str, body: bytes, now: str) -> Draft:
    """
    Return the draft of a body in binary mode: the attributes are in headers.

    Raises:
        BadRequest: An attribute, or a body that should be JSON, is not understood.
    """
    attributes = {
        name: unquote(header_text(headers, b"ce-" + name.encode("ascii")) or "") or None
        for name in _ATTRIBUTES
    }
    if body and not content_type:
        content_type = "application/json"
    return _draft(account, attributes, *payload_of(content_type, body), now)


def _structured_draft(account: str, text: bytes, now: str) -> Draft:
    if not text.startswith(b"{"):
        raise BadRequest("a structured CloudEvent is a JSON object")
    event = members(text)
    attributes = {name: value(event[name]) for name in _ATTRIBUTES if name in event}
    content_type = "application/json"
    if "datacontenttype" in event:
        content_type = value(event["datacontenttype"])
    if not isinstance(content_type, str) or not is_plain(content_type):
        raise BadRequest("the CloudEvent's datacontenttype is not a media type")
    if "data_base64" in event:
        try:
            payload = bytes_member(b64decode(value(event["data_base64"]), validate=True))
        except (BadBase64, TypeError, ValueError):
            raise BadRequest("the CloudEvent's data_base64 is not base64") from None
    else:
        payload = b'"data":' + event.get("data", b"null")
    return _draft(account, attributes, content_type, payload, now)


def _draft(
    account: str, attributes: Mapping[str, Any], content_type: str, payload: bytes, now: str
) -> Draft:
    """Return the draft of an event with these attributes."""
    if attributes.get("specversion") != "1.0":
        raise BadRequest("the CloudEvent's specversion must be 1.0")
    id = checked_name(attributes.get("id"), "the CloudEvent's id")
    source = checked_name(attributes.get("source"), "the CloudEvent's source")
    type = checked_type(attributes.get("type"), "the CloudEvent's type")
    time = attributes.get("time")
    # An id is unique only together with its source.  Neither can hold a line break, so two pairs
    # never make the same key, and none makes that of a plain id.
    key = f"{source}\n{id}"
    return Draft(account, id, key, type, now if time is None else _utc(time), content_type, payload)


def _utc(time: Any) -> str:
    """Return an RFC 3339 time in UTC."""
    try:
        # RFC 3339 has no time without an offset; fromisoformat has.
        moment = datetime.fromisoformat(str(time).upper())
        if moment.tzinfo:
            return timestamp(moment.timestamp())
    except (ValueError, OverflowError):
        pass
    raise BadRequest("the CloudEvent's time is not RFC 3339")
