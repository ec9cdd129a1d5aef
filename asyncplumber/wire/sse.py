"""Server-Sent Events (WHATWG HTML, 9.2), and the chunks of HTTP/1.1 that carry them."""

from __future__ import annotations


def record(cursor: str, type: str, data: bytes) -> bytes:
    """
    One Server-Sent Event.  Neither `type` nor `data` may hold a line break: envelopes never do.

    An empty `cursor` leaves the client's last event id as it was.
    """
    id = b"id: %b\n" % cursor.encode("ascii") if cursor else b""
    return b"%bevent: %b\ndata: %b\n\n" % (id, type.encode(), data)


def chunk(data: bytes) -> bytes:
    """One chunk of an HTTP/1.1 answer (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)
