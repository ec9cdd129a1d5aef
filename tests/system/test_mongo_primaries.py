"""
A replaced primary, cut off from the other members, goes on answering reads for a while.

Its answers must not be trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from asyncplumber.core.hub import Hub
from asyncplumber.errors import Unavailable
from asyncplumber.event import EARLIEST, Cursor, Instance, Position
from asyncplumber.interfaces import CursorLost
from asyncplumber.stores import open_store
from asyncplumber.stores.retention import Retention
from harness.cluster import eventually, until
from harness.core import Recorder
from harness.mongod import with_database
from harness.replica_set import ReplicaSet
from tests.contracts import RealReactorWithFakeClock, append, drafts, seqs

T = TypeVar("T")


class OldPrimaryTests(TestCase):
    """Two primaries at once: the majority's, and one that was replaced and does not know."""

    timeout = 120

    async def setUp(self) -> None:
        self.set = ReplicaSet()
        self.addCleanup(self.set.stop)
        await self.set.start()
        self.old = self.set.members[0]
        self.reactor = RealReactorWithFakeClock()
        self.store = open_store(
            with_database(self.set.uri, "test"),
            Retention(length=10, age=1e6),
            self.reactor,
        )
        self.addCleanup(self.store.stop)
        await self.store.start()
        self.history = self.store.history

    async def position(self) -> Position | None:
        """Return how far the history reaches, or None while this instance reaches no server."""
        try:
            position: Position = await self.history.ensure("a")
        except Unavailable:
            return None
        return position

    @staticmethod
    async def tried(call: Callable[[], Deferred[T]]) -> T:
        """Return the result of the call, once the store can be reached."""
        while True:
            try:
                return await call()
            except Unavailable:
                continue

    async def appended(self, count: int, prefix: str) -> list[int]:
        """Append new events, and return their numbers."""
        return seqs(await self.tried(lambda: append(self.store, drafts(count, prefix=prefix))))

    async def replaced(self) -> None:
        """Cut the old primary off from all others, and have another one elected."""
        links, others = self.set.links, self.set.pids[1:]
        links.cut([self.old.pid], [0, *others])
        await self.set.elect(*self.set.members[1:])

    async def sees_only_the_old_one(self, head: int) -> None:
        """Let this instance reach only the old primary, and wait until it reads there."""
        links = self.set.links
        links.cut([0], self.set.pids[1:])
        links.restore([0], [self.old.pid])
        await eventually(
            self.position,
            lambda position: position is not None and position.head == head,
            "old reads",
        )

    async def healed(self) -> None:
        self.set.links.restore()
        await self.set.settled()

    async def test_an_old_primary_cannot_say_that_events_are_gone(self) -> None:
        """
        A reader, a connected subscriber and a returning one beyond its head are told of no gap.
        """
        self.assertEqual(await self.appended(25, "before"), list(range(1, 26)))
        await self.history.sweep()
        hub = Hub(self.history, self.reactor)  # type: ignore[arg-type]
        self.addCleanup(hub.stop)
        live, back = Recorder(), Recorder()
        live.subscribe(await hub.admit("a"), EARLIEST)
        await until(lambda: live.seqs == list(range(16, 26)), "replayed")
        await self.replaced()
        self.assertEqual(await self.appended(5, "after"), list(range(26, 31)))
        await hub.check()
        await until(lambda: live.seqs == list(range(16, 31)), "caught up")
        cursor = live.cursor
        await self.sees_only_the_old_one(25)

        await self.assertFailure(self.history.read("a", cursor, None, 10), Unavailable)
        other = Cursor("another", 3)
        await self.assertFailure(self.history.read("a", other, None, 10), Unavailable)
        self.assertEqual(await hub.check(), 1)
        channel = await hub.admit("a")
        await self.assertFailure(channel.catch_up(), Unavailable)
        back.subscribe(
            channel, Cursor(cursor.epoch, cursor.seq + 1)
        )  # it was faster than this instance
        await until(lambda: back.ended, "refused")
        self.assertEqual([one for one in live.told + back.told if one[0] == "missed"], [])
        # A floor never sinks: what the old one has forgotten is forgotten.
        await self.assertFailure(
            self.history.read("a", Cursor(cursor.epoch, 3), None, 10), CursorLost
        )

        await self.healed()
        self.assertEqual(await self.appended(1, "healed"), [31])
        await hub.check()
        await until(lambda: live.seqs == list(range(16, 32)), "the rest")
        self.assertEqual([one for one in live.told if one[0] == "missed"], [])
        with self.assertRaises(CursorLost):
            await self.history.read("a", Cursor(cursor.epoch, 99), None, 10)

    async def test_an_old_primary_cannot_have_a_living_instance_swept(self) -> None:
        """
        An instance that is missing in its registry may be new: nothing of it is removed.
        """
        # The connections of an instance may be of different times: some of its questions go to the
        # old primary.
        stale = self.store.registry
        links, others = self.set.links, self.set.pids[1:]
        links.cut([self.old.pid], others)
        new = await self.set.elect(*self.set.members[1:])
        alone = f"mongodb://127.0.0.1:{self.set.ports[self.set.members.index(new)]}/"
        store = open_store(with_database(alone, "test"), Retention(), RealReactorWithFakeClock())
        self.addCleanup(store.stop)
        await store.start()
        registry = store.registry
        instance = await self.tried(
            lambda: registry.add_instance(Instance("new", "http://127.0.0.1:1/instances/new"))
        )
        await self.tried(lambda: registry.register(instance, ["a"]))
        self.assertEqual(await stale.instances(["a"]), {})
        self.patch(registry, "_absent", stale._absent)

        await self.assertFailure(registry.sweep(), Unavailable)
        self.assertEqual(await registry.instances(["a"]), {"a": [instance]})
