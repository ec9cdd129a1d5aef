"""The history in a SQLite file.  How it is written: see `sqlite_append`."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.event import Cursor, Event, Position
from asyncplumber.interfaces import PAGE_BYTES, IHistory
from asyncplumber.stores.retention import Retention, check_reach
from asyncplumber.stores.sqlite.appender import Appender, Place, forget_events
from asyncplumber.stores.sqlite.file import Connection, SqliteFile

# forgotten in one transaction: a sweep may not hold up the appends for longer than some
# milliseconds
SWEEP_EVENTS = 2000
_USED = "SELECT number, epoch, head, floor, touched FROM accounts WHERE account = ?"
_PAGE = """SELECT seq, id, type, time, content_type, payload FROM events
    WHERE account = ? AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?"""
_HEADS = """SELECT accounts.account, accounts.epoch, accounts.head, accounts.touched FROM json_each(?) AS asked
    CROSS JOIN accounts ON accounts.account = asked.value"""
# Clocks of several writers differ a little, so age goes by the youngest that is too old, and takes
# what is before it.
_AGED = """SELECT account, max(seq) FROM (SELECT account, seq, stored FROM events ORDER BY rowid LIMIT ?)
    WHERE stored < ? GROUP BY account"""
# Never two numberings of one account by one name.
_UNUSED = "DELETE FROM accounts WHERE touched < ? AND head = floor AND epoch <> ?"


@implementer(IHistory)
class SqliteHistory:
    """A history in one file."""

    def __init__(self, file: SqliteFile, retention: Retention, clock: Any) -> None:
        self._run = file.run
        self._retention = retention
        self._clock = clock
        self.appender = Appender(retention)
        self._epochs = self.appender.epochs
        self._stale = (
            retention.numbering / 8
        )  # an account is marked as used so rarely, because each mark is a write

    def ensure(self, account: str) -> Deferred[Position]:
        now = self._clock.seconds()
        return self._run(lambda connection: self._used(connection, account, now).position)

    def _used(self, connection: Connection, account: str, now: float) -> Place:
        """
        The account's place, which is marked as used if it was not for long; an account without a
        row has number 0.
        """
        row = connection.execute(_USED, (account,)).fetchone()
        if row is None:
            return Place(0, self._epochs.current(connection, now), 0, 0)
        if now - row[-1] >= self._stale and not connection.in_transaction:
            # The second look is by one who keeps others from writing: it may have been forgotten in
            # this moment.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE accounts SET touched = ? WHERE account = ?", (now, account))
            place = self._used(connection, account, now)
            connection.execute("COMMIT")
            return place
        return Place(*row[:-1])

    def heads(self, accounts: Collection[str]) -> Deferred[dict[str, Cursor]]:
        now = self._clock.seconds()
        asked = json.dumps(list(accounts))

        def work(connection: Connection) -> dict[str, Cursor]:
            rows = connection.execute(_HEADS, (asked,)).fetchall()
            stale = [
                (now, account) for account, _, _, touched in rows if now - touched >= self._stale
            ]
            if stale:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("UPDATE accounts SET touched = ? WHERE account = ?", stale)
                connection.execute("COMMIT")
            heads = {account: Cursor(epoch, head) for account, epoch, head, _ in rows}
            if len(heads) < len(accounts):
                none = Cursor(self._epochs.current(connection, now), 0)
                heads.update((account, none) for account in accounts if account not in heads)
            return heads

        return self._run(work)

    def read(
        self, account: str, cursor: Cursor, upto: int | None, limit: int, size: int = PAGE_BYTES
    ) -> Deferred[list[Event]]:
        now = self._clock.seconds()

        def work(connection: Connection) -> list[Event]:
            self._used(connection, account, now)
            # From here on one snapshot: what another process trims meanwhile stays readable.
            connection.execute("BEGIN")
            place = self._used(connection, account, now)
            check_reach(
                place.position, cursor, self._epochs.is_recent(connection, cursor.epoch, now)
            )
            last = place.head if upto is None else min(upto, place.head)
            rows = connection.execute(_PAGE, (place.number, cursor.seq, last, limit))
            page: list[Event] = []
            room = min(size, PAGE_BYTES)
            for row in rows:
                room -= len(row[-1])
                if page and room < 0:
                    break
                page.append(Event(account, place.epoch, *row))
            rows.close()
            connection.execute("COMMIT")
            return page

        return self._run(work)

    def begin_epoch(self) -> Deferred[str]:
        now = self._clock.seconds()

        def work(connection: Connection) -> str:
            self.appender.forget()
            return self.appender.epochs.begin(connection, now)

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
        length = self._retention.length
        self.appender.forget()
        connection.execute("BEGIN IMMEDIATE")
        rows = connection.execute(
            "SELECT number, head FROM accounts WHERE head - floor > ?", (length,)
        ).fetchall()
        forgotten = sum(forget_events(connection, number, head - length) for number, head in rows)
        connection.execute("COMMIT")
        return forgotten

    def _too_old(self, connection: Connection, now: float) -> tuple[int, bool]:
        """Forget some of what is too old.  The second answer is whether there may be more."""
        self.appender.forget()
        connection.execute("BEGIN IMMEDIATE")
        rows = connection.execute(_AGED, (SWEEP_EVENTS, now - self._retention.age)).fetchall()
        forgotten = sum(forget_events(connection, number, seq) for number, seq in rows)
        connection.execute(
            _UNUSED, (now - self._retention.numbering, self._epochs.current(connection, now))
        )
        self._epochs.forget(connection, now)
        connection.execute("COMMIT")
        return forgotten, forgotten >= SWEEP_EVENTS
