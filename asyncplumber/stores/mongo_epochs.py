"""
The epoch of accounts without events, in MongoDB.

Such accounts have no row, so that readers of any name do not make the database grow.  Epochs are in the collection
``epochs``, from which the server removes those that are not recent any more.
"""

from __future__ import annotations

from asyncplumber.stores.keeping import Keeping
from asyncplumber.stores.mongo_link import MongoLink


class Epochs:
    """Gives the present epoch, and knows the recent ones.  They are renewed by the server's clock, like rows of accounts."""

    def __init__(self, link: MongoLink, keeping: Keeping) -> None:
        self._link = link
        self._keeping = keeping

    async def current(self, deadline: float, now: float) -> str:
        """The epoch in which a numbering begins at `now` (seconds since 1970).  Begun here, once a day, if it is due."""
        horizon = {"$subtract": ["$$NOW", int(self._keeping.renewal * 1000)]}
        pipeline = [{"$sort": {"began": -1, "_id": -1}}, {"$limit": 1}, {"$project": {"due": {"$lt": ["$began", horizon]}}}]
        while True:
            # What a majority has is not taken back.  Two who find that it is due may both begin one: the later counts.
            rows = await self._link.rows(deadline, {"aggregate": "epochs", "pipeline": pipeline, "cursor": {"batchSize": 1}})
            if rows and not rows[0]["due"]:
                return str(rows[0]["_id"])
            began = {"q": {"_id": self._keeping.epochs(now)}, "u": {"$currentDate": {"began": True}}, "upsert": True}
            await self._link.change(deadline, {"update": "epochs", "updates": [began]})

    async def is_recent(self, deadline: float, epoch: str) -> bool:
        """Whether this is the present epoch, or was it lately."""
        return bool(await self._link.rows(deadline, {"find": "epochs", "filter": {"_id": epoch}, "limit": 1}))
