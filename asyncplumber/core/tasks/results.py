"""Results that are too large: for a row, then the history has them; or for the store at all."""

from __future__ import annotations

import json
from dataclasses import replace

from asyncplumber.core.tasks.errors import ResultGone
from asyncplumber.errors import TooLarge
from asyncplumber.event import Cursor
from asyncplumber.interfaces import CursorLost, CursorMoved, IHistory
from asyncplumber.task import Report, Task, TaskState
from asyncplumber.wire.tasks import without_member


async def with_result(task: Task, history: IHistory) -> Task:
    """
    Return a completed row with its result, which is read from the history if the row has none.

    Raises:
        ResultGone: The history does not keep it any more.
        Unavailable: The store is away.
    """
    if task.result is not None or task.state is not TaskState.COMPLETED:
        return task
    if task.cursor is None:
        raise ResultGone(task)
    epoch, seq = task.cursor
    try:
        events = await history.read(task.account, Cursor(epoch, seq - 1), seq, 1)
    except (CursorLost, CursorMoved):
        raise ResultGone(task) from None
    if not events or events[0].id != task.end_id:
        raise ResultGone(task)
    return replace(task, result=without_member(events[0]))


def too_large(report: Report, error: TooLarge) -> Report:
    """Return the report of a failure, in place of a result that nothing takes: never silence."""
    size = len(report.draft.payload) - len(b'"data":')
    fields = {"type": "too-large", "message": error.message, "size": size}
    payload = b'"data":' + json.dumps(fields).encode()
    draft = report.draft._replace(content_type="application/json", payload=payload)
    return replace(report, draft=draft, state=TaskState.FAILED, is_beat=False)
