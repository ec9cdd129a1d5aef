"""
How drafts get into a SQLite file: one transaction per append, of few statements however many drafts
there are.

For each step of a statement the file's thread gives Python's lock away and takes it back, from a
reactor that wants it as well: this costs more than most steps do.  So there is one statement for
many rows, and where the numberings stand is remembered for as long as nobody else changes the file.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from asyncplumber.errors import PlumberError
from asyncplumber.event import Draft, Event, Position, Stored
from asyncplumber.stores.retention import Retention
from asyncplumber.stores.sqlite.epochs import Epochs
from asyncplumber.stores.sqlite.file import Connection

# in one statement: more gains little, and each number of rows is a text of its own in the cache of
# statements
ROWS = 64
PROBE_BYTES = 4096  # written to find out whether there is room for an event: a page of the file
_NO_ACCOUNT = -1  # the numbers of accounts begin with 1, and no account has an empty name
# accounts, of some 400 bytes each: 4 MB; beyond that all are forgotten, which costs one look-up
REMEMBERED = 10_000
# No journal for undoing this statement alone, which would take more time than the rows: who gets
# here begins anew.
_PUT = "INSERT OR ROLLBACK INTO events VALUES "
_PUT_ROW = "(?, ?, ?, ?, ?, ?, ?, ?, ?)"
# Begins numberings and advances others.
_ADVANCE = "INSERT OR ROLLBACK INTO accounts (number, account, epoch, head, floor, touched) VALUES "
_ADVANCE_ROW = "(?, ?, ?, ?, ?, ?)"
_ADVANCE_END = (
    " ON CONFLICT (number) DO UPDATE SET head = excluded.head, touched = excluded.touched"
)
# One row, whatever is found.
_FIND_ALL = """SELECT (SELECT max(number) FROM accounts), (SELECT json_group_array(json_array(account, number, epoch, head, floor))
    FROM json_each(?) AS asked CROSS JOIN accounts ON accounts.account = asked.value)"""
_FIND = "SELECT number, epoch, head, floor FROM accounts WHERE account = ?"
_BEGIN = "INSERT INTO accounts (account, epoch, head, floor, touched) VALUES (?, ?, 0, 0, ?)"
_SAME = (
    "SELECT seq, id, type, time, content_type, payload FROM events WHERE account = ? AND key = ?"
)
_PUT_ONE = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
# What one draft may suffer by itself; everything else befell the file.
_OWN_FAULT = (
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    UnicodeError,
    OverflowError,
)


@cache
def _rows(begin: str, row: str, count: int, end: str = "") -> str:
    """The statement for `count` rows."""
    return begin + ", ".join([row] * count) + end


class Place:
    """Where an account's numbering stands."""

    __slots__ = ("epoch", "floor", "head", "number")

    def __init__(self, number: int, epoch: str, head: int, floor: int) -> None:
        self.number = number
        self.epoch = epoch
        self.head = head
        self.floor = floor

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.head, self.floor)


def forget_events(connection: Connection, number: int, floor: int) -> int:
    """
    Raise the floor of the account with this number, and delete what is below.  Answers the number
    of events deleted.
    """
    connection.execute(
        "UPDATE accounts SET floor = max(floor, ?) WHERE number = ?", (floor, number)
    )
    return connection.execute(
        "DELETE FROM events WHERE account = ? AND seq <= ?", (number, floor)
    ).rowcount


def probe(connection: Connection, now: float) -> None:
    """
    Write and commit what an append of one event writes, and leave nothing behind.  Raises
    sqlite3.Error.
    """
    connection.execute("BEGIN IMMEDIATE")
    values = (_NO_ACCOUNT, 1, "", "", "", "", "", bytes(PROBE_BYTES), now)
    connection.execute(_PUT_ONE, values)
    connection.execute("INSERT INTO accounts VALUES (?, '', '', 1, 0, ?)", (_NO_ACCOUNT, now))
    for table, column in (("events", "account"), ("accounts", "number")):
        connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (_NO_ACCOUNT,))
    connection.execute("COMMIT")


class Appender:
    """The one who appends by a file's connection.  Everything here runs in the file's thread."""

    def __init__(self, retention: Retention) -> None:
        self._retention = retention
        self._slack = retention.length + retention.length // 10
        self.epochs = Epochs(retention)
        self._places: dict[str, Place] = {}
        self._seen: tuple[Connection, int] | None = (
            None  # of which state of the file the places are true
        )

    def forget(self) -> None:
        """The places may not be true any more, by a change that this connection made itself."""
        self._places = {}

    def append(
        self, connection: Connection, drafts: Sequence[Draft], now: float
    ) -> list[Stored | PlumberError]:
        """
        As `IHistory` says; `now` is in seconds since 1970.  Raises sqlite3.Error if nothing was
        kept.
        """
        try:
            return self._append_new(connection, drafts, now)
        except _OWN_FAULT:
            # Some draft is a duplicate, or cannot be stored: find out which, one by one.
            connection.rollback()
            self.forget()
            return self._append_each(connection, drafts, now)

    def place(self, connection: Connection, account: str, now: float) -> Place:
        """
        The account's place as it is in the file, begun if it is missing, which needs a transaction.
        """
        row = connection.execute(_FIND, (account,)).fetchone()
        if row is None:
            epoch = self.epochs.current(connection, now)
            number = connection.execute(_BEGIN, (account, epoch, now)).lastrowid
            row = number, epoch, 0, 0
        return Place(*row)

    def _begin(self, connection: Connection) -> dict[str, Place]:
        """
        Begin a transaction.  Answers the places that are remembered and true in it.

        They are forgotten here and remembered again after the commit: what fails in between leaves
        nothing untrue behind.
        """
        connection.execute("BEGIN IMMEDIATE")
        # Differs if another connection has changed the file, and only then.
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        places, self._places = self._places, {}
        seen, self._seen = self._seen, (connection, version)
        return places if seen == self._seen and len(places) <= REMEMBERED else {}

    def _commit(
        self, connection: Connection, places: dict[str, Place], used: Iterable[Place]
    ) -> None:
        """Trim what became too long, commit, and remember the places."""
        for place in used:
            if place.head - place.floor > self._slack:
                place.floor = place.head - self._retention.length
                forget_events(connection, place.number, place.floor)
        connection.execute("COMMIT")
        self._places = places

    def _append_new(
        self, connection: Connection, drafts: Sequence[Draft], now: float
    ) -> list[Stored | PlumberError]:
        """The short way, for drafts that are all new."""
        places = self._begin(connection)
        used = self._find(connection, places, {draft.account for draft in drafts}, now)
        values: list[Any] = []
        stored: list[Stored | PlumberError] = []
        for draft in drafts:
            account, id, key, type, time, content_type, payload = draft
            place = used[account]
            place.head = seq = place.head + 1
            values += (place.number, seq, key, id, type, time, content_type, payload, now)
            stored.append(Stored(Event.from_draft(draft, place.epoch, seq), False))
        self._put(connection, values, _PUT, _PUT_ROW)
        values = []
        for account, place in used.items():
            values += (place.number, account, place.epoch, place.head, 0, now)
        self._put(connection, values, _ADVANCE, _ADVANCE_ROW, _ADVANCE_END)
        self._commit(connection, places, used.values())
        return stored

    @staticmethod
    def _put(
        connection: Connection, values: list[Any], begin: str, row: str, end: str = ""
    ) -> None:
        width = row.count("?")
        for start in range(0, len(values), ROWS * width):
            some = values[start : start + ROWS * width]
            connection.execute(_rows(begin, row, len(some) // width, end), some)

    def _find(
        self, connection: Connection, places: dict[str, Place], accounts: Iterable[str], now: float
    ) -> dict[str, Place]:
        """
        The places of these accounts; `places` gains those that it had not.  A numbering that begins
        is not written down yet.
        """
        unknown = [account for account in accounts if account not in places]
        if unknown:
            last, found = connection.execute(_FIND_ALL, (json.dumps(unknown),)).fetchone()
            for account, *row in json.loads(found):
                places[account] = Place(*row)
            new = [account for account in unknown if account not in places]
            if new:
                epoch = self.epochs.current(connection, now)
                for number, account in enumerate(new, (last or 0) + 1):
                    places[account] = Place(number, epoch, 0, 0)
        return {account: places[account] for account in accounts}

    def _append_each(
        self, connection: Connection, drafts: Sequence[Draft], now: float
    ) -> list[Stored | PlumberError]:
        places = self._begin(connection)
        stored: list[Stored | PlumberError] = []
        for draft in drafts:
            account = draft.account
            try:
                if account not in places:
                    places[account] = self.place(connection, account, now)
                stored.append(self._append_one(connection, places[account], draft, now))
            except _OWN_FAULT:
                stored.append(PlumberError("this event cannot be stored"))
        change = "UPDATE accounts SET head = ?, touched = ? WHERE number = ?"
        connection.executemany(
            change, [(place.head, now, place.number) for place in places.values()]
        )
        self._commit(connection, places, places.values())
        return stored

    @staticmethod
    def _append_one(connection: Connection, place: Place, draft: Draft, now: float) -> Stored:
        account, id, key, type, time, content_type, payload = draft
        before = connection.execute(_SAME, (place.number, key)).fetchone()
        if before is not None:
            return Stored(Event(account, place.epoch, *before), True)
        seq = place.head + 1
        connection.execute(
            _PUT_ONE, (place.number, seq, key, id, type, time, content_type, payload, now)
        )
        place.head = seq
        return Stored(Event.from_draft(draft, place.epoch, seq), False)
