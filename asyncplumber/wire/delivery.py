"""
Events of one account on their way to its subscribers, with the bytes of each transport, which are
built once.
"""

from __future__ import annotations

from collections.abc import Sequence

from asyncplumber.event import Event
from asyncplumber.wire.envelope import envelope
from asyncplumber.wire.sse import chunk, record
from asyncplumber.wire.websocket_frames import frame


def _cursor(event: Event) -> str:
    return f"{event.epoch}.{event.seq}" if event.epoch else ""


# What a transport puts around an envelope, besides the type: a record of Server-Sent Events has the
# cursor a second time.
_SURROUNDINGS = 96  # bytes


def first_page(events: Sequence[Event], size: int) -> Delivery:
    """The first of these events that fit into `size` bytes on any transport; at least one."""
    count = 0
    envelopes: list[bytes] = []
    for event in events:
        text = envelope(event)
        size -= len(text) + len(event.type.encode()) + _SURROUNDINGS
        if count and size < 0:
            break
        envelopes.append(text)
        count += 1
    return Delivery(events[:count], envelopes)


class Delivery:
    """
    Some events of one account, in order, with the bytes that carry them, each kind built when first
    asked for.
    """

    __slots__ = ("_chunk", "_envelopes", "_frames", "_records", "events")

    def __init__(self, events: Sequence[Event], envelopes: list[bytes] | None = None) -> None:
        """`envelopes` are those of the events, where they were built before."""
        self.events = events
        self._envelopes = envelopes
        self._frames: bytes | None = None
        self._records: bytes | None = None
        self._chunk: bytes | None = None

    @property
    def envelopes(self) -> list[bytes]:
        """An envelope for each event."""
        if self._envelopes is None:
            self._envelopes = [*map(envelope, self.events)]
        return self._envelopes

    @property
    def frames(self) -> bytes:
        """All the events as WebSocket messages, one after the other."""
        if self._frames is None:
            self._frames = b"".join(map(frame, self.envelopes))
        return self._frames

    @property
    def records(self) -> bytes:
        """All the events as Server-Sent Events."""
        if self._records is None:
            self._records = b"".join(
                record(_cursor(event), event.type, text)
                for event, text in zip(self.events, self.envelopes, strict=True)
            )
        return self._records

    @property
    def chunk(self) -> bytes:
        """The same as one chunk."""
        if self._chunk is None:
            self._chunk = chunk(self.records)
        return self._chunk
