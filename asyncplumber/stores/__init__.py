"""The stores, and `open_store`, which makes the one that ``--store`` names."""

from __future__ import annotations

from typing import Any

from asyncplumber.clocks import TimeSource, WallClock
from asyncplumber.interfaces import LEASE, IStore
from asyncplumber.stores.retention import Retention


def open_store(
    uri: str,
    retention: Retention,
    reactor: Any,
    wall: TimeSource = WallClock,
    *,
    lease: float = LEASE,
) -> IStore:
    """
    Make the store that `uri` names; it is not started yet.

    Args:
        uri: ``memory:``, ``sqlite:PATH`` or any ``mongodb://`` URI.  Only the driver that is
            needed is imported.
        retention: How much history it keeps.
        reactor: Runs it.
        wall: The time of day.
        lease: Seconds that an instance counts after its last renewal.

    Raises:
        ValueError: `uri` names no store.  The message is a sentence for the user.
    """
    if uri == "memory:":
        from asyncplumber.stores.memory import MemoryStore

        return MemoryStore(retention, wall, lease=lease)
    if uri.startswith("sqlite:"):
        from asyncplumber.stores.sqlite.store import SqliteStore

        return SqliteStore(uri, retention, reactor, wall, lease=lease)
    if uri.startswith(("mongodb:", "mongodb+srv:")):
        from asyncplumber.stores.mongo.store import MongoStore

        return MongoStore(uri, retention, reactor, wall, lease=lease)
    raise ValueError("a store is memory:, sqlite:PATH or mongodb://…")
