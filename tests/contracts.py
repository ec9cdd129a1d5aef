"""
What a store promises, as suites that every store has to pass.

A test case mixes in `HistoryContract` and `RegistryContract` and says how to open a store; opening
it twice gives two doors to the same data, as two processes would have.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from asyncplumber.errors import InstancesRunning, PlumberError, Unavailable
from asyncplumber.event import Cursor, Draft, Event, Instance, Stored
from asyncplumber.interfaces import (
    LEASE,
    PAGE_BYTES,
    Appended,
    CursorLost,
    CursorMoved,
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
ODD_ACCOUNTS += [
    "A",
    "a",
    "É",
    "E\u0301",
]  # names are told apart by their characters: no folding, no normalisation


class RealReactorWithFakeClock:
    """The real reactor, but for its clock, which a test sets forward."""

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
    """A draft whose id is its key."""
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
    """Different drafts for one account."""
    return [draft(account, f"{prefix}{index}", payload) for index in range(count)]


def seqs(answers: list[Any]) -> list[int]:
    """The numbers of events, or of what was stored."""
    return [answer.event.seq if isinstance(answer, Stored) else answer.seq for answer in answers]


def append(store: IStore, drafts: Sequence[Draft]) -> Deferred[list[Stored | PlumberError]]:
    """Append, and return what happened to each draft.  Who wants the events is not looked at."""

    def taken(appended: Appended) -> list[Stored | PlumberError]:
        if appended.recipients is not None:
            appended.recipients.addErrback(lambda failure: failure.trap(Unavailable) and None)
        return appended.results

    return store.append(drafts).addCallback(taken)


class StoreContract:
    """How a suite gets its store."""

    retention = Retention(length=10, age=100.0)

    async def setUp(self) -> None:
        self.reactor = RealReactorWithFakeClock()
        self.store = await self.opened()
        self.history = self.store.history
        self.registry = self.store.registry

    def make(self, retention: Retention, lease: float) -> Any:
        """A store, not started; called again, one on the same data."""
        raise NotImplementedError

    async def opened(self, retention: Retention | None = None, lease: float = LEASE) -> Any:
        store = self.make(retention or self.retention, lease)
        self.addCleanup(store.stop)
        await store.start()
        return store

    async def lapse(self) -> None:
        """Let all leases run out."""
        self.reactor.advance(LEASE + 1)

    async def test_it_provides_the_interfaces(self) -> None:
        """Names and signatures are those of the boundary."""
        verifyObject(IStore, self.store)
        verifyObject(IHistory, self.history)
        verifyObject(IRegistry, self.registry)

    async def test_a_ping_is_answered(self) -> None:
        """A store that is up says so."""
        self.assertIsNone(await self.store.ping())

    async def test_a_stopped_store_can_be_stopped_again(self) -> None:
        """Whoever cleans up need not know what was stopped before."""
        await self.store.stop()
        await self.store.stop()


class SecretContract(StoreContract):
    """What `ISecrets` promises."""

    async def test_the_secret_stays_what_it_is(self) -> None:
        """It is long enough to be one, it is the same at each call, and it outlives a restart."""
        secret = await self.store.secret()
        self.assertIsInstance(secret, bytes)
        self.assertGreaterEqual(len(secret), 32)
        self.assertEqual(await self.store.secret(), secret)
        await self.store.stop()
        self.assertEqual(await (await self.opened()).secret(), secret)

    async def test_those_who_start_together_have_one_secret(self) -> None:
        """Nobody is first: whoever makes it, all who asked at that moment get that one."""
        stores = [self.store, *[await self.opened() for _ in range(3)]]
        secrets = await gatherResults([store.secret() for _ in range(5) for store in stores])
        self.assertEqual(len(set(secrets)), 1)


class HistoryContract(StoreContract):
    """What `IHistory` promises."""

    async def everything(self, account: str = "a", history: Any = None) -> list[Event]:
        """All that is kept of an account, page by page."""
        history = history or self.history
        epoch, head, floor = await history.ensure(account)
        events: list[Event] = []
        while floor + len(events) < head:
            events += await history.read(account, Cursor(epoch, floor + len(events)), head, 100)
        return events

    async def following(self, account: str, cursor: Cursor) -> list[Event]:
        """What comes after `cursor`, by whatever name it goes today."""
        try:
            return list(await self.history.read(account, cursor, None, 100))
        except CursorMoved as moved:
            return list(await self.history.read(account, moved.cursor, None, 100))

    async def lost(self, account: str, cursor: Cursor) -> Any:
        """The position that comes with the refusal to read after `cursor`."""
        with self.assertRaises(CursorLost) as caught:
            await self.history.read(account, cursor, None, 10)
        return caught.exception.position

    async def test_numbers_count_up_from_one(self) -> None:
        """
        The first event has number 1, and each further one the next, in whatever calls they come.
        """
        self.assertEqual(seqs(await append(self.store, drafts(1, prefix="x"))), [1])
        self.assertEqual(seqs(await append(self.store, drafts(3, prefix="y"))), [2, 3, 4])

    async def test_nothing_appended_is_nothing_answered(self) -> None:
        """An empty list is no error."""
        self.assertEqual(await append(self.store, []), [])

    async def test_events_come_back_as_they_were_stored(self) -> None:
        """Every field survives, and in the order of the batch."""
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
        """
        A retry is answered with the first one's event, whatever else it says, and not stored again.
        """
        [first] = await append(self.store, [draft(key="k", payload=b'"data":1')])
        [second] = await append(self.store, [draft(key="k", payload=b'"data":2')])
        self.assertEqual((first.duplicate, second), (False, Stored(first.event, True)))
        self.assertEqual(await self.everything(), [first.event])

    async def test_twins_in_one_batch_are_one_event(self) -> None:
        """
        The second of two drafts with one key is the duplicate, and takes no number from those after
        it.
        """
        answers = await append(
            self.store, [draft(key="x"), draft(key="x"), draft(key="y"), draft(key="x")]
        )
        self.assertEqual([answer.duplicate for answer in answers], [False, True, False, True])
        self.assertEqual(seqs(answers), [1, 1, 2, 1])
        self.assertEqual(seqs(await self.everything()), [1, 2])

    async def test_duplicates_amid_new_drafts_leave_no_hole(self) -> None:
        """
        Old and new drafts in one batch: the new ones are numbered without a gap, in their order.
        """
        await append(self.store, drafts(4))
        answers = await append(
            self.store, [draft(key=key) for key in ["n1", "k2", "n2", "k0", "k3", "n3"]]
        )
        self.assertEqual(seqs(answers), [5, 3, 6, 1, 4, 7])
        self.assertEqual([event.id for event in (await self.everything())[4:]], ["n1", "n2", "n3"])

    async def test_accounts_have_their_own_numbers_and_keys(self) -> None:
        """
        In one batch for several accounts each counts for itself, and the same key twice is two
        events.
        """
        answers = await append(
            self.store,
            [draft("a", "k"), draft("b", "k"), draft("a", "l"), draft("c", "k"), draft("b", "l")],
        )
        self.assertEqual(seqs(answers), [1, 1, 2, 1, 2])
        self.assertFalse(any(answer.duplicate for answer in answers))
        self.assertEqual([event.id for event in await self.everything("b")], ["k", "l"])

    async def test_odd_account_names_are_kept_apart(self) -> None:
        """Any allowed name works, and no two of them are one account."""
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
        """Large events make short pages, and one that is larger than a page still comes."""
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
        """Down to one event; never larger than a mebibyte."""
        await append(self.store, drafts(9, payload=b'"data":"%b"' % (b"x" * 991)))
        epoch = (await self.history.ensure("a")).epoch
        for size, count in ((3000, 3), (2999, 2), (9000, 9), (1, 1), (10**9, 9)):
            page = await self.history.read("a", Cursor(epoch, 0), None, 100, size)
            self.assertEqual(seqs(page), list(range(1, count + 1)), size)

    async def test_a_cursor_that_cannot_be_continued_is_refused(self) -> None:
        """
        Another epoch, and a place that no event had yet: both come with how far the history
        reaches.
        """
        await append(self.store, drafts(3))
        position = await self.history.ensure("a")
        self.assertEqual(await self.lost("a", Cursor("other", 1)), position)
        self.assertEqual(await self.lost("a", Cursor(position.epoch, 4)), position)
        self.assertEqual((position.head, position.floor), (3, 0))

    async def test_a_cursor_of_an_unknown_account_is_refused(self) -> None:
        """The refusal names a numbering that holds from then on."""
        position = await self.lost("new", Cursor("e", 7))
        self.assertEqual((position.head, position.floor), (0, 0))
        self.assertEqual(await self.history.ensure("new"), position)

    async def rows(self) -> int:
        """How many accounts the store has a row for."""
        raise NotImplementedError

    async def test_readers_make_no_row(self) -> None:
        """However many names are asked for, in whatever way: only events make the store grow."""
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
        Two write the first event of an account while others ask where it stands: nobody misses one,
        nobody is told of a gap.
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

    async def test_a_position_begins_a_numbering(self) -> None:
        """Who asks where an unused account stands gets an answer that the first event continues."""
        position = await self.history.ensure("a")
        self.assertEqual((position.head, position.floor), (0, 0))
        self.assertEqual(await self.history.read("a", position.cursor, None, 10), [])
        [stored] = await append(self.store, drafts(1))
        self.assertEqual(stored.event.cursor, Cursor(position.epoch, 1))
        self.assertEqual(await self.history.ensure("a"), position._replace(head=1))

    async def test_heads_tell_many_positions(self) -> None:
        """Each as its position, with events or without."""
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
        """Thousands of accounts are one question."""
        names = [f"account {index}" for index in range(3000)]
        await append(self.store, [draft(name) for name in names])
        heads = await self.history.heads(names)
        self.assertEqual(
            {name: cursor.seq for name, cursor in heads.items()}, dict.fromkeys(names, 1)
        )

    async def test_what_is_beyond_the_length_is_forgotten(self) -> None:
        """
        After a sweep exactly the newest are kept, the floor says so, and an older cursor is
        refused.
        """
        await append(self.store, drafts(9))
        await append(self.store, drafts(26, prefix="m"))
        await self.history.sweep()
        position = await self.history.ensure("a")
        self.assertEqual((position.head, position.floor), (35, 25))
        self.assertEqual(seqs(await self.everything()), list(range(26, 36)))
        self.assertEqual(await self.lost("a", Cursor(position.epoch, 24)), position)

    async def test_what_is_beyond_the_age_is_forgotten(self) -> None:
        """A sweep forgets what was stored too long ago, says how much, and leaves the rest."""
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
        """
        When everything has expired the head stays, a cursor at the head stays good, and numbers go
        on after it.
        """
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

    async def test_a_forgotten_key_is_free_again(self) -> None:
        """What is no longer in the history cannot be a duplicate's first."""
        await append(self.store, drafts(1))
        self.reactor.advance(self.retention.age + 1)
        await self.history.sweep()
        [answer] = await append(self.store, drafts(1))
        self.assertEqual((answer.duplicate, answer.event.seq), (False, 2))

    async def test_many_appends_at_once_leave_no_hole(self) -> None:
        """
        Calls that overlap, through two doors to one store, are numbered without a gap, each call's
        in its order.
        """
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

    async def test_the_same_event_through_two_doors_is_stored_once(self) -> None:
        """However the calls race, one of them stores it, and all are told of the same event."""
        stores = [await self.opened() for _ in range(2)]
        calls = [append(stores[n % 2], [draft(key="x"), draft(key=f"own {n}")]) for n in range(6)]
        answers = await gatherResults(calls)
        self.assertEqual(len({answer[0].event for answer in answers}), 1)
        self.assertEqual([answer[0].duplicate for answer in answers].count(False), 1)
        self.assertEqual(seqs(await self.everything()), [1, 2, 3, 4, 5, 6, 7])

    async def test_a_reader_that_follows_sees_everything_once(self) -> None:
        """
        While two doors append, a third one reads what is new: one sequence, without a hole, all
        that was accepted.
        """
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


class NewEpochContract(StoreContract):
    """What `IHistory.begin_epoch` promises, to a store that was put back from a backup."""

    async def test_what_was_given_out_after_a_backup_is_a_gap(self) -> None:
        """A cursor from before says so, and all that is kept can be read in the new epoch."""
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
        """What is posted again is still the same event; and so it is after a second time."""
        await append(self.store, drafts(3))
        for count in (4, 5):
            epoch = await self.history.begin_epoch()
            again, new = await append(self.store, [drafts(1)[0], draft(key=f"new {count}")])
            self.assertEqual(
                (again.duplicate, again.event.epoch, again.event.seq), (True, epoch, 1)
            )
            self.assertEqual((new.event.epoch, new.event.seq), (epoch, count))

    async def test_no_new_epoch_while_an_instance_runs(self) -> None:
        """It may remember numbers, and would go on with them."""
        if type(self.store).__name__ == "MemoryStore":
            return  # it is its own instance
        instance = await self.registry.add_instance(Instance("i", "http://127.0.0.1:1"))
        with self.assertRaises(InstancesRunning):
            await self.history.begin_epoch()
        await self.registry.remove_instance(instance)
        await self.history.begin_epoch()


class RegistryContract(StoreContract):
    """What `IRegistry` promises."""

    async def enlisted(self, id: str, url: str = "") -> Instance:
        return await self.registry.add_instance(Instance(id, url or f"http://127.0.0.1/{id}"))

    async def wanting(self, *accounts: str) -> dict[str, list[str]]:
        """The ids of those who want these accounts."""
        found = await self.registry.instances(accounts)
        return {
            account: sorted(instance.id for instance in instances)
            for account, instances in found.items()
        }

    async def test_who_registered_is_found(self) -> None:
        """
        Several instances, several accounts, one question; accounts that nobody wants are left out.
        """
        one, two = await self.enlisted("1"), await self.enlisted("2")
        await self.registry.register(one, ["a", "b"])
        await self.registry.register(two, ["b", "c"])
        self.assertEqual(
            await self.wanting("a", "b", "c", "d"), {"a": ["1"], "b": ["1", "2"], "c": ["2"]}
        )
        self.assertEqual(await self.registry.instances(["a"]), {"a": [one]})
        self.assertEqual(await self.wanting(), {})

    async def test_to_register_twice_is_to_register_once(self) -> None:
        """A repeated call adds nothing, and what is named twice in one call is one hook."""
        one = await self.enlisted("1")
        await self.registry.register(one, ["a", "a"])
        await self.registry.register(one, ["a", "b"])
        self.assertEqual(await self.registry.instances(["a", "b"]), {"a": [one], "b": [one]})
        await self.registry.register(one, [])
        await self.registry.unregister(one, [])

    async def test_to_withdraw_takes_out_these_and_no_other(self) -> None:
        """Other accounts of the instance, and other instances of the account, keep their hooks."""
        one, two = await self.enlisted("1"), await self.enlisted("2")
        await self.registry.register(one, ["a", "b"])
        await self.registry.register(two, ["a", "b"])
        await self.registry.unregister(one, ["a", "never registered"])
        await self.registry.unregister(one, ["a"])
        self.assertEqual(await self.wanting("a", "b"), {"a": ["2"], "b": ["1", "2"]})

    async def test_odd_names_are_kept_apart(self) -> None:
        """Any allowed account can be registered, found and withdrawn without touching another."""
        one = await self.enlisted("1")
        await self.registry.register(one, ODD_ACCOUNTS)
        self.assertEqual(await self.wanting(*ODD_ACCOUNTS), {name: ["1"] for name in ODD_ACCOUNTS})
        for index, name in enumerate(ODD_ACCOUNTS, 1):
            await self.registry.unregister(one, [name])
            self.assertEqual(
                await self.wanting(*ODD_ACCOUNTS), {name: ["1"] for name in ODD_ACCOUNTS[index:]}
            )

    async def test_very_many_accounts(self) -> None:
        """Thousands of accounts are registered, found and withdrawn in one call each."""
        one = await self.enlisted("1")
        names = [f"account {index}" for index in range(2500)]
        await self.registry.register(one, names)
        self.assertEqual(len(await self.registry.instances(names)), 2500)
        await self.registry.unregister(one, names)
        self.assertEqual(await self.registry.instances(names), {})

    async def test_a_lease_that_ran_out_hides_the_hooks(self) -> None:
        """
        A dead instance is not found, although nobody has swept; one that renews after all is found
        again.
        """
        one = await self.enlisted("1")
        await self.registry.register(one, ["a"])
        await self.lapse()
        two = await self.enlisted("2")
        await self.registry.register(two, ["a"])
        self.assertEqual(await self.wanting("a"), {"a": ["2"]})
        self.assertIsNotNone(await self.registry.renew(one))
        self.assertEqual(await self.wanting("a"), {"a": ["1", "2"]})

    async def test_each_renewal_changes_the_lease(self) -> None:
        """The answer has the new one, and who looks finds that one."""
        one = await self.enlisted("1")
        await self.registry.register(one, ["a"])
        renewed = await self.registry.renew(one)
        self.assertNotEqual(renewed.lease, one.lease)
        self.assertEqual((renewed.id, renewed.url), (one.id, one.url))
        self.assertEqual(await self.registry.instances(["a"]), {"a": [renewed]})

    async def test_a_forgotten_instance_cannot_renew(self) -> None:
        """It is told so, and is not put in again by the attempt."""
        one = await self.enlisted("1")
        await self.registry.register(one, ["a"])
        await self.registry.prune(one)
        self.assertIsNone(await self.registry.renew(one))
        self.assertIsNone(await self.registry.renew(Instance("never", "http://127.0.0.1/never")))
        self.assertEqual(await self.wanting("a"), {})

    async def test_to_enlist_puts_old_hooks_away(self) -> None:
        """Whoever begins anew begins with no hooks, and leaves those of others alone."""
        one, two = await self.enlisted("1"), await self.enlisted("2")
        await self.registry.register(one, ["a"])
        await self.registry.register(two, ["a"])
        again = await self.enlisted("1")
        self.assertEqual(await self.wanting("a"), {"a": ["2"]})
        await self.registry.register(again, ["b"])
        self.assertEqual(await self.wanting("a", "b"), {"a": ["2"], "b": ["1"]})

    async def test_to_resign_takes_everything_out(self) -> None:
        """Instance and hooks are gone, those of others are not, and a second time is no error."""
        one, two = await self.enlisted("1"), await self.enlisted("2")
        await self.registry.register(one, ["a"])
        await self.registry.register(two, ["a"])
        await self.registry.remove_instance(one)
        await self.registry.remove_instance(one)
        self.assertEqual(await self.wanting("a"), {"a": ["2"]})
        self.assertIsNone(await self.registry.renew(one))

    async def test_only_the_lease_that_was_seen_is_pruned(self) -> None:
        """
        An instance that renewed meanwhile is alive; only who names its present lease removes it,
        with its hooks.
        """
        one, two = await self.enlisted("1"), await self.enlisted("2")
        await self.registry.register(one, ["a"])
        await self.registry.register(two, ["a"])
        renewed = await self.registry.renew(one)
        self.assertFalse(await self.registry.prune(one))
        self.assertEqual(await self.wanting("a"), {"a": ["1", "2"]})
        self.assertTrue(await self.registry.prune(renewed))
        self.assertFalse(await self.registry.prune(renewed))
        self.assertEqual(await self.wanting("a"), {"a": ["2"]})

    async def test_a_pruned_instance_comes_back_without_its_hooks(self) -> None:
        """What it had was forgotten with it: it has to put its hooks in again."""
        one = await self.enlisted("1")
        await self.registry.register(one, ["a"])
        await self.registry.prune(one)
        again = await self.enlisted("1")
        self.assertEqual(await self.wanting("a"), {})
        await self.registry.register(again, ["a"])
        self.assertEqual(await self.wanting("a"), {"a": ["1"]})

    async def test_a_sweep_forgets_the_dead_only(self) -> None:
        """It says how many it forgot; they cannot renew, and the living keep their hooks."""
        one = await self.enlisted("1")
        await self.registry.register(one, ["a"])
        await self.lapse()
        two = await self.enlisted("2")
        await self.registry.register(two, ["a"])
        self.assertEqual(await self.registry.sweep(), 1)
        self.assertEqual(await self.registry.sweep(), 0)
        self.assertIsNone(await self.registry.renew(one))
        self.assertEqual(await self.wanting("a"), {"a": ["2"]})

    async def test_a_swept_instance_comes_back_without_its_hooks(self) -> None:
        """A hook of a former life does not count in the next."""
        one = await self.enlisted("1")
        await self.registry.register(one, ["a"])
        await self.lapse()
        await self.registry.sweep()
        await self.enlisted("1")
        self.assertEqual(await self.wanting("a"), {})

    async def test_an_append_tells_who_wants_its_events(self) -> None:
        """
        Kept as by the history, and looked up as by the registry, in one call; duplicates go out
        again.
        """
        one, two = await self.enlisted("1"), await self.enlisted("2")
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
        """Put in, taken out, and run out since the append before."""
        one = await self.enlisted("1")

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

    async def test_an_append_of_nothing_asks_nobody(self) -> None:
        """There is no account to ask for."""
        self.assertEqual(await self.store.append([]), Appended([], None))

    async def test_odd_names_are_found_by_an_append(self) -> None:
        """As many accounts as there are oddities, and each told apart."""
        one = await self.enlisted("1")
        await self.registry.register(one, ODD_ACCOUNTS[::2])
        appended = await self.store.append([draft(name) for name in ODD_ACCOUNTS])
        self.assertEqual([stored.event.account for stored in appended.results], ODD_ACCOUNTS)
        self.assertEqual(await appended.recipients, {name: [one] for name in ODD_ACCOUNTS[::2]})

    async def test_both_doors_see_the_same_registry(self) -> None:
        """What one process puts in, another finds."""
        one = await self.enlisted("1")
        await self.registry.register(one, ["a"])
        other = (await self.opened()).registry
        self.assertEqual(await other.instances(["a"]), {"a": [one]})
