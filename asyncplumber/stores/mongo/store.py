"""
All that a store keeps, in MongoDB, for any number of instances on any number of machines.

This needs MongoDB 4.4 or later.  Accepted events are in the journal of a single server, or
acknowledged by a majority of a replica set.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from pymongo.errors import OperationFailure
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from asyncplumber.clocks import SteadyClock, TimeSource, WallClock
from asyncplumber.event import Draft
from asyncplumber.interfaces import LEASE, Appended, IStore
from asyncplumber.stores.mongo.callback_urls import INDEXES as CALLBACK_URL_INDEXES
from asyncplumber.stores.mongo.callback_urls import MongoCallbackUrls
from asyncplumber.stores.mongo.history import MongoHistory, indexes
from asyncplumber.stores.mongo.link import DUPLICATE_KEY, MongoLink
from asyncplumber.stores.mongo.pool import Pool
from asyncplumber.stores.mongo.registry import INDEXES, MongoRegistry, kept_secret
from asyncplumber.stores.mongo.revocations import INDEXES as REVOCATION_INDEXES
from asyncplumber.stores.mongo.revocations import MongoRevocations
from asyncplumber.stores.mongo.task_documents import INDEXES as TASK_INDEXES
from asyncplumber.stores.mongo.tasks import MongoTasks
from asyncplumber.stores.mongo.uri import Address
from asyncplumber.stores.recipients import with_recipients
from asyncplumber.stores.retention import Retention

# Seconds for which a successful ping answers for others: they must not keep the server busy.
PING_LIFETIME = 1.0
_PING = {
    "update": "pings",
    "updates": [{"q": {"_id": "last"}, "u": {"$currentDate": {"at": True}}, "upsert": True}],
}


@implementer(IStore)
class MongoStore:
    """All that a store keeps, in one MongoDB database."""

    shared = True

    def __init__(
        self,
        uri: str,
        retention: Retention,
        reactor: IReactorTime,
        wall: TimeSource = WallClock,
        *,
        lease: float = LEASE,
        steady: TimeSource = SteadyClock,
        uniform: Callable[[float, float], float] = random.uniform,
        connect: Callable[[Address, int], Any] = Pool,
    ) -> None:
        """
        Args:
            uri: A MongoDB URI; without a database it means ``asyncplumber``.
            retention: How much history is kept.
            reactor: For timers.
            wall: The time of day.
            lease: Seconds that an instance counts after its last renewal.
            steady: A clock that is never set; all time limits go by it.
            uniform: Returns a random number between two.
            connect: Makes a pool of so many connections.

        Raises:
            ValueError: `uri` cannot be used.  The message is a sentence for the user.
        """
        wanted = [
            *indexes(retention),
            *INDEXES,
            *REVOCATION_INDEXES,
            *TASK_INDEXES,
            *CALLBACK_URL_INDEXES,
        ]
        self._link = MongoLink(uri, reactor, wanted, steady, connect)
        self.figures = self._link.outage.figures
        self.history = MongoHistory(self._link, retention, wall, uniform)
        self.registry = MongoRegistry(self._link, lease)
        self.revocations = MongoRevocations(self._link, wall)
        self.tasks = MongoTasks(self._link)
        self.callback_urls = MongoCallbackUrls(self._link, wall)
        self._steady = steady
        self._pinged: float | None = None  # when a ping last succeeded

    def append(self, drafts: Sequence[Draft]) -> Deferred[Appended]:
        return with_recipients(self.history.append(drafts), self.registry)

    def secret(self) -> Deferred[bytes]:
        return self._link.call(lambda deadline: kept_secret(self._link, deadline))

    def start(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._link.open())

    def stop(self) -> Deferred[None]:
        self._pinged = None
        return Deferred.fromCoroutine(self._link.close())

    def ping(self) -> Deferred[None]:
        """Write one small row, because a full disk or a lost majority still lets us read."""
        asked = self._steady.seconds()
        if self._pinged is not None and asked - self._pinged < PING_LIFETIME:
            return succeed(None)
        return self._link.call(self._write_ping)

    async def _write_ping(self, deadline: float) -> None:
        try:
            await self._link.change(deadline, _PING)
        except OperationFailure as error:
            if error.code != DUPLICATE_KEY:  # else another instance made the row just now
                raise
        self._pinged = self._steady.seconds()
