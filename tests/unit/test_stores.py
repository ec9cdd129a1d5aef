"""The memory store passes the contracts; epochs; which URIs name a store."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from asyncplumber.event import Cursor, Instance, Position
from asyncplumber.interfaces import CursorLost, CursorMoved
from asyncplumber.stores import open_store
from asyncplumber.stores.epochs import epoch_after, new_epoch
from asyncplumber.stores.memory import MemoryStore
from asyncplumber.stores.mongo.uri import parsed
from asyncplumber.stores.retention import Retention, check_reach, hook_url
from tests.contracts import (
    HistoryContract,
    NewEpochContract,
    RegistryContract,
    SecretContract,
    UnusedNumberingsContract,
    append,
    draft,
    drafts,
    seqs,
)

NOW = 1_800_000_000.0


class MemoryStoreTests(
    HistoryContract,
    NewEpochContract,
    RegistryContract,
    SecretContract,
    UnusedNumberingsContract,
    TestCase,
):
    """Nothing lasts, but everything else holds."""

    _store: MemoryStore | None = None

    def make(self, retention: Retention, lease: float) -> Any:
        if self._store is None or retention is not self.retention:
            # In memory, the same data is the same object.  A test with other limits gets another.
            self._store = MemoryStore(retention, self.reactor, lease=lease, shared=True)
            self.retention = retention
        return self._store

    async def rows(self) -> int:
        return len(self.history.accounts)

    async def test_a_store_of_one_process_looks_up_nobody(self) -> None:
        """There are no other instances to look for."""
        alone = MemoryStore(self.retention, self.reactor)
        instance = await alone.registry.add_instance(Instance("1", "http://127.0.0.1/1"))
        await alone.registry.register(instance, ["a"])
        appended = await alone.append(drafts(2))
        self.assertEqual((seqs(appended.results), appended.recipients), ([1, 2], None))

    async def test_a_backup_can_be_restored(self) -> None:
        """What was stored after it is lost, and its numbers are given out again."""
        await append(self.store, drafts(2))
        backup = self.history.snapshot()
        await append(self.store, [draft(key="lost"), draft("b")])
        for _ in range(2):
            self.history.restore(backup)
            self.assertEqual(
                (seqs(await self.everything()), self.history.accounts), ([1, 2], ["a"])
            )
            [stored] = await append(self.store, [draft(key="lost")])
            self.assertEqual((stored.event.seq, stored.duplicate), (3, False))


class EpochTests(SynchronousTestCase):
    """The names of numberings."""

    def test_epochs_differ_and_sort_by_time(self) -> None:
        """Those of one millisecond differ, and each is the epoch of a cursor."""
        same = {new_epoch(NOW) for _ in range(100)}
        self.assertGreater(len(same), 90)
        self.assertLess(max(same), new_epoch(NOW + 0.002))
        for epoch in same:
            self.assertEqual(Cursor.parse(f"{epoch}.1"), Cursor(epoch, 1))

    def test_an_epoch_follows_the_newest_although_the_clock_was_set_back(self) -> None:
        """By an hour, or not at all; and any name may be the newest."""
        for now in (NOW, NOW - 3600):
            newest = new_epoch(NOW)
            self.assertGreater(epoch_after(newest, now), newest)
        self.assertEqual(epoch_after("", NOW, lambda now: f"{now:.0f}"), "1800000000")
        self.assertEqual(epoch_after("no time", NOW, lambda now: f"{now:.0f}"), "1800000000")


class ReachTests(SynchronousTestCase):
    """Whether a reader can go on after a cursor."""

    def test_what_is_between_floor_and_head_can_be_read(self) -> None:
        """Both included: after the head nothing follows yet."""
        for seq in (2, 5):
            check_reach(Position("e", 5, 2), Cursor("e", seq), recent=False)
        for seq in (1, 6):
            with self.assertRaises(CursorLost):
                check_reach(Position("e", 5, 2), Cursor("e", seq), recent=True)

    def test_a_recent_place_before_the_first_event_has_moved(self) -> None:
        """It is lost if it is not recent, if events were deleted, or if it is no such place."""
        with self.assertRaises(CursorMoved) as caught:
            check_reach(Position("e", 5, 0), Cursor("d", 0), recent=True)
        self.assertEqual(caught.exception.cursor, Cursor("e", 0))
        for position, seq, recent in (
            (Position("e", 5, 0), 0, False),
            (Position("e", 5, 2), 0, True),
            (Position("e", 5, 0), 1, True),
        ):
            with self.assertRaises(CursorLost):
                check_reach(position, Cursor("d", seq), recent)

    def test_the_url_of_a_hook_names_the_account(self) -> None:
        """Percent-encoded, so that it is one segment of the path."""
        instance = Instance("1", "http://127.0.0.1:1/instances/1")
        self.assertEqual(
            hook_url(instance, "ä/ö?"), "http://127.0.0.1:1/instances/1/hooks/%C3%A4%2F%C3%B6%3F"
        )


class UriTests(SynchronousTestCase):
    """What is refused before anything is opened."""

    def test_a_uri_that_names_no_store_is_refused(self) -> None:
        """With a sentence, and before anything is opened or connected."""
        for uri in [
            "",
            "redis://x",
            "sqlite:",
            "sqlite::memory:",
            "sqlite:x?synchronous=off",
            "sqlite:x?other=1",
            "mongodb://",
            "mongodb://host:port/",
            "mongodb://u:p@h@x/",
            "mongodb://u:p@host/?authMechanism=PLAIN",
        ]:
            with self.assertRaises(ValueError, msg=uri):
                open_store(uri, Retention(), None)

    def test_memory_is_a_store(self) -> None:
        """With the lease that was asked for."""
        clock = Clock()
        store: Any = open_store("memory:", Retention(), None, clock, lease=2.0)
        instance = self.successResultOf(store.registry.add_instance(Instance("1", "http://x")))
        self.successResultOf(store.registry.register(instance, ["a"]))
        clock.advance(1.9)
        self.assertEqual(self.successResultOf(store.registry.instances(["a"])), {"a": [instance]})
        clock.advance(0.1)
        self.assertEqual(self.successResultOf(store.registry.instances(["a"])), {})

    def test_a_password_is_not_in_the_name_of_the_store(self) -> None:
        """The log names a store by its hosts and database."""
        address = parsed("mongodb://user:secret@host/db")
        self.assertEqual(f"{address} {address!r}".count("secret"), 0)
        self.assertEqual(str(address), "mongodb://host:27017/db")
