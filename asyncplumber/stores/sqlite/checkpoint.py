"""
Checkpoints of a SQLite file, in a thread and on a connection of their own: no append waits for one.

A checkpoint copies what is in the log into the database.  SQLite would make it within the commit
that makes the log too long.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread

ROWS = 2000  # changed since the last checkpoint: some 4000 pages of the log if results are small
LOG_BYTES = 16 * 1024 * 1024  # growth of the log since the last checkpoint
LONGEST = 16_000  # pages in the log (64 MB) beyond which writers must wait for a checkpoint
TRIES = 4  # checkpoints that follow each other, each for what was written during the one before


def checkpoint(connection: sqlite3.Connection) -> None:
    """
    Copy the log into the database.

    The log can start anew only when a checkpoint has reached its end, and others write meanwhile.
    So a further checkpoint follows at once for what they wrote, which takes a moment.  If the log
    is too long and they never pause, they have to wait for one.

    Raises:
        sqlite3.Error: The file cannot be read or written.
    """
    pages = before = -1
    for _ in range(TRIES):
        _, pages, done = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if done == pages == before:
            return
        before = pages
    if pages > LONGEST:
        connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()


class Checkpoints:
    """
    Makes a checkpoint when there is enough to do.

    Call `note` in the thread that writes, and the rest in any thread.
    """

    def __init__(self, path: str, connect: Callable[[], sqlite3.Connection]) -> None:
        """
        Start the thread.

        Args:
            path: The file, for the name of the thread.
            connect: Opens a connection to the file.  Called in the thread.
        """
        self._connect = connect
        self._close: Callable[[sqlite3.Connection], None] = sqlite3.Connection.close
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._under_way = False
        self._rows = 0
        self._log_size = 0
        self._thread = Thread(target=self._work, name=f"checkpoints of sqlite:{path}", daemon=True)
        self._thread.start()

    def note(self, rows: int, log_size: int) -> None:
        """
        Request a checkpoint if enough was written since the last one.

        Args:
            rows: Rows that were changed since the file was opened.
            log_size: Bytes of the log.
        """
        self._log_size = min(self._log_size, log_size)
        if not self._under_way and (
            rows - self._rows >= ROWS or log_size - self._log_size >= LOG_BYTES
        ):
            self._under_way = True
            self._rows, self._log_size = rows, log_size
            self._wanted.put(True)

    def stop(self, close: Callable[[sqlite3.Connection], None]) -> None:
        """Wait for a checkpoint under way and end the thread, which calls `close`."""
        self._close = close
        self._wanted.put(False)
        self._thread.join()

    def _work(self) -> None:
        connection: sqlite3.Connection | None = None
        while self._wanted.get():
            # The appends get the same error, and report it.
            with suppress(sqlite3.Error):
                connection = connection or self._connect()
                checkpoint(connection)
            self._under_way = False
        if connection is not None:
            self._close(connection)
