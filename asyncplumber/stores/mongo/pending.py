"""Drafts that wait to be written, and their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bson import ObjectId
from twisted.internet.defer import Deferred, succeed

from asyncplumber.errors import PlumberError
from asyncplumber.event import Draft, Stored

Result = Stored | PlumberError

BATCH_EVENTS = 500  # in one insert
BATCH_BYTES = 4 * 1024 * 1024  # of payloads in one insert; or one event


class _AppendCall:
    """One append and its results so far."""

    def __init__(self, size: int) -> None:
        self._results: list[Result | None] = [None] * size
        self._missing = size
        self.deferred: Deferred[list[Any]] = Deferred()

    def settle(self, index: int, result: Result) -> None:
        self._results[index] = result
        self._missing -= 1
        if self._missing:
            return
        first = self._results[0]
        if isinstance(first, PlumberError) and all(
            type(result) is type(first) for result in self._results
        ):
            self.deferred.errback(first)
        else:
            self.deferred.callback(self._results)


class PendingDraft:
    """
    A draft on its way.

    Attributes:
        draft: The draft.
        id: The id of its document.  It tells our own earlier attempt from somebody else's event.
        found: What was found in the history, and is not known to be durable yet.
    """

    __slots__ = ("_call", "_index", "draft", "found", "id")

    def __init__(self, draft: Draft, call: _AppendCall, index: int) -> None:
        self.draft = draft
        self.id = ObjectId()
        self.found: Stored | None = None
        self._call: _AppendCall | None = call
        self._index = index

    @property
    def is_waiting(self) -> bool:
        """Whether it has no result yet."""
        return self._call is not None

    def settle(self, result: Result) -> None:
        """Set the result.  Only the first one counts."""
        call, self._call = self._call, None
        if call is not None:
            call.settle(self._index, result)


class DraftQueue:
    """Drafts in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: list[PendingDraft] = []
        self._taken: list[PendingDraft] = []

    def __bool__(self) -> bool:
        """Whether drafts wait that were not taken."""
        return bool(self._waiting)

    def put(self, drafts: Sequence[Draft]) -> Deferred[list[Result]]:
        """Return a Deferred of the results, in the order of `drafts`."""
        if not drafts:
            return succeed([])
        call = _AppendCall(len(drafts))
        self._waiting += [PendingDraft(draft, call, index) for index, draft in enumerate(drafts)]
        return call.deferred

    def take(self, skipped: Mapping[str, float]) -> list[PendingDraft]:
        """Take the next batch, and leave the drafts of `skipped` accounts where they are."""
        batch: list[PendingDraft] = []
        rest: list[PendingDraft] = []
        size = 0
        for index, pending in enumerate(self._waiting):
            if pending.draft.account in skipped:
                rest.append(pending)
                continue
            size += len(pending.draft.payload)
            if batch and (len(batch) == BATCH_EVENTS or size > BATCH_BYTES):
                rest += self._waiting[index:]
                break
            batch.append(pending)
        self._waiting, self._taken = rest, batch
        return batch

    def fail(self, error: PlumberError) -> None:
        """Set this result for all drafts that wait or were taken."""
        failed = self._taken + self._waiting
        self._taken, self._waiting = [], []
        for pending in failed:
            pending.settle(error)
