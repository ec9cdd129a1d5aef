"""
Hands runs to what executes them, at least once each.

A run is dispatched by the instance that claimed it.  If that dies, another one takes over when the
lease has ended.  The run keeps its id, by which the application knows it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.concurrency import PeriodicTask, Semaphore
from asyncplumber.core.tasks.errors import Superseded, TaskEnded
from asyncplumber.core.tasks.figures import TaskFigures
from asyncplumber.core.tasks.journal import Journal
from asyncplumber.core.tasks.outcomes import Reported
from asyncplumber.core.tasks.results import too_large
from asyncplumber.core.tasks.settings import TaskSettings
from asyncplumber.errors import (
    BadRequest,
    PlumberError,
    TooLarge,
    TooManyRequests,
    Unavailable,
    to_client_error,
)
from asyncplumber.event import Draft, new_id, timestamp
from asyncplumber.interfaces import (
    Answer,
    Dispatch,
    Finished,
    IStarter,
    Later,
    Refused,
    StarterFailed,
)
from asyncplumber.rate_limited_log import RateLimitedLog
from asyncplumber.task import DISPATCH_LEASE, Report, Task, TaskState
from asyncplumber.wire.payload import json_member, payload_of

MAX_DISPATCHES = 256  # under way at one instance
FIRST_DELAY = 0.5  # seconds until a dispatch is tried again, doubled each time
MAX_DELAY = 30.0  # seconds
TRIES = 5  # how often a row is read again because a report was faster

Take = Callable[[Report], Deferred[Reported]]


def _no_callback(task: Task) -> Deferred[str]:
    return succeed("")


class Dispatcher:
    """Dispatches runs."""

    _log = Logger()

    def __init__(
        self,
        journal: Journal,
        starter: IStarter,
        settings: TaskSettings,
        clock: IReactorTime,
        now: Callable[[], float],
        report: Callable[[Report], Any],
        figures: TaskFigures,
        mint: Callable[[Task], Deferred[str]] = _no_callback,
    ) -> None:
        """
        Args:
            journal: Writes what happens.
            starter: Begins runs.
            settings: How long tasks are waited for.
            clock: Measures the time between tries.
            now: Returns the time in seconds since 1970.
            report: Takes the end of a run whose answer is the result; a coroutine function.
            figures: Counts.
            mint: Returns the URL to which the run can be reported.
        """
        self._journal = journal
        self._starter = starter
        self._settings = settings
        self._clock = clock
        self._now = now
        self._report = report
        self._figures = figures
        self._mint = mint
        self._room = Semaphore(MAX_DISPATCHES)
        self._under_way: dict[str, Deferred[None]] = {}  # by run
        self._warnings = RateLimitedLog(self._log, clock.seconds)
        self._is_stopped = False

    def start(self) -> None:
        """Dispatch again after a `stop`."""
        self._is_stopped = False

    def dispatch(self, task: Task) -> None:
        """
        Dispatch a run that this instance has leased.  Harmless if that is under way.

        After a `stop` it is left to the other instances, which take it over when its lease ends.
        """
        run = task.run
        if self._is_stopped or run in self._under_way:
            return
        under_way = self._under_way[run] = Deferred.fromCoroutine(self._dispatch(task))
        under_way.addErrback(self._failed).addCallback(lambda _: self._over(run))

    def _over(self, run: str) -> None:
        del self._under_way[run]

    def stop(self) -> None:
        """Give up what is under way, and begin nothing.  Other instances take it over."""
        self._is_stopped = True
        for under_way in list(self._under_way.values()):
            under_way.cancel()

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            error = to_client_error(failure, self._log, "a task could not be dispatched")
            self._log.debug("a task could not be dispatched: {error}", error=error.message)

    async def _dispatch(self, task: Task) -> None:
        keeping = self._keep_lease(task)
        try:
            answer = await self._answer(task)
            delay = FIRST_DELAY
            while answer is not None:
                try:
                    await self._answered(task, answer)
                    answer = None
                except (Unavailable, TooManyRequests):
                    # The answer is only here, and to dispatch the run again would cost more.
                    await self._pause(delay)
                    delay = min(2 * delay, MAX_DELAY)
        finally:
            keeping.stop()

    def _keep_lease(self, task: Task) -> PeriodicTask:
        """Renew the lease while the run is dispatched, so that no other instance comes between."""

        async def renew() -> None:
            await self._journal.tasks.change(task, {}, lease=DISPATCH_LEASE)

        keeping = PeriodicTask(renew, DISPATCH_LEASE / 3, self._clock)
        keeping.start()
        return keeping

    def _pause(self, seconds: float) -> Deferred[None]:
        return deferLater(self._clock, seconds, lambda: None)  # type: ignore[arg-type]

    async def _answer(self, task: Task) -> Answer | None:
        """Ask until there is an answer; None if there is nothing to dispatch any more."""
        delay = min(FIRST_DELAY * 2 ** min(task.attempts, 10), MAX_DELAY)
        current: Task | None = task
        while current is not None and current.input is not None and not current.is_done:
            answer = await self._ask(current)
            if not isinstance(answer, StarterFailed):
                return answer
            self._figures.dispatch_failed()
            pause = delay if answer.retry_after is None else answer.retry_after
            delay = min(2 * delay, MAX_DELAY)
            changes = {"attempts": current.attempts + 1, **_note(current)}
            changed = await self._journal.tasks.change(current, changes, lease=DISPATCH_LEASE)
            if changed is None:
                return None  # somebody has reported it: it has begun, or has ended
            await self._pause(pause)
            found = await self._journal.tasks.get(task.account, task.key)
            current = found if found is not None and found.run == task.run else None
        return None

    async def _ask(self, task: Task) -> Answer | StarterFailed:
        await self._room.acquire()
        began = self._clock.seconds()
        try:
            callback = await self._mint(task)
            input = task.input or b""
            dispatch = Dispatch(task.account, task.key, task.run, task.input_type, input, callback)
            return await self._starter.start(dispatch)
        except StarterFailed as error:
            self._warnings.warn(
                "a task could not be started: {error}; it is tried again", error=str(error)
            )
            return error
        except CancelledError:
            raise  # this instance stops
        except PlumberError as error:
            return StarterFailed(error.message)
        except Exception:
            self._log.failure("a starter failed")
            return StarterFailed("the starter failed")
        finally:
            self._room.release()
            self._figures.dispatched(self._clock.seconds() - began)

    async def _answered(self, task: Task, answer: Answer) -> None:
        if isinstance(answer, Later):
            await self._accepted(task, answer)
            return
        report = self._report_of(task, answer)
        # It may have been canceled, or have reported its end itself.
        with suppress(TaskEnded, Superseded):
            try:
                await self._report(report)
            except TooLarge as error:
                await self._report(too_large(report, error))

    def _report_of(self, task: Task, answer: Finished | Refused) -> Report:
        state, content_type, payload = _end_of(answer)
        id, time = new_id(), timestamp(self._now())
        draft = Draft(task.account, id, id, "", time, content_type, payload)
        return Report(draft, task.key, state, task.run)

    async def _accepted(self, task: Task, answer: Later) -> None:
        """Note that the application has taken the run over, and will report it."""
        seconds = answer.deadline_in
        seconds = self._settings.start_deadline if seconds is None else seconds
        taken = {"input": None, **_note(task)}
        changed = await self._journal.tasks.change(task, taken, deadline_in=seconds)
        for _ in range(TRIES):
            if changed is not None:
                return
            # It has been reported already.  That has set the deadline.
            row = await self._journal.tasks.get(task.account, task.key)
            if row is None or row.run != task.run or row.is_done or row.input is None:
                return
            changed = await self._journal.tasks.change(row, {"input": None})


def _note(task: Task) -> dict[str, Any]:
    """Return the note that the beginning is announced, which is not worth a write of its own."""
    return {"is_announced": True, "cursor": task.cursor} if task.is_announced else {}


def _end_of(answer: Finished | Refused) -> tuple[TaskState, str, bytes]:
    """Return how an answer ends the run: the state, and the content type and payload of the end."""
    if isinstance(answer, Refused):
        error = _error(answer)
    else:
        try:
            return TaskState.COMPLETED, *payload_of(answer.content_type, answer.body)
        except BadRequest as problem:
            message = f"the answer is not what its content type says: {problem.message}"
            error = json.dumps({"type": "malformed", "message": message}).encode()
    return TaskState.FAILED, "application/json", json_member(error)


def _error(answer: Refused) -> bytes:
    """Return the error of a run that the application refused, with what it said, as JSON."""
    error: dict[str, Any] = {"type": answer.type, "message": answer.message}
    if answer.type != "refused":
        return json.dumps(error).encode()
    error["message"] = answer.message or f"the application refused it with status {answer.status}"
    error["status"] = answer.status
    members = json.dumps(error).encode()[:-1]
    try:
        said = json_member(answer.body).partition(b":")[2]
    except BadRequest:
        text = answer.body.decode("utf-8", "replace").strip()
        said = json.dumps(text).encode() if text else b""
    return b'%b,"answer":%b}' % (members, said) if said else members + b"}"
