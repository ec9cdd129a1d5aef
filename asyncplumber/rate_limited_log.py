"""A log that clients cannot fill: one line in an interval for what clients do wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

INTERVAL = 10.0  # seconds between two lines


class RateLimitedLog:
    """
    Writes a warning at most once in an interval, and counts the ones that it leaves out.

    Use one object for each kind of message, so that one kind does not hide another.
    """

    def __init__(
        self, log: Logger, seconds: Callable[[], float], interval: float = INTERVAL
    ) -> None:
        """
        Args:
            log: Where to write.
            seconds: Returns the time in seconds, by a clock that is never set.
            interval: Seconds between two lines; 0 writes every line.
        """
        self._log = log
        self._seconds = seconds
        self._interval = interval
        self._next: float | None = None  # the time of the next line; None: none was written
        self._left_out = 0

    def warn(self, format: str, **values: Any) -> None:
        """Write this line, or count it.  The next line that is written tells the count."""
        now = self._seconds()
        if self._next is not None and now < self._next:
            self._left_out += 1
            return
        more = " (and {left_out} more like this since the last such line)" if self._left_out else ""
        self._log.warn(format + more, left_out=self._left_out, **values)
        self._next = now + self._interval
        self._left_out = 0


def peer_name(transport: Any) -> str:
    """Return the address and port of the other end of a connection, which may be a proxy."""
    peer = transport.getPeer()
    host = getattr(peer, "host", None)
    if host is None:
        return "a client of a UNIX socket"
    return f"[{host}]:{peer.port}" if ":" in host else f"{host}:{peer.port}"
