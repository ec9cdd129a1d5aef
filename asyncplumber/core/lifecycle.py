"""
The life of an instance: started, running, drained, stopped, and started again.

The table of transitions is at the end of the module.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.concurrency import Waiters
from asyncplumber.errors import IllegalTransition, Unavailable

Step = Callable[[], Coroutine[Any, Any, None]]


class State(Enum):
    """Where an instance is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"  # the store is about to open
    RUNNING = "running"
    FAILED = "failed"  # the store can never be opened
    DRAINING = "draining"  # it leaves the registry, and its clients go elsewhere
    STOPPING = "stopping"  # what was accepted is finished, and the store is closed


class Lifecycle:
    """
    Starts and stops something that takes its time for both.

    A start during a stop follows it.  A stop during a start does not wait for it, because a store
    whose server is down may never open.
    """

    _log = Logger()

    def __init__(self, open: Step, serve: Callable[[], object], drain: Step, close: Step) -> None:
        """
        Args:
            open: The first half of a start.  If it fails, the start has failed for good.  It may
                be still under way when ``drain`` is called.
            serve: The second half, called if no stop has come in between.
            drain: The first half of a stop.
            close: The second half.  Neither may fail; what they raise is logged.
        """
        self.state = State.STOPPED
        self._open, self._serve, self._drain, self._close = open, serve, drain, close
        self._is_wanted = False  # whether it was started, and not stopped since
        self._start_number = 0
        self._failure: Failure | None = None  # why the state is FAILED
        self._running, self._stopped = Waiters(), Waiters()

    def start(self) -> None:
        """Start, after a stop that is under way.  Harmless if it is started."""
        self._is_wanted = True
        if self.state is State.STOPPED:
            self._begin()

    def stop(self) -> Deferred[None]:
        """Stop.  The Deferred fires when that is done, at once if there is nothing to stop."""
        self._is_wanted = False
        if self.state is State.STOPPED:
            return succeed(None)
        stopped = self._stopped.wait()
        if self.state not in (State.DRAINING, State.STOPPING):
            Deferred.fromCoroutine(self._end())
        return stopped

    def when_running(self) -> Deferred[None]:
        """
        Return a Deferred that fires when it runs, at once if it does.

        Fails as the start fails, and with ``Unavailable`` if a stop comes before.
        """
        if self.state is State.RUNNING:
            return succeed(None)
        if self._failure is not None:
            return fail(self._failure)
        return self._running.wait()

    def enter(self, state: State) -> None:
        """Go to another state.  Raises `IllegalTransition` if the table does not have it."""
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransition("an instance", self.state, state)
        self.state = state

    def _begin(self) -> None:
        self.enter(State.STARTING)
        self._start_number += 1
        Deferred.fromCoroutine(self._opening(self._start_number))

    async def _opening(self, number: int) -> None:
        try:
            await self._open()
        except Exception as error:
            if self._is_current(number):
                self._log.critical("this instance cannot start: {error}", error=str(error))
                self.enter(State.FAILED)
                self._failure = Failure()
                self._running.fail(self._failure)
            return
        if self._is_current(number):
            self.enter(State.RUNNING)
            self._serve()
            self._running.release()

    def _is_current(self, number: int) -> bool:
        return self.state is State.STARTING and self._start_number == number

    async def _end(self) -> None:
        self.enter(State.DRAINING)
        self._failure = None
        self._running.fail(Unavailable("it was stopped before it was running"))
        await self._finish(self._drain)
        self.enter(State.STOPPING)
        await self._finish(self._close)
        self.enter(State.STOPPED)
        self._stopped.release()
        if self._is_wanted and self.state is State.STOPPED:
            self._begin()

    async def _finish(self, step: Step) -> None:
        try:
            await step()
        except Exception:
            self._log.failure("a step of the stop failed")


TRANSITIONS = {
    State.STOPPED: {State.STARTING},
    State.STARTING: {State.RUNNING, State.FAILED, State.DRAINING},
    State.RUNNING: {State.DRAINING},
    State.FAILED: {State.DRAINING},
    State.DRAINING: {State.STOPPING},
    State.STOPPING: {State.STOPPED},
}
