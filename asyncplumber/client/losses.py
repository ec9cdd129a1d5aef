"""Events that were lost: counted, and logged in one line per interval."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

LOG_INTERVAL = 10.0  # seconds between two lines in the log

_log = logging.getLogger(__name__)


class Losses:
    """The events that one outbox lost.  Threads may share it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock`` returns seconds, and is monotonic."""
        #: How many events were lost.
        self.count = 0
        self._clock = clock
        self._lock = threading.RLock()  # reentrant: a signal handler may send as well
        self._unlogged = 0
        self._logged_at = float("-inf")
        self._last = ""

    def report(self, id: object, reason: str) -> None:
        """Count a lost event, and log it: now, or with others once the interval is over."""
        self.add(id, reason)
        self.log()

    def add(self, id: object, reason: str) -> None:
        """Count a lost event; the next ``log`` writes it."""
        with self._lock:
            self.count += 1
            self._unlogged += 1
            self._last = f"{id if isinstance(id, str) else 'without id'} is lost: {reason}"

    def log(self, *, now: bool = False) -> None:
        """Log what is not logged yet: once per interval, or at once if ``now`` is true."""
        with self._lock:
            moment = self._clock()
            if not self._unlogged or not (now or moment - self._logged_at >= LOG_INTERVAL):
                return
            self._logged_at = moment
            others, self._unlogged = self._unlogged - 1, 0
            last = self._last
        _log.error("event %s%s", last, f"; and {others} before it" if others else "")
