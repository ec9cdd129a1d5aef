"""
Deletes what is too much or too old, in two steps.

First the floor is raised, durably: afterwards nobody reads the events below it, and it remembers
the largest number if all events go.  The events are deleted later, see `DELETE_DELAY`: while they
are there, an insert that takes one of their numbers collides.  Events that reached the age are
deleted at once, because no cached head is as old.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from asyncplumber.concurrency import SingleFlight
from asyncplumber.errors import Unavailable
from asyncplumber.stores.mongo.account_writer import DELETE_DELAY, AccountWriters
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
        self._slack = retention.length + retention.length // 10
        self._too_long: dict[str, None] = {}
        self._doomed: deque[tuple[float, Floor]] = deque()  # what to delete, and when
        self._trimming = SingleFlight(self._trim, "trimming histories in MongoDB")

    def appended(self, accounts: Iterable[str]) -> None:
        """Note which of these accounts became too long."""
        for name in accounts:
            account = self._writers.cached(name)
            if account is not None and account.head - account.floor > self._slack:
                self._too_long[name] = None

    def trim_soon(self) -> None:
        """Begin to delete what is due; nobody waits for it."""
        if self._too_long or self._is_due():
            self._trimming.request()

    async def _trim(self) -> None:
        try:
            while self._too_long:
                await self._shorten(list(self._too_long))
            await self._delete_due()
        except Unavailable:
            return  # the link has logged it, and the next append or sweep goes on

    async def sweep(self, now: float) -> int:
        """
        Delete what is beyond the length, of accounts that this process wrote to, or the age.

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
        """Raise the floors of accounts that are too long; the events are deleted later."""
        count = 0
        floors: list[Floor] = []
        for name in accounts:
            self._too_long.pop(name, None)
            account = self._writers.cached(name)
            if account is not None and account.head - account.floor > self._retention.length:
                floor = account.head - self._retention.length
                count += floor - account.floor
                floors.append(Floor(name, account.epoch, floor))
        for start in range(0, len(floors), CHUNK):
            chunk = floors[start : start + CHUNK]
            await self._link.call(self._raise_floors, chunk)
            due = self._link.clock.seconds() + DELETE_DELAY
            self._doomed.extend((due, floor) for floor in chunk)
        return count

    def _is_due(self) -> bool:
        return bool(self._doomed) and self._doomed[0][0] <= self._link.clock.seconds()

    async def _delete_due(self) -> None:
        while self._is_due():
            floors = [self._doomed[0][1]]
            await self._link.call(self._delete, floors)
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
