"""
History and registry in MongoDB, for any number of instances on any number of machines.

Needs MongoDB 4.4 or later.  What is accepted is in the journal of a single server, or acknowledged
by a majority of a replica set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.clocks import TimeSource, WallClock
from asyncplumber.event import Draft
from asyncplumber.interfaces import LEASE, Appended, IStore
from asyncplumber.stores.mongo.history import MongoHistory, indexes
from asyncplumber.stores.mongo.link import MongoLink
from asyncplumber.stores.mongo.registry import INDEXES, MongoRegistry, kept_secret
from asyncplumber.stores.recipients import with_recipients
from asyncplumber.stores.retention import Retention


@implementer(IStore)
class MongoStore:
    """History and registry in one MongoDB database."""

    shared = True

    def __init__(
        self,
        uri: str,
        retention: Retention,
        reactor: Any,
        wall: TimeSource = WallClock,
        *,
        lease: float = LEASE,
    ) -> None:
        """
        The database is the one that `uri` names, or ``asyncplumber``.  `wall.seconds()` is the time
        of day.

        Raises ValueError if `uri` cannot be used.
        """
        self._link = MongoLink(uri, reactor, [*indexes(retention), *INDEXES])
        self.history = MongoHistory(self._link, retention, wall)
        self.registry = MongoRegistry(self._link, lease)

    def append(self, drafts: Sequence[Draft]) -> Deferred[Appended]:
        return with_recipients(self.history.append(drafts), self.registry)

    def secret(self) -> Deferred[bytes]:
        return self._link.call(lambda deadline: kept_secret(self._link, deadline))

    def start(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._link.open())

    def stop(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._link.close())

    def ping(self) -> Deferred[None]:
        async def work(deadline: float) -> None:
            await self._link.command(deadline, {"ping": 1})

        return self._link.call(work)
