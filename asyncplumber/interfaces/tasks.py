"""The boundary of the tasks: rows that a store changes by compare-and-set, and never by a lock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from zope.interface import Interface

from asyncplumber.task import DISPATCH_LEASE, PATIENCE, START_DEADLINE, Task


@dataclass(frozen=True, slots=True)
class Claim:
    """
    A wish to begin a run.

    Attributes:
        account: The account.
        key: The key of the task.
        run: The id of the run that would begin.
        deadline_in: Seconds until it counts as lost; `NEVER` for no deadline.
        patience: See `Task.patience`.
        input: What it is started with; None if nobody is to dispatch it.
        input_type: The content type of the input.
        digest: See `Task.digest`.
        lease: Seconds for which the instance that claims it dispatches it alone.
    """

    account: str
    key: str
    run: str
    deadline_in: float = START_DEADLINE
    patience: float = PATIENCE
    input: bytes | None = None
    input_type: str = ""
    digest: bytes = b""
    lease: float = DISPATCH_LEASE


class Claimed(NamedTuple):
    """
    The row after a claim, and whether the claim began a run.

    If not, one is live already, or one has ended and is not announced, or the run was there before.
    """

    task: Task
    began: bool


class ITasks(Interface):
    """
    The tasks of all accounts.

    A row is written by one atomic operation each time.  All times are the store's, so that the
    clocks of instances do not matter.  What was written is durable when the Deferred fires.  Every
    method may fail with `Unavailable`.
    """

    def claim(claim: Claim) -> Deferred[Claimed]:
        """
        Begin a run, which is SUBMITTED, unless one is live.

        Of any number of claims at any number of instances, one begins a run.  A run that has ended
        is replaced, and its id goes to `Task.former`; but not before its end is announced: the
        row is all that is known of an end whose instance died before its event was kept.  Then
        the row is returned as it is, and the caller announces it and claims again.  Nor is it
        replaced by a run that it knows already, as its newest one or a former one: a claim that
        comes late does not revive what has ended.
        """

    def get(account: str, key: str) -> Deferred[Task | None]:
        """Return a task; None if nobody knows it."""

    def of_account(account: str, limit: int, *, live_only: bool = False) -> Deferred[list[Task]]:
        """
        Return tasks of an account: the live ones first, in each part the newest first.

        The newest is that whose run was submitted last.  All are without their input.
        """

    def change(
        task: Task,
        changes: Mapping[str, Any],
        *,
        deadline_in: float | None = None,
        lease: float | None = None,
        overdue_only: bool = False,
    ) -> Deferred[Task | None]:
        """
        Change a row if it still has this run and this state.

        Args:
            task: The row as it was read.
            changes: Attributes of `Task` and their new values.  ``updated_at`` becomes now.  A
                ``state`` of RUNNING sets ``started_at``, if it is None; one that is done sets
                ``ended_at``, takes the deadline away and deletes the input.  With
                ``progressed_at``, nothing is changed if another progress came since the row was
                read.
            deadline_in: Seconds from now to the new deadline; `NEVER` takes it away.  None leaves
                it as it is.
            lease: Seconds from now in which no other instance dispatches the run; None leaves that
                as it is.
            overdue_only: Whether to change it only if its deadline has passed.

        Returns:
            The new row; None if another report, or another run, was faster.
        """

    def overdue(limit: int) -> Deferred[list[Task]]:
        """Return live tasks whose deadline has passed, the oldest deadline first."""

    def undispatched(limit: int, lease: float) -> Deferred[list[Task]]:
        """
        Lease live tasks that have an input and that nobody has leased, for so many seconds.

        Of several instances that ask at once, each gets others.
        """

    def unannounced(limit: int, older_than: float) -> Deferred[list[Task]]:
        """
        Return tasks that are not announced and were not changed for so many seconds.

        The instance that changed them died before their event was in the history.
        """

    def extend(seconds: float, longer_than: float) -> Deferred[float]:
        """
        Note that an instance is there, and move the deadlines if none was for some time.

        Nobody is lost because the servers were away.  The gap is added once to all deadlines, by
        the instance that finds it first.  When this returns, it was added, whoever found it: so
        call `overdue` after it.

        Args:
            seconds: Until the next call.
            longer_than: A gap that is shorter, in seconds, counts as none.

        Returns:
            The seconds by which this call moved the deadlines, 0 as a rule.  It is negative if the
            store's clock was set back by more than ``longer_than``.
        """

    def forget(age: float, limit: int) -> Deferred[int]:
        """Delete announced tasks that ended more than so many seconds ago; return how many."""
