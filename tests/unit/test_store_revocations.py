"""Revocations in memory, and in a MongoDB that is simulated."""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall
from twisted.trial.unittest import TestCase

from asyncplumber.stores.memory import MemoryStore
from asyncplumber.stores.mongo.store import MongoStore
from asyncplumber.stores.retention import Retention
from harness.simulated_mongod import SimulatedMongod
from tests.revocation_contracts import RevocationContract


class MemoryRevocationTests(RevocationContract, TestCase):
    """In memory, the same data is the same object."""

    _store: MemoryStore | None = None

    def make(self, retention: Retention, lease: float) -> Any:
        if self._store is None:
            self._store = MemoryStore(retention, self.reactor, lease=lease, shared=True)
        return self._store

    async def tickets(self) -> int:
        return len(self._store.revocations._spent) if self._store else 0


class SimulatedMongoRevocationTests(RevocationContract, TestCase):
    """A single server in memory, which answers in turns of the reactor."""

    replicated = False

    async def setUp(self) -> None:
        self.server: SimulatedMongod | None = None
        self.journals = True
        await super().setUp()

    def seconds(self) -> float:
        """The store's steady clock: it goes on, and the test sets it forward."""
        return self.reactor.seconds() + time.monotonic()

    def make(self, retention: Retention, lease: float) -> Any:
        if self.server is None:
            self.server = SimulatedMongod(self.reactor, replicated=self.replicated)
            running = LoopingCall(self._take_steps)
            self.addCleanup(running.stop)
            running.start(0)
        return MongoStore(
            "mongodb://simulated/",
            retention,
            self.reactor,
            self.reactor,
            steady=self,
            connect=self.server.pool,
        )

    def _take_steps(self) -> None:
        """Take each step that is possible."""
        assert self.server is not None
        for step in self.server.steps(journal=self.journals):
            step()

    async def tickets(self) -> int:
        assert self.server is not None
        return len(self.server.state["tickets"])

    async def lost_answer(self) -> None:
        """Wait until a command was applied, and lose its answer."""
        assert self.server is not None
        while not any(connection.outbox for connection in self.server.connections):
            await self.turn()
        for pool in self.server.pools:
            pool.cut()
        self.journals = True

    def turn(self) -> Deferred[None]:
        """Return a Deferred that fires in the next turn of the reactor."""
        done: Deferred[None] = Deferred()
        self.reactor.callLater(0, done.callback, None)
        return done

    async def test_a_ticket_is_spent_although_the_answer_was_lost(self) -> None:
        """The command is sent again, and finds its own row; another call finds a foreign one."""
        self.journals = False  # the server waits with the answer until there is a journal
        spent = self.revocations.spend("t", self.later(30))
        await gatherResults([spent, Deferred.fromCoroutine(self.lost_answer())])
        self.assertTrue(await spent)
        self.assertFalse(await self.revocations.spend("t", self.later(30)))


class SimulatedReplicaSetRevocationTests(SimulatedMongoRevocationTests):
    """A replica set: what a majority has."""

    replicated = True
