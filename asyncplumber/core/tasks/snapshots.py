"""The live tasks of an account as one notice, for subscribers that come late."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from asyncplumber.concurrency import Waiters
from asyncplumber.core.tasks.settings import MAX_LISTED
from asyncplumber.errors import Unavailable
from asyncplumber.event import Cursor
from asyncplumber.task import Task
from asyncplumber.wire.tasks import task_object, tasks_notice

MAX_SNAPSHOT_BYTES = 256 * 1024  # of the task objects in one snapshot
SNAPSHOT_TIMEOUT = 5.0  # seconds that a subscriber waits for the rows; then its stream ends
_SLOW = "the store takes too long to list the tasks"


class Snapshot(NamedTuple):
    """
    The live tasks of an account at one moment, as JSON.

    Attributes:
        objects: The task objects, the newest first.
        is_cut: Whether the store left some out.
    """

    objects: Sequence[bytes]
    is_cut: bool

    def notice(self, account: str, cursor: Cursor, room: int) -> bytes:
        """
        Return the notice ``plumber.tasks``.

        Args:
            account: The account.
            cursor: A place in the history from before the rows were read.  The snapshot includes
                every event up to there.
            room: The most bytes of task objects in it.  The rest is left out, and ``more`` is true.
        """
        taken = []
        for text in self.objects:
            room -= len(text) + 1
            if room < 0:
                break
            taken.append(text)
        is_cut = self.is_cut or len(taken) < len(self.objects)
        return tasks_notice(account, cursor, taken, is_cut=is_cut)


class _Read:
    """The reads of one account: those who ask during one share the next."""

    __slots__ = ("snapshot", "waiters")

    def __init__(self) -> None:
        self.waiters = Waiters()
        self.snapshot = Snapshot((), False)


class Snapshots:
    """
    Reads snapshots.  Subscribers of one account that come at the same time share one.

    A snapshot includes every change from before it was asked for.
    """

    def __init__(
        self,
        live_tasks: Callable[[str], Deferred[list[Task]]],
        clock: IReactorTime,
        limit: int = MAX_LISTED,
    ) -> None:
        """
        Args:
            live_tasks: Returns the live tasks of an account, the newest first.
            clock: Measures the timeout.
            limit: How many tasks ``live_tasks`` returns at most.
        """
        self._live_tasks = live_tasks
        self._clock = clock
        self._limit = limit
        self._reads: dict[str, _Read] = {}

    def read(self, account: str) -> Deferred[Snapshot]:
        """
        Return the live tasks of an account.

        The Deferred can be cancelled.  Fails with `Unavailable` while the store is away, or takes
        longer than `SNAPSHOT_TIMEOUT`.
        """
        read = self._reads.get(account)
        is_new = read is None
        if read is None:
            read = self._reads[account] = _Read()
        waiting = read.waiters.wait()
        found: Deferred[Snapshot] = waiting.addCallback(lambda _: read.snapshot)
        found.addTimeout(SNAPSHOT_TIMEOUT, self._clock, _too_slow)
        if is_new:
            Deferred.fromCoroutine(self._run(account, read))
        return found

    async def _run(self, account: str, read: _Read) -> None:
        while read.waiters:
            current, read.waiters = read.waiters, Waiters()
            try:
                rows = await self._live_tasks(account).addTimeout(SNAPSHOT_TIMEOUT, self._clock)
                objects = [task_object(row) for row in rows]
            except Exception:
                # After a timeout nobody is left: each has waited at least as long as this read.
                current.fail(Failure())
            else:
                read.snapshot = Snapshot(objects, len(rows) >= self._limit)
                current.release()
        del self._reads[account]


def _too_slow(_: object, __: float) -> Failure:
    return Failure(Unavailable(_SLOW))
