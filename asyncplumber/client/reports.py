"""
The reports of one run of a task: its beginning, beats, progress, and its end.

Reports go through an `Outbox`: nothing here waits for the plumber, and nothing raises because of
it.  Needs only the standard library.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Protocol, Self

from asyncplumber.client.beats import Beats
from asyncplumber.client.request import Endpoint, Request, with_run
from asyncplumber.client.response import Noted, Refused
from asyncplumber.client.task_errors import UNSUITABLE, error_of, repr_of
from asyncplumber.client.waiting import Entry, Kind

DEADLINE = 60.0  # seconds without a report after which the plumber counts a run as lost
BEAT_INTERVAL = 20.0  # seconds between two beats: two may fail before the run counts as lost
PROGRESS_INTERVAL = 0.1  # seconds between two reports of progress; the plumber keeps fewer

_log = logging.getLogger(__name__)


class TaskCanceled(BaseException):
    """
    Somebody asked the task to stop; see ``TaskRun.progress``.

    It is no ``Exception``, so that ``except Exception`` in the work does not swallow it.
    """


class Outgoing(Protocol):
    """What a task needs of an outbox."""

    endpoint: Endpoint

    def report(self, entry: Entry, *, wait: float = 0.0) -> bool: ...

    def lose(self, id: object, reason: str) -> None: ...

    def beats(self, beat: Callable[[], None], interval: float) -> Beats: ...


class RunReports:
    """
    Reports one run.

    Attributes:
        account: Who waits for the task.
        key: The name of the task.
        run: The id of the run; None until the plumber has said it.
        conflict: Why the plumber takes no progress of the run: it has ended, or another one is the
            newest.  None as long as it does.
        told: The last state that the plumber has told; None before its first answer.
        on_cancel: Called when somebody asks the task to stop, once, in the thread that hears of it.
    """

    def __init__(
        self,
        outbox: Outgoing,
        account: Any,
        key: Any,
        run: str | None,
        deadline: float,
        beat_interval: float,
        tracebacks: bool,
    ) -> None:
        """See ``Outbox.task``."""
        self.account, self.key, self.run = account, key, run
        self.conflict: Refused | None = None
        self.told: str | None = None
        self.on_cancel: Callable[[], None] | None = None
        self._outbox = outbox
        self._deadline, self._beat_interval = deadline, beat_interval
        self._tracebacks = tracebacks
        self._beats: Beats | None = None
        self._is_canceled = False
        self._has_ended = False
        self._next_progress = 0.0  # when the next one may be sent, on the monotonic clock

    @property
    def canceled(self) -> bool:
        """
        Whether somebody asked the task to stop.

        The answer to each report says so, that is at the latest ``beat_interval`` after the wish.
        """
        return self._is_canceled

    def progress(
        self, data: Any, *, content_type: str | None = None, raise_on_cancel: bool = False
    ) -> None:
        """
        Tell the account how far the task is.

        While one report waits, a newer one takes its place; there are at most ten in a second.

        Args:
            data: Bytes and text are sent as they are, all else as JSON.
            content_type: What the data is; None takes it from the type of ``data``.
            raise_on_cancel: Whether to raise if somebody asked the task to stop.

        Raises:
            TaskCanceled: Somebody did, and ``raise_on_cancel`` is true.  A block of this task that
                it leaves ends it as canceled, and does not pass it on.
        """
        if not (self._has_ended or self.conflict):
            self._report(Kind.PROGRESS, "running", data, content_type=content_type)
        if raise_on_cancel:
            self.raise_if_canceled()

    def raise_if_canceled(self) -> None:
        """
        Raise if somebody asked the task to stop.

        Raises:
            TaskCanceled: Somebody did.
        """
        if self._is_canceled:
            raise TaskCanceled(f"task {self.key} of account {self.account} is to stop")

    def start(self, *, beats: bool = True, wait: float = 0.0) -> Self:
        """
        Report that the run begins.

        Args:
            beats: Whether a thread then reports, again and again, that it goes on.
            wait: As for ``complete``.
        """
        self._begin(self._outbox.beats if beats else None, wait)
        return self

    def beat(self) -> None:
        """Report that the run goes on, as its beats do."""
        if not (self._has_ended or self.conflict):
            self._report(Kind.BEAT, "running", b"")

    def complete(
        self, result: Any = None, *, content_type: str | None = None, wait: float = 0.0
    ) -> bool:
        """
        End the run with its result.

        A result that JSON cannot express is sent as ``{"repr": …}``.  One that is too large for the
        plumber makes the run failed, with the type ``too-large``.

        Args:
            result: Bytes and text are sent as they are, all else as JSON.
            content_type: What the result is; None takes it from the type of ``result``.
            wait: Seconds to wait at most until the plumber has it; less if it is known to be away.

        Returns:
            Whether the plumber has it; always False without ``wait``.
        """
        return self._end("completed", result, wait, content_type)

    def fail(self, error: Any, *, wait: float = 0.0) -> bool:
        """
        End the run as failed.

        Args:
            error: An exception, or anything that JSON can express: an object with ``type`` and
                ``message``, or a text, which is the message.
            wait: As for ``complete``.

        Returns:
            As ``complete`` does.
        """
        if isinstance(error, BaseException):
            error = error_of(error, traceback=self._tracebacks)
        return self._end("failed", error, wait)

    def pause(self, data: Any, *, deadline: float, content_type: str | None = None) -> None:
        """
        Report that this attempt is over, and that another one of the same run follows.

        The other one is a ``TaskRun`` of its own.  This one reports nothing more.

        Args:
            data: As for ``progress``.
            deadline: Seconds in which the other one has to begin, or the run counts as lost.
            content_type: As for ``progress``.
        """
        if self._has_ended:
            return
        self._has_ended = True
        self.stop_beats()
        self._deadline = deadline
        self._next_progress = 0.0  # the next attempt must not overtake it
        if self.conflict is None:
            self._report(Kind.PROGRESS, "running", data, content_type=content_type)

    def abort(self, error: Any = None, *, wait: float = 0.0) -> bool:
        """End the run as canceled; arguments and result as for ``fail``."""
        return self._end("canceled", error, wait)

    def _begin(
        self, beats: Callable[[Callable[[], None], float], Beats] | None, wait: float = 0.0
    ) -> None:
        entry = self._built(Kind.BEGIN, "started", b"")
        if entry is None:
            self._has_ended = True  # it has no name: nothing of it can be sent
            return
        self._outbox.report(entry, wait=wait)
        if (
            self.conflict is None
            and beats is not None
            and self._beats is None
            and self._beat_interval > 0
        ):
            self._beats = beats(self.beat, self._beat_interval)

    def _end(self, state: str, data: Any, wait: float, content_type: str | None = None) -> bool:
        if self._has_ended:
            return False
        self._has_ended = True
        self.stop_beats()
        return self._report(Kind.END, state, data, wait, content_type)

    def stop_beats(self) -> None:
        # The thread that sends does the same, perhaps at this moment, if the run has ended
        # elsewhere.  They are kept: only the thread of their loop can take the timer away.
        if self._beats is not None:
            self._beats.stop()

    def _report(
        self,
        kind: Kind,
        state: str,
        data: Any,
        wait: float = 0.0,
        content_type: str | None = None,
    ) -> bool:
        entry = self._built(kind, state, data, content_type)
        return entry is not None and self._outbox.report(entry, wait=wait)

    def _built(
        self, kind: Kind, state: str, data: Any, content_type: str | None = None
    ) -> Entry | None:
        """Return a report, None if it cannot be sent and is lost."""
        try:
            try:
                return self._entry(kind, state, data, content_type)
            except UNSUITABLE as error:
                if kind is not Kind.END:
                    raise
                _log.warning("the end of task %s is sent as its repr: %s", self.key, error)
                return self._entry(kind, state, {"repr": repr_of(data)})
        except UNSUITABLE as error:
            self._outbox.lose(None, f"task {self.key}: {error.__class__.__name__}: {error}")
            return None

    def _entry(
        self,
        kind: Kind,
        state: str,
        data: Any,
        content_type: str | None = None,
        *,
        is_last: bool = False,
    ) -> Entry:
        """``is_last``: it takes the place of an end that is too large, and nothing its own."""
        request = self._outbox.endpoint.report(
            self.account,
            self.key,
            state,
            data,
            content_type=content_type,
            deadline=self._deadline,
            time=datetime.now(UTC),
        )

        can_be_replaced = kind is Kind.END and not is_last

        def settle(answer: Any) -> Entry | None:
            if isinstance(answer, Noted):
                self.run = self.run or answer.run or None
                self.told = answer.state
                if answer.is_cancel_requested:
                    self._cancel()
            elif isinstance(answer, Refused) and answer.status == 409:
                self._conflict(answer)
            elif isinstance(answer, Refused) and answer.status == 413 and can_be_replaced:
                return self._too_large(len(request.body))
            return None

        entry = Entry(request, kind, owner=self, prepare=self._prepare, settle=settle)
        if kind is Kind.PROGRESS:
            entry.prepare, entry.not_before = self._prepare_progress, self._next_progress
        return entry

    def _prepare_progress(self, request: Request) -> Request:
        self._next_progress = monotonic() + PROGRESS_INTERVAL
        return self._prepare(request)

    def _prepare(self, request: Request) -> Request:
        return request if self.run is None else with_run(request, self.run)

    def _conflict(self, answer: Refused) -> None:
        _log.info("task %s of account %s: %s", self.key, self.account, answer)
        self.conflict = answer
        self.stop_beats()
        if answer.code == "ended" and answer.task.get("state") == "canceled":
            self._cancel()

    def _cancel(self) -> None:
        if not self._is_canceled:
            self._is_canceled = True
            if self.on_cancel is not None:
                self.on_cancel()

    def _too_large(self, size: int) -> Entry:
        """Return what takes the place of an end that the plumber does not take."""
        _log.error("the end of task %s is too large: %d bytes", self.key, size)
        message = f"the result has {size} bytes, which is more than the plumber takes"
        error = {"type": "too-large", "message": message, "size": size}
        return self._entry(Kind.END, "failed", error, is_last=True)
