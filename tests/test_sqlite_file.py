"""One SQLite file, many who open it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from asyncplumber.errors import Unavailable
from asyncplumber.stores import open_store, sqlite_file
from asyncplumber.stores.keeping import Keeping
from tests.contracts import draft


class OpeningTests(TestCase):
    """As the workers of one port do when they start."""

    async def test_many_may_open_a_new_file_at_the_same_moment(self) -> None:
        """None of them is turned away because another is just making the tables, or changing the file's mode."""
        for _ in range(60):
            path = self.mktemp()
            stores: list[Any] = [open_store(f"sqlite:{path}", Keeping(), reactor) for _ in range(4)]
            opened: list[Deferred[None]] = [store.start() for store in stores]
            await gatherResults(opened, consumeErrors=True)
            await gatherResults([store.stop() for store in stores])

    async def test_what_is_asked_while_it_opens_waits_for_it(self) -> None:
        """An append that comes first is kept, and answered after the file is open."""
        store = open_store(f"sqlite:{self.mktemp()}", Keeping(), reactor)
        opened = store.start()
        self.addCleanup(store.stop)
        [stored] = await store.history.append([draft()])
        self.assertTrue(opened.called)
        self.assertEqual(stored.event.seq, 1)

    async def test_what_waits_for_a_file_that_cannot_be_opened_fails(self) -> None:
        """As unavailable, when that is known."""
        store = open_store(f"sqlite:{self.mktemp()}/none/x", Keeping(), reactor)
        opened = store.start()
        asked = store.ping()
        await self.assertFailure(opened, ValueError)
        await self.assertFailure(asked, Unavailable)
        await self.assertFailure(store.ping(), Unavailable)
        await store.stop()

    async def test_what_waits_for_too_long_fails(self) -> None:
        """Another process has the file, and does not give it back in time."""
        self.patch(sqlite_file, "PATIENCE", 0.2)
        path = self.mktemp()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("PRAGMA journal_mode = WAL")
            other.execute("BEGIN IMMEDIATE")
            store = open_store(f"sqlite:{path}", Keeping(), reactor)
            opened = store.start()
            asked = store.ping()
            await self.assertFailure(opened, ValueError)
            await self.assertFailure(asked, Unavailable)
            await store.stop()

    async def test_a_stop_while_it_opens_waits_for_it(self) -> None:
        """What was asked before is done, and the file is closed."""
        path = self.mktemp()
        store = open_store(f"sqlite:{path}", Keeping(), reactor)
        opened = store.start()
        asked = store.history.append([draft()])
        await store.stop()
        await opened
        [stored] = await asked
        self.assertEqual(stored.event.seq, 1)
        with closing(sqlite3.connect(path)) as other:
            self.assertEqual(other.execute("SELECT count(*) FROM events").fetchone(), (1,))
