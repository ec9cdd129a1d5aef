"""One at a time for each task: what is done with a task here happens in order."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from asyncplumber.concurrency import Semaphore

Place = tuple[str, str]  # an account, and the key of a task
Result = TypeVar("Result")


class Turns:
    """Runs one job at a time for each task, in the order in which they came."""

    def __init__(self) -> None:
        self._locks: dict[Place, tuple[Semaphore, int]] = {}  # with how many hold it or wait

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
