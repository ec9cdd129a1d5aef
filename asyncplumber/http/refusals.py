"""The last requests that were refused, for the admin page."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from asyncplumber.errors import PlumberError, reason_of
from asyncplumber.event import timestamp
from asyncplumber.log_text import path_of

KEPT = 100  # refusals
LONGEST_PATH = 200  # characters


class Refusal(NamedTuple):
    """
    One request that was refused.  It has no secret: no query, header or body.

    Attributes:
        time: RFC 3339 in UTC.
        status: The HTTP status of the response.
        reason: Why, in words that the client may not have been told.
        method: The method of the request.
        path: Its path, as it was sent, and shortened if it was long.
        address: The address of the client; empty for a UNIX socket.
    """

    time: str
    status: int
    reason: str
    method: str
    path: str
    address: str


class Refusals:
    """Remembers the last `KEPT` of them."""

    def __init__(self, now: Callable[[], float]) -> None:
        """``now`` returns the seconds since 1970."""
        self._now = now
        self._kept: deque[Refusal] = deque(maxlen=KEPT)

    def note(self, error: PlumberError, method: bytes, target: bytes, address: str) -> None:
        """Remember that a request was refused with this error."""
        self._kept.append(
            Refusal(
                timestamp(self._now()),
                error.status,
                reason_of(error),
                path_of(method, 20),
                path_of(target, LONGEST_PATH),
                address,
            )
        )

    def recent(self) -> list[Refusal]:
        """Return those that are kept, the newest first."""
        return list(reversed(self._kept))
