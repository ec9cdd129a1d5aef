"""
What a POST says: from headers and body to drafts.  Pure; both doors, Klein's route and the short
way, come here.

Understood are plain bodies of any content type, CloudEvents 1.0 (structured, batched, binary),
newline-delimited JSON and skyhooks' own payload.  Header names are lower-case bytes.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from binascii import Error as BadBase64
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from asyncplumber.errors import BadRequest, TooLarge, UnsupportedMediaType
from asyncplumber.event import (
    RESERVED_TYPES,
    Draft,
    checked_account,
    is_plain,
    new_id,
    timestamp,
)
from asyncplumber.sending import DEFAULT_TYPE
from asyncplumber.wire.payload import bytes_member, json_member, kind_of, parts_of, payload_of

Headers = Mapping[bytes, bytes]

BATCH_LENGTH = 10_000  # events in one POST; the body's limit usually strikes first
_ESCAPED = re.compile(r'\\(["\\])')
_CLOUDEVENT = "application/cloudevents"
_ATTRIBUTES = ("specversion", "id", "source", "type", "time", "datacontenttype")


def _named(value: Any, name: str) -> str:
    if not isinstance(value, str) or not is_plain(value):
        raise BadRequest(f"{name} must be 1 to 256 characters without control characters")
    return value


def _typed(value: Any, name: str) -> str:
    if _named(value, name).startswith(RESERVED_TYPES):
        raise BadRequest(f"types that begin with {RESERVED_TYPES!r} are the plumber's own")
    return str(value)


def _header(headers: Headers, name: bytes) -> str | None:
    value = headers.get(name)
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"the header {name.decode('ascii')} is not UTF-8") from None


def _cloud_draft(
    account: str, attributes: Mapping[str, Any], content_type: str, payload: bytes, now: str
) -> Draft:
    """
    A CloudEvent (spec 1.0.2, Required Attributes).  Its source and id together say whether it is
    the same event.
    """
    if attributes.get("specversion") != "1.0":
        raise BadRequest("a CloudEvent here has specversion 1.0")
    id = _named(attributes.get("id"), "the CloudEvent's id")
    source = _named(attributes.get("source"), "the CloudEvent's source")
    time = attributes.get("time")
    if time is not None:
        try:
            # RFC 3339 has no time without an offset; fromisoformat does.
            moment = datetime.fromisoformat(str(time).upper())
            now = timestamp(moment.timestamp()) if moment.tzinfo else ""
        except (ValueError, OverflowError):
            now = ""
        if not now:
            raise BadRequest("the CloudEvent's time is not RFC 3339")
    # A line break is in neither of them, so that no two pairs make one key, and none that of a
    # plain id.
    key = f"{source}\n{id}"
    return Draft(
        account,
        id,
        key,
        _typed(attributes.get("type"), "the CloudEvent's type"),
        now,
        content_type,
        payload,
    )


def _structured(account: str, text: str, now: str) -> Draft:
    if not text.startswith("{"):
        raise BadRequest("a structured CloudEvent is a JSON object")
    event = dict(parts_of(text))
    attributes = {name: _value(event[name]) for name in _ATTRIBUTES if name in event}
    content_type = attributes.get("datacontenttype", "application/json")
    if not isinstance(content_type, str) or not is_plain(content_type):
        raise BadRequest("the CloudEvent's datacontenttype is not a media type")
    if "data_base64" in event:
        try:
            payload = bytes_member(b64decode(_value(event["data_base64"]), validate=True))
        except (BadBase64, TypeError, ValueError):
            raise BadRequest("the CloudEvent's data_base64 is not base64") from None
    else:
        payload = json_member(event.get("data", "null").encode())
    return _cloud_draft(account, attributes, content_type, payload, now)


def _value(text: str) -> Any:
    if text[:1] == '"' and "\\" not in text:
        return text[1:-1]  # it was checked, and a batch has ten thousands of them
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # an integer of more than 4300 digits
        raise BadRequest(f"the body's JSON cannot be taken in: {error}") from None


def _json_text(body: bytes) -> str:
    """The text of a JSON body, without the space around it.  Raises `BadRequest`."""
    return json_member(body)[len(b'"data":') :].decode()


def _cloudevents(account: str, kind: str, body: bytes, now: str) -> list[Draft]:
    if kind == "application/cloudevents+json":
        return [_structured(account, _json_text(body), now)]
    if kind == "application/cloudevents-batch+json":
        text = _json_text(body)
        if not text.startswith("["):
            raise BadRequest("a batch of CloudEvents is a JSON array")
        return [
            _structured(account, event, now)
            for event in _bounded([event for _, event in parts_of(text)])
        ]
    raise UnsupportedMediaType(
        "CloudEvents are taken as application/cloudevents+json or application/cloudevents-batch+json"
    )


def _bounded(events: list[Any]) -> list[Any]:
    if not events:
        raise BadRequest("there is no event in this batch")
    if len(events) > BATCH_LENGTH:
        raise TooLarge(f"a batch has at most {BATCH_LENGTH} events")
    return events


def _binary(account: str, headers: Headers, content_type: str, body: bytes, now: str) -> Draft:
    attributes = {
        name: unquote(_header(headers, b"ce-" + name.encode("ascii")) or "") or None
        for name in ("specversion", "id", "source", "type", "time")
    }
    return _cloud_draft(
        account,
        attributes,
        *payload_of(content_type or "application/json" if body else content_type, body),
        now,
    )


def _lines(account: str, id: str | None, type: str, body: bytes, now: str) -> list[Draft]:
    """Newline-delimited JSON: a result a line.  With an id, the results are ``id.1``, ``id.2`` …"""
    lines = _bounded([line for line in body.split(b"\n") if line.strip()])
    stem = id or new_id()
    drafts = []
    for number, line in enumerate(lines, 1):
        name = _named(f"{stem}.{number}", "Webhook-Id with the line's number")
        try:
            drafts.append(
                Draft(account, name, name, type, now, "application/json", json_member(line))
            )
        except BadRequest as error:
            raise BadRequest(f"line {number}: {error.message}") from None
    return drafts


def _unquoted(value: str | None) -> str | None:
    """
    The content of a structured field's string (RFC 8941, 3.3.3), which Idempotency-Key is.

    Many clients send the key without quotes: that is the same key.
    """
    if value is None or not (len(value) > 1 and value[0] == value[-1] == '"'):
        return value
    return _ESCAPED.sub(r"\1", value[1:-1])


@lru_cache(maxsize=256)
def _media_type(header: bytes) -> tuple[str, str]:
    """A content type as it came, and without its parameters.  Raises `BadRequest`."""
    content_type = _header({b"content-type": header}, b"content-type") or ""
    if content_type and not is_plain(content_type):
        raise BadRequest("the content type is too long, or no media type")
    return content_type, kind_of(content_type)


class EncodedBody(UnsupportedMediaType):
    """A body that is compressed; the answer says what would do (RFC 9110, 15.5.16)."""

    default = "a body is sent without a Content-Encoding: compressed ones are not understood here"
    headers = ((b"Accept-Encoding", b"identity"),)


def _check_encoding(headers: Headers) -> None:
    """
    Raise `EncodedBody` for a body that is compressed.

    Kept as it stands, it would reach browsers without a word of its encoding.
    """
    value = headers.get(b"content-encoding", b"")
    if value.strip().lower() not in (b"", b"identity"):
        raise EncodedBody


def drafts_of(account: str, headers: Headers, body: bytes, now: str) -> list[Draft]:
    """
    What this POST to `account` brings, nearly always one draft.  `now` is the RFC 3339 time of its
    arrival.

    Raises `BadAccount`, `BadRequest`, `UnsupportedMediaType` or `TooLarge`; then nothing of it may
    be kept.
    """
    checked_account(account)
    if b"content-encoding" in headers:
        _check_encoding(headers)
    content_type, kind = _media_type(headers.get(b"content-type", b""))
    if kind.startswith(_CLOUDEVENT):
        return _cloudevents(account, kind, body, now)
    if b"ce-specversion" in headers:
        return [_binary(account, headers, content_type, body, now)]
    id = None
    for name in (b"webhook-id", b"idempotency-key"):
        if id is None and name in headers:
            text = _header(headers, name)
            id = _named(_unquoted(text) if name == b"idempotency-key" else text, "the event's id")
    type = (
        _typed(_header(headers, b"event-type"), "Event-Type")
        if b"event-type" in headers
        else DEFAULT_TYPE
    )
    if kind in ("application/x-ndjson", "application/jsonl"):
        return _lines(account, id, type, body, now)
    content_type, payload = payload_of(content_type, body)
    id = id or new_id()
    return [Draft(account, id, id, type, now, content_type, payload)]


def skyhooks_draft(headers: Headers, body: bytes, now: str) -> Draft:
    """
    skyhooks' own payload: a JSON object with ``keys.account_id`` and ``data``.  Raises `BadRequest`
    or `EncodedBody`.
    """
    _check_encoding(headers)
    text = _json_text(body)
    message = dict(parts_of(text)) if text.startswith("{") else {}
    keys = _value(message.get("keys", "null"))
    account = keys.get("account_id") if isinstance(keys, dict) else None
    if isinstance(account, int) and not isinstance(account, bool):
        account = str(account)
    if not isinstance(account, str):
        raise BadRequest(
            'a POST without an account in its path is {"keys": {"account_id": …}, "data": …} in JSON'
        )
    inner = {
        name: value
        for name, value in headers.items()
        if name not in (b"content-type", b"ce-specversion")
    }
    data = message.get("data", "null").encode()
    return drafts_of(account, {**inner, b"content-type": b"application/json"}, data, now)[0]
