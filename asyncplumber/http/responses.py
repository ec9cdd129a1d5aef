"""
Responses as values, and the bytes of their heads.

The fast path writes them to the connection, the full path to a request of ``twisted.web``.
"""

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
#: In every response.  A browser takes it for nothing but its content type, and gives it to no
#: element of a page of another origin, such as ``<script>``.  CORS requests are not affected.
PROTECTION = (
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
)
_PROTECTION_LINES = b"".join([b"%b: %b\r\n" % header for header in PROTECTION])
_REASONS = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}


@lru_cache(maxsize=64)
def _first_lines(status: int, content_type: bytes) -> bytes:
    return b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\n%b" % (
        status,
        _REASONS[status],
        content_type,
        _PROTECTION_LINES,
    )


_EVENT_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Cache-Control: no-store, no-transform\r\nX-Accel-Buffering: no\r\n"
    b"%b%%b%%b%%b\r\n" % _PROTECTION_LINES
)

_date = (0, b"")  # the last second since 1970 that was asked for, and its line


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
    """A response with a body that is known as a whole."""

    status: int
    content_type: bytes
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()  # further ones, as (name, value)
    error: PlumberError | None = None  # what it tells the client about; for the log

    def head(self, *, close: bool) -> bytes:
        """Return the status line and headers; ``close`` tells the client that we close."""
        extra = (
            b"".join([b"%b: %b\r\n" % header for header in self.headers]) if self.headers else b""
        )
        return b"%b%bContent-Length: %d\r\n%b%b\r\n" % (
            _first_lines(self.status, self.content_type),
            date_line(),
            len(self.body),
            extra,
            b"Connection: close\r\n" if close else b"",
        )


def event_stream_head(*, chunked: bool, headers: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """
    Return the head of a response of Server-Sent Events, which has no end.

    Args:
        chunked: Whether the body comes in chunks (HTTP/1.1); if not, the connection's end ends it.
        headers: Further headers.
    """
    # With chunks there is no "Connection: close": Node takes any end after it for a clean one.
    framing = b"Transfer-Encoding: chunked\r\n" if chunked else b"Connection: close\r\n"
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    return _EVENT_STREAM % (date_line(), framing, lines)


def json_response(status: int, value: object, *headers: tuple[bytes, bytes]) -> Response:
    """Return a response with ``value`` as JSON."""
    return Response(status, JSON, json.dumps(value).encode("ascii") + b"\n", headers)


def poll_response(result: PollResult) -> Response:
    """Return the response to a long-poll."""
    return Response(200, JSON, result.body, ((b"Cache-Control", b"no-store"),))


def error_response(error: PlumberError) -> Response:
    """Return the response that tells a client of ``error``."""
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after is not None:
        headers.append((b"Retry-After", b"%d" % error.retry_after))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"Allow", error.allow.encode("ascii")))
    headers.extend(getattr(error, "headers", ()))
    if error.body is not None:
        return Response(error.status, *error.body, tuple(headers), error=error)
    response = json_response(
        error.status, {"error": {"code": error.code, "message": error.message}}, *headers
    )
    return response._replace(error=error)


def receipt_members(receipt: Receipt) -> str:
    """Return the members of a receipt's JSON object; by hand, as this is on the fast path."""
    id, cursor, duplicate, subscribers, instances = receipt
    there = ",".join([f'"{state}":{number}' for state, number in instances.items()])
    place = f'"{cursor}"' if cursor else "null"
    return (
        f'"id":{quoted(id)},"cursor":{place},"duplicate":{"true" if duplicate else "false"},'
        f'"subscribers":{subscribers},"instances":{{{there}}}'
    )


def receipt_status(receipts: Sequence[Receipt]) -> int:
    """Return 201 if an event has reached a subscriber, 202 if it is only stored, as nchan does."""
    if len(receipts) == 1:
        return 201 if receipts[0].subscribers else 202
    return 201 if any(receipt.subscribers for receipt in receipts) else 202


def receipt_response(
    receipts: Sequence[Receipt], *, batch: bool = False, skyhooks: bool = False
) -> Response:
    """
    Return the response to a POST that was accepted.

    Args:
        receipts: One for each event.
        batch: Whether the POST was a batch, whose response has a list of receipts.
        skyhooks: Whether the client is one of skyhooks', which looks for ``notified``.
    """
    if batch:
        each = ",".join([f"{{{receipt_members(receipt)}}}" for receipt in receipts])
        body = f'{{"status":"ok","receipts":[{each}]}}\n'
        return Response(receipt_status(receipts), JSON, body.encode("ascii"))
    notified = f'"notified":{"true" if receipts[0].subscribers else "false"},' if skyhooks else ""
    body = f'{{"status":"ok",{notified}{receipt_members(receipts[0])}}}\n'
    return Response(receipt_status(receipts), JSON, body.encode("ascii"))
