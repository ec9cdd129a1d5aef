"""Revocations and spent tickets in this process's memory."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from asyncplumber.clocks import TimeSource
from asyncplumber.interfaces import MAX_REVOCATIONS, IRevocations, Revocation, RevocationKind
from asyncplumber.stores.revocations import merged, too_many


@implementer(IRevocations)
class MemoryRevocations:
    """
    Revocations in this process's memory.

    Instances that use the same object see each other's.
    """

    def __init__(self, clock: TimeSource, limit: int = MAX_REVOCATIONS) -> None:
        self.limit = limit
        self._clock = clock
        self._version = 0
        self._rows: dict[tuple[RevocationKind, str], Revocation] = {}
        self._spent: dict[str, float] = {}  # tickets, and when each ends

    def revoke(self, revocation: Revocation) -> Deferred[Revocation]:
        self._forget()
        key = revocation.kind, revocation.value
        former = self._rows.get(key)
        if former is None and len(self._rows) >= self.limit:
            return fail(too_many(self.limit))
        self._rows[key] = row = merged(former, revocation)
        self._version += 1
        return succeed(row)

    def version(self) -> Deferred[int]:
        return succeed(self._version)

    def revocations(self) -> Deferred[list[Revocation]]:
        self._forget()
        return succeed(list(self._rows.values()))

    def spend(self, ticket: str, expires_at: float) -> Deferred[bool]:
        is_new = ticket not in self._spent
        self._spent.setdefault(ticket, expires_at)
        return succeed(is_new)

    def sweep(self) -> Deferred[int]:
        now = self._clock.seconds()
        self._spent = {id: ends for id, ends in self._spent.items() if ends > now}
        return succeed(self._forget())

    def _forget(self) -> int:
        """Delete the revocations that have ended, and return their number."""
        now = self._clock.seconds()
        before = len(self._rows)
        self._rows = {key: row for key, row in self._rows.items() if row.expires_at > now}
        return before - len(self._rows)
