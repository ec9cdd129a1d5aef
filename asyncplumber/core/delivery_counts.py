"""How many subscribers were given an event, counted at the moment they were given it."""

from __future__ import annotations

from collections.abc import Sequence

from asyncplumber.event import Event

REMEMBERED = 128  # batches of one account, and up to twice as many: receipts and retries come soon


class DeliveryCounts:
    """
    The counts of the latest events of one account.  The events are added in their order.

    A count that is taken later than the event is given would be wrong: a long-poll is answered with
    its first event and is gone, and who comes meanwhile stands behind the event.
    """

    __slots__ = ("_batches",)

    def __init__(self) -> None:
        # A list and no deque: most accounts are idle, and an empty deque has half a kilobyte.
        self._batches: list[tuple[str, int, int, int]] = []

    def add(self, events: Sequence[Event], count: int) -> None:
        """These events, which follow each other, were given to so many."""
        batches = self._batches
        last = events[-1]
        batches.append((last.epoch, events[0].seq, last.seq, count))
        if len(batches) > 2 * REMEMBERED:
            del batches[:REMEMBERED]

    def count(self, event: Event) -> int | None:
        """Return how many were given this event; None if that is not known."""
        for epoch, first, last, count in reversed(self._batches):
            if first <= event.seq <= last and epoch == event.epoch:
                return count
        return None
