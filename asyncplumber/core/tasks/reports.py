"""
What runners report: beats, progress and ends.

``docs/explanation/tasks.rst`` has the rules as a table.  Reports of one task are taken one after
the other at an instance; between instances the compare-and-set of the row decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asyncplumber.core.tasks.errors import Superseded, TaskEnded
from asyncplumber.core.tasks.journal import JSON, NO_DATA, Journal
from asyncplumber.core.tasks.outcomes import Reported
from asyncplumber.core.tasks.progress import ConflatedProgress, Waiting
from asyncplumber.core.tasks.renewals import Renewals
from asyncplumber.core.tasks.settings import TaskSettings
from asyncplumber.core.tasks.turns import Place, Turns
from asyncplumber.errors import TooLarge, Unavailable
from asyncplumber.event import Draft
from asyncplumber.interfaces import Claim
from asyncplumber.sending import Receipt
from asyncplumber.task import (
    MAX_PROGRESS_BYTES,
    PROGRESS_TYPE,
    Report,
    Task,
    TaskState,
    new_run,
)
from asyncplumber.wire.tasks import error_of

TRIES = 10  # how often a report is taken up again because another one was faster
RETRY = 1.0  # seconds until a progress is stored again that the store did not take
_NOBODY = {"ok": 0, "failed": 0}


class Reports:
    """Takes reports."""

    def __init__(
        self,
        journal: Journal,
        turns: Turns,
        progress: ConflatedProgress,
        renewals: Renewals,
        settings: TaskSettings,
        now: Callable[[], float],
    ) -> None:
        """
        Args:
            journal: Writes what happens.
            turns: Keeps the reports of one task in order.
            progress: Holds back what comes too fast.
            renewals: Knows which beats have to be written.
            settings: How long tasks are waited for.
            now: Returns the time in seconds since 1970.
        """
        self._journal = journal
        self._turns = turns
        self._progress = progress
        self._renewals = renewals
        self._settings = settings
        self._now = now
        progress.store = self._store_waiting

    async def take(self, report: Report) -> Reported:
        """
        Take a report.

        Raises:
            Superseded: It is of another run than the newest one.
            TaskEnded: The run has ended.
            TooLarge: It is a progress with too many bytes.
        """
        if not report.state.is_done and _size(report.draft.payload) > MAX_PROGRESS_BYTES:
            raise TooLarge(f"a progress has at most {MAX_PROGRESS_BYTES} bytes")
        place = report.draft.account, report.key
        return await self._turns.run(place, lambda: self._take(report))

    async def _take(self, report: Report) -> Reported:
        for _ in range(TRIES):
            row = await self._journal.tasks.get(report.draft.account, report.key)
            row = await self._addressed(report, row)
            reported = None if row is None else await self._apply(report, row)
            if reported is not None:
                return reported
        raise Unavailable("this task is reported by too many at once")

    async def _addressed(self, report: Report, row: Task | None) -> Task | None:
        """Return the row of the run that a report is of; None to look again."""
        if row is None:
            return await self._begin(report)
        if report.run is not None:
            if report.run == row.run:
                return row
            if report.run in row.former or not row.is_done:
                raise Superseded(row)
            return await self._begin(report)
        if not row.is_done:
            return row
        if report.begins:
            return await self._begin(report)
        if not report.state.is_done:
            raise TaskEnded(row)
        if row.state is TaskState.LOST or report.draft.id == row.end_id:
            return row
        # Without the id of a run this is a new one, whose end is all that is ever reported.
        return await self._begin(report)

    async def _begin(self, report: Report) -> Task | None:
        patience = self._settings.patience if report.patience is None else report.patience
        submitted = report.state is TaskState.SUBMITTED
        claim = Claim(
            report.draft.account,
            report.key,
            report.run or new_run(self._now()),
            deadline_in=self._start_deadline(report) if submitted else patience,
            patience=self._settings.patience if submitted else patience,
        )
        claimed = await self._journal.claim(claim)
        return claimed.task if claimed.began else None

    def _start_deadline(self, report: Report) -> float:
        return self._settings.start_deadline if report.patience is None else report.patience

    async def _apply(self, report: Report, row: Task) -> Reported | None:
        """Apply a report to the row of its run; None if another was faster."""
        if row.is_done:
            return await self._end_again(report, row)
        if report.state.is_done:
            return await self._end(report, row)
        if report.state is TaskState.SUBMITTED:
            return await self._submitted(report, row)
        if row.state is TaskState.SUBMITTED:
            return await self._started(report, row)
        return await self._goes_on(report, row)

    # Before the end

    async def _submitted(self, report: Report, row: Task) -> Reported | None:
        """Take a report that a run waits: it may be new, or it was put back into its queue."""
        if row.state is not TaskState.SUBMITTED or row.is_announced:
            return await self._goes_on(report, row)
        announced, receipt = await self._journal.announce(row, _with_data(report))
        self._journal.note_soon(announced)
        return Reported(announced, receipt)

    async def _started(self, report: Report, row: Task) -> Reported | None:
        patience = self._patience(report, row)
        changes: dict[str, Any] = {
            "state": TaskState.RUNNING,
            "patience": patience,
            "is_announced": False,
            "input": None,  # nobody has to dispatch it any more
        }
        if not report.is_beat:
            changes.update(progress=report.draft.payload, progressed_at=self._now())
        changed = await self._journal.tasks.change(row, changes, deadline_in=patience)
        if changed is None:
            return None
        self._renewals.renewed(changed, patience)
        self._progress.stored((row.account, row.key), self._settings.progress_interval)
        announced, receipt = await self._journal.announce(changed, _with_data(report))
        self._journal.note_soon(announced)
        return Reported(announced, receipt)

    async def _goes_on(self, report: Report, row: Task) -> Reported | None:
        if report.is_beat:
            return await self._renewed(report, row)
        # What is in the row came before, whatever the clock of the instance that took it says.
        place, now = (row.account, row.key), max(self._now(), row.progressed_at)
        wait = self._wait_of(row, place)
        has_former = self._progress.holds(place)
        if not has_former and (not wait or not self._progress.has_room):
            return await self._store(report, row, now)
        renewed = await self._renewed(report, row)
        if renewed is None:
            return None
        self._progress.hold(place, Waiting(report, row.run, now, row.progressed_at), wait)
        return renewed._replace(is_conflated=True)

    def _wait_of(self, row: Task, place: Place) -> float:
        """Return the seconds until a progress may be stored, here or at another instance."""
        interval = self._settings.progress_interval
        there = row.progressed_at + interval - self._now()
        if there > interval:
            there = 0.0  # a clock that was set back holds nothing back
        return max(there, self._progress.wait_of(place, interval), 0.0)

    def _patience(self, report: Report, row: Task) -> float:
        return row.patience if report.patience is None else report.patience

    def _deadline_in(self, report: Report, row: Task) -> float:
        """Return the seconds in which the next report has to come."""
        if row.state is TaskState.SUBMITTED:
            return self._start_deadline(report)
        return self._patience(report, row)

    async def _renewed(self, report: Report, row: Task) -> Reported | None:
        """Move the deadline, unless that was done a short time ago."""
        patience, seconds = self._patience(report, row), self._deadline_in(report, row)
        if not self._renewals.is_due(row, seconds):
            return Reported(row)
        changes = {"patience": patience}
        changed = await self._journal.tasks.change(row, changes, deadline_in=seconds)
        if changed is None:
            return None
        self._renewals.renewed(changed, seconds)
        return Reported(changed)

    async def _store(self, report: Report, row: Task, came_at: float) -> Reported | None:
        """Store a progress and append its event."""
        seconds = self._deadline_in(report, row)
        changes = {
            "patience": self._patience(report, row),
            "progress": report.draft.payload,
            "progressed_at": came_at,
        }
        changed = await self._journal.tasks.change(row, changes, deadline_in=seconds)
        if changed is None:
            return None
        self._renewals.renewed(changed, seconds)
        self._progress.stored((row.account, row.key), self._settings.progress_interval)
        receipt = await self._journal.append(changed, PROGRESS_TYPE, report.draft)
        return Reported(changed, receipt)

    async def _store_waiting(self, place: Place, at_once: bool) -> None:
        """Store a progress that was held back."""
        await self._turns.run(place, lambda: self._store_held(place, at_once))

    async def _store_held(self, place: Place, at_once: bool) -> None:
        waiting = self._progress.take(place)
        if waiting is None:
            return  # it was stored before the end of its run
        try:
            later = await self._store_if_newest(waiting, at_once)
        except Unavailable:
            self._progress.hold(place, waiting, RETRY)
            raise
        if later is not None:
            self._progress.hold(place, later, self._settings.progress_interval)

    async def _store_if_newest(self, waiting: Waiting, at_once: bool = True) -> Waiting | None:
        """
        Store a progress of a run that goes on, unless another instance had a newer one.

        Two instances hold back what came in the same interval, and their times come together.  One
        of them is first; the other waits once more.  Otherwise the event of the newer progress
        could come before that of the older one.

        Returns:
            The progress if it is to wait once more.
        """
        report = waiting.report
        for _ in range(TRIES):
            row = await self._journal.tasks.get(report.draft.account, report.key)
            if row is None or row.run != waiting.run or row.is_done:
                return None
            if row.progressed_at > waiting.came_at:
                return None
            if row.progressed_at != waiting.former and not at_once:
                return waiting._replace(former=row.progressed_at)
            if await self._store(report, row, waiting.came_at) is not None:
                return None
        return None

    # The end

    async def _end(self, report: Report, row: Task) -> Reported | None:
        waiting = self._progress.take((row.account, row.key))
        if waiting is not None and waiting.run == row.run:
            await self._store_if_newest(waiting)
        return await self._finish(report, row)

    async def _finish(self, report: Report, row: Task) -> Reported | None:
        draft = _with_data(report)
        changes: dict[str, Any] = {"end_id": draft.id}
        if report.state is TaskState.COMPLETED:
            changes.update(result=draft.payload, result_type=draft.content_type)
        else:
            changes.update(error=error_of(report.state, draft))
        changed = await self._journal.finish(row, report.state, changes)
        if changed is None:
            return None
        self._renewals.ended(changed)
        announced, receipt = await self._journal.announce(changed, draft)
        self._journal.note_soon(announced)
        return Reported(announced, receipt)

    async def _end_again(self, report: Report, row: Task) -> Reported | None:
        """Take an end of a run that has ended: it is late, a repetition, or refused."""
        if not report.state.is_done:
            raise TaskEnded(row)
        if row.state is TaskState.LOST:
            if not row.is_announced:
                row, _ = await self._journal.announce(row)
            return await self._finish(report, row)
        if row.state is not report.state:
            raise TaskEnded(row)
        if row.cursor is None or not row.is_announced:
            row, _ = await self._journal.announce(row)
            self._journal.note_soon(row)
        return Reported(row, Receipt(row.end_id, str(row.cursor), True, 0, _NOBODY))


def _with_data(report: Report) -> Draft:
    """Return the draft of a report; without a body its data is null."""
    if not report.is_beat:
        return report.draft
    return report.draft._replace(payload=NO_DATA, content_type=JSON)


def _size(payload: bytes) -> int:
    """Return the bytes of the value in a payload."""
    return len(payload) - payload.index(b":") - 1
