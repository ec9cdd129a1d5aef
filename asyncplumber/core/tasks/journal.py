"""
Writes what happens to a task: first the row, then the event, then a note in the row.

The row's compare-and-set elects what happens, on any instance.  The event has a key of its own in
the history, so that it can be appended again after a crash and stays one event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.concurrency import Waiters
from asyncplumber.core.intake import Intake
from asyncplumber.core.tasks.callback_urls import CallbackMint
from asyncplumber.errors import to_client_error
from asyncplumber.event import Cursor, Draft, new_id, timestamp
from asyncplumber.interfaces import Claim, Claimed, ITasks
from asyncplumber.sending import Receipt
from asyncplumber.task import MAX_ROW_RESULT_BYTES, Task, TaskState, state_key
from asyncplumber.wire.tasks import with_member

JSON = "application/json"
NO_DATA = b'"data":null'


class Journal:
    """The rows and the events of tasks."""

    _log = Logger()

    def __init__(
        self,
        tasks: ITasks,
        intake: Intake,
        now: Callable[[], float],
        on_end: Callable[[TaskState], object] = lambda state: None,
        callbacks: CallbackMint | None = None,
    ) -> None:
        """
        Args:
            tasks: The rows.
            intake: Takes the events.
            now: Returns the time in seconds since 1970.
            on_end: Called with each state in which a run was ended by this instance.
            callbacks: Made the URLs to which runs are reported; None: there are none.
        """
        self.tasks = tasks
        self._intake = intake
        self._now = now
        self._on_end = on_end
        self._callbacks = callbacks
        self._notes = 0  # under way
        self._all_noted = Waiters()

    async def claim(self, claim: Claim) -> Claimed:
        """
        Claim a run; see `ITasks.claim`.

        An end that another instance left without its event is announced first.
        """
        while True:
            claimed = await self.tasks.claim(claim)
            task = claimed.task
            if claimed.began or not task.is_done or task.is_announced:
                return claimed
            announced, _ = await self.announce(claimed.task)
            await self.note(announced)

    async def append(self, task: Task, type: str, draft: Draft) -> Receipt:
        """Append an event of a task that tells of no state: a progress."""
        whole = draft._replace(type=type, payload=with_member(draft.payload, task))
        return (await self._intake.accept([whole]))[0]

    async def announce(self, task: Task, draft: Draft | None = None) -> tuple[Task, Receipt]:
        """
        Append the event that tells of a row's state, unless it is in the history already.

        Args:
            task: The row, which is in this state.
            draft: What the runner said; None makes it from the row.

        Returns:
            The row with its cursor, and the receipt of the event.
        """
        draft = draft or self._draft_of(task)
        whole = draft._replace(
            type=task.state.event_type,
            key=state_key(task),
            payload=with_member(draft.payload, task),
        )
        receipt = (await self._intake.accept([whole]))[0]
        return task.with_cursor(Cursor.parse(receipt.cursor)), receipt

    def _draft_of(self, task: Task) -> Draft:
        payload, content_type = NO_DATA, JSON
        if task.result is not None:
            payload, content_type = task.result, task.result_type
        elif task.error is not None:
            payload = b'"data":' + task.error
        elif task.state is TaskState.RUNNING and task.progress is not None:
            payload = task.progress
        id, time = task.end_id or new_id(), timestamp(self._now())
        return Draft(task.account, id, id, "", time, content_type, payload)

    def note_soon(self, task: Task) -> None:
        """Note in the row that it is announced, without waiting; a sweep makes up for a failure."""
        self._notes += 1
        noted = Deferred.fromCoroutine(self.note(task))
        noted.addErrback(self._not_noted).addBoth(self._one_noted)

    async def note(self, task: Task) -> Task | None:
        """Note in the row that it is announced, and where; see `ITasks.change` for None."""
        if self._callbacks is not None and task.is_done:
            await self._callbacks.ended(task)  # before the note: a crash between leaves no URL
        more: dict[str, Any] = {"cursor": task.cursor, "is_announced": True}
        if task.result is not None and len(task.result) > MAX_ROW_RESULT_BYTES:
            more["result"] = None  # the history has it
        return await self.tasks.change(task, more)

    def _not_noted(self, failure: Failure) -> None:
        error = to_client_error(failure, self._log, "a task could not be noted")
        self._log.debug("a task could not be noted: {error}", error=error.message)

    def _one_noted(self, _: None) -> None:
        self._notes -= 1
        if not self._notes:
            self._all_noted.release()

    async def stop(self) -> None:
        """Wait until all is noted."""
        if self._notes:
            await self._all_noted.wait()

    async def finish(
        self,
        task: Task,
        state: TaskState,
        changes: Mapping[str, Any],
        *,
        overdue_only: bool = False,
    ) -> Task | None:
        """
        End a run in its row; the end is not announced yet.

        Returns:
            The row; None if another was faster.
        """
        task.check(state)
        is_late = task.state is TaskState.LOST
        whole: dict[str, Any] = {
            "result": None,
            "error": None,
            **changes,
            "state": state,
            "is_announced": False,
            "is_late": is_late,
        }
        changed = await self.tasks.change(task, whole, overdue_only=overdue_only)
        if changed is not None:
            self._on_end(state)
        return changed
