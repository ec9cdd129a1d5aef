"""
Put the events of one account into their order.

Events may arrive early, twice or not at all.  Early ones wait, duplicates are dropped, and the
caller learns when something is missing.  This module is pure: no clock, no store, no subscriber.
"""

from __future__ import annotations

from asyncplumber.event import Cursor, Event
from asyncplumber.wire.delivery import Delivery

# Bytes of payloads that go out as one write to each subscriber.  A single event may be larger.
MAX_BATCH_BYTES = 256 * 1024
# Limits on early events that wait.  Beyond these limits they are dropped, and read from the history
# when their turn comes.
MAX_EARLY_EVENTS = 1024
MAX_EARLY_BYTES = 1024 * 1024  # of their payloads


class Resequencer:
    """A queue of events that are in order, and a store of events that are early."""

    __slots__ = ("_early", "_early_bytes", "due", "head")

    def __init__(self, head: Cursor) -> None:
        """Begin after ``head``."""
        self.head = head  # the last event that was queued
        self.due: list[Event] = []  # events that are in order and were not taken yet
        # None while empty: most accounts are idle, and each empty dict takes 64 bytes.
        self._early: dict[tuple[str, int], Event] | None = None
        self._early_bytes = 0

    def arrive(self, event: Event) -> bool:
        """
        Queue an event, or keep it until its turn comes, or drop it if it was queued before.

        Returns:
            Whether events before it are missing.
        """
        epoch, seq = self.head
        if event.epoch != epoch:
            # Epochs sort by time.  A later one means that the numbering began anew, and only the
            # history knows where.
            if event.epoch < epoch:
                return False
            self._keep(event)
            return True
        if event.seq == seq + 1:
            self.due.append(event)
            self.head = Cursor(epoch, event.seq)
            if self._early:
                self._queue_early()
            return False
        if event.seq <= seq:
            return False
        self._keep(event)
        return True

    def _keep(self, event: Event) -> None:
        early = self._early
        if early is None:
            early = self._early = {}
        key, size = (event.epoch, event.seq), len(event.payload)
        if (
            key not in early
            and len(early) < MAX_EARLY_EVENTS
            and self._early_bytes + size <= MAX_EARLY_BYTES
        ):
            early[key] = event
            self._early_bytes += size

    def _queue_early(self) -> None:
        """Queue the early events that follow the head."""
        epoch, seq = self.head
        early = self._early or {}
        while (event := early.pop((epoch, seq + 1), None)) is not None:
            self.due.append(event)
            self._early_bytes -= len(event.payload)
            seq += 1
        self.head = Cursor(epoch, seq)
        if not early:
            self._early = None

    def take(self) -> Delivery:
        """Take the next events that go out together.  Call this while some are `due`."""
        due = self.due
        if len(due) == 1:  # nearly always
            self.due = []
            return Delivery(due)
        count, size = 1, len(due[0].payload)
        while count < len(due) and (size := size + len(due[count].payload)) <= MAX_BATCH_BYTES:
            count += 1
        self.due = due[count:]
        return Delivery(due if count == len(due) else due[:count])

    def is_behind(self, head: Cursor) -> bool:
        """
        Whether the history, whose head is given, may have something that did not arrive here.

        A head before ours can mean that the history was restored from a backup, where our numbers
        are given out again.  It can also be an answer that is older than our latest event; then to
        read the history does no harm.
        """
        return bool(self._early) or head != self.head

    def restart(self, head: Cursor) -> None:
        """Continue after ``head``, with the early events that follow it.  Nothing is `due`."""
        assert not self.due, "what is due would be lost"
        self.head = head
        early, self._early = self._early, None
        self._early_bytes = 0
        for event in (early or {}).values():
            self.arrive(event)

    def clear(self) -> None:
        """Drop everything."""
        self.due.clear()
        self._early = None
        self._early_bytes = 0
