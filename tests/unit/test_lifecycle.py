"""The life of an instance, as a table of states."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.core.lifecycle import TRANSITIONS, Lifecycle, State
from asyncplumber.errors import Unavailable


class LifecycleCase(SynchronousTestCase):
    """A life whose steps take until the test ends them."""

    def setUp(self) -> None:
        self.steps: list[str] = []
        self.pending: dict[str, Deferred[None]] = {}
        self.life = Lifecycle(self._open, self._serve, self._drain, self._close)

    async def _step(self, name: str) -> None:
        self.steps.append(name)
        self.pending[name] = Deferred()
        await self.pending[name]

    async def _open(self) -> None:
        await self._step("open")

    def _serve(self) -> None:
        self.steps.append("serve")

    async def _drain(self) -> None:
        await self._step("drain")

    async def _close(self) -> None:
        await self._step("close")

    def end(self, *names: str) -> None:
        for name in names:
            self.pending.pop(name).callback(None)


class LifecycleTests(LifecycleCase):
    """Starts and stops, in every order."""

    def test_start_and_stop(self) -> None:
        """Each step after the other."""
        running = self.life.when_running()
        self.life.start()
        self.assertIs(self.life.state, State.STARTING)
        self.assertNoResult(running)
        self.end("open")
        self.successResultOf(running)
        self.successResultOf(self.life.when_running())
        self.assertIs(self.life.state, State.RUNNING)
        stopped = self.life.stop()
        self.assertIs(self.life.state, State.DRAINING)
        self.end("drain")
        self.assertIs(self.life.state, State.STOPPING)
        self.assertNoResult(stopped)
        self.end("close")
        self.successResultOf(stopped)
        self.assertIs(self.life.state, State.STOPPED)
        self.assertEqual(self.steps, ["open", "serve", "drain", "close"])

    def test_a_second_start_or_stop_changes_nothing(self) -> None:
        """Both stops fire when the one stop is done; without anything to stop it is done."""
        self.successResultOf(self.life.stop())
        self.life.start()
        self.life.start()
        self.end("open")
        stops = [self.life.stop(), self.life.stop()]
        self.end("drain", "close")
        for stop in stops:
            self.successResultOf(stop)
        self.assertEqual(self.steps, ["open", "serve", "drain", "close"])

    def test_a_start_during_a_stop_follows_it(self) -> None:
        """Unless another stop comes before."""
        for again, steps in ((False, ["open", "serve"]), (True, [])):
            self.life.start()
            self.end("open")
            self.life.stop()
            self.life.start()
            running = self.life.when_running()
            if again:
                self.life.stop()
            self.steps.clear()
            self.end("drain", "close")
            if again:
                self.assertIs(self.life.state, State.STOPPED)
                self.assertNoResult(running)
            else:
                self.end("open")
                self.successResultOf(running)
                self.life.stop()
                self.assertEqual(self.steps, ["close", *steps, "drain"])
                self.end("drain", "close")

    def test_a_stop_during_a_start_does_not_wait_for_it(self) -> None:
        """The start that is left over does nothing when it ends, also beside a new one."""
        running = self.life.when_running()
        self.life.start()
        left_over = self.pending.pop("open")
        stopped = self.life.stop()
        self.failureResultOf(running, Unavailable)
        self.end("drain", "close")
        self.successResultOf(stopped)
        self.life.start()
        left_over.callback(None)
        self.assertIs(self.life.state, State.STARTING)
        self.end("open")
        self.assertEqual(self.steps, ["open", "drain", "close", "open", "serve"])

    def test_a_left_over_start_may_fail(self) -> None:
        """It does no harm to the start that follows."""
        self.life.start()
        left_over = self.pending.pop("open")
        self.life.stop()
        self.end("drain", "close")
        self.life.start()
        left_over.errback(KeyError())
        self.end("open")
        self.assertIs(self.life.state, State.RUNNING)

    def test_a_start_that_fails(self) -> None:
        """Those who wait for it learn why; it can be stopped, and started again."""
        before = self.life.when_running()
        self.life.start()
        self.pending.pop("open").errback(KeyError("no such file"))
        for running in (before, self.life.when_running()):
            self.failureResultOf(running, KeyError)
        self.assertIs(self.life.state, State.FAILED)
        stopped = self.life.stop()
        self.end("drain", "close")
        self.successResultOf(stopped)
        self.life.start()
        self.end("open")
        self.successResultOf(self.life.when_running())

    def test_a_step_of_a_stop_that_fails_is_logged(self) -> None:
        """The other one is done all the same."""
        self.life.start()
        self.end("open")
        stopped = self.life.stop()
        for name in ("drain", "close"):
            self.pending.pop(name).errback(KeyError())
        self.successResultOf(stopped)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 2)

    def test_an_illegal_transition_raises(self) -> None:
        """Each one that is not in the table."""
        for state in State:
            for target in set(State) - TRANSITIONS[state]:
                self.life.state = state
                with self.assertRaises(RuntimeError):
                    self.life.enter(target)
