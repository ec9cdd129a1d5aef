"""
History and registry in MongoDB, for any number of instances on any number of machines.

Needs MongoDB 4.4 or later.  What is accepted is in the journal of a single server, or acknowledged by a majority of a
replica set.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.clocks import WallClock
from asyncplumber.interfaces import IStore
from asyncplumber.stores.keeping import Keeping
from asyncplumber.stores.mongo_history import MongoHistory, indexes
from asyncplumber.stores.mongo_link import MongoLink
from asyncplumber.stores.mongo_registry import INDEXES, MongoRegistry, kept_secret
from asyncplumber.stores.steps import InSteps


@implementer(IStore)
class MongoStore(InSteps):
    """History and registry in one MongoDB database."""

    def __init__(self, uri: str, keeping: Keeping, reactor: Any, wall: Any = WallClock) -> None:
        """
        The database is the one that `uri` names, or ``asyncplumber``.  `wall.seconds()` is the time of day.

        Raises ValueError if `uri` cannot be used.
        """
        self._link = MongoLink(uri, reactor, [*indexes(keeping), *INDEXES])
        super().__init__(MongoHistory(self._link, keeping, wall), MongoRegistry(self._link, keeping), shared=True)

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
