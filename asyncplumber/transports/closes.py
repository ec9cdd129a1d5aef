"""Why streams end: a count for each close code, and a line in the log for slow readers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from asyncplumber.figures import LabelledCounter
from asyncplumber.rate_limited_log import RateLimitedLog, peer_name

NORMAL, GOING_AWAY, ABNORMAL = 1000, 1001, 1006
INTERNAL_ERROR, TRY_AGAIN_LATER = 1011, 1013
# Our own (RFC 6455, 7.4.2): 4000 and the status of the HTTP response.
UNAUTHENTICATED, FORBIDDEN, TOO_MANY_REQUESTS = 4401, 4403, 4429
# The codes of RFC 6455, 7.4.1 that we send, and those above.
CODES = (
    *(NORMAL, GOING_AWAY, 1002, 1003, ABNORMAL, 1007, 1008, 1009, INTERNAL_ERROR, TRY_AGAIN_LATER),
    *(UNAUTHENTICATED, FORBIDDEN, TOO_MANY_REQUESTS),
)


class Closes:
    """Takes note of each stream that ends."""

    _log = Logger()

    def __init__(self, seconds: Callable[[], float]) -> None:
        """``seconds`` returns the time, which limits the rate of log lines."""
        self.counts = LabelledCounter(
            "streams_closed_total",
            "Streams that ended, by the close code of WebSocket; an event stream counts under the "
            "code that a WebSocket would have had.  1006 is a connection that was lost.",
            "code",
            [str(code) for code in CODES],
        )
        self._slow = RateLimitedLog(self._log, seconds)

    def note(self, code: int) -> None:
        """Count a stream that ends with this code."""
        self.counts.add(str(code))

    def slow_reader(self, account: str, limit: int, transport: Any) -> None:
        """
        Log that a client is closed because it does not read.

        Args:
            account: Whose events it was sent.
            limit: Bytes that may be queued for it.
            transport: Its connection.
        """
        self._slow.warn(
            "a slow reader of {account!r} is closed: more than {limit} bytes wait for it; "
            "it is {peer}",
            account=account,
            limit=limit,
            peer=peer_name(transport),
        )
