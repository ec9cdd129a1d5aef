"""The history in a SQLite file: reading and deleting.  `Appender` writes it."""

from __future__ import annotations

import json
from collections.abc import Collection
from itertools import repeat

from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.clocks import TimeSource
from asyncplumber.event import Cursor, Event, Position
from asyncplumber.interfaces import PAGE_BYTES, HistorySize, IHistory
from asyncplumber.stores.retention import Retention, check_reach
from asyncplumber.stores.sqlite.appender import Appender, NumberedAccount, delete_events
from asyncplumber.stores.sqlite.connect import Connection
from asyncplumber.stores.sqlite.file import SqliteFile

# Events that one transaction of a sweep looks at: it holds up the appends for some milliseconds.
SWEEP_EVENTS = 2000
# An account is marked as used so many times in the time after which it would be forgotten: each
# mark is a write.
MARKS = 8
_FIND = "SELECT epoch, head, floor, number, bytes, touched FROM accounts WHERE account = ?"
_TOUCH = "UPDATE accounts SET touched = ? WHERE account = ?"
_PAGE = """SELECT seq, id, type, time, content_type, payload FROM events
    WHERE account = ? AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?"""
_HEADS = """SELECT accounts.account, accounts.epoch, accounts.head, accounts.touched
    FROM json_each(?) AS asked CROSS JOIN accounts ON accounts.account = asked.value"""
_EVENTS = "SELECT coalesce(sum(head - floor), 0) FROM accounts"
_PAGES = (
    "SELECT (page_count - freelist_count) * page_size "
    "FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
)
_TOO_MUCH = """SELECT epoch, head, floor, number, bytes FROM accounts
    WHERE head - floor > ? OR (bytes > ? AND head - floor > 1)"""
# The clocks of several writers differ a little.  So the youngest event that is too old decides, and
# everything before it goes.
_TOO_OLD = """SELECT account, max(seq)
    FROM (SELECT account, seq, stored FROM events ORDER BY rowid LIMIT ?)
    WHERE stored < ? GROUP BY account"""
# A numbering of the current epoch stays: the account's next one would have the same name.
_UNUSED = "DELETE FROM accounts WHERE touched < ? AND head = floor AND epoch <> ?"


@implementer(IHistory)
class SqliteHistory:
    """A history in one file."""

    def __init__(self, file: SqliteFile, retention: Retention, clock: TimeSource) -> None:
        """
        Args:
            file: The file.
            retention: How much is kept.
            clock: The time of day.
        """
        self._run = file.run
        self._retention = retention
        self._clock = clock
        self.appender = Appender(retention)
        self._epochs = self.appender.epochs
        self._mark_after = retention.numbering / MARKS  # seconds

    def ensure(self, account: str) -> Deferred[Position]:
        now = self._clock.seconds()
        return self._run(lambda connection: self._used(connection, account, now).position)

    def _used(self, connection: Connection, account: str, now: float) -> NumberedAccount:
        """
        Return the account's state, and mark the account as used if the last mark is old.

        An account without a row has the number 0, which no row has.
        """
        row = connection.execute(_FIND, (account,)).fetchone()
        if row is None:
            return NumberedAccount(self._epochs.current(connection, now), 0, 0, 0, 0)
        *state, touched = row
        if now - touched >= self._mark_after and not connection.in_transaction:
            # Look again while nobody else can write: the row may have been deleted meanwhile.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_TOUCH, (now, account))
            used = self._used(connection, account, now)
            connection.execute("COMMIT")
            return used
        return NumberedAccount(*state)

    def heads(self, accounts: Collection[str]) -> Deferred[dict[str, Cursor]]:
        now = self._clock.seconds()
        asked = json.dumps(list(accounts))

        def work(connection: Connection) -> dict[str, Cursor]:
            rows = connection.execute(_HEADS, (asked,)).fetchall()
            unmarked = [
                account for account, _, _, touched in rows if now - touched >= self._mark_after
            ]
            if unmarked:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(_TOUCH, zip(repeat(now), unmarked, strict=False))
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
            # One snapshot from here on: what another process deletes meanwhile stays readable.
            connection.execute("BEGIN")
            state = self._used(connection, account, now)
            recent = self._epochs.is_recent(connection, cursor.epoch, now)
            check_reach(state.position, cursor, recent)
            last = state.head if upto is None else min(upto, state.head)
            rows = connection.execute(_PAGE, (state.number, cursor.seq, last, limit))
            page: list[Event] = []
            left = min(size, PAGE_BYTES)
            for row in rows:
                left -= len(row[-1])
                if page and left < 0:
                    break
                page.append(Event(account, state.epoch, *row))
            rows.close()
            connection.execute("COMMIT")
            return page

        return self._run(work)

    def begin_epoch(self) -> Deferred[str]:
        now = self._clock.seconds()

        def work(connection: Connection) -> str:
            self.appender.forget()
            return self._epochs.begin(connection, now)

        return self._run(work)

    def size(self) -> Deferred[HistorySize]:
        """Return the size.  Numbers have no holes, so that no event has to be looked at."""

        def work(connection: Connection) -> HistorySize:
            (events,) = connection.execute(_EVENTS).fetchone()
            (pages,) = connection.execute(_PAGES).fetchone()
            return HistorySize(events, pages)

        return self._run(work)

    def sweep(self) -> Deferred[int]:
        return Deferred.fromCoroutine(self._sweep())

    async def _sweep(self) -> int:
        now = self._clock.seconds()
        deleted = await self._run(self._delete_too_much)
        more = True
        while more:
            count, more = await self._run(lambda connection: self._delete_old(connection, now))
            deleted += count
        return deleted

    def _delete_too_much(self, connection: Connection) -> int:
        retention = self._retention
        self.appender.forget()
        connection.execute("BEGIN IMMEDIATE")
        rows = connection.execute(_TOO_MUCH, (retention.length, retention.size)).fetchall()
        deleted = sum(NumberedAccount(*row).trim(connection, retention) for row in rows)
        connection.execute("COMMIT")
        return deleted

    def _delete_old(self, connection: Connection, now: float) -> tuple[int, bool]:
        """
        Delete some of the events that are too old, and accounts that are not used any more.

        Returns:
            The number of events deleted, and whether there may be more.
        """
        self.appender.forget()
        connection.execute("BEGIN IMMEDIATE")
        rows = connection.execute(_TOO_OLD, (SWEEP_EVENTS, now - self._retention.age)).fetchall()
        deleted = sum(delete_events(connection, number, seq)[0] for number, seq in rows)
        unused_since = now - self._retention.numbering
        connection.execute(_UNUSED, (unused_since, self._epochs.current(connection, now)))
        self._epochs.forget(connection, now)
        connection.execute("COMMIT")
        return deleted, deleted >= SWEEP_EVENTS
