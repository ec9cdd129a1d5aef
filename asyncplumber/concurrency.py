"""
Four small patterns of asynchronous work, written once.

- `Waiters` releases many Deferreds together.
- `SingleFlight` has one run of a job under way; requests meanwhile lead to one more run.
- `PeriodicTask` repeats a job, and survives its failures.
- `Semaphore` bounds how many callers do something at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from asyncplumber.errors import PlumberError, Unavailable


class Waiters:
    """Deferreds that are released together.  A waiter that is cancelled is forgotten."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        # A dict, in the order of arrival: thousands may be cancelled, in any order.
        self._waiting: dict[Deferred[None], None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self) -> Deferred[None]:
        """Return a Deferred that fires at the next `release`, or fails at the next `fail`."""
        waiter: Deferred[None] = Deferred(self._forget)
        self._waiting[waiter] = None
        return waiter

    def _forget(self, waiter: Deferred[None]) -> None:
        # It is not there if a waiter cancels another one during `release`.
        self._waiting.pop(waiter, None)

    def release(self) -> None:
        """Fire all that wait now.  A wait that begins meanwhile is for the next release."""
        for waiter in self._take():
            if not waiter.called:
                waiter.callback(None)

    def fail(self, error: Exception | Failure) -> None:
        """Fail all that wait now."""
        for waiter in self._take():
            if not waiter.called:
                waiter.errback(error)

    def _take(self) -> dict[Deferred[None], None]:
        waiting, self._waiting = self._waiting, {}
        return waiting


class SingleFlight:
    """
    A job of which one run is under way at a time.

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
        """
        Ask for a run that begins after this call.

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
        if isinstance(error, Unavailable):
            # Whoever is not available has a line of its own, one for all that fail meanwhile.
            self._log.debug("{what} failed: {error}", what=self._what, error=error.message)
        elif isinstance(error, PlumberError):
            self._log.warn("{what} failed: {error}", what=self._what, error=error.message)
        else:
            self._log.failure("{what} failed", what=self._what)


class PeriodicTask:
    """
    A job that is repeated, and survives its own failures.

    A `LoopingCall` alone ends for good at the first failure that reaches it.  A run that takes
    longer than the interval delays the next one: two runs never overlap.
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
            clock: Measures the interval.
            now: Whether the first run is at the start, or one interval after it.
        """
        self._work = work
        self._interval = interval
        self._now = now
        self._clock = clock
        self._runs = SingleFlight(self._guarded)
        self._loop = self._new_loop()

    @property
    def is_running(self) -> bool:
        """Whether it was started, and not stopped since."""
        return bool(self._loop.running)

    def start(self) -> None:
        """Begin.  Harmless if it has begun."""
        if not self._loop.running:
            # A `LoopingCall` that is started again during a run goes on twice from then on.
            self._loop = self._new_loop()
            self._loop.start(self._interval, now=self._now)

    def stop(self) -> None:
        """Begin no further run; one that is under way goes on.  Harmless if it is stopped."""
        if self._loop.running:
            self._loop.stop()

    def _new_loop(self) -> LoopingCall:
        loop = LoopingCall(self._runs.run)
        loop.clock = self._clock
        return loop

    async def _guarded(self) -> None:
        if not self.is_running:
            return  # it was stopped while this run waited for the end of the one before
        try:
            running = self._work()
            if running is not None:
                await running
        except PlumberError as error:
            # See `SingleFlight`.
            self._log.emit(
                LogLevel.debug if isinstance(error, Unavailable) else LogLevel.warn,
                "{error}; the next try is in {interval} s",
                error=error.message,
                interval=self._interval,
            )
        except Exception:
            self._log.failure("a periodic task failed")


class Semaphore:
    """
    A number of tokens.  A caller that finds none waits, and callers are served in order.

    Twisted's `DeferredSemaphore` resumes the next waiter inside ``release``.  If that waiter has
    nothing to do any more and releases at once, the calls nest, one level for each waiter: the
    stack ends after some hundred of them, and the token of that moment is lost.  Here the waiter
    returns first, and the next one is resumed after it.
    """

    def __init__(self, tokens: int) -> None:
        """``tokens`` is how many callers may hold one at the same time."""
        self.tokens = tokens
        self._waiting: deque[Deferred[None]] = deque()
        self._resuming = False

    def acquire(self) -> Deferred[None]:
        """Return a Deferred that fires when the caller holds a token.  It can be cancelled."""
        if self.tokens:
            self.tokens -= 1
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._waiting.append(waiter)
        return waiter

    def release(self) -> None:
        """
        Give a token back.

        The next waiter is resumed before this returns; or, inside such a waiter, by the call that
        resumed it.
        """
        self.tokens += 1
        if self._resuming:
            return
        self._resuming = True
        try:
            while self.tokens and self._waiting:
                waiter = self._waiting.popleft()
                if not waiter.called:  # else it was cancelled
                    self.tokens -= 1
                    waiter.callback(None)
        finally:
            self._resuming = False
