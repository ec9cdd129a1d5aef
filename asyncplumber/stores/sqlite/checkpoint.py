"""
Checkpoints of a SQLite file, in a thread and by a connection of their own: no append waits for one.

A checkpoint brings what is in the log into the file.  SQLite would do it within the commit that
makes the log too long.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

ROWS = 2000  # changed since the last checkpoint: some 4000 pages of the log where results are small
LOG_BYTES = 16 * 1024 * 1024  # by which the log has grown since the last checkpoint
# pages in the log, 64 MB, at which those who write have to wait for the end of a checkpoint
LONGEST = 16_000
TRIES = 4  # times that a checkpoint follows up what was written during the one before
# In the connection that appends, if there is no other way: pages in the log at which it does a
# checkpoint by itself.
BACKSTOP = 40_000


def checkpoint(connection: sqlite3.Connection) -> None:
    """
    Bring the log into the file.  Raises sqlite3.Error.

    The log begins anew only when a checkpoint reached its end, and while it is under way others
    write.  So what they wrote is done at once afterwards, in a moment; and if they never pause,
    they are made to.
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
    Does a checkpoint when there is enough to do.  `note` is called in the thread that writes, the
    rest anywhere.
    """

    def __init__(self, path: str, connect: Callable[[], sqlite3.Connection]) -> None:
        """
        `connect` makes a connection to the file; it is called in the thread of the checkpoints.
        """
        self._connect = connect
        self._leave: Callable[[sqlite3.Connection], None] = sqlite3.Connection.close
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._under_way = False
        self._rows = 0
        self._log_size = 0
        self._thread = Thread(target=self._work, name=f"checkpoints of sqlite:{path}", daemon=True)
        self._thread.start()

    def note(self, rows: int, log_size: int) -> None:
        """`rows` is how many were changed since the file was opened; `log_size` is in bytes."""
        self._log_size = min(self._log_size, log_size)
        if not self._under_way and (
            rows - self._rows >= ROWS or log_size - self._log_size >= LOG_BYTES
        ):
            self._under_way = True
            self._rows, self._log_size = rows, log_size
            self._wanted.put(True)

    def stop(self, leave: Callable[[sqlite3.Connection], None]) -> None:
        """
        Wait for what is under way, and end; `leave` is called with the connection, if there is one.
        """
        self._leave = leave
        self._wanted.put(False)
        self._thread.join()

    def _work(self) -> None:
        connection: sqlite3.Connection | None = None
        while self._wanted.get():
            try:
                connection = connection or self._connect()
                checkpoint(connection)
            except sqlite3.Error:
                # The appends meet the same error, and report it.
                pass
            self._under_way = False
        if connection is not None:
            self._leave(connection)
