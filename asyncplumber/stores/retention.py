"""How much history every store keeps, and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from asyncplumber.event import Cursor, Instance, Position
from asyncplumber.interfaces import CursorLost, CursorMoved

DAY = 86400.0  # seconds
HISTORY_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Retention:
    """
    How much history an account has.

    An event is deleted when one of the limits is reached.  A store may keep a tenth more than
    `length` and `size` for a while.

    Attributes:
        length: Events for each account.
        age: Seconds.
        size: Bytes of the payloads for each account.  The newest event is kept, however large.
    """

    length: int = 1000
    age: float = DAY
    size: int = HISTORY_BYTES

    @property
    def most_events(self) -> int:
        """Events of an account at which a store must trim it."""
        return self.length + self.length // 10

    @property
    def most_bytes(self) -> int:
        """Bytes of an account at which a store must trim it."""
        return self.size + self.size // 10

    @property
    def numbering(self) -> float:
        """
        Seconds that an unused account keeps its numbering.

        This is far longer than its events are kept: a client that returns to an account where
        nothing happened must not be told of a gap.
        """
        return max(30 * DAY, 10 * self.age)

    @property
    def renewal(self) -> float:
        """Seconds for which accounts without events share one epoch."""
        return self.numbering / 30

    @property
    def recent(self) -> float:
        """
        Seconds for which a shared epoch is accepted as the place before the first event.

        The time runs from the beginning of that epoch.  It is shorter than `numbering`, so that a
        numbering which began meanwhile has not expired yet: the events after that place are still
        known, or known to be deleted.
        """
        return self.numbering * 0.9


def check_reach(position: Position, cursor: Cursor, recent: bool) -> None:
    """
    Raise `CursorLost` or `CursorMoved` unless the events after `cursor` can be read.

    Args:
        position: How far the account's history reaches.
        cursor: The place after which a reader wants to go on.
        recent: Whether the cursor's epoch is, or was lately, that of accounts without events.  A
            reader at number 0 of such an epoch has seen nothing, and all events of the account
            came later.
    """
    if cursor.epoch == position.epoch:
        if position.floor <= cursor.seq <= position.head:
            return
    elif recent and cursor.seq == position.floor == 0:
        raise CursorMoved(Cursor(position.epoch, 0))
    raise CursorLost(position)


def hook_url(instance: Instance, account: str) -> str:
    """Return the URL where a POST reaches the subscribers that `instance` has of `account`."""
    return f"{instance.url}/hooks/{quote(account, safe='')}"
