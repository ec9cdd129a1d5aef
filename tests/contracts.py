"""
What a store promises, as suites that every store has to pass.

A test case mixes in the contracts and says how to make a store.  A store that is made again uses
the same data, as another process would.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from asyncplumber.errors import InstancesRunning, Unavailable
from asyncplumber.event import Cursor, Draft, Event, Instance, Stored
from asyncplumber.interfaces import (
    LEASE,
    PAGE_BYTES,
    Appended,
    CursorLost,
    CursorMoved,
    Hook,
    HookQuery,
    IHistory,
    IRegistry,
    IStore,
)
from asyncplumber.stores.retention import Retention

ODD_ACCOUNTS = [
    "ä/ö?%2F#",
    "..",
    "a.b$c",
    "$where",
    "%",
    "x" * 256,
    "日本" * 100,
    " ",
    "'; DROP TABLE events; --",
    '{"a":1}',
    "\\",
]
# Names are told apart by their characters: no folding, no normalisation.
ODD_ACCOUNTS += ["A", "a", "É", "E\u0301"]


# Suites are mixed into a test case; for mypy they are one.
if TYPE_CHECKING:
    _Case = TestCase
else:
    _Case = object


class RealReactorWithFakeClock:
    """The real reactor, except for its clock, which a test sets forward."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = time.time()

    def seconds(self) -> float:
        return self.clock.seconds()

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


def draft(account: str = "a", key: str = "k", payload: bytes = b'"data":1', **fields: str) -> Draft:
    """Return a draft whose id is its key."""
    return Draft(
        account,
        fields.get("id", key),
        key,
        fields.get("type", "result"),
        "2026-01-01T00:00:00Z",
        "text/plain",
        payload,
    )


def drafts(
    count: int, account: str = "a", prefix: str = "k", payload: bytes = b'"data":1'
) -> list[Draft]:
    """Return different drafts for one account."""
    return [draft(account, f"{prefix}{index}", payload) for index in range(count)]


def seqs(answers: list[Any]) -> list[int]:
    """Return the numbers of events, or of what was stored."""
    return [answer.event.seq if isinstance(answer, Stored) else answer.seq for answer in answers]


def append(store: IStore, drafts: Sequence[Draft]) -> Deferred[list[Any]]:
    """Append, and return what happened to each draft."""

    def taken(appended: Appended) -> list[Any]:
        if appended.recipients is not None:
            appended.recipients.addErrback(lambda failure: failure.trap(Unavailable) and None)
        return appended.results

    return store.append(drafts).addCallback(taken)


class StoreContract(_Case):
    """What every store has, and how a suite gets its store."""

    retention = Retention(length=10, age=100.0)

    async def setUp(self) -> None:
        self.reactor: Any = RealReactorWithFakeClock()
        self.store = await self.opened()
        self.history = self.store.history
        self.registry = self.store.registry

    def make(self, retention: Retention, lease: float) -> Any:
        """Make a store that is not started; each is on the same data."""
        raise NotImplementedError

    async def opened(self, retention: Retention | None = None, lease: float = LEASE) -> Any:
        store = self.make(retention or self.retention, lease)
        self.addCleanup(store.stop)
        await store.start()
        return store

    async def lapse(self) -> None:
        """Let all leases end."""
        self.reactor.advance(LEASE + 1)

    async def check_that_nothing_is_missed(self, cursors: Sequence[Cursor]) -> None:
        """Check that account a can be read after all these former places before its first event."""
        for expected in ([], [1, 2]):
            if expected:
                await append(self.store, drafts(2))
            for cursor in cursors:
                with self.assertRaises(CursorMoved) as caught:
                    await self.history.read("a", cursor, None, 10)
                events = await self.history.read("a", caught.exception.cursor, None, 10)
                self.assertEqual(seqs(events), expected)

    async def lost(self, account: str, cursor: Cursor) -> Any:
        """Return the position that comes with the refusal to read after `cursor`."""
        with self.assertRaises(CursorLost) as caught:
            await self.history.read(account, cursor, None, 10)
        return caught.exception.position

    async def test_it_provides_the_interfaces(self) -> None:
        """Names and signatures are those of the interfaces."""
        verifyObject(IStore, self.store)
        verifyObject(IHistory, self.history)
        verifyObject(IRegistry, self.registry)

    async def test_a_ping_is_answered(self) -> None:
        """A store that is up answers."""
        self.assertIsNone(await self.store.ping())

    async def test_a_stopped_store_can_be_stopped_again(self) -> None:
        """A clean-up need not know what was stopped before."""
        await self.store.stop()
        await self.store.stop()


class SecretContract(StoreContract):
    """What `ISecrets` promises."""

    async def test_the_secret_stays_what_it_is(self) -> None:
        """It is long enough, the same at each call, and survives a restart."""
        secret = await self.store.secret()
        self.assertIsInstance(secret, bytes)
        self.assertGreaterEqual(len(secret), 32)
        self.assertEqual(await self.store.secret(), secret)
        await self.store.stop()
        self.assertEqual(await (await self.opened()).secret(), secret)

    async def test_processes_that_start_together_have_one_secret(self) -> None:
        """Calls at the same moment, from several processes, all return the same one."""
        stores = [self.store, *[await self.opened() for _ in range(3)]]
        secrets = await gatherResults([store.secret() for _ in range(5) for store in stores])
        self.assertEqual(len(set(secrets)), 1)


class HistoryContract(StoreContract):
    """What `IHistory` promises."""

    async def everything(self, account: str = "a", history: Any = None) -> list[Event]:
        """Read everything that is kept of an account, page by page."""
        history = history or self.history
        epoch, head, floor = await history.ensure(account)
        events: list[Event] = []
        while floor + len(events) < head:
            events += await history.read(account, Cursor(epoch, floor + len(events)), head, 100)
        return events

    async def following(self, account: str, cursor: Cursor) -> list[Event]:
        """Read what comes after `cursor`, which may have another name now."""
        try:
            return list(await self.history.read(account, cursor, None, 100))
        except CursorMoved as moved:
            return list(await self.history.read(account, moved.cursor, None, 100))

    async def test_numbers_count_up_from_one(self) -> None:
        """The first event has number 1, and each further one the next, in any number of calls."""
        self.assertEqual(seqs(await append(self.store, drafts(1, prefix="x"))), [1])
        self.assertEqual(seqs(await append(self.store, drafts(3, prefix="y"))), [2, 3, 4])

    async def test_it_tells_its_size(self) -> None:
        """The events of all accounts, less those that were deleted; a duplicate is no event."""
        before = await self.history.size()
        self.assertEqual(before.events, 0)
        await append(self.store, drafts(5))
        await append(self.store, drafts(5))
        await append(self.store, [draft("other", payload=b'"data":"' + b"x" * 100_000 + b'"')])
        size = await self.history.size()
        self.assertEqual(size.events, 6)
        self.assertGreaterEqual(size.bytes, 100_000)
        await self.history.sweep()
        self.assertLessEqual((await self.history.size()).events, 6)

    async def test_an_append_of_nothing_is_no_error(self) -> None:
        """Its result is empty."""
        self.assertEqual(await append(self.store, []), [])

    async def test_events_come_back_as_they_were_stored(self) -> None:
        """With every field, in the order of the batch."""
        given = [
            draft("a", "k1", '"data":"ä\U0001f600\\u0000"'.encode(), id="id-1", type="ping"),
            draft("a", "k2", b'"data_base64":"AAEC/w=="', id="id-2"),
        ]
        stored = await append(self.store, given)
        events = await self.everything()
        self.assertEqual(events, [answer.event for answer in stored])
        self.assertEqual(events[0].data, "ä\U0001f600\x00")
        self.assertEqual(events[1].data, b"\x00\x01\x02\xff")
        self.assertEqual(
            [(e.id, e.type, e.time, e.content_type) for e in events],
            [(d.id, d.type, d.time, d.content_type) for d in given],
        )

    async def test_a_draft_with_a_known_key_gets_the_old_event(self) -> None:
        """A retry returns the first event, whatever else it says, and stores nothing."""
        [first] = await append(self.store, [draft(key="k", payload=b'"data":1')])
        [second] = await append(self.store, [draft(key="k", payload=b'"data":2')])
        self.assertEqual((first.duplicate, second), (False, Stored(first.event, True)))
        self.assertEqual(await self.everything(), [first.event])

    async def test_twins_in_one_batch_are_one_event(self) -> None:
        """The second of two drafts with the same key is a duplicate, and takes no number."""
        answers = await append(
            self.store, [draft(key="x"), draft(key="x"), draft(key="y"), draft(key="x")]
        )
        self.assertEqual([answer.duplicate for answer in answers], [False, True, False, True])
        self.assertEqual(seqs(answers), [1, 1, 2, 1])
        self.assertEqual(seqs(await self.everything()), [1, 2])

    async def test_duplicates_amid_new_drafts_leave_no_hole(self) -> None:
        """If a batch has old and new drafts, the new ones are numbered without a gap, in order."""
        await append(self.store, drafts(4))
        answers = await append(
            self.store, [draft(key=key) for key in ["n1", "k2", "n2", "k0", "k3", "n3"]]
        )
        self.assertEqual(seqs(answers), [5, 3, 6, 1, 4, 7])
        self.assertEqual([event.id for event in (await self.everything())[4:]], ["n1", "n2", "n3"])

    async def test_accounts_have_their_own_numbers_and_keys(self) -> None:
        """In a batch for several accounts, each counts alone and has keys of its own."""
        answers = await append(
            self.store,
            [draft("a", "k"), draft("b", "k"), draft("a", "l"), draft("c", "k"), draft("b", "l")],
        )
        self.assertEqual(seqs(answers), [1, 1, 2, 1, 2])
        self.assertFalse(any(answer.duplicate for answer in answers))
        self.assertEqual([event.id for event in await self.everything("b")], ["k", "l"])

    async def test_odd_account_names_are_kept_apart(self) -> None:
        """Any allowed name works, and no two names are the same account."""
        await append(self.store, [draft(name, f"key {name}") for name in ODD_ACCOUNTS])
        for name in ODD_ACCOUNTS:
            self.assertEqual(
                [(event.account, event.id) for event in await self.everything(name)],
                [(name, f"key {name}")],
            )
        self.assertEqual(set(await self.history.heads(ODD_ACCOUNTS)), set(ODD_ACCOUNTS))

    async def test_a_large_payload_survives(self) -> None:
        """Several MiB are a result like any other."""
        payload = b'"data":"%b"' % (b"x" * 5_000_000)
        await append(
            self.store,
            [draft(key="before"), draft(key="large", payload=payload), draft(key="after")],
        )
        self.assertEqual(
            [len(event.payload) for event in await self.everything()], [8, len(payload), 8]
        )

    async def test_read_begins_after_the_cursor_and_ends_at_limits(self) -> None:
        """A page is what follows the cursor, up to a number, or up to a count."""
        await append(self.store, drafts(8))
        epoch = (await self.history.ensure("a")).epoch
        for after, upto, limit, expected in [
            (0, None, 100, [1, 2, 3, 4, 5, 6, 7, 8]),
            (0, None, 3, [1, 2, 3]),
            (5, None, 100, [6, 7, 8]),
            (2, 6, 100, [3, 4, 5, 6]),
            (2, 6, 2, [3, 4]),
            (8, None, 100, []),
            (6, 6, 100, []),
            (6, 100, 100, [7, 8]),
        ]:
            page = await self.history.read("a", Cursor(epoch, after), upto, limit)
            self.assertEqual(seqs(page), expected, (after, upto, limit))

    async def test_a_page_has_a_mebibyte_or_one_event(self) -> None:
        """Large events make short pages; one that is larger than a page is a page."""
        large = b'"data":"%b"' % (b"x" * (PAGE_BYTES // 3))
        huge = b'"data":"%b"' % (b"x" * (PAGE_BYTES + 1))
        await append(
            self.store,
            [*drafts(4, payload=large), draft(key="huge", payload=huge), draft(key="small")],
        )
        epoch = (await self.history.ensure("a")).epoch
        pages = [
            seqs(await self.history.read("a", Cursor(epoch, after), None, 100))
            for after in (0, 2, 4, 5)
        ]
        self.assertEqual(pages, [[1, 2], [3, 4], [5], [6]])

    async def test_a_page_may_be_asked_to_be_smaller(self) -> None:
        """Down to one event, but never larger than a mebibyte."""
        await append(self.store, drafts(9, payload=b'"data":"%b"' % (b"x" * 991)))
        epoch = (await self.history.ensure("a")).epoch
        for size, count in ((3000, 3), (2999, 2), (9000, 9), (1, 1), (10**9, 9)):
            page = await self.history.read("a", Cursor(epoch, 0), None, 100, size)
            self.assertEqual(seqs(page), list(range(1, count + 1)), size)

    async def test_a_cursor_that_cannot_be_continued_is_refused(self) -> None:
        """A cursor of another epoch, or beyond the head; the error says how far history reaches."""
        await append(self.store, drafts(3))
        position = await self.history.ensure("a")
        self.assertEqual(await self.lost("a", Cursor("other", 1)), position)
        self.assertEqual(await self.lost("a", Cursor(position.epoch, 4)), position)
        self.assertEqual((position.head, position.floor), (3, 0))

    async def test_a_cursor_of_an_unknown_account_is_refused(self) -> None:
        """The error names an epoch that stays."""
        position = await self.lost("new", Cursor("e", 7))
        self.assertEqual((position.head, position.floor), (0, 0))
        self.assertEqual(await self.history.ensure("new"), position)

    async def rows(self) -> int:
        """Return the number of accounts that have a row."""
        raise NotImplementedError

    async def test_readers_make_no_row(self) -> None:
        """Only events make the store grow, and not the names that readers ask for."""
        await append(self.store, drafts(1))
        names = [f"stranger {number}" for number in range(50)]
        for name in names:
            position = await self.history.ensure(name)
            self.assertEqual(await self.history.read(name, position.cursor, None, 10), [])
            await self.lost(name, Cursor("e", 7))
        await self.history.heads(names)
        self.assertEqual(await self.rows(), 1)

    async def test_a_first_event_races_with_readers(self) -> None:
        """
        Readers that ask for the position while others write the first event miss nothing.

        None of them is told of a gap.
        """
        stores = [await self.opened() for _ in range(2)]
        for turn in range(10):
            name = f"account {turn}"
            asked = [
                self.history.ensure(name),
                *[append(store, [draft(name, f"{n}")]) for n, store in enumerate(stores)],
                *[store.history.ensure(name) for store in stores],
            ]
            first, one, two, *others = await gatherResults(asked)
            self.assertEqual(sorted(seqs([*one, *two])), [1, 2])
            for position in (first, *others):
                rest = await self.following(name, position.cursor)
                self.assertEqual(seqs(rest), list(range(position.head + 1, 3)))

    async def test_the_first_event_continues_the_position_of_an_unused_account(self) -> None:
        """It gets number 1 in the epoch that readers were told."""
        position = await self.history.ensure("a")
        self.assertEqual((position.head, position.floor), (0, 0))
        self.assertEqual(await self.history.read("a", position.cursor, None, 10), [])
        [stored] = await append(self.store, drafts(1))
        self.assertEqual(stored.event.cursor, Cursor(position.epoch, 1))
        self.assertEqual(await self.history.ensure("a"), position._replace(head=1))

    async def test_heads_tell_many_positions(self) -> None:
        """Each is the head of the position, with events or without."""
        await append(self.store, [*drafts(3, "a"), *drafts(1, "b")])
        await self.history.ensure("c")
        heads = await self.history.heads(["a", "b", "c", "d"])
        self.assertEqual(
            {name: cursor.seq for name, cursor in heads.items()}, {"a": 3, "b": 1, "c": 0, "d": 0}
        )
        for name, cursor in heads.items():
            self.assertEqual(cursor, (await self.history.ensure(name)).cursor)
        self.assertEqual(await self.history.heads(["d"]), {"d": heads["c"]})
        self.assertEqual(await self.history.heads([]), {})

    async def test_heads_of_very_many_accounts(self) -> None:
        """Thousands of accounts are one call."""
        names = [f"account {index}" for index in range(3000)]
        await append(self.store, [draft(name) for name in names])
        heads = await self.history.heads(names)
        self.assertEqual(
            {name: cursor.seq for name, cursor in heads.items()}, dict.fromkeys(names, 1)
        )

    async def test_events_beyond_the_length_are_deleted(self) -> None:
        """After a sweep exactly the newest are kept; the floor says so; an older cursor is lost."""
        await append(self.store, drafts(9))
        await append(self.store, drafts(26, prefix="m"))
        await self.history.sweep()
        position = await self.history.ensure("a")
        self.assertEqual((position.head, position.floor), (35, 25))
        self.assertEqual(seqs(await self.everything()), list(range(26, 36)))
        self.assertEqual(await self.lost("a", Cursor(position.epoch, 24)), position)

    async def kept(self, store: Any) -> list[int]:
        """Sweep, and return the numbers of the events that are kept of account a."""
        await store.history.sweep()
        return seqs(await self.everything(history=store.history))

    async def test_bytes_beyond_the_size_are_deleted(self) -> None:
        """What fits exactly is kept; one byte more costs the oldest event."""
        store = await self.opened(Retention(length=100, age=1000.0, size=1000))
        payload = b'"data":%b' % (b"1" * 93)
        await append(store, drafts(10, payload=payload))
        self.assertEqual(await self.kept(store), list(range(1, 11)))
        await append(store, [draft(key="one", payload=b"1"), draft("b", payload=payload)])
        self.assertEqual(await self.kept(store), list(range(2, 12)))
        position = await store.history.ensure("a")
        self.assertEqual((position.head, position.floor), (11, 1))
        with self.assertRaises(CursorLost):
            await store.history.read("a", Cursor(position.epoch, 0), None, 10)
        await append(store, drafts(25, prefix="more", payload=payload))
        self.assertEqual(await self.kept(store), list(range(27, 37)))

    async def test_the_newest_event_is_kept_whatever_its_size(self) -> None:
        """It goes when the next one comes."""
        store = await self.opened(Retention(length=100, age=1000.0, size=1000))
        large = b'"data":"%b"' % (b"x" * 5000)
        await append(store, [*drafts(3), draft(key="large", payload=large)])
        self.assertEqual(await self.kept(store), [4])
        await append(store, [draft(key="larger", payload=large + b" ")])
        self.assertEqual(await self.kept(store), [5])
        await append(store, drafts(2, prefix="small"))
        self.assertEqual(await self.kept(store), [6, 7])

    async def test_the_bytes_of_all_processes_count(self) -> None:
        """Also those of one that has stopped, and of events that were deleted before."""
        retention = Retention(length=100, age=1000.0, size=1000)
        one, two = await self.opened(retention), await self.opened(retention)
        payload = b'"data":%b' % (b"1" * 93)
        for turn in range(4):
            await append(one, drafts(2, prefix=f"one {turn}.", payload=payload))
            await append(two, drafts(2, prefix=f"two {turn}.", payload=payload))
        self.assertEqual(await self.kept(two), list(range(7, 17)))
        await one.stop()
        three = await self.opened(retention)
        await append(three, drafts(3, prefix="three", payload=payload))
        self.assertEqual(await self.kept(three), list(range(10, 20)))
        self.reactor.advance(1001)
        self.assertEqual(await self.kept(three), [])
        await append(three, drafts(11, prefix="again", payload=payload))
        self.assertEqual(await self.kept(three), list(range(21, 31)))

    async def test_events_beyond_the_age_are_deleted(self) -> None:
        """A sweep deletes the events that were stored too long ago, and returns their number."""
        await append(self.store, drafts(3))
        self.reactor.advance(60)
        await append(self.store, drafts(2, prefix="young"))
        self.reactor.advance(60)
        self.assertEqual(await self.history.sweep(), 3)
        position = await self.history.ensure("a")
        self.assertEqual((position.head, position.floor), (5, 3))
        self.assertEqual(seqs(await self.everything()), [4, 5])
        self.assertEqual(await self.lost("a", Cursor(position.epoch, 0)), position)
        self.assertEqual(await self.history.sweep(), 0)

    async def test_the_numbering_outlives_its_events(self) -> None:
        """When all events have expired, a cursor at the head is valid and numbers continue."""
        stored = await append(self.store, drafts(4))
        self.reactor.advance(self.retention.age + 1)
        await self.history.sweep()
        other = await self.opened()
        for history in (self.history, other.history):
            position = await history.ensure("a")
            self.assertEqual((position.head, position.floor), (4, 4))
            self.assertEqual(position.cursor, stored[-1].event.cursor)
            self.assertEqual(await history.read("a", position.cursor, None, 10), [])
            self.assertEqual(await history.heads(["a"]), {"a": position.cursor})
        [answer] = await append(other, drafts(1, prefix="next"))
        self.assertEqual(answer.event.cursor, Cursor(position.epoch, 5))
        [answer] = await append(self.store, drafts(1, prefix="last"))
        self.assertEqual(answer.event.seq, 6)

    async def test_a_writer_that_was_idle_goes_on_after_the_head(self) -> None:
        """Others wrote meanwhile, and what followed the last event it knows of is forgotten."""
        for forget_by_age in (False, True):
            idle, busy = await self.opened(), await self.opened()
            [first] = await append(idle, [draft(key=f"idle {forget_by_age}")])
            await append(busy, drafts(30, prefix=f"busy {forget_by_age}"))
            if forget_by_age:
                self.reactor.advance(self.retention.age + 1)
            await busy.history.sweep()
            [last] = await append(idle, [draft(key=f"idle again {forget_by_age}")])
            self.assertEqual(last.event.seq, first.event.seq + 31)
            self.assertEqual((await self.everything())[-1], last.event)

    async def test_the_key_of_a_deleted_event_is_free_again(self) -> None:
        """A draft is a duplicate only of an event that is in the history."""
        await append(self.store, drafts(1))
        self.reactor.advance(self.retention.age + 1)
        await self.history.sweep()
        [answer] = await append(self.store, drafts(1))
        self.assertEqual((answer.duplicate, answer.event.seq), (False, 2))

    async def test_many_appends_at_once_leave_no_hole(self) -> None:
        """Overlapping calls of two processes are numbered without a gap, each call in order."""
        retention = Retention(length=1000, age=1000.0)
        stores = [await self.opened(retention) for _ in range(2)]
        calls = [append(stores[n % 2], drafts(3, "a", f"{n}-")) for n in range(40)]
        answers = await gatherResults(calls)
        self.assertEqual(
            sorted(seq for answer in answers for seq in seqs(answer)), list(range(1, 121))
        )
        for answer in answers:
            self.assertEqual(seqs(answer), sorted(seqs(answer)))
        events = await self.everything(history=stores[0].history)
        self.assertEqual(
            sorted(events), sorted(stored.event for answer in answers for stored in answer)
        )

    async def test_the_same_event_from_two_processes_is_stored_once(self) -> None:
        """If their calls race, one stores it, and all return the same event."""
        stores = [await self.opened() for _ in range(2)]
        calls = [append(stores[n % 2], [draft(key="x"), draft(key=f"own {n}")]) for n in range(6)]
        answers = await gatherResults(calls)
        self.assertEqual(len({answer[0].event for answer in answers}), 1)
        self.assertEqual([answer[0].duplicate for answer in answers].count(False), 1)
        self.assertEqual(seqs(await self.everything()), [1, 2, 3, 4, 5, 6, 7])

    async def test_a_reader_that_follows_sees_everything_once(self) -> None:
        """While two processes append, a third one reads all accepted events without a gap."""
        retention = Retention(length=1000, age=1000.0)
        stores = [await self.opened(retention) for _ in range(3)]
        reader = stores.pop().history
        cursor = (await reader.ensure("a")).cursor

        async def write(number: int) -> list[Event]:
            accepted: list[Event] = []
            for turn in range(30):
                several = drafts(1 + turn % 3, "a", f"{number}.{turn}.")
                accepted += [stored.event for stored in await append(stores[number], several)]
            return accepted

        writers = gatherResults([Deferred.fromCoroutine(write(number)) for number in range(2)])
        seen: list[Event] = []
        while len(seen) < 120:
            seen += await reader.read("a", Cursor(cursor.epoch, len(seen)), None, 7)
        self.assertEqual(seqs(seen), list(range(1, 121)))
        self.assertEqual(
            sorted(seen), sorted(event for accepted in await writers for event in accepted)
        )


class UnusedNumberingsContract(StoreContract):
    """What stores promise whose expiry the test's clock drives.  (MongoDB's is its own.)"""

    async def test_an_unused_numbering_expires(self) -> None:
        """A month after the last use, but not while readers ask for heads."""
        await append(self.store, [draft("used"), draft("unused")])
        before = await self.history.heads(["used", "unused"])
        for _ in range(5):
            self.reactor.advance(self.retention.numbering / 4)
            await self.history.heads(["used"])
            await self.history.sweep()
        after = await self.history.heads(["used", "unused"])
        self.assertEqual(after["used"], before["used"])
        self.assertEqual(after["unused"].seq, 0)
        self.assertNotEqual(after["unused"].epoch, before["unused"].epoch)

    async def test_a_cursor_of_an_expired_numbering_is_refused(self) -> None:
        """Whether the account has events again or not, and whether the client saw events or not."""
        nothing = (await self.history.ensure("a")).cursor
        [stored] = await append(self.store, drafts(1))
        self.assertEqual(stored.event.epoch, nothing.epoch)
        self.reactor.advance(self.retention.numbering + 1)
        await self.history.sweep()
        await self.history.sweep()
        for key in ("", "again"):
            if key:
                await append(self.store, [draft(key=key)])
            for cursor in (nothing, stored.event.cursor):
                self.assertEqual(await self.lost("a", cursor), await self.history.ensure("a"))

    async def test_a_client_that_has_seen_nothing_misses_nothing(self) -> None:
        """The place before the first event is known for nearly a month, under all its names."""
        cursors = []
        for _ in range(25):
            cursors.append((await self.history.ensure("a")).cursor)
            self.reactor.advance(self.retention.numbering / 29)
            await append(self.store, [draft("other", key=f"{len(cursors)}")])
            await self.history.sweep()
        self.assertEqual(len(set(cursors)), 25)
        await self.check_that_nothing_is_missed(cursors)

    async def test_a_client_that_has_seen_nothing_learns_that_the_first_event_was_deleted(
        self,
    ) -> None:
        """A history that begins with a later event is a gap after the place before the first."""
        cursor = (await self.history.ensure("a")).cursor
        self.reactor.advance(self.retention.renewal + 1)
        await append(self.store, drafts(30))
        await self.history.sweep()
        self.assertEqual(await self.lost("a", cursor), await self.history.ensure("a"))

    async def test_an_epoch_that_was_never_given_out_is_refused(self) -> None:
        """Number 0 of an invented epoch is no place before the first event."""
        await append(self.store, drafts(1))
        self.assertEqual((await self.lost("a", Cursor("invented", 0))).head, 1)


class NewEpochContract(StoreContract):
    """What `IHistory.begin_epoch` promises for a store that was restored from a backup."""

    async def test_what_was_given_out_after_a_backup_is_a_gap(self) -> None:
        """A cursor from before is lost, and all kept events can be read in the new epoch."""
        await append(self.store, drafts(3))
        before = (await self.history.ensure("a")).cursor
        nobody = (await self.history.ensure("b")).cursor
        epoch = await self.history.begin_epoch()
        self.assertGreater(epoch, before.epoch)
        self.assertEqual(await self.history.ensure("a"), (epoch, 3, 0))
        for account, cursor in (("a", before), ("a", before._replace(seq=10)), ("b", nobody)):
            with self.assertRaises(CursorLost):
                await self.history.read(account, cursor, None, 100)
        events = await self.history.read("a", Cursor(epoch, 0), None, 100)
        self.assertEqual(
            [str(event.cursor) for event in events], [f"{epoch}.{seq}" for seq in (1, 2, 3)]
        )

    async def test_the_numbering_goes_on_after_a_new_epoch(self) -> None:
        """Duplicates are still found, also after a second new epoch."""
        await append(self.store, drafts(3))
        for count in (4, 5):
            epoch = await self.history.begin_epoch()
            again, new = await append(self.store, [drafts(1)[0], draft(key=f"new {count}")])
            self.assertEqual(
                (again.duplicate, again.event.epoch, again.event.seq), (True, epoch, 1)
            )
            self.assertEqual((new.event.epoch, new.event.seq), (epoch, count))

    async def test_no_new_epoch_while_an_instance_runs(self) -> None:
        """It may remember numbers of the old epoch, and would continue them."""
        if type(self.store).__name__ == "MemoryStore":
            return  # no other process can use it
        instance = await self.registry.add_instance(Instance("i", "http://127.0.0.1:1"))
        with self.assertRaises(InstancesRunning):
            await self.history.begin_epoch()
        await self.registry.remove_instance(instance)
        await self.history.begin_epoch()


class RegistryContract(StoreContract):
    """What `IRegistry` promises."""

    async def added(self, id: str, url: str = "") -> Instance:
        return await self.registry.add_instance(Instance(id, url or f"http://127.0.0.1/{id}"))

    async def wanting(self, *accounts: str) -> dict[str, list[str]]:
        """Return the ids of the instances that want these accounts."""
        found = await self.registry.instances(accounts)
        return {
            account: sorted(instance.id for instance in instances)
            for account, instances in found.items()
        }

    async def test_registered_instances_are_found(self) -> None:
        """For several accounts in one call; accounts that no instance wants are left out."""
        one, two = await self.added("1"), await self.added("2")
        await self.registry.register(one, ["a", "b"])
        await self.registry.register(two, ["b", "c"])
        self.assertEqual(
            await self.wanting("a", "b", "c", "d"), {"a": ["1"], "b": ["1", "2"], "c": ["2"]}
        )
        self.assertEqual(await self.registry.instances(["a"]), {"a": [one]})
        self.assertEqual(await self.wanting(), {})

    async def test_registering_twice_is_the_same_as_once(self) -> None:
        """In two calls, or twice in one call."""
        one = await self.added("1")
        await self.registry.register(one, ["a", "a"])
        await self.registry.register(one, ["a", "b"])
        self.assertEqual(await self.registry.instances(["a", "b"]), {"a": [one], "b": [one]})
        await self.registry.register(one, [])
        await self.registry.unregister(one, [])

    async def test_unregister_removes_these_hooks_only(self) -> None:
        """Other accounts of the instance, and other instances of the account, keep their hooks."""
        one, two = await self.added("1"), await self.added("2")
        await self.registry.register(one, ["a", "b"])
        await self.registry.register(two, ["a", "b"])
        await self.registry.unregister(one, ["a", "never registered"])
        await self.registry.unregister(one, ["a"])
        self.assertEqual(await self.wanting("a", "b"), {"a": ["2"], "b": ["1", "2"]})

    async def test_odd_names_are_kept_apart(self) -> None:
        """Any allowed account can be registered, found and unregistered without another one."""
        one = await self.added("1")
        await self.registry.register(one, ODD_ACCOUNTS)
        self.assertEqual(await self.wanting(*ODD_ACCOUNTS), {name: ["1"] for name in ODD_ACCOUNTS})
        for index, name in enumerate(ODD_ACCOUNTS, 1):
            await self.registry.unregister(one, [name])
            self.assertEqual(
                await self.wanting(*ODD_ACCOUNTS), {name: ["1"] for name in ODD_ACCOUNTS[index:]}
            )

    async def test_very_many_accounts(self) -> None:
        """Thousands of accounts are registered, found and unregistered in one call each."""
        one = await self.added("1")
        names = [f"account {index}" for index in range(2500)]
        await self.registry.register(one, names)
        self.assertEqual(len(await self.registry.instances(names)), 2500)
        await self.registry.unregister(one, names)
        self.assertEqual(await self.registry.instances(names), {})

    async def test_an_expired_lease_hides_the_hooks(self) -> None:
        """A dead instance is not found before the next sweep; after a renewal it is found again."""
        one = await self.added("1")
        await self.registry.register(one, ["a"])
        await self.lapse()
        two = await self.added("2")
        await self.registry.register(two, ["a"])
        self.assertEqual(await self.wanting("a"), {"a": ["2"]})
        self.assertIsNotNone(await self.registry.renew(one))
        self.assertEqual(await self.wanting("a"), {"a": ["1", "2"]})

    async def test_each_renewal_changes_the_lease(self) -> None:
        """`renew` returns the new lease, and `instances` has it."""
        one = await self.added("1")
        await self.registry.register(one, ["a"])
        renewed = await self.registry.renew(one)
        self.assertNotEqual(renewed.lease, one.lease)
        self.assertEqual((renewed.id, renewed.url), (one.id, one.url))
        self.assertEqual(await self.registry.instances(["a"]), {"a": [renewed]})

    async def test_a_removed_instance_cannot_renew(self) -> None:
        """`renew` returns None, and does not add it again."""
        one = await self.added("1")
        await self.registry.register(one, ["a"])
        await self.registry.prune(one)
        self.assertIsNone(await self.registry.renew(one))
        self.assertIsNone(await self.registry.renew(Instance("never", "http://127.0.0.1/never")))
        self.assertEqual(await self.wanting("a"), {})

    async def test_add_instance_removes_old_hooks(self) -> None:
        """An instance begins with no hooks; those of other instances stay."""
        one, two = await self.added("1"), await self.added("2")
        await self.registry.register(one, ["a"])
        await self.registry.register(two, ["a"])
        again = await self.added("1")
        self.assertEqual(await self.wanting("a"), {"a": ["2"]})
        await self.registry.register(again, ["b"])
        self.assertEqual(await self.wanting("a", "b"), {"a": ["2"], "b": ["1"]})

    async def test_remove_instance_removes_everything(self) -> None:
        """The instance and its hooks, but not those of others; a second call is no error."""
        one, two = await self.added("1"), await self.added("2")
        await self.registry.register(one, ["a"])
        await self.registry.register(two, ["a"])
        await self.registry.remove_instance(one)
        await self.registry.remove_instance(one)
        self.assertEqual(await self.wanting("a"), {"a": ["2"]})
        self.assertIsNone(await self.registry.renew(one))

    async def test_only_the_lease_that_was_seen_is_pruned(self) -> None:
        """An instance that renewed meanwhile is alive: only its current lease removes it."""
        one, two = await self.added("1"), await self.added("2")
        await self.registry.register(one, ["a"])
        await self.registry.register(two, ["a"])
        renewed = await self.registry.renew(one)
        self.assertFalse(await self.registry.prune(one))
        self.assertEqual(await self.wanting("a"), {"a": ["1", "2"]})
        self.assertTrue(await self.registry.prune(renewed))
        self.assertFalse(await self.registry.prune(renewed))
        self.assertEqual(await self.wanting("a"), {"a": ["2"]})

    async def test_a_pruned_instance_comes_back_without_its_hooks(self) -> None:
        """It has to register them again."""
        one = await self.added("1")
        await self.registry.register(one, ["a"])
        await self.registry.prune(one)
        again = await self.added("1")
        self.assertEqual(await self.wanting("a"), {})
        await self.registry.register(again, ["a"])
        self.assertEqual(await self.wanting("a"), {"a": ["1"]})

    async def test_a_sweep_removes_only_dead_instances(self) -> None:
        """It returns their number; they cannot renew, and live instances keep their hooks."""
        one = await self.added("1")
        await self.registry.register(one, ["a"])
        await self.lapse()
        two = await self.added("2")
        await self.registry.register(two, ["a"])
        self.assertEqual(await self.registry.sweep(), 1)
        self.assertEqual(await self.registry.sweep(), 0)
        self.assertIsNone(await self.registry.renew(one))
        self.assertEqual(await self.wanting("a"), {"a": ["2"]})

    async def test_a_swept_instance_comes_back_without_its_hooks(self) -> None:
        """The hooks were removed with the dead instance."""
        one = await self.added("1")
        await self.registry.register(one, ["a"])
        await self.lapse()
        await self.registry.sweep()
        await self.added("1")
        self.assertEqual(await self.wanting("a"), {})

    async def test_an_append_finds_the_instances_that_want_its_events(self) -> None:
        """Events are stored and recipients looked up in one call, for duplicates as well."""
        one, two = await self.added("1"), await self.added("2")
        await self.registry.register(one, ["a", "b"])
        await self.registry.register(two, ["b", "d"])
        for duplicate in (False, True):
            appended = await self.store.append(
                [draft("a"), draft("b"), draft("c"), draft("b", "l")]
            )
            self.assertEqual(
                [(answer.event.seq, answer.duplicate) for answer in appended.results],
                [(n, duplicate) for n in (1, 1, 1, 2)],
            )
            found = await appended.recipients
            self.assertEqual(
                {account: sorted(instances) for account, instances in found.items()},
                {"a": [one], "b": [one, two]},
            )

    async def test_an_append_finds_hooks_as_they_are(self) -> None:
        """Registered, unregistered, or expired since the append before."""
        one = await self.added("1")

        async def found(key: str) -> list[str]:
            appended = await self.store.append([draft(key=key)])
            return [instance.id for instance in (await appended.recipients).get("a", ())]

        seen = [await found("1")]
        await self.registry.register(one, ["a"])
        seen.append(await found("2"))
        await self.registry.unregister(one, ["a"])
        seen.append(await found("3"))
        await self.registry.register(one, ["a"])
        await self.lapse()
        seen.append(await found("4"))
        self.assertEqual(seen, [[], ["1"], [], []])

    async def test_an_append_of_nothing_looks_up_nobody(self) -> None:
        """Its result has no recipients."""
        self.assertEqual(await self.store.append([]), Appended([], None))

    async def test_odd_names_are_found_by_an_append(self) -> None:
        """The look-up after an append tells them apart."""
        one = await self.added("1")
        await self.registry.register(one, ODD_ACCOUNTS[::2])
        appended = await self.store.append([draft(name) for name in ODD_ACCOUNTS])
        self.assertEqual([stored.event.account for stored in appended.results], ODD_ACCOUNTS)
        self.assertEqual(await appended.recipients, {name: [one] for name in ODD_ACCOUNTS[::2]})

    async def test_the_members_are_listed(self) -> None:
        """By id, each with the rest of its lease and the number of its hooks."""
        two, one = await self.added("2"), await self.added("1")
        await self.registry.register(one, ["a", "b"])
        first, second = await self.registry.members()
        self.assertEqual((first.instance, first.hooks), (one, 2))
        self.assertEqual((second.instance, second.hooks), (two, 0))
        for member in (first, second):
            self.assertTrue(LEASE - 5 < member.expires_in <= LEASE, member.expires_in)
        self.assertEqual([each.instance for each in await self.registry.members(1)], [one])

    async def test_a_member_whose_lease_ended_is_listed(self) -> None:
        """Until the next sweep; its time is negative."""
        await self.added("1")
        await self.lapse()
        (member,) = await self.registry.members()
        self.assertLess(member.expires_in, 0)
        await self.registry.sweep()
        self.assertEqual(await self.registry.members(), [])

    async def pages(self, limit: int, **query: Any) -> list[Hook]:
        """Return all hooks, read by pages of this many."""
        found: list[Hook] = []
        after = None
        while page := await self.registry.hooks(HookQuery(after=after, limit=limit, **query)):
            self.assertLessEqual(len(page), limit)
            found += page
            after = page[-1]
        return found

    async def test_hooks_are_listed_by_pages(self) -> None:
        """Each once, in the order of the accounts, whatever the size of a page."""
        one, two = await self.added("1"), await self.added("2")
        await self.registry.register(one, ["b", "a", "c"])
        await self.registry.register(two, ["b", "d"])
        expected = [("a", "1"), ("b", "1"), ("b", "2"), ("c", "1"), ("d", "2")]
        for limit in (1, 2, 3, 10):
            hooks = await self.pages(limit)
            self.assertEqual([hook[:2] for hook in hooks], expected)
        self.assertEqual(hooks[1].url, f"{one.url}/hooks/b")

    async def test_hooks_of_one_instance_or_prefix_are_listed(self) -> None:
        """And of both together."""
        one, two = await self.added("1"), await self.added("2")
        await self.registry.register(one, ["team-a", "team-b", "team.", "teal"])
        await self.registry.register(two, ["team-b"])
        hooks = await self.pages(2, prefix="team-")
        self.assertEqual(
            [hook[:2] for hook in hooks], [("team-a", "1"), *[("team-b", i) for i in "12"]]
        )
        hooks = await self.pages(2, instance_id="2")
        self.assertEqual([hook[:2] for hook in hooks], [("team-b", "2")])
        hooks = await self.pages(2, prefix="team-", instance_id="1")
        self.assertEqual([hook.account for hook in hooks], ["team-a", "team-b"])

    async def test_hooks_of_odd_accounts_are_listed(self) -> None:
        """In the order of their code points; each is found by itself as a prefix."""
        one = await self.added("1")
        names = [*ODD_ACCOUNTS, "\U0010ffff", "\ud7ff", "\ue000"]
        await self.registry.register(one, names)
        self.assertEqual([hook.account for hook in await self.pages(4)], sorted(names))
        for name in names:
            found = [hook.account for hook in await self.pages(4, prefix=name)]
            self.assertEqual(found, [each for each in sorted(names) if each.startswith(name)])

    async def test_two_processes_see_the_same_registry(self) -> None:
        """A hook that one process registers is found by the other."""
        one = await self.added("1")
        await self.registry.register(one, ["a"])
        other = (await self.opened()).registry
        self.assertEqual(await other.instances(["a"]), {"a": [one]})
