"""What waits to be written, and whose turn it is."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import Any

from bson import ObjectId
from twisted.internet.defer import Deferred, succeed

from asyncplumber.errors import PlumberError
from asyncplumber.event import Draft, Stored

BATCH_EVENTS = 500  # in one insert
BATCH_BYTES = 4 * 1024 * 1024  # of payloads in one insert; or one event
CONTENDED = 1.0  # seconds after a lost race in which an account counts as contended
HOLD = (
    0.0,
    0.002,
    # seconds that a winner leaves a contended account to the others: about what a loser needs to catch
    # up
)


class _Call:
    """One append and its answers so far."""

    def __init__(self, size: int) -> None:
        self.answers: list[Stored | PlumberError | None] = [None] * size
        self.missing = size
        self.deferred: Deferred[list[Any]] = Deferred()

    def settle(self, index: int, answer: Stored | PlumberError) -> None:
        self.answers[index] = answer
        self.missing -= 1
        if self.missing:
            return
        first = self.answers[0]
        if isinstance(first, PlumberError) and all(
            type(answer) is type(first) for answer in self.answers
        ):
            self.deferred.errback(first)
        else:
            self.deferred.callback(self.answers)


class Slot:
    """
    A draft on its way.  `id` is its document's: by it an earlier attempt of ours is recognised.
    """

    __slots__ = ("_call", "_index", "draft", "id")

    def __init__(self, draft: Draft, call: _Call, index: int) -> None:
        self.draft = draft
        self.id = ObjectId()
        self._call: _Call | None = call
        self._index = index

    @property
    def waits(self) -> bool:
        """Whether it has no answer yet."""
        return self._call is not None

    def settle(self, answer: Stored | PlumberError) -> None:
        """Give the answer; the first one counts."""
        call, self._call = self._call, None
        if call is not None:
            call.settle(self._index, answer)


class Queue:
    """
    Drafts in the order they came.  After a race for an account was lost, whoever wins it next waits
    for a moment.
    """

    def __init__(self) -> None:
        self._slots: list[Slot] = []
        self._taken: list[Slot] = []
        self._lost: dict[str, float] = {}
        self._held: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._slots)

    def put(self, drafts: Sequence[Draft]) -> Deferred[list[Stored | PlumberError]]:
        """@return: Deferred of the answers, in the order of `drafts`."""
        if not drafts:
            return succeed([])
        call = _Call(len(drafts))
        self._slots += [Slot(draft, call, index) for index, draft in enumerate(drafts)]
        return call.deferred

    def take(self) -> tuple[float, list[Slot]]:
        """
        The next batch; or, if all that waits is for held accounts, the seconds until one is free,
        and nothing.
        """
        now = monotonic()
        self._held = {account: until for account, until in self._held.items() if until > now}
        batch: list[Slot] = []
        rest: list[Slot] = []
        size = 0
        for index, slot in enumerate(self._slots):
            if slot.draft.account in self._held:
                rest.append(slot)
                continue
            size += len(slot.draft.payload)
            if batch and (len(batch) == BATCH_EVENTS or size > BATCH_BYTES):
                rest += self._slots[index:]
                break
            batch.append(slot)
        self._slots, self._taken = rest, batch
        if batch or not rest:
            return 0.0, batch
        return min(self._held.values()) - now, batch

    def lost(self, account: str) -> None:
        """Another process got its numbers in first."""
        self._lost[account] = monotonic()

    def won(self, accounts: Iterable[str]) -> None:
        """A batch with these accounts went in."""
        if not self._lost:
            return
        now = monotonic()
        self._lost = {
            account: when for account, when in self._lost.items() if when > now - CONTENDED
        }
        for account in self._lost.keys() & set(accounts):
            self._held[account] = now + random.uniform(*HOLD)

    def fail(self, error: PlumberError) -> None:
        """The same answer for all that waits or was taken."""
        slots = self._taken + self._slots
        self._taken, self._slots = [], []
        for slot in slots:
            slot.settle(error)
