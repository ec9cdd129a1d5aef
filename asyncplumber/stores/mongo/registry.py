"""
The registry in MongoDB: the collections ``instances`` and ``hooks``.

Leases run by the server's clock, so the clocks of the instances may differ.  A lease belongs to an
instance and not to a hook: one small write renews it, however many hooks there are.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from bson import ObjectId
from pymongo.errors import OperationFailure
from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.event import Instance
from asyncplumber.interfaces import COUNTED_HOOKS, MAX_MEMBERS, Hook, HookQuery, IRegistry, Member
from asyncplumber.stores.mongo.link import DUPLICATE_KEY, RETRY_PAUSE, MongoLink
from asyncplumber.stores.prefixes import prefix_end
from asyncplumber.stores.retention import hook_url

T = TypeVar("T")

CHUNK = 250  # rows in one command: few enough for its time limit on a busy machine
PAGE = 10_000  # rows of one answer
_OURS = {"$type": "string"}  # other programs may keep hooks here; theirs name no instance
_REMAINS = 3600  # seconds after which the server removes an expired instance if nobody sweeps

INDEXES: list[tuple[str, dict[str, Any]]] = [
    ("hooks", {"name": "account_url", "key": {"account_id": 1, "url": 1}, "unique": True}),
    ("hooks", {"name": "instance", "key": {"instance": 1, "account_id": 1}}),
    ("instances", {"name": "expires_at", "key": {"expires_at": 1}, "expireAfterSeconds": _REMAINS}),
]


def _chunks(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


async def kept_secret(link: MongoLink, deadline: float) -> bytes:
    """Return the secret, see `ISecrets.secret`.  It is in the collection ``secrets``."""
    update = {
        "q": {"_id": "peers"},
        "u": {"$setOnInsert": {"secret": secrets.token_hex(32)}},
        "upsert": True,
    }
    while True:
        # A failover does not take back what a majority has.
        body = {"find": "secrets", "filter": {"_id": "peers"}, "limit": 1}
        rows = await link.rows(deadline, body)
        if rows:
            return str(rows[0]["secret"]).encode("ascii")
        try:
            await link.change(deadline, {"update": "secrets", "updates": [update]})
        except OperationFailure as error:
            if error.code != DUPLICATE_KEY:
                raise
            # Another instance was first, and a majority is about to have its secret.
            await link.pause(RETRY_PAUSE)


@implementer(IRegistry)
class MongoRegistry:
    """
    Which instances have subscribers of which account, for all with the same database.

    Calls for many accounts take several commands, each of which has its own time limit.
    """

    def __init__(self, link: MongoLink, lease: float) -> None:
        self._link = link
        self._lease = int(lease * 1000)

    async def _renew_lease(
        self, deadline: float, instance: Instance, upsert: bool
    ) -> Instance | None:
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
            # The row comes last: a process that sees it sees no hooks of a former run.
            await self._delete(deadline, "hooks", {"instance": instance.id})
            row = await self._renew_lease(deadline, instance, True)
            assert row is not None
            return row

        return self._link.call(work)

    def renew(self, instance: Instance) -> Deferred[Instance | None]:
        return self._link.call(lambda deadline: self._renew_lease(deadline, instance, False))

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

        async def work(deadline: float, chunk: Sequence[dict[str, Any]]) -> None:
            body = {"update": "hooks", "updates": chunk, "ordered": False}
            try:
                await self._link.change(deadline, body)
            except OperationFailure as error:
                # Another process added the same hook at the same moment.  It is there now, so a
                # second attempt succeeds.
                if error.code != DUPLICATE_KEY:
                    raise
                await self._link.change(deadline, body)

        return self._in_chunks(work, updates)

    def unregister(self, instance: Instance, accounts: Collection[str]) -> Deferred[None]:
        names = list(accounts)

        async def work(deadline: float, chunk: Sequence[str]) -> None:
            which = {"instance": instance.id, "account_id": {"$in": chunk}}
            await self._delete(deadline, "hooks", which)

        return self._in_chunks(work, names)

    def instances(self, accounts: Collection[str]) -> Deferred[dict[str, list[Instance]]]:
        names = list(accounts)
        wanted: dict[str, list[Instance]] = {}

        async def work(deadline: float, chunk: Sequence[str]) -> None:
            for row in await self._link.rows(deadline, _wanted(chunk)):
                instance = Instance(row["_id"], row["instance"]["url"], row["instance"]["lease"])
                for account in row["accounts"]:
                    wanted.setdefault(account, []).append(instance)

        return self._in_chunks(work, names).addCallback(lambda _: wanted)

    def _in_chunks(
        self,
        work: Callable[[float, Sequence[T]], Coroutine[Any, Any, None]],
        rows: Sequence[T],
    ) -> Deferred[None]:
        """Call `work` with some of `rows` at a time, each time with a time limit of its own."""

        async def run() -> None:
            for chunk in _chunks(rows):
                await self._link.call(work, chunk)

        return Deferred.fromCoroutine(run())

    def prune(self, instance: Instance) -> Deferred[bool]:
        async def work(deadline: float) -> bool:
            # Note the hooks before the row is deleted.  Afterwards the instance may be added anew,
            # and the hooks that it adds then must stay.
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
            # Look for owners first, for their hooks second, and whether the owners exist last.  An
            # instance adds itself before its hooks, so hooks that were seen of an instance that is
            # missing afterwards belong to no living one.
            body = {"distinct": "hooks", "key": "instance", "query": {"instance": _OURS}}
            answer = await self._link.command(deadline, body)
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

    def members(self, limit: int = MAX_MEMBERS) -> Deferred[list[Member]]:
        async def work(deadline: float) -> list[Member]:
            return [
                Member(
                    Instance(row["_id"], row["url"], row["lease"]),
                    row["expires_in"] / 1000,
                    row["hooks"][0]["count"] if row["hooks"] else 0,
                )
                for row in await self._link.rows(deadline, _members(limit))
            ]

        return self._link.call(work)

    def hooks(self, query: HookQuery) -> Deferred[list[Hook]]:
        async def work(deadline: float) -> list[Hook]:
            return [
                Hook(row["account_id"], str(row.get("instance", "")), row["url"])
                for row in await self._link.rows(deadline, _hooks(query))
            ]

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
        """Return the ids of an instance's hooks."""
        found: list[ObjectId] = []
        body = {
            "find": "hooks",
            "sort": {"_id": 1},
            "projection": {"_id": 1},
            "limit": PAGE,
            "batchSize": PAGE,
        }
        while True:
            after = {"_id": {"$gt": found[-1]}} if found else {}
            rows = await self._link.rows(deadline, {**body, "filter": {"instance": owner, **after}})
            found += [row["_id"] for row in rows]
            if len(rows) < PAGE:
                return found

    async def _remove(self, deadline: float, owner: str, hooks: list[ObjectId]) -> None:
        for some in _chunks(hooks):
            # By owner as well: another instance at the same URL may have taken the row over.
            await self._delete(deadline, "hooks", {"_id": {"$in": some}, "instance": owner})

    async def _delete(self, deadline: float, collection: str, which: dict[str, Any]) -> int:
        answer = await self._link.change(
            deadline, {"delete": collection, "deletes": [{"q": which, "limit": 0}]}
        )
        return int(answer["n"])


def _wanted(accounts: Sequence[str]) -> dict[str, Any]:
    """
    Return the command that finds which instances want these accounts.

    It looks up each instance once, however many of the accounts it has.
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
    return {"aggregate": "hooks", "pipeline": pipeline, "cursor": {"batchSize": PAGE}}


def _members(limit: int) -> dict[str, Any]:
    """Return the command that lists the instances, each with the number of its hooks."""
    pipeline: list[dict[str, Any]] = [
        {"$match": {"expires_at": {"$type": "date"}}},
        {"$sort": {"_id": 1}},
        {"$limit": limit},
        {
            "$lookup": {
                "from": "hooks",
                "let": {"id": "$_id"},
                "pipeline": [
                    {"$match": {"$expr": {"$eq": ["$instance", "$$id"]}}},
                    {"$limit": COUNTED_HOOKS},
                    {"$count": "count"},
                ],
                "as": "hooks",
            }
        },
        {
            "$project": {
                "url": 1,
                "lease": 1,
                "hooks": 1,
                "expires_in": {"$subtract": ["$expires_at", "$$NOW"]},
            }
        },
    ]
    return {"aggregate": "instances", "pipeline": pipeline, "cursor": {"batchSize": limit + 1}}


def _hooks(query: HookQuery) -> dict[str, Any]:
    """Return the command that finds some hooks, by the index of accounts and URLs."""
    names: dict[str, Any] = {"$gte": query.prefix}
    if (end := prefix_end(query.prefix)) is not None:
        names["$lt"] = end
    # Other programs may keep what they like here.  Only texts can be shown.
    which: list[dict[str, Any]] = [{"account_id": names, "url": _OURS}]
    if query.instance_id is not None:
        which.append({"instance": query.instance_id})
    if query.after is not None:
        account, _, url = query.after
        same = {"account_id": account, "url": {"$gt": url}}
        which.append({"$or": [same, {"account_id": {"$gt": account}}]})
    return {
        "find": "hooks",
        "filter": {"$and": which},
        "projection": {"_id": 0, "account_id": 1, "url": 1, "instance": 1},
        "sort": {"account_id": 1, "url": 1},
        "limit": query.limit,
        "batchSize": query.limit + 1,
    }
