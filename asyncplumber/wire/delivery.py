"""Events of one account on their way to its subscribers, as the bytes of each transport."""

from __future__ import annotations

from collections.abc import Sequence

from asyncplumber.event import Event
from asyncplumber.wire.envelope import envelope
from asyncplumber.wire.sse import chunk, record
from asyncplumber.wire.websocket_frames import frame

# Bytes that a transport adds to an envelope and its type, at most: a record of Server-Sent Events
# repeats the cursor.
OVERHEAD = 96


class Delivery:
    """
    Some events of one account, in order, with the bytes that carry them.

    Each kind of bytes is built when it is first needed, once for all subscribers.
    """

    __slots__ = ("_chunk", "_envelopes", "_frames", "_records", "events")

    def __init__(self, events: Sequence[Event], envelopes: list[bytes] | None = None) -> None:
        """`envelopes` are those of the events; None builds them when they are needed."""
        self.events = events
        self._envelopes = envelopes
        self._frames: bytes | None = None
        self._records: bytes | None = None
        self._chunk: bytes | None = None

    @classmethod
    def page(cls, events: Sequence[Event], size: int) -> Delivery:
        """
        Return the first of these events, as many as fit into `size` bytes on any transport.

        It is at least one event, whatever its size.
        """
        envelopes: list[bytes] = []
        for event in events:
            text = envelope(event)
            size -= len(text) + len(event.type.encode()) + OVERHEAD
            if envelopes and size < 0:
                break
            envelopes.append(text)
        return cls(events[: len(envelopes)], envelopes)

    @property
    def envelopes(self) -> list[bytes]:
        """The envelope of each event."""
        if self._envelopes is None:
            self._envelopes = [*map(envelope, self.events)]
        return self._envelopes

    @property
    def frames(self) -> bytes:
        """All events as WebSocket frames."""
        if self._frames is None:
            self._frames = b"".join(map(frame, self.envelopes))
        return self._frames

    @property
    def records(self) -> bytes:
        """All events as Server-Sent Events."""
        if self._records is None:
            self._records = b"".join(
                record(f"{event.epoch}.{event.seq}" if event.epoch else "", event.type, text)
                for event, text in zip(self.events, self.envelopes, strict=True)
            )
        return self._records

    @property
    def chunk(self) -> bytes:
        """All events as Server-Sent Events, in one chunk."""
        if self._chunk is None:
            self._chunk = chunk(self.records)
        return self._chunk
