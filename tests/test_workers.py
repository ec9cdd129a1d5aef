"""Several workers on one port of one machine, on the embedded store: a farm like any other."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile

from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from tests.farm import LINGER, Crowd, Node, children, is_alive, kill_hard, until
from tests.farm_clients import Broken, EventSource, WebSocket, ask


class EmbeddedTestCase(TestCase):
    """An SQLite file, and one command that serves it."""

    timeout = 40
    options: tuple[str, ...] = ()

    async def setUp(self) -> None:
        folder = tempfile.mkdtemp(prefix="asyncplumber-workers-")
        self.addCleanup(shutil.rmtree, folder)
        store = ("--store", f"sqlite:{folder}/plumber.sqlite", "--lease", "2", "--linger", str(LINGER))
        self.node = Node(*store, *self.options)
        self.addCleanup(self.node.kill)
        self.crowd = Crowd()
        self.ledger = self.crowd.ledger
        self.addCleanup(lambda: Deferred.fromCoroutine(self.crowd.leave()))
        await self.node.start()
        self.ports = [self.node.port]

    async def grown(self, more: int) -> None:
        """So many more events have been accepted."""
        goal = self.ledger.events + more
        await until(lambda: self.ledger.events >= goal, f"{goal} events accepted, not {self.ledger.events}")


class WorkersTests(EmbeddedTestCase):
    """Two workers and their parent."""

    options = ("--workers", "2")

    async def setUp(self) -> None:
        await super().setUp()
        await until(lambda: "with 2 workers" in self.node.output, "both serve")
        self.workers = children(self.node.pid)

    async def scattered(self) -> int:
        """Subscribers, until each worker has some: the kernel decides who gets which.  @return: how many."""
        for count in range(1, 400):
            person = self.crowd.subscriber((WebSocket, EventSource)[count % 2], self.ports, "all")
            await person.begin()
            if count % 8 == 0 and (await self.node.ask("GET", "/accounts/all")).json["instances"] == 2:
                return count
        raise AssertionError("one of the workers gets nobody")

    async def test_both_accept_and_act_as_one(self) -> None:
        """The kernel spreads the connections, and an event that comes in at one worker reaches the subscribers of both."""
        count = await self.scattered()
        publishers = [self.crowd.publisher(self.ports, "all") for _ in range(8)]
        await gatherResults([publisher.run(25) for publisher in publishers])
        await self.crowd.settled()
        receipt = await publishers[0].post()
        self.assertEqual((receipt["subscribers"], receipt["instances"]), (count, {"ok": 2, "failed": 0}))

    async def test_a_killed_worker_is_restarted(self) -> None:
        """A worker that dies under load costs no event, and has a successor soon."""
        await self.scattered()
        publisher = self.crowd.publisher(self.ports, "all")
        publisher.run(pause=0.002)
        await self.grown(20)
        kill_hard(self.workers[0])
        await until(lambda: len(children(self.node.pid)) == 2 and children(self.node.pid) != self.workers, "a successor")
        await self.grown(100)
        await publisher.stop()
        await self.crowd.settled()
        self.assertTrue(any(each.connections > 1 for each in self.ledger.subscribers))

    async def test_workers_do_not_outlive_their_parent(self) -> None:
        """When the parent is killed its workers stop, as after a SIGTERM."""
        (person,) = await self.crowd.gather(self.ports, "one", [WebSocket])
        kill_hard(self.node.pid)
        await until(lambda: not any(map(is_alive, self.workers)), "the workers end", 10)
        self.assertEqual((person.byes, person.closes), (1, [1001]))
        await self.port_is_free()

    async def test_sigterm_stops_all(self) -> None:
        """The parent passes the signal on, waits, and leaves nothing behind: no process, no hook, and a free port."""
        await self.scattered()
        await self.node.stop()
        self.assertEqual([pid for pid in self.workers if is_alive(pid)], [])
        self.assertTrue(all(each.byes == 1 for each in self.ledger.subscribers))
        await self.port_is_free()

    async def test_everybody_may_be_told_at_once(self) -> None:
        """A service manager, or Ctrl-C, signals parent and workers alike; nobody is restarted, nothing is logged as an error."""
        await self.scattered()
        os.killpg(self.node.pid, signal.SIGINT)
        await self.node.ended()
        self.assertEqual([pid for pid in self.workers if is_alive(pid)], [])
        self.assertNotIn("restarting", self.node.output)
        self.assertNotIn("Traceback", self.node.output)

    async def port_is_free(self) -> None:
        with self.assertRaises(Broken):
            await ask(self.node.port, "GET", "/healthz")
        await self.node.start()


class KillTests(EmbeddedTestCase):
    """One process on the embedded store."""

    async def test_nothing_accepted_is_lost(self) -> None:
        """Killed in the midst of 1,000 POSTs, it has every event that it accepted, and each once."""
        publishers = [self.crowd.publisher(self.ports, "kept") for _ in range(10)]
        sent = [publisher.run(100) for publisher in publishers]
        for goal in (200, 500, 800):
            await until(lambda goal=goal: self.ledger.events >= goal, f"{goal} accepted")
            self.node.kill()
            await self.node.start()
        await gatherResults(sent)
        late = self.crowd.subscriber(WebSocket, self.ports, "kept", "earliest")
        await late.begin()
        await self.crowd.settled()
        self.assertEqual([seq for seq, _ in late.events], list(range(1, 1001)))
