"""
Sending from a program that must neither wait nor fail because of it.

An ``Outbox`` is a bounded queue in memory, and a thread that sends from it in order.  An event is
lost if it does not fit, if the plumber refuses it, if the plumber is away for too long, or if it is
still there when the process ends.  Losses are counted, and logged in one line per interval.

Reports of tasks wait in the same queue.  `waiting` says what gives way when it is full.
"""

from __future__ import annotations

import atexit
import logging
import os
import ssl
import sys
import time as time_module
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from weakref import WeakSet

from asyncplumber.client.beats import Beats
from asyncplumber.client.losses import Losses
from asyncplumber.client.reports import BEAT_INTERVAL, DEADLINE
from asyncplumber.client.request import Endpoint, Request
from asyncplumber.client.retry import RetryPolicy
from asyncplumber.client.send import Sender, from_environment
from asyncplumber.client.sending_thread import SendingThread
from asyncplumber.client.task import TaskRun
from asyncplumber.client.task_errors import UNSUITABLE
from asyncplumber.client.waiting import Entry, Kind, WaitingEntries
from asyncplumber.sending import DEFAULT_TYPE, Key, Time

MAX_EVENTS = 1000  # that wait in one process
MAX_BYTES = 16 * 1024 * 1024  # of their bodies: what an absent plumber may cost each process
RETRY_POLICY = RetryPolicy(deadline=300.0)  # for each event: a deployment takes minutes
END_DEADLINE = 3600.0  # seconds for the end of a task: nobody repeats it
PROGRESS_DEADLINE = 60.0  # seconds for a progress or a beat: a newer one says more
EXIT_TIMEOUT = 10.0  # seconds that a process which ends waits for its outbox

_log = logging.getLogger(__name__)


class Outbox:
    """
    A queue of events that are sent in the background.

    Threads may share it.  After a fork the child has an empty queue of its own; the parent sends
    what was waiting.

    Args:
        url: Where the plumber is; None takes ``ASYNCPLUMBER_URL``.
        token: Sent as ``Authorization: Bearer``; None takes ``ASYNCPLUMBER_TOKEN``.
        headers: Added to each request.
        tls: For a private certificate authority.
        retry_policy: How long to try with each event.
        max_events: The most events that wait.
        max_bytes: The most bytes of their bodies.
        exit_timeout: Seconds that an ending process waits until all is sent.
        clock: Returns seconds, and is monotonic.
        sender_factory: Makes the sender.

    Raises:
        ValueError: The URL, the token or a header cannot be used.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        retry_policy: RetryPolicy = RETRY_POLICY,
        max_events: int = MAX_EVENTS,
        max_bytes: int = MAX_BYTES,
        exit_timeout: float = EXIT_TIMEOUT,
        clock: Callable[[], float] = time_module.monotonic,
        sender_factory: Callable[..., Any] = Sender,
    ) -> None:
        """Open nothing yet."""
        url, token = from_environment(url, token)
        self.endpoint = Endpoint(url, token, headers)
        options = {"token": token, "headers": headers, "tls": tls}
        self._sender = sender_factory(url, retry_policy=retry_policy, sleep=self._pause, **options)
        self._deadline = retry_policy.deadline
        self._max_events, self._max_bytes = max_events, max_bytes
        self._exit_timeout = exit_timeout
        self._clock = clock
        self._reset()
        _outboxes.add(self)

    def _reset(self) -> None:
        """Begin empty, also in a forked process: threads and locks do not outlive a fork."""
        self._losses = Losses(self._clock)
        self._has_finalizer = False
        self._thread = SendingThread(
            self._sender.exchange,
            WaitingEntries(self._max_events, self._max_bytes),
            self._losses,
            self._clock,
            self._register_finalizer,
        )

    @property
    def dropped(self) -> int:
        """How many events were lost in this process."""
        return self._losses.count

    def send(
        self,
        account: Key,
        data: Any,
        *,
        id: Key | None = None,
        type: str = DEFAULT_TYPE,
        content_type: str | None = None,
        time: Time | None = None,
    ) -> None:
        """
        Have one event sent soon.

        Returns at once, and raises nothing: an event that cannot be sent counts as lost.  The
        arguments are those of ``Sender.send``, except that ``time`` is now if it is None.
        """
        try:
            request = self.endpoint.request(
                account,
                data,
                id=id,
                type=type,
                content_type=content_type,
                time=datetime.now(UTC) if time is None else time,
            )
        except UNSUITABLE as error:
            self._losses.report(id, f"{error.__class__.__name__}: {error}")
            return
        self.put(request)

    def put(self, request: Request, *, wait: float = 0.0) -> bool:
        """
        Send a request that was built before, soon.  Raises nothing of its own.

        Args:
            request: What to send.
            wait: Seconds to wait at most until it is sent; less if the plumber is known to be away.
                A time limit of the caller's may interrupt it; the event goes on waiting then.

        Returns:
            Whether it was sent or refused in that time.
        """
        return self._thread.put(Entry(request, expires=self._clock() + self._deadline), wait)

    def report(self, entry: Entry, *, wait: float = 0.0) -> bool:
        """Send a report of a task, soon; ``TaskRun`` does.  The result is that of ``put``."""
        seconds = {Kind.END: END_DEADLINE, Kind.BEGIN: self._deadline}
        entry.expires = self._clock() + seconds.get(entry.kind, PROGRESS_DEADLINE)
        return self._thread.put(entry, wait)

    def lose(self, id: object, reason: str) -> None:
        """Count something that cannot be sent as lost."""
        self._losses.report(id, reason)

    def task(
        self,
        account: Any,
        key: Any,
        *,
        run: str | None = None,
        deadline: float = DEADLINE,
        beat_interval: float = BEAT_INTERVAL,
        tracebacks: bool = False,
        clock: Any = None,
    ) -> TaskRun:
        """
        Return a run of a task, for ``with``, for ``async with``, or as a decorator.

        The block begins a run, or joins the live one.  From then on a thread reports that it goes
        on; with ``async with``, the event loop does, of asyncio or of Twisted.

        Nothing of it waits for the plumber, raises because of it, or changes what the block does.

        Args:
            account: Who waits for the task.  For a decorator it may be a function of the arguments
                of the call, and so may ``key``.
            key: The name of the task within the account.
            run: The id of the run, if whoever started it has given one; None joins the live run, or
                begins a new one.
            deadline: Seconds without a report after which the plumber counts the run as lost; 0 is
                never.
            beat_interval: Seconds between two reports that it goes on; 0 is for none.
            tracebacks: Whether a failure includes its traceback, which shows your code to browsers.
            clock: A clock of Twisted for the beats; None finds the loop.
        """
        return TaskRun(
            self,
            account,
            key,
            run=run,
            deadline=deadline,
            beat_interval=beat_interval,
            tracebacks=tracebacks,
            clock=clock,
        )

    def beats(self, beat: Callable[[], None], interval: float) -> Beats:
        """Return beats of the thread of this outbox, once per ``interval`` seconds."""
        return self._thread.beats(beat, interval)

    def flush(self, timeout: float | None = None) -> bool:
        """
        Wait until everything is sent.  Events that are left go on waiting, and the log says so.

        Call it where a process ends without its exit handlers (``os._exit``); RQ ends the process
        of each job so.

        Args:
            timeout: Seconds to wait at most; None waits as long as the end of the process would.

        Returns:
            Whether nothing is waiting any more.
        """
        seconds = self._exit_timeout if timeout is None else timeout
        waiting = self._thread.wait_until_sent(seconds)
        if waiting:
            verb = "event is" if waiting == 1 else "events are"
            _log.warning("%d %s not sent within %g seconds", waiting, verb, seconds)
        self._losses.log(now=True)
        return not waiting

    def hand_over(self, wait: float = 0.0) -> list[Request]:
        """
        Return what waits, for another process to send, and keep nothing of it.

        Args:
            wait: Seconds in which this process may still send it; less if the plumber is away.
        """
        return self._thread.hand_over(wait)

    def close(self, timeout: float | None = None) -> bool:
        """
        Wait as ``flush`` does, then drop the events that are left.  The outbox can still be used.

        An event that is being sent at that moment is lost only if that attempt fails.

        Returns:
            Whether everything was sent.
        """
        waiting = self._thread.wait_until_sent(self._exit_timeout if timeout is None else timeout)
        lost = self._thread.close()
        self._losses.log(now=True)
        if lost is not None:
            _log.error("event %s is lost unless the attempt under way succeeds", lost)
        self._sender.close()
        return not waiting

    # Of a process

    def _pause(self, seconds: float) -> None:
        self._thread.pause(seconds)

    def _register_finalizer(self) -> None:
        """Have a child of ``multiprocessing`` close the outbox: it ends without ``atexit``."""
        if not self._has_finalizer:
            self._has_finalizer = True
            process = sys.modules.get("multiprocessing.process")
            util = sys.modules.get("multiprocessing.util")
            if process is not None and util is not None and process.parent_process() is not None:
                util.Finalize(None, self.close, exitpriority=0)


@lru_cache(maxsize=4)
def _outbox(url: str, token: str | None) -> Outbox:
    return Outbox(url, token=token)


def task(account: Any, key: Any, **options: Any) -> TaskRun:
    """
    Return a run of a task that is reported to the plumber that the environment names.

    That is the plumber of ``send``.  Arguments and result are those of ``Outbox.task``.
    """
    return _outbox(*from_environment()).task(account, key, **options)


#: The outboxes of this process that are still in use; a thread that sends keeps its own alive.
_outboxes: WeakSet[Outbox] = WeakSet()


def _after_fork() -> None:
    for outbox in list(_outboxes):
        outbox._reset()


def _at_exit() -> None:
    for outbox in list(_outboxes):
        outbox.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
