"""Names of epochs."""

from __future__ import annotations

import secrets
from collections.abc import Callable

_RANDOM_DIGITS = 5  # of 16 values each: a million names for each millisecond


def new_epoch(now: float) -> str:
    """
    Return a name for a numbering that begins at `now`, in seconds since 1970.

    It was never given out before.  Names sort by time.
    """
    random = secrets.randbelow(16**_RANDOM_DIGITS)
    return f"{int(now * 1000):x}{random:0{_RANDOM_DIGITS}x}"


def epoch_after(newest: str, now: float, new_epoch: Callable[[float], str] = new_epoch) -> str:
    """
    Return a new epoch that sorts after `newest`, even if the clock was set back since.

    Args:
        newest: The newest epoch in use; ``""`` if there is none.
        now: Seconds since 1970.
        new_epoch: Makes the name.
    """
    try:
        began = int(newest[:-_RANDOM_DIGITS], 16) / 1000 + 0.002
    except ValueError:
        began = 0.0
    return new_epoch(max(now, began))
