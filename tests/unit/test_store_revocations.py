"""Revocations in memory, and in a MongoDB that is simulated."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from asyncplumber.stores.memory import MemoryStore
from asyncplumber.stores.retention import Retention
from tests.revocation_contracts import RevocationContract
from tests.simulated_stores import SimulatedMongo


class MemoryRevocationTests(RevocationContract, TestCase):
    """In memory, the same data is the same object."""

    _store: MemoryStore | None = None

    def make(self, retention: Retention, lease: float) -> Any:
        if self._store is None:
            self._store = MemoryStore(retention, self.reactor, lease=lease, shared=True)
        return self._store

    async def tickets(self) -> int:
        return len(self._store.revocations._spent) if self._store else 0


class SimulatedMongoRevocationTests(SimulatedMongo, RevocationContract, TestCase):
    """A single server in memory, which answers in turns of the reactor."""

    async def tickets(self) -> int:
        assert self.server is not None
        return len(self.server.state["tickets"])

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
