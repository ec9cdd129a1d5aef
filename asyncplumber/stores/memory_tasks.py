"""Tasks and callback URLs in this process's memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from asyncplumber.clocks import TimeSource
from asyncplumber.event import Position
from asyncplumber.interfaces import (
    REMEMBERED_URL,
    CallbackUrl,
    Claim,
    Claimed,
    ICallbackUrls,
    ITasks,
)
from asyncplumber.stores.task_changes import (
    can_follow,
    claimed,
    in_new_epoch,
    is_same,
    moved_by,
    with_changes,
)
from asyncplumber.task import Task


@implementer(ITasks)
class MemoryTasks:
    """The tasks of a memory store."""

    def __init__(self, clock: TimeSource) -> None:
        self._clock = clock
        self._tasks: dict[tuple[str, str], Task] = {}
        self._leases: dict[tuple[str, str], float] = {}  # until when somebody dispatches it
        self._present_until: float | None = None  # an instance was there until then

    def claim(self, claim: Claim) -> Deferred[Claimed]:
        now, place = self._clock.seconds(), (claim.account, claim.key)
        found = self._tasks.get(place)
        if found is not None and not can_follow(found, claim.run):
            return succeed(Claimed(found, False))
        task = self._tasks[place] = claimed(claim, found, now)
        self._leases[place] = now + claim.lease
        return succeed(Claimed(task, True))

    def get(self, account: str, key: str) -> Deferred[Task | None]:
        return succeed(self._tasks.get((account, key)))

    def of_account(
        self, account: str, limit: int, *, live_only: bool = False
    ) -> Deferred[list[Task]]:
        found = [
            replace(task, input=None)
            for (owner, _), task in self._tasks.items()
            if owner == account and not (live_only and task.is_done)
        ]
        found.sort(key=lambda task: (task.is_done, -task.submitted_at, task.key))
        return succeed(found[:limit])

    def change(
        self,
        task: Task,
        changes: Mapping[str, Any],
        *,
        deadline_in: float | None = None,
        lease: float | None = None,
        overdue_only: bool = False,
    ) -> Deferred[Task | None]:
        now, place = self._clock.seconds(), (task.account, task.key)
        found = self._tasks.get(place)
        if found is None or not is_same(found, task, changes, now if overdue_only else None):
            return succeed(None)
        if lease is not None:
            self._leases[place] = now + lease
        changed = self._tasks[place] = with_changes(found, changes, now, deadline_in)
        if changed.is_done:
            self._leases.pop(place, None)
        return succeed(changed)

    def overdue(self, limit: int) -> Deferred[list[Task]]:
        now = self._clock.seconds()
        late = [
            (task.deadline, task)
            for task in self._tasks.values()
            if task.deadline is not None and task.deadline < now
        ]
        late.sort(key=lambda pair: pair[0])
        return succeed([task for _, task in late[:limit]])

    def undispatched(self, limit: int, lease: float) -> Deferred[list[Task]]:
        now = self._clock.seconds()
        places = [
            place
            for place, task in self._tasks.items()
            if task.input is not None and self._leases.get(place, 0.0) <= now
        ][:limit]
        for place in places:
            self._leases[place] = now + lease
        return succeed([self._tasks[place] for place in places])

    def unannounced(self, limit: int, older_than: float) -> Deferred[list[Task]]:
        horizon = self._clock.seconds() - older_than
        found = [
            task
            for task in self._tasks.values()
            if not task.is_announced and task.updated_at <= horizon
        ]
        found.sort(key=lambda task: task.updated_at)
        return succeed(found[:limit])

    def extend(self, seconds: float, longer_than: float) -> Deferred[float]:
        now = self._clock.seconds()
        self._present_until, moved = moved_by(self._present_until, now, seconds, longer_than)
        if moved:
            for place, task in self._tasks.items():
                if task.deadline is not None:
                    self._tasks[place] = replace(task, deadline=task.deadline + moved)
        if moved < 0:
            self._leases = {place: until + moved for place, until in self._leases.items()}
        return succeed(moved)

    def follow(self, positions: Mapping[str, Position], epoch: str) -> None:
        """
        Go on in a new epoch.

        Args:
            positions: How far the histories of accounts reached.
            epoch: The new one.
        """
        for place, task in self._tasks.items():
            self._tasks[place] = in_new_epoch(task, positions.get(task.account), epoch)

    def forget(self, age: float, limit: int) -> Deferred[int]:
        horizon = self._clock.seconds() - age
        old = [
            place
            for place, task in self._tasks.items()
            if task.is_announced and task.ended_at is not None and task.ended_at < horizon
        ][:limit]
        for place in old:
            del self._tasks[place]
        return succeed(len(old))


@implementer(ICallbackUrls)
class MemoryCallbackUrls:
    """The callback URLs of a memory store."""

    def __init__(self, clock: TimeSource) -> None:
        self._clock = clock
        self._urls: dict[bytes, CallbackUrl] = {}

    def add(self, url: CallbackUrl) -> Deferred[None]:
        self._urls[url.digest] = url
        return succeed(None)

    def get(self, digest: bytes) -> Deferred[CallbackUrl | None]:
        return succeed(self._urls.get(digest))

    def of_account(self, account: str, limit: int) -> Deferred[list[CallbackUrl]]:
        now = self._clock.seconds()
        found = [
            url for url in self._urls.values() if url.account == account and url.expires_at > now
        ]
        return succeed(sorted(found, key=lambda url: url.id)[:limit])

    def remove(self, account: str, id: str) -> Deferred[bool]:
        for digest, url in self._urls.items():
            if (url.account, url.id) == (account, id):
                del self._urls[digest]
                return succeed(True)
        return succeed(False)

    def expire(self, account: str, task: str, run: str, at: float) -> Deferred[None]:
        for digest, url in self._urls.items():
            if (url.account, url.task, url.run) == (account, task, run) and url.expires_at > at:
                self._urls[digest] = replace(url, expires_at=at)
        return succeed(None)

    def sweep(self) -> Deferred[int]:
        horizon = self._clock.seconds() - REMEMBERED_URL
        old = [digest for digest, url in self._urls.items() if url.expires_at < horizon]
        for digest in old:
            del self._urls[digest]
        return succeed(len(old))
