"""What the stores' rows of tasks have in common: how a claim and a change make a new row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from asyncplumber.event import Cursor, Position
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


def can_follow(found: Task, run: str) -> bool:
    """Return whether a claim of this run may replace this row; see `ITasks.claim`."""
    return found.is_done and found.is_announced and run not in (found.run, *found.former)


def is_same(
    found: Task, known: Task, changes: Mapping[str, Any], overdue_at: float | None = None
) -> bool:
    """
    Return whether a row may be changed; see `ITasks.change`.

    Args:
        found: The row.
        known: What the caller knows of it.
        changes: What is to be changed.
        overdue_at: The time at which its deadline must have passed; None if that does not matter.
    """
    if overdue_at is not None and not (found.deadline is not None and found.deadline < overdue_at):
        return False
    if "progressed_at" in changes and found.progressed_at != known.progressed_at:
        return False
    return found.run == known.run and found.state is known.state


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


def moved_by(
    until: float | None, now: float, seconds: float, longer_than: float
) -> tuple[float, float]:
    """
    Return until when an instance is there, and by how much the deadlines move.

    If the clock was set back by more than ``longer_than``, they move back: they were set by it.

    Args:
        until: When the last instance was to be there again; None if none ever was.
        now: Seconds since 1970.
        seconds: See `ITasks.extend`.
        longer_than: See `ITasks.extend`.
    """
    if until is None:
        return now + seconds, 0.0
    if now - until > longer_than:
        return now + seconds, now - until
    if until - now - seconds > longer_than:
        return now + seconds, now + seconds - until
    return max(until, now + seconds), 0.0


def in_new_epoch(task: Task, before: Position | None, epoch: str) -> Task:
    """
    Return a row after its account was continued in a new epoch; see `IHistory.begin_epoch`.

    A backup may have a row and not its event.  Then the row has no cursor, and its event is
    announced again, unless only the event had the result.

    Args:
        task: The row.
        before: How far the account's history reached; None if it has none.
        epoch: The new one.
    """
    cursor = task.cursor
    if cursor is None:
        return task
    if before is not None and cursor.epoch == before.epoch and cursor.seq <= before.head:
        return replace(task, cursor=Cursor(epoch, cursor.seq))
    is_repeatable = not task.is_done or task.result is not None or task.error is not None
    return replace(task, cursor=None, is_announced=task.is_announced and not is_repeatable)
