"""Whether the disk of a SQLite file is nearly full."""

from __future__ import annotations

import os
from collections.abc import Callable

from asyncplumber.clocks import TimeSource
from asyncplumber.errors import Unavailable

FULL = 0.95  # of the disk: beyond it an instance is not ready
INTERVAL = 5.0  # seconds between two looks


class Disk:
    """
    Looks how full the disk is.

    A balancer then sends nothing here, and the operator learns of it, while there still is room for
    what is accepted.  Root's reserve does not count as room.
    """

    def __init__(
        self,
        path: str,
        clock: TimeSource,
        statvfs: Callable[[str], os.statvfs_result] = os.statvfs,
    ) -> None:
        """
        Args:
            path: The file.
            clock: A clock that is never set.
            statvfs: Returns the state of a file system.
        """
        self._folder = os.path.dirname(path) or "."
        self._clock = clock
        self._statvfs = statvfs
        self._used = 0.0  # of the disk, at the last look
        self._next_look: float | None = None

    def check(self) -> None:
        """Raise `Unavailable` if the disk is nearly full."""
        now = self._clock.seconds()
        if self._next_look is None or now >= self._next_look:
            self._next_look = now + INTERVAL
            self._used = self._look()
        if self._used >= FULL:
            raise Unavailable(f"the disk of the store is {int(self._used * 100)} % full")

    def _look(self) -> float:
        try:
            state = self._statvfs(self._folder)
        except OSError:
            return 0.0  # whether the file can be used, others find out
        used = state.f_blocks - state.f_bfree
        whole = used + state.f_bavail
        return used / whole if whole else 0.0
