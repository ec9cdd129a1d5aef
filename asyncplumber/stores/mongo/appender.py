"""
How events get into MongoDB.

One insert of a process is under way at a time, and what is appended meanwhile goes into the next.
An insert numbers its events after the cached heads, see `asyncplumber.stores.mongo.account_writer`.
A unique index refuses a number that exists; then the head is looked up.

Why there are no holes: number n+1 is inserted only by a process that knows that n exists.  A server
that was killed may have forgotten n, so this knowledge ends with the connection by which it came,
and an insert is sent by that connection only.  An insert that arrives after we gave up either
collides, or is the first with its number; both are safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import bson
from pymongo.errors import AutoReconnect
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from asyncplumber.clocks import TimeSource
from asyncplumber.concurrency import SingleFlight
from asyncplumber.errors import PlumberError, TooLarge, Unavailable
from asyncplumber.event import Draft, Event, Stored
from asyncplumber.stores.mongo.account_writer import AccountWriters
from asyncplumber.stores.mongo.accounts import Accounts
from asyncplumber.stores.mongo.barrier import FLUSH, Barrier
from asyncplumber.stores.mongo.link import DUPLICATE_KEY, RETRY_PAUSE, Document, MongoLink
from asyncplumber.stores.mongo.pending import DraftQueue, PendingDraft, Result
from asyncplumber.stores.mongo.trimmer import Trimmer

_PLACE_INDEX = {"account": 1, "epoch": 1, "seq": 1}
# MongoDB's limit, less what the command around a document needs.
DOCUMENT_BYTES = 16 * 1024 * 1024 - 64 * 1024
# Seconds between the two clocks' views of the time that has passed.  With more, the process or its
# machine was suspended, and what it knows is older than it seems.
MAX_DRIFT = 5.0


def as_event(row: Document) -> Event:
    """Return the event in a document."""
    return Event(
        row["account"],
        row["epoch"],
        row["seq"],
        row["id"],
        row["type"],
        row["time"],
        row["content_type"],
        bytes(row["payload"]),
    )


def _is_too_large(draft: Draft) -> bool:
    return len(draft.payload) + 4 * sum(map(len, draft[:6])) > DOCUMENT_BYTES


class Appender:
    """Inserts the events of a process."""

    _log = Logger()

    def __init__(
        self,
        link: MongoLink,
        accounts: Accounts,
        barrier: Barrier,
        writers: AccountWriters,
        trimmer: Trimmer,
        wall: TimeSource,
    ) -> None:
        self._link = link
        self._accounts = accounts
        self._barrier = barrier
        self._writers = writers
        self._trimmer = trimmer
        self._wall = wall
        self._queue = DraftQueue()
        self._writing = SingleFlight(self._write_all, "an append to MongoDB")
        self._generation = -1  # of the connection by which the heads are known
        self._drift = 0.0

    def append(self, drafts: Sequence[Draft]) -> Deferred[list[Result]]:
        """Store these drafts; see `IStore.append`."""
        results = self._queue.put(drafts)
        if self._queue:
            self._writing.request()
        return results

    async def _write_all(self) -> None:
        while self._queue:
            try:
                # Each batch is a call of its own, with its own time limit.
                await self._link.call(self._write_batch)
            except PlumberError as error:
                # What waits in the queue would not fare better.
                self._queue.fail(error)
            except Exception:
                self._log.failure("an append to MongoDB failed")
                self._queue.fail(Unavailable())
            self._trimmer.trim_soon()

    async def _write_batch(self, deadline: float) -> None:
        now = self._link.clock.seconds()
        yielding = self._writers.yielding(now)
        batch = self._queue.take(yielding)
        if not batch:
            await self._link.pause(min(yielding.values()) - now)
        for pending in batch:
            if _is_too_large(pending.draft):
                pending.settle(TooLarge())
        while waiting := [pending for pending in batch if pending.is_waiting]:
            try:
                await self._attempt(deadline, waiting)
            except AutoReconnect:
                # Was it lost on the way there, or on the way back?  The next attempt finds out.
                await self._link.pause(RETRY_PAUSE)

    async def _attempt(self, deadline: float, waiting: list[PendingDraft]) -> None:
        """Get some of these drafts one step further."""
        generation = await self._link.writer_generation(deadline)
        if generation != self._generation or self._was_suspended():
            self._writers.forget_all()
            for pending in waiting:
                pending.found = None
            self._generation = generation
        missing = [pending for pending in waiting if pending.found is None]
        if missing:
            await self._load_heads(deadline, missing)
            await self._insert(generation, deadline, missing)
        else:
            await self._link.write_on(generation, deadline, FLUSH)
            self._settle_found(waiting)

    def _was_suspended(self) -> bool:
        """Return whether the steady clock stood still while time passed, or the other was set."""
        drift = self._wall.seconds() - self._link.clock.seconds()
        if abs(drift - self._drift) <= MAX_DRIFT:
            return False
        self._drift = drift
        return True

    async def _load_heads(self, deadline: float, drafts: list[PendingDraft]) -> None:
        """Look up the heads that are not known, or not trusted any more."""
        asked = self._link.clock.seconds()
        names = {pending.draft.account for pending in drafts}
        unknown = self._writers.untrusted(names, asked)
        if unknown:
            for name, account in (await self._accounts.ensure(deadline, unknown)).items():
                self._writers.loaded(name, account, asked)

    async def _insert(self, generation: int, deadline: float, drafts: list[PendingDraft]) -> None:
        """Send one insert, and settle what it stored."""
        events, totals = self._writers.numbered(drafts)
        stored_at = datetime.fromtimestamp(self._wall.seconds(), UTC)
        rows = [
            {
                "_id": pending.id,
                "key": pending.draft.key,
                "stored_at": stored_at,
                "total": total,
                **event._asdict(),
            }
            for pending, event, total in zip(drafts, events, totals, strict=True)
        ]
        sent = self._link.clock.seconds()
        body = {"insert": "events", "documents": rows, "ordered": True}
        try:
            answer = await self._link.write_on(generation, deadline, body)
        except ValueError:  # a row is not BSON, so nothing was sent
            self._refuse_unencodable(drafts, rows)
            return
        count = answer["n"]
        self._settle_stored(drafts[:count], events[:count], totals[:count], sent)
        if count < len(drafts):
            await self._handle_write_error(deadline, answer["writeErrors"][0], drafts[count:])

    def _settle_stored(
        self, drafts: list[PendingDraft], events: list[Event], totals: list[int], sent: float
    ) -> None:
        """These events were inserted, and are durable."""
        cursors = {event.account: event.cursor for event in events}
        last_totals = {event.account: total for event, total in zip(events, totals, strict=True)}
        self._writers.stored(cursors, last_totals, sent, self._link.clock.seconds())
        self._trimmer.appended(cursors)
        self._barrier.mark_durable(cursors.items())
        for pending, event in zip(drafts, events, strict=True):
            pending.settle(Stored(event, False))

    def _settle_found(self, drafts: list[PendingDraft]) -> None:
        """These events were found in the history, and are durable by now."""
        found = [(pending, stored) for pending in drafts if (stored := pending.found) is not None]
        self._barrier.mark_durable(
            (stored.event.account, stored.event.cursor) for _, stored in found
        )
        for pending, stored in found:
            pending.settle(stored)

    def _refuse_unencodable(self, drafts: list[PendingDraft], rows: list[Document]) -> None:
        for pending, row in zip(drafts, rows, strict=True):
            try:
                bson.encode(row)
            except ValueError:
                pending.settle(PlumberError("this event cannot be stored"))

    async def _handle_write_error(
        self, deadline: float, error: Document, drafts: list[PendingDraft]
    ) -> None:
        """Act on the error of the first of these drafts; the others were not tried."""
        account = drafts[0].draft.account
        if error["code"] != DUPLICATE_KEY:
            self._log.error(
                "MongoDB refuses an event (code {code}): {text}",
                code=error["code"],
                text=error.get("errmsg", "")[:200],
            )
            drafts[0].settle(PlumberError("this event cannot be stored"))
        elif error.get("keyPattern") == _PLACE_INDEX:
            self._writers.race_lost(account, self._link.clock.seconds())
        else:
            self._writers.doubted(account)
            same = [pending for pending in drafts if pending.draft.account == account]
            await self._find_duplicates(deadline, account, same)

    async def _find_duplicates(
        self, deadline: float, account: str, drafts: list[PendingDraft]
    ) -> None:
        """
        Find those drafts of an account that are in the history.

        Another call stored them before, or an earlier attempt of ours whose answer was lost.
        """
        keys = [pending.draft.key for pending in drafts]
        match = {"account": account, "key": {"$in": keys}}
        body = {
            "aggregate": "events",
            "pipeline": [{"$match": match}, self._accounts.rows([account])],
            "cursor": {"batchSize": len(drafts) + 1},
        }
        rows = await self._link.rows(deadline, body, fresh=True)
        numbering = next((row["row"] for row in rows if "row" in row), {"epoch": "", "floor": 0})
        by_key = {row["key"]: row for row in rows if "row" not in row}
        deleted = [
            row["_id"]
            for row in by_key.values()
            if row["epoch"] != numbering["epoch"] or row["seq"] <= numbering["floor"]
        ]
        if deleted:
            await self._free_keys(deadline, deleted)
        for pending in drafts:
            row = by_key.get(pending.draft.key)
            if row is not None and row["_id"] not in deleted:
                pending.found = Stored(as_event(row), row["_id"] != pending.id)

    async def _free_keys(self, deadline: float, ids: list[Any]) -> None:
        """
        Take the keys from events that count as deleted.

        They are below the floor: not deleted yet, or inserted too late.  They keep their numbers,
        see `asyncplumber.stores.mongo.trimmer`.
        """
        updates = [{"q": {"_id": id}, "u": {"$set": {"key": id}}} for id in ids]
        await self._link.change(deadline, {"update": "events", "updates": updates})
