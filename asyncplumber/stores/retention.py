"""What every store keeps, and for how long."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

from asyncplumber.event import Cursor, Instance, Position
from asyncplumber.interfaces import CursorLost, CursorMoved

DAY = 86400.0
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def base36(number: int) -> str:
    """`number` in the digits 0-9a-z."""
    text = ""
    while True:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
        if not number:
            return text


def new_epoch(now: float) -> str:
    """
    A name for a numbering that begins at `now` (seconds since 1970): never given out before, and
    sorted by time.
    """
    return base36(int(now * 1000)) + base36(36**4 + secrets.randbelow(36**4))[1:]


@dataclass(frozen=True, slots=True)
class Retention:
    """
    How much history an account has, and how long a lease runs.

    `length` in events and `age` in seconds, whichever is reached first; a store may keep a tenth
    more for a while. `lease` in seconds: how long an instance counts after its last renewal.
    """

    length: int = 1000
    age: float = DAY
    lease: float = 15.0
    epochs: Callable[[float], str] = new_epoch

    @property
    def numbering(self) -> float:
        """
        Seconds that an unused account keeps its numbering.

        Far longer than its events: a client that comes back to an account where nothing happened
        must not be told of a gap.
        """
        return max(30 * DAY, 10 * self.age)

    def epoch_after(self, newest: str, now: float) -> str:
        """
        Return a new epoch that sorts behind `newest`, also where the clock was set back since;
        ``""`` is none.
        """
        try:
            began = int(newest[:-4], 36) / 1000 + 0.002
        except ValueError:
            began = 0.0
        return self.epochs(max(now, began))

    @property
    def renewal(self) -> float:
        """Seconds for which accounts without events share one epoch."""
        return self.numbering / 30

    @property
    def recent(self) -> float:
        """
        Seconds from its beginning for which such an epoch, or a former one, is known as a place
        before the first event.

        Less than `numbering`: a numbering that began meanwhile, and was missed, has not been
        forgotten yet.
        """
        return self.numbering * 0.9


def check_reach(position: Position, cursor: Cursor, recent: bool) -> None:
    """
    Raises `CursorLost`, or `CursorMoved`, if an account that stands at `position` has not what
    comes after `cursor`.

    `recent` says whether the cursor's epoch is, or was lately, that of accounts without events.
    Who was told its number 0 has seen nothing, and whatever the account has by now came afterwards.
    """
    if cursor.epoch == position.epoch:
        if position.floor <= cursor.seq <= position.head:
            return
    elif recent and cursor.seq == position.floor == 0:
        raise CursorMoved(Cursor(position.epoch, 0))
    raise CursorLost(position)


def hook_url(instance: Instance, account: str) -> str:
    """Where a POST reaches the subscribers that `instance` has of `account`."""
    return f"{instance.url}/hooks/{quote(account, safe='')}"
