"""How many subscribers were given an event, counted when it was delivered."""

from __future__ import annotations

from collections.abc import Sequence

from asyncplumber.event import Event

# Batches of one account that are remembered, at least; up to twice as many are.  Receipts, and
# retries of a POST, ask for the count soon after the delivery.
REMEMBERED_BATCHES = 128


class DeliveryCounts:
    """
    The counts of the latest events of one account.

    The count has to be taken at the delivery.  Later it would be wrong: a long-poll leaves with its
    first event, and a new subscriber begins after the event.
    """

    __slots__ = ("_batches",)

    def __init__(self) -> None:
        # (epoch, first number, last number, count) of each batch.  A list and no deque: most
        # accounts are idle, and an empty deque takes half a kilobyte.
        self._batches: list[tuple[str, int, int, int]] = []

    def add(self, events: Sequence[Event], count: int) -> None:
        """Remember that these events, which follow each other, went to ``count`` subscribers."""
        batches = self._batches
        last = events[-1]
        batches.append((last.epoch, events[0].seq, last.seq, count))
        if len(batches) > 2 * REMEMBERED_BATCHES:
            del batches[:REMEMBERED_BATCHES]

    def count(self, event: Event) -> int | None:
        """Return how many subscribers were given this event; None if that is not known."""
        for epoch, first, last, count in reversed(self._batches):
            if first <= event.seq <= last and epoch == event.epoch:
                return count
        return None
