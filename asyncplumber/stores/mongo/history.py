"""
The history in MongoDB: reading and forgetting.  For how it is written see `mongo_append`.

An event is one document.  A number is only ever inserted by somebody who knows that the number
before it exists, and a unique index lets it be inserted once: so there are no holes, and nobody is
overtaken.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.errors import PlumberError
from asyncplumber.event import Cursor, Draft, Event, Position, Stored
from asyncplumber.interfaces import PAGE_BYTES, IHistory
from asyncplumber.stores.mongo.appender import Appender, as_event
from asyncplumber.stores.mongo.barrier import Barrier
from asyncplumber.stores.mongo.heads import Place, Places
from asyncplumber.stores.mongo.link import MongoLink
from asyncplumber.stores.mongo.proof import Proof
from asyncplumber.stores.retention import Retention, check_reach

FIRST_READ = (
    16  # events of which a reader learns how large they are, before it asks for a page full
)
SWEEP_EVENTS = 1000  # looked at in one step of a sweep


def indexes(retention: Retention) -> list[tuple[str, dict[str, Any]]]:
    """The (collection, index) pairs that the promises rest on."""
    return [
        ("events", {"name": "place", "key": {"account": 1, "epoch": 1, "seq": 1}, "unique": True}),
        ("events", {"name": "key", "key": {"account": 1, "key": 1}, "unique": True}),
        ("events", {"name": "stored_at", "key": {"stored_at": 1}}),
        (
            "epochs",
            {"name": "began", "key": {"began": 1}, "expireAfterSeconds": int(retention.recent)},
        ),
        (
            "accounts",
            {
                "name": "touched",
                "key": {"touched": 1},
                "expireAfterSeconds": int(retention.numbering),
            },
        ),
    ]


def _reaches(place: Place, cursor: Cursor) -> bool:
    """Whether what comes after `cursor` can be read, or has yet to come."""
    return cursor.epoch == place.epoch and place.floor <= cursor.seq <= place.head


def _cursors(places: Mapping[str, Place]) -> dict[str, Cursor]:
    """
    What has to be durable.  The place of accounts without events is one for all, by a name that no
    account has.
    """
    return {account if place.has_row else "": place.cursor for account, place in places.items()}


@implementer(IHistory)
class MongoHistory:
    """A history that all instances with the same database share."""

    def __init__(self, link: MongoLink, retention: Retention, clock: Any) -> None:
        self._link = link
        self._retention = retention
        self._clock = clock
        self._places = Places(link, retention)
        self._barrier = Barrier(link)
        self._proof = Proof(link, self._places)
        self._appender = Appender(link, self._places, self._barrier, retention, clock)

    def append(self, drafts: Sequence[Draft]) -> Deferred[list[Stored | PlumberError]]:
        """Store these drafts; see `IStore.append` and `Appended.results`."""
        return self._appender.append(drafts)

    def ensure(self, account: str) -> Deferred[Position]:
        async def work(deadline: float) -> Position:
            return (await self._used(deadline, account)).position

        return self._link.call(work)

    async def _used(self, deadline: float, account: str) -> Place:
        places = await self._barrier.behind(
            deadline, lambda: self._all(deadline, [account]), _cursors
        )
        return places[account]

    async def _all(self, deadline: float, accounts: Collection[str]) -> dict[str, Place]:
        """The places of all these accounts: those without events share one."""
        found = await self._places.marked(deadline, accounts)
        if len(found) < len(accounts):
            none = Place(
                await self._places.epochs.current(deadline, self._clock.seconds()),
                0,
                0,
                has_row=False,
            )
            found.update((account, none) for account in accounts if account not in found)
        return found

    def heads(self, accounts: Collection[str]) -> Deferred[dict[str, Cursor]]:
        async def work(deadline: float) -> dict[str, Cursor]:
            places = await self._barrier.behind(
                deadline, lambda: self._all(deadline, accounts), _cursors
            )
            return {account: place.cursor for account, place in places.items()}

        return self._link.call(work)

    def read(
        self, account: str, cursor: Cursor, upto: int | None, limit: int, size: int = PAGE_BYTES
    ) -> Deferred[list[Event]]:
        async def work(deadline: float) -> list[Event]:
            return await self._barrier.behind(
                deadline,
                lambda: self._read(deadline, account, cursor, upto, limit, min(size, PAGE_BYTES)),
                lambda page: {account: page[-1].cursor} if page else {},
            )

        return self._link.call(work)

    async def _read(
        self, deadline: float, account: str, cursor: Cursor, upto: int | None, limit: int, most: int
    ) -> list[Event]:
        page: list[Event] = []
        size = 0
        while len(page) < limit and size < most:
            # As many as seem to fit, going by those that are here.
            wanted = FIRST_READ if not page else max(1, (most - size) * len(page) // max(1, size))
            wanted = min(wanted, limit - len(page))
            rows = await self._after(
                deadline, account, Cursor(cursor.epoch, cursor.seq + len(page)), upto, wanted
            )
            for event in rows:
                if page and size + len(event.payload) > most:
                    return await self._checked(deadline, account, cursor, page)
                size += len(event.payload)
                page.append(event)
            if len(rows) < wanted:
                break
        return await self._checked(deadline, account, cursor, page)

    async def _after(
        self, deadline: float, account: str, cursor: Cursor, upto: int | None, limit: int
    ) -> list[Event]:
        """
        The events that follow `cursor` without a hole.  (While the oldest are being deleted there
        can be one.)
        """
        between = {"$gt": cursor.seq} if upto is None else {"$gt": cursor.seq, "$lte": upto}
        question = {
            "find": "events",
            "filter": {"account": account, "epoch": cursor.epoch, "seq": between},
            "sort": {"seq": 1},
            "limit": limit,
            "batchSize": limit,
            "singleBatch": True,
        }
        rows = await self._link.rows(deadline, question)
        return [as_event(row) for seq, row in enumerate(rows, cursor.seq + 1) if row["seq"] == seq]

    async def _checked(
        self, deadline: float, account: str, cursor: Cursor, page: list[Event]
    ) -> list[Event]:
        """
        The page, if the history still reaches back to `cursor`; asked after the events were read,
        and not before.
        """
        if page:
            question = {"find": "accounts", "filter": {"_id": account}, "limit": 1}
            rows = await self._link.rows(deadline, question)
            if rows and rows[0]["epoch"] == cursor.epoch and rows[0]["floor"] <= cursor.seq:
                return page
        place = await self._used(deadline, account)
        if _reaches(place, cursor):
            return page
        forgotten = cursor.epoch == place.epoch and cursor.seq < place.floor
        if self._link.replicated and not forgotten:
            # A floor never sinks, so even an old answer is right about it.  About the rest it may
            # be wrong.
            place = await self._proof.place(deadline, account) or place
            if _reaches(place, cursor):
                return page
        check_reach(
            place.position, cursor, await self._places.epochs.is_recent(deadline, cursor.epoch)
        )
        return page

    def begin_epoch(self) -> Deferred[str]:
        return Deferred.fromCoroutine(self._places.epochs.begin(self._clock.seconds()))

    def sweep(self) -> Deferred[int]:
        return Deferred.fromCoroutine(self._sweep())

    async def _sweep(self) -> int:
        forgotten = await self._link.call(self._appender.trim_all)
        horizon = datetime.fromtimestamp(self._clock.seconds() - self._retention.age, UTC)

        async def step(deadline: float) -> int:
            return await self._too_old(deadline, horizon)

        # Each step has a time limit of its own: a sweep may have much to do.
        while count := await self._link.call(step):
            forgotten += count
        return forgotten

    async def _too_old(self, deadline: float, horizon: datetime) -> int:
        pipeline = [
            {"$match": {"stored_at": {"$lt": horizon}}},
            {"$sort": {"stored_at": 1}},
            {"$limit": SWEEP_EVENTS},
            {
                "$group": {
                    "_id": {"account": "$account", "epoch": "$epoch"},
                    "seq": {"$max": "$seq"},
                }
            },
        ]
        question = {
            "aggregate": "events",
            "pipeline": pipeline,
            "cursor": {"batchSize": SWEEP_EVENTS},
        }
        rows = await self._link.rows(deadline, question)
        return await self._appender.forget(
            deadline, [(row["_id"]["account"], row["_id"]["epoch"], row["seq"]) for row in rows]
        )
