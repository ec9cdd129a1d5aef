"""
Executes tasks in this process: each run is a call of the application's own callable.

The callable returns the result, or an awaitable of it, or `LATER` if somebody else reports the
run.  While an awaitable is not done, the run is RUNNING, and this module sends its beats.  If the
process dies, they stop, and the run is lost.
"""

from __future__ import annotations

from asyncio import CancelledError as AsyncioCancelled
from collections.abc import Callable, Coroutine
from functools import partial
from inspect import isawaitable
from threading import Lock, get_ident
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from asyncplumber.concurrency import PeriodicTask, SingleFlight
from asyncplumber.core.awaitables import as_deferred
from asyncplumber.core.tasks.errors import Superseded, TaskEnded
from asyncplumber.core.tasks.outcomes import Reported
from asyncplumber.core.tasks.results import too_large
from asyncplumber.errors import (
    PlumberError,
    TooLarge,
    TooManyRequests,
    Unavailable,
    to_client_error,
)
from asyncplumber.event import Draft, Event, new_id, timestamp
from asyncplumber.interfaces import (
    Answer,
    Dispatch,
    Finished,
    IStarter,
    Later,
    Refused,
    StarterFailed,
)
from asyncplumber.sending import encode
from asyncplumber.task import Report, TaskState
from asyncplumber.wire.payload import payload_of

LATER = Later()  # what a callable returns whose run is reported by somebody else
BEAT_INTERVAL = 20.0  # seconds
PATIENCE = 60.0  # seconds without a beat after which a run is lost
FIRST_DELAY = 0.5  # seconds until an end is reported again, doubled each time
MAX_DELAY = 30.0  # seconds

_CANCELED = (CancelledError, AsyncioCancelled)


class _Newest:
    """
    The progress of one run that is not reported yet: only the newest.

    A callable may make progress faster than the store takes reports, and in any thread.
    """

    def __init__(self, report: Callable[[str, bytes], Coroutine[Any, Any, None]]) -> None:
        """`report` reports a progress: its content type, and its body."""
        self._report = report
        self._lock = Lock()
        self._progress: tuple[str, bytes] | None = None
        #: Reports it, one after the other.
        self.reports = SingleFlight(self.flush)

    def put(self, content_type: str, body: bytes) -> bool:
        """Take the place of an older one, and return whether there was none.  For any thread."""
        with self._lock:
            former, self._progress = self._progress, (content_type, body)
        return former is None

    async def flush(self) -> None:
        """Report it now, if there is one."""
        with self._lock:
            progress, self._progress = self._progress, None
        if progress is not None:
            await self._report(*progress)


class Run:
    """
    One run of a task, as the callable of the application sees it.

    Attributes:
        account: Who waits for it.
        task: The key of the task.
        run: The id of the run.  A callable that is called again with the same id continues the
            same run: the process before it died, or its answer was lost.
        content_type: That of the input; empty for none.
        body: The input.
        is_canceled: Whether somebody asked the run to stop.  Its awaitable is cancelled as well.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        progress: Callable[[Run, Any], Deferred[None]],
        tell: Callable[[Run, str, bytes], Coroutine[Any, Any, None]],
    ) -> None:
        self.account = dispatch.account
        self.task = dispatch.task
        self.run = dispatch.run
        self.content_type = dispatch.content_type
        self.body = dispatch.body
        self.is_canceled = False
        self._progress = progress
        self._newest = _Newest(partial(tell, self))

    @property
    def data(self) -> Any:
        """
        The input: the value of JSON, str for text, bytes for everything else; None if it is empty.

        Raises:
            BadRequest: It says that it is JSON, and it is not.
        """
        if not self.body:
            return None
        content_type, payload = payload_of(self.content_type, self.body)
        return Event(self.account, "", 0, self.run, "", "", content_type, payload).data

    def progress(self, data: Any) -> Deferred[None]:
        """
        Report how far the run is.  Call it from any thread, as often as you like.

        While one report is under way, the newest of the others waits, in place of them.

        Args:
            data: What ``Plumber.send`` takes, at most 64 KiB.

        Returns:
            A Deferred that fires when the report was taken, or a newer one in its place.  It never
            fails, and need not be waited for; `is_canceled` is up to date after it.
        """
        return self._progress(self, data)


@implementer(IStarter)
class InProcessStarter:
    """Calls a callable with each `Run`."""

    _log = Logger()
    needs_callback = False

    def __init__(
        self,
        call: Callable[[Run], Any],
        clock: IReactorTime,
        now: Callable[[], float],
        limit: int,
    ) -> None:
        """
        Args:
            call: Returns a result, an awaitable of it, `LATER`, or another `Later`; or raises.
            clock: The reactor's clock.
            now: Returns the time in seconds since 1970.
            limit: The most bytes of a result.
        """
        self._limit = limit
        self._call = call
        self._clock = clock
        self._now = now
        self._thread = get_ident()
        self._under_way: dict[str, tuple[Run, Deferred[Any]]] = {}  # by run
        #: Takes reports; see `Tasks.report`.  To be set before the first start.
        self.report: Callable[[Report], Deferred[Reported]]

    def start(self, dispatch: Dispatch) -> Deferred[Answer]:
        if dispatch.run in self._under_way:
            return succeed(LATER)  # it is dispatched again, and goes on
        return Deferred.fromCoroutine(self._start(Run(dispatch, self._progress, self._tell)))

    async def _start(self, run: Run) -> Answer:
        try:
            outcome = self._call(run)
            if isawaitable(outcome):
                outcome = self._watched(run, as_deferred(outcome))
            self._flush(run)
            return self._answer(outcome)
        except StarterFailed:
            raise
        except Exception:
            self._end(run, TaskState.FAILED, self._error_of(Failure()))
            return LATER

    def _watched(self, run: Run, awaited: Deferred[Any]) -> Any:
        """Return the result of an awaitable, or `LATER` if it is not done; then it is watched."""
        if awaited.called and not awaited.paused and not isinstance(awaited.result, Deferred):
            outcome: list[Any] = []
            awaited.addBoth(outcome.append)
            if isinstance(outcome[0], Failure):
                outcome[0].raiseException()
            return outcome[0]
        self._under_way[run.run] = run, awaited
        beats = PeriodicTask(lambda: self._beat(run), BEAT_INTERVAL, self._clock, now=True)
        beats.start()
        awaited.addBoth(lambda result: self._done(run, beats, result))
        return LATER

    def _answer(self, outcome: Any) -> Answer:
        if isinstance(outcome, Later | Refused):
            return outcome
        finished = outcome if isinstance(outcome, Finished) else Finished(*encode(outcome))
        if len(finished.body) <= self._limit:
            return finished
        message = f"the result has {len(finished.body)} bytes, and the limit is {self._limit}"
        return Refused(413, "", b"", "too-large", message)

    # While it runs

    async def _beat(self, run: Run) -> None:
        await self._tell(run, "", b"")

    def _progress(self, run: Run, data: Any) -> Deferred[None]:
        is_first = run._newest.put(*encode(data))
        if get_ident() == self._thread:
            return run._newest.reports.run()
        # The application's thread cannot wait for a Deferred: it gets one that has fired.
        if is_first:
            cast(IReactorFromThreads, self._clock).callFromThread(run._newest.reports.request)
        return succeed(None)

    def _flush(self, run: Run) -> None:
        """Report the newest progress before what is reported after this call."""
        Deferred.fromCoroutine(run._newest.flush())

    async def _tell(self, run: Run, content_type: str, body: bytes) -> None:
        """Report that a run goes on, and learn whether it is to stop."""
        try:
            reported = await self.report(
                self._report_of(run, TaskState.RUNNING, content_type, body, is_beat=not body)
            )
        except (TaskEnded, Superseded) as error:
            # One that was lost may still end.  Nobody wants any other.
            if error.task is None or error.task.state is not TaskState.LOST:
                self._cancel(run)
        except Unavailable as error:
            self._log.debug("a run was not reported: {error}", error=error.message)
        except PlumberError as error:
            self._log.warn("a run was not reported: {error}", error=error.message)
        except Exception:
            self._log.failure("a run was not reported")
        else:
            if reported.task.is_cancel_requested:
                self._cancel(run)

    def _report_of(
        self, run: Run, state: TaskState, content_type: str, body: bytes, *, is_beat: bool = False
    ) -> Report:
        content_type, payload = payload_of(content_type, body)
        id, time = new_id(), timestamp(self._now())
        draft = Draft(run.account, id, id, "", time, content_type, payload)
        return Report(draft, run.task, state, run.run, is_beat=is_beat, patience=PATIENCE)

    # Its end

    def _done(self, run: Run, beats: PeriodicTask, result: Any) -> None:
        beats.stop()
        del self._under_way[run.run]
        try:
            if isinstance(result, Failure):
                result.raiseException()
            answer = self._answer(result)
            if isinstance(answer, Finished):
                kind, body = answer.content_type, answer.body
                self._report_end(run, self._report_of(run, TaskState.COMPLETED, kind, body))
            elif isinstance(answer, Refused):
                error = {"type": answer.type, "message": answer.message or "it was refused"}
                self._end(run, TaskState.FAILED, error)
        except _CANCELED:
            self._end(run, TaskState.CANCELED, {"message": "the task was canceled"})
        except Exception:
            self._end(run, TaskState.FAILED, self._error_of(Failure()))

    def _error_of(self, failure: Failure) -> dict[str, Any]:
        self._log.failure("a task failed", failure)
        return {"type": type(failure.value).__name__, "message": failure.getErrorMessage()}

    def _end(self, run: Run, state: TaskState, error: dict[str, Any]) -> None:
        self._report_end(run, self._report_of(run, state, *encode(error)))

    def _report_end(self, run: Run, report: Report) -> None:
        self._flush(run)
        Deferred.fromCoroutine(self._report_until_taken(report)).addErrback(
            lambda failure: to_client_error(failure, self._log, "the end of a run is not reported")
        )

    async def _report_until_taken(self, report: Report) -> None:
        delay = FIRST_DELAY
        while True:
            try:
                await self.report(report)
            except (TaskEnded, Superseded):
                return
            except TooLarge as error:
                report = too_large(report, error)
            except (Unavailable, TooManyRequests):
                await deferLater(self._clock, delay, lambda: None)  # type: ignore[arg-type]
                delay = min(2 * delay, MAX_DELAY)
            else:
                return

    # Cancel

    def cancel(self, account: str, task: str, run: str) -> Deferred[None]:
        if run in self._under_way:
            self._cancel(self._under_way[run][0])
        return succeed(None)

    def _cancel(self, run: Run) -> None:
        if run.is_canceled:
            return
        run.is_canceled = True
        if run.run in self._under_way:
            self._under_way[run.run][1].cancel()
