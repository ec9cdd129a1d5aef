"""
Announces the tasks of taskiq as tasks of an account.

``broker.add_middlewares(Announcements())`` is all that is needed.  A task is announced if its
labels name an account; see `for_account`.

Whether a failed task is tried again is decided by another middleware.  It sends the task again
under the same id, or replaces the error by ``NoResultError``.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Any

from taskiq import TaskiqMessage, TaskiqMiddleware, TaskiqResult
from taskiq.exceptions import NoResultError

from asyncplumber.client.reports import TaskCanceled
from asyncplumber.integrations.announcer import (
    Announcer,
    Attempt,
    address_in,
    default_announcer,
    for_account,
    guarded,
    is_canceled,
    progress,
)

__all__ = ["Announcements", "for_account", "is_canceled", "progress"]

_REQUEUES = "X-Taskiq-requeue"  # the label in which taskiq counts how often a task requeued itself


class _Execution:
    """A task that is executed in this context."""

    def __init__(self, message: TaskiqMessage, attempt: Attempt) -> None:
        self.id = message.task_id
        self.attempt = attempt
        self.requeues = message.labels.get(_REQUEUES)
        self.error: BaseException | None = None  # that the task raised
        self.is_retried = False
        self.token: Token[_Execution | None] | None = None


_execution: ContextVar[_Execution | None] = ContextVar("asyncplumber_taskiq", default=None)


class Announcements(TaskiqMiddleware):
    """
    The middleware.  Add it after those that retry.

    Args:
        announcer: How to reach the plumber; None for what the environment says.
    """

    def __init__(self, announcer: Announcer | None = None) -> None:
        super().__init__()
        self._announcer = announcer or default_announcer()

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Report that a task starts."""
        self._begin(message)
        return message

    @guarded
    def _begin(self, message: TaskiqMessage) -> None:
        address = address_in(message.labels, message.task_id)
        execution = None
        if address is not None:
            execution = _Execution(message, self._announcer.begin(address))
        token = _execution.set(execution)
        if execution is not None:
            execution.token = token

    @guarded
    def on_error(
        self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException
    ) -> None:
        """Keep the error: another middleware may replace it."""
        execution = _execution.get()
        if execution is not None:
            execution.error = exception
            if isinstance(exception, TaskCanceled):
                message.labels["retry_on_error"] = False

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        """Report that a task which failed is tried again."""
        self._report_retry(message)
        return message

    @guarded
    def _report_retry(self, message: TaskiqMessage) -> None:
        execution = _execution.get()
        if execution is not None and execution.id == message.task_id:
            self._retried(execution, message)

    def _retried(self, execution: _Execution, message: TaskiqMessage) -> None:
        if execution.is_retried:
            return
        execution.is_retried = True
        number, delay = message.labels.get("_retries"), message.labels.get("delay")
        execution.attempt.retry(
            execution.error,
            number=None if number is None else int(number),
            delay=float(delay or 0.0),
        )

    @guarded
    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Report the end, unless another attempt follows."""
        execution = _execution.get()
        if execution is None or execution.id != message.task_id:
            return
        if execution.token is not None:
            _execution.reset(execution.token)
        attempt, error = execution.attempt, execution.error
        if execution.is_retried:
            attempt.release()
        elif error is None:
            attempt.succeed(result.return_value)
        elif not isinstance(error, NoResultError):
            if isinstance(result.error, NoResultError):  # it is tried again by way of a schedule
                self._retried(execution, message)
            else:
                attempt.fail(error)
        elif message.labels.get(_REQUEUES) != execution.requeues:
            self._retried(execution, message)
        else:  # the task wants no result to be kept
            attempt.succeed(None)

    def shutdown(self) -> None:
        """Send what is waiting."""
        self._announcer.outbox.close()
