"""One SQLite file: several processes open it, and things happen to it while it is open."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SkipTest, TestCase

from asyncplumber.errors import Unavailable
from asyncplumber.stores import open_store
from asyncplumber.stores.retention import Retention
from asyncplumber.stores.sqlite import checkpoint as sqlite_checkpoint
from asyncplumber.stores.sqlite import connect as sqlite_connect
from asyncplumber.stores.sqlite import disk as sqlite_disk
from asyncplumber.stores.sqlite import file_identity as sqlite_identity
from asyncplumber.stores.sqlite import store as sqlite
from harness.processes import start_server
from tests.contracts import append, draft, drafts, seqs


class OpeningTests(TestCase):
    """As workers do when they start."""

    async def test_several_processes_may_create_the_file_at_the_same_moment(self) -> None:
        """None fails because another one is creating the tables or changing the file's mode."""
        for _ in range(60):
            path = self.mktemp()
            stores: list[Any] = [
                open_store(f"sqlite:{path}", Retention(), reactor) for _ in range(4)
            ]
            opened: list[Deferred[None]] = [store.start() for store in stores]
            await gatherResults(opened, consumeErrors=True)
            await gatherResults([store.stop() for store in stores])

    async def test_a_call_while_it_opens_waits_for_it(self) -> None:
        """An append that comes first is stored, after the file is open."""
        store = open_store(f"sqlite:{self.mktemp()}", Retention(), reactor)
        opened = store.start()
        self.addCleanup(store.stop)
        [stored] = await append(store, [draft()])
        self.assertTrue(opened.called)
        self.assertEqual(stored.event.seq, 1)

    async def test_a_call_that_waits_for_a_file_that_cannot_be_opened_fails(self) -> None:
        """With `Unavailable`, and so does each later call."""
        store = open_store(f"sqlite:{self.mktemp()}/none/x", Retention(), reactor)
        opened = store.start()
        asked = store.ping()
        await self.assertFailure(opened, ValueError)
        await self.assertFailure(asked, Unavailable)
        await self.assertFailure(store.ping(), Unavailable)
        await store.stop()

    async def test_a_call_that_waits_for_too_long_fails(self) -> None:
        """Another process holds the lock of the file for too long."""
        self.patch(sqlite_connect, "LOCK_TIMEOUT", 0.2)
        path = self.mktemp()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("PRAGMA journal_mode = WAL")
            other.execute("BEGIN IMMEDIATE")
            store = open_store(f"sqlite:{path}", Retention(), reactor)
            opened = store.start()
            asked = store.ping()
            await self.assertFailure(opened, ValueError)
            await self.assertFailure(asked, Unavailable)
            await store.stop()

    async def test_a_stop_while_it_opens_waits_for_it(self) -> None:
        """The calls before it are done, and the file is closed."""
        path = self.mktemp()
        store = open_store(f"sqlite:{path}", Retention(), reactor)
        opened = store.start()
        asked = append(store, [draft()])
        await store.stop()
        await opened
        [stored] = await asked
        self.assertEqual(stored.event.seq, 1)
        with closing(sqlite3.connect(path)) as other:
            self.assertEqual(other.execute("SELECT count(*) FROM events").fetchone(), (1,))

    async def test_it_cannot_be_opened_twice_at_once(self) -> None:
        """A second start is an error of the program; after a stop it can be opened again."""
        store = open_store(f"sqlite:{self.mktemp()}", Retention(), reactor)
        self.addCleanup(store.stop)
        for count in (1, 2):
            await store.start()
            await self.assertFailure(store.start(), RuntimeError)
            [stored] = await append(store, [draft(key=f"{count}")])
            self.assertEqual(stored.event.seq, count)
            await store.stop()

    async def test_a_start_that_was_cancelled_can_be_stopped(self) -> None:
        """Whether the file could be opened or not."""
        folder = self.mktemp()
        os.mkdir(folder)
        for path in (f"{folder}/x", f"{folder}/none/x"):
            store = open_store(f"sqlite:{path}", Retention(), reactor)
            opened = store.start()
            opened.cancel()
            await self.assertFailure(opened, CancelledError)
            await store.stop().addTimeout(5, reactor)
            await self.assertFailure(store.ping(), Unavailable)

    async def test_each_stop_waits_for_the_end(self) -> None:
        """Also a second one while the first is under way."""
        path = self.mktemp()
        store = open_store(f"sqlite:{path}", Retention(), reactor)
        await store.start()
        asked = append(store, [draft()])
        await gatherResults([store.stop(), store.stop()])
        self.assertTrue(asked.called)
        self.assertFalse(os.path.exists(f"{path}-wal"))

    async def test_opening_it_a_second_time_releases_no_lock(self) -> None:
        """
        A process's locks on a file end when it closes any descriptor of it.

        Then another process would believe to have the last connection, and remove the log.
        """
        path = os.path.abspath(self.mktemp())
        stores = [open_store(f"sqlite:{path}", Retention(), reactor) for _ in range(2)]
        for store in stores:
            await store.start()
            self.addCleanup(store.stop)
        await append(stores[0], drafts(1))
        # A connection that believes to be the last one removes the log when it closes.
        look = (
            "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); "
            "c.execute('SELECT * FROM events').fetchall(); c.close()"
        )
        subprocess.run([sys.executable, "-c", look, path], check=True)
        self.assertTrue(os.path.exists(f"{path}-wal"))
        self.assertEqual(seqs(await append(stores[1], drafts(1, prefix="next"))), [2])


class MisfortuneTests(TestCase):
    """What operators and disks do to a file that is in use."""

    async def setUp(self) -> None:
        self.patch(sqlite, "PING_LIFETIME", 0.0)
        self.patch(sqlite_identity, "INDEX_INTERVAL", 0.0)
        self.patch(sqlite_disk, "INTERVAL", 0.0)
        self.path = self.mktemp()
        self.said: list[str] = []
        observer: Any = self._note
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.store = await self.opened()
        await append(self.store, drafts(3))

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("log_namespace", "").startswith("asyncplumber"):
            self.said.append(str(event.get("reason", event["log_format"])))

    async def opened(self) -> Any:
        store: Any = open_store(f"sqlite:{self.path}", Retention(), reactor)
        self.addCleanup(store.stop)
        await store.start()
        return store

    async def refused(self, *said: str) -> None:
        """Appends and pings fail, several times, and the log says why in one line."""
        for turn in range(2):
            await self.assertFailure(
                self.store.append([draft(key=f"refused {len(self.said)} {turn}")]), Unavailable
            )
            await self.assertFailure(self.store.ping(), Unavailable)
        self.assertEqual(len(self.said), 1, self.said)
        for text in said:
            self.assertIn(text, self.said[0])

    async def taken(self, key: str) -> int:
        """A ping and an append succeed; return the event's number."""
        await self.store.ping()
        answers = await append(self.store, [draft(key=key)])
        return int(answers[0].event.seq)

    async def test_a_rollback_that_fails_ends_nothing(self) -> None:
        """The call fails, and the calls after it are still done."""

        def broken(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            deny = (sqlite3.SQLITE_TRANSACTION, "ROLLBACK")
            connection.set_authorizer(
                lambda *what: sqlite3.SQLITE_DENY if what[:2] == deny else sqlite3.SQLITE_OK
            )
            raise sqlite3.OperationalError("disk I/O error")

        await self.assertFailure(self.store.file.run(broken), Unavailable)
        await self.assertFailure(self.store.append([draft(key="next")]), Unavailable)

        def mended(connection: sqlite3.Connection) -> None:
            connection.set_authorizer(None)
            connection.rollback()

        await self.store.file.run(mended)
        self.assertEqual(await self.taken("after"), 4)

    async def test_a_deleted_file_is_noticed(self) -> None:
        """An append into a file that no process can open any more is not accepted."""
        os.unlink(self.path)
        await self.refused(self.path, "deleted, moved or replaced", "until a restart")

    async def test_a_replaced_file_is_noticed(self) -> None:
        """Although the new file is a whole database; it stays as it is."""
        other = self.mktemp()
        shutil.copyfile(self.path, other)
        os.rename(other, self.path)
        with open(self.path, "rb") as file:
            before = file.read()
        await self.refused("deleted, moved or replaced")
        await self.store.stop()
        with open(self.path, "rb") as file:
            self.assertEqual(file.read(), before)

    async def test_a_lost_log_is_noticed(self) -> None:
        """The log is a part of the database: it has the events that were accepted last."""
        for ending in ("-wal", "-shm"):
            self.said.clear()
            moved = self.mktemp()
            os.rename(self.path + ending, moved)
            await self.refused(self.path + ending)
            os.rename(moved, self.path + ending)
            self.assertGreater(await self.taken(f"after {ending}"), 3)

    async def test_a_lost_log_is_noticed_at_once(self) -> None:
        """No append succeeds after it, not even within the interval for the index of the log."""
        self.patch(sqlite_identity, "INDEX_INTERVAL", 3600.0)
        await self.taken("the index is looked at once more")
        os.unlink(self.path + "-wal")
        await self.refused(self.path + "-wal")

    async def test_an_emptied_file_is_noticed(self) -> None:
        """It is the same file, but has nothing in it."""
        os.truncate(self.path, 0)
        await self.refused("emptied")

    async def test_it_goes_on_when_the_same_file_is_back(self) -> None:
        """Numbers continue, nothing was lost, and the log says that the store is back."""
        moved = self.mktemp()
        os.rename(self.path, moved)
        await self.refused()
        os.rename(moved, self.path)
        numbers = [await self.taken("back"), await self.taken("again")]
        self.assertEqual(numbers[1], numbers[0] + 1)
        position = await self.store.history.ensure("a")
        events = await self.store.history.read("a", position.cursor._replace(seq=0), None, 100)
        self.assertEqual(seqs(events), list(range(1, numbers[1] + 1)))
        self.assertIn("is back", self.said[-1])

    async def test_a_stop_leaves_the_log_of_a_new_database_alone(self) -> None:
        """The last connection removes the log by its name, which may be another database's now."""
        for ending in ("", "-wal", "-shm"):
            os.unlink(self.path + ending)
        await self.refused()
        other = await self.opened()
        await append(other, drafts(2))
        await self.store.stop()
        self.assertTrue(os.path.exists(f"{self.path}-wal"))
        self.assertEqual(seqs(await append(other, drafts(1, prefix="next"))), [3])

    async def test_a_malformed_file_is_not_ready(self) -> None:
        """If SQLite does not understand its pages, appends and pings fail."""
        await append(self.store, drafts(50, "b", payload=b'"data":"%b"' % (b"x" * 1000)))
        await self.store.stop()
        with open(self.path, "r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (os.path.getsize(self.path) - 4096))
        self.store = await self.opened()
        await self.refused("malformed")

    async def test_a_full_disk_is_not_ready(self) -> None:
        """And it is ready when there is room again."""
        limit = "PRAGMA max_page_count = %d"
        (pages,) = await self.store.file.run(
            lambda connection: connection.execute("PRAGMA page_count").fetchone()
        )
        await self.store.file.run(lambda connection: connection.execute(limit % pages).fetchall())
        with self.assertRaises(Unavailable):
            for turn in range(100):
                await self.store.append(
                    drafts(10, prefix=f"{turn}.", payload=b'"data":"%b"' % (b"x" * 1000))
                )
        await self.assertFailure(self.store.ping(), Unavailable)
        self.assertEqual(len(self.said), 1, self.said)
        await self.store.file.run(
            lambda connection: connection.execute(limit % 1_000_000).fetchall()
        )
        await self.store.ping()
        self.assertIn("is back", self.said[-1])

    async def test_a_file_system_without_room_is_not_ready(self) -> None:
        """A real file system, where one can be mounted."""
        folder = os.path.abspath(self.mktemp())
        os.mkdir(folder)
        if (
            os.getuid()
            or subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], check=False
            ).returncode
        ):
            raise SkipTest("no file system can be mounted here")
        self.addCleanup(subprocess.run, ["umount", folder], check=True)
        self.path = f"{folder}/store"
        self.store = await self.opened()
        self.addCleanup(self.store.stop)
        await self.store.ping()
        filler = os.open(f"{folder}/filler", os.O_WRONLY | os.O_CREAT)
        with self.assertRaises(OSError):
            while True:
                os.write(filler, bytes(4096))
        os.close(filler)
        with self.assertRaises(Unavailable):
            for turn in range(1000):
                await self.store.append([draft(key=f"{turn}")])
        await self.assertFailure(self.store.ping(), Unavailable)
        os.unlink(f"{folder}/filler")
        self.assertGreater(await self.taken("room again"), 0)

    async def test_a_probe_leaves_nothing_behind(self) -> None:
        """Pings do not make the file grow."""
        tables = ("accounts", "events", "hooks", "instances")
        other = sqlite3.connect(self.path)
        self.addCleanup(other.close)

        def sizes() -> list[int]:
            return [
                other.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables
            ]

        await self.store.ping()
        before, (pages,) = sizes(), other.execute("PRAGMA page_count").fetchone()
        for _ in range(100):
            await self.store.ping()
        self.assertEqual(
            (sizes(), other.execute("PRAGMA page_count").fetchone()), (before, (pages,))
        )

    async def test_pings_within_a_second_write_once(self) -> None:
        """The first answers for all; after that time there is another write."""
        self.patch(sqlite, "PING_LIFETIME", 60.0)
        log = f"{self.path}-wal"
        await self.store.ping()
        before = os.stat(log).st_mtime_ns, os.stat(log).st_size
        for _ in range(10):
            await self.store.ping()
        self.assertEqual((os.stat(log).st_mtime_ns, os.stat(log).st_size), before)
        self.patch(sqlite, "PING_LIFETIME", 0.0)
        await self.store.ping()
        self.assertNotEqual((os.stat(log).st_mtime_ns, os.stat(log).st_size), before)


class ServerTests(TestCase):
    """A whole server, as its clients and its orchestrator see it."""

    def status(self, path: str, body: bytes | None = None) -> int:
        try:
            with urlopen(f"{self.server.url}{path}", data=body, timeout=30) as answer:
                return int(answer.status)
        except HTTPError as error:
            error.close()
            return error.code

    def test_clients_see_that_the_file_is_away(self) -> None:
        """POSTs and readiness are 503 while it is away, and the log says so once."""
        path = os.path.abspath(self.mktemp())
        self.server = start_server("--store", f"sqlite:{path}")
        self.addCleanup(self.server.stop)
        self.assertEqual((self.status("/hooks/a", b"1"), self.status("/readyz")), (202, 200))
        os.rename(path, f"{path}.moved")
        self.assertEqual({self.status("/hooks/a", b"2") for _ in range(3)}, {503})
        # A ping that succeeded counts for a second.
        self.server.wait_for("deleted, moved or replaced")
        deadline = time.monotonic() + 30
        while self.status("/readyz") == 200 and time.monotonic() < deadline:
            pass
        self.assertEqual({self.status("/readyz") for _ in range(3)}, {503})
        os.rename(f"{path}.moved", path)
        self.assertEqual((self.status("/hooks/a", b"3"), self.status("/readyz")), (202, 200))
        self.assertEqual(self.server.output.count("deleted, moved or replaced"), 1)


class CheckpointTests(TestCase):
    """A checkpoint copies the log into the database beside the appends."""

    async def setUp(self) -> None:
        self.path = self.mktemp()

    async def opened(self) -> Any:
        store: Any = open_store(
            f"sqlite:{self.path}", Retention(length=100_000, size=10**9), reactor
        )
        self.addCleanup(store.stop)
        await store.start()
        return store

    async def test_appends_go_on_while_a_checkpoint_takes_its_time(self) -> None:
        """However long it takes: no append waits for its end."""
        begun, end = threading.Event(), threading.Event()
        self.addCleanup(end.set)

        def slow(connection: sqlite3.Connection) -> None:
            begun.set()
            end.wait()

        self.patch(sqlite_checkpoint, "checkpoint", slow)
        self.patch(sqlite_checkpoint, "ROWS", 10)
        store = await self.opened()
        await append(store, drafts(20))
        self.assertTrue(begun.wait(30))
        self.assertEqual(len(await append(store, drafts(5000, prefix="meanwhile"))), 5000)
        end.set()

    async def test_the_log_starts_anew_after_a_checkpoint(self) -> None:
        """So it is as long as what is written between two checkpoints."""
        self.patch(sqlite_checkpoint, "ROWS", 10**9)
        self.patch(sqlite_checkpoint, "LOG_BYTES", 10**9)
        store = await self.opened()
        connection = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(connection.close)
        for turn in range(20):
            await append(
                store, drafts(2, prefix=f"{turn}.", payload=b'"data":"%b"' % (b"x" * 500_000))
            )
            sqlite_checkpoint.checkpoint(connection)
        self.assertLess(os.path.getsize(f"{self.path}-wal"), 3_000_000)
        self.assertGreater(os.path.getsize(self.path), 20_000_000)

    async def test_writers_that_never_pause_wait_for_a_checkpoint(self) -> None:
        """A log that is too long starts anew, although others write all the time."""
        self.patch(sqlite_checkpoint, "ROWS", 10**9)
        self.patch(sqlite_checkpoint, "LONGEST", 50)
        store = await self.opened()
        await append(store, drafts(3000))
        connection = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(connection.close)
        said: list[str] = []

        class Busy:
            """A connection on which something new is always behind what a checkpoint reached."""

            def execute(self, statement: str) -> Any:
                said.append(statement)
                rows = connection.execute(statement).fetchone()
                return type(
                    "Rows", (), {"fetchone": lambda self: (rows[0], rows[1], rows[2] - 1)}
                )()

        busy: Any = Busy()
        sqlite_checkpoint.checkpoint(busy)
        self.assertIn("RESTART", said[-1])
        self.assertEqual(said[:-1], ["PRAGMA wal_checkpoint(PASSIVE)"] * sqlite_checkpoint.TRIES)
        self.assertEqual(len(await append(store, drafts(2, prefix="after"))), 2)
