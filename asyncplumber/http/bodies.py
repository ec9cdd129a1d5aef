"""
The memory that large bodies take: bounded in all, and given back to the operating system.

A body counts from its first bytes until its request is answered, so a body that waits for a store
that hangs counts as well.  Small bodies do not count: they are accepted whatever large ones there
are.  But a body that comes before it is known who sends it counts whatever its size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress

LARGE = 64 * 1024  # bytes; only larger bodies are counted, if their sender is known
MAX_LARGE_BYTES = 64 * 1024 * 1024  # of all large bodies; beyond it a POST is answered 429
WORTH_RETURNING = 8 * 1024 * 1024  # bytes; a lower peak stays with the C library
QUIET = 8  # ticks without a large body before memory is returned; the store lets go of bodies late


def return_memory() -> None:
    """
    Return freed memory to the operating system.

    glibc keeps free pieces between small objects for itself.  Other C libraries need no request.
    """
    with suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


class Bodies:
    """Counts the bytes of the large bodies at one port."""

    def __init__(
        self, limit: int = MAX_LARGE_BYTES, return_memory: Callable[[], None] = return_memory
    ) -> None:
        """``limit`` is in bytes.  A single body may exceed it: ``--max-body`` bounds that."""
        self._limit = limit
        self._return_memory = return_memory
        self._peak = 0
        self._quiet = 0
        self.held = 0

    def has_room(self, more: int, own: int) -> bool:
        """Count ``more`` bytes for a client that then has ``own``; tell if that is allowed."""
        self.held += more
        self._peak = max(self._peak, self.held)
        return self.held <= self._limit or self.held == own

    def release(self, size: int) -> None:
        """Count ``size`` bytes less."""
        self.held -= size

    def tick(self) -> None:
        """Return memory some seconds after there was much.  To be called once a second."""
        self._quiet = 0 if self.held else self._quiet + 1
        if self._quiet == QUIET:
            peak, self._peak = self._peak, 0
            if peak > WORTH_RETURNING:
                self._return_memory()
