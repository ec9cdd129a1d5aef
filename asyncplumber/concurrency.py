"""
Four small patterns of asynchronous work, written once.

`Waiters` releases many Deferreds together.  `SingleFlight` has one run of a job under way, and
serves all who ask meanwhile by one more run.  `PeriodicTask` repeats a job and survives its
failures.  `Semaphore` bounds how many do something at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.errors import PlumberError


class Waiters:
    """Deferreds that are released together.  A waiter that is cancelled is forgotten."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[Deferred[None]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self) -> Deferred[None]:
        """Return a Deferred that fires at the next `release`, or fails at the next `fail`."""
        waiter: Deferred[None] = Deferred(self._forget)
        self._waiting.append(waiter)
        return waiter

    def _forget(self, waiter: Deferred[None]) -> None:
        # While `release` runs, a waiter may cancel another one, which is not in the list any more.
        if waiter in self._waiting:
            self._waiting.remove(waiter)

    def release(self) -> None:
        """Fire all who wait now.  Those who begin to wait meanwhile wait for the next time."""
        for waiter in self._taken():
            if not waiter.called:
                waiter.callback(None)

    def fail(self, error: Exception | Failure) -> None:
        """Fail all who wait now."""
        for waiter in self._taken():
            if not waiter.called:
                waiter.errback(error)

    def _taken(self) -> list[Deferred[None]]:
        taken, self._waiting = self._waiting, []
        return taken


class SingleFlight:
    """A job of which one run is under way at a time.

    Requests that arrive during a run are coalesced into one more run after it.  The run under way
    cannot serve them: it may have looked already at what they want to be seen.
    """

    __slots__ = ("_is_running", "_next", "_wanted", "_what", "_work")
    _log = Logger()

    def __init__(
        self, work: Callable[[], Coroutine[Any, Any, object]], what: str = "a job"
    ) -> None:
        """
        Args:
            work: The job.
            what: Its name in the log.
        """
        self._work = work
        self._what = what
        self._next = Waiters()
        self._wanted = False
        self._is_running = False

    @property
    def is_running(self) -> bool:
        """Whether a run is under way."""
        return self._is_running

    def run(self) -> Deferred[None]:
        """Ask for a run that begins after this call.

        Returns:
            A Deferred that fires when that run has ended, and fails as it fails.
        """
        done = self._next.wait()
        self.request()
        return done

    def request(self) -> None:
        """Ask for a run without waiting for it.  A failure is logged if nobody waits for it."""
        self._wanted = True
        if not self._is_running:
            self._is_running = True
            # A loop, and not a call at the end of each run: thousands of runs need no stack.
            Deferred.fromCoroutine(self._loop())

    async def _loop(self) -> None:
        while self._wanted:
            self._wanted = False
            current, self._next = self._next, Waiters()
            try:
                await self._work()
            except Exception as error:
                if not current:
                    self._log_failure(error)
                current.fail(Failure())
            else:
                current.release()
        self._is_running = False

    def _log_failure(self, error: Exception) -> None:
        if isinstance(error, PlumberError):
            self._log.warn("{what} failed: {error}", what=self._what, error=error.message)
        else:
            self._log.failure("{what} failed", what=self._what)


class PeriodicTask:
    """
    A job that is repeated, and survives its own failures.

    A `LoopingCall` alone ends for good at the first failure that reaches it.  A run that takes
    longer than the interval is not started a second time beside itself.
    """

    _log = Logger()

    def __init__(
        self,
        work: Callable[[], Coroutine[Any, Any, Any] | None],
        interval: float,
        clock: IReactorTime,
        *,
        now: bool = False,
    ) -> None:
        """
        Args:
            work: The job: a coroutine function, or a function that returns None.
            interval: Seconds between the beginnings of two runs.
            clock: The clock that the interval is measured by.
            now: Whether the first run is at once, and not one interval after the start.
        """
        self._work = work
        self._interval = interval
        self._now = now
        self._loop = LoopingCall(self._run)
        self._loop.clock = clock

    @property
    def is_running(self) -> bool:
        """Whether it was started, and not stopped since."""
        return bool(self._loop.running)

    def start(self) -> None:
        """Begin.  Harmless if it has begun."""
        if not self._loop.running:
            self._loop.start(self._interval, now=self._now)

    def stop(self) -> None:
        """Begin no further run; one that is under way goes on.  Harmless if it is stopped."""
        if self._loop.running:
            self._loop.stop()

    def _run(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._guarded())

    async def _guarded(self) -> None:
        try:
            running = self._work()
            if running is not None:
                await running
        except PlumberError as error:
            self._log.warn(
                "{error}; the next try is in {interval} s",
                error=error.message,
                interval=self._interval,
            )
        except Exception:
            self._log.failure("a periodic task failed")


class Semaphore:
    """
    So many tokens; who finds none waits, and is served in order.

    Twisted's `DeferredSemaphore` resumes the next waiter inside `release`.  If that waiter has
    nothing to do any more and releases at once, the calls nest, one level for each waiter: the
    stack ends after some hundred of them, and the token of that moment is lost.  Here a waiter
    that is resumed and releases returns first, and the next one is resumed after it.
    """

    def __init__(self, tokens: int) -> None:
        """`tokens` is how many may hold one at the same time."""
        self.tokens = tokens
        self._waiting: deque[Deferred[None]] = deque()
        self._resuming = False

    def acquire(self) -> Deferred[None]:
        """Return a Deferred that fires when the caller holds a token."""
        if self.tokens:
            self.tokens -= 1
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._waiting.append(waiter)
        return waiter

    def release(self) -> None:
        """Give a token back.  The next waiter is resumed before this returns, or by the caller."""
        self.tokens += 1
        if self._resuming:
            return
        self._resuming = True
        try:
            while self.tokens and self._waiting:
                self.tokens -= 1
                self._waiting.popleft().callback(None)
        finally:
            self._resuming = False
