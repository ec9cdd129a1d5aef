"""
Tasks in a SQLite file.

Each call that writes reads its row first, in the same transaction.  So one run begins, and one
change is the first, however many processes share the file.  The writes that wait at the same moment
share a transaction, see `SqliteFile.write`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.clocks import TimeSource
from asyncplumber.event import Cursor
from asyncplumber.interfaces import Claim, Claimed, ITasks
from asyncplumber.stores.sqlite.connect import Connection
from asyncplumber.stores.sqlite.file import SqliteFile
from asyncplumber.stores.task_changes import can_follow, claimed, is_same, moved_by, with_changes
from asyncplumber.task import Task, TaskState

# In the order of the table, with the cursor as two columns.
_COLUMNS = (
    "account, key, run, state, submitted_at, updated_at, started_at, ended_at, deadline, patience,"
    " progressed_at, epoch, seq, is_announced, is_late, is_cancel_requested, attempts, end_id,"
    " former, digest, input_type, result_type, error, progress, result, input"
)
_NAMES = _COLUMNS.replace(" ", "").split(",")


def _sql(*parts: str) -> str:
    """Return a statement with the names of all columns in it."""
    return " ".join(parts).replace("{columns}", _COLUMNS)


_SELECT = "SELECT {columns} FROM tasks"
# A list has no inputs: nobody is shown them, and they may be large.
_SELECT_SHORT = _sql(_SELECT).replace(", input FROM", ", NULL FROM")
_GET = _sql(_SELECT, "WHERE account = ? AND key = ?")
_VALUES = ", ".join("?" * (len(_NAMES) + 1))
_PUT = _sql("INSERT OR REPLACE INTO tasks ({columns}, leased_until) VALUES (", _VALUES, ")")
_ORDER = "ORDER BY (ended_at IS NOT NULL), submitted_at DESC, key LIMIT ?"
_OF_ACCOUNT = _sql(_SELECT_SHORT, "WHERE account = ?", _ORDER)
_LIVE = _sql(
    _SELECT_SHORT,
    "WHERE account = ? AND (ended_at IS NOT NULL) = 0 ORDER BY submitted_at DESC, key LIMIT ?",
)
_OVERDUE = _sql(_SELECT, "WHERE deadline < ? ORDER BY deadline LIMIT ?")
_UNDISPATCHED = _sql(
    "UPDATE tasks SET leased_until = ? WHERE rowid IN (SELECT rowid FROM tasks",
    "WHERE leased_until <= ? ORDER BY leased_until LIMIT ?) RETURNING {columns}",
)
_UNANNOUNCED = _sql(
    _SELECT,
    "WHERE is_announced = 0 AND updated_at <= ? ORDER BY updated_at LIMIT ?",
)
_PRESENT_UNTIL = "SELECT until FROM task_presence WHERE number = 1"
_PRESENT = "INSERT OR REPLACE INTO task_presence VALUES (1, ?)"
_MOVE = "UPDATE tasks SET deadline = deadline + ? WHERE deadline IS NOT NULL"
_MOVE_LEASES = "UPDATE tasks SET leased_until = leased_until + ? WHERE leased_until IS NOT NULL"
_FORGET = (
    "DELETE FROM tasks WHERE rowid IN (SELECT rowid FROM tasks"
    " WHERE ended_at < ? AND is_announced = 1 ORDER BY ended_at LIMIT ?)"
)


def _task(row: tuple[Any, ...]) -> Task:
    fields = dict(zip(_NAMES, row, strict=True))
    epoch, seq = fields.pop("epoch"), fields.pop("seq")
    fields["cursor"] = Cursor(epoch, seq) if epoch is not None else None
    fields["state"] = TaskState(fields["state"])
    fields["former"] = tuple(json.loads(fields["former"]))
    for name in ("is_announced", "is_late", "is_cancel_requested"):
        fields[name] = bool(fields[name])
    return Task(**fields)


def _values(task: Task) -> dict[str, Any]:
    """Return the columns of a row, except for its lease."""
    fields = {name: getattr(task, name) for name in _NAMES if name not in ("epoch", "seq")}
    fields["epoch"], fields["seq"] = task.cursor or (None, None)
    fields["state"] = task.state.value
    fields["former"] = json.dumps(task.former)
    return fields


@cache
def _update(names: tuple[str, ...]) -> str:
    """Return the statement that changes these columns.  There are few different ones."""
    columns = ", ".join(f"{name} = ?" for name in names)
    return _sql("UPDATE tasks SET", columns, "WHERE account = ? AND key = ?")


def _found(connection: Connection, account: str, key: str) -> Task | None:
    row = connection.execute(_GET, (account, key)).fetchone()
    return _task(row) if row is not None else None


@implementer(ITasks)
class SqliteTasks:
    """The tasks of all processes that share the file."""

    def __init__(self, file: SqliteFile, clock: TimeSource) -> None:
        """
        Args:
            file: The file.
            clock: The time of day, which is the same for all processes on the machine.
        """
        self._read = file.run
        self._write = file.write
        self._clock = clock

    def claim(self, claim: Claim) -> Deferred[Claimed]:
        now = self._clock.seconds()

        def work(connection: Connection) -> Claimed:
            found = _found(connection, claim.account, claim.key)
            if found is not None and not can_follow(found, claim.run):
                return Claimed(found, False)
            task = claimed(claim, found, now)
            values = _values(task)
            lease = now + claim.lease if claim.input is not None else None
            connection.execute(_PUT, [*(values[name] for name in _NAMES), lease])
            return Claimed(task, True)

        return self._write(work)

    def get(self, account: str, key: str) -> Deferred[Task | None]:
        return self._read(lambda connection: _found(connection, account, key))

    def of_account(
        self, account: str, limit: int, *, live_only: bool = False
    ) -> Deferred[list[Task]]:
        return self._tasks(_LIVE if live_only else _OF_ACCOUNT, (account, limit))

    def _tasks(self, select: str, values: tuple[Any, ...]) -> Deferred[list[Task]]:
        return self._read(lambda connection: list(map(_task, connection.execute(select, values))))

    def change(
        self,
        task: Task,
        changes: Mapping[str, Any],
        *,
        deadline_in: float | None = None,
        lease: float | None = None,
        overdue_only: bool = False,
    ) -> Deferred[Task | None]:
        now = self._clock.seconds()

        def work(connection: Connection) -> Task | None:
            found = _found(connection, task.account, task.key)
            if found is None or not is_same(found, task, changes, now if overdue_only else None):
                return None
            changed = with_changes(found, changes, now, deadline_in)
            before, after = _values(found), _values(changed)
            values = {name: value for name, value in after.items() if value != before[name]}
            if changed.input is None:
                if found.input is not None:
                    values["leased_until"] = None
            elif lease is not None:
                values["leased_until"] = now + lease
            if values:
                statement = _update(tuple(values))
                connection.execute(statement, [*values.values(), task.account, task.key])
            return changed

        return self._write(work)

    def overdue(self, limit: int) -> Deferred[list[Task]]:
        return self._tasks(_OVERDUE, (self._clock.seconds(), limit))

    def undispatched(self, limit: int, lease: float) -> Deferred[list[Task]]:
        now = self._clock.seconds()

        def work(connection: Connection) -> list[Task]:
            return list(map(_task, connection.execute(_UNDISPATCHED, (now + lease, now, limit))))

        return self._write(work)

    def unannounced(self, limit: int, older_than: float) -> Deferred[list[Task]]:
        return self._tasks(_UNANNOUNCED, (self._clock.seconds() - older_than, limit))

    def extend(self, seconds: float, longer_than: float) -> Deferred[float]:
        now = self._clock.seconds()

        def work(connection: Connection) -> float:
            connection.execute("BEGIN IMMEDIATE")
            row = connection.execute(_PRESENT_UNTIL).fetchone()
            until, moved = moved_by(row[0] if row else None, now, seconds, longer_than)
            connection.execute(_PRESENT, (until,))
            if moved:
                connection.execute(_MOVE, (moved,))
            if moved < 0:
                connection.execute(_MOVE_LEASES, (moved,))
            connection.execute("COMMIT")
            return moved

        return self._read(work)

    def forget(self, age: float, limit: int) -> Deferred[int]:
        horizon = self._clock.seconds() - age
        return self._write(
            lambda connection: connection.execute(_FORGET, (horizon, limit)).rowcount
        )
