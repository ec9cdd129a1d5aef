"""
The history in MongoDB: how it is written.

One writer per process, one insert under way at a time: whatever is appended meanwhile goes into the
next.  The writer caches the head of an account and inserts the numbers after it.  The unique index
says if the cached head is out of date; then the writer looks it up, and numbers anew.

The index can only say so while the events after that head are there.  So a cached head is trusted
for a limited time, and events are deleted later than that after the floor was raised.

Why nobody ever sees a hole: the number n+1 is only inserted by who knows that n exists.  That
knowledge ends with the connection it came by, because a server that was killed may have forgotten
n.  A late insert, of a time when we had given up waiting, finds its numbers taken or is their
first; both are well.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import bson
from pymongo.errors import AutoReconnect
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from asyncplumber.errors import PlumberError, TooLarge, Unavailable
from asyncplumber.event import Draft, Event, Stored
from asyncplumber.stores.mongo.barrier import FLUSH, REMEMBERED, Barrier
from asyncplumber.stores.mongo.heads import Place, Places
from asyncplumber.stores.mongo.link import PATIENCE, RETRY_PAUSE, MongoLink
from asyncplumber.stores.mongo.queue import Queue, Slot
from asyncplumber.stores.retention import Retention

HEAD_LIFETIME = 60.0  # seconds that a cached head is trusted without another look
# Seconds from raising a floor to deleting the events below it: an insert that relies on a cached
# head has arrived by then.
DELETE_DELAY = HEAD_LIFETIME + 2 * PATIENCE
_DUPLICATE = 11000
_PLACE = {"account": 1, "epoch": 1, "seq": 1}
DOCUMENT_BYTES = (
    16 * 1024 * 1024 - 64 * 1024
)  # MongoDB's limit, less what the insert around it needs


def as_event(row: dict[str, Any]) -> Event:
    """The event in a document."""
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


class Appender:
    """The one writer of a process."""

    _log = Logger()

    def __init__(
        self, link: MongoLink, places: Places, barrier: Barrier, retention: Retention, clock: Any
    ) -> None:
        self._link = link
        self._places = places
        self._barrier = barrier
        self._retention = retention
        self._clock = clock
        self._slack = retention.length + retention.length // 10
        # Seconds that a cached head is trusted.  Events are not deleted before they have the age.
        self._lifetime = max(0.0, min(HEAD_LIFETIME, retention.age - 2 * PATIENCE))
        # The place, when it was looked up, and when it was last known to be right.
        self._heads: OrderedDict[str, tuple[Place, float, float]] = OrderedDict()
        self._doomed: deque[tuple[float, tuple[str, str, int]]] = deque()  # when to delete what
        self._generation = -1
        self._queue = Queue()
        self._working = False
        self._untrimmed: dict[str, None] = {}
        self._trimming = False

    def append(self, drafts: Sequence[Draft]) -> Deferred[list[Stored | PlumberError]]:
        """As `IHistory` says."""
        answer = self._queue.put(drafts)
        if not self._working and self._queue:
            self._working = True
            self._link.call(self._work).addErrback(self._gave_up)
        return answer

    def _gave_up(self, failure: Any) -> None:
        """The store is away: nobody who waits in the queue would fare better."""
        self._working = False
        if not failure.check(PlumberError):
            self._log.failure("an append went wrong", failure)
        self._queue.fail(failure.value if failure.check(PlumberError) else Unavailable())

    async def _work(self, deadline: float) -> None:
        """Store what waits.  What comes meanwhile is another call, with its own time limit."""
        pause, slots = self._queue.take()
        if pause:
            await self._link.pause(pause)
        elif slots:
            await self._store(deadline, slots)
        if self._queue:
            self._link.call(self._work).addErrback(self._gave_up)
        else:
            self._working = False
        self._trim_soon()

    async def _store(self, deadline: float, batch: list[Slot]) -> None:
        slots = [slot for slot in batch if not self._too_large(slot)]
        found: list[
            tuple[Slot, Stored]
        ] = []  # by looking, not by inserting: not known to be durable yet
        while slots or found:
            try:
                generation = await self._link.writer_generation(deadline)
                if generation != self._generation:
                    # What was known, and what was found, may be gone.
                    self._heads.clear()
                    self._generation = generation
                    slots, found = [slot for slot in batch if slot.waits], []
                if slots:
                    await self._know(deadline, slots)
                    # It may have been reconnected meanwhile; what follows is sent without waiting.
                    if await self._link.writer_generation(deadline) == generation:
                        slots = await self._insert(deadline, slots, found)
                else:
                    await self._link.write_once(deadline, FLUSH)
                    if await self._link.writer_generation(deadline) == generation:
                        self._found(found)
                        found = []
            except AutoReconnect:
                # Lost on the way there, or on the way back?  The next attempt is by a new
                # connection, and finds out.
                await self._link.pause(RETRY_PAUSE)

    def _found(self, found: list[tuple[Slot, Stored]]) -> None:
        """These turned out to be in the history, and are durable now."""
        self._barrier.learn((stored.event.account, stored.event.cursor) for _, stored in found)
        for slot, stored in found:
            slot.settle(stored)

    def _too_large(self, slot: Slot) -> bool:
        draft = slot.draft
        large = len(draft.payload) + 4 * sum(map(len, draft[:6])) > DOCUMENT_BYTES
        if large:
            slot.settle(TooLarge())
        return large

    async def _know(self, deadline: float, slots: Iterable[Slot]) -> None:
        """
        Look up the heads that are not known, or were not looked up for so long that the account may
        be forgotten.
        """
        now = self._link.reactor.seconds()
        oldest, unsafe = now - self._retention.numbering / 8, now - self._lifetime
        heads = self._heads
        wanted = {slot.draft.account for slot in slots}
        unknown = [
            account
            for account in wanted
            if account not in heads or heads[account][1] < oldest or heads[account][2] < unsafe
        ]
        if unknown:
            for account, place in (
                await self._places.used(deadline, unknown, self._clock.seconds(), fresh=True)
            ).items():
                heads[account] = place, now, now
        for account in wanted:
            heads.move_to_end(account)
        while len(heads) > max(REMEMBERED, len(wanted)):
            heads.popitem(last=False)

    async def _insert(
        self, deadline: float, slots: list[Slot], found: list[tuple[Slot, Stored]]
    ) -> list[Slot]:
        """
        One insert.  Answers the slots that are left; `found` gains what turned out to be there.
        """
        events = self._numbered(slots)
        stored_at = datetime.fromtimestamp(self._clock.seconds(), UTC)
        rows = [
            {"_id": slot.id, "key": slot.draft.key, "stored_at": stored_at, **event._asdict()}
            for slot, event in zip(slots, events, strict=True)
        ]
        sent = self._link.reactor.seconds()
        try:
            answer = await self._link.write_once(
                deadline, {"insert": "events", "documents": rows, "ordered": True}
            )
        except ValueError:
            # Not BSON, so nothing was sent.
            return [slot for slot, row in zip(slots, rows, strict=True) if _fits(slot, row)]
        count = answer["n"]
        self._kept(slots[:count], events[:count], sent)
        if count == len(slots):
            return []
        return await self._stumbled(deadline, answer["writeErrors"][0], slots[count:], found)

    def _numbered(self, slots: list[Slot]) -> list[Event]:
        heads: dict[str, int] = {}
        events: list[Event] = []
        for slot in slots:
            account, id, _, type, time, content_type, payload = slot.draft
            place = self._heads[account][0]
            heads[account] = seq = heads.get(account, place.head) + 1
            events.append(Event(account, place.epoch, seq, id, type, time, content_type, payload))
        return events

    def _kept(self, slots: list[Slot], events: list[Event], sent: float) -> None:
        """These are durable, and were sent at that time."""
        for event in events:
            place, looked, _ = self._heads[event.account]
            self._heads[event.account] = place._replace(head=event.seq), looked, sent
            if event.seq - place.floor > self._slack:
                self._untrimmed[event.account] = None
        cursors = {event.account: event.cursor for event in events}
        self._barrier.learn(cursors.items())
        self._queue.won(cursors)
        for slot, event in zip(slots, events, strict=True):
            slot.settle(Stored(event, False))

    async def _stumbled(
        self,
        deadline: float,
        error: dict[str, Any],
        slots: list[Slot],
        found: list[tuple[Slot, Stored]],
    ) -> list[Slot]:
        """The first of `slots` could not be inserted."""
        account = slots[0].draft.account
        if error["code"] != _DUPLICATE:
            self._log.error(
                "MongoDB refuses an event (code {code}): {text}",
                code=error["code"],
                text=error.get("errmsg", "")[:200],
            )
            slots[0].settle(PlumberError("this event cannot be stored"))
            return slots[1:]
        self._heads.pop(account, None)
        if error.get("keyPattern") == _PLACE:
            self._queue.lost(account)
            return slots
        same = [slot for slot in slots if slot.draft.account == account]
        left = set(map(id, await self._look(deadline, same, found)))
        return [slot for slot in slots if slot.draft.account != account or id(slot) in left]

    async def _look(
        self, deadline: float, slots: list[Slot], found: list[tuple[Slot, Stored]]
    ) -> list[Slot]:
        """
        Find what is in the history already: stored before, or by an attempt of ours whose answer
        was lost.
        """
        left: list[Slot] = []
        by_account: dict[str, list[Slot]] = {}
        for slot in slots:
            by_account.setdefault(slot.draft.account, []).append(slot)
        for account, some in by_account.items():
            match = {"account": account, "key": {"$in": [slot.draft.key for slot in some]}}
            pipeline = [{"$match": match}, self._places.rows([account])]
            question = {
                "aggregate": "events",
                "pipeline": pipeline,
                "cursor": {"batchSize": len(some) + 1},
            }
            rows = await self._link.rows(deadline, question, fresh=True)
            row = next((row["row"] for row in rows if "row" in row), {"epoch": "", "floor": 0})
            there = {each["key"]: each for each in rows if "row" not in each}
            dead = [
                each["_id"]
                for each in there.values()
                if each["epoch"] != row["epoch"] or each["seq"] <= row["floor"]
            ]
            if dead:
                # Below the floor is nothing, whatever lies there: not deleted yet, or inserted too
                # late.  It gives its key away and keeps its place, see `DELETE_DELAY`.
                updates = [{"q": {"_id": id}, "u": {"$set": {"key": id}}} for id in dead]
                await self._link.change(deadline, {"update": "events", "updates": updates})
            for slot in some:
                before = there.get(slot.draft.key)
                if before is None or before["_id"] in dead:
                    left.append(slot)
                else:
                    found.append((slot, Stored(as_event(before), before["_id"] != slot.id)))
        return left

    def _trim_soon(self) -> None:
        """Trim what became too long, when nobody waits for it."""
        if (self._untrimmed or self._is_due()) and not self._trimming:
            self._trimming = True
            self._link.call(self._trim).addErrback(
                lambda failure: failure.trap(Unavailable) and None
            )

    async def _trim(self, deadline: float) -> None:
        try:
            while self._untrimmed:
                await self._shorten(deadline, list(self._untrimmed))
            await self._delete_due(deadline)
        finally:
            self._trimming = False

    async def trim_all(self, deadline: float) -> int:
        """
        Trim all accounts written by this process to the exact length.

        Returns:
            The number of events that cannot be read any more.
        """
        await self._delete_due(deadline)
        return await self._shorten(deadline, list(self._heads))

    async def _shorten(self, deadline: float, accounts: Iterable[str]) -> int:
        """Raise the floors of accounts that are too long; their events are deleted later."""
        forgotten = 0
        floors = []
        for account in accounts:
            self._untrimmed.pop(account, None)
            place = self._heads[account][0] if account in self._heads else None
            if place is not None and place.head - place.floor > self._retention.length:
                forgotten += place.head - self._retention.length - place.floor
                floors.append((account, place.epoch, place.head - self._retention.length))
        await self._raise_floors(deadline, floors)
        due = self._link.reactor.seconds() + DELETE_DELAY
        self._doomed.extend((due, floor) for floor in floors)
        return forgotten

    def _is_due(self) -> bool:
        return bool(self._doomed) and self._doomed[0][0] <= self._link.reactor.seconds()

    async def _delete_due(self, deadline: float) -> None:
        """Delete the events below floors that were raised long enough ago."""
        while self._is_due():
            await self._delete(deadline, [self._doomed[0][1]])
            self._doomed.popleft()

    async def forget(self, deadline: float, floors: Sequence[tuple[str, str, int]]) -> int:
        """
        Raise the floors of these (account, epoch), and delete what is below.

        Only for events that are older than the age, see `DELETE_DELAY`.  In this order, and the
        floors durably: the largest number of an account may go, and then only its floor remembers
        it.

        Returns:
            The number of events deleted.
        """
        await self._raise_floors(deadline, floors)
        return await self._delete(deadline, floors)

    async def _raise_floors(self, deadline: float, floors: Sequence[tuple[str, str, int]]) -> None:
        if not floors:
            return
        updates = [
            {"q": {"_id": account, "epoch": epoch}, "u": {"$max": {"floor": seq}}}
            for account, epoch, seq in floors
        ]
        await self._link.change(
            deadline, {"update": "accounts", "updates": updates, "ordered": False}
        )
        for account, epoch, seq in floors:
            place, looked, known = self._heads.get(account, (None, 0.0, 0.0))
            if place is not None and place.epoch == epoch:
                place = place._replace(floor=max(place.floor, seq), head=max(place.head, seq))
                self._heads[account] = place, looked, known

    async def _delete(self, deadline: float, floors: Sequence[tuple[str, str, int]]) -> int:
        if not floors:
            return 0
        deletes = [
            {"q": {"account": account, "epoch": epoch, "seq": {"$lte": seq}}, "limit": 0}
            for account, epoch, seq in floors
        ]
        answer = await self._link.change(
            deadline, {"delete": "events", "deletes": deletes, "ordered": False}
        )
        return int(answer["n"])


def _fits(slot: Slot, row: dict[str, Any]) -> bool:
    """Whether the row can be sent at all; if not, that is this slot's answer."""
    try:
        bson.encode(row)
    except ValueError:
        slot.settle(PlumberError("this event cannot be stored"))
        return False
    return True
