"""
Tasks in MongoDB.

Each write is one ``findAndModify`` of one document, which the server does at one moment.  So of all
claims one begins a run, and of all changes of a state one is the first, without a lock.  The answer
to one that changes nothing still waits until all before it is durable: whoever joins a run knows
that it is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from bson import ObjectId
from bson.errors import InvalidDocument
from pymongo.errors import OperationFailure
from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.errors import PlumberError, TooLarge
from asyncplumber.interfaces import Claim, Claimed, ITasks
from asyncplumber.stores.mongo.appender import DOCUMENT_BYTES
from asyncplumber.stores.mongo.barrier import Barrier
from asyncplumber.stores.mongo.link import DUPLICATE_KEY, Document, MongoLink
from asyncplumber.stores.mongo.task_documents import (
    FULL,
    SHORT,
    after,
    as_task,
    change_pipeline,
    claim_pipeline,
    id_of,
    is_at_or_before,
    is_before,
    move_update,
    presence_pipeline,
)
from asyncplumber.task import Task

T = TypeVar("T")

REMEMBERED = 10_000  # documents that are known to be durable
PAGE = 100  # tasks of one question: with results of 64 KiB, the answer is below 16 MiB
_PAGE_BYTES = 8 * 1024 * 1024  # of payloads in a page; with more, the server may have cut it short
_TOO_LARGE = (10334, 17419, 17420)  # server codes: the document would not fit
_PRESENCE = {"_id": "instances"}


def _size(*payloads: bytes | None) -> int:
    return sum(len(payload) for payload in payloads if payload is not None)


@implementer(ITasks)
class MongoTasks:
    """The tasks of all instances with the same database."""

    def __init__(self, link: MongoLink) -> None:
        self._link = link
        self._barrier = Barrier(link)
        self._durable: OrderedDict[str, ObjectId] = OrderedDict()  # the marks of documents, by id

    def claim(self, claim: Claim) -> Deferred[Claimed]:
        return self._link.call(self._claim, claim)

    async def _claim(self, deadline: float, claim: Claim) -> Claimed:
        by = ObjectId()
        body = {
            "findAndModify": "tasks",
            "query": {"_id": id_of(claim.account, claim.key)},
            "update": claim_pipeline(claim, by),
            "upsert": True,
            "new": True,
        }
        size = _size(claim.input, claim.digest)
        try:
            row = await self._modified(deadline, body, size)
        except OperationFailure as error:
            # Another instance made the document at the same moment.  It is there now.
            if error.code != DUPLICATE_KEY:
                raise
            row = await self._modified(deadline, body, size)
        assert row is not None
        return Claimed(as_task(row), row["by"] == by)

    async def _modified(self, deadline: float, body: Document, size: int = 0) -> Document | None:
        """
        Return the document after a ``findAndModify``; None if there is none.

        Raises:
            TooLarge: More than a document can hold.  `size` is what is new in it.
            PlumberError: It cannot be stored.
        """
        if size > DOCUMENT_BYTES:
            raise TooLarge
        try:
            answer = await self._link.change(deadline, body)
        except (InvalidDocument, UnicodeError, OverflowError) as error:
            raise PlumberError("this cannot be stored") from error
        except OperationFailure as error:
            if error.code in _TOO_LARGE:
                raise TooLarge from error
            raise
        row: Document | None = answer["value"]
        if row is not None and "by" in row:
            self._mark_durable([row])
        return row

    def _mark_durable(self, rows: Iterable[Document]) -> None:
        """Note that these documents are in the journal, with all that was changed before."""
        durable = self._durable
        for row in rows:
            durable[row["_id"]] = row["by"]
            durable.move_to_end(row["_id"])
        while len(durable) > REMEMBERED:
            durable.popitem(last=False)

    def _is_durable(self, rows: Iterable[Document]) -> bool:
        return all(self._durable.get(row["_id"]) == row["by"] for row in rows)

    def get(self, account: str, key: str) -> Deferred[Task | None]:
        async def work(deadline: float) -> Task | None:
            which = {"_id": id_of(account, key)}
            rows = await self._find(deadline, which, {}, 1)
            return as_task(rows[0]) if rows else None

        return self._link.call(work)

    async def _find(
        self,
        deadline: float,
        which: Document,
        sort: Document,
        limit: int,
        *,
        skip: int = 0,
        fields: Document = FULL,
    ) -> list[Document]:
        """Return documents, once they are durable.  Large ones may be fewer."""
        body = {
            "find": "tasks",
            "filter": which,
            "sort": sort,
            "skip": skip,
            "limit": limit,
            "batchSize": limit,
            "singleBatch": True,
            "projection": fields,
        }
        return await self._barrier.read_flushed(
            deadline,
            lambda: self._link.rows(deadline, body),
            self._is_durable,
            self._mark_durable,
        )

    def of_account(
        self, account: str, limit: int, *, live_only: bool = False
    ) -> Deferred[list[Task]]:
        async def work(deadline: float) -> list[Task]:
            which: Document = {"account": account}
            if live_only:
                which["is_done"] = False
            sort = {"is_done": 1, "submitted_at": -1, "key": 1}
            found: dict[str, Task] = {}
            skip = 0
            while wanted := min(PAGE, limit - skip):
                rows = await self._find(deadline, which, sort, wanted, skip=skip, fields=SHORT)
                skip += len(rows)
                page = list(map(as_task, rows))
                # The order may change between two pages: then one may have a task again.
                found.update((task.key, task) for task in page if task.key not in found)
                size = sum(_size(task.progress, task.result, task.error) for task in page)
                if (len(page) < wanted and size < _PAGE_BYTES) or not page:
                    break
            return list(found.values())

        return self._link.call(work)

    def change(
        self,
        task: Task,
        changes: Mapping[str, Any],
        *,
        deadline_in: float | None = None,
        lease: float | None = None,
        overdue_only: bool = False,
    ) -> Deferred[Task | None]:
        async def work(deadline: float) -> Task | None:
            by, id = ObjectId(), id_of(task.account, task.key)
            which: Document = {"_id": id, "run": task.run, "state": task.state.value}
            if "progressed_at" in changes:
                which["progressed_at"] = task.progressed_at
            if overdue_only:
                which.update(is_before("deadline"))
            body = {
                "findAndModify": "tasks",
                "query": which,
                "update": change_pipeline(changes, by, deadline_in, lease),
                "new": True,
            }
            size = _size(*[value for value in changes.values() if isinstance(value, bytes)])
            row = await self._modified(deadline, body, size)
            if row is None and not {"state", "progressed_at"}.isdisjoint(changes):
                # Was it sent twice, and done the first time?
                rows = await self._find(deadline, {"_id": id, "by": by}, {}, 1)
                row = rows[0] if rows else None
            return as_task(row) if row is not None else None

        return self._link.call(work)

    def overdue(self, limit: int) -> Deferred[list[Task]]:
        return self._tasks(is_before("deadline"), "deadline", limit)

    def _tasks(self, which: Document, order: str, limit: int) -> Deferred[list[Task]]:
        async def work(deadline: float) -> list[Task]:
            return list(map(as_task, await self._find(deadline, which, {order: 1}, limit)))

        return self._link.call(work)

    def undispatched(self, limit: int, lease: float) -> Deferred[list[Task]]:
        body = {
            "findAndModify": "tasks",
            "query": is_at_or_before("leased_until"),
            "sort": {"leased_until": 1},
            "update": [{"$set": {"leased_until": after(lease)}}],
            "new": True,
        }

        async def work(deadline: float) -> list[Task]:
            found: list[Task] = []
            while len(found) < limit and (row := await self._modified(deadline, body)) is not None:
                found.append(as_task(row))
            return found

        return self._link.call(work)

    def unannounced(self, limit: int, older_than: float) -> Deferred[list[Task]]:
        which = {"is_announced": False, **is_at_or_before("updated_at", older_than)}
        return self._tasks(which, "updated_at", limit)

    def extend(self, seconds: float, longer_than: float) -> Deferred[float]:
        async def work(deadline: float) -> float:
            by = ObjectId()
            body = {
                "findAndModify": "task_presence",
                "query": _PRESENCE,
                "update": presence_pipeline(seconds, longer_than, by),
                "upsert": True,
                "new": True,
            }
            try:
                row = await self._modified(deadline, body)
            except OperationFailure as error:
                if error.code != DUPLICATE_KEY:
                    raise
                row = await self._modified(deadline, body)
            assert row is not None
            # Whoever found a gap may have died amid this.  No deadline moves twice by one gap.
            for move in row["moves"]:
                updates = [move_update(move)]
                await self._link.change(deadline, {"update": "tasks", "updates": updates})
                done = {"q": _PRESENCE, "u": {"$pull": {"moves": {"by": move["by"]}}}}
                await self._link.change(deadline, {"update": "task_presence", "updates": [done]})
            moved = [move["milliseconds"] for move in row["moves"] if move["by"] == by]
            return float(sum(moved) / 1000)

        return self._link.call(work)

    def forget(self, age: float, limit: int) -> Deferred[int]:
        which = {"is_announced": True, **is_before("ended_at", age)}

        async def work(deadline: float) -> int:
            find = {
                "find": "tasks",
                "filter": which,
                "sort": {"ended_at": 1},
                "limit": limit,
                "batchSize": limit,
                "singleBatch": True,
                "projection": {"_id": 1},
            }
            ids = [row["_id"] for row in await self._link.rows(deadline, find)]
            if not ids:
                return 0
            # Once more by age: the next run of one may have begun meanwhile.
            deletes = [{"q": {"_id": {"$in": ids}, **which}, "limit": 0}]
            answer = await self._link.change(deadline, {"delete": "tasks", "deletes": deletes})
            return int(answer["n"])

        return self._link.call(work)
