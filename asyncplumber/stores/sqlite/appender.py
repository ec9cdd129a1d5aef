"""
How drafts get into a SQLite file: one transaction for each append, of few statements.

At each step of a statement the file's thread releases Python's interpreter lock and takes it back
from the reactor's thread, which wants it as well.  This costs more than most steps do.  So one
statement writes many rows, and the states of accounts are remembered while no other connection
changes the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from asyncplumber.errors import PlumberError
from asyncplumber.event import Draft, Event, Stored
from asyncplumber.stores.account_state import AccountState
from asyncplumber.stores.retention import Retention
from asyncplumber.stores.sqlite.connect import Connection
from asyncplumber.stores.sqlite.epochs import Epochs
from asyncplumber.stores.sqlite.file import ROW_ERRORS

# Rows in one statement.  More gain little, and each number of rows is a different statement in the
# cache of statements.
ROWS = 64
PROBE_BYTES = 4096  # of an event that is written to see whether there is room: a page of the file
REMEMBERED = 10_000  # accounts of some 400 bytes each; with more, all are read again from the file
_NO_ACCOUNT = -1  # the numbers of accounts begin with 1, and no account has an empty name
# OR ROLLBACK avoids SQLite's statement journal, which costs more than the rows.  On a conflict the
# whole append is retried draft by draft.
_INSERT_EVENTS = "INSERT OR ROLLBACK INTO events VALUES "
_EVENT_ROW = "(?, ?, ?, ?, ?, ?, ?, ?, ?)"
# Begins numberings and advances others.
_ADVANCE = (
    "INSERT OR ROLLBACK INTO accounts (number, account, epoch, head, floor, touched, bytes) VALUES "
)
_ADVANCE_ROW = "(?, ?, ?, ?, ?, ?, ?)"
_ADVANCE_END = (
    " ON CONFLICT (number) DO UPDATE"
    " SET head = excluded.head, touched = excluded.touched, bytes = excluded.bytes"
)
# The result is one row, however many accounts are found.
_FIND_ALL = """SELECT (SELECT max(number) FROM accounts),
    (SELECT json_group_array(json_array(account, epoch, head, floor, number, bytes))
    FROM json_each(?) AS asked CROSS JOIN accounts ON accounts.account = asked.value)"""
_FIND = "SELECT epoch, head, floor, number, bytes FROM accounts WHERE account = ?"
_BEGIN = "INSERT INTO accounts (account, epoch, head, floor, touched) VALUES (?, ?, 0, 0, ?)"
_SAME = (
    "SELECT seq, id, type, time, content_type, payload FROM events WHERE account = ? AND key = ?"
)
_SIZES = "SELECT seq, length(payload) FROM events WHERE account = ? AND seq > ? ORDER BY seq"
_SIZE_BELOW = "SELECT coalesce(sum(length(payload)), 0) FROM events WHERE account = ? AND seq <= ?"
_RAISE = "UPDATE accounts SET floor = max(floor, ?), bytes = bytes - ? WHERE number = ?"
_INSERT_EVENT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


@cache
def _statement(begin: str, row: str, count: int, end: str) -> str:
    """Return the statement for `count` rows."""
    return begin + ", ".join([row] * count) + end


@dataclass(slots=True)
class NumberedAccount(AccountState):
    """
    The state of an account in this file.

    Attributes:
        number: Stands for its name.
        size: Bytes of its payloads.
    """

    number: int
    size: int

    def trim(self, connection: Connection, retention: Retention) -> int:
        """
        Delete the events that are too many or too large together.

        Returns:
            The number of events deleted.
        """
        floor = max(self.floor, self.head - retention.length)
        if self.size > retention.size:
            floor = max(floor, self._floor_by_size(connection, retention.size))
        if floor == self.floor:
            return 0
        self.floor = floor
        count, size = delete_events(connection, self.number, floor)
        self.size -= size
        return count

    def _floor_by_size(self, connection: Connection, limit: int) -> int:
        """Return the number of the last event without which the others are within the limit."""
        size, floor = self.size, self.floor
        rows = connection.execute(_SIZES, (self.number, floor))
        for seq, bytes in rows:
            if size <= limit or seq == self.head:
                break
            size, floor = size - bytes, seq
        rows.close()
        return floor


def delete_events(connection: Connection, number: int, floor: int) -> tuple[int, int]:
    """
    Raise the floor of the account with this number, and delete the events below.

    Returns:
        The number of events deleted, and the bytes of their payloads.
    """
    (size,) = connection.execute(_SIZE_BELOW, (number, floor)).fetchone()
    connection.execute(_RAISE, (floor, size, number))
    deleted = connection.execute(
        "DELETE FROM events WHERE account = ? AND seq <= ?", (number, floor)
    )
    return deleted.rowcount, size


def probe(connection: Connection, now: float) -> None:
    """
    Write and commit what an append of one event writes, and leave nothing behind.

    Raises:
        sqlite3.Error: The file cannot be written.
    """
    connection.execute("BEGIN IMMEDIATE")
    values = (_NO_ACCOUNT, 1, "", "", "", "", "", bytes(PROBE_BYTES), now)
    connection.execute(_INSERT_EVENT, values)
    connection.execute("INSERT INTO accounts VALUES (?, '', '', 1, 0, ?, 0)", (_NO_ACCOUNT, now))
    connection.execute("DELETE FROM events WHERE account = ?", (_NO_ACCOUNT,))
    connection.execute("DELETE FROM accounts WHERE number = ?", (_NO_ACCOUNT,))
    connection.execute("COMMIT")


class Appender:
    """Appends on a file's connection.  Everything here runs in the file's thread."""

    def __init__(self, retention: Retention) -> None:
        self._retention = retention
        self._most_events = retention.most_events
        self._most_bytes = retention.most_bytes
        self.epochs = Epochs(retention)
        self._known: dict[str, NumberedAccount] = {}
        # The connection, and the version of the file, for which `_known` is true.
        self._seen: tuple[Connection, int] | None = None

    @property
    def remembered(self) -> int:
        """The number of accounts whose state is remembered."""
        return len(self._known)

    def forget(self) -> None:
        """Forget the known accounts: this connection is about to change them elsewhere."""
        self._known = {}

    def append(
        self, connection: Connection, drafts: Sequence[Draft], now: float
    ) -> list[Stored | PlumberError]:
        """
        Store these drafts at `now`, in seconds since 1970.

        Returns:
            For each draft, in order, what happened to it.

        Raises:
            sqlite3.Error: Nothing was stored.
        """
        try:
            return self._append_new(connection, drafts, now)
        except ROW_ERRORS:
            # A draft is a duplicate, or cannot be stored: find out which, one by one.
            connection.rollback()
            self.forget()
            return self._append_each(connection, drafts, now)

    def _read(self, connection: Connection, account: str, now: float) -> NumberedAccount:
        """Return the account's state as it is in the file; begin the account if it is missing."""
        row = connection.execute(_FIND, (account,)).fetchone()
        if row is not None:
            return NumberedAccount(*row)
        epoch = self.epochs.current(connection, now)
        number = connection.execute(_BEGIN, (account, epoch, now)).lastrowid
        return NumberedAccount(epoch, 0, 0, number or 0, 0)

    def _begin(self, connection: Connection) -> dict[str, NumberedAccount]:
        """
        Begin a transaction, and return the known accounts if they are still true in it.

        They are forgotten here, and `_commit` remembers them again: whatever fails in between
        leaves nothing untrue behind.
        """
        connection.execute("BEGIN IMMEDIATE")
        # The version differs if, and only if, another connection has changed the file.
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        known, self._known = self._known, {}
        seen, self._seen = self._seen, (connection, version)
        return known if seen == self._seen and len(known) <= REMEMBERED else {}

    def _commit(
        self,
        connection: Connection,
        known: dict[str, NumberedAccount],
        used: Iterable[NumberedAccount],
    ) -> None:
        """Trim the accounts that have too much, commit, and remember the known accounts."""
        most_events, most_bytes = self._most_events, self._most_bytes
        for account in used:
            if account.head - account.floor > most_events or account.size > most_bytes:
                account.trim(connection, self._retention)
        connection.execute("COMMIT")
        self._known = known

    def _append_new(
        self, connection: Connection, drafts: Sequence[Draft], now: float
    ) -> list[Stored | PlumberError]:
        """Append drafts that are all new."""
        known = self._begin(connection)
        used = self._find(connection, known, {draft.account for draft in drafts}, now)
        values: list[Any] = []
        stored: list[Stored | PlumberError] = []
        placed = Event.from_draft  # a local name is found faster, and this is done for each event
        for draft in drafts:
            account, id, key, type, time, content_type, payload = draft
            state = used[account]
            state.head = seq = state.head + 1
            state.size += len(payload)
            values += (state.number, seq, key, id, type, time, content_type, payload, now)
            stored.append(Stored(placed(draft, state.epoch, seq), False))
        self._insert(connection, values, _INSERT_EVENTS, _EVENT_ROW)
        values = []
        for account, state in used.items():
            values += (state.number, account, state.epoch, state.head, 0, now, state.size)
        self._insert(connection, values, _ADVANCE, _ADVANCE_ROW, _ADVANCE_END)
        self._commit(connection, known, used.values())
        return stored

    @staticmethod
    def _insert(
        connection: Connection, values: list[Any], begin: str, row: str, end: str = ""
    ) -> None:
        width = row.count("?")
        for start in range(0, len(values), ROWS * width):
            some = values[start : start + ROWS * width]
            connection.execute(_statement(begin, row, len(some) // width, end), some)

    def _find(
        self,
        connection: Connection,
        known: dict[str, NumberedAccount],
        accounts: Iterable[str],
        now: float,
    ) -> dict[str, NumberedAccount]:
        """
        Return the states of these accounts, and add to `known` those that are not in it.

        A new account gets a number here, and its row later.
        """
        unknown = [account for account in accounts if account not in known]
        if unknown:
            last, found = connection.execute(_FIND_ALL, (json.dumps(unknown),)).fetchone()
            for account, *row in json.loads(found):
                known[account] = NumberedAccount(*row)
            new = [account for account in unknown if account not in known]
            if new:
                epoch = self.epochs.current(connection, now)
                for number, account in enumerate(new, (last or 0) + 1):
                    known[account] = NumberedAccount(epoch, 0, 0, number, 0)
        return {account: known[account] for account in accounts}

    def _append_each(
        self, connection: Connection, drafts: Sequence[Draft], now: float
    ) -> list[Stored | PlumberError]:
        """Append drafts of which some are duplicates, or cannot be stored."""
        known = self._begin(connection)
        stored: list[Stored | PlumberError] = []
        for draft in drafts:
            account = draft.account
            try:
                if account not in known:
                    known[account] = self._read(connection, account, now)
                stored.append(self._append_one(connection, known[account], draft, now))
            except ROW_ERRORS:
                stored.append(PlumberError("this event cannot be stored"))
        connection.executemany(
            "UPDATE accounts SET head = ?, touched = ?, bytes = ? WHERE number = ?",
            [(account.head, now, account.size, account.number) for account in known.values()],
        )
        self._commit(connection, known, known.values())
        return stored

    @staticmethod
    def _append_one(
        connection: Connection, state: NumberedAccount, draft: Draft, now: float
    ) -> Stored:
        account, id, key, type, time, content_type, payload = draft
        first = connection.execute(_SAME, (state.number, key)).fetchone()
        if first is not None:
            return Stored(Event(account, state.epoch, *first), True)
        seq = state.head + 1
        connection.execute(
            _INSERT_EVENT, (state.number, seq, key, id, type, time, content_type, payload, now)
        )
        state.head = seq
        state.size += len(payload)
        return Stored(Event.from_draft(draft, state.epoch, seq), False)
