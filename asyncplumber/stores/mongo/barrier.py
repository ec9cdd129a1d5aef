"""
What is read may not be handed out before it is durable.

A single server shows a write to readers up to 100 ms before its journal has it.  If it is killed in
between, it forgets what somebody was already told.  A replica set is asked for what a majority has,
and needs none of this.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

from asyncplumber.concurrency import SingleFlight
from asyncplumber.event import Cursor
from asyncplumber.stores.mongo.link import MongoLink

T = TypeVar("T")
# A delete that finds nothing writes nothing, but its answer waits for the journal of all writes
# before it.
FLUSH = {"delete": "events", "deletes": [{"q": {"_id": "nothing has this id"}, "limit": 1}]}
REMEMBERED = 100_000  # accounts


class Barrier:
    """Knows what is durable, and waits for the journal where it does not know."""

    def __init__(self, link: MongoLink) -> None:
        self._link = link
        self._durable: OrderedDict[str, Cursor] = OrderedDict()
        self._flushing = SingleFlight(self._flush, "a wait for MongoDB's journal")

    def mark_durable(self, cursors: Iterable[tuple[str, Cursor]]) -> None:
        """Note that the events at these cursors, and so all before them, are durable."""
        durable = self._durable
        for account, cursor in cursors:
            if not self._is_durable(account, cursor):
                durable[account] = cursor
            durable.move_to_end(account)
        while len(durable) > REMEMBERED:
            durable.popitem(last=False)

    def _is_durable(self, account: str, cursor: Cursor) -> bool:
        known = self._durable.get(account)
        return known is not None and known.epoch == cursor.epoch and known.seq >= cursor.seq

    async def read_durable(
        self,
        deadline: float,
        read: Callable[[], Awaitable[T]],
        cursors: Callable[[T], Mapping[str, Cursor]],
    ) -> T:
        """
        Return what `read` finds, once it is durable.

        Args:
            deadline: When the time is up.
            read: Reads something.  It is called again if the server may have forgotten something.
            cursors: Returns the cursors that must be durable, by account, of what was read.
        """

        def is_durable(found: T) -> bool:
            return all(self._is_durable(*each) for each in cursors(found).items())

        def mark_durable(found: T) -> None:
            self.mark_durable(cursors(found).items())

        return await self.read_flushed(deadline, read, is_durable, mark_durable)

    async def read_flushed(
        self,
        deadline: float,
        read: Callable[[], Awaitable[T]],
        is_durable: Callable[[T], bool],
        flushed: Callable[[T], None] = lambda _: None,
    ) -> T:
        """
        Return what `read` finds, once it is durable.

        Args:
            deadline: When the time is up.
            read: Reads something.  It is called again if the server may have forgotten something.
            is_durable: Returns whether what was read is known to be durable.
            flushed: Called with what was read if it is durable only now.
        """
        while True:
            generation = self._link.reader_generation
            found = await read()
            if self._link.replicated or is_durable(found):
                return found
            # A flush that is under way may have begun before what we read was written.
            await self._link.limited(self._flushing.run(), deadline)
            # If the server was killed in between, it forgot what was to be flushed.
            if self._link.reader_generation == generation:
                flushed(found)
                return found

    async def _flush(self) -> None:
        await self._link.call(self._link.change, FLUSH, is_part=True)
