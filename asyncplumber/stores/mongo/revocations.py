"""
Revocations and spent tickets in MongoDB.

They are in the collections ``revocations`` and ``tickets``; ``versions`` counts changes.  Whether a
row has ended is a matter of the time of day.  The server removes it some time later.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from bson import ObjectId
from pymongo.errors import OperationFailure
from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.clocks import TimeSource
from asyncplumber.interfaces import MAX_REVOCATIONS, IRevocations, Revocation, RevocationKind
from asyncplumber.stores.mongo.link import DUPLICATE_KEY, Document, MongoLink
from asyncplumber.stores.revocations import too_many

PAGE = 2000  # revocations in one answer: with values of any length it is below 16 MiB
_REMAINS = 3600  # seconds after which the server removes a row that has ended
_VERSION = {"_id": "revocations"}

INDEXES: list[tuple[str, Document]] = [
    (name, {"name": "expires_at", "key": {"expires_at": 1}, "expireAfterSeconds": _REMAINS})
    for name in ("revocations", "tickets")
]


def _as_revocation(row: Document) -> Revocation:
    kind, _, value = row["_id"].partition(":")
    return Revocation(RevocationKind(kind), value, row.get("before"), row["ends"])


def _date(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@implementer(IRevocations)
class MongoRevocations:
    """What all instances with the same database have revoked."""

    def __init__(self, link: MongoLink, clock: TimeSource, limit: int = MAX_REVOCATIONS) -> None:
        """
        Args:
            link: The connection.
            clock: The time of day.
            limit: The most revocations that have not ended.
        """
        self.limit = limit
        self._link = link
        self._clock = clock

    def revoke(self, revocation: Revocation) -> Deferred[Revocation]:
        return self._link.call(self._revoke, revocation)

    async def _revoke(self, deadline: float, revocation: Revocation) -> Revocation:
        now = self._clock.seconds()
        name = f"{revocation.kind.value}:{revocation.value}"
        # A row that has ended would make the new one longer, or earlier, than it was asked to be.
        ended = {"_id": name, "ends": {"$lte": now}}
        await self._delete(deadline, "revocations", ended)
        others = {"_id": {"$ne": name}, "ends": {"$gt": now}}
        counted = await self._link.command(deadline, {"count": "revocations", "query": others})
        if counted["n"] >= self.limit and not await self._find(deadline, {"_id": name}):
            raise too_many(self.limit)
        latest: Document = {
            "ends": revocation.expires_at,
            "expires_at": _date(revocation.expires_at),
        }
        if revocation.before is not None:
            latest["before"] = revocation.before
        row = await self._changed(deadline, "revocations", name, {"$max": latest})
        # After the row: who sees the number finds the row.
        counted_up = {"q": _VERSION, "u": {"$inc": {"number": 1}}, "upsert": True}
        await self._link.change(deadline, {"update": "versions", "updates": [counted_up]})
        return _as_revocation(row)

    def version(self) -> Deferred[int]:
        async def work(deadline: float) -> int:
            # A primary that was replaced may not know the number yet that another instance wrote.
            body = {"find": "versions", "filter": _VERSION, "limit": 1}
            rows = await self._link.rows(deadline, body, proven=True)
            return int(rows[0]["number"]) if rows else 0

        return self._link.call(work)

    def revocations(self) -> Deferred[list[Revocation]]:
        return self._link.call(self._all)

    async def _all(self, deadline: float) -> list[Revocation]:
        found: list[Revocation] = []
        after = ""  # no row has this name
        while True:
            which = {"_id": {"$gt": after}, "ends": {"$gt": self._clock.seconds()}}
            rows = await self._find(deadline, which)
            found += map(_as_revocation, rows)
            if len(rows) < PAGE:
                return found
            after = rows[-1]["_id"]

    async def _find(self, deadline: float, which: Document) -> list[Document]:
        body = {
            "find": "revocations",
            "filter": which,
            "sort": {"_id": 1},
            "limit": PAGE,
            "batchSize": PAGE,
        }
        return await self._link.rows(deadline, body)

    def spend(self, ticket: str, expires_at: float) -> Deferred[bool]:
        # The mark of this call: a command that is sent a second time finds its own row.
        mine = ObjectId()
        first = {"$setOnInsert": {"by": mine, "expires_at": _date(expires_at)}}

        async def work(deadline: float) -> bool:
            row = await self._changed(deadline, "tickets", ticket, first)
            return bool(row["by"] == mine)

        return self._link.call(work)

    async def _changed(
        self, deadline: float, collection: str, name: str, change: Document
    ) -> Document:
        """Change the document of this name, which is made if there is none, and return it."""
        body = {
            "findAndModify": collection,
            "query": {"_id": name},
            "update": change,
            "upsert": True,
            "new": True,
        }
        try:
            answer = await self._link.change(deadline, body)
        except OperationFailure as error:
            # Another process made it at the same moment.  It is there now.
            if error.code != DUPLICATE_KEY:
                raise
            answer = await self._link.change(deadline, body)
        row: Document = answer["value"]
        return row

    def sweep(self) -> Deferred[int]:
        async def work(deadline: float) -> int:
            now = self._clock.seconds()
            await self._delete(deadline, "tickets", {"expires_at": {"$lte": _date(now)}})
            return await self._delete(deadline, "revocations", {"ends": {"$lte": now}})

        return self._link.call(work)

    async def _delete(self, deadline: float, collection: str, which: dict[str, Any]) -> int:
        deletes = [{"q": which, "limit": 0}]
        answer = await self._link.change(deadline, {"delete": collection, "deletes": deletes})
        return int(answer["n"])
