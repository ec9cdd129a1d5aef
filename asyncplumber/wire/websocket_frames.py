"""WebSocket frames of a server (RFC 6455, 5.2 and 5.5): unmasked and unfragmented."""

from __future__ import annotations

PING = b"\x89\x00"  # without a payload


def frame(payload: bytes) -> bytes:
    """Return a text message."""
    size = len(payload)
    if size < 126:
        return b"\x81%c%b" % (size, payload)
    if size < 65536:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), payload)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), payload)


def pong(payload: bytes) -> bytes:
    """Return the answer to a ping with this payload, which has at most 125 bytes."""
    return b"\x8a%c%b" % (len(payload), payload)


def close(code: int, reason: str) -> bytes:
    """Return a close frame.  A control frame has little room, so a long reason is cut."""
    # Cut at the end of a character: a client checks the UTF-8.
    text = reason.encode()[:123].decode(errors="ignore").encode()
    return b"\x88%c%b%b" % (2 + len(text), code.to_bytes(2, "big"), text)
