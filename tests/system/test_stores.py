"""Every store keeps the one contract; and what each of them promises beyond it."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from asyncplumber.errors import Unavailable
from asyncplumber.event import Cursor, Instance, Stored
from asyncplumber.interfaces import LEASE, CursorMoved
from asyncplumber.stores import open_store
from asyncplumber.stores.memory import MemoryStore
from asyncplumber.stores.retention import Retention
from asyncplumber.stores.sqlite import appender as sqlite_append
from asyncplumber.stores.sqlite import connect as sqlite_connect
from asyncplumber.stores.sqlite import file as sqlite_file
from tests.contracts import (
    HistoryContract,
    NewEpochContract,
    RealReactorWithFakeClock,
    RegistryContract,
    SecretContract,
    append,
    draft,
    drafts,
    seqs,
)


class UnusedNumberings:
    """What stores promise that have only our clock.  (MongoDB forgets by its own.)"""

    async def test_an_unused_numbering_is_forgotten_at_last(self) -> None:
        """A month after the last use, and not while somebody asks for heads."""
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

    async def test_a_cursor_of_a_numbering_that_was_forgotten_is_refused(self) -> None:
        """
        Whether the account has events again or not, and whether the client had seen something or
        nothing.
        """
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

    async def test_who_has_seen_nothing_loses_nothing(self) -> None:
        """
        For nearly a month the place before the first event is known, whatever it is called when
        that comes.
        """
        stands = []
        for _ in range(25):
            stands.append((await self.history.ensure("a")).cursor)
            self.reactor.advance(self.retention.numbering / 29)
            await append(self.store, [draft("other", key=f"{len(stands)}")])
            await self.history.sweep()
        self.assertEqual(len(set(stands)), 25)
        for expected in ([], [1, 2]):
            if expected:
                await append(self.store, drafts(2))
            for stand in stands:
                with self.assertRaises(CursorMoved) as caught:
                    await self.history.read("a", stand, None, 10)
                self.assertEqual(
                    seqs(await self.history.read("a", caught.exception.cursor, None, 10)), expected
                )

    async def test_who_has_seen_nothing_is_told_when_the_first_is_gone(self) -> None:
        """A history that begins with a later event is a gap for who stands before the first."""
        stand = (await self.history.ensure("a")).cursor
        self.reactor.advance(self.retention.renewal + 1)
        await append(self.store, drafts(30))
        await self.history.sweep()
        self.assertEqual(await self.lost("a", stand), await self.history.ensure("a"))

    async def test_an_epoch_that_was_never_given_out_is_refused(self) -> None:
        """Number 0 of an invented one is no place before the first event."""
        await append(self.store, drafts(1))
        self.assertEqual((await self.lost("a", Cursor("invented", 0))).head, 1)


class MemoryTests(
    HistoryContract, NewEpochContract, RegistryContract, SecretContract, UnusedNumberings, TestCase
):
    """Nothing lasts, but all else holds."""

    _store = None

    def make(self, retention: Retention, lease: float) -> Any:
        if self._store is None or retention is not self.retention:
            # Two doors to one store are, in memory, one object; a test that wants other limits gets
            # another.
            self._store = MemoryStore(retention, self.reactor, lease=lease, shared=True)
            self.retention = retention
        return self._store

    async def rows(self) -> int:
        return len(self.history.accounts)

    async def test_who_shares_with_nobody_asks_nobody(self) -> None:
        """A store of one process has no other instances to look for."""
        alone = MemoryStore(self.retention, self.reactor)
        await alone.registry.register(
            await alone.registry.add_instance(Instance("1", "http://127.0.0.1/1")), ["a"]
        )
        appended = await alone.append(drafts(2))
        self.assertEqual((seqs(appended.results), appended.recipients), ([1, 2], None))


class SqliteTests(
    HistoryContract, NewEpochContract, RegistryContract, SecretContract, UnusedNumberings, TestCase
):
    """One file, opened as often as there are doors."""

    async def setUp(self) -> None:
        self.path = self.mktemp()
        self.patch(sqlite_file, "QUEUE_TIMEOUT", 0.3)
        self.patch(sqlite_connect, "LOCK_TIMEOUT", 0.3)
        await super().setUp()

    def make(self, retention: Retention, lease: float) -> Any:
        return open_store(f"sqlite:{self.path}", retention, self.reactor, self.reactor, lease=lease)

    def other(self) -> sqlite3.Connection:
        """The same file, by nobody's leave."""
        connection = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(connection.close)
        return connection

    async def rows(self) -> int:
        return int(self.other().execute("SELECT count(*) FROM accounts").fetchone()[0])

    async def test_a_draft_that_cannot_be_stored_fails_alone(self) -> None:
        """A lone surrogate is no text; those beside it are stored, and numbered without a gap."""
        answers = await append(
            self.store, [draft(key="1"), draft(key="\ud800"), draft(key="2"), draft("\ud800")]
        )
        self.assertEqual(
            [isinstance(answer, Stored) for answer in answers], [True, False, True, False]
        )
        self.assertEqual(seqs([answers[0], answers[2]]), [1, 2])

    async def test_a_long_history_is_trimmed_without_a_sweep(self) -> None:
        """At most a tenth more than the length stays."""
        for turn in range(10):
            await append(self.store, drafts(7, prefix=f"{turn}."))
        position = await self.history.ensure("a")
        self.assertEqual(position.head, 70)
        self.assertGreaterEqual(position.floor, 59)
        self.assertEqual(
            self.other().execute("SELECT count(*) FROM events").fetchone(), (70 - position.floor,)
        )

    async def test_a_locked_file_is_unavailable_and_comes_back(self) -> None:
        """Who cannot have the lock in time is told so, and nothing was stored."""
        other = self.other()
        other.execute("BEGIN IMMEDIATE")
        await self.assertFailure(append(self.store, drafts(1)), Unavailable)
        await self.assertFailure(self.store.ping(), Unavailable)
        other.execute("ROLLBACK")
        self.assertEqual(seqs(await append(self.store, drafts(1, prefix="after"))), [1])

    async def test_a_full_disk_is_unavailable_and_loses_nothing(self) -> None:
        """
        An append that does not fit fails, the transaction with it; when there is room it goes on.
        """
        await append(self.store, drafts(2))
        await self.store._file.run(
            lambda connection: connection.execute("PRAGMA max_page_count = 20").fetchall()
        )
        large = b'"data":"%b"' % (b"x" * 200_000)
        await self.assertFailure(
            append(self.store, [draft(key="small"), draft(key="large", payload=large)]),
            Unavailable,
        )
        await self.store._file.run(
            lambda connection: connection.execute("PRAGMA max_page_count = 1000000").fetchall()
        )
        self.assertEqual(seqs(await append(self.store, [draft(key="large", payload=large)])), [3])

    async def test_a_spoilt_file_is_unavailable(self) -> None:
        """
        A file that SQLite does not understand any more is an outage with its reason in the log, and
        no hang.
        """
        await append(self.store, drafts(50, payload=b'"data":"%b"' % (b"x" * 1000)))
        await self.store.stop()
        with open(self.path, "r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (os.path.getsize(self.path) - 4096))
        store = await self.opened()
        await self.assertFailure(append(store, drafts(1)), Unavailable)

    async def test_a_look_up_that_fails_fails_alone(self) -> None:
        """What was kept is accepted, whatever befalls the registry after it."""
        self.other().execute("DROP TABLE hooks")
        appended = await self.store.append(drafts(2))
        self.assertEqual(seqs(appended.results), [1, 2])
        await self.assertFailure(appended.recipients, Unavailable)
        self.assertEqual(seqs(await self.everything()), [1, 2])

    async def test_two_who_take_turns_continue_each_other(self) -> None:
        """Each believes to know where the numbering stands, and sees that the other went on."""
        other = await self.opened()
        answers = []
        for turn in range(4):
            answers += await append(self.store, [draft("a", f"{turn}"), draft(f"own {turn}")])
            answers += await append(self.store, [draft("a", f"{turn}+")])
            answers += await append(other, [draft("a", f"{turn}++"), draft(f"other {turn}")])
        shared = [answer.event for answer in answers if answer.event.account == "a"]
        self.assertEqual(seqs(shared), list(range(1, 13)))
        self.assertEqual(len({event.epoch for event in shared}), 1)
        self.assertEqual(
            {answer.event.seq for answer in answers if answer.event.account != "a"}, {1}
        )
        self.assertEqual(
            [event.id for event in await self.everything()], [event.id for event in shared][-10:]
        )

    async def test_a_lease_of_before_the_clock_was_set_back_is_shortened(self) -> None:
        """To four leases; the lease of an instance with another, longer one stays as it is."""
        long = await self.opened(lease=4 * LEASE)
        await long.registry.register(
            await long.registry.add_instance(Instance("long", "http://127.0.0.1/1")), ["a"]
        )
        self.reactor.advance(-3600)
        await self.registry.register(
            await self.registry.add_instance(Instance("new", "http://127.0.0.1/2")), ["a"]
        )
        await self.registry.sweep()
        self.reactor.advance(4 * LEASE - 1)
        self.assertIn("long", [each.id for each in (await self.registry.instances(["a"]))["a"]])
        self.reactor.advance(2)
        await self.registry.sweep()
        self.assertEqual(await self.registry.instances(["a"]), {})
        await long.registry.add_instance(Instance("long", "http://127.0.0.1/1"))
        await self.registry.sweep()
        self.reactor.advance(4 * LEASE - 1)
        await self.registry.sweep()
        self.assertIsNotNone(await long.registry.renew(Instance("long", "http://127.0.0.1/1")))

    async def test_a_numbering_that_was_forgotten_begins_anew(self) -> None:
        """Whoever swept: we, or another who shares the file."""
        other = await self.opened()
        for sweeper in (self.store, other):
            [before] = await append(self.store, [draft(key="before")])
            self.reactor.advance(self.retention.age + 1)
            await self.history.sweep()
            [continued] = await append(self.store, [draft(key="continued")])
            self.assertEqual(
                continued.event.cursor, Cursor(before.event.epoch, before.event.seq + 1)
            )
            self.reactor.advance(self.retention.numbering + 1)
            await sweeper.history.sweep()
            await append(sweeper, [draft("takes the number", key=f"{id(sweeper)}")])
            [anew] = await append(self.store, [draft(key="anew")])
            self.assertEqual(anew.event.seq, 1)
            self.assertNotEqual(anew.event.epoch, before.event.epoch)
            self.assertEqual(await self.everything(), [anew.event])
            self.reactor.advance(self.retention.numbering + 1)
            await self.history.sweep()

    async def test_an_append_of_many_rows_is_one(self) -> None:
        """
        More rows than a statement takes; a duplicate among the last of them leaves no hole and no
        remains.
        """
        retention = Retention(length=1000, age=1000.0)
        store = await self.opened(retention)
        count = 2 * sqlite_append.ROWS + 1
        several = [
            each for n in range(count) for each in (draft("a", f"{n}"), draft(f"account {n}"))
        ]
        answers = await append(store, several)
        self.assertEqual(seqs(answers[::2]), list(range(1, count + 1)))
        self.assertEqual(seqs(answers[1::2]), [1] * count)
        again = await append(store, [*drafts(count), draft("a", "5"), *drafts(2, prefix="last")])
        self.assertEqual(
            seqs(again), [*range(count + 1, 2 * count + 1), 6, 2 * count + 1, 2 * count + 2]
        )
        self.assertEqual([answer.duplicate for answer in again].count(True), 1)
        self.assertEqual(
            seqs(await self.everything(history=store.history)), list(range(1, 2 * count + 3))
        )

    async def test_an_append_that_failed_takes_no_numbers(self) -> None:
        """Neither of an account that was remembered, nor of one that it would have begun."""
        await append(self.store, [draft("a", "1")])
        await self.store._file.run(
            lambda connection: connection.execute("PRAGMA max_page_count = 20").fetchall()
        )
        large = draft("b", "1", payload=b'"data":"%b"' % (b"x" * 200_000))
        await self.assertFailure(append(self.store, [draft("a", "2"), large]), Unavailable)
        await self.store._file.run(
            lambda connection: connection.execute("PRAGMA max_page_count = 1000000").fetchall()
        )
        self.assertEqual(seqs(await append(self.store, [draft("b", "2"), draft("a", "3")])), [1, 2])

    async def test_few_numberings_are_remembered_and_all_go_on(self) -> None:
        """More accounts than there is memory for."""
        self.patch(sqlite_append, "REMEMBERED", 3)
        for turn in range(1, 5):
            for name in range(6):
                [answer] = await append(self.store, [draft(f"{name}", f"{turn}")])
                self.assertEqual(answer.event.seq, turn)
                self.assertLessEqual(self.history.appender.remembered, 4)

    async def test_results_are_for_the_owner_only(self) -> None:
        """Whoever else has an account on the machine cannot read the file, nor its journal."""
        await append(self.store, drafts(1))
        for path in (self.path, f"{self.path}-wal"):
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600, path)

    async def test_the_wish_for_full_safety_reaches_sqlite(self) -> None:
        """``synchronous=full`` is 2 in its words; without it, 1."""
        for option, expected in (("", 1), ("?synchronous=normal", 1), ("?synchronous=full", 2)):
            store = open_store(f"sqlite:{self.path}{option}", self.retention, self.reactor)
            await store.start()
            said = await store._file.run(
                lambda connection: connection.execute("PRAGMA synchronous").fetchone()
            )
            await store.stop()
            self.assertEqual(said, (expected,))


class SqliteStartTests(TestCase):
    """A file that cannot be used ends the start, with a sentence for the operator."""

    async def refused(self, path: str, reason: str) -> None:
        store = open_store(f"sqlite:{path}", Retention(), RealReactorWithFakeClock())
        with self.assertRaisesRegex(ValueError, reason):
            await store.start()
        await store.stop()

    async def test_a_folder_that_is_missing_is_named(self) -> None:
        """Nothing is created by guess."""
        await self.refused(
            f"{self.mktemp()}/none/store.db", "none/store.db cannot be used: No such file"
        )

    async def test_a_folder_is_no_file(self) -> None:
        """Nor is it opened as one."""
        path = self.mktemp()
        os.mkdir(path)
        await self.refused(path, "cannot be used: Is a directory")

    async def test_a_file_of_another_kind_is_left_alone(self) -> None:
        """It is refused, and is as it was."""
        path = Path(self.mktemp())
        path.write_bytes(b"this is my diary\n" * 1000)
        await self.refused(str(path), "file is not a database")
        self.assertEqual(path.read_bytes(), b"this is my diary\n" * 1000)

    async def test_an_old_sqlite_is_named(self) -> None:
        """With the version that it should have."""
        self.patch(sqlite_connect, "OLDEST", (99, 1))
        await self.refused(self.mktemp(), "SQLite 3.*99.1 or later")

    async def test_a_newer_schema_is_refused(self) -> None:
        """An old program does not write into what it does not understand."""
        path = self.mktemp()
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA user_version = 99")
        connection.close()
        await self.refused(path, "newer asyncplumber")


class SqliteKillTests(TestCase):
    """Accepted means kept."""

    async def test_a_killed_process_loses_nothing_that_was_accepted(self) -> None:
        """
        SIGKILL amid appends: each one that was answered is in the file, and the numbers have no
        hole.
        """
        uri = f"sqlite:{os.path.abspath(self.mktemp())}"
        root = Path(__file__).resolve().parent.parent.parent
        accepted: set[str] = set()
        for life in range(2):
            with subprocess.Popen(
                [sys.executable, "-m", "tests.sqlite_writer", uri, str(life)],
                cwd=root,
                stdout=subprocess.PIPE,
                text=True,
            ) as writer:
                assert writer.stdout is not None
                for _ in range(20):
                    accepted.update(writer.stdout.readline().split())
                writer.kill()
                # The last line may be half; what is whole was answered.
                accepted.update(
                    word
                    for line in writer.stdout.readlines()
                    if line.endswith("\n")
                    for word in line.split()
                )
        store = open_store(uri, Retention(length=100_000), RealReactorWithFakeClock())
        self.addCleanup(store.stop)
        await store.start()
        epoch = (await store.history.ensure("a")).epoch
        events = await store.history.read("a", Cursor(epoch, 0), None, 1_000_000)
        self.assertGreaterEqual(len(accepted), 60)
        self.assertEqual(seqs(events), list(range(1, len(events) + 1)))
        self.assertEqual(accepted - {event.id for event in events}, set())


class WrongWordsTests(TestCase):
    """What is refused before anything is opened."""

    def test_words_that_name_no_store_are_refused(self) -> None:
        """Each with a sentence, and before anything is dialled."""
        for words in [
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
            with self.assertRaises(ValueError, msg=words):
                open_store(words, Retention(), None)

    def test_a_password_is_not_in_the_name_of_the_store(self) -> None:
        """The log names a store by its hosts and database."""
        from asyncplumber.stores.mongo.uri import parsed

        address = parsed("mongodb://user:secret@host/db")
        self.assertEqual(f"{address} {address!r}".count("secret"), 0)
        self.assertEqual(str(address), "mongodb://host:27017/db")
