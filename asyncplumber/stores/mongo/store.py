"""
History and registry in MongoDB, for any number of instances on any number of machines.

Needs MongoDB 4.4 or later.  What is accepted is in the journal of a single server, or acknowledged
by a majority of a replica set.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.clocks import WallClock
from asyncplumber.interfaces import IStore
from asyncplumber.stores.mongo.history import MongoHistory, indexes
from asyncplumber.stores.mongo.link import MongoLink
from asyncplumber.stores.mongo.registry import INDEXES, MongoRegistry, kept_secret
from asyncplumber.stores.retention import Retention
from asyncplumber.stores.two_step import TwoStepAppend


@implementer(IStore)
class MongoStore(TwoStepAppend):
    """History and registry in one MongoDB database."""

    def __init__(self, uri: str, retention: Retention, reactor: Any, wall: Any = WallClock) -> None:
        """
        The database is the one that `uri` names, or ``asyncplumber``.  `wall.seconds()` is the time
        of day.

        Raises ValueError if `uri` cannot be used.
        """
        self._link = MongoLink(uri, reactor, [*indexes(retention), *INDEXES])
        super().__init__(
            MongoHistory(self._link, retention, wall),
            MongoRegistry(self._link, retention),
            shared=True,
        )

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
