"""Tasks and callback URLs in memory, and in a MongoDB that is simulated."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import TestCase

from asyncplumber.stores.memory import MemoryStore
from asyncplumber.stores.retention import Retention
from tests.simulated_stores import SimulatedMongo
from tests.task_contracts import TaskContract, TaskEpochContract


class MemoryTaskTests(TaskContract, TaskEpochContract, TestCase):
    """In memory, the same data is the same object."""

    _store: MemoryStore | None = None

    def make(self, retention: Retention, lease: float) -> Any:
        if self._store is None:
            self._store = MemoryStore(retention, self.reactor, lease=lease, shared=True)
        return self._store


class SimulatedMongoTaskTests(SimulatedMongo, TaskContract, TestCase):
    """A single server in memory, which answers in turns of the reactor."""


class SimulatedReplicaSetTaskTests(SimulatedMongoTaskTests):
    """A replica set: what a majority has."""

    replicated = True
