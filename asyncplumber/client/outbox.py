"""
Sending from a program that must neither wait nor fail because of it.

An ``Outbox`` is a bounded queue in memory, and a thread that sends from it in order.  An event is
lost if it does not fit, if the plumber refuses it, or if it is still there when the process ends.
Losses are counted, and logged in one line per interval.
"""

from __future__ import annotations

import atexit
import logging
import os
import ssl
import sys
import threading
import time as time_module
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from weakref import WeakSet

from asyncplumber.client.losses import Losses
from asyncplumber.client.request import Endpoint, Request
from asyncplumber.client.response import Refused
from asyncplumber.client.retry import RetryPolicy, Undelivered
from asyncplumber.client.send import Sender, from_environment
from asyncplumber.sending import DEFAULT_TYPE, Key, Time

MAX_EVENTS = 1000  # that wait in one process
MAX_BYTES = 16 * 1024 * 1024  # of their bodies: what an absent plumber may cost each process
RETRY_POLICY = RetryPolicy(deadline=300.0)  # for each event: a deployment takes minutes
EXIT_TIMEOUT = 10.0  # seconds that a process which ends waits for its outbox
INLINE_TIMEOUT = 1.0  # seconds that ``Outbox.put`` waits for a response
EXIT_PAUSE = 0.25  # seconds; the longest pause between attempts while a caller waits in ``flush``

# What encoding raises for unsuitable data.  A task queue's time limit can interrupt us at any
# moment; it is none of these, and reaches the task.
_UNSUITABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)

_log = logging.getLogger(__name__)


class _Abandoned(Exception):
    """The outbox was closed during the attempt; there is no further one."""

    def __str__(self) -> str:
        return "the outbox was closed"


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
        inline_timeout: Seconds that ``put`` waits for a response if it sends at once.
        clock: Returns seconds, and is monotonic.
        sender_factory: Makes the senders.

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
        inline_timeout: float = INLINE_TIMEOUT,
        clock: Callable[[], float] = time_module.monotonic,
        sender_factory: Callable[..., Any] = Sender,
    ) -> None:
        """Open nothing yet."""
        url, token = from_environment(url, token)
        self.endpoint = Endpoint(url, token, headers)
        options = {"token": token, "headers": headers, "tls": tls}
        once = RetryPolicy(timeout=inline_timeout, attempts=1, deadline=inline_timeout)
        self._inline_sender = sender_factory(url, retry_policy=once, **options)
        self._sender = sender_factory(url, retry_policy=retry_policy, sleep=self._pause, **options)
        self._max_events, self._max_bytes = max_events, max_bytes
        self._exit_timeout = exit_timeout
        self._clock = clock
        self._reset()
        _outboxes.add(self)

    def _reset(self) -> None:
        """Begin empty, also in a forked process: threads and locks do not outlive a fork."""
        self._queue: deque[Request] = deque()
        self._queued_bytes = 0
        self._sending: Request | None = None  # the first of the queue, while the thread sends it
        self._abandoned: Request | None = None  # was being sent when the outbox was closed
        self._changed = threading.Condition()
        self._hurry = threading.Event()
        self._thread: threading.Thread | None = None
        self._has_finalizer = False
        self._losses = Losses(self._clock)

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
        except _UNSUITABLE as error:
            self._losses.report(id, f"{error.__class__.__name__}: {error}")
            return
        self._enqueue(request)

    def put(self, request: Request, *, inline: bool) -> None:
        """
        Send now, or as soon as the plumber responds.

        Raises nothing of its own.  A time limit of the caller's may interrupt it; the event is
        queued then.

        Args:
            request: What to send.
            inline: Whether to try it here and now, if nothing is waiting before it.
        """
        settled = False  # whether it is sent, refused or queued
        try:
            if inline and not self._queue:
                try:
                    self._inline_sender.deliver(request)
                    settled = True
                    return
                except Refused as error:
                    settled = True
                    self._losses.report(request.id, str(error))
                    return
                except Undelivered as error:
                    _log.warning("%s; it goes to the outbox", error)
            self._enqueue(request)
            settled = True
        finally:
            if not settled:  # interrupted; to the plumber a second copy is the same event
                self._enqueue(request)

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
        waiting = self._wait_until_sent(seconds)
        if waiting:
            verb = "event is" if waiting == 1 else "events are"
            _log.warning("%d %s not sent within %g seconds", waiting, verb, seconds)
        self._losses.log(now=True)
        return not waiting

    def close(self, timeout: float | None = None) -> bool:
        """
        Wait as ``flush`` does, then drop the events that are left.  The outbox can still be used.

        An event that is being sent at that moment is lost only if that attempt fails.

        Returns:
            Whether everything was sent.
        """
        waiting = self._wait_until_sent(self._exit_timeout if timeout is None else timeout)
        with self._changed:
            self._abandoned = sending = self._sending
            kept = deque([] if sending is None else [sending])
            # Swapped first: a signal handler that sends from now on finds the new queue.
            dropped, self._queue = self._queue, kept
            self._queued_bytes = sum(len(request.body) for request in kept)
            for request in dropped:
                if request is not sending:
                    self._losses.add(request.id, "the outbox was closed")
        self._losses.log(now=True)
        if sending is not None:
            _log.error("event %s is lost unless the attempt under way succeeds", sending.id)
        for sender in (self._inline_sender, self._sender):
            sender.close()
        return not waiting

    def _wait_until_sent(self, seconds: float) -> int:
        """Return how many events are left after so many seconds, or earlier if that is 0."""
        self._hurry.set()
        with self._changed:
            self._ensure_thread()  # a process that could start no thread may have left events
            self._changed.wait_for(lambda: not self._queue, seconds)
            waiting = len(self._queue)
        self._hurry.clear()
        return waiting

    # The queue

    def _enqueue(self, request: Request) -> None:
        with self._changed:
            size = len(request.body)
            is_full = len(self._queue) >= self._max_events
            if is_full or self._queued_bytes + size > self._max_bytes:
                self._losses.report(request.id, "the outbox is full")
                return
            self._queue.append(request)
            # Read only now: a signal handler may have sent something since the check.
            self._queued_bytes += size
            self._ensure_thread()

    def _ensure_thread(self) -> None:
        """Start the thread if there is work for it.  The caller holds the lock."""
        if not self._queue or (self._thread is not None and self._thread.is_alive()):
            return
        self._register_finalizer()
        self._thread = threading.Thread(target=self._run, name="asyncplumber-outbox", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            # There are too many, or the interpreter ends.  The next call tries again.
            _log.warning("the outbox has no thread now: %s", error)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._queue:
                    self._thread = None
                    self._changed.notify_all()
                    return
                # It stays in the queue while it is sent, so that no other event overtakes it.
                self._sending = request = self._queue[0]
            lost = ""
            try:
                self._sender.deliver(request)
            except Exception as error:
                lost = str(error) or error.__class__.__name__
            with self._changed:
                self._sending = self._abandoned = None
                self._queue.popleft()
                self._queued_bytes -= len(request.body)
                if lost:
                    self._losses.report(request.id, lost)
            self._losses.log()

    def _pause(self, seconds: float) -> None:
        """Wait between two attempts, for a moment only while a caller waits in ``flush``."""
        if self._abandoned is None and self._hurry.wait(seconds):
            time_module.sleep(min(seconds, EXIT_PAUSE))
        if self._abandoned is not None:
            raise _Abandoned

    def _register_finalizer(self) -> None:
        """Have a child of ``multiprocessing`` close the outbox: it ends without ``atexit``."""
        if not self._has_finalizer:
            self._has_finalizer = True
            process = sys.modules.get("multiprocessing.process")
            util = sys.modules.get("multiprocessing.util")
            if process is not None and util is not None and process.parent_process() is not None:
                util.Finalize(None, self.close, exitpriority=0)


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
