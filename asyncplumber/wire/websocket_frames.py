"""WebSocket frames (RFC 6455, 5.2)."""

from __future__ import annotations


def frame(payload: bytes) -> bytes:
    """One unmasked, unfragmented WebSocket text message."""
    size = len(payload)
    if size < 126:
        return b"\x81%c%b" % (size, payload)
    if size < 65536:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), payload)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), payload)
