"""What the ways in ask of tasks: start or join, look, wait, report, cancel."""

from __future__ import annotations

from typing import NamedTuple

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from asyncplumber.grant import Grant
from asyncplumber.sending import Receipt
from asyncplumber.task import Report, StartRequest, Task


class Outcome(NamedTuple):
    """
    Where a task is when the wait is over.

    Attributes:
        task: The row.
        joined: Whether a live run was there already, or a result was reused.
        age: Seconds since the end, if a result was reused; None if not.
    """

    task: Task
    joined: bool = False
    age: float | None = None


class Reported(NamedTuple):
    """
    What became of a report.

    Attributes:
        task: The row after it.
        receipt: That of its event; None if there was none: it was a beat, or is conflated.
        is_conflated: Whether it waits, and a later progress takes its place.
    """

    task: Task
    receipt: Receipt | None = None
    is_conflated: bool = False


class ITaskService(Interface):
    """The tasks of an instance.  A Deferred may be cancelled: the client has left."""

    can_start = Attribute("bool: whether there is something that executes tasks")

    def start(request: StartRequest, wait: float, grant: Grant) -> Deferred[Outcome]:
        """
        Start or join a task, and wait for its end.

        Args:
            request: What is wanted.
            wait: Seconds; 0 returns when the run is durable.
            grant: What the client may do.

        Raises:
            NoStarter: There is nothing that executes tasks.
            OtherInput: It runs with another input.
            NothingCached: The client wants no run to begin.
            InsufficientScope: The grant does not allow to start it.
            Unavailable: The store is away.  The task may have been started, and can be again.
        """

    def get(account: str, key: str, wait: float, grant: Grant) -> Deferred[Outcome]:
        """
        Return a task, when it has ended or the wait is over.

        Raises:
            UnknownTask: There is none.
        """

    def of_account(account: str, *, live_only: bool = False) -> Deferred[list[Task]]:
        """Return the tasks of an account, the live ones first; at most `MAX_LISTED`."""

    def result(task: Task) -> Deferred[Task]:
        """
        Return a row with its result, which is read from the history if the row has none.

        Raises:
            Gone: The history does not keep it any more.
        """

    def report(report: Report, grant: Grant) -> Deferred[Reported]:
        """
        Take a report.

        Raises:
            Superseded: It is of another run.
            TaskEnded: The run has ended.
        """

    def cancel(account: str, key: str) -> Deferred[Task]:
        """
        Ask that a task be canceled.

        Raises:
            UnknownTask: There is none.
            TaskEnded: It has ended.
        """
