"""How the parent stops a worker, without processes."""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.server.workers import STOP_TIMEOUT, Supervisor, Worker


class Process:
    """A process of the test; the signals that it got."""

    def __init__(self) -> None:
        self.signals: list[str] = []
        self.has_exited = False

    def signalProcess(self, name: str) -> None:
        if self.has_exited:
            raise ProcessExitedAlready
        self.signals.append(name)


class StopTests(SynchronousTestCase):
    """One worker that is stopped."""

    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        endpoint = TCP4ServerEndpoint(self.clock, 8080)
        supervisor = Supervisor(1, endpoint, "a port in memory", {}, self.clock)
        self.addCleanup(supervisor.counts.close)
        self.addCleanup(supervisor.figures.close)
        self.worker = Worker(1, supervisor)
        self.process: Any = Process()

    def end(self) -> None:
        self.worker.processEnded(Failure(ProcessDone(0)))

    def test_a_worker_that_was_never_started_has_stopped(self) -> None:
        """There is nothing to wait for."""
        self.successResultOf(self.worker.stop())

    def test_a_worker_that_waits_for_its_restart_has_stopped(self) -> None:
        """Its process has died."""
        self.worker.makeConnection(self.process)
        self.end()
        self.successResultOf(self.worker.stop())
        self.assertEqual(self.process.signals, [])

    def test_a_worker_that_does_not_stop_is_killed(self) -> None:
        """After a time-out, during which nothing happens."""
        self.worker.makeConnection(self.process)
        stopped = self.worker.stop()
        self.clock.advance(STOP_TIMEOUT - 1)
        self.assertEqual(self.process.signals, ["TERM"])
        self.clock.advance(1)
        self.assertEqual(self.process.signals, ["TERM", "KILL"])
        self.assertNoResult(stopped)
        self.end()
        self.successResultOf(stopped)

    def test_a_worker_has_ended_when_its_output_is_read(self) -> None:
        """A stop that comes between its death and that waits for the end, and sends no signal."""
        self.worker.makeConnection(self.process)
        self.process.has_exited = True
        stopped = self.worker.stop()
        self.assertNoResult(stopped)
        self.end()
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])
