"""The history in a SQLite file: one transaction per append, whose writer alone gives out numbers while it lasts."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.errors import CursorLost, PlumberError
from asyncplumber.event import Cursor, Draft, Event, Position, Stored
from asyncplumber.interfaces import IHistory
from asyncplumber.stores.keeping import PAGE_BYTES, Keeping
from asyncplumber.stores.sqlite_file import Connection, SqliteFile

SWEEP_EVENTS = 2000  # forgotten in one transaction: a sweep may not hold up the appends for longer than some milliseconds
_FIND = "SELECT number, epoch, head, floor, touched FROM accounts WHERE account = ?"
_BEGIN = "INSERT INTO accounts (account, epoch, head, floor, touched) VALUES (?, ?, 0, 0, ?)"
_PUT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ADVANCE = "UPDATE accounts SET head = ?, touched = ? WHERE number = ?"
_SAME = "SELECT seq, id, type, time, content_type, payload FROM events WHERE account = ? AND key = ?"
_PAGE = """SELECT seq, id, type, time, content_type, payload FROM events
    WHERE account = ? AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?"""
_HEADS = """SELECT accounts.account, accounts.epoch, accounts.head, accounts.touched FROM json_each(?) AS asked
    CROSS JOIN accounts ON accounts.account = asked.value"""
# Clocks of several writers differ a little, so age goes by the youngest that is too old, and takes what is before it.
_AGED = """SELECT account, max(seq) FROM (SELECT account, seq, stored FROM events ORDER BY rowid LIMIT ?)
    WHERE stored < ? GROUP BY account"""
_UNUSED = "DELETE FROM accounts WHERE touched < ? AND head = floor"
# What one draft may suffer by itself; everything else befell the file.
_OWN_FAULT = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, UnicodeError, OverflowError)


class _Place:
    """Where an account's numbering stands in the transaction under way."""

    __slots__ = ("epoch", "floor", "head", "number", "touched")

    def __init__(self, number: int, epoch: str, head: int, floor: int, touched: float) -> None:
        self.number = number
        self.epoch = epoch
        self.head = head
        self.floor = floor
        self.touched = touched

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.head, self.floor)


@implementer(IHistory)
class SqliteHistory:
    """A history in one file."""

    def __init__(self, file: SqliteFile, keeping: Keeping, clock: Any) -> None:
        self._run = file.run
        self._keeping = keeping
        self._clock = clock
        self._slack = keeping.length + keeping.length // 10
        self._stale = keeping.numbering / 8  # an account is marked as used so rarely, because each mark is a write

    def append(self, drafts: Sequence[Draft]) -> Deferred[list[Stored | PlumberError]]:
        now = self._clock.seconds()

        def work(connection: Connection) -> list[Stored | PlumberError]:
            try:
                return self._append_new(connection, drafts, now)
            except _OWN_FAULT:
                # Some draft is a duplicate, or cannot be stored: find out which, one by one.
                connection.rollback()
                return self._append_each(connection, drafts, now)

        return self._run(work)

    def _append_new(self, connection: Connection, drafts: Sequence[Draft], now: float) -> list[Stored | PlumberError]:
        """The short way, for drafts that are all new."""
        connection.execute("BEGIN IMMEDIATE")
        places: dict[str, _Place] = {}
        rows: list[tuple[Any, ...]] = []
        stored: list[Stored | PlumberError] = []
        for account, id, key, type, time, content_type, payload in drafts:
            place = places.get(account) or self._place(connection, places, account, now)
            place.head = seq = place.head + 1
            rows.append((place.number, seq, key, id, type, time, content_type, payload, now))
            stored.append(Stored(Event(account, place.epoch, seq, id, type, time, content_type, payload), False))
        connection.executemany(_PUT, rows)
        self._finish(connection, places, now)
        return stored

    def _append_each(self, connection: Connection, drafts: Sequence[Draft], now: float) -> list[Stored | PlumberError]:
        connection.execute("BEGIN IMMEDIATE")
        places: dict[str, _Place] = {}
        stored: list[Stored | PlumberError] = []
        for draft in drafts:
            try:
                place = places.get(draft.account) or self._place(connection, places, draft.account, now)
                stored.append(self._append_one(connection, place, draft, now))
            except _OWN_FAULT:
                stored.append(PlumberError("this event cannot be stored"))
        self._finish(connection, places, now)
        return stored

    def _append_one(self, connection: Connection, place: _Place, draft: Draft, now: float) -> Stored:
        account, id, key, type, time, content_type, payload = draft
        before = connection.execute(_SAME, (place.number, key)).fetchone()
        if before is not None:
            seq, *rest = before
            return Stored(Event(account, place.epoch, seq, *rest), True)
        seq = place.head + 1
        connection.execute(_PUT, (place.number, seq, key, id, type, time, content_type, payload, now))
        place.head = seq
        return Stored(Event(account, place.epoch, seq, id, type, time, content_type, payload), False)

    def _place(self, connection: Connection, places: dict[str, _Place], account: str, now: float) -> _Place:
        row = connection.execute(_FIND, (account,)).fetchone()
        if row is None:
            epoch = self._keeping.epochs(now)
            number = connection.execute(_BEGIN, (account, epoch, now)).lastrowid
            row = number, epoch, 0, 0, now
        place = places[account] = _Place(*row)
        return place

    def _finish(self, connection: Connection, places: dict[str, _Place], now: float) -> None:
        """Write down where the numberings stand, trim what became too long, and commit."""
        connection.executemany(_ADVANCE, [(place.head, now, place.number) for place in places.values()])
        for place in places.values():
            if place.head - place.floor > self._slack:
                self._forget(connection, place.number, place.head - self._keeping.length)
        connection.execute("COMMIT")

    def _forget(self, connection: Connection, number: int, floor: int) -> int:
        connection.execute("UPDATE accounts SET floor = max(floor, ?) WHERE number = ?", (floor, number))
        return connection.execute("DELETE FROM events WHERE account = ? AND seq <= ?", (number, floor)).rowcount

    def position(self, account: str) -> Deferred[Position]:
        now = self._clock.seconds()
        return self._run(lambda connection: self._used(connection, account, now).position)

    def _used(self, connection: Connection, account: str, now: float) -> _Place:
        """The account's place, begun if it is missing and marked as used if it was not for long."""
        row = connection.execute(_FIND, (account,)).fetchone()
        if row is not None and now - row[4] < self._stale:
            return _Place(*row)
        connection.execute("BEGIN IMMEDIATE")
        place = self._place(connection, {}, account, now)
        connection.execute("UPDATE accounts SET touched = ? WHERE number = ?", (now, place.number))
        connection.execute("COMMIT")
        return place

    def heads(self, accounts: Collection[str]) -> Deferred[dict[str, Cursor]]:
        now = self._clock.seconds()
        asked = json.dumps(list(accounts))

        def work(connection: Connection) -> dict[str, Cursor]:
            rows = connection.execute(_HEADS, (asked,)).fetchall()
            stale = [(now, account) for account, _, _, touched in rows if now - touched >= self._stale]
            if stale:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("UPDATE accounts SET touched = ? WHERE account = ?", stale)
                connection.execute("COMMIT")
            return {account: Cursor(epoch, head) for account, epoch, head, _ in rows}

        return self._run(work)

    def read(self, account: str, cursor: Cursor, upto: int | None, limit: int) -> Deferred[list[Event]]:
        now = self._clock.seconds()

        def work(connection: Connection) -> list[Event]:
            self._used(connection, account, now)
            # From here on one snapshot: what another process trims meanwhile stays readable.
            connection.execute("BEGIN")
            place = self._place(connection, {}, account, now)
            if cursor.epoch != place.epoch or not place.floor <= cursor.seq <= place.head:
                raise CursorLost(place.position)
            last = place.head if upto is None else min(upto, place.head)
            rows = connection.execute(_PAGE, (place.number, cursor.seq, last, limit))
            page: list[Event] = []
            size = 0
            for row in rows:
                size += len(row[-1])
                if page and size > PAGE_BYTES:
                    break
                page.append(Event(account, place.epoch, *row))
            rows.close()
            connection.execute("COMMIT")
            return page

        return self._run(work)

    def sweep(self) -> Deferred[int]:
        return Deferred.fromCoroutine(self._sweep())

    async def _sweep(self) -> int:
        now = self._clock.seconds()
        forgotten = await self._run(self._too_long)
        while True:
            count, more = await self._run(lambda connection: self._too_old(connection, now))
            forgotten += count
            if not more:
                return forgotten

    def _too_long(self, connection: Connection) -> int:
        length = self._keeping.length
        connection.execute("BEGIN IMMEDIATE")
        rows = connection.execute("SELECT number, head FROM accounts WHERE head - floor > ?", (length,)).fetchall()
        forgotten = sum(self._forget(connection, number, head - length) for number, head in rows)
        connection.execute("COMMIT")
        return forgotten

    def _too_old(self, connection: Connection, now: float) -> tuple[int, bool]:
        """Forget some of what is too old.  The second answer is whether there may be more."""
        connection.execute("BEGIN IMMEDIATE")
        rows = connection.execute(_AGED, (SWEEP_EVENTS, now - self._keeping.age)).fetchall()
        forgotten = sum(self._forget(connection, number, seq) for number, seq in rows)
        connection.execute(_UNUSED, (now - self._keeping.numbering,))
        connection.execute("COMMIT")
        return forgotten, forgotten >= SWEEP_EVENTS
