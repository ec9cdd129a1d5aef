"""Which transport a subscriber gets: the request chooses it, as HTTP does (RFC 9110, 12)."""

from __future__ import annotations

from enum import Enum, auto

from asyncplumber.wire.fields import Headers


class Transport(Enum):
    """The ways to receive events."""

    WEBSOCKET = auto()
    EVENT_STREAM = auto()
    LONG_POLL = auto()


WEBSOCKET, EVENT_STREAM, LONG_POLL = Transport


def choose(headers: Headers, *, upgrade: bool) -> Transport:
    """Return the transport for a request; ``upgrade`` says that it asks for a WebSocket."""
    if upgrade:
        return WEBSOCKET
    if b"text/event-stream" in headers.get(b"accept", b""):
        return EVENT_STREAM
    return LONG_POLL
