"""HTTP requests as text, and what their responses say."""

from __future__ import annotations

import json

from asyncplumber.testing import ClientResponse

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
POLL = b"GET /events/a HTTP/1.1\r\nHost: localhost\r\n\r\n"
EVENT_STREAM = b"GET /events/a HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"


def post(body: bytes, path: bytes = b"/hooks/a", *lines: bytes) -> bytes:
    """Return a POST as it goes over the wire."""
    return b"\r\n".join(
        [
            b"POST %b HTTP/1.1" % path,
            b"Host: localhost",
            b"Content-Length: %d" % len(body),
            *lines,
            b"",
            body,
        ]
    )


def error_code(reply: ClientResponse) -> tuple[int, str]:
    """Return the status of an error, and its code."""
    return reply.status, json.loads(reply.body)["error"]["code"]
