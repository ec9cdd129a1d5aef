"""A subscriber for tests."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from asyncplumber.errors import PlumberError
from asyncplumber.event import Cursor, Event, Position
from asyncplumber.interfaces import PAGE_BYTES, ISubscriber
from asyncplumber.wire.delivery import Delivery


@implementer(ISubscriber)
class RecordingSubscriber:
    """
    Remembers what it is told.

    Attributes:
        events: The events, in the order in which they came.
        cursor: The position at which it was subscribed; None before that.
        gaps: For each gap, the last position before it, and how far the history reaches.
        ended: Why the hub ended the subscription; None if the instance stops.
        slow: While it is set, there is no room for a further page of a replay.
    """

    page_size = PAGE_BYTES

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.cursor: Cursor | None = None
        self.gaps: list[tuple[Cursor, Position]] = []
        self.ended: list[PlumberError | None] = []
        self.slow: Deferred[None] | None = None

    def opened(self, cursor: Cursor) -> None:
        self.cursor = cursor

    def deliver(self, batch: Delivery) -> None:
        self.events.extend(batch.events)

    def replayed(self, size: int) -> None:
        """Remember nothing."""

    def caught_up(self) -> None:
        """Remember nothing."""

    def missed(self, cursor: Cursor, position: Position) -> None:
        self.gaps.append((cursor, position))

    def drained(self) -> Deferred[None]:
        return self.slow if self.slow is not None else succeed(None)

    def end(self, error: PlumberError | None) -> None:
        self.ended.append(error)
