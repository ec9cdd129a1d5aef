"""
Whether a SQLite file is still where it was opened.

A process goes on to write into a file that was deleted, and nobody would ever read that again.  SQLite does not notice.
"""

from __future__ import annotations

import os
import sqlite3

# The file, its log and the index of that log.  SQLite removes the last two only with the last connection.
ENDINGS = ("", "-wal", "-shm")
_GONE = (
    "{name} was deleted, moved or replaced while it was in use; nothing is accepted until the same file is back, "
    "or until a restart, which begins with what is there then"
)
_EMPTIED = "{name} was emptied while it was in use; stop, put a backup back and begin a new epoch"


class FilePlace:
    """The files of one open database, by device and inode: a number cannot be given out again while we have the file open."""

    def __init__(self, path: str) -> None:
        """`path` exists, and a connection has been made and has written.  Raises OSError if there is no such file."""
        self._files = [(path + ending, self._identity(path + ending)) for ending in ENDINGS]
        self._log = path + ENDINGS[1]
        self.log_size = 0  # in bytes, at the last check

    @staticmethod
    def _identity(name: str) -> tuple[int, int]:
        status = os.stat(name)
        return status.st_dev, status.st_ino

    def check(self) -> None:
        """Raises sqlite3.OperationalError, with a sentence for the operator, if a file is not the one that was opened."""
        for name, identity in self._files:
            try:
                status = os.stat(name)
            except OSError:
                raise sqlite3.OperationalError(_GONE.format(name=name)) from None
            if (status.st_dev, status.st_ino) != identity:
                raise sqlite3.OperationalError(_GONE.format(name=name))
            if name == self._log:
                self.log_size = status.st_size
            elif not status.st_size:
                raise sqlite3.OperationalError(_EMPTIED.format(name=name))

    @property
    def may_close(self) -> bool:
        """
        Whether a connection may be closed.

        The last one removes the log by its name.  If that name belongs to another file by now, it may be the log of a
        database that was put in our place, with what its processes have accepted.
        """
        for name, identity in self._files:
            if name == self._log:
                try:
                    return self._identity(name) == identity
                except OSError:
                    return True
        return True
