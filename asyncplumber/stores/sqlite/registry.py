"""
The registry in a SQLite file.

Leases are measured by the machine's time of day, which all processes that share the file share.  It
may be set.  If it is set forward, a live instance counts as dead until it renews its lease.  If it
is set back, a lease would end too late; the sweep shortens it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection

from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.clocks import TimeSource
from asyncplumber.event import Instance
from asyncplumber.interfaces import COUNTED_HOOKS, MAX_MEMBERS, Hook, HookQuery, IRegistry, Member
from asyncplumber.stores.prefixes import prefix_end
from asyncplumber.stores.retention import hook_url
from asyncplumber.stores.sqlite.connect import Connection
from asyncplumber.stores.sqlite.file import SqliteFile

# Leases of ours: one that ends later was given before the clock was set back, or by an instance
# with another --lease.
LONGEST = 4
SECRET_BYTES = 32
_PEERS = "peers"  # the name of the secret that instances share
_KEPT = "SELECT secret FROM secrets WHERE name = ?"
_ORPHANS = "DELETE FROM hooks WHERE instance NOT IN (SELECT id FROM instances)"
# CROSS JOIN fixes the order: begin with the few accounts, and not with all hooks.  The result has a
# row for each instance, because there are fewer instances than accounts.
_WANTED = """SELECT instances.id, instances.url, instances.lease, json_group_array(hooks.account)
    FROM json_each(?) AS asked CROSS JOIN hooks ON hooks.account = asked.value
    CROSS JOIN instances ON instances.id = hooks.instance
    WHERE instances.expires > ? GROUP BY instances.id"""

_MEMBERS = """SELECT id, url, lease, expires,
    (SELECT count(*) FROM (SELECT 1 FROM hooks WHERE instance = instances.id LIMIT ?))
    FROM instances ORDER BY id LIMIT ?"""
_HOOKS = """SELECT hooks.account, hooks.instance, instances.url FROM hooks
    LEFT JOIN instances ON instances.id = hooks.instance
    WHERE (hooks.account, hooks.instance) > (?, ?) {where}
    ORDER BY hooks.account, hooks.instance LIMIT ?"""


def find_instances(
    connection: Connection, accounts: set[str], now: float
) -> dict[str, list[Instance]]:
    """
    Return what `IRegistry.instances` returns, in the file's thread.

    Args:
        connection: The file's connection.
        accounts: The accounts of events.
        now: Seconds since 1970.

    Raises:
        sqlite3.Error: The file cannot be read.
    """
    found: dict[str, list[Instance]] = {}
    asked = json.dumps(list(accounts))
    for id, url, lease, hooks in connection.execute(_WANTED, (asked, now)):
        instance = Instance(id, url, lease)
        for account in json.loads(hooks):
            found.setdefault(account, []).append(instance)
    return found


def kept_secret(connection: Connection) -> bytes:
    """
    Return what `ISecrets.secret` returns, in the file's thread.

    Raises:
        sqlite3.Error: The file cannot be read or written.
    """
    row = connection.execute(_KEPT, (_PEERS,)).fetchone()
    if row is None:
        # If two processes find none, the second one finds that of the first: a statement that
        # writes takes the file's lock.
        made = (_PEERS, secrets.token_hex(SECRET_BYTES))
        connection.execute("INSERT OR IGNORE INTO secrets VALUES (?, ?)", made)
        row = connection.execute(_KEPT, (_PEERS,)).fetchone()
    return str(row[0]).encode("ascii")


@implementer(IRegistry)
class SqliteRegistry:
    """Which instances have subscribers of which account, in one file."""

    def __init__(self, file: SqliteFile, lease: float, clock: TimeSource) -> None:
        """
        Args:
            file: The file.
            lease: Seconds that an instance counts after its last renewal.
            clock: The time of day.
        """
        self._run = file.run
        self._lease = lease
        self._clock = clock

    def _leased(self, instance: Instance) -> tuple[Instance, float]:
        """Return the instance with a new lease, and when that ends in seconds since 1970."""
        row = instance._replace(lease=secrets.token_hex(8))
        return row, self._clock.seconds() + self._lease

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
        values = row.url, row.lease, expires, row.id

        def work(connection: Connection) -> Instance | None:
            return row if connection.execute(change, values).rowcount else None

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
        change = "DELETE FROM hooks WHERE account = ? AND instance = ?"
        return self._each(change, instance, accounts)

    def _each(self, change: str, instance: Instance, accounts: Collection[str]) -> Deferred[None]:
        rows = [(account, instance.id) for account in accounts]

        def work(connection: Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(change, rows)
            connection.execute("COMMIT")

        return self._run(work)

    def instances(self, accounts: Collection[str]) -> Deferred[dict[str, list[Instance]]]:
        now = self._clock.seconds()
        asked = set(accounts)
        return self._run(lambda connection: find_instances(connection, asked, now))

    def prune(self, instance: Instance) -> Deferred[bool]:
        def work(connection: Connection) -> bool:
            connection.execute("BEGIN IMMEDIATE")
            removed = connection.execute(
                "DELETE FROM instances WHERE id = ? AND lease = ?", (instance.id, instance.lease)
            ).rowcount
            if removed:
                connection.execute("DELETE FROM hooks WHERE instance = ?", (instance.id,))
            connection.execute("COMMIT")
            return removed > 0

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

    def members(self, limit: int = MAX_MEMBERS) -> Deferred[list[Member]]:
        now = self._clock.seconds()

        def work(connection: Connection) -> list[Member]:
            return [
                Member(Instance(id, url, lease), expires - now, hooks)
                for id, url, lease, expires, hooks in connection.execute(
                    _MEMBERS, (COUNTED_HOOKS, limit)
                )
            ]

        return self._run(work)

    def hooks(self, query: HookQuery) -> Deferred[list[Hook]]:
        where = ""
        values: list[str] = []
        # Nothing is less than an empty instance, so the first page begins with the prefix itself.
        after = (query.prefix, "") if query.after is None else query.after[:2]
        if (end := prefix_end(query.prefix)) is not None:
            where, values = where + "AND hooks.account < ? ", [*values, end]
        if query.instance_id is not None:
            where, values = where + "AND hooks.instance = ? ", [*values, query.instance_id]
        select = _HOOKS.format(where=where)

        def work(connection: Connection) -> list[Hook]:
            rows = connection.execute(select, (*after, *values, query.limit))
            return [
                Hook(account, id, hook_url(Instance(id, url), account) if url is not None else "")
                for account, id, url in rows
            ]

        return self._run(work)
