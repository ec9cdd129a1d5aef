"""
Announces the tasks of Huey as tasks of an account.

``announce(huey)`` where the instance is made is all that is needed.  A task is announced if its
call says for whom it is; see `for_account`.

Huey's signals do not suffice: ``complete`` has no result, ``error`` precedes ``retrying``, and an
exception like ``SystemExit`` has none.  So the end is taken from a hook that is called after the
task and knows how many attempts are left, and from the call itself.
"""

from __future__ import annotations

from typing import Any

from huey import signals
from huey.api import Huey, Task
from huey.exceptions import CancelExecution

from asyncplumber.client.reports import TaskCanceled
from asyncplumber.integrations.announcer import (
    ARGUMENT,
    Address,
    Announcer,
    Attempt,
    address_in_call,
    default_announcer,
    for_call,
    guarded,
    is_canceled,
    progress,
)

__all__ = ["announce", "for_account", "is_canceled", "progress"]

for_account = for_call


def announce(huey: Huey, announcer: Announcer | None = None) -> None:
    """
    Announce the tasks of ``huey`` from now on.

    Args:
        huey: The instance, with any storage.
        announcer: How to reach the plumber; None for what the environment says.
    """
    _Announcements(announcer or default_announcer()).connect(huey)


class _Execution:
    """A task that runs in this process."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.was_called = False  # whether its function was


class _Announcements:
    """The receivers of one instance of Huey."""

    def __init__(self, announcer: Announcer) -> None:
        self._announcer = announcer
        self._executions: dict[str, _Execution] = {}  # by the task's id

    def connect(self, huey: Huey) -> None:
        """Connect to the signals and hooks."""
        name = f"asyncplumber-{id(self)}"
        huey.signal()(self._on_signal)
        huey.post_execute(name)(self._on_executed)
        huey.on_shutdown(name)(self._announcer.outbox.close)

    @guarded
    def _on_signal(self, signal: str, task: Task, *args: Any) -> None:
        if signal == signals.SIGNAL_INTERRUPTED:
            self._end(task, "Interrupted", "the worker was stopped")
        elif signal == signals.SIGNAL_CANCELED:
            self._on_canceled(task)
        else:
            address = address_in_call(task.kwargs, task.id)
            if address is None:
                return
            if signal == signals.SIGNAL_EXECUTING:
                self._begin(task, address)
            elif signal in (signals.SIGNAL_REVOKED, signals.SIGNAL_EXPIRED):
                attempt = self._announcer.attempt(address)
                attempt.cancel(signal.capitalize(), f"the task is {signal}")

    def _end(self, task: Task, type: str, message: str) -> None:
        execution = self._executions.pop(task.id, None)
        if execution is not None:
            execution.attempt.cancel(type, message)

    def _on_canceled(self, task: Task) -> None:
        """Report that a hook forbade a task.  What a task says itself, `_on_executed` reports."""
        execution = self._executions.get(task.id)
        if execution is not None and not execution.was_called:
            self._end(task, "Canceled", "the task was not executed")

    def _begin(self, task: Task, address: Address) -> None:
        execution = self._executions[task.id] = _Execution(self._announcer.begin(address))

        def announced() -> Any:
            """Call the function without the argument that is ours."""
            argument = task.kwargs.pop(ARGUMENT, None)
            execution.was_called = True
            try:
                return type(task).execute(task)
            except TaskCanceled as error:
                raise CancelExecution(retry=False) from error  # Huey's own word for it
            except Exception:
                raise
            except BaseException as error:  # it ends the worker, and Huey calls no hook
                self._executions.pop(task.id, None)
                execution.attempt.fail(error)
                raise
            finally:
                task.kwargs[ARGUMENT] = argument  # for the next attempt

        task.execute = announced

    @guarded
    def _on_executed(self, task: Task, value: Any, error: BaseException | None) -> None:
        execution = self._executions.pop(task.id, None)
        if execution is None:
            return
        attempt = execution.attempt
        if error is None:
            attempt.succeed(value)
        elif task.retries:
            number = max(type(task).default_retries - task.retries + 1, 1)
            attempt.retry(error, number=number, delay=task.retry_delay or 0.0)
        elif isinstance(error, CancelExecution):
            attempt.cancel("Canceled", str(error) or "the task was canceled")
        else:
            attempt.fail(error)
