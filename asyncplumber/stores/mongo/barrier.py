"""
What is read may not be handed out before it is durable.

A single server shows a write to readers up to 100 ms before its journal has it; killed in between,
it forgets what somebody was already told.  (A replica set is asked for what a majority has, and
needs none of this.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from time import monotonic
from typing import TypeVar

from twisted.internet.defer import Deferred

from asyncplumber.event import Cursor
from asyncplumber.stores.mongo.link import PATIENCE, MongoLink

T = TypeVar("T")
# A delete that finds nothing writes nothing, but its answer still waits for all that was written
# before it.
FLUSH = {"delete": "events", "deletes": [{"q": {"_id": "nothing has this id"}, "limit": 1}]}
REMEMBERED = 100_000  # accounts


class Barrier:
    """Knows what is durable, and makes durable what is not."""

    def __init__(self, link: MongoLink) -> None:
        self._link = link
        self._durable: OrderedDict[str, Cursor] = OrderedDict()
        self._waiting: list[Deferred[None]] = []
        self._flushing = False

    def learn(self, cursors: Iterable[tuple[str, Cursor]]) -> None:
        """These places are durable, so those before them are as well."""
        durable = self._durable
        for account, cursor in cursors:
            if not self._knows(account, cursor):
                durable[account] = cursor
            durable.move_to_end(account)
        while len(durable) > REMEMBERED:
            durable.popitem(last=False)

    def _knows(self, account: str, cursor: Cursor) -> bool:
        known = self._durable.get(account)
        return known is not None and known.epoch == cursor.epoch and known.seq >= cursor.seq

    async def behind(
        self,
        deadline: float,
        look: Callable[[], Awaitable[T]],
        cursors: Callable[[T], Mapping[str, Cursor]],
    ) -> T:
        """What `look` finds, as soon as the places in it that `cursors` names are durable."""
        while True:
            generation = self._link.reader.generation
            found = await look()
            places = cursors(found)
            if self._link.replicated or all(
                self._knows(account, cursor) for account, cursor in places.items()
            ):
                return found
            await self._passed(deadline)
            # A server that was killed in between forgot what was to be flushed; then look again.
            if self._link.reader.generation == generation:
                self.learn(places.items())
                return found

    async def _passed(self, deadline: float) -> None:
        """
        Wait for a flush that begins after now: one under way may have begun before what we read was
        written.
        """
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        waiting.addTimeout(max(0.0, deadline - monotonic()), self._link.reactor)
        if not self._flushing:
            self._flushing = True
            Deferred.fromCoroutine(self._flush())
        await waiting

    async def _flush(self) -> None:
        """Flush for all who wait, and again for those who came meanwhile."""
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            try:
                await self._link.change(monotonic() + PATIENCE, FLUSH)
            except Exception as error:
                for deferred in waiting:
                    deferred.errback(error)
            else:
                for deferred in waiting:
                    deferred.callback(None)
        self._flushing = False
