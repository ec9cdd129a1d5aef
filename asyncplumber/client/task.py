"""
A task as the program reports it that executes it.

Reports go through an `Outbox`: nothing here waits for the plumber, and nothing raises because of
it.  Needs only the standard library.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Protocol, Self

from asyncplumber.client.beats import Beats, beats_of_this_loop
from asyncplumber.client.request import Endpoint, Request, with_run
from asyncplumber.client.response import Noted, Refused
from asyncplumber.client.task_decorator import decorated
from asyncplumber.client.task_errors import STOPPED, UNSUITABLE, error_of, repr_of
from asyncplumber.client.waiting import Entry, Kind

DEADLINE = 60.0  # seconds without a report after which the plumber counts a run as lost
BEAT_INTERVAL = 20.0  # seconds between two beats: two may fail before the run counts as lost

_log = logging.getLogger(__name__)
_current: ContextVar[TaskRun | None] = ContextVar("asyncplumber_task", default=None)


class TaskCanceled(BaseException):
    """
    Somebody asked the task to stop; see ``TaskRun.progress``.

    It is no ``Exception``, so that ``except Exception`` in the work does not swallow it.
    """


def current_task() -> TaskRun | None:
    """Return the task whose block or decorated function runs here, None outside of one."""
    return _current.get()


class Outgoing(Protocol):
    """What a task needs of an outbox."""

    endpoint: Endpoint

    def report(self, entry: Entry, *, wait: float = 0.0) -> bool: ...

    def lose(self, id: object, reason: str) -> None: ...

    def beats(self, beat: Callable[[], None], interval: float) -> Beats: ...


class TaskRun:
    """
    One run of a task, from its beginning to its end.

    It is a context manager, also an asynchronous one, and a decorator.  ``Outbox.task`` makes it,
    and explains the arguments.  A block that is left ends the run: with ``result`` as its result,
    or as failed if an exception leaves the block.  The exception goes on as it would without us.

    Without a block, ``start`` begins the run, and ``complete``, ``fail`` or ``abort`` ends it.

    Nothing here raises because of the plumber, or waits for it.

    Attributes:
        account: Who waits for the task.
        key: The name of the task.
        result: What the run has as its result, if the block is left without an exception.  Bytes
            and text are sent as they are, all else as JSON.
        run: The id of the run; None until the plumber has said it.
    """

    def __init__(
        self,
        outbox: Outgoing,
        account: Any,
        key: Any,
        *,
        run: str | None = None,
        deadline: float = DEADLINE,
        beat_interval: float = BEAT_INTERVAL,
        tracebacks: bool = False,
        clock: Any = None,
    ) -> None:
        """See ``Outbox.task``."""
        self.account, self.key, self.run = account, key, run
        self.result: Any = None
        self._outbox = outbox
        self._deadline, self._beat_interval = deadline, beat_interval
        self._tracebacks = tracebacks
        self._clock = clock
        self._options: dict[str, Any] = {
            "run": run,
            "deadline": deadline,
            "beat_interval": beat_interval,
            "tracebacks": tracebacks,
            "clock": clock,
        }
        self._beats: Beats | None = None
        self._process = os.getpid()
        self._is_canceled = False
        self._is_over = False  # whether the plumber takes no more progress of it
        self._has_ended = False
        self._is_followed = False  # whether a Deferred ends it, and not its block
        self._tokens: list[Token[TaskRun | None]] = []
        #: Called when somebody asks the task to stop, once, in the thread that hears of it.
        self.on_cancel: Callable[[], None] | None = None

    # In a block

    @property
    def canceled(self) -> bool:
        """
        Whether somebody asked the task to stop.

        The answer to each report says so, that is at the latest ``beat_interval`` after the wish.
        """
        return self._is_canceled

    def progress(self, data: Any, *, raise_on_cancel: bool = False) -> None:
        """
        Tell the account how far the task is.

        While one report waits, a newer one takes its place.

        Args:
            data: Bytes and text are sent as they are, all else as JSON.
            raise_on_cancel: Whether to raise if somebody asked the task to stop.

        Raises:
            TaskCanceled: Somebody did, and ``raise_on_cancel`` is true.  A block of this task that
                it leaves ends it as canceled, and does not pass it on.
        """
        if not (self._has_ended or self._is_over):
            self._report(Kind.PROGRESS, "running", data)
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

    # Without a block

    def start(self, *, beats: bool = True) -> Self:
        """
        Report that the run begins.

        Args:
            beats: Whether a thread then reports, again and again, that it goes on.
        """
        self._begin(self._outbox.beats if beats else None)
        return self

    def beat(self) -> None:
        """Report that the run goes on, as its beats do."""
        if not (self._has_ended or self._is_over):
            self._report(Kind.BEAT, "running", b"")

    def complete(self, result: Any = None, *, wait: float = 0.0) -> bool:
        """
        End the run with its result.

        A result that JSON cannot express is sent as ``{"repr": …}``.  One that is too large for the
        plumber makes the run failed, with the type ``too-large``.

        Args:
            result: Bytes and text are sent as they are, all else as JSON.
            wait: Seconds to wait at most until the plumber has it; less if it is known to be away.

        Returns:
            Whether the plumber has it; always False without ``wait``.
        """
        return self._end("completed", result, wait)

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

    def abort(self, error: Any = None, *, wait: float = 0.0) -> bool:
        """End the run as canceled; arguments and result as for ``fail``."""
        return self._end("canceled", error, wait)

    # As a context manager and decorator

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function as a task: each call is a run, and what it returns is the result."""
        return decorated(function, self._for_call)

    def _for_call(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> TaskRun:
        account, key = self.account, self.key
        try:
            account = account(*arguments, **named) if callable(account) else account
            key = key(*arguments, **named) if callable(key) else key
        except Exception:  # the function runs all the same
            _log.exception("cannot find out which task a call is; it is not reported")
            account = key = None
        return TaskRun(self._outbox, account, key, **self._options)

    def __enter__(self) -> Self:
        self._tokens.append(_current.set(self))
        self._begin(self._outbox.beats if self._clock is None else self._loop_beats)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._leave()
        if os.getpid() != self._process or (self._is_followed and error is None):
            return False  # in a fork, the task is its parent's
        return self._end_by(error)

    def _end_by(self, error: BaseException | None) -> bool:
        """End the run as an exception says, or as completed; return whether the exception ends."""
        if isinstance(error, TaskCanceled):
            self.abort()
            return True
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self.complete(self.result)
        elif type(error).__name__ in STOPPED:
            self.abort(error_of(error, traceback=False))
        else:
            self.fail(error)
        return False

    def follow(self, deferred: Any) -> Any:
        """
        Let the run go on until a Deferred of Twisted has a result, which is that of the run.

        The block can be left before.

        Returns:
            The Deferred.
        """
        self._is_followed = True
        self._stop_beats()
        if self._beat_interval > 0:
            self._beats = self._loop_beats(self.beat, self._beat_interval)

        def succeeded(result: Any) -> Any:
            self.complete(result)
            return result

        def failed(failure: Any) -> Any:
            return None if self._end_by(failure.value) else failure

        return deferred.addCallbacks(succeeded, failed)

    async def __aenter__(self) -> Self:
        self._tokens.append(_current.set(self))
        self._begin(self._loop_beats)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        return self.__exit__(kind, error, trace)

    def _leave(self) -> None:
        if self._tokens:
            try:
                _current.reset(self._tokens.pop())
            except ValueError:  # the block is left in another context than it was entered
                _current.set(None)

    def _loop_beats(self, beat: Callable[[], None], interval: float) -> Beats:
        return beats_of_this_loop(beat, interval, self._clock) or self._outbox.beats(beat, interval)

    # Reports

    def _begin(self, beats: Callable[[Callable[[], None], float], Beats] | None) -> None:
        entry = self._built(Kind.BEGIN, "started", b"")
        if entry is None:
            self._has_ended = True  # it has no name: nothing of it can be sent
            return
        self._outbox.report(entry)
        if beats is not None and self._beats is None and self._beat_interval > 0:
            self._beats = beats(self.beat, self._beat_interval)

    def _end(self, state: str, data: Any, wait: float) -> bool:
        if self._has_ended:
            return False
        self._has_ended = True
        self._stop_beats()
        return self._report(Kind.END, state, data, wait)

    def _stop_beats(self) -> None:
        if self._beats is not None:
            self._beats.stop()
            self._beats = None

    def _report(self, kind: Kind, state: str, data: Any, wait: float = 0.0) -> bool:
        entry = self._built(kind, state, data)
        return entry is not None and self._outbox.report(entry, wait=wait)

    def _built(self, kind: Kind, state: str, data: Any) -> Entry | None:
        """Return a report, None if it cannot be sent and is lost."""
        try:
            try:
                return self._entry(kind, state, data)
            except UNSUITABLE as error:
                if kind is not Kind.END:
                    raise
                _log.warning("the end of task %s is sent as its repr: %s", self.key, error)
                return self._entry(kind, state, {"repr": repr_of(data)})
        except UNSUITABLE as error:
            self._outbox.lose(None, f"task {self.key}: {error.__class__.__name__}: {error}")
            return None

    def _entry(self, kind: Kind, state: str, data: Any, *, is_last: bool = False) -> Entry:
        """``is_last``: it takes the place of an end that is too large, and nothing its own."""
        request = self._outbox.endpoint.report(
            self.account,
            self.key,
            state,
            data,
            deadline=self._deadline,
            time=datetime.now(UTC),
        )

        can_be_replaced = kind is Kind.END and not is_last

        def settle(answer: Any) -> Entry | None:
            if isinstance(answer, Noted):
                self.run = self.run or answer.run or None
                if answer.is_cancel_requested:
                    self._cancel()
            elif isinstance(answer, Refused) and answer.status == 409:
                self._conflict(answer)
            elif isinstance(answer, Refused) and answer.status == 413 and can_be_replaced:
                return self._too_large(len(request.body))
            return None

        return Entry(request, kind, owner=self, prepare=self._prepare, settle=settle)

    def _prepare(self, request: Request) -> Request:
        return request if self.run is None else with_run(request, self.run)

    def _conflict(self, answer: Refused) -> None:
        _log.info("task %s of account %s: %s", self.key, self.account, answer)
        self._is_over = True
        self._stop_beats()
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
