"""
How work on tasks is run: in order for each task, and to its end.

What is done with one task at an instance happens one after the other.  A client that leaves stops
nothing of what it has asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.concurrency import Semaphore, Waiters
from asyncplumber.errors import to_client_error

Place = tuple[str, str]  # an account, and the key of a task
Result = TypeVar("Result")
_log = Logger()


class Turns:
    """Runs one job at a time for each task, in the order in which they came."""

    def __init__(self) -> None:
        self._locks: dict[Place, tuple[Semaphore, int]] = {}  # with how many hold it or wait
        self._idle = Waiters()

    async def run(self, place: Place, job: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Run a job when those before it have ended, and return its result."""
        lock, users = self._locks.get(place) or (Semaphore(1), 0)
        self._locks[place] = lock, users + 1
        try:
            await lock.acquire()
            try:
                return await job()
            finally:
                lock.release()
        finally:
            lock, users = self._locks[place]
            if users == 1:
                del self._locks[place]
            else:
                self._locks[place] = lock, users - 1
            if not self._locks:
                self._idle.release()

    async def stop(self) -> None:
        """Wait until all that has begun, or waits, has ended."""
        if self._locks:
            await self._idle.wait()


def shielded(work: Coroutine[Any, Any, Result]) -> Deferred[Result]:
    """Return a Deferred of the result of work that goes on even if the Deferred is cancelled."""
    waiting: Deferred[Result] = Deferred()

    def done(result: Result | Failure) -> None:
        if not waiting.called:
            waiting.callback(result)
        elif isinstance(result, Failure):
            to_client_error(result, _log, "what a client that has left asked for failed")

    Deferred.fromCoroutine(work).addBoth(done)
    return waiting
