"""Server-Sent Events (WHATWG HTML, 9.2), and the chunks of HTTP/1.1 that carry them."""

from __future__ import annotations


def record(cursor: str, type: str, data: bytes) -> bytes:
    """
    Return one Server-Sent Event.

    Args:
        cursor: The client's new last event id; empty leaves the id as it is.
        type: The event's type, without line breaks.
        data: One line, as envelopes are.
    """
    id = b"id: %b\n" % cursor.encode("ascii") if cursor else b""
    return b"%bevent: %b\ndata: %b\n\n" % (id, type.encode(), data)


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)
