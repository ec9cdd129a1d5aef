"""
What waits in an outbox, and what gives way when there is too much.

Knows no socket, no thread and no clock.  Needs only the standard library.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from asyncplumber.client.request import Request


class Kind(IntEnum):
    """What an entry is.  In a full outbox a higher kind takes the place of a lower one."""

    BEAT = 0  # a run goes on
    PROGRESS = 1  # how far a run is: a newer one takes its place
    BEGIN = 2  # a run begins: its end says the same
    EVENT = 3  # what nobody repeats: an event, or the end of a run
    END = 4


@dataclass(eq=False, slots=True)
class Entry:
    """
    One request that waits.

    Attributes:
        request: The request.
        kind: What it is.
        expires: When it is given up, on the outbox's clock.
        not_before: When it may be sent, unless something else of its run waits behind it.
        owner: The run that it reports of; None for an event.
        prepare: Returns the request as it is to be sent now; None sends it as it is.
        settle: Told the answer, or the exception that says why there is none.  It may return an
            entry that takes the place of this one.  None for an event.
    """

    request: Request
    kind: Kind = Kind.EVENT
    expires: float = float("inf")
    not_before: float = 0.0
    owner: object = None
    prepare: Callable[[Request], Request] | None = None
    settle: Callable[[Any], Entry | None] | None = None

    def prepared(self) -> Request:
        """Return the request as it is to be sent now."""
        return self.request if self.prepare is None else self.prepare(self.request)

    @property
    def is_low(self) -> bool:
        """Whether something that comes later says the same."""
        return self.kind < Kind.EVENT


class WaitingEntries:
    """
    The entries of one outbox, the oldest first.

    Entries of one run stay in their order.  Of one run there are at most its beginning, one
    progress and its end: a newer progress takes the place of an older one, and a beat waits only if
    nothing else of the run does.
    """

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        """
        Args:
            max_entries: The most entries.
            max_bytes: The most bytes of their bodies.
        """
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._entries: OrderedDict[Entry, None] = OrderedDict()
        self._by_run: dict[tuple[int, Kind], Entry] = {}
        self._bytes = 0
        #: The entry that is being sent.  It stays in its place, and nothing replaces it.
        self.sending: Entry | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._entries

    def next(self, now: float) -> Entry | float | None:
        """
        Return the oldest entry that may be sent; or when there will be one; None if there is none.

        Args:
            now: The outbox's clock; infinity if nothing is to be waited for.
        """
        moment = None
        for entry in self._entries:
            if entry.not_before <= now or self.has_end(entry.owner):
                return entry
            moment = min(entry.not_before, moment or entry.not_before)
        return moment

    def has_end(self, owner: object) -> bool:
        """Return whether the end of this run waits."""
        return (id(owner), Kind.END) in self._by_run

    def has(self, owner: object) -> bool:
        """Return whether anything of this run waits."""
        return any((id(owner), kind) in self._by_run for kind in Kind)

    def add(self, entry: Entry, now: float) -> list[Entry] | None:
        """
        Add an entry.

        Args:
            entry: The entry.
            now: The outbox's clock.

        Returns:
            The entries that gave way to it, to be counted as lost; None if there is no room for it.
        """
        if entry.kind is Kind.BEAT and self.has(entry.owner):
            return []
        if entry.kind is Kind.PROGRESS:
            older = self._replaceable(entry.owner, Kind.PROGRESS)
            if older is not None:
                return self._replace(older, entry, now)
        beat = self._replaceable(entry.owner, Kind.BEAT)
        if beat is not None:
            self.remove(beat)
        given_way = self._make_room(entry, len(entry.request.body), now)
        if given_way is not None:
            self._insert(entry)
        return given_way

    def remove(self, entry: Entry) -> None:
        """Remove an entry, if it is there."""
        if entry not in self._entries:
            return
        del self._entries[entry]
        self._bytes -= len(entry.request.body)
        key = (id(entry.owner), entry.kind)
        if self._by_run.get(key) is entry:
            del self._by_run[key]
        if self.sending is entry:
            self.sending = None

    def clear(self) -> list[Entry]:
        """Remove and return all entries, except the one that is being sent."""
        # Swapped first: a signal handler that adds one from now on finds the new ones.
        old, self._entries = self._entries, OrderedDict()
        self._by_run.clear()
        self._bytes = 0
        if self.sending is not None:
            self.put_first(self.sending)
        return [entry for entry in old if entry is not self.sending]

    def put_first(self, entry: Entry) -> None:
        """Add an entry before all others, whatever the limits say: it replaces one just removed."""
        self._insert(entry)
        self._entries.move_to_end(entry, last=False)

    def _insert(self, entry: Entry) -> None:
        self._entries[entry] = None
        self._bytes += len(entry.request.body)
        if entry.owner is not None:
            self._by_run[id(entry.owner), entry.kind] = entry

    def _replaceable(self, owner: object, kind: Kind) -> Entry | None:
        entry = self._by_run.get((id(owner), kind))
        return None if entry is self.sending else entry

    def _replace(self, older: Entry, entry: Entry, now: float) -> list[Entry] | None:
        """Put a newer progress into the place of an older one."""
        more = len(entry.request.body) - len(older.request.body)
        given_way = self._make_room(entry, more, now, new=0, spared=older)
        if given_way is not None:
            older.request, older.expires = entry.request, entry.expires
            older.not_before = entry.not_before
            self._bytes += more
        return given_way

    def _make_room(
        self, entry: Entry, size: int, now: float, new: int = 1, spared: Entry | None = None
    ) -> list[Entry] | None:
        """
        Remove entries until there is room: the lowest kind first, and of one kind the oldest.

        Only those of a lower kind are removed, and those that have expired.

        Returns:
            What was removed; None if there is no room even so, and nothing is removed.
        """
        excess = len(self._entries) + new - self._max_entries
        excess_bytes = self._bytes + size - self._max_bytes
        if excess <= 0 and excess_bytes <= 0:
            return []
        lower = [
            other
            for other in self._entries
            if ((other.is_low and other.kind < entry.kind) or other.expires <= now)
            and other is not self.sending
            and other is not spared
        ]
        removed = []
        for other in sorted(lower, key=lambda other: other.kind):  # stable: the oldest first
            if excess <= 0 and excess_bytes <= 0:
                break
            removed.append(other)
            excess -= 1
            excess_bytes -= len(other.request.body)
        if excess > 0 or excess_bytes > 0:
            return None
        for other in removed:
            self.remove(other)
        return removed
