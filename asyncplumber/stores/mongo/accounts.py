"""
Where the numberings of accounts stand in MongoDB.

There is no counter to read: an account's head is the largest number of its events, or its floor if
it has none.  The floor is written before the events below it are deleted.  So a reader that looks
for the events first, and for the floor second, cannot miss both.  ``$unionWith`` is that order in
one command.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from asyncplumber.clocks import TimeSource
from asyncplumber.stores.account_state import AccountState
from asyncplumber.stores.mongo.epochs import Epochs
from asyncplumber.stores.mongo.link import MongoLink
from asyncplumber.stores.retention import Retention

CHUNK = 2500  # accounts in one question: with names of any length the answer is below 16 MiB
BEGIN_CHUNK = 1000  # numberings that one command begins
_NEWEST = {"account": -1, "epoch": -1, "seq": -1}


@dataclass(slots=True)
class MongoAccount(AccountState):
    """
    The state of an account's numbering, as it was found.

    Attributes:
        is_stale: Whether the row was not marked as used for so long that it has to be, before the
            server removes it.
        has_row: Whether the account has had an event.
        total: Payload bytes up to the head, see `asyncplumber.stores.mongo.trimmer`.
        base: Payload bytes up to the floor, or less.
    """

    is_stale: bool = False
    has_row: bool = True
    total: int = 0
    base: int = 0


class Accounts:
    """Looks up numberings, and begins them."""

    def __init__(self, link: MongoLink, retention: Retention, wall: TimeSource) -> None:
        self._link = link
        self._retention = retention
        self.epochs = Epochs(link, retention, wall)

    @property
    def mark_interval(self) -> float:
        """Seconds after which the row of an account in use is marked as used again."""
        return self._retention.numbering / 8

    def rows(self, accounts: Collection[str]) -> dict[str, Any]:
        """Return the stage that adds the rows of these accounts to those of a pipeline."""
        horizon = {"$subtract": ["$$NOW", int(self.mark_interval * 1000)]}
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
        self,
        deadline: float,
        accounts: Collection[str],
        *,
        fresh: bool = False,
        proven: bool = False,
    ) -> dict[str, MongoAccount]:
        """
        Return those accounts that have a row.

        For `fresh` and `proven` see `MongoLink.rows`.  Only `fresh` ones have their `total`: for it
        the server must look at the event itself.
        """
        found: dict[str, MongoAccount] = {}
        names = list(accounts)
        for start in range(0, len(names), CHUNK):
            chunk = names[start : start + CHUNK]
            found.update(await self._find(deadline, chunk, "", fresh=fresh, proven=proven))
        return found

    async def _find(
        self, deadline: float, accounts: list[str], epoch: str, **concern: bool
    ) -> dict[str, MongoAccount]:
        match: dict[str, Any] = {"account": {"$in": accounts}}
        if epoch:
            match["epoch"] = epoch
        # The server answers this pair of stages by one step into the index for each account.
        newest = {"_id": "$account", "epoch": {"$first": "$epoch"}, "seq": {"$first": "$seq"}}
        if concern.get("fresh"):
            newest["total"] = {"$first": "$total"}
        body = {
            "aggregate": "events",
            "pipeline": [
                {"$match": match},
                {"$sort": _NEWEST},
                {"$group": newest},
                self.rows(accounts),
            ],
            "cursor": {"batchSize": 2 * len(accounts)},
        }
        rows = await self._link.rows(deadline, body, **concern)
        heads = {row["_id"]: row for row in rows if "row" not in row}
        found: dict[str, MongoAccount] = {}
        for name, row in ((row["_id"], row["row"]) for row in rows if "row" in row):
            head = heads.get(name)
            if head is not None and head["epoch"] != row["epoch"]:
                if not epoch:
                    # Remains of another numbering sort before this one, because clocks differed.
                    found.update(await self._find(deadline, [name], row["epoch"], **concern))
                    continue
                head = None
            floor = row["floor"]
            seq, total = (head["seq"], head.get("total") or 0) if head is not None else (0, 0)
            found[name] = MongoAccount(
                row["epoch"], max(seq, floor), floor, row["stale"], total=total
            )
        return found

    async def find_marked(
        self, deadline: float, accounts: Collection[str]
    ) -> dict[str, MongoAccount]:
        """Return those accounts that have a row, marked as used."""
        found = await self.find(deadline, accounts)
        while stale := [name for name, account in found.items() if account.is_stale]:
            await self._mark(deadline, stale)
            # The server could remove a row just before the mark: so look again, after it.
            found = {name: account for name, account in found.items() if not account.is_stale}
            found.update(await self.find(deadline, stale))
        return found

    async def ensure(self, deadline: float, accounts: Collection[str]) -> dict[str, MongoAccount]:
        """
        Return all these accounts, as the writer's server has them at this moment.

        A numbering is begun where there is none, and all are marked as used.
        """
        found = await self.find(deadline, accounts, fresh=True)
        while True:
            missing = [name for name in accounts if name not in found]
            stale = [name for name, account in found.items() if account.is_stale]
            if not missing and not stale:
                return found
            await self._begin(deadline, missing)
            await self._mark(deadline, stale)
            # The server could remove a row just before the mark: so look again, after it.
            found.update(await self.find(deadline, [*missing, *stale], fresh=True))

    async def _begin(self, deadline: float, accounts: list[str]) -> None:
        epoch = await self.epochs.current(deadline) if accounts else ""
        for start in range(0, len(accounts), BEGIN_CHUNK):
            updates = [
                {
                    "q": {"_id": name},
                    "u": {
                        "$setOnInsert": {"epoch": epoch, "floor": 0},
                        "$currentDate": {"touched": True},
                    },
                    "upsert": True,
                }
                for name in accounts[start : start + BEGIN_CHUNK]
            ]
            body = {"update": "accounts", "updates": updates, "ordered": False}
            await self._link.change(deadline, body)

    async def _mark(self, deadline: float, accounts: list[str]) -> None:
        """Mark these accounts as used, by the server's clock."""
        if accounts:
            update = {
                "q": {"_id": {"$in": accounts}},
                "u": {"$currentDate": {"touched": True}},
                "multi": True,
            }
            await self._link.change(deadline, {"update": "accounts", "updates": [update]})
