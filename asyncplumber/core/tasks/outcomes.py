"""What the ways in are told about tasks."""

from __future__ import annotations

from typing import NamedTuple

from asyncplumber.sending import Receipt
from asyncplumber.task import Task


class Outcome(NamedTuple):
    """
    Where a task is when the wait is over.

    Attributes:
        task: The row.
        joined: Whether a live run was there already, or a result was reused.
        age: Seconds since the end, if a result was reused; None if not.
    """

    task: Task
    joined: bool = False
    age: float | None = None


class Reported(NamedTuple):
    """
    What became of a report.

    Attributes:
        task: The row after it.
        receipt: That of its event; None if there was none: it was a beat, or is conflated.
        is_conflated: Whether it waits, and a later progress may take its place.
    """

    task: Task
    receipt: Receipt | None = None
    is_conflated: bool = False
