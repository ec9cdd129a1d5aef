"""
The registry in a SQLite file.  Its clock is the machine's, which all who share the file share as
well.

That clock may be set.  Forward, and a live instance counts as dead until it renews its lease; back,
and a lease would end too late: the sweep shortens it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection

from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.clocks import TimeSource
from asyncplumber.event import Instance
from asyncplumber.interfaces import IRegistry
from asyncplumber.stores.sqlite.file import Connection, SqliteFile

_PEERS = "peers"
# leases of ours: one that ends later is of an instance with another --lease, or of before a step
LONGEST = 4
_ORPHANS = "DELETE FROM hooks WHERE instance NOT IN (SELECT id FROM instances)"
# CROSS JOIN fixes the order: start from the few accounts, never from all hooks.  One row for each
# instance, which are fewer.
_WANTED = """SELECT instances.id, instances.url, instances.lease, json_group_array(hooks.account) FROM json_each(?) AS asked
    CROSS JOIN hooks ON hooks.account = asked.value CROSS JOIN instances ON instances.id = hooks.instance
    WHERE instances.expires > ? GROUP BY instances.id"""


def wanted(
    connection: Connection, accounts: Collection[str], now: float
) -> dict[str, list[Instance]]:
    """
    As `IRegistry.instances` says, in the file's thread; `now` is in seconds since 1970.  Raises
    sqlite3.Error.
    """
    found: dict[str, list[Instance]] = {}
    for id, url, lease, hooks in connection.execute(
        _WANTED, (json.dumps(list(set(accounts))), now)
    ):
        instance = Instance(id, url, lease)
        for account in json.loads(hooks):
            found.setdefault(account, []).append(instance)
    return found


def kept_secret(connection: Connection) -> bytes:
    """As `ISecrets.secret` says, in the file's thread.  Raises sqlite3.Error."""
    asked = "SELECT secret FROM secrets WHERE name = ?"
    row = connection.execute(asked, (_PEERS,)).fetchone()
    if row is None:
        # Of two who find none, the second one finds that of the first: a statement that writes
        # takes the file's lock.
        connection.execute(
            "INSERT OR IGNORE INTO secrets VALUES (?, ?)", (_PEERS, secrets.token_hex(32))
        )
        row = connection.execute(asked, (_PEERS,)).fetchone()
    return str(row[0]).encode("ascii")


@implementer(IRegistry)
class SqliteRegistry:
    """Who has subscribers of which account, in one file."""

    def __init__(self, file: SqliteFile, lease: float, clock: TimeSource) -> None:
        self._run = file.run
        self._lease = lease
        self._clock = clock

    def _leased(self, instance: Instance) -> tuple[Instance, float]:
        return instance._replace(lease=secrets.token_hex(8)), self._clock.seconds() + self._lease

    def add_instance(self, instance: Instance) -> Deferred[Instance]:
        row, expires = self._leased(instance)

        def work(connection: Connection) -> Instance:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM hooks WHERE instance = ?", (row.id,))
            connection.execute(
                "INSERT OR REPLACE INTO instances VALUES (?, ?, ?, ?)", (*row, expires)
            )
            connection.execute("COMMIT")
            return row

        return self._run(work)

    def renew(self, instance: Instance) -> Deferred[Instance | None]:
        row, expires = self._leased(instance)
        change = "UPDATE instances SET url = ?, lease = ?, expires = ? WHERE id = ?"

        def work(connection: Connection) -> Instance | None:
            return (
                row
                if connection.execute(change, (row.url, row.lease, expires, row.id)).rowcount
                else None
            )

        return self._run(work)

    def remove_instance(self, instance: Instance) -> Deferred[None]:
        def work(connection: Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM instances WHERE id = ?", (instance.id,))
            connection.execute("DELETE FROM hooks WHERE instance = ?", (instance.id,))
            connection.execute("COMMIT")

        return self._run(work)

    def register(self, instance: Instance, accounts: Collection[str]) -> Deferred[None]:
        return self._each("INSERT OR IGNORE INTO hooks VALUES (?, ?)", instance, accounts)

    def unregister(self, instance: Instance, accounts: Collection[str]) -> Deferred[None]:
        return self._each(
            "DELETE FROM hooks WHERE account = ? AND instance = ?", instance, accounts
        )

    def _each(self, change: str, instance: Instance, accounts: Collection[str]) -> Deferred[None]:
        rows = [(account, instance.id) for account in accounts]

        def work(connection: Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(change, rows)
            connection.execute("COMMIT")

        return self._run(work)

    def instances(self, accounts: Collection[str]) -> Deferred[dict[str, list[Instance]]]:
        now = self._clock.seconds()
        return self._run(lambda connection: wanted(connection, accounts, now))

    def prune(self, instance: Instance) -> Deferred[bool]:
        def work(connection: Connection) -> bool:
            connection.execute("BEGIN IMMEDIATE")
            gone = connection.execute(
                "DELETE FROM instances WHERE id = ? AND lease = ?", (instance.id, instance.lease)
            ).rowcount
            if gone:
                connection.execute("DELETE FROM hooks WHERE instance = ?", (instance.id,))
            connection.execute("COMMIT")
            return gone > 0

        return self._run(work)

    def sweep(self) -> Deferred[int]:
        now = self._clock.seconds()
        latest = now + LONGEST * self._lease

        def work(connection: Connection) -> int:
            connection.execute("BEGIN IMMEDIATE")
            dead = connection.execute("DELETE FROM instances WHERE expires <= ?", (now,)).rowcount
            connection.execute("UPDATE instances SET expires = ?1 WHERE expires > ?1", (latest,))
            connection.execute(_ORPHANS)
            connection.execute("COMMIT")
            return dead

        return self._run(work)
