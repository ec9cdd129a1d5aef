"""
What all integrations have in common: whose a task is, and one attempt at it.

A *run* may take several *attempts*: a task queue tries again what failed.  Each attempt begins with
``begin``, and ends with one of ``succeed``, ``fail``, ``cancel`` and ``retry``.  Only the first
three end the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

from asyncplumber.client.outbox import Outbox
from asyncplumber.client.reports import BEAT_INTERVAL, DEADLINE, TaskCanceled
from asyncplumber.client.task import TaskRun, current_task
from asyncplumber.client.task_errors import error_of
from asyncplumber.sending import Key, key_text

#: The keyword argument that says whose a call is, for libraries whose calls have no other place.
ARGUMENT = "plumber"
QUEUE_DEADLINE = 3600.0  # seconds that a task may wait for its next attempt, beyond the pause

_log = logging.getLogger(__name__)
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def progress(data: Any, *, raise_on_cancel: bool = False) -> None:
    """
    Tell the account of the task that runs here how far it is.

    Does nothing in a task that is not announced.

    Args:
        data: Bytes and text are sent as they are, all else as JSON.
        raise_on_cancel: Whether to raise if somebody asked the task to stop.

    Raises:
        TaskCanceled: Somebody did.  It is no ``Exception``.  A task that it leaves ends as
            canceled, and its queue does not try it again.
    """
    task = current_task()
    if task is not None:
        task.progress(data, raise_on_cancel=raise_on_cancel)


def is_canceled() -> bool:
    """Return whether somebody asked the task that runs here to stop."""
    task = current_task()
    return task is not None and task.canceled


class Address(NamedTuple):
    """
    Whose a task is.

    Attributes:
        account: Who waits for it.
        task: Its name within the account.
        run: The id of the run; None if the plumber is to give it one.
    """

    account: str
    task: str
    run: str | None


def for_account(account: Key, task: Key | None = None, run: str | None = None) -> dict[str, Any]:
    """
    Return what says whose a task is, where a library has room for it.

    Args:
        account: Who waits for the task.
        task: Its name within the account; None takes the id that the library gives it.
        run: The id of the run, if the plumber has begun it (``Plumber-Run``).  None takes the
            library's id.
    """
    names = {"account": account, "task": task, "run": run}
    return {name: key_text(name, value) for name, value in names.items() if value is not None}


def for_call(account: Key, task: Key | None = None, run: str | None = None) -> dict[str, Any]:
    """
    Return the same as a keyword argument: ``work(7, **for_call("42"))``.

    The function does not get it.
    """
    return {ARGUMENT: for_account(account, task, run)}


def address_in(place: Any, id: str) -> Address | None:
    """
    Return whose a task is, None if nothing says that.

    Args:
        place: Where `for_account` put it.
        id: The id that the library gave the task.
    """
    account = place.get("account") if isinstance(place, Mapping) else None
    if account is None or account == "":
        return None
    task, run = place.get("task"), place.get("run")
    return Address(str(account), str(task or id), str(run or id))


def address_in_call(arguments: Mapping[str, Any], id: str) -> Address | None:
    """Return whose a call is, None if its keyword arguments do not say it; see `for_call`."""
    return address_in(arguments.get(ARGUMENT), id)


def guarded(
    method: Callable[_Parameters, _Result],
) -> Callable[_Parameters, _Result | None]:
    """
    Return a hook that raises nothing: what goes wrong in it is logged, and it returns None.

    A hook that raises would change the outcome of a task.
    """

    @wraps(method)
    def call(*args: _Parameters.args, **options: _Parameters.kwargs) -> _Result | None:
        try:
            return method(*args, **options)
        except Exception:
            _log.exception("a task is not announced")
            return None

    return call


class Attempt:
    """
    One attempt at a task, as a worker makes it.

    Attributes:
        run: What reports.
    """

    def __init__(self, run: TaskRun, tracebacks: bool) -> None:
        self.run = run
        self._tracebacks = tracebacks
        self._is_entered = False

    def start(self) -> None:
        """Report that it starts; from now on it beats, and is the current task."""
        self.run.__enter__()
        self._is_entered = True

    def succeed(self, result: Any) -> None:
        """End the run with its result."""
        self.run.complete(result)
        self.release()

    def fail(self, error: BaseException) -> None:
        """End the run as failed, or as canceled if the task stopped because it was asked to."""
        if isinstance(error, TaskCanceled) or type(error).__name__ == "CancelledError":
            self.run.abort(error_of(error, traceback=False))
        else:
            self.run.fail(error)
        self.release()

    def give_up(self, type: str, message: str) -> None:
        """End the run as failed, where there is no exception."""
        self.run.fail({"type": type, "message": message})
        self.release()

    def cancel(self, type: str, message: str) -> None:
        """End the run as canceled."""
        self.run.abort({"type": type, "message": message})
        self.release()

    def retry(
        self, error: BaseException | None, *, number: int | None = None, delay: float = 0.0
    ) -> None:
        """
        Report that another attempt follows.

        Args:
            error: Why this one is not the last one.
            number: How many attempts there were.
            delay: Seconds until the next one.  It has an hour more than that to begin.
        """
        if isinstance(error, TaskCanceled):
            self.fail(error)  # whoever waits is told now; what the queue does is its own affair
            return
        said: dict[str, Any] = {"retry": number} if number is not None else {"retry": True}
        if error is not None:
            said["error"] = error_of(error, traceback=self._tracebacks)
        self.run.pause(said, deadline=delay + QUEUE_DEADLINE)
        self.release()

    def release(self) -> None:
        """Be no longer the current task.  It beats no more."""
        self.run.stop_beats()
        if self._is_entered:
            self._is_entered = False
            self.run.leave()


class Announcer:
    """
    How an integration reports.

    Attributes:
        outbox: Sends the reports, in the background.
    """

    def __init__(
        self,
        outbox: Outbox | None = None,
        *,
        tracebacks: bool = False,
        deadline: float = DEADLINE,
        beat_interval: float = BEAT_INTERVAL,
    ) -> None:
        """
        Args:
            outbox: Sends the reports; None makes one as the environment says.
            tracebacks: Whether a failure includes its traceback, which shows your code to
                subscribers.
            deadline: Seconds without a report after which a run counts as lost.
            beat_interval: Seconds between two reports that an attempt goes on.

        Raises:
            ValueError: The URL or the token in the environment cannot be used.
        """
        self.outbox = Outbox() if outbox is None else outbox
        self._tracebacks = tracebacks
        self._options = {"deadline": deadline, "beat_interval": beat_interval}

    def attempt(self, address: Address) -> Attempt:
        """Return an attempt that reports nothing yet."""
        run = self.outbox.task(
            address.account,
            address.task,
            run=address.run,
            tracebacks=self._tracebacks,
            **self._options,
        )
        return Attempt(run, self._tracebacks)

    def begin(self, address: Address) -> Attempt:
        """Return an attempt that has started."""
        attempt = self.attempt(address)
        attempt.start()
        return attempt


@cache
def default_announcer() -> Announcer:
    """Return the announcer that the environment describes, one for all integrations."""
    return Announcer()
