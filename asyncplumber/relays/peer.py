"""One other instance as the relay sees it: what waits for it, and when to try again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from asyncplumber.concurrency import SingleFlight
from asyncplumber.event import Event, Instance
from asyncplumber.interfaces import RelayFailed
from asyncplumber.wire.event_batch import BATCH_BYTES, pieces, weight

MAX_QUEUED_EVENTS = 10_000  # for one instance; it finds what is beyond that in the history
MAX_QUEUED_BYTES = 16 * 1024 * 1024  # of queued events; a single `add` may exceed it
INITIAL_BACKOFF = 0.5  # seconds that a failing instance is left alone; they double at each failure
MAX_BACKOFF = 8.0  # seconds
MAX_DOUBLINGS = 10  # more than reach `MAX_BACKOFF`; a float has no room for thousands of them


class Peer:
    """The queue for one instance, and how it has answered."""

    def __init__(
        self, instance: Instance, send: Callable[[Peer], Coroutine[Any, Any, None]]
    ) -> None:
        """`send` carries what is queued; it is run by `sending`, once at a time."""
        self.instance = instance
        self.sending = SingleFlight(lambda: send(self), "relaying to an instance")
        self.is_overdue = False  # whether a receipt did not wait for its answer
        self.failures = 0  # in a row
        self.retry_at = 0.0  # in seconds of the relay's clock; until then nothing is sent
        self._queue: deque[tuple[Sequence[Event], Deferred[dict[str, int]]]] = deque()
        self._events = 0
        self._bytes = 0

    @property
    def has_queued(self) -> bool:
        """Whether something waits to be carried."""
        return bool(self._queue)

    @property
    def queued(self) -> int:
        """How many events wait to be carried."""
        return self._events

    def add(self, events: Sequence[Event]) -> list[Deferred[dict[str, int]]]:
        """
        Queue events, in pieces that fit into a batch.

        Returns:
            A Deferred for each piece, of the answer to it.  Raises `RelayFailed` if too much waits.
        """
        size = weight(events)
        if self._events + len(events) > MAX_QUEUED_EVENTS or (
            self._bytes and self._bytes + size > MAX_QUEUED_BYTES
        ):
            raise RelayFailed("too much waits for the instance")
        answers = []
        for piece in pieces(events):
            answer: Deferred[dict[str, int]] = Deferred()
            self._queue.append((piece, answer))
            answers.append(answer)
        self._events += len(events)
        self._bytes += size
        return answers

    def take(self) -> tuple[list[Event], list[Deferred[dict[str, int]]]]:
        """Take the next batch from the queue, with the Deferreds that wait for its answer."""
        events: list[Event] = []
        answers = []
        size = 0
        while self._queue:
            piece, answer = self._queue[0]
            total = size + weight(piece)
            if events and total > BATCH_BYTES:
                break
            size = total
            self._queue.popleft()
            events.extend(piece)
            answers.append(answer)
        self._events -= len(events)
        self._bytes -= size
        return events, answers

    def drop(self) -> list[Deferred[dict[str, int]]]:
        """Empty the queue; return the Deferreds that wait for answers."""
        answers = [answer for _, answer in self._queue]
        self._queue.clear()
        self._events = self._bytes = 0
        return answers

    def failed(self, now: float) -> None:
        """A batch was not taken: leave the instance alone for a while."""
        doublings = min(self.failures, MAX_DOUBLINGS)
        self.failures += 1
        self.retry_at = now + min(MAX_BACKOFF, INITIAL_BACKOFF * 2**doublings)

    def forget_failures(self) -> None:
        """Begin anew: the instance has answered, or is not in the registry any more."""
        self.failures = 0
        self.retry_at = 0.0
