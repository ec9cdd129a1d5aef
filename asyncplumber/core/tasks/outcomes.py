"""What the ways in are told about tasks."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from asyncplumber.event import Event
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

    @property
    def data(self) -> Any:
        """The result: the value of JSON, str for text, bytes for all else; None without one."""
        if self.task.result is None:
            return None
        return Event("", "", 0, "", "", "", self.task.result_type, self.task.result).data

    @property
    def error(self) -> dict[str, Any] | None:
        """Why there is no result, with ``type`` and ``message``; None unless that is certain."""
        error: dict[str, Any] | None = None
        if self.task.error is not None:
            error = json.loads(self.task.error)
        return error


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
