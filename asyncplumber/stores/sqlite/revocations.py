"""Revocations and spent tickets in a SQLite file."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.clocks import TimeSource
from asyncplumber.interfaces import MAX_REVOCATIONS, IRevocations, Revocation, RevocationKind
from asyncplumber.stores.revocations import merged, too_many
from asyncplumber.stores.sqlite.connect import Connection
from asyncplumber.stores.sqlite.file import SqliteFile

_ALL = "SELECT kind, value, before, expires FROM revocations WHERE expires > ?"
_SAME = _ALL + " AND kind = ? AND value = ?"
_COUNT = "SELECT count(*) FROM revocations"
# The row gets a new number, also if it takes the place of another one.
_PUT = "INSERT OR REPLACE INTO revocations (kind, value, before, expires) VALUES (?, ?, ?, ?)"
_VERSION = "SELECT seq FROM sqlite_sequence WHERE name = 'revocations'"
_FORGET = "DELETE FROM revocations WHERE expires <= ?"
_SPEND = "INSERT OR IGNORE INTO tickets VALUES (?, ?)"
_FORGET_SPENT = "DELETE FROM tickets WHERE expires <= ?"


def _revocation(kind: str, value: str, before: float | None, expires_at: float) -> Revocation:
    return Revocation(RevocationKind(kind), value, before, expires_at)


def _revoke(connection: Connection, new: Revocation, now: float, limit: int) -> Revocation:
    """
    Add the row, see `IRevocations.revoke`.

    Raises:
        TooManyRequests: There are too many.
        sqlite3.Error: The file cannot be written.
    """
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(_FORGET, (now,))
    kind = new.kind.value
    found = connection.execute(_SAME, (now, kind, new.value)).fetchone()
    if found is None:
        (count,) = connection.execute(_COUNT).fetchone()
        if count >= limit:
            raise too_many(limit)
    row = merged(_revocation(*found) if found else None, new)
    connection.execute(_PUT, (kind, row.value, row.before, row.expires_at))
    connection.execute("COMMIT")
    return row


@implementer(IRevocations)
class SqliteRevocations:
    """What all processes that share the file have revoked."""

    def __init__(self, file: SqliteFile, clock: TimeSource, limit: int = MAX_REVOCATIONS) -> None:
        """
        Args:
            file: The file.
            clock: The time of day.
            limit: The most revocations that have not ended.
        """
        self.limit = limit
        self._run = file.run
        self._clock = clock

    def revoke(self, revocation: Revocation) -> Deferred[Revocation]:
        now = self._clock.seconds()
        return self._run(lambda connection: _revoke(connection, revocation, now, self.limit))

    def version(self) -> Deferred[int]:
        def work(connection: Connection) -> int:
            row = connection.execute(_VERSION).fetchone()
            return int(row[0]) if row else 0

        return self._run(work)

    def revocations(self) -> Deferred[list[Revocation]]:
        now = self._clock.seconds()

        def work(connection: Connection) -> list[Revocation]:
            return [_revocation(*row) for row in connection.execute(_ALL, (now,)).fetchall()]

        return self._run(work)

    def spend(self, ticket: str, expires_at: float) -> Deferred[bool]:
        def work(connection: Connection) -> bool:
            return connection.execute(_SPEND, (ticket, expires_at)).rowcount > 0

        return self._run(work)

    def sweep(self) -> Deferred[int]:
        now = self._clock.seconds()

        def work(connection: Connection) -> int:
            connection.execute("BEGIN IMMEDIATE")
            count = connection.execute(_FORGET, (now,)).rowcount
            connection.execute(_FORGET_SPENT, (now,))
            connection.execute("COMMIT")
            return count

        return self._run(work)
