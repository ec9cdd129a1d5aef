"""How long a client may take to send a request: the head in time, and the body fast enough."""

from __future__ import annotations

from typing import Protocol

from asyncplumber.http.request import Request

BODY_GRACE = 5.0  # seconds in which a body may be as slow as it is


class Timeouts(Protocol):
    """What a server grants its clients."""

    now: float  # the clock's seconds, at most a second old
    idle_timeout: float  # seconds without a request
    head_timeout: float  # seconds for the head of a request to arrive
    request_timeout: float  # seconds for a body to arrive, or for a response to be taken
    min_body_rate: float  # bytes per second of a body on average, after `BODY_GRACE`; 0 for any


def input_deadline(server: Timeouts, request: Request | None) -> float:
    """
    Return the clock's seconds by which the next input has to come.

    Args:
        server: What it grants.
        request: The request that is half read; None if the next one has not begun.  Its body
            counts from now on.
    """
    if request is None:
        return server.now + server.idle_timeout
    if not request.head_complete:
        return server.now + server.head_timeout
    request.awaited_since = server.now
    return body_deadline(server, request)


def body_deadline(server: Timeouts, request: Request) -> float:
    """Return the clock's seconds at which a body is too slow if nothing more of it comes."""
    if request.awaited_since is None:
        return server.now  # this is about a head, whose time is over
    rate, timeout = server.min_body_rate, server.request_timeout
    fair = max(BODY_GRACE, request.received / rate) if rate else timeout
    return request.awaited_since + min(fair, timeout)
