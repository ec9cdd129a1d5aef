"""
A task as the program reports it that executes it: a block, a function, or calls.

Needs only the standard library.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Self

from asyncplumber.client.beats import Beats, beats_of_this_loop
from asyncplumber.client.reports import (
    BEAT_INTERVAL,
    DEADLINE,
    Outgoing,
    RunReports,
    TaskCanceled,
)
from asyncplumber.client.task_decorator import decorated
from asyncplumber.client.task_errors import STOPPED, error_of

_log = logging.getLogger(__name__)
_current: ContextVar[TaskRun | None] = ContextVar("asyncplumber_task", default=None)


def current_task() -> TaskRun | None:
    """Return the task whose block or decorated function runs here, None outside of one."""
    return _current.get()


class TaskRun(RunReports):
    """
    One run of a task, from its beginning to its end.

    It is a context manager, also an asynchronous one, and a decorator.  ``Outbox.task`` makes it,
    and explains the arguments.  A block that is left ends the run: with ``result`` as its result,
    or as failed if an exception leaves the block.  The exception goes on as it would without us.

    Without a block, ``start`` begins the run, and ``complete``, ``fail`` or ``abort`` ends it.

    Nothing here raises because of the plumber, or waits for it unless it is asked to.

    Attributes:
        account: Who waits for the task.
        key: The name of the task.
        result: What the run has as its result, if the block is left without an exception.  Bytes
            and text are sent as they are, all else as JSON.
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
        *,
        run: str | None = None,
        deadline: float = DEADLINE,
        beat_interval: float = BEAT_INTERVAL,
        tracebacks: bool = False,
        clock: Any = None,
    ) -> None:
        """See ``Outbox.task``."""
        super().__init__(outbox, account, key, run, deadline, beat_interval, tracebacks)
        self.result: Any = None
        self._clock = clock
        self._process = os.getpid()
        self._is_followed = False  # whether a Deferred ends it, and not its block
        self._tokens: list[Token[TaskRun | None]] = []

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
        return TaskRun(
            self._outbox,
            account,
            key,
            run=self.run,
            deadline=self._deadline,
            beat_interval=self._beat_interval,
            tracebacks=self._tracebacks,
            clock=self._clock,
        )

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
        self.leave()
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
        self.stop_beats()
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

    def leave(self) -> None:
        """Be no longer the current task.  The run does not end by it."""
        if self._tokens:
            try:
                _current.reset(self._tokens.pop())
            except ValueError:  # the block is left in another context than it was entered
                _current.set(None)

    def _loop_beats(self, beat: Callable[[], None], interval: float) -> Beats:
        return beats_of_this_loop(beat, interval, self._clock) or self._outbox.beats(beat, interval)
