"""
Events that were lost: counted, and told to the log in one line per interval.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

INTERVAL = 10.0  # seconds between two lines in the log

_log = logging.getLogger(__name__)


class Losses:
    """The events that one outbox lost.  May be shared by threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds, and is monotonic."""
        #: How many there were.
        self.count = 0
        self._clock = clock
        self._lock = threading.RLock()  # a signal handler may send as well
        self._untold = 0
        self._told_at = float("-inf")
        self._last = ""

    def report(self, id: Any, why: str) -> None:
        """An event was lost: tell the log now, or with those that follow within the interval."""
        self.add(id, why)
        self.tell()

    def add(self, id: Any, why: str) -> None:
        """An event was lost; the log hears of it with the next `tell`."""
        with self._lock:
            self.count += 1
            self._untold += 1
            self._last = f"{id if isinstance(id, str) else 'without id'} is lost: {why}"

    def tell(self, at_once: bool = False) -> None:
        """Tell the log of what it has not heard of: once per interval, or `at_once`."""
        with self._lock:
            now = self._clock()
            if not self._untold or not (at_once or now - self._told_at >= INTERVAL):
                return
            self._told_at = now
            others, self._untold = self._untold - 1, 0
            last = self._last
        _log.error("event %s%s", last, f"; and {others} before it" if others else "")
