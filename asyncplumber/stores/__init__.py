"""
The doors to what lasts.

`open_store` turns the words of ``--store`` into a store; what it returns is not started.
"""

from __future__ import annotations

from typing import Any

from asyncplumber.interfaces import IStore
from asyncplumber.stores.keeping import Keeping


def open_store(uri: str, keeping: Keeping, reactor: Any) -> IStore:
    """
    The store that `uri` names: ``memory:``, ``sqlite:PATH`` or any ``mongodb://`` URI.

    Raises ValueError, with a sentence for the user, if it names none.  A driver is imported only if it is used.
    """
    if uri == "memory:":
        from asyncplumber.stores.memory import MemoryStore

        return MemoryStore(keeping, reactor)
    if uri.startswith("sqlite:"):
        from asyncplumber.stores.sqlite import SqliteStore

        return SqliteStore(uri, keeping, reactor)
    if uri.startswith(("mongodb:", "mongodb+srv:")):
        from asyncplumber.stores.mongo import MongoStore

        return MongoStore(uri, keeping, reactor)
    raise ValueError("a store is memory:, sqlite:PATH or mongodb://…")
