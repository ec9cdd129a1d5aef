"""How a suite gets a store on a MongoDB that is simulated in memory."""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from asyncplumber.stores.mongo.store import MongoStore
from asyncplumber.stores.retention import Retention
from harness.simulated_mongod import SimulatedMongod
from tests.contracts import StoreContract


class SimulatedMongo(StoreContract):
    """A single server, which answers in turns of the reactor.  Mix it in before the contracts."""

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
