"""
The memory that large bodies take: bounded in all, and given back to the operating system.

A body counts from its first bytes until its request is answered, so what waits for a store that
hangs is counted as well.  Small bodies are not counted: whatever large ones are sent, small POSTs
come through.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress

LARGE = 64 * 1024  # bytes; a body that is not larger is not counted
BODIES = 64 * 1024 * 1024  # bytes of all large bodies; beyond that a POST is told to come back
MUCH = 8 * 1024 * 1024  # bytes; after more than that memory is given back
QUIET = 8  # ticks without a large body before that: by then the store has let go of what timed out


def give_back() -> None:
    """
    Return freed memory to the operating system: glibc keeps the pieces between small objects for
    itself.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library, which does it by itself
        ctypes.CDLL(None).malloc_trim(0)


class Bodies:
    """Counts the bytes of large bodies at one port."""

    def __init__(self, limit: int = BODIES, give_back: Callable[[], None] = give_back) -> None:
        """`limit` in bytes.  A single body is taken whatever its size: `--max-body` bounds that."""
        self._limit = limit
        self._give_back = give_back
        self._peak = 0
        self._quiet = 0
        self.held = 0

    def has_room(self, more: int, own: int) -> bool:
        """
        Count `more` bytes of a client that holds `own` with them.  @return: False if that is too
        much in all.
        """
        self.held += more
        self._peak = max(self._peak, self.held)
        return self.held <= self._limit or self.held == own

    def release(self, size: int) -> None:
        """So many bytes are not held any more."""
        self.held -= size

    def tick(self) -> None:
        """To be called once a second: gives memory back some seconds after much was held."""
        self._quiet = 0 if self.held else self._quiet + 1
        if self._quiet == QUIET:
            peak, self._peak = self._peak, 0
            if peak > MUCH:
                self._give_back()
