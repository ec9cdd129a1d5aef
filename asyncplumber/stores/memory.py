"""
A store in this process's memory; nothing lasts.

It is for tests and throw-away runs, and the measure of what the other stores cost.
"""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from typing import NamedTuple

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from asyncplumber.clocks import TimeSource
from asyncplumber.errors import PlumberError
from asyncplumber.event import Cursor, Draft, Event, Instance, Position, Stored
from asyncplumber.figures import Metric
from asyncplumber.interfaces import (
    COUNTED_HOOKS,
    LEASE,
    MAX_MEMBERS,
    PAGE_BYTES,
    Appended,
    CursorLost,
    CursorMoved,
    HistorySize,
    Hook,
    HookQuery,
    IHistory,
    IRegistry,
    IStore,
    Member,
)
from asyncplumber.stores.epochs import epoch_after, new_epoch
from asyncplumber.stores.memory_revocations import MemoryRevocations
from asyncplumber.stores.memory_tasks import MemoryCallbackUrls, MemoryTasks
from asyncplumber.stores.recipients import with_recipients
from asyncplumber.stores.retention import Retention, check_reach, hook_url


class _Log:
    """The kept events of one account; `floor` is the number before the first of them."""

    __slots__ = ("epoch", "events", "floor", "keys", "size", "times", "touched")

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self.floor = 0
        self.events: deque[Event] = deque()
        self.times: deque[float] = deque()  # when each event was stored, in seconds since 1970
        self.keys: dict[str, Event] = {}
        self.size = 0  # bytes of the payloads
        self.touched = 0.0  # when the account was last used, in seconds since 1970

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.floor + len(self.events), self.floor)

    def trim(self, retention: Retention, now: float) -> int:
        """
        Delete the events that are too many, too old or too large together.

        Returns:
            The number of events deleted.
        """
        deleted = 0
        horizon = now - retention.age
        while self.events and (
            len(self.events) > retention.length
            or self.times[0] < horizon
            or (self.size > retention.size and len(self.events) > 1)
        ):
            self.size -= len(self.events.popleft().payload)
            self.times.popleft()
            # Keys are in the order of their events, so the first key is that of the first event.
            del self.keys[next(iter(self.keys))]
            deleted += 1
        self.floor += deleted
        return deleted


class Snapshot(NamedTuple):
    """A backup of a history in memory."""

    logs: dict[str, _Log]
    epochs: list[tuple[str, float]]


@implementer(IHistory)
class MemoryHistory:
    """A history in this process's memory."""

    def __init__(
        self,
        retention: Retention,
        clock: TimeSource,
        new_epoch: Callable[[float], str] = new_epoch,
    ) -> None:
        self._retention = retention
        self._clock = clock
        self._new_epoch = new_epoch
        self._logs: dict[str, _Log] = {}
        #: Told of a new epoch, and of the positions before it.
        self.epoch_began: Callable[[dict[str, Position], str], None] = lambda *_: None
        # The epochs of accounts without events, and when each began.
        self._epochs: list[tuple[str, float]] = []

    @property
    def accounts(self) -> list[str]:
        """The accounts that have a numbering of their own."""
        return list(self._logs)

    def snapshot(self) -> Snapshot:
        """Return a backup of everything that is kept."""
        return Snapshot(deepcopy(self._logs), list(self._epochs))

    def restore(self, backup: Snapshot) -> None:
        """Lose everything that is not in this backup."""
        self._logs, self._epochs = deepcopy(backup.logs), list(backup.epochs)

    def _epoch(self, now: float) -> str:
        """Return the current epoch of accounts without events."""
        if not self._epochs or self._epochs[-1][1] < now - self._retention.renewal:
            self._epochs.append((self._new_epoch(now), now))
        return self._epochs[-1][0]

    def _used(self, account: str, now: float) -> Position:
        """Mark the account as used, and return how far its history reaches."""
        log = self._logs.get(account)
        if log is None:
            return Position(self._epoch(now), 0, 0)
        log.touched = now
        return log.position

    def _log(self, account: str, now: float) -> _Log:
        log = self._logs.get(account)
        if log is None:
            log = self._logs[account] = _Log(self._epoch(now))
        log.touched = now
        return log

    def append(self, drafts: Sequence[Draft]) -> Deferred[list[Stored | PlumberError]]:
        """Store these drafts; see `IStore.append` and `Appended.results`."""
        now = self._clock.seconds()
        length, horizon = self._retention.length, now - self._retention.age
        size = self._retention.size
        stored: list[Stored | PlumberError] = []
        placed = Event.from_draft  # a local name is found faster, and this is done for each event
        for draft in drafts:
            log = self._log(draft.account, now)
            first = log.keys.get(draft.key)
            if first is not None:
                stored.append(Stored(first, True))
                continue
            events = log.events
            event = placed(draft, log.epoch, log.floor + len(events) + 1)
            events.append(event)
            log.times.append(now)
            log.keys[draft.key] = event
            log.size += len(draft.payload)
            if len(events) > length or log.size > size or log.times[0] < horizon:
                log.trim(self._retention, now)
            stored.append(Stored(event, False))
        return succeed(stored)

    def ensure(self, account: str) -> Deferred[Position]:
        now = self._clock.seconds()
        if (log := self._logs.get(account)) is not None:
            log.trim(self._retention, now)
        return succeed(self._used(account, now))

    def heads(self, accounts: Collection[str]) -> Deferred[dict[str, Cursor]]:
        now = self._clock.seconds()
        return succeed({name: self._used(name, now).cursor for name in accounts})

    def read(
        self, account: str, cursor: Cursor, upto: int | None, limit: int, size: int = PAGE_BYTES
    ) -> Deferred[list[Event]]:
        now = self._clock.seconds()
        position = self._used(account, now)
        horizon = now - self._retention.recent
        recent = any(epoch == cursor.epoch and began >= horizon for epoch, began in self._epochs)
        try:
            check_reach(position, cursor, recent)
        except (CursorLost, CursorMoved) as error:
            return fail(error)
        if not position.head:
            return succeed([])
        log = self._logs[account]
        last = position.head if upto is None else min(upto, position.head)
        page: list[Event] = []
        left = min(size, PAGE_BYTES)
        begin = cursor.seq - position.floor
        for index in range(begin, min(last - position.floor, begin + limit)):
            event = log.events[index]
            left -= len(event.payload)
            if page and left < 0:
                break
            page.append(event)
        return succeed(page)

    def begin_epoch(self) -> Deferred[str]:
        now = self._clock.seconds()
        newest = max((log.epoch for log in self._logs.values()), default="")
        epoch = epoch_after(newest, now, self._new_epoch)
        self._epochs = [(epoch, now)]
        self.epoch_began({name: log.position for name, log in self._logs.items()}, epoch)
        for log in self._logs.values():
            log.epoch = epoch
            log.events = deque(event._replace(epoch=epoch) for event in log.events)
            log.keys = {key: event._replace(epoch=epoch) for key, event in log.keys.items()}
        return succeed(epoch)

    def size(self) -> Deferred[HistorySize]:
        kept = [event for log in self._logs.values() for event in log.events]
        return succeed(HistorySize(len(kept), sum([len(event.payload) for event in kept])))

    def sweep(self) -> Deferred[int]:
        now = self._clock.seconds()
        deleted = 0
        self._epochs = [
            (epoch, began) for epoch, began in self._epochs if began >= now - self._retention.recent
        ]
        for name, log in list(self._logs.items()):
            deleted += log.trim(self._retention, now)
            if not log.events and log.touched < now - self._retention.numbering:
                del self._logs[name]
        return succeed(deleted)


@implementer(IRegistry)
class MemoryRegistry:
    """
    A registry in this process's memory.

    Instances that use the same object see each other.
    """

    def __init__(self, lease: float, clock: TimeSource) -> None:
        self._lease = lease
        self._clock = clock
        self._rows: dict[str, tuple[Instance, float]] = {}
        self._hooks: dict[str, dict[str, None]] = {}
        self._renewals = 0

    def _put(self, instance: Instance) -> Instance:
        self._renewals += 1
        row = instance._replace(lease=str(self._renewals))
        self._rows[instance.id] = row, self._clock.seconds() + self._lease
        return row

    def _remove_hooks(self, id: str) -> None:
        for account in [account for account, ids in self._hooks.items() if id in ids]:
            self._remove_hook(id, account)

    def _remove_hook(self, id: str, account: str) -> None:
        ids = self._hooks.get(account)
        if ids is not None:
            ids.pop(id, None)
            if not ids:
                del self._hooks[account]

    def add_instance(self, instance: Instance) -> Deferred[Instance]:
        self._remove_hooks(instance.id)
        return succeed(self._put(instance))

    def renew(self, instance: Instance) -> Deferred[Instance | None]:
        return succeed(self._put(instance) if instance.id in self._rows else None)

    def remove_instance(self, instance: Instance) -> Deferred[None]:
        self._remove_hooks(instance.id)
        self._rows.pop(instance.id, None)
        return succeed(None)

    def register(self, instance: Instance, accounts: Collection[str]) -> Deferred[None]:
        for account in accounts:
            self._hooks.setdefault(account, {})[instance.id] = None
        return succeed(None)

    def unregister(self, instance: Instance, accounts: Collection[str]) -> Deferred[None]:
        for account in accounts:
            self._remove_hook(instance.id, account)
        return succeed(None)

    def instances(self, accounts: Collection[str]) -> Deferred[dict[str, list[Instance]]]:
        now = self._clock.seconds()
        wanted: dict[str, list[Instance]] = {}
        for account in accounts:
            rows = [self._rows[id] for id in self._hooks.get(account, ()) if id in self._rows]
            alive = [instance for instance, expires in rows if expires > now]
            if alive:
                wanted[account] = alive
        return succeed(wanted)

    def prune(self, instance: Instance) -> Deferred[bool]:
        row = self._rows.get(instance.id)
        if row is None or row[0].lease != instance.lease:
            return succeed(False)
        self._remove_hooks(instance.id)
        del self._rows[instance.id]
        return succeed(True)

    def sweep(self) -> Deferred[int]:
        now = self._clock.seconds()
        dead = [instance for instance, expires in self._rows.values() if expires <= now]
        for instance in dead:
            self._remove_hooks(instance.id)
            del self._rows[instance.id]
        return succeed(len(dead))

    def members(self, limit: int = MAX_MEMBERS) -> Deferred[list[Member]]:
        now = self._clock.seconds()
        counts = Counter(id for ids in self._hooks.values() for id in ids)
        return succeed(
            [
                Member(instance, expires - now, min(counts[id], COUNTED_HOOKS))
                for id, (instance, expires) in sorted(self._rows.items())[:limit]
            ]
        )

    def hooks(self, query: HookQuery) -> Deferred[list[Hook]]:
        prefix, owner, after, limit = query
        found = sorted(
            self._hook(account, id)
            for account, ids in self._hooks.items()
            if account.startswith(prefix)
            for id in ids
            if owner is None or id == owner
        )
        return succeed([hook for hook in found if after is None or hook[:2] > after[:2]][:limit])

    def _hook(self, account: str, id: str) -> Hook:
        row = self._rows.get(id)
        return Hook(account, id, hook_url(row[0], account) if row is not None else "")


@implementer(IStore)
class MemoryStore:
    """All that a store keeps, in this process's memory."""

    def __init__(
        self,
        retention: Retention,
        clock: TimeSource,
        *,
        lease: float = LEASE,
        shared: bool = False,
        new_epoch: Callable[[float], str] = new_epoch,
    ) -> None:
        """
        Args:
            retention: How much history it keeps.
            clock: The time of day.
            lease: Seconds that an instance counts after its last renewal.
            shared: Whether several instances use this object, as tests do.
            new_epoch: Names an epoch that begins at a time in seconds.
        """
        self.history = MemoryHistory(retention, clock, new_epoch)
        self.registry = MemoryRegistry(lease, clock)
        self.revocations = MemoryRevocations(clock)
        self.tasks = MemoryTasks(clock)
        self.history.epoch_began = self.tasks.follow
        self.callback_urls = MemoryCallbackUrls(clock)
        self.shared = shared
        self.figures: Sequence[Metric] = ()
        self._secret = secrets.token_hex(32).encode("ascii")

    def append(self, drafts: Sequence[Draft]) -> Deferred[Appended]:
        return with_recipients(self.history.append(drafts), self.registry if self.shared else None)

    def secret(self) -> Deferred[bytes]:
        return succeed(self._secret)

    def start(self) -> Deferred[None]:
        return succeed(None)

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def ping(self) -> Deferred[None]:
        return succeed(None)
