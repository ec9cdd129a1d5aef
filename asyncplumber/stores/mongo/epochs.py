"""
The epoch of accounts without events, in MongoDB.

Such accounts have no row, so that readers of any name do not make the database grow.  Epochs are in
the collection ``epochs``, from which the server removes those that are not recent any more.
"""

from __future__ import annotations

from typing import Any

from asyncplumber.errors import InstancesRunning
from asyncplumber.stores.epochs import epoch_after, new_epoch
from asyncplumber.stores.mongo.link import MongoLink
from asyncplumber.stores.retention import Retention

CHUNK = 100  # accounts in one command, with up to a thousand events each


def _moved(which: dict[str, Any], epoch: str) -> dict[str, Any]:
    return {"q": which, "u": {"$set": {"epoch": epoch}}, "multi": True}


class Epochs:
    """
    Gives the present epoch, and knows the recent ones.  They are renewed by the server's clock,
    like rows of accounts.
    """

    def __init__(self, link: MongoLink, retention: Retention) -> None:
        self._link = link
        self._retention = retention

    async def current(self, deadline: float, now: float) -> str:
        """
        The epoch in which a numbering begins at `now` (seconds since 1970).  Begun here, once a
        day, if it is due.
        """
        horizon = {"$subtract": ["$$NOW", int(self._retention.renewal * 1000)]}
        pipeline = [
            {"$sort": {"began": -1, "_id": -1}},
            {"$limit": 1},
            {"$project": {"due": {"$lt": ["$began", horizon]}}},
        ]
        while True:
            # What a majority has is not taken back.  Two who find that it is due may both begin
            # one: the later counts.
            rows = await self._link.rows(
                deadline, {"aggregate": "epochs", "pipeline": pipeline, "cursor": {"batchSize": 1}}
            )
            if rows and not rows[0]["due"]:
                return str(rows[0]["_id"])
            began = {
                "q": {"_id": new_epoch(now)},
                "u": {"$currentDate": {"began": True}},
                "upsert": True,
            }
            await self._link.change(deadline, {"update": "epochs", "updates": [began]})

    async def begin(self, now: float) -> str:
        """As `IHistory.begin_epoch` says.  Raises `InstancesRunning`."""
        alive = {
            "find": "instances",
            "filter": {"$expr": {"$gt": ["$expires_at", "$$NOW"]}},
            "limit": 1,
        }
        if await self._link.call(lambda deadline: self._link.rows(deadline, alive)):
            raise InstancesRunning
        newest = {"find": "accounts", "sort": {"epoch": -1}, "limit": 1, "allowDiskUse": True}
        found = await self._link.call(lambda deadline: self._link.rows(deadline, newest))
        epoch = epoch_after(found[0]["epoch"] if found else "", now)
        left = {
            "find": "accounts",
            "filter": {"epoch": {"$ne": epoch}},
            "limit": CHUNK,
            "batchSize": CHUNK,
        }
        while True:
            # Epochs sort by time, so the rows that are left are those that an interrupted call left
            # too.
            rows = await self._link.call(lambda deadline: self._link.rows(deadline, left))
            if not rows:
                break
            # First the events, then the row by which they are found: a row of before finds events
            # of an interrupted call.
            await self._change(
                "events",
                [
                    _moved({"account": row["_id"], "epoch": {"$gte": row["epoch"]}}, epoch)
                    for row in rows
                ],
            )
            await self._change(
                "accounts", [_moved({"_id": {"$in": [row["_id"] for row in rows]}}, epoch)]
            )
        former = {"delete": "epochs", "deletes": [{"q": {}, "limit": 0}]}
        began = {"q": {"_id": epoch}, "u": {"$currentDate": {"began": True}}, "upsert": True}
        await self._link.call(lambda deadline: self._link.change(deadline, former))
        await self._change("epochs", [began])
        return epoch

    async def _change(self, collection: str, updates: list[dict[str, Any]]) -> None:
        await self._link.call(
            lambda deadline: self._link.change(deadline, {"update": collection, "updates": updates})
        )

    async def is_recent(self, deadline: float, epoch: str) -> bool:
        """Whether this is the present epoch, or was it lately."""
        return bool(
            await self._link.rows(
                deadline, {"find": "epochs", "filter": {"_id": epoch}, "limit": 1}
            )
        )
