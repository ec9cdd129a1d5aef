"""The SQLite store passes the contracts, and what it promises beyond them."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from asyncplumber.errors import PlumberError, Unavailable
from asyncplumber.event import Cursor, Instance, Stored
from asyncplumber.interfaces import LEASE, Claim
from asyncplumber.stores import open_store
from asyncplumber.stores.retention import Retention
from asyncplumber.stores.sqlite import appender as sqlite_append
from asyncplumber.stores.sqlite import connect as sqlite_connect
from asyncplumber.stores.sqlite import file as sqlite_file
from asyncplumber.stores.sqlite import tasks as sqlite_tasks
from asyncplumber.stores.sqlite.store import SqliteStore
from tests.contracts import (
    HistoryContract,
    NewEpochContract,
    RealReactorWithFakeClock,
    RegistryContract,
    SecretContract,
    UnusedNumberingsContract,
    append,
    draft,
    drafts,
    seqs,
)
from tests.revocation_contracts import RevocationContract
from tests.task_contracts import TaskContract, TaskEpochContract


class SqliteTests(
    HistoryContract,
    NewEpochContract,
    RegistryContract,
    RevocationContract,
    SecretContract,
    TaskContract,
    TaskEpochContract,
    UnusedNumberingsContract,
    TestCase,
):
    """One file; each store has its own connection."""

    async def setUp(self) -> None:
        self.path = self.mktemp()
        self.patch(sqlite_file, "QUEUE_TIMEOUT", 0.3)
        self.patch(sqlite_connect, "LOCK_TIMEOUT", 0.3)
        await super().setUp()

    def make(self, retention: Retention, lease: float) -> Any:
        return open_store(f"sqlite:{self.path}", retention, self.reactor, self.reactor, lease=lease)

    def other(self) -> sqlite3.Connection:
        """Open another connection, as another program would."""
        connection = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(connection.close)
        return connection

    async def rows(self) -> int:
        return int(self.other().execute("SELECT count(*) FROM accounts").fetchone()[0])

    async def tickets(self) -> int:
        return int(self.other().execute("SELECT count(*) FROM tickets").fetchone()[0])

    async def test_a_file_of_the_first_version_is_opened(self) -> None:
        """It gets the tables that it lacks, and keeps what is in it."""
        await append(self.store, drafts(2))
        await self.store.stop()
        other = self.other()
        other.executescript(
            "DROP TABLE tasks; DROP TABLE task_presence; DROP TABLE callback_urls;"
            "DROP TABLE revocations; DROP TABLE tickets; ALTER TABLE accounts DROP COLUMN bytes;"
            "PRAGMA user_version = 1;"
        )
        other.close()
        store = await self.opened()
        sizes = self.other().execute("SELECT bytes FROM accounts").fetchall()
        self.assertEqual(sizes, [(2 * len(drafts(1)[0].payload),)])
        row = await store.revocations.revoke(self.row())
        self.assertEqual(await store.revocations.revocations(), [row])
        self.assertTrue((await store.tasks.claim(Claim("a", "k", "r"))).began)
        self.assertEqual(seqs(await self.everything(history=store.history)), [1, 2])

    async def test_a_draft_that_cannot_be_stored_fails_alone(self) -> None:
        """A lone surrogate is no text; the other drafts are stored, and numbered without a gap."""
        answers = await append(
            self.store, [draft(key="1"), draft(key="\ud800"), draft(key="2"), draft("\ud800")]
        )
        self.assertEqual(
            [isinstance(answer, Stored) for answer in answers], [True, False, True, False]
        )
        self.assertEqual(seqs([answers[0], answers[2]]), [1, 2])

    async def test_a_long_history_is_trimmed_without_a_sweep(self) -> None:
        """At most a tenth more than the length is kept."""
        for turn in range(10):
            await append(self.store, drafts(7, prefix=f"{turn}."))
        position = await self.history.ensure("a")
        self.assertEqual(position.head, 70)
        self.assertGreaterEqual(position.floor, 59)
        self.assertEqual(
            self.other().execute("SELECT count(*) FROM events").fetchone(), (70 - position.floor,)
        )

    async def test_a_large_history_is_trimmed_without_a_sweep(self) -> None:
        """At most a tenth more than the size is kept, and the count of bytes is right."""
        store = await self.opened(Retention(length=1000, age=1000.0, size=10_000))
        for turn in range(200):
            payload = b'"data":"%b"' % (b"x" * (turn * 7 % 400))
            several = [draft(key=f"{turn}", payload=payload), draft("b", key=f"{turn}")]
            if turn % 3 == 0:
                several.append(several[0])  # a duplicate takes another way through the appender
            await append(store, several)
            found = self.other().execute(
                "SELECT bytes, (SELECT sum(length(payload)) FROM events WHERE account = number)"
                " FROM accounts"
            )
            for counted, kept in found:
                self.assertEqual(counted, kept)
                self.assertLessEqual(kept, 11_000)
        self.assertGreater(seqs(await self.everything(history=store.history))[0], 1)

    async def test_a_locked_file_is_unavailable_and_comes_back(self) -> None:
        """A call that cannot get the lock in time fails, and stores nothing."""
        other = self.other()
        other.execute("BEGIN IMMEDIATE")
        await self.assertFailure(append(self.store, drafts(1)), Unavailable)
        await self.assertFailure(self.store.ping(), Unavailable)
        other.execute("ROLLBACK")
        self.assertEqual(seqs(await append(self.store, drafts(1, prefix="after"))), [1])

    async def test_tasks_of_a_locked_file_are_unavailable_and_come_back(self) -> None:
        """Nothing is changed by a call that failed, and nothing is logged of what is secret."""
        task = await self.begun(input=b"in")
        url = await self.minted(secret="hush")
        other = self.other()
        other.execute("BEGIN EXCLUSIVE")
        calls = [
            self.tasks.claim(Claim("a", "other", "r")),
            self.tasks.change(task, {"attempts": 1}),
            self.tasks.undispatched(10, 10.0),
            self.tasks.extend(5.0, 30.0),
            self.tasks.forget(1.0, 10),
            self.urls.add(url),
            self.urls.remove("a", "i"),
            self.urls.expire("a", "", "", 1.0),
            self.urls.sweep(),
        ]
        with capturedLogs() as events:
            for call in calls:
                await self.assertFailure(call, Unavailable)
        other.execute("ROLLBACK")
        text = "\n".join(map(str, events))
        self.assertNotIn("hush", text)
        self.assertNotIn(repr(url.digest), text)
        self.assertEqual(await self.tasks.of_account("a", 10), [replace(task, input=None)])
        self.assertEqual(await self.urls.get(url.digest), url)

    async def test_tasks_of_a_store_that_is_stopped_are_unavailable(self) -> None:
        """Each call fails at once."""
        await self.store.stop()
        for call in (
            self.tasks.claim(Claim("a", "k", "r")),
            self.tasks.get("a", "k"),
            self.tasks.of_account("a", 10),
            self.tasks.overdue(10),
            self.tasks.unannounced(10, 5.0),
            self.urls.get(b""),
            self.urls.of_account("a", 10),
        ):
            await self.assertFailure(call, Unavailable)

    async def test_writes_that_wait_share_a_transaction(self) -> None:
        """Of tasks and of callback URLs; one that cannot be stored fails alone."""
        begins: list[str] = []

        def trace(connection: sqlite3.Connection) -> None:
            connection.set_trace_callback(lambda text: begins.append(text.split()[0]))

        def wait(_: sqlite3.Connection) -> None:
            self.assertTrue(asked.wait(10))

        await self.store.file.run(trace)
        asked = Event()
        waited = self.store.file.run(wait)
        claims = [self.tasks.claim(Claim("a", f"{n}", "r")) for n in range(50)]
        bad = self.tasks.claim(Claim("a", "\ud800", "r"))
        read = self.tasks.get("a", "7")
        more = [self.urls.add(self.callback_url(f"{n}")) for n in range(3)]
        claims += [self.tasks.claim(Claim("a", f"{n}", "s")) for n in range(50)]
        asked.set()
        await waited
        answers = await gatherResults(claims)
        self.assertEqual([began for _, began in answers], [True] * 50 + [False] * 50)
        failure = await self.assertFailure(bad, PlumberError)
        self.assertNotIsInstance(failure, Unavailable)
        await gatherResults(more)
        self.assertEqual((await read).run, "r")
        self.assertEqual([begins.count(word) for word in ("BEGIN", "COMMIT")], [1, 1])

    async def test_a_write_that_comes_too_late_fails_alone(self) -> None:
        """Those that came after it are done."""
        asked = Event()
        waited = self.store.file.run(lambda _: asked.wait(10))
        late = self.tasks.claim(Claim("a", "late", "r"))
        await deferLater(self.reactor, 0.4, lambda: None)
        claim = self.tasks.claim(Claim("a", "k", "r"))
        asked.set()
        await waited
        await self.assertFailure(late, Unavailable)
        self.assertTrue((await claim).began)
        self.assertIsNone(await self.tasks.get("a", "late"))

    async def test_the_sweeps_of_tasks_use_indexes(self) -> None:
        """None of them looks at all tasks."""
        for statement in (
            sqlite_tasks._OVERDUE,
            sqlite_tasks._UNDISPATCHED,
            sqlite_tasks._UNANNOUNCED,
            sqlite_tasks._FORGET,
            sqlite_tasks._OF_ACCOUNT,
            sqlite_tasks._LIVE,
        ):
            values = ("1",) * statement.count("?")
            rows = self.other().execute(f"EXPLAIN QUERY PLAN {statement}", values)
            plan = " / ".join(row[3] for row in rows)
            self.assertIn("USING INDEX tasks_", plan.replace("COVERING ", ""), statement)
            self.assertNotIn("SCAN tasks /", f"{plan} /", statement)
            self.assertNotIn("B-TREE", plan, statement)

    async def test_a_full_disk_is_unavailable_and_loses_nothing(self) -> None:
        """An append that does not fit fails as a whole; when there is room, the next succeeds."""
        await append(self.store, drafts(2))
        await self.store.file.run(
            lambda connection: connection.execute("PRAGMA max_page_count = 20").fetchall()
        )
        large = b'"data":"%b"' % (b"x" * 200_000)
        await self.assertFailure(
            append(self.store, [draft(key="small"), draft(key="large", payload=large)]),
            Unavailable,
        )
        await self.store.file.run(
            lambda connection: connection.execute("PRAGMA max_page_count = 1000000").fetchall()
        )
        self.assertEqual(seqs(await append(self.store, [draft(key="large", payload=large)])), [3])

    async def test_a_malformed_file_is_unavailable(self) -> None:
        """If SQLite does not understand the file, calls fail with its reason in the log."""
        await append(self.store, drafts(50, payload=b'"data":"%b"' % (b"x" * 1000)))
        await self.store.stop()
        with open(self.path, "r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (os.path.getsize(self.path) - 4096))
        store = await self.opened()
        await self.assertFailure(append(store, drafts(1)), Unavailable)

    async def test_a_look_up_that_fails_is_no_failure_of_the_append(self) -> None:
        """The events are stored, whatever happens to the registry after it."""
        self.other().execute("DROP TABLE hooks")
        appended = await self.store.append(drafts(2))
        self.assertEqual(seqs(appended.results), [1, 2])
        await self.assertFailure(appended.recipients, Unavailable)
        self.assertEqual(seqs(await self.everything()), [1, 2])

    async def test_two_processes_that_take_turns_continue_each_other(self) -> None:
        """Each remembers the head, and notices that the other has written."""
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

    async def test_a_lease_from_before_the_clock_was_set_back_is_shortened(self) -> None:
        """To four leases; the longer lease of an instance with other options stays."""
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

    async def test_an_expired_numbering_begins_anew(self) -> None:
        """Whether this process swept, or another one that shares the file."""
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

    async def test_an_append_of_many_rows_is_one_transaction(self) -> None:
        """More rows than a statement takes: a duplicate among the last leaves no gap."""
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
        """Not of a remembered account, and not of a new one."""
        await append(self.store, [draft("a", "1")])
        await self.store.file.run(
            lambda connection: connection.execute("PRAGMA max_page_count = 20").fetchall()
        )
        large = draft("b", "1", payload=b'"data":"%b"' % (b"x" * 200_000))
        await self.assertFailure(append(self.store, [draft("a", "2"), large]), Unavailable)
        await self.store.file.run(
            lambda connection: connection.execute("PRAGMA max_page_count = 1000000").fetchall()
        )
        self.assertEqual(seqs(await append(self.store, [draft("b", "2"), draft("a", "3")])), [1, 2])

    async def test_few_accounts_are_remembered_and_all_continue(self) -> None:
        """With more accounts than are remembered."""
        self.patch(sqlite_append, "REMEMBERED", 3)
        for turn in range(1, 5):
            for name in range(6):
                [answer] = await append(self.store, [draft(f"{name}", f"{turn}")])
                self.assertEqual(answer.event.seq, turn)
                self.assertLessEqual(self.history.appender.remembered, 4)

    async def test_results_are_for_the_owner_only(self) -> None:
        """Other users of the machine cannot read the file or its log."""
        await append(self.store, drafts(1))
        for path in (self.path, f"{self.path}-wal"):
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600, path)

    async def test_the_option_synchronous_reaches_sqlite(self) -> None:
        """SQLite calls ``full`` 2 and ``normal`` 1."""
        for option, expected in (("", 1), ("?synchronous=normal", 1), ("?synchronous=full", 2)):
            store = SqliteStore(f"sqlite:{self.path}{option}", self.retention, self.reactor)
            await store.start()
            said = await store.file.run(
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

    async def test_a_missing_directory_is_named(self) -> None:
        """It is not created."""
        await self.refused(
            f"{self.mktemp()}/none/store.db", "none/store.db cannot be used: No such file"
        )

    async def test_a_directory_is_no_file(self) -> None:
        """The message says so."""
        path = self.mktemp()
        os.mkdir(path)
        await self.refused(path, "cannot be used: Is a directory")

    async def test_a_file_of_another_kind_is_left_alone(self) -> None:
        """It is refused, and stays as it was."""
        path = Path(self.mktemp())
        path.write_bytes(b"this is my diary\n" * 1000)
        await self.refused(str(path), "file is not a database")
        self.assertEqual(path.read_bytes(), b"this is my diary\n" * 1000)

    async def test_an_old_sqlite_is_named(self) -> None:
        """With the version that is needed."""
        self.patch(sqlite_connect, "OLDEST", (99, 1))
        await self.refused(self.mktemp(), "SQLite 3.*99.1 or later")

    async def test_a_newer_schema_is_refused(self) -> None:
        """An old program does not write into tables that it does not know."""
        path = self.mktemp()
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA user_version = 99")
        connection.close()
        await self.refused(path, "newer asyncplumber")


class SqliteKillTests(TestCase):
    """Accepted means kept."""

    async def test_a_killed_process_loses_nothing_that_was_accepted(self) -> None:
        """After SIGKILL amid appends, each answered one is in the file, numbered without a gap."""
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
                # The last line may be half.  Whole lines tell of appends that were answered.
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
