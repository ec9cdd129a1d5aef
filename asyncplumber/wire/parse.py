"""
What a POST says: from headers and body to drafts.  Pure.

The webhook understands bodies of any content type, CloudEvents 1.0, newline-delimited JSON and the
payload of skyhooks.  The fast path and Klein's route both use this module.
"""

from __future__ import annotations

import re
from functools import lru_cache

from asyncplumber.errors import BadRequest, UnsupportedMediaType
from asyncplumber.event import Draft, checked_account, is_plain, new_id
from asyncplumber.sending import DEFAULT_TYPE
from asyncplumber.wire.cloudevents import BINARY_MODE, PREFIX, binary_draft, structured_drafts
from asyncplumber.wire.fields import (
    Headers,
    checked_batch,
    checked_name,
    checked_type,
    header_text,
)
from asyncplumber.wire.json_text import members, one_line, value
from asyncplumber.wire.payload import json_member, media_type, payload_of

_LINES = ("application/x-ndjson", "application/jsonl")
_NAMING = (b"webhook-id", b"idempotency-key", b"event-type")
_ESCAPED = re.compile(r'\\(["\\])')


class EncodedBody(UnsupportedMediaType):
    """A body with a Content-Encoding; the response says what is accepted (RFC 9110, 15.5.16)."""

    default = "send the body without a Content-Encoding: compressed bodies are not understood"
    headers = ((b"Accept-Encoding", b"identity"),)


def drafts_of(account: str, headers: Headers, body: bytes, now: str) -> list[Draft]:
    """
    Return what a POST brings: nearly always one draft.

    Args:
        account: The account in the path.
        headers: The request's headers.
        body: The request's body.
        now: When it arrived (RFC 3339).

    Raises:
        BadAccount: The account cannot be one.
        BadRequest: The request is not understood; nothing of it may be stored.
        UnsupportedMediaType: The body is compressed, or in an unknown format of CloudEvents.
        TooLarge: There are too many events.
    """
    checked_account(account)
    if b"content-encoding" in headers:
        check_encoding(headers)
    content_type, kind = checked_content_type(headers.get(b"content-type", b""))
    if kind.startswith(PREFIX):
        return structured_drafts(account, kind, body, now)
    if BINARY_MODE in headers:
        return [binary_draft(account, headers, content_type, body, now)]
    id = _id(headers)
    type = (
        checked_type(header_text(headers, b"event-type"), "Event-Type")
        if b"event-type" in headers
        else DEFAULT_TYPE
    )
    if kind in _LINES:
        return _lines(account, id, type, body, now)
    content_type, payload = payload_of(content_type, body)
    id = id or new_id()
    return [Draft(account, id, id, type, now, content_type, payload)]


def as_one_event(headers: Headers, id: str | None, type: str | None) -> Headers:
    """
    Return headers with which a POST is one event, whose data is the body.

    What the headers say themselves about events does not count: for a sender that signs only the
    body, anybody can have written it.

    Args:
        headers: Those of the request.
        id: The event's id; None for a new one.
        type: The event's type; None for the default.
    """
    named = {
        name: value
        for name, value in headers.items()
        if name not in _NAMING and not name.startswith(b"ce-")
    }
    kind = media_type(named.get(b"content-type", b"").decode("utf-8", "replace"))
    if kind in _LINES or kind.startswith(PREFIX):
        del named[b"content-type"]
    if id is not None:
        named[b"webhook-id"] = id.encode()
    if type is not None:
        named[b"event-type"] = type.encode()
    return named


def _id(headers: Headers) -> str | None:
    """Return the event's id; None if the sender gave none."""
    if b"webhook-id" in headers:
        return checked_name(header_text(headers, b"webhook-id"), "Webhook-Id")
    if b"idempotency-key" in headers:
        key = unquoted(header_text(headers, b"idempotency-key") or "")
        return checked_name(key, "Idempotency-Key")
    return None


def unquoted(text: str) -> str:
    """
    Return the content of a structured field's string (RFC 8941, 3.3.3), as Idempotency-Key is.

    Many clients send the key without quotes: that is the same key.
    """
    if not (len(text) > 1 and text[0] == text[-1] == '"'):
        return text
    return _ESCAPED.sub(r"\1", text[1:-1])


@lru_cache(maxsize=256)
def checked_content_type(header: bytes) -> tuple[str, str]:
    """Return a content type as it was sent, and without its parameters."""
    content_type = header_text({b"content-type": header}, b"content-type") or ""
    if content_type and not is_plain(content_type):
        raise BadRequest("the content type is too long, or has control characters")
    return content_type, media_type(content_type)


def check_encoding(headers: Headers) -> None:
    """Refuse a compressed body: subscribers would not learn how it is encoded."""
    if headers.get(b"content-encoding", b"").strip().lower() not in (b"", b"identity"):
        raise EncodedBody


def _lines(account: str, id: str | None, type: str, body: bytes, now: str) -> list[Draft]:
    """Return a draft for each line; their ids are ``id.1``, ``id.2`` and so on."""
    lines = checked_batch([line for line in body.split(b"\n") if line.strip()])
    stem = id or new_id()
    drafts = []
    for number, line in enumerate(lines, 1):
        name = checked_name(f"{stem}.{number}", "Webhook-Id with the line's number")
        try:
            payload = json_member(line)
        except BadRequest as error:
            raise BadRequest(f"line {number}: {error.message}") from None
        drafts.append(Draft(account, name, name, type, now, "application/json", payload))
    return drafts


def skyhooks_draft(headers: Headers, body: bytes, now: str) -> Draft:
    """
    Return the draft of skyhooks' payload: a JSON object with ``keys.account_id`` and ``data``.

    Raises:
        BadAccount: The account cannot be one.
        BadRequest: The body is something else.
        EncodedBody: The body is compressed.
    """
    check_encoding(headers)
    text = one_line(body)
    message = members(text) if text.startswith(b"{") else {}
    keys = value(message.get("keys", b"null"))
    account = keys.get("account_id") if isinstance(keys, dict) else None
    if isinstance(account, int) and not isinstance(account, bool):
        account = str(account)
    if not isinstance(account, str):
        raise BadRequest(
            "a POST without an account in its path must be JSON: "
            '{"keys": {"account_id": …}, "data": …}'
        )
    others = {**headers, b"content-type": b"application/json"}
    others.pop(BINARY_MODE, None)
    return drafts_of(account, others, message.get("data", b"null"), now)[0]
