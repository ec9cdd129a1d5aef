"""Answers as values: what a door says to a request, whichever way it writes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from json.encoder import encode_basestring_ascii as quoted
from time import time
from typing import NamedTuple

from twisted.web.http import datetimeToString

from asyncplumber.errors import MethodNotAllowed, PlumberError
from asyncplumber.sending import Receipt
from asyncplumber.transports.long_poll import PollResult

JSON = b"application/json"
_REASONS = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}


@lru_cache(maxsize=64)
def _beginning(status: int, content_type: bytes) -> bytes:
    return b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nX-Content-Type-Options: nosniff\r\n" % (
        status,
        _REASONS[status],
        content_type,
    )


_EVENT_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Cache-Control: no-store, no-transform\r\nX-Accel-Buffering: no\r\n"
    b"X-Content-Type-Options: nosniff\r\n%b%b%b\r\n"
)

_date = (0, b"")  # the second since 1970, and its line


def date_line() -> bytes:
    """Return the Date header of this second, with its line break (RFC 9110, 6.6.1)."""
    global _date
    now = int(time())
    second, line = _date
    if second != now:
        line = b"Date: %b\r\n" % datetimeToString(now)
        _date = now, line
    return line


class Response(NamedTuple):
    """Status, content type, body, and further headers as (name, value)."""

    status: int
    content_type: bytes
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def head(self, *, close: bool) -> bytes:
        """The answer's first lines as HTTP/1.1 wants them, up to the body."""
        extra = (
            b"".join([b"%b: %b\r\n" % header for header in self.headers]) if self.headers else b""
        )
        return b"%b%bContent-Length: %d\r\n%b%b\r\n" % (
            _beginning(self.status, self.content_type),
            date_line(),
            len(self.body),
            extra,
            b"Connection: close\r\n" if close else b"",
        )


def event_stream_head(*, chunked: bool, headers: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """Return the head of a response of Server-Sent Events, which has no end.

    Args:
        chunked: Whether the body comes in chunks (HTTP/1.1); if not, the connection's end ends it.
        headers: Further headers.
    """
    # With chunks there is no "Connection: close": Node takes any end after it for a clean one.
    framing = b"Transfer-Encoding: chunked\r\n" if chunked else b"Connection: close\r\n"
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    return _EVENT_STREAM % (date_line(), framing, lines)


def json_response(status: int, value: object, *headers: tuple[bytes, bytes]) -> Response:
    """`value` as JSON."""
    return Response(status, JSON, json.dumps(value).encode("ascii") + b"\n", headers)


def poll_response(result: PollResult) -> Response:
    """Return the response to a long-poll."""
    return Response(200, JSON, result.body, ((b"Cache-Control", b"no-store"),))


def error_response(error: PlumberError) -> Response:
    """What a client is told of `error`."""
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after is not None:
        headers.append((b"Retry-After", b"%d" % error.retry_after))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"Allow", error.allow.encode("ascii")))
    headers.extend(getattr(error, "headers", ()))
    return json_response(
        error.status, {"error": {"code": error.code, "message": error.message}}, *headers
    )


def _receipt(receipt: Receipt) -> str:
    id, cursor, duplicate, subscribers, instances = receipt
    there = ",".join([f'"{state}":{number}' for state, number in instances.items()])
    place = f'"{cursor}"' if cursor else "null"
    return (
        f'"id":{quoted(id)},"cursor":{place},"duplicate":{"true" if duplicate else "false"},'
        f'"subscribers":{subscribers},"instances":{{{there}}}'
    )


def _listened(receipts: Sequence[Receipt]) -> int:
    """201 when somebody got it, 202 when it is stored and nobody listened (nchan's convention)."""
    if len(receipts) == 1:
        return 201 if receipts[0].subscribers else 202
    return 201 if any(receipt.subscribers for receipt in receipts) else 202


def receipt_response(
    receipts: Sequence[Receipt], *, batch: bool = False, skyhooks: bool = False
) -> Response:
    """
    The receipt of a POST; a batch has one for each event, and skyhooks' clients look for
    ``notified``.
    """
    if batch:
        each = ",".join([f"{{{_receipt(receipt)}}}" for receipt in receipts])
        return Response(
            _listened(receipts), JSON, b'{"status":"ok","receipts":[%b]}\n' % each.encode("ascii")
        )
    notified = f'"notified":{"true" if receipts[0].subscribers else "false"},' if skyhooks else ""
    body = f'{{"status":"ok",{notified}{_receipt(receipts[0])}}}\n'
    return Response(_listened(receipts), JSON, body.encode("ascii"))
