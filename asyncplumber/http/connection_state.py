"""
The states of an HTTP connection, and every transition between them.

::

    READING ──request──▶ ANSWERING ──response written──▶ READING
                             └──── client does not take it ──▶ BLOCKED ──it does──▶ READING

    READING ──refusal written──▶ LINGERING ──client closes──▶ CLOSING
    any of the first three ──last response written, or time-out──▶ CLOSING
    ANSWERING ──the response is a stream──▶ DETACHED
    any but DETACHED ──the connection is lost──▶ LOST
"""

from __future__ import annotations

from enum import IntEnum


class State(IntEnum):
    """What an HTTP connection is doing.  From `LINGERING` on, no request is answered any more."""

    READING = 0  # No response is due.  What arrives is parsed.
    ANSWERING = 1  # A request is being answered.  What arrives is kept for later, up to a limit.
    BLOCKED = 2  # The client does not take its responses.  Nothing is read.
    LINGERING = 3  # A refusal is written and our side has ended.  What arrives is dropped.
    CLOSING = 4  # Everything is written, and the transport closes when it is sent.
    DETACHED = 5  # A stream has the transport.
    LOST = 6  # There is no connection.


READING, ANSWERING, BLOCKED, LINGERING, CLOSING, DETACHED, LOST = State

TRANSITIONS: dict[State, frozenset[State]] = {
    READING: frozenset({ANSWERING, BLOCKED, LINGERING, CLOSING, LOST}),
    ANSWERING: frozenset({READING, BLOCKED, CLOSING, DETACHED, LOST}),
    BLOCKED: frozenset({READING, CLOSING, LOST}),
    LINGERING: frozenset({CLOSING, LOST}),
    CLOSING: frozenset({LOST}),
    DETACHED: frozenset(),
    LOST: frozenset(),
}
