"""One SQLite file, open in one thread of its own: what the history and the registry in it share."""

from __future__ import annotations

import ctypes
import errno
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from time import monotonic, sleep
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from asyncplumber.errors import Unavailable
from asyncplumber.stores.outage import Outage
from asyncplumber.stores.sqlite.checkpoint import BACKSTOP, Checkpoints
from asyncplumber.stores.sqlite.file_identity import FilePlace

T = TypeVar("T")
Connection = sqlite3.Connection

SCHEMA_VERSION = 1
OLDEST = (
    3,
    35,
)  # version of SQLite, of 2021: what it cannot do would show at the first append, not at the start
# seconds for a lock that another process holds, and as much for waiting behind such a call: 5 in
# all
PATIENCE = 2.5
# An account has a number here, so that the two indexes of `events` stay small.  Events lie in the
# order of their arrival: the events of one append share a page of the log, and what is oldest comes
# first without an index of its own.
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
# Later than the rest, and of no concern to those who do not know it: the version stays what it is.
_LATER = (
    "CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, secret TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS epochs (epoch TEXT PRIMARY KEY, began REAL NOT NULL) WITHOUT ROWID",
)


def _prepare(connection: Connection) -> None:
    """Create the tables, unless another process did."""
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"it was made by a newer asyncplumber (schema {version}, this one knows {SCHEMA_VERSION})"
        )
    if version == 0:
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    for statement in _LATER:
        connection.execute(statement)
    connection.execute("COMMIT")


def _abandon(connection: Connection) -> None:
    """Leave it open until the process ends, whose end no longer closes it."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


class SqliteFile:
    """
    Runs work on the file, one piece after the other, in a thread of its own.

    A pool would do it too (`twisted.enterprise.adbapi`), but its way there and back costs more than
    an append.
    """

    def __init__(self, path: str, synchronous: str, reactor: Any) -> None:
        """`synchronous` is NORMAL or FULL, as SQLite means them; nothing is opened yet."""
        self._path = path
        self._synchronous = synchronous
        self._reactor = reactor
        self._jobs: SimpleQueue[tuple[Callable[[Any], Any], Deferred[Any], float] | None] = (
            SimpleQueue()
        )
        self._takes_jobs = False  # from the beginning of the opening to the end
        self._misplaced = False  # the last time that was looked
        self._closed: Deferred[None] = Deferred()
        self._outage = Outage(f"sqlite:{path}")

    def _connect(self) -> Connection:
        if sqlite3.sqlite_version_info < OLDEST:
            wanted = ".".join(map(str, OLDEST))
            raise ValueError(
                f"this Python comes with SQLite {sqlite3.sqlite_version}, and {wanted} or later is needed"
            )
        # Results are nobody else's business; SQLite gives its other files the rights of this one.
        # One that is there is not opened: to close it would take away the locks that other
        # connections of this process hold on it.
        with suppress(FileExistsError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        if os.path.isdir(self._path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        connection = sqlite3.connect(self._path, isolation_level=None, cached_statements=512)
        try:
            # The time-out comes first: the change to WAL mode already needs a lock.
            for pragma in (
                f"busy_timeout = {int(PATIENCE * 1000)}",
                "journal_mode = WAL",
                f"synchronous = {self._synchronous}",
                "cache_size = -16000",
                f"wal_autocheckpoint = {BACKSTOP}",
                "journal_size_limit = 67108864",
            ):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            _prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect_among_others(self) -> Connection:
        """
        Two who change a new file to WAL mode at the same moment get in each other's way, and SQLite
        lets neither wait.
        """
        deadline = monotonic() + PATIENCE
        while True:
            try:
                return self._connect()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or monotonic() > deadline:
                    raise
                sleep(0.01)

    def _connect_for_checkpoints(self) -> Connection:
        # A file that was deleted is not made anew.
        connection = sqlite3.connect(
            f"{Path(self._path).absolute().as_uri()}?mode=rw", uri=True, isolation_level=None
        )
        connection.execute("PRAGMA busy_timeout = 100").fetchall()
        connection.execute(f"PRAGMA synchronous = {self._synchronous}").fetchall()
        return connection

    def _work(self, opened: Deferred[None], closed: Deferred[None]) -> None:
        """The thread."""
        answer = self._reactor.callFromThread
        try:
            connection = self._connect_among_others()
            place = FilePlace(self._path)
        except Exception:
            answer(opened.errback, Failure())
            answer(closed.callback, None)
            return
        checkpoints = Checkpoints(self._path, self._connect_for_checkpoints)
        answer(opened.callback, None)
        while (job := self._jobs.get()) is not None:
            work, done, asked = job
            try:
                if monotonic() - asked > PATIENCE:
                    raise Unavailable
                result = self._done(connection, place, work)
            except BaseException:
                answer(done.errback, Failure())
                # If this fails, so does the next BEGIN: a failure of its own, and not the end of
                # the thread.
                with suppress(sqlite3.Error):
                    connection.rollback()
            else:
                answer(done.callback, result)
                checkpoints.note(connection.total_changes, place.log_size)
        leave = Connection.close if place.may_close else _abandon
        checkpoints.stop(leave)
        leave(connection)
        answer(closed.callback, None)

    def _done(self, connection: Connection, place: FilePlace, work: Callable[[Connection], T]) -> T:
        """What `work` answers, if it was done in the file that others would find."""
        if self._misplaced:
            place.check()
        result = work(connection)
        # Afterwards, because it may be deleted at any moment before.  From then on nothing more is
        # written into it.
        self._misplaced = True
        place.check()
        self._misplaced = False
        return result

    async def open(self) -> None:
        """
        Open the file; what is asked meanwhile waits for it.

        Raises ValueError, with a sentence for the user, if the file cannot be used.
        """
        self._takes_jobs = True
        opened: Deferred[None] = Deferred()
        self._closed = Deferred()
        Thread(
            target=self._work, args=(opened, self._closed), name=f"sqlite:{self._path}", daemon=True
        ).start()
        try:
            await opened
        except (OSError, sqlite3.Error, ValueError) as error:
            self._takes_jobs = False
            while not self._jobs.empty():  # the thread has ended
                if (job := self._jobs.get()) is not None:
                    job[1].errback(Unavailable())
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ValueError(f"the store sqlite:{self._path} cannot be used: {reason}") from error

    async def close(self) -> None:
        """Wait for the work that was handed over, and close."""
        if self._takes_jobs:
            self._takes_jobs = False
            self._jobs.put(None)
            await self._closed

    def run(self, work: Callable[[Connection], T]) -> Deferred[T]:
        """
        Call `work` in the file's thread; it commits what it begins.  Fails with `Unavailable`, or
        with what `work` raises.
        """
        if not self._takes_jobs:
            return fail(Unavailable())
        done: Deferred[T] = Deferred()
        self._jobs.put((work, done, monotonic()))
        return done.addCallbacks(self._went_well, self.translated)

    def _went_well(self, result: T) -> T:
        self._outage.over()
        return result

    def translated(self, failure: Failure) -> Failure:
        """
        What the caller is told of `failure`: `Unavailable` if it befell the file, whose outage goes
        to the log.
        """
        if failure.check(sqlite3.Error):
            self._outage.began(failure.getErrorMessage())
            return Failure(Unavailable())
        return failure
