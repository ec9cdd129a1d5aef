"""
The upper limit: what MongoDB's drivers alone do with the documents that the project wrote.

``python ceiling.py DRIVER URI SIZE`` runs one driver in a process of its own, with ``SIZE``
documents in an insert, and prints documents per second.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 2.0  # that each driver has
_COLLECTION = "ceiling"


def _connected(uri: str) -> Any:
    import pymongo

    return pymongo.MongoClient(uri)


def _documents(database: Any) -> list[dict[str, Any]]:
    return list(database.events.find({}, {"_id": 0}).sort("_id", -1).limit(5000))


def _batches(documents: list[dict[str, Any]], size: int) -> Any:
    """
    Yield the documents again and again, under other epochs each time.

    The unique index needs them to be new.
    """
    turn, rows = 0, []
    while True:
        turn += 1
        for document in documents:
            rows.append(
                {
                    **document,
                    "epoch": f"{document['epoch']}x{turn}",
                    "key": f"{document.get('key', '')}x{turn}",
                }
            )
            if len(rows) == size:
                yield rows
                rows = []


def _with_pymongo(uri: str, size: int) -> float:
    with _connected(uri) as client:
        database = client.get_default_database()
        target, written = database[_COLLECTION], 0
        end, began = time.monotonic() + SECONDS, time.monotonic()
        for rows in _batches(_documents(database), size):
            target.insert_many(rows)
            written += size
            if time.monotonic() > end:
                return written / (time.monotonic() - began)
    return 0


async def _insert_by_txmongo(uri: str, size: int, documents: list[dict[str, Any]]) -> float:
    from txmongo.connection import ConnectionPool

    pool, written = ConnectionPool(uri), 0
    target = pool.get_default_database()[_COLLECTION]
    await target.count(timeout=10)
    end, began = time.monotonic() + SECONDS, time.monotonic()
    for rows in _batches(documents, size):
        await target.insert_many(rows, timeout=10)
        written += size
        if time.monotonic() > end:
            break
    rate = written / (time.monotonic() - began)
    await pool.disconnect()
    return rate


def _with_txmongo(uri: str, size: int) -> float:
    from twisted.internet import task
    from twisted.internet.defer import Deferred

    with _connected(uri) as client:
        documents = _documents(client.get_default_database())
    found: list[float] = []

    def main(reactor: Any) -> Any:
        return Deferred.fromCoroutine(_insert_by_txmongo(uri, size, documents)).addCallback(
            found.append
        )

    try:
        task.react(main)
    except SystemExit as end:
        if end.code:
            raise
    return found[0]


def _journalled(uri: str) -> str:
    return uri + ("&" if "?" in uri else "?") + "journal=true"


def ceilings(
    uri: str, name: str, load: Callable[[], Any], *, drop: bool = False
) -> tuple[Any, dict[str, float]]:
    """
    Run ``load``, then let each driver write the documents that it left.

    Returns:
        The result of ``load``, and the figures ``size_NAME`` (documents in an insert, as the server
        counted them), ``pymongo_NAME`` and ``txmongo_NAME`` (documents per second).
    """
    with _connected(uri) as client:
        database = client.get_default_database()

        def inserts() -> tuple[int, int]:
            status = client.admin.command("serverStatus")
            return status["opcounters"]["insert"], status["metrics"]["commands"]["insert"]["total"]

        documents, commands = inserts()
        figures = load()
        documents, commands = (
            after - before for after, before in zip(inserts(), (documents, commands), strict=True)
        )
        size = max(1, round(documents / max(1, commands)))
        found: dict[str, float] = {f"size_{name}": documents / max(1, commands)}
        indexes = [
            index for key, index in database.events.index_information().items() if key != "_id_"
        ]
        for driver in ("pymongo", "txmongo"):
            database.drop_collection(_COLLECTION)
            for index in indexes:
                database[_COLLECTION].create_index(index["key"], unique=index.get("unique", False))
            command = [sys.executable, str(Path(__file__)), driver, _journalled(uri), str(size)]
            found[f"{driver}_{name}"] = float(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
            )
        if drop:
            client.drop_database(database.name)
    return figures, found


if __name__ == "__main__":
    print(
        {"pymongo": _with_pymongo, "txmongo": _with_txmongo}[sys.argv[1]](
            sys.argv[2], int(sys.argv[3])
        )
    )
