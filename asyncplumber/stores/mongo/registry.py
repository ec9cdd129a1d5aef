"""
The registry in MongoDB: collections ``instances`` and ``hooks``.

Leases run by the server's clock, so that it does not matter whether the instances agree on the
time.  A lease is the instance's, not the hook's: to renew it is one small write, however many hooks
there are.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeVar

from bson import ObjectId
from pymongo.errors import OperationFailure
from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.event import Instance
from asyncplumber.interfaces import IRegistry
from asyncplumber.stores.mongo.link import RETRY_PAUSE, MongoLink
from asyncplumber.stores.retention import hook_url

T = TypeVar("T")

CHUNK = 1000  # rows in one command
_DUPLICATE = 11000
_OURS = {"$type": "string"}  # other programs may keep hooks here too: theirs name no instance
_REMAINS = 3600  # seconds after which the server removes a lapsed instance if nobody sweeps

INDEXES: list[tuple[str, dict[str, Any]]] = [
    ("hooks", {"name": "account_url", "key": {"account_id": 1, "url": 1}, "unique": True}),
    ("hooks", {"name": "instance", "key": {"instance": 1, "account_id": 1}}),
    ("instances", {"name": "expires_at", "key": {"expires_at": 1}, "expireAfterSeconds": _REMAINS}),
]


def _chunks(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


async def kept_secret(link: MongoLink, deadline: float) -> bytes:
    """As `ISecrets.secret` says.  It is in the collection ``secrets``."""
    update = {
        "q": {"_id": "peers"},
        "u": {"$setOnInsert": {"secret": secrets.token_hex(32)}},
        "upsert": True,
    }
    while True:
        # What a majority has is not taken back by a failover.
        rows = await link.rows(
            deadline, {"find": "secrets", "filter": {"_id": "peers"}, "limit": 1}
        )
        if rows:
            return str(rows[0]["secret"]).encode("ascii")
        try:
            await link.change(deadline, {"update": "secrets", "updates": [update]})
        except OperationFailure as error:
            if error.code != _DUPLICATE:
                raise
            await link.pause(
                RETRY_PAUSE
            )  # somebody else was first, and a majority is about to have it


@implementer(IRegistry)
class MongoRegistry:
    """Who has subscribers of which account, for all instances with the same database."""

    def __init__(self, link: MongoLink, lease: float) -> None:
        self._link = link
        self._lease = int(lease * 1000)

    async def _lend(self, deadline: float, instance: Instance, upsert: bool) -> Instance | None:
        row = instance._replace(lease=secrets.token_hex(8))
        fields = {
            "url": {"$literal": row.url},
            "lease": row.lease,
            "expires_at": {"$add": ["$$NOW", self._lease]},
        }
        update = {"q": {"_id": row.id}, "u": [{"$set": fields}], "upsert": upsert}
        answer = await self._link.change(deadline, {"update": "instances", "updates": [update]})
        return row if answer["n"] else None

    def add_instance(self, instance: Instance) -> Deferred[Instance]:
        async def work(deadline: float) -> Instance:
            # The row comes last: who sees it may count on the hooks being this life's.
            await self._delete(deadline, "hooks", {"instance": instance.id})
            row = await self._lend(deadline, instance, True)
            assert row is not None
            return row

        return self._link.call(work)

    def renew(self, instance: Instance) -> Deferred[Instance | None]:
        return self._link.call(lambda deadline: self._lend(deadline, instance, False))

    def remove_instance(self, instance: Instance) -> Deferred[None]:
        async def work(deadline: float) -> None:
            await self._delete(deadline, "instances", {"_id": instance.id})
            await self._delete(deadline, "hooks", {"instance": instance.id})

        return self._link.call(work)

    def register(self, instance: Instance, accounts: Collection[str]) -> Deferred[None]:
        updates = [
            {
                "q": {"account_id": account, "url": hook_url(instance, account)},
                "u": {"$set": {"instance": instance.id}},
                "upsert": True,
            }
            for account in dict.fromkeys(accounts)
        ]

        async def work(deadline: float) -> None:
            for some in _chunks(updates):
                body = {"update": "hooks", "updates": some, "ordered": False}
                try:
                    await self._link.change(deadline, body)
                except OperationFailure as error:
                    # Two who put in the same hook at the same moment: now it is there, so the
                    # second time goes well.
                    if error.code != _DUPLICATE:
                        raise
                    await self._link.change(deadline, body)

        return self._link.call(work)

    def unregister(self, instance: Instance, accounts: Collection[str]) -> Deferred[None]:
        names = list(accounts)

        async def work(deadline: float) -> None:
            for some in _chunks(names):
                await self._delete(
                    deadline, "hooks", {"instance": instance.id, "account_id": {"$in": some}}
                )

        return self._link.call(work)

    def instances(self, accounts: Collection[str]) -> Deferred[dict[str, list[Instance]]]:
        names = list(accounts)

        async def work(deadline: float) -> dict[str, list[Instance]]:
            wanted: dict[str, list[Instance]] = {}
            for some in _chunks(names):
                for row in await self._link.rows(deadline, _wanted(some)):
                    instance = Instance(
                        row["_id"], row["instance"]["url"], row["instance"]["lease"]
                    )
                    for account in row["accounts"]:
                        wanted.setdefault(account, []).append(instance)
            return wanted

        return self._link.call(work)

    def prune(self, instance: Instance) -> Deferred[bool]:
        async def work(deadline: float) -> bool:
            # The hooks are noted down before the row goes: when it is gone the instance may
            # add_instance anew, and hooks that it puts in then must stay.
            hooks = await self._hooks(deadline, instance.id)
            gone = await self._delete(
                deadline, "instances", {"_id": instance.id, "lease": instance.lease}
            )
            if gone:
                await self._remove(deadline, instance.id, hooks)
            return gone > 0

        return self._link.call(work)

    def sweep(self) -> Deferred[int]:
        async def work(deadline: float) -> int:
            lapsed = {"expires_at": {"$type": "date"}, "$expr": {"$lte": ["$expires_at", "$$NOW"]}}
            dead = await self._delete(deadline, "instances", lapsed)
            # Owners first, their hooks second, and whether the owners exist last.  An instance
            # enlists before it puts in hooks, so what was seen of one that is missing afterwards is
            # no living instance's.
            question = {"distinct": "hooks", "key": "instance", "query": {"instance": _OURS}}
            answer = await self._link.command(deadline, question)
            seen = {
                owner: await self._hooks(deadline, owner)
                for owner in await self._absent(deadline, answer["values"])
            }
            if seen:
                # A primary that was replaced may not know an instance that lives.
                for owner in await self._absent(deadline, list(seen), proven=True):
                    await self._remove(deadline, owner, seen[owner])
            return dead

        return self._link.call(work)

    async def _absent(self, deadline: float, ids: list[str], **how: bool) -> list[str]:
        body = {
            "find": "instances",
            "filter": {"_id": {"$in": ids}},
            "projection": {"_id": 1},
            "batchSize": len(ids) + 1,
        }
        present = {row["_id"] for row in await self._link.rows(deadline, body, **how)}
        return [id for id in ids if id not in present]

    async def _hooks(self, deadline: float, owner: str) -> list[ObjectId]:
        """The ids of an instance's hooks."""
        found: list[ObjectId] = []
        body = {
            "find": "hooks",
            "sort": {"_id": 1},
            "projection": {"_id": 1},
            "limit": 10 * CHUNK,
            "batchSize": 10 * CHUNK,
        }
        while True:
            after = {"_id": {"$gt": found[-1]}} if found else {}
            rows = await self._link.rows(deadline, {**body, "filter": {"instance": owner, **after}})
            found += [row["_id"] for row in rows]
            if len(rows) < 10 * CHUNK:
                return found

    async def _remove(self, deadline: float, owner: str, hooks: list[ObjectId]) -> None:
        for some in _chunks(hooks):
            # By owner as well: one that lives at the same URL may have taken the row over.
            await self._delete(deadline, "hooks", {"_id": {"$in": some}, "instance": owner})

    async def _delete(self, deadline: float, collection: str, which: dict[str, Any]) -> int:
        answer = await self._link.change(
            deadline, {"delete": collection, "deletes": [{"q": which, "limit": 0}]}
        )
        return int(answer["n"])


def _wanted(accounts: Sequence[str]) -> dict[str, Any]:
    """
    The question who wants these accounts.  Each instance is looked up once, however many of the
    accounts it has.
    """
    pipeline = [
        {"$match": {"account_id": {"$in": accounts}}},
        {"$group": {"_id": "$instance", "accounts": {"$push": "$account_id"}}},
        {
            "$lookup": {
                "from": "instances",
                "localField": "_id",
                "foreignField": "_id",
                "as": "instance",
            }
        },
        {"$unwind": "$instance"},
        {"$match": {"$expr": {"$gt": ["$instance.expires_at", "$$NOW"]}}},
    ]
    return {"aggregate": "hooks", "pipeline": pipeline, "cursor": {"batchSize": 10 * CHUNK}}
