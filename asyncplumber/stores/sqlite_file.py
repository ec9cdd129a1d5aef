"""One SQLite file, open in one thread of its own: what the history and the registry in it share."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar

from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from asyncplumber.errors import Unavailable
from asyncplumber.stores.outage import Outage

T = TypeVar("T")
Connection = sqlite3.Connection

SCHEMA_VERSION = 1
PATIENCE = 2.5  # seconds for a lock that another process holds, and as much for waiting behind such a call: 5 in all
# An account has a number here, so that the two indexes of `events` stay small.  Events lie in the order of their arrival: the
# events of one append share a page of the log, and what is oldest comes first without an index of its own.
_SCHEMA = """
CREATE TABLE accounts (number INTEGER PRIMARY KEY, account TEXT NOT NULL UNIQUE, epoch TEXT NOT NULL,
    head INTEGER NOT NULL, floor INTEGER NOT NULL, touched REAL NOT NULL);
CREATE TABLE events (account INTEGER NOT NULL, seq INTEGER NOT NULL, key TEXT NOT NULL, id TEXT NOT NULL, type TEXT NOT NULL,
    time TEXT NOT NULL, content_type TEXT NOT NULL, payload BLOB NOT NULL, stored REAL NOT NULL,
    UNIQUE (account, seq), UNIQUE (account, key));
CREATE TABLE instances (id TEXT PRIMARY KEY, url TEXT NOT NULL, lease TEXT NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE hooks (account TEXT NOT NULL, instance TEXT NOT NULL, PRIMARY KEY (account, instance)) WITHOUT ROWID;
CREATE INDEX hooks_instance ON hooks (instance);
"""


def _prepare(connection: Connection) -> None:
    """Create the tables, unless another process did."""
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise ValueError(f"it was made by a newer asyncplumber (schema {version}, this one knows {SCHEMA_VERSION})")
    if version == 0:
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


class SqliteFile:
    """Runs work on the file, one piece after the other."""

    def __init__(self, path: str, synchronous: str, reactor: Any) -> None:
        """`synchronous` is NORMAL or FULL, as SQLite means them; nothing is opened yet."""
        self._path = path
        self._synchronous = synchronous
        self._reactor = reactor
        self._pool: Any = None
        self._outage = Outage(f"sqlite:{path}")

    def _opened(self, connection: Connection) -> None:
        # The time-out comes first: the change to WAL mode already needs a lock.
        for pragma in (
            f"busy_timeout = {int(PATIENCE * 1000)}",
            "journal_mode = WAL",
            f"synchronous = {self._synchronous}",
            "cache_size = -16000",
            "wal_autocheckpoint = 4000",
            "journal_size_limit = 67108864",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()

    async def open(self) -> None:
        """Raises ValueError, with a sentence for the user, if the file cannot be used."""
        try:
            # Results are nobody else's business; SQLite gives its other files the rights of this one.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            self._pool = adbapi.ConnectionPool(
                "sqlite3",
                self._path,
                check_same_thread=False,
                isolation_level=None,
                cached_statements=512,
                cp_min=1,
                cp_max=1,
                cp_openfun=self._opened,
                cp_reactor=self._reactor,
            )
            await self._pool.runWithConnection(_prepare)
        except (OSError, sqlite3.Error, ValueError) as error:
            if self._pool is not None:
                self._pool.close()
                self._pool = None
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ValueError(f"the store sqlite:{self._path} cannot be used: {reason}") from error

    async def close(self) -> None:
        """Wait for the work that was handed over, and close."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            # There is one thread, so this comes after everything before it; `close` would wait with the reactor stopped.
            await pool.runWithConnection(lambda connection: None)
            pool.close()

    def run(self, work: Callable[[Connection], T]) -> Deferred[T]:
        """Call `work` in the file's thread; it commits what it begins.  Fails with `Unavailable`, or with what `work` raises."""
        if self._pool is None:
            return fail(Unavailable())
        asked = monotonic()

        def job(connection: Connection) -> T:
            if monotonic() - asked > PATIENCE:
                raise Unavailable
            return work(connection)

        deferred: Deferred[T] = self._pool.runWithConnection(job)
        return deferred.addCallbacks(self._went_well, self._went_wrong)

    def _went_well(self, result: T) -> T:
        self._outage.over()
        return result

    def _went_wrong(self, failure: Failure) -> Failure:
        if failure.check(sqlite3.Error):
            self._outage.began(failure.getErrorMessage())
            return Failure(Unavailable())
        return failure
