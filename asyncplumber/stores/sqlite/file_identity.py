"""
Whether a SQLite file is still where it was opened.

A process goes on to write into a file that was deleted, and nobody would ever read that again.
SQLite does not notice.
"""

from __future__ import annotations

import os
import sqlite3
from time import monotonic

# The file, its log and the index of that log.  SQLite removes the last two only with the last
# connection.
ENDINGS = ("", "-wal", "-shm")
# seconds between looks at the last two; to look at the first costs little enough to be done at each
# append
LOOK = 0.1
_GONE = (
    "{name} was deleted, moved or replaced while it was in use; nothing is accepted until the same file is back, "
    "or until a restart, which begins with what is there then"
)
_EMPTIED = "{name} was emptied while it was in use; stop, put a backup back and begin a new epoch"


class FilePlace:
    """
    The files of one open database, by device and inode: a number cannot be given out again while we
    have the file open.
    """

    def __init__(self, path: str) -> None:
        """
        `path` exists, and a connection has been made and has written.  Raises OSError if there is
        no such file.
        """
        self._name = path
        self._log = path + ENDINGS[1]
        self._identities = {
            path + ending: self._identity(os.stat(path + ending)) for ending in ENDINGS
        }
        self._looked = 0.0
        self.log_size = 0  # in bytes, when it was last looked at

    @staticmethod
    def _identity(status: os.stat_result) -> tuple[int, int]:
        return status.st_dev, status.st_ino

    def check(self) -> None:
        """
        Raises sqlite3.OperationalError, with a sentence for the operator, if a file is not the one
        that was opened.
        """
        if not self._look(self._name).st_size:
            raise sqlite3.OperationalError(_EMPTIED.format(name=self._name))
        now = monotonic()
        if now - self._looked >= LOOK:
            sizes = [self._look(self._name + ending).st_size for ending in ENDINGS[1:]]
            self.log_size = sizes[0]
            self._looked = now

    def _look(self, name: str) -> os.stat_result:
        try:
            status = os.stat(name)
        except OSError:
            raise sqlite3.OperationalError(_GONE.format(name=name)) from None
        if self._identity(status) != self._identities[name]:
            raise sqlite3.OperationalError(_GONE.format(name=name))
        return status

    @property
    def may_close(self) -> bool:
        """
        Whether a connection may be closed.

        The last one removes the log by its name.  If that name belongs to another file by now, it
        may be the log of a database that was put in our place, with what its processes have
        accepted.
        """
        try:
            return self._identity(os.stat(self._log)) == self._identities[self._log]
        except OSError:
            return True
