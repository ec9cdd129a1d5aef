"""
The epoch of accounts without events, in a SQLite file.

Such accounts have no row: readers of any name must not make the file grow.  Everything here runs in
the thread of the file.
"""

from __future__ import annotations

from asyncplumber.errors import InstancesRunning
from asyncplumber.stores.epochs import epoch_after, new_epoch
from asyncplumber.stores.retention import Retention
from asyncplumber.stores.sqlite.connect import Connection

_NEWEST = "SELECT epoch, began FROM epochs ORDER BY began DESC, epoch DESC LIMIT 1"
_RECENT = "SELECT 1 FROM epochs WHERE epoch = ? AND began >= ?"
# As `task_changes.in_new_epoch` says: rows whose event is not in the history, and then all others.
_LOSE_CURSORS = """
UPDATE tasks SET epoch = NULL, seq = NULL, is_announced = is_announced AND
    ended_at IS NOT NULL AND result IS NULL AND error IS NULL
WHERE epoch IS NOT NULL AND NOT EXISTS (SELECT 1 FROM accounts
    WHERE account = tasks.account AND epoch = tasks.epoch AND head >= tasks.seq)
"""
_MOVE_CURSORS = "UPDATE tasks SET epoch = ? WHERE epoch IS NOT NULL"
_LIVE_INSTANCE = "SELECT 1 FROM instances WHERE expires > ?"


class Epochs:
    """The current epoch and the recent ones."""

    def __init__(self, retention: Retention) -> None:
        self._retention = retention

    def current(self, connection: Connection, now: float) -> str:
        """
        Return the epoch of a numbering that begins at `now`, in seconds since 1970.

        A new one is begun here when it is due (`Retention.renewal`).
        """
        row = connection.execute(_NEWEST).fetchone()
        if row is not None and row[1] >= now - self._retention.renewal:
            return str(row[0])
        if not connection.in_transaction:
            # If two processes find that it is due, the second one finds the epoch of the first.
            connection.execute("BEGIN IMMEDIATE")
            epoch = self.current(connection, now)
            connection.execute("COMMIT")
            return epoch
        epoch = new_epoch(now)
        connection.execute("INSERT INTO epochs VALUES (?, ?)", (epoch, now))
        return epoch

    def is_recent(self, connection: Connection, epoch: str, now: float) -> bool:
        """Return whether this is the current epoch, or was it lately (`Retention.recent`)."""
        since = now - self._retention.recent
        return connection.execute(_RECENT, (epoch, since)).fetchone() is not None

    def begin(self, connection: Connection, now: float) -> str:
        """
        Continue all numberings in a new epoch, as `IHistory.begin_epoch` says.

        Raises:
            InstancesRunning: An instance has a lease.
            sqlite3.Error: The file cannot be read or written.
        """
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute(_LIVE_INSTANCE, (now,)).fetchone() is not None:
            raise InstancesRunning
        (newest,) = connection.execute("SELECT max(epoch) FROM accounts").fetchone()
        epoch = epoch_after(newest or "", now)
        connection.execute(_LOSE_CURSORS)
        connection.execute(_MOVE_CURSORS, (epoch,))
        # An event has no epoch of its own: it is the epoch of its account.
        connection.execute("UPDATE accounts SET epoch = ?", (epoch,))
        connection.execute("DELETE FROM epochs")
        connection.execute("INSERT INTO epochs VALUES (?, ?)", (epoch, now))
        connection.execute("COMMIT")
        return epoch

    def forget(self, connection: Connection, now: float) -> None:
        """Delete the epochs that are not recent any more, in the caller's transaction."""
        connection.execute("DELETE FROM epochs WHERE began < ?", (now - self._retention.recent,))
