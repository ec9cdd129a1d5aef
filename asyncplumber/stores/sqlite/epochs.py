"""
The epoch of accounts without events, in a SQLite file.

Such accounts have no row, so that readers of any name do not make the file grow.  All in the thread
of the file.
"""

from __future__ import annotations

from asyncplumber.errors import InstancesRunning
from asyncplumber.stores.epochs import epoch_after, new_epoch
from asyncplumber.stores.retention import Retention
from asyncplumber.stores.sqlite.file import Connection

_NEWEST = "SELECT epoch, began FROM epochs ORDER BY began DESC, epoch DESC LIMIT 1"


class Epochs:
    """Gives the present epoch, and knows the recent ones."""

    def __init__(self, retention: Retention) -> None:
        self._retention = retention

    def current(self, connection: Connection, now: float) -> str:
        """
        The epoch in which a numbering begins at `now` (seconds since 1970).  Begun here, once a
        day, if it is due.
        """
        row = connection.execute(_NEWEST).fetchone()
        if row is not None and row[1] >= now - self._retention.renewal:
            return str(row[0])
        if not connection.in_transaction:
            # Of two who find that it is due, the second finds that of the first.
            connection.execute("BEGIN IMMEDIATE")
            epoch = self.current(connection, now)
            connection.execute("COMMIT")
            return epoch
        epoch = new_epoch(now)
        connection.execute("INSERT INTO epochs VALUES (?, ?)", (epoch, now))
        return epoch

    def is_recent(self, connection: Connection, epoch: str, now: float) -> bool:
        """Whether this is the present epoch, or was it lately."""
        asked = "SELECT 1 FROM epochs WHERE epoch = ? AND began >= ?"
        return (
            connection.execute(asked, (epoch, now - self._retention.recent)).fetchone() is not None
        )

    def begin(self, connection: Connection, now: float) -> str:
        """As `IHistory.begin_epoch` says.  Raises `InstancesRunning` or sqlite3.Error."""
        connection.execute("BEGIN IMMEDIATE")
        if (
            connection.execute("SELECT 1 FROM instances WHERE expires > ?", (now,)).fetchone()
            is not None
        ):
            raise InstancesRunning
        (newest,) = connection.execute("SELECT max(epoch) FROM accounts").fetchone()
        epoch = epoch_after(newest or "", now)
        # Events have no epoch of their own: it is that of their account.
        connection.execute("UPDATE accounts SET epoch = ?", (epoch,))
        connection.execute("DELETE FROM epochs")
        connection.execute("INSERT INTO epochs VALUES (?, ?)", (epoch, now))
        connection.execute("COMMIT")
        return epoch

    def forget(self, connection: Connection, now: float) -> None:
        """Forget what is not recent any more, in the caller's transaction."""
        connection.execute("DELETE FROM epochs WHERE began < ?", (now - self._retention.recent,))
