"""The machine's clock is set, back or forward, while instances work, and nothing goes wrong."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.selectreactor import SelectReactor
from twisted.trial.unittest import SynchronousTestCase, TestCase

from asyncplumber.clocks import WallClock, steady
from harness.cluster import LINGER, Node, Traffic, eventually, until
from harness.processes import start_server

HOUR = 3600.0
LIBFAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


class SteadyTests(SynchronousTestCase):
    """`steady`, for the reactors that Twisted has on every system."""

    def assert_steady(self, reactor) -> None:
        """Check that timers are called in time although the clock is set back before."""
        self.addCleanup(reactor.removeAll)
        called: list[str] = []
        ahead = [0.0]
        reactor.seconds = lambda: time.time() + ahead[0]
        reactor.callLater(0.01, called.append, "before")
        steady(reactor)
        self.assertApproximates(reactor.seconds(), time.time(), 1)
        reactor.callLater(0.01, called.append, "after")
        ahead[0] = -HOUR
        later = reactor.callLater(0.01, called.append, "later")
        later.reset(0.02)
        deadline = time.monotonic() + 5
        while len(called) < 3 and time.monotonic() < deadline:
            reactor.iterate(0.01)
        self.assertEqual(sorted(called), ["after", "before", "later"])

    def test_select(self) -> None:
        """The reactor that exists on every system."""
        self.assert_steady(SelectReactor())

    def test_epoll(self) -> None:
        """The reactor that Linux has."""
        try:
            from twisted.internet.epollreactor import EPollReactor
        except ImportError:
            self.skipTest("not on this system")
        self.assert_steady(EPollReactor())

    def test_asyncio(self) -> None:
        """The reactor on an asyncio loop, which has a steady clock itself."""
        loop = asyncio.new_event_loop()
        self.addCleanup(loop.close)
        self.assert_steady(AsyncioSelectorReactor(loop))

    def test_a_second_call_changes_nothing(self) -> None:
        """Its time goes on, although the time of day was set in between."""
        reactor = SelectReactor()
        steady(reactor)
        before = reactor.seconds
        steady(reactor)
        self.assertIs(reactor.seconds, before)

    def test_stamps_follow_the_time_of_day(self) -> None:
        """`WallClock` is the time of day."""
        self.assertApproximates(WallClock.seconds(), time.time(), 1)


class StepTests(TestCase):
    """Two instances on one file, on a machine whose clock is set."""

    timeout = 60

    async def setUp(self) -> None:
        folder = tempfile.mkdtemp(prefix="asyncplumber-clocks-")
        self.addCleanup(shutil.rmtree, folder)
        self.path = f"{folder}/plumber.sqlite"
        options = ("--store", f"sqlite:{self.path}", "--lease", "2", "--linger", str(LINGER))
        self.nodes = [Node(*options, skew=0.0) for _ in range(2)]
        self.traffic = Traffic()
        for node in self.nodes:
            self.addCleanup(node.kill)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.traffic.disconnect()))
        for node in self.nodes:
            await node.start()
        self.ports = [node.port for node in self.nodes]

    def step(self, seconds: float) -> None:
        for node in self.nodes:
            node.step(seconds)

    def leases(self) -> dict[str, float]:
        """Return when each lease ends, in seconds from the time that the instances see."""
        with closing(sqlite3.connect(self.path)) as connection:
            rows = connection.execute("SELECT id, expires FROM instances").fetchall()
        return {id: expires - time.time() - self.nodes[0].skew for id, expires in rows}

    async def assert_all_is_well(self) -> None:
        """Leases are renewed, polls end, and an event reaches everybody at both instances."""

        async def leases() -> list[float]:
            return list(self.leases().values())

        await eventually(
            leases, lambda ends: len(ends) == 2 and all(0 < end <= 2 for end in ends), "renewed", 5
        )
        began = time.monotonic()
        polls = [node.fetch("GET", "/events/nobody?wait=1") for node in self.nodes]
        answers = await gatherResults([Deferred.fromCoroutine(poll) for poll in polls])
        self.assertEqual([answer.json["events"] for answer in answers], [[], []])
        self.assertLess(time.monotonic() - began, 5)
        publisher = self.traffic.publisher(self.ports, "stepped")

        async def counts() -> object:
            return (await publisher.post())["instances"]

        await eventually(
            counts, lambda counts: counts == {"ok": 2, "failed": 0}, "both are told", 5
        )
        await self.traffic.settled()

    async def assert_step(self, seconds: float) -> None:
        await self.traffic.connect(self.ports, "stepped")
        publisher = self.traffic.publisher(self.ports, "stepped")
        await publisher.run(5)
        self.step(seconds)
        await publisher.run(5)
        await self.assert_all_is_well()
        # What the relay does not bring is found by comparing positions, which is a timer as well.
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("DELETE FROM hooks")
        await publisher.run(5)
        await self.traffic.settled(8)

    async def test_back_by_an_hour(self) -> None:
        """Timers go on, and an event is where it belongs."""
        await self.assert_step(-HOUR)

    async def test_forward_by_an_hour(self) -> None:
        """A live instance counts as dead only until it renews its lease."""
        await self.assert_step(HOUR)

    async def test_a_dead_instance_is_removed_after_a_step_back(self) -> None:
        """Its lease does not last for another hour."""
        self.nodes[1].kill()
        self.step(-HOUR)

        async def leases() -> dict[str, float]:
            return self.leases()

        await eventually(leases, lambda leases: len(leases) == 1, "the dead one is forgotten", 15)


class WholeProcessTests(TestCase):
    """All processes of ``twistd asyncplumber`` under libfaketime: every library sees the step."""

    timeout = 60
    if LIBFAKETIME is None:
        skip = "needs libfaketime (apt install faketime)"

    async def test_the_leases_of_workers_are_renewed(self) -> None:
        """Both workers renew their leases after a step back by an hour, and after one forward."""
        folder = tempfile.mkdtemp(prefix="asyncplumber-clocks-")
        self.addCleanup(shutil.rmtree, folder)
        clock = Path(folder, "clock")
        clock.write_text("+0")
        environ = {
            "LD_PRELOAD": str(LIBFAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        path = f"{folder}/plumber.sqlite"
        server = start_server(
            "--workers", "2", "--lease", "2", "--store", f"sqlite:{path}", env=environ
        )
        self.addCleanup(server.kill)
        for step in (0.0, -HOUR, HOUR):
            clock.write_text(f"{step:+.0f}")

            def renewed(step: float = step) -> bool:
                with closing(sqlite3.connect(path)) as connection:
                    rows = connection.execute("SELECT expires FROM instances").fetchall()
                return len(rows) == 2 and all(
                    0 < expires - time.time() - step <= 2 for (expires,) in rows
                )

            await until(renewed, f"both leases are renewed after a step to {step:+.0f} s", 8)
        server.stop()
