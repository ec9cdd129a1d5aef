"""
The history in MongoDB: reading it.  For writing see `asyncplumber.stores.mongo.appender`.

An event is one document.  A number is only inserted by a process that knows that the number before
it exists, and a unique index lets it be inserted once.  So there are no holes, and no event appears
before another that a reader has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.clocks import TimeSource
from asyncplumber.event import Cursor, Draft, Event, Position
from asyncplumber.interfaces import PAGE_BYTES, HistorySize, IHistory
from asyncplumber.stores.mongo.account_writer import AccountWriters
from asyncplumber.stores.mongo.accounts import Accounts, MongoAccount
from asyncplumber.stores.mongo.appender import Appender, as_event
from asyncplumber.stores.mongo.barrier import Barrier
from asyncplumber.stores.mongo.link import MongoLink
from asyncplumber.stores.mongo.pending import Result
from asyncplumber.stores.mongo.proof import Proof
from asyncplumber.stores.mongo.trimmer import Trimmer
from asyncplumber.stores.retention import Retention, check_reach

# Events of the first question of a page.  They tell how large events are, before more are fetched.
FIRST_READ = 16


def indexes(retention: Retention) -> list[tuple[str, dict[str, Any]]]:
    """Return the collections and indexes that the promises rest on."""
    recent, numbering = int(retention.recent), int(retention.numbering)
    return [
        ("events", {"name": "place", "key": {"account": 1, "epoch": 1, "seq": 1}, "unique": True}),
        ("events", {"name": "key", "key": {"account": 1, "key": 1}, "unique": True}),
        ("events", {"name": "stored_at", "key": {"stored_at": 1}}),
        ("epochs", {"name": "began", "key": {"began": 1}, "expireAfterSeconds": recent}),
        ("accounts", {"name": "touched", "key": {"touched": 1}, "expireAfterSeconds": numbering}),
    ]


def _reaches(account: MongoAccount, cursor: Cursor) -> bool:
    """Return whether what comes after `cursor` can be read, or has yet to come."""
    return cursor.epoch == account.epoch and account.floor <= cursor.seq <= account.head


def _cursors(accounts: Mapping[str, MongoAccount]) -> dict[str, Cursor]:
    """
    Return what has to be durable.

    The state of accounts without events is one for all: it has a name that no account has.
    """
    return {name if account.has_row else "": account.cursor for name, account in accounts.items()}


@implementer(IHistory)
class MongoHistory:
    """A history that all instances with the same database share."""

    def __init__(
        self,
        link: MongoLink,
        retention: Retention,
        wall: TimeSource,
        uniform: Callable[[float, float], float],
    ) -> None:
        """
        Args:
            link: The connection.
            retention: How much history is kept.
            wall: The time of day.
            uniform: Returns a random number between two.
        """
        self._link = link
        self._wall = wall
        self._accounts = Accounts(link, retention, wall)
        self._barrier = Barrier(link)
        self._proof = Proof(link, self._accounts)
        writers = AccountWriters(retention, self._accounts.mark_interval, uniform)
        self._trimmer = Trimmer(link, retention, writers)
        self._appender = Appender(link, self._accounts, self._barrier, writers, self._trimmer, wall)

    def append(self, drafts: Sequence[Draft]) -> Deferred[list[Result]]:
        """Store these drafts; see `IStore.append` and `Appended.results`."""
        return self._appender.append(drafts)

    def ensure(self, account: str) -> Deferred[Position]:
        async def work(deadline: float) -> Position:
            return (await self._state(deadline, account)).position

        return self._link.call(work)

    def heads(self, accounts: Collection[str]) -> Deferred[dict[str, Cursor]]:
        async def work(deadline: float) -> dict[str, Cursor]:
            states = await self._barrier.read_durable(
                deadline, lambda: self._states(deadline, accounts), _cursors
            )
            return {name: state.cursor for name, state in states.items()}

        return self._link.call(work)

    def size(self) -> Deferred[HistorySize]:
        """Return the size.  The server knows it, and counts nothing."""

        async def work(deadline: float) -> HistorySize:
            answer = await self._link.command(deadline, {"collStats": "events"})
            return HistorySize(int(answer.get("count", 0)), int(answer.get("size", 0)))

        return self._link.call(work)

    async def _state(self, deadline: float, account: str) -> MongoAccount:
        states = await self._barrier.read_durable(
            deadline, lambda: self._states(deadline, [account]), _cursors
        )
        return states[account]

    async def _states(self, deadline: float, accounts: Collection[str]) -> dict[str, MongoAccount]:
        """Return the states of all these accounts; those without events share one."""
        found = await self._accounts.find_marked(deadline, accounts)
        if len(found) < len(accounts):
            epoch = await self._accounts.epochs.current(deadline)
            unused = MongoAccount(epoch, 0, 0, has_row=False)
            found.update((name, unused) for name in accounts if name not in found)
        return found

    def read(
        self, account: str, cursor: Cursor, upto: int | None, limit: int, size: int = PAGE_BYTES
    ) -> Deferred[list[Event]]:
        async def work(deadline: float) -> list[Event]:
            return await self._barrier.read_durable(
                deadline,
                lambda: self._read(deadline, account, cursor, upto, limit, min(size, PAGE_BYTES)),
                lambda page: {account: page[-1].cursor} if page else {},
            )

        return self._link.call(work)

    async def _read(
        self, deadline: float, account: str, cursor: Cursor, upto: int | None, limit: int, most: int
    ) -> list[Event]:
        page: list[Event] = []
        size = 0
        while len(page) < limit and size < most:
            # As many as seem to fit, if they are as large as those before.
            wanted = FIRST_READ if not page else max(1, (most - size) * len(page) // max(1, size))
            wanted = min(wanted, limit - len(page))
            after = Cursor(cursor.epoch, cursor.seq + len(page))
            events = await self._after(deadline, account, after, upto, wanted)
            for event in events:
                if page and size + len(event.payload) > most:
                    return await self._checked(deadline, account, cursor, page)
                size += len(event.payload)
                page.append(event)
            if len(events) < wanted:
                break
        return await self._checked(deadline, account, cursor, page)

    async def _after(
        self, deadline: float, account: str, cursor: Cursor, upto: int | None, limit: int
    ) -> list[Event]:
        """
        Return the events that follow `cursor` without a hole.

        There can be a hole while the oldest events are being deleted.
        """
        between = {"$gt": cursor.seq} if upto is None else {"$gt": cursor.seq, "$lte": upto}
        body = {
            "find": "events",
            "filter": {"account": account, "epoch": cursor.epoch, "seq": between},
            "sort": {"seq": 1},
            "limit": limit,
            "batchSize": limit,
            "singleBatch": True,
        }
        rows = await self._link.rows(deadline, body)
        return [as_event(row) for seq, row in enumerate(rows, cursor.seq + 1) if row["seq"] == seq]

    async def _checked(
        self, deadline: float, account: str, cursor: Cursor, page: list[Event]
    ) -> list[Event]:
        """
        Return the page, if the history still reaches back to `cursor`.

        This is asked after the events were read: before that, it would prove nothing.
        """
        if page:
            body = {"find": "accounts", "filter": {"_id": account}, "limit": 1}
            rows = await self._link.rows(deadline, body)
            if rows and rows[0]["epoch"] == cursor.epoch and rows[0]["floor"] <= cursor.seq:
                return page
        state = await self._state(deadline, account)
        if _reaches(state, cursor):
            return page
        is_deleted = cursor.epoch == state.epoch and cursor.seq < state.floor
        if self._link.replicated and not is_deleted:
            # A floor never sinks, so an old answer is right about it.  About the rest it may be
            # wrong.
            state = await self._proof.account(deadline, account) or state
            if _reaches(state, cursor):
                return page
        is_recent = await self._accounts.epochs.is_recent(deadline, cursor.epoch)
        check_reach(state.position, cursor, is_recent)
        return page

    def begin_epoch(self) -> Deferred[str]:
        return Deferred.fromCoroutine(self._accounts.epochs.begin())

    def sweep(self) -> Deferred[int]:
        return Deferred.fromCoroutine(self._trimmer.sweep(self._wall.seconds()))
