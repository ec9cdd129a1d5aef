"""
Epochs in MongoDB: the one of accounts without events, and the beginning of a new one.

Accounts without events have no row, so that readers of any name do not make the database grow.
Their epochs are in the collection ``epochs``, from which the server removes old ones.
"""

from __future__ import annotations

from typing import Any

from asyncplumber.clocks import TimeSource
from asyncplumber.errors import InstancesRunning
from asyncplumber.stores.epochs import epoch_after, new_epoch
from asyncplumber.stores.mongo.link import MongoLink
from asyncplumber.stores.retention import Retention

CHUNK = 100  # accounts in one command, with up to a thousand events each
# The row of epochs that were begun and are not in use everywhere yet.  No epoch has such a name.
_UNFINISHED = "not finished"


def _moved(which: dict[str, Any], epoch: str) -> dict[str, Any]:
    return {"q": which, "u": {"$set": {"epoch": epoch}}, "multi": True}


def _lost(epoch: str) -> dict[str, Any]:
    """Return the update of tasks whose event is not in the history, see `in_new_epoch`."""
    payloads = [{"$type": "$result"}, {"$type": "$error"}]
    is_kept_elsewhere = {
        "$and": ["$is_announced", "$is_done", {"$eq": [payloads, ["missing", "missing"]]}]
    }
    fields = {"is_announced": is_kept_elsewhere, "cursor": "$$REMOVE"}
    which = {"cursor": {"$exists": True}, "cursor.epoch": {"$ne": epoch}}
    return {"q": which, "u": [{"$set": fields}], "multi": True}


class Epochs:
    """
    Returns the present epoch, and knows the recent ones.

    They are renewed by the server's clock, like the rows of accounts.
    """

    def __init__(self, link: MongoLink, retention: Retention, wall: TimeSource) -> None:
        self._link = link
        self._retention = retention
        self._wall = wall

    async def current(self, deadline: float) -> str:
        """Return the epoch in which a numbering begins now.  It is begun here if that is due."""
        horizon = {"$subtract": ["$$NOW", int(self._retention.renewal * 1000)]}
        pipeline = [
            {"$sort": {"began": -1, "_id": -1}},
            {"$limit": 1},
            {"$project": {"due": {"$lt": ["$began", horizon]}}},
        ]
        body = {"aggregate": "epochs", "pipeline": pipeline, "cursor": {"batchSize": 1}}
        while True:
            # What a majority has is not taken back.  If two processes find that an epoch is due,
            # both may begin one: the later one counts.
            rows = await self._link.rows(deadline, body)
            if rows and not rows[0]["due"]:
                return str(rows[0]["_id"])
            began = self._began(new_epoch(self._wall.seconds()))
            await self._link.change(deadline, {"update": "epochs", "updates": [began]})

    @staticmethod
    def _began(epoch: str) -> dict[str, Any]:
        return {"q": {"_id": epoch}, "u": {"$currentDate": {"began": True}}, "upsert": True}

    async def is_recent(self, deadline: float, epoch: str) -> bool:
        """Return whether accounts without events have this epoch, or had it lately."""
        body = {"find": "epochs", "filter": {"_id": epoch}, "limit": 1}
        return bool(await self._link.rows(deadline, body))

    async def begin(self) -> str:
        """Continue all numberings in a new epoch; see `IHistory.begin_epoch`."""
        alive = {"$expr": {"$gt": ["$expires_at", "$$NOW"]}}
        if await self._find({"find": "instances", "filter": alive, "limit": 1}):
            raise InstancesRunning
        unfinished = await self._unfinished()
        newest = {"find": "accounts", "sort": {"epoch": -1}, "limit": 1, "allowDiskUse": True}
        in_use = [row["epoch"] for row in await self._find(newest)]
        epoch = epoch_after(max([*in_use, *unfinished], default=""), self._wall.seconds())
        noted = {"q": {"_id": _UNFINISHED}, "u": {"$addToSet": {"epochs": epoch}}, "upsert": True}
        await self._update("epochs", [noted])
        await self._move_accounts(unfinished, epoch)
        await self._update("tasks", [_lost(epoch)])
        former = {"delete": "epochs", "deletes": [{"q": {}, "limit": 0}]}
        await self._link.call(self._link.change, former)
        await self._update("epochs", [self._began(epoch)])
        return epoch

    async def _unfinished(self) -> list[str]:
        """Return the epochs that calls began which were interrupted."""
        body = {"find": "epochs", "filter": {"_id": _UNFINISHED}, "limit": 1}
        return [epoch for row in await self._find(body) for epoch in row["epochs"]]

    async def _move_accounts(self, unfinished: list[str], epoch: str) -> None:
        """Move all accounts to `epoch`, also those that an interrupted call moved in part."""
        left = {
            "find": "accounts",
            "filter": {"epoch": {"$ne": epoch}},
            "limit": CHUNK,
            "batchSize": CHUNK,
        }
        while rows := await self._find(left):
            # The events first, and then the row by which they are found.  Events of other epochs
            # are remains, whose numbers would collide.
            events = [
                _moved(
                    {"account": row["_id"], "epoch": {"$in": [row["epoch"], *unfinished]}}, epoch
                )
                for row in rows
            ]
            await self._update("events", events)
            names = [row["_id"] for row in rows]
            heads = await self._heads(names, epoch)
            tasks = [
                {
                    "q": {
                        "account": row["_id"],
                        "cursor.epoch": {"$in": [row["epoch"], *unfinished]},
                        "cursor.seq": {"$lte": max(row["floor"], heads.get(row["_id"], 0))},
                    },
                    "u": {"$set": {"cursor.epoch": epoch}},
                    "multi": True,
                }
                for row in rows
            ]
            await self._update("tasks", tasks)
            await self._update("accounts", [_moved({"_id": {"$in": names}}, epoch)])

    async def _heads(self, accounts: list[str], epoch: str) -> dict[str, int]:
        """Return the largest number of each account that has events in this epoch."""
        body = {
            "aggregate": "events",
            "pipeline": [
                {"$match": {"account": {"$in": accounts}, "epoch": epoch}},
                {"$group": {"_id": "$account", "seq": {"$max": "$seq"}}},
            ],
            "cursor": {"batchSize": len(accounts) + 1},
        }
        return {row["_id"]: row["seq"] for row in await self._find(body)}

    async def _find(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        return await self._link.call(lambda deadline: self._link.rows(deadline, body))

    async def _update(self, collection: str, updates: list[dict[str, Any]]) -> None:
        body = {"update": collection, "updates": updates}
        await self._link.call(self._link.change, body)
