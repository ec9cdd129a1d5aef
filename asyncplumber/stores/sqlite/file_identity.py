"""
Whether the files of an open SQLite database are still at their paths.

A process goes on to write into a file that was deleted, which nobody would ever read again.  SQLite
does not notice.

A file that is overwritten in place (``cp`` over it) is still the same file: this is not noticed.
Its content cannot tell, because checkpoints of any process change it, and in WAL mode SQLite does
not count changes in its header.
"""

from __future__ import annotations

import os
import sqlite3

from asyncplumber.clocks import TimeSource

LOG = "-wal"
INDEX = "-shm"
# Seconds between two looks at the index.  It can be made anew from the log, so nothing that is
# accepted in this time is lost with it.
INDEX_INTERVAL = 0.1
_MOVED = (
    "{name} was deleted, moved or replaced while it was in use; nothing is accepted until the same "
    "file is back, or until a restart, which begins with what is there then"
)
_EMPTIED = "{name} was emptied while it was in use; stop, restore a backup and begin a new epoch"


class FileIdentity:
    """
    The database, its log and the index of that log, each by device and inode.

    The system cannot give an inode to another file while we have this one open.  SQLite removes the
    log and the index only with the last connection.
    """

    def __init__(self, path: str, clock: TimeSource) -> None:
        """
        Remember what is at `path`, to which a connection is open that has written.

        Args:
            path: The database.
            clock: Measures the interval between two looks at the index.

        Raises:
            OSError: One of the files does not exist.
        """
        self._name = path
        self._log = path + LOG
        self._index = path + INDEX
        self._clock = clock
        self._identities = {
            name: self._identity(os.stat(name)) for name in (self._name, self._log, self._index)
        }
        self._next_look = 0.0  # at the index
        self.log_size = 0  # bytes, at the last check

    @staticmethod
    def _identity(status: os.stat_result) -> tuple[int, int]:
        return status.st_dev, status.st_ino

    def check(self) -> None:
        """
        Look whether all files are the ones that were opened.

        Raises:
            sqlite3.OperationalError: One of them is not; the message is for the operator.
        """
        if not self._look(self._name).st_size:
            raise sqlite3.OperationalError(_EMPTIED.format(name=self._name))
        self.log_size = self._look(self._log).st_size
        now = self._clock.seconds()
        if now >= self._next_look:
            self._look(self._index)
            self._next_look = now + INDEX_INTERVAL

    def _look(self, name: str) -> os.stat_result:
        try:
            status = os.stat(name)
        except OSError:
            raise sqlite3.OperationalError(_MOVED.format(name=name)) from None
        if self._identity(status) != self._identities[name]:
            raise sqlite3.OperationalError(_MOVED.format(name=name))
        return status

    @property
    def may_close(self) -> bool:
        """
        Whether the connection may be closed.

        The last connection removes the log by its name.  If another log has that name, it belongs
        to a database that was put in our place, and holds what other processes have accepted.
        """
        try:
            return self._identity(os.stat(self._log)) == self._identities[self._log]
        except OSError:
            return True
