"""How connections to a SQLite file are opened, and how they are left."""

from __future__ import annotations

import ctypes
import errno
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from time import sleep

from asyncplumber.clocks import TimeSource
from asyncplumber.stores.sqlite.schema import prepare

Connection = sqlite3.Connection

# An older SQLite (this one is of 2021) would fail at the first append, and not at the start.
OLDEST = (3, 35)
LOCK_TIMEOUT = 2.5  # seconds that a statement waits for a lock of another process
CHECKPOINT_LOCK_TIMEOUT = 0.1  # seconds; the next checkpoint makes up for one that was left out
OPEN_RETRY = 0.01  # seconds between two attempts to open a file that another process opens
# Pages in the log at which the connection that appends makes a checkpoint by itself: only if the
# thread that should make them cannot.
BACKSTOP = 40_000
CACHED_STATEMENTS = 512  # more than there are; the number of rows makes each a different one


def connect(path: str, synchronous: str) -> Connection:
    """
    Open the connection that reads and appends; create the file and its tables if missing.

    Args:
        path: The file.
        synchronous: ``normal`` or ``full``, as SQLite means them.

    Raises:
        ValueError: The file cannot be used; the message is for the user.
        OSError: There is no such directory, for example.
        sqlite3.Error: SQLite cannot open or change it.
    """
    if sqlite3.sqlite_version_info < OLDEST:
        raise ValueError(
            f"this Python has SQLite {sqlite3.sqlite_version}; "
            f"{'.'.join(map(str, OLDEST))} or later is needed"
        )
    # Only the owner may read results.  SQLite gives its other files the mode of this one.  An
    # existing file is not opened here: closing it would release the locks that other connections
    # of this process hold on it.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=CACHED_STATEMENTS)
    try:
        # The time-out comes first: the change to WAL mode already needs a lock.
        for pragma in (
            f"busy_timeout = {int(LOCK_TIMEOUT * 1000)}",
            "journal_mode = WAL",
            f"synchronous = {synchronous}",
            "cache_size = -16000",
            f"wal_autocheckpoint = {BACKSTOP}",
            "journal_size_limit = 67108864",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_among_others(path: str, synchronous: str, clock: TimeSource) -> Connection:
    """
    Do the same as `connect`, although other processes open the new file at this moment.

    Two processes that change a file to WAL mode at the same moment block each other, and SQLite
    ignores the busy time-out there.
    """
    deadline = clock.seconds() + LOCK_TIMEOUT
    while True:
        try:
            return connect(path, synchronous)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or clock.seconds() > deadline:
                raise
            sleep(OPEN_RETRY)


def connect_for_checkpoints(path: str, synchronous: str) -> Connection:
    """
    Open a connection that only makes checkpoints.  A file that was deleted is not created again.

    Raises:
        sqlite3.Error: SQLite cannot open it.
    """
    connection = sqlite3.connect(
        f"{Path(path).absolute().as_uri()}?mode=rw", uri=True, isolation_level=None
    )
    connection.execute(f"PRAGMA busy_timeout = {int(CHECKPOINT_LOCK_TIMEOUT * 1000)}").fetchall()
    connection.execute(f"PRAGMA synchronous = {synchronous}").fetchall()
    return connection


def abandon(connection: Connection) -> None:
    """Leave a connection open until the process ends; the end of the process does not close it."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
