"""
Deletes what is too much or too old, in two steps.

First the floor is raised, durably: afterwards nobody reads the events below it, and it remembers
the largest number if all events go.  The events are deleted later, see `DELETE_DELAY`: while they
are there, an insert that takes one of their numbers collides.  Events that reached the age are
deleted at once, because no cached head is as old.

How many bytes an account has is known without a look at all its events: each event has in ``total``
the payload bytes of its account up to it, and the numbers that follow each other are inserted by
processes that know the event before.  The bytes between two events are the difference of their
totals.  Where it begins means nothing: after all events of an account were deleted, the next one
begins at 0, and events from before there was a total do not count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from asyncplumber.concurrency import SingleFlight
from asyncplumber.errors import Unavailable
from asyncplumber.stores.mongo.account_writer import DELETE_DELAY, AccountWriters
from asyncplumber.stores.mongo.accounts import MongoAccount
from asyncplumber.stores.mongo.link import MongoLink
from asyncplumber.stores.retention import Retention

SWEEP_EVENTS = 1000  # looked at in one step of a sweep
CHUNK = 1000  # floors that one command raises


class Floor(NamedTuple):
    """The events of an account and epoch up to number `seq` are to be deleted."""

    account: str
    epoch: str
    seq: int


class Trimmer:
    """Deletes the events that this process finds to be too many or too old."""

    def __init__(self, link: MongoLink, retention: Retention, writers: AccountWriters) -> None:
        self._link = link
        self._retention = retention
        self._writers = writers
        self._most_events = retention.most_events
        self._most_bytes = retention.most_bytes
        self._too_much: dict[str, None] = {}  # accounts to be trimmed
        self._doomed: deque[tuple[float, Floor]] = deque()  # what to delete, and when
        self._trimming = SingleFlight(self._trim, "trimming histories in MongoDB")

    def appended(self, accounts: Iterable[str]) -> None:
        """Note which of these accounts have too much now."""
        for name in accounts:
            account = self._writers.cached(name)
            if account is not None and (
                account.head - account.floor > self._most_events
                or account.total - account.base > self._most_bytes
            ):
                self._too_much[name] = None

    def trim_soon(self) -> None:
        """Begin to delete what is due; nobody waits for it."""
        if self._too_much or self._is_due():
            self._trimming.request()

    async def _trim(self) -> None:
        try:
            while self._too_much:
                await self._shorten(list(self._too_much))
            await self._delete_due()
        except Unavailable:
            return  # the link has logged it, and the next append or sweep goes on

    async def sweep(self, now: float) -> int:
        """
        Delete what is too old, and what is too much of accounts that this process wrote to.

        Args:
            now: The time of day.

        Returns:
            The number of events that cannot be read any more.
        """
        await self._delete_due()
        count = await self._shorten(list(self._writers))
        horizon = datetime.fromtimestamp(now - self._retention.age, UTC)
        # Each step has a time limit of its own: a sweep may have much to do.
        while deleted := await self._link.call(self._too_old, horizon):
            count += deleted
        return count

    async def _shorten(self, accounts: Sequence[str]) -> int:
        """Raise the floors of accounts that have too much; the events are deleted later."""
        count = 0
        floors: list[Floor] = []
        for name in accounts:
            self._too_much.pop(name, None)
            account = self._writers.cached(name)
            if account is None:
                continue
            floor = max(account.floor, account.head - self._retention.length)
            if account.total - account.base > self._retention.size and account.head - floor > 1:
                floor = max(floor, await self._link.call(self._floor_by_size, name, account))
            if floor > account.floor:
                count += floor - account.floor
                floors.append(Floor(name, account.epoch, floor))
        for start in range(0, len(floors), CHUNK):
            chunk = floors[start : start + CHUNK]
            await self._link.call(self._raise_floors, chunk)
            due = self._link.clock.seconds() + DELETE_DELAY
            self._doomed.extend((due, floor) for floor in chunk)
        return count

    async def _floor_by_size(self, deadline: float, name: str, account: MongoAccount) -> int:
        """Return the number of the last event without which the others are within the size."""
        head, total = account.head, account.total
        most = self._retention.size
        body = {
            "aggregate": "events",
            "pipeline": [
                {
                    "$match": {
                        "account": name,
                        "epoch": account.epoch,
                        "seq": {"$gt": account.floor},
                        "total": {"$gte": total - most},
                    }
                },
                {"$sort": {"seq": 1}},
                {"$limit": 1},
                {"$project": {"seq": 1, "total": 1, "size": {"$binarySize": "$payload"}}},
            ],
            "cursor": {"batchSize": 1},
        }
        rows = await self._link.rows(deadline, body)
        if not rows:
            return account.floor  # it was written a moment ago, and a majority has yet to have it
        row = rows[0]
        before = row["total"] - row["size"]
        is_within = total - before <= most  # with this event, if it is the oldest that is kept
        account.base = before if is_within or row["seq"] >= head else row["total"]
        return account.floor if is_within else min(int(row["seq"]), head - 1)

    def _is_due(self) -> bool:
        return bool(self._doomed) and self._doomed[0][0] <= self._link.clock.seconds()

    async def _delete_due(self) -> None:
        while self._is_due():
            doomed = self._doomed[0]
            await self._link.call(self._delete, [doomed[1]])
            # A sweep and a trim may do this at the same moment.
            if self._doomed and self._doomed[0] is doomed:
                self._doomed.popleft()

    async def _too_old(self, deadline: float, horizon: datetime) -> int:
        """Take one step of deleting events that were stored before `horizon`."""
        newest = {"_id": {"account": "$account", "epoch": "$epoch"}, "seq": {"$max": "$seq"}}
        body = {
            "aggregate": "events",
            "pipeline": [
                {"$match": {"stored_at": {"$lt": horizon}}},
                {"$sort": {"stored_at": 1}},
                {"$limit": SWEEP_EVENTS},
                {"$group": newest},
            ],
            "cursor": {"batchSize": SWEEP_EVENTS},
        }
        rows = await self._link.rows(deadline, body)
        floors = [Floor(row["_id"]["account"], row["_id"]["epoch"], row["seq"]) for row in rows]
        if not floors:
            return 0
        await self._raise_floors(deadline, floors)
        return await self._delete(deadline, floors)

    async def _raise_floors(self, deadline: float, floors: Sequence[Floor]) -> None:
        updates = [
            {"q": {"_id": account, "epoch": epoch}, "u": {"$max": {"floor": seq}}}
            for account, epoch, seq in floors
        ]
        body = {"update": "accounts", "updates": updates, "ordered": False}
        await self._link.change(deadline, body)
        for floor in floors:
            self._writers.floor_raised(*floor)

    async def _delete(self, deadline: float, floors: Sequence[Floor]) -> int:
        deletes = [
            {"q": {"account": account, "epoch": epoch, "seq": {"$lte": seq}}, "limit": 0}
            for account, epoch, seq in floors
        ]
        body = {"delete": "events", "deletes": deletes, "ordered": False}
        return int((await self._link.change(deadline, body))["n"])
