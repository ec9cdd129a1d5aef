"""Results that are too large for a row: the history has them."""

from __future__ import annotations

from dataclasses import replace

from asyncplumber.core.tasks.errors import ResultGone
from asyncplumber.event import Cursor
from asyncplumber.interfaces import CursorLost, CursorMoved, IHistory
from asyncplumber.task import Task, TaskState
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
