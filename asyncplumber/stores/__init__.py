"""
The doors to what lasts.

`open_store` turns the words of ``--store`` into a store; what it returns is not started.
"""

from __future__ import annotations

from typing import Any

from asyncplumber.clocks import WallClock
from asyncplumber.interfaces import IStore
from asyncplumber.stores.retention import Retention


def open_store(uri: str, retention: Retention, reactor: Any, wall: Any = WallClock) -> IStore:
    """
    The store that `uri` names: ``memory:``, ``sqlite:PATH`` or any ``mongodb://`` URI.

    `wall.seconds()` is the time of day.  Raises ValueError, with a sentence for the user, if it
    names none.  A driver is imported only if it is used.
    """
    if uri == "memory:":
        from asyncplumber.stores.memory import MemoryStore

        return MemoryStore(retention, wall)
    if uri.startswith("sqlite:"):
        from asyncplumber.stores.sqlite.store import SqliteStore

        return SqliteStore(uri, retention, reactor, wall)
    if uri.startswith(("mongodb:", "mongodb+srv:")):
        from asyncplumber.stores.mongo.store import MongoStore

        return MongoStore(uri, retention, reactor, wall)
    raise ValueError("a store is memory:, sqlite:PATH or mongodb://…")
