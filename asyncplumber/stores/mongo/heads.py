"""
Where the numberings of accounts stand in MongoDB.

There is no counter to read: an account's head is its largest number, or its floor if nothing is
kept.  The floor is written before the events below it go, so whoever looks for the events first and
for the floor second cannot miss both. ``$unionWith`` is that order in one command.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from asyncplumber.event import Cursor, Position
from asyncplumber.stores.mongo.epochs import Epochs
from asyncplumber.stores.mongo.link import MongoLink
from asyncplumber.stores.retention import Retention

CHUNK = 2500  # accounts in one question: with names of any length the answer stays below 16 MiB
_NEWEST = {"account": -1, "epoch": -1, "seq": -1}


class Place(NamedTuple):
    """
    Where an account's numbering stands.

    `stale`: it should be marked as used, or it is forgotten some day.  Without a row, it has had no
    event.
    """

    epoch: str
    head: int
    floor: int
    stale: bool = False
    has_row: bool = True

    @property
    def cursor(self) -> Cursor:
        """The head."""
        return Cursor(self.epoch, self.head)

    @property
    def position(self) -> Position:
        """The same for the world outside."""
        return Position(self.epoch, self.head, self.floor)


class Places:
    """Looks up numberings, and begins them."""

    def __init__(self, link: MongoLink, retention: Retention) -> None:
        self._link = link
        self._retention = retention
        self.epochs = Epochs(link, retention)

    def rows(self, accounts: Collection[str]) -> dict[str, Any]:
        """
        The stage that appends the rows of these accounts to what a pipeline on ``events`` has found
        before.
        """
        horizon = {"$subtract": ["$$NOW", int(self._retention.numbering / 8 * 1000)]}
        project = {
            "row": {"epoch": "$epoch", "floor": "$floor", "stale": {"$lt": ["$touched", horizon]}}
        }
        return {
            "$unionWith": {
                "coll": "accounts",
                "pipeline": [{"$match": {"_id": {"$in": list(accounts)}}}, {"$project": project}],
            }
        }

    async def find(
        self, deadline: float, accounts: Collection[str], **how: bool
    ) -> dict[str, Place]:
        """
        The places of those accounts that have one; `how` is `fresh` or `proven`, as
        `MongoLink.rows` says.
        """
        found: dict[str, Place] = {}
        names = list(accounts)
        for start in range(0, len(names), CHUNK):
            found.update(await self._find(deadline, names[start : start + CHUNK], "", **how))
        return found

    async def _find(
        self, deadline: float, accounts: list[str], epoch: str, **how: bool
    ) -> dict[str, Place]:
        match: dict[str, Any] = {"account": {"$in": accounts}}
        if epoch:
            match["epoch"] = epoch
        # This pair of stages is what the server answers by one step into the index per account.
        newest = {"_id": "$account", "epoch": {"$first": "$epoch"}, "seq": {"$first": "$seq"}}
        pipeline = [{"$match": match}, {"$sort": _NEWEST}, {"$group": newest}, self.rows(accounts)]
        rows = await self._link.rows(
            deadline,
            {
                "aggregate": "events",
                "pipeline": pipeline,
                "cursor": {"batchSize": 2 * len(accounts)},
            },
            **how,
        )
        heads = {row["_id"]: (row["epoch"], row["seq"]) for row in rows if "row" not in row}
        found: dict[str, Place] = {}
        for account, row in ((row["_id"], row["row"]) for row in rows if "row" in row):
            of, head = heads.get(account, (row["epoch"], 0))
            if of != row["epoch"] and not epoch:
                # Remains of an earlier numbering are in front of this one, because clocks differed.
                found.update(await self._find(deadline, [account], row["epoch"], **how))
            else:
                head = head if of == row["epoch"] else 0
                found[account] = Place(
                    row["epoch"], max(head, row["floor"]), row["floor"], row["stale"]
                )
        return found

    async def marked(self, deadline: float, accounts: Collection[str]) -> dict[str, Place]:
        """The places of those accounts that have one, marked as used."""
        found = await self.find(deadline, accounts)
        while stale := [account for account, place in found.items() if place.stale]:
            await self.touch(deadline, stale)
            # Only what is found after the mark was made is certain not to be forgotten in this
            # moment.
            found = {account: place for account, place in found.items() if not place.stale}
            found.update(await self.find(deadline, stale))
        return found

    async def used(
        self, deadline: float, accounts: Collection[str], now: float, fresh: bool = False
    ) -> dict[str, Place]:
        """The places of all these accounts, begun where there is none, and marked as used."""
        found = await self.find(deadline, accounts, fresh=fresh)
        while True:
            missing = [account for account in accounts if account not in found]
            stale = [account for account, place in found.items() if place.stale]
            if not missing and not stale:
                return found
            await self._begin(deadline, missing, now)
            await self.touch(deadline, stale)
            # Only what is found after the mark was made is certain not to be forgotten in this
            # moment.
            found.update(await self.find(deadline, [*missing, *stale], fresh=fresh))

    async def _begin(self, deadline: float, accounts: list[str], now: float) -> None:
        epoch = await self.epochs.current(deadline, now) if accounts else ""
        for start in range(0, len(accounts), 1000):
            updates = [
                {
                    "q": {"_id": account},
                    "u": {
                        "$setOnInsert": {"epoch": epoch, "floor": 0},
                        "$currentDate": {"touched": True},
                    },
                    "upsert": True,
                }
                for account in accounts[start : start + 1000]
            ]
            await self._link.change(
                deadline, {"update": "accounts", "updates": updates, "ordered": False}
            )

    async def touch(self, deadline: float, accounts: Collection[str]) -> None:
        """Mark these accounts as used, by the server's clock."""
        if accounts:
            update = {
                "q": {"_id": {"$in": list(accounts)}},
                "u": {"$currentDate": {"touched": True}},
                "multi": True,
            }
            await self._link.change(deadline, {"update": "accounts", "updates": [update]})
