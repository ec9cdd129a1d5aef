"""What the stores' rows of tasks have in common: how a claim and a change make a new row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from asyncplumber.interfaces import Claim
from asyncplumber.task import FORMER_RUNS, NEVER, Task, TaskState


def claimed(claim: Claim, former: Task | None, now: float) -> Task:
    """Return the row of a run that a claim begins; ``former`` is the row that it replaces."""
    runs = (former.run, *former.former)[:FORMER_RUNS] if former is not None else ()
    return Task(
        claim.account,
        claim.key,
        claim.run,
        TaskState.SUBMITTED,
        now,
        now,
        deadline=now + claim.deadline_in if claim.deadline_in != NEVER else None,
        patience=claim.patience,
        digest=claim.digest,
        input=claim.input,
        input_type=claim.input_type,
        former=runs,
    )


def with_changes(
    task: Task, changes: Mapping[str, Any], now: float, deadline_in: float | None
) -> Task:
    """Return a row with changes; see `ITasks.change`."""
    more: dict[str, Any] = {"updated_at": now}
    if deadline_in is not None:
        more["deadline"] = now + deadline_in if deadline_in != NEVER else None
    state = changes.get("state")
    if state is TaskState.RUNNING and task.started_at is None:
        more["started_at"] = now
    if state is not None and state.is_done:
        more.update(ended_at=now, deadline=None, input=None)
    return replace(task, **{**more, **changes})
