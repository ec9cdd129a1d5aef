"""
One SQLite file, open in a thread of its own: what its history and its registry share.

A thread pool would do as well (`twisted.enterprise.adbapi`), but the way to it and back costs more
than an append.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

from asyncplumber.clocks import SteadyClock, TimeSource
from asyncplumber.concurrency import Waiters
from asyncplumber.errors import IllegalTransition, PlumberError, Unavailable
from asyncplumber.stores.outage import Outage
from asyncplumber.stores.sqlite.checkpoint import Checkpoints
from asyncplumber.stores.sqlite.connect import (
    Connection,
    abandon,
    connect_among_others,
    connect_for_checkpoints,
)
from asyncplumber.stores.sqlite.file_identity import FileIdentity

T = TypeVar("T")

# Seconds that a call waits behind other calls, at most.  After them it may wait as long for a lock
# (`connect.LOCK_TIMEOUT`): 5 in all.
QUEUE_TIMEOUT = 2.5
GROUP = 256  # writes in one transaction, at most: others wait for the file meanwhile
# Errors of what was to be written alone; all others are errors of the file.
ROW_ERRORS = (
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    UnicodeError,
    OverflowError,
)


class State(Enum):
    """What a file is doing."""

    CLOSED = "closed"
    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"


TRANSITIONS = {
    State.CLOSED: {State.OPENING},
    State.OPENING: {State.OPEN, State.CLOSING, State.CLOSED},  # CLOSED: it cannot be opened
    State.OPEN: {State.CLOSING},
    State.CLOSING: {State.CLOSED},
}
TAKES_CALLS = {State.OPENING, State.OPEN}


class _Call(NamedTuple):
    """A piece of work for the thread."""

    work: Callable[[Connection], Any]
    done: Deferred[Any]
    asked: float  # seconds of the steady clock
    is_write: bool  # whether it may share a transaction


def _results(calls: list[_Call], connection: Connection) -> list[Any]:
    """
    Do one call, or several writes in one transaction.

    Returns:
        For each call its result, or the `Failure` of this write alone.

    Raises:
        sqlite3.Error: Nothing was written.
    """
    if not calls[0].is_write:
        return [calls[0].work(connection)]
    results: list[Any] = []
    connection.execute("BEGIN IMMEDIATE")
    for call in calls:
        try:
            results.append(call.work(connection))
        except ROW_ERRORS:
            results.append(Failure(PlumberError("this cannot be stored")))
        except sqlite3.Error:
            raise
        except Exception:
            results.append(Failure())
    connection.execute("COMMIT")
    return results


def _succeed(calls: list[_Call], results: list[Any]) -> None:
    for call, result in zip(calls, results, strict=True):
        if isinstance(result, Failure):
            call.done.errback(result)
        else:
            call.done.callback(result)


def _fail(calls: list[_Call], failure: Failure) -> None:
    for call in calls:
        call.done.errback(failure)


class SqliteFile:
    """Runs work on the file, one piece after the other, in a thread of its own."""

    def __init__(
        self,
        path: str,
        synchronous: str,
        reactor: IReactorFromThreads,
        clock: TimeSource = SteadyClock,
    ) -> None:
        """
        Remember what to open; `open` opens it.

        Args:
            path: The file.
            synchronous: ``normal`` or ``full``, as SQLite means them.
            reactor: Takes the results from the thread.
            clock: A clock that is never set and may be used in any thread; it measures time-outs.
        """
        self._path = path
        self._synchronous = synchronous
        self._reactor = reactor
        self._clock = clock
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._state = State.CLOSED
        self._closed = Waiters()
        self._misplaced = False  # at the last look
        #: Counts and logs when the file cannot be used.
        self.outage = Outage(f"sqlite:{path}")

    def _enter(self, state: State) -> None:
        if state not in TRANSITIONS[self._state]:
            raise IllegalTransition("a SQLite file", self._state, state)
        self._state = state
        if state is State.CLOSED:
            self._closed.release()

    async def open(self) -> None:
        """
        Open the file.  Calls that come meanwhile wait for it.

        Raises:
            ValueError: The file cannot be used; the message is a sentence for the user.
        """
        self._enter(State.OPENING)
        opened: Deferred[None] = Deferred()
        Thread(target=self._serve, args=(opened,), name=f"sqlite:{self._path}", daemon=True).start()
        try:
            await opened
        except (OSError, sqlite3.Error, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ValueError(f"the store sqlite:{self._path} cannot be used: {reason}") from error

    def _opened(self, opened: Deferred[None]) -> None:
        if self._state is State.OPENING:  # else `close` was called meanwhile
            self._enter(State.OPEN)
        opened.callback(None)

    def _not_opened(self, opened: Deferred[None], failure: Failure) -> None:
        # The thread has ended.
        while not self._calls.empty():
            if (call := self._calls.get()) is not None:
                call.done.errback(Unavailable())
        self._enter(State.CLOSED)
        opened.errback(failure)

    async def close(self) -> None:
        """Finish the calls that came before, and close.  Harmless if it is closed."""
        if self._state in TAKES_CALLS:
            self._enter(State.CLOSING)
            self._calls.put(None)
        if self._state is State.CLOSING:
            await self._closed.wait()

    def run(self, work: Callable[[Connection], T]) -> Deferred[T]:
        """
        Call `work` in the file's thread, and return its result.

        Args:
            work: Takes the connection, and commits what it begins.

        Raises:
            Unavailable: The file cannot be used now.  Through the Deferred, like anything that
                `work` raises.
        """
        return self._put(work, is_write=False)

    def write(self, work: Callable[[Connection], T]) -> Deferred[T]:
        """
        Call `work` in a transaction, which it shares with all other writes that wait as well.

        One commit costs more than many rows.

        Args:
            work: Takes the connection, and begins and commits nothing.  Its last statement is its
                only one that writes: if it fails, there is nothing to take back.

        Raises:
            Unavailable: Nothing was written.  Through the Deferred, as are `ROW_ERRORS` of this
                work alone, which become a `PlumberError`.
        """
        return self._put(work, is_write=True)

    def _put(self, work: Callable[[Connection], T], *, is_write: bool) -> Deferred[T]:
        if self._state not in TAKES_CALLS:
            return fail(Unavailable())
        done: Deferred[T] = Deferred()
        self._calls.put(_Call(work, done, self._clock.seconds(), is_write))
        return done.addCallbacks(self._succeeded, self.translated)

    def _succeeded(self, result: T) -> T:
        self.outage.over()
        return result

    def translated(self, failure: Failure) -> Failure:
        """
        Return the failure for the caller.

        An error of SQLite becomes `Unavailable`, and the outage goes to the log.
        """
        if failure.check(sqlite3.Error):
            self.outage.began(failure.getErrorMessage())
            return Failure(Unavailable())
        return failure

    # The rest runs in the file's thread.

    def _serve(self, opened: Deferred[None]) -> None:
        """Open the file, do the calls, close the file."""
        tell = self._reactor.callFromThread
        try:
            connection = connect_among_others(self._path, self._synchronous, self._clock)
            identity = FileIdentity(self._path, self._clock)
        except Exception:
            tell(self._not_opened, opened, Failure())
            return
        checkpoints = Checkpoints(
            self._path, lambda: connect_for_checkpoints(self._path, self._synchronous)
        )
        tell(self._opened, opened)
        waiting: deque[_Call | None] = deque()
        while calls := self._next_calls(waiting):
            oldest = self._clock.seconds() - QUEUE_TIMEOUT
            if late := [call for call in calls if call.asked < oldest]:
                tell(_fail, late, Failure(Unavailable()))
                calls = [call for call in calls if call.asked >= oldest]
            if not calls:
                continue
            try:
                results = self._checked(connection, identity, partial(_results, calls))
            except BaseException:
                tell(_fail, calls, Failure())
                # If this fails, so does the next BEGIN, which is a failure of that call and not
                # the end of the thread.
                with suppress(sqlite3.Error):
                    connection.rollback()
            else:
                tell(_succeed, calls, results)
                checkpoints.note(connection.total_changes, identity.log_size)
        close = Connection.close if identity.may_close else abandon
        checkpoints.stop(close)
        close(connection)
        tell(self._enter, State.CLOSED)

    def _next_calls(self, waiting: deque[_Call | None]) -> list[_Call]:
        """
        Wait for a call, and return it; if it is a write, with the other writes that wait.

        Args:
            waiting: What was taken from the queue, and is not done yet.

        Returns:
            The calls; none if the file is to be closed.
        """
        if not waiting:
            waiting.append(self._calls.get())
        with suppress(Empty):
            while True:
                waiting.append(self._calls.get_nowait())
        call = waiting.popleft()
        if call is None:
            return []
        calls = [call]
        if call.is_write:
            others = list(waiting)
            waiting.clear()
            for other in others:
                is_next = other is not None and other.is_write and len(calls) < GROUP
                (calls if is_next else waiting).append(other)  # type: ignore[arg-type]
        return calls

    def _checked(
        self, connection: Connection, identity: FileIdentity, work: Callable[[Connection], T]
    ) -> T:
        """
        Return the result of `work`, if it was done in the file that other processes would open.

        Raises:
            sqlite3.Error: The file was moved, or SQLite failed.
        """
        if self._misplaced:
            identity.check()
        result = work(connection)
        # The look comes afterwards, because the file may be deleted at any moment before.  Once it
        # is missing, nothing more is written into it.
        self._misplaced = True
        identity.check()
        self._misplaced = False
        return result
