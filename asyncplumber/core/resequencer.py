"""
Events fall into their order.  Pure: no clock, no store, no subscriber.

Events of one account may arrive early, twice or not at all.  Early ones wait, doubles are dropped,
and whoever asks learns whether something is missing.
"""

from __future__ import annotations

from asyncplumber.event import Cursor, Event, Position
from asyncplumber.wire.delivery import Delivery

COALESCED = 256 * 1024  # bytes of payloads that go out as one write per subscriber
# Early events that wait, and bytes of their payloads; beyond that they are dropped, and fetched
# when their turn comes.
AHEAD, AHEAD_BYTES = 1024, 1024 * 1024


class Resequencer:
    """The queue of one account's events that are due, and those that came before their turn."""

    def __init__(self, head: Cursor | None = None) -> None:
        """
        `head` is where the queue begins; None means that it is not known yet, and everything waits.
        """
        self.head = head
        self._queue: list[Event] = []
        self._early: dict[tuple[str, int], Event] = {}
        self._early_bytes = 0
        self._dropped = False  # something early, since the head was last known

    @property
    def is_due(self) -> bool:
        """Whether there is something for `take`."""
        return bool(self._queue)

    def begin(self, head: Cursor) -> bool:
        """
        Go on after `head`: what is before it is dropped, what waited and is due falls into place.

        @return: whether something is missing before what still waits.
        """
        self.head = head
        early, self._early = self._early, {}
        self._early_bytes = 0
        dropped, self._dropped = self._dropped, False
        for event in early.values():
            self.arrive(event)
        return bool(self._early) or dropped

    def arrive(self, event: Event) -> bool:
        """Put an event in its place.  @return: whether something before it is missing."""
        head = self.head
        if head is None:
            self._wait(event)
            return False
        epoch, seq = head
        if event.epoch != epoch:
            if event.epoch < epoch:
                return False
            # Epochs sort by time: the numbering began anew, and where to go on is to be asked.
            self._wait(event)
            return True
        seq += 1
        if event.seq == seq:
            self._queue.append(event)
            while self._early and (early := self._early.pop((epoch, seq + 1), None)) is not None:
                self._queue.append(early)
                self._early_bytes -= len(early.payload)
                seq += 1
            self.head = Cursor(epoch, seq)
            return False
        if event.seq < seq:
            return False
        self._wait(event)
        return True

    def _wait(self, event: Event) -> None:
        place, size = (event.epoch, event.seq), len(event.payload)
        if place in self._early:
            return
        if len(self._early) < AHEAD and self._early_bytes + size <= AHEAD_BYTES:
            self._early[place] = event
            self._early_bytes += size
        else:
            self._dropped = True

    def is_behind(self, history: Cursor) -> bool:
        """
        Whether the history, whose head this is, is not as we know it.

        A head before ours is a history put back from a backup, where our numbers are given out
        again; or the question was older than what arrived since, and then asking the history does
        no harm.
        """
        return self.head is not None and (bool(self._early) or history != self.head)

    def take(self) -> Delivery | None:
        """The next events that go out together, or None."""
        queue = self._queue
        if not queue:
            return None
        if len(queue) == 1:
            self._queue = []
            return Delivery(queue)
        count, size = 1, len(queue[0].payload)
        while count < len(queue) and (size := size + len(queue[count].payload)) <= COALESCED:
            count += 1
        self._queue = queue[count:]
        return Delivery(queue if count == len(queue) else queue[:count])

    def jump(self, position: Position) -> bool:
        """
        Go on from the head of the history: what is before it will not come.  @return: see `begin`.
        """
        self._queue.clear()
        return self.begin(position.cursor)

    def clear(self) -> None:
        """Forget everything."""
        self._queue.clear()
        self._early.clear()
        self._early_bytes = 0
