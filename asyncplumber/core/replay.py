"""
Read from the history what a reader has not seen, page by page.

There are two readers.  A channel reads what did not arrive at this instance, and a subscription
reads what its client missed.  Both go through `catch_up`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from twisted.internet.defer import Deferred

from asyncplumber.event import Cursor, Event, Position
from asyncplumber.interfaces import CursorLost, CursorMoved

PAGE_EVENTS = 256  # events in one page, at most


class Reader(Protocol):
    """Something that has a position in an account's history, and moves forward."""

    @property
    def cursor(self) -> Cursor:
        """The position of the last event that this reader has."""

    @property
    def is_behind(self) -> bool:
        """Whether there is more to read."""

    async def read(self, cursor: Cursor) -> Sequence[Event]:
        """Read the page after ``cursor``.  Raises as `IHistory.read` does."""

    def take(self, page: Sequence[Event]) -> Deferred[None]:
        """Take this page.  The Deferred fires when there is room for the next one."""

    def moved(self, cursor: Cursor, now: Cursor) -> None:
        """Nothing is lost, but the place ``cursor`` has the name ``now``."""

    async def lost(self, cursor: Cursor, position: Position) -> None:
        """The history, which reaches to ``position``, cannot say what came after ``cursor``."""


async def catch_up(reader: Reader) -> None:
    """Read pages until the reader is behind no more.  Raises `Unavailable`."""
    while reader.is_behind:
        cursor = reader.cursor
        try:
            page = await reader.read(cursor)
        except CursorMoved as error:
            reader.moved(cursor, error.cursor)
        except CursorLost as error:
            await reader.lost(cursor, error.position)
        else:
            room = reader.take(page)
            del page  # its memory is given back while a slow client reads
            await room
