"""MongoDB servers that are down, are killed, hang, or refuse the login."""

from __future__ import annotations

import time
from typing import Any

import pymongo
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from asyncplumber.errors import Unavailable
from asyncplumber.event import Cursor, Instance, Stored
from asyncplumber.interfaces import Claim
from asyncplumber.stores import open_store
from asyncplumber.stores.mongo import link as mongo_link
from asyncplumber.stores.retention import Retention
from asyncplumber.task import TaskState
from harness.mongod import Mongod, with_database
from tests.contracts import RealReactorWithFakeClock, append, draft, drafts, seqs

TOO_LONG = 4.0  # seconds: what a call may take in these tests, and what a loaded machine adds


class OutageTests(TestCase):
    """A server that is down, is killed, or hangs."""

    timeout = 60

    def setUp(self) -> None:
        self.patch(mongo_link, "CALL_TIMEOUT", 1.5)
        self.server = Mongod()
        self.addCleanup(self.server.stop)

    async def opened(self) -> Any:
        store = open_store(
            with_database(self.server.uri, "test"), Retention(), RealReactorWithFakeClock()
        )
        self.addCleanup(store.stop)
        await store.start()
        return store

    async def unavailable(self, *calls: Any) -> None:
        """Each of the calls fails as it should, and soon."""
        began = time.monotonic()
        for call in calls:
            await self.assertFailure(call, Unavailable)
        self.assertLess(time.monotonic() - began, TOO_LONG)

    async def test_a_start_does_not_wait_for_the_server(self) -> None:
        """Calls fail while it is away, and work when it comes, indexes and all."""
        store = await self.opened()
        history = store.history
        await self.unavailable(
            append(store, drafts(2)),
            history.ensure("a"),
            store.ping(),
            store.registry.add_instance(Instance("1", "http://x")),
            store.tasks.claim(Claim("a", "k", "r")),
            store.callback_urls.get(b"digest"),
        )
        self.server.start()
        self.patch(mongo_link, "CALL_TIMEOUT", 20.0)  # it has to connect and to make indexes
        self.assertEqual(seqs(await append(store, drafts(2))), [1, 2])
        with pymongo.MongoClient(self.server.uri) as client:
            self.assertIn("place", client.test.events.index_information())
            self.assertIn("deadline", client.test.tasks.index_information())

    async def test_a_killed_server_loses_nothing_that_was_accepted(self) -> None:
        """
        Killed amid appends and started again: all that was answered is there, once, without a hole.
        """
        self.patch(
            mongo_link, "CALL_TIMEOUT", 30.0
        )  # the calls under way shall outlast the restart
        self.server.start()
        store, reader = await self.opened(), await self.opened()
        accepted: dict[str, Stored] = {}
        seen: dict[int, str] = {}
        position = await store.history.ensure("a")
        for life in range(3):
            calls = [append(store, drafts(3, prefix=f"{life}.{n}.")) for n in range(5)]
            for turn in range(8):
                for answer in (await gatherResults(calls[:1]))[0]:
                    accepted[answer.event.id] = answer
                calls = [*calls[1:], append(store, drafts(3, prefix=f"{life}.{turn + 5}."))]
                for event in await reader.history.read(
                    "a", Cursor(position.epoch, len(seen)), None, 100
                ):
                    seen[event.seq] = event.id
            self.server.restart()
            for answers in await gatherResults(calls):
                accepted.update({answer.event.id: answer for answer in answers})
        events = []
        while page := await reader.history.read(
            "a", Cursor(position.epoch, len(events)), None, 100
        ):
            events += page
        self.assertEqual(seqs(events), list(range(1, len(events) + 1)))
        self.assertEqual(
            {event.id: event for event in events},
            {id: answer.event for id, answer in accepted.items()},
        )
        self.assertEqual({seq: events[seq - 1].id for seq in seen}, seen)
        self.assertFalse(any(answer.duplicate for answer in accepted.values()))

    async def test_several_writers_of_a_killed_server_leave_no_hole(self) -> None:
        """All append to the same accounts, and go on by themselves when the server is back."""
        self.server.start()
        writers = [await self.opened() for _ in range(3)]
        self.patch(mongo_link, "CALL_TIMEOUT", 30.0)
        accounts = ("a", "b")
        accepted: dict[str, set[tuple[int, str]]] = {account: set() for account in accounts}

        async def write(number: int, life: int) -> None:
            for turn in range(10):
                several = [
                    each
                    for account in accounts
                    for each in drafts(2, account, prefix=f"{number}.{life}.{turn}.")
                ]
                for stored in await append(writers[number], several):
                    assert isinstance(stored, Stored)
                    accepted[stored.event.account].add((stored.event.seq, stored.event.id))

        for life in range(2):
            writing = gatherResults(
                [Deferred.fromCoroutine(write(number, life)) for number in range(3)]
            )
            while len(accepted["a"]) < 60 * life + 20:
                await deferLater(reactor, 0.001, lambda: None)  # type: ignore[arg-type]
            self.server.restart()
            await writing
        for account in accounts:
            epoch = (await writers[0].history.ensure(account)).epoch
            events = await writers[0].history.read(account, Cursor(epoch, 0), None, 1000)
            self.assertEqual(seqs(events), list(range(1, 121)))
            self.assertEqual({(event.seq, event.id) for event in events}, accepted[account])

    async def test_a_hanging_server_is_given_up_and_found_again(self) -> None:
        """
        Calls fail in a few seconds; when it goes on, so do we, and no number is left out or given
        twice.
        """
        self.server.start()
        store = await self.opened()
        history = store.history
        await append(store, drafts(2))
        task, _ = await store.tasks.claim(Claim("a", "k", "r"))
        self.server.pause()
        try:
            await self.unavailable(
                append(store, drafts(2, prefix="late")),
                history.ensure("a"),
                store.ping(),
                store.tasks.claim(Claim("a", "late", "r")),
                store.tasks.change(task, {"state": TaskState.COMPLETED}),
                store.tasks.get("a", "k"),
                store.tasks.extend(5.0, 30.0),
            )
        finally:
            self.server.resume()
        # What was sent may have arrived.  Nothing else has.
        self.assertEqual((await store.tasks.claim(Claim("a", "late", "r"))).task.run, "r")
        self.assertEqual((await store.tasks.get("a", "k")).run, task.run)
        await append(store, drafts(2, prefix="after"))
        answers = await append(store, drafts(2, prefix="late"))
        events = await history.read("a", Cursor(answers[0].event.epoch, 0), None, 100)
        self.assertEqual(seqs(events), [1, 2, 3, 4, 5, 6])
        self.assertEqual(len({event.id for event in events}), 6)

    async def test_a_stop_does_not_wait_for_the_server(self) -> None:
        """The calls under way end by their time limits."""
        store = await self.opened()
        waiting = append(store, drafts(1))
        stopping = store.stop()
        await self.unavailable(waiting)
        await stopping
        await self.unavailable(store.ping())


class LoginTests(TestCase):
    """Servers that require a login."""

    timeout = 60

    async def test_a_password_is_needed_and_a_wrong_one_is_named(self) -> None:
        """
        With the right one all works, database in the URI or not; with a wrong one the log says what
        to check.
        """
        self.patch(mongo_link, "CALL_TIMEOUT", 1.5)
        server = Mongod("--auth").start()
        self.addCleanup(server.stop)
        with pymongo.MongoClient(server.uri) as client:
            client.admin.command(
                "createUser", "plumber", pwd="r:ght/", roles=["root"], mechanisms=["SCRAM-SHA-1"]
            )
        host = f"127.0.0.1:{server.port}"
        for uri in (
            f"mongodb://plumber:r%3Aght%2F@{host}/?authSource=admin",
            f"mongodb://plumber:r%3Aght%2F@{host}/",
        ):
            store = open_store(uri, Retention(), RealReactorWithFakeClock())
            await store.start()
            self.addCleanup(store.stop)
            self.assertEqual(len(await append(store, [draft(key=uri)])), 1)
        said: list[Any] = []
        globalLogPublisher.addObserver(said.append)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, said.append)  # type: ignore[arg-type]
        store = open_store(
            f"mongodb://plumber:wrong@{host}/", Retention(), RealReactorWithFakeClock()
        )
        self.addCleanup(store.stop)
        await store.start()
        await self.assertFailure(append(store, [draft()]), Unavailable)
        self.assertTrue(any("check user, password" in str(event.get("reason")) for event in said))
        self.assertFalse(any("wrong" in str(event.get("reason")) for event in said))
