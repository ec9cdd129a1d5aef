"""A carrier whose batches wait until the test answers them."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from asyncplumber.event import Event, Instance
from asyncplumber.interfaces import Deliver, ICarrier, RelayFailed

Batch = tuple[Instance, Sequence[Event], Deferred[dict[str, int]]]


@implementer(ICarrier)
class HeldCarrier:
    """Holds each batch until the test answers it."""

    def __init__(self) -> None:
        self.waiting: list[Batch] = []  # the test takes them out, or leaves them in
        self.cancelled = 0  # batches
        self.is_down = False  # nothing gets out any more
        self.is_started = False

    def start(self, deliver: Deliver) -> Deferred[None]:
        self.is_started = True
        return succeed(None)

    def carry(self, instance: Instance, events: Sequence[Event]) -> Deferred[dict[str, int]]:
        if self.is_down:
            return fail(RelayFailed("the carrier is down"))
        answer: Deferred[dict[str, int]] = Deferred(self._cancel)
        self.waiting.append((instance, events, answer))
        return answer

    def _cancel(self, _: Deferred[dict[str, int]]) -> None:
        self.cancelled += 1

    def stop(self) -> Deferred[None]:
        self.is_started = False
        return succeed(None)
