"""Where the numbering of an account stands."""

from __future__ import annotations

from dataclasses import dataclass

from asyncplumber.event import Cursor, Position


@dataclass(slots=True)
class AccountState:
    """
    The state of an account's numbering, as a store remembers it.

    Attributes:
        epoch: The epoch of the numbers.
        head: The last number that was given out; 0 if there was none.
        floor: The last number whose event was deleted; 0 if there was none.
    """

    epoch: str
    head: int
    floor: int

    @property
    def cursor(self) -> Cursor:
        """The place of the newest event."""
        return Cursor(self.epoch, self.head)

    @property
    def position(self) -> Position:
        """How far the history reaches."""
        return Position(self.epoch, self.head, self.floor)
