"""
Sends events from a program that must neither wait nor fail for them.

An `Outbox` is a bounded queue in memory and a thread that empties it, in order.  What does not fit,
what the plumber refuses and what is still there when the process ends is lost: it is counted, and
told to the log in one line per interval.
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
from asyncplumber.client.retry import (
    DEFAULT_TYPE,
    Account,
    Address,
    Post,
    Refused,
    RetryPolicy,
    Time,
    Undelivered,
)
from asyncplumber.client.send import Sender, from_environment

EVENTS = 1000  # that wait in one process
BYTES = 16 * 1024 * 1024  # of their bodies: what an absent plumber may cost each process
PATIENCE = RetryPolicy(deadline=300.0)  # with each event: a deployment takes minutes
EXIT = 10.0  # seconds that a process which ends waits for its outbox
HURRY = 0.25  # seconds; the longest pause between two attempts while somebody waits for the outbox

# What the encoding of unsuitable data raises.  The time limits of task queues break in at any
# moment, and are none of these: they reach the task.
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


class Outbox:
    """
    Events on their way out of this process.

    May be shared by threads.  After a fork the child has an empty one of its own: what waited is
    sent by the parent.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        retry_policy: RetryPolicy = PATIENCE,
        max_events: int = EVENTS,
        max_bytes: int = BYTES,
        exit_timeout: float = EXIT,
        stall: float = 1.0,
        clock: Callable[[], float] = time_module.monotonic,
        make: Callable[..., Any] = Sender,
    ) -> None:
        """
        `url`, `token`, `headers` and `tls` are those of `Sender`; `url` and `token` default to
        ``ASYNCPLUMBER_URL`` and ``ASYNCPLUMBER_TOKEN``.

        `retry_policy`: how long it tries with each event.  `max_events` and `max_bytes` may wait.
        `exit_timeout`: seconds that an ending process waits until all is sent.  `stall`: seconds
        that `put` in line waits for an answer.  `make` makes the senders.  Opens nothing.  Raises
        ValueError for a URL, token or header that cannot be used.
        """
        url, token = from_environment(url, token)
        self.address = Address(url, token, headers)
        options = {"token": token, "headers": headers, "tls": tls}
        at_once = RetryPolicy(timeout=stall, attempts=1, deadline=stall)
        self._quick = make(url, retry_policy=at_once, **options)
        self._patient = make(url, retry_policy=retry_policy, sleep=self._pause, **options)
        self._max_events, self._max_bytes = max_events, max_bytes
        self._exit_timeout = exit_timeout
        self._clock = clock
        self._begin()
        _open.add(self)

    def _begin(self) -> None:
        """
        As it is in a new process, forked ones included: threads and locks do not outlive a fork.
        """
        self._posts: deque[Post] = deque()
        self._size = 0
        self._changed = threading.Condition()
        self._leaving = threading.Event()
        self._thread: threading.Thread | None = None
        self._finalized = False
        self._losses = Losses(self._clock)

    @property
    def dropped(self) -> int:
        """Events that were lost in this process."""
        return self._losses.count

    def send(
        self,
        account: Account,
        data: Any,
        *,
        id: Account | None = None,
        type: str = DEFAULT_TYPE,
        content_type: str | None = None,
        time: Time | None = None,
    ) -> None:
        """
        Have one event sent soon.  Does not wait, and raises nothing: what cannot be sent is counted
        as lost.

        The arguments are those of `Sender.send`; the event happened now, unless `time` says
        otherwise.
        """
        try:
            time = datetime.now(UTC) if time is None else time
            post = self.address.post(
                account,
                data,
                id=id,
                type=type,
                content_type=content_type,
                time=time,
            )
        except _UNSUITABLE as error:
            self._losses.report(id, f"{error.__class__.__name__}: {error}")
            return
        self._keep(post)

    def put(self, post: Post, *, in_line: bool) -> None:
        """
        Send now, if this is `in_line` and nothing waits before it, or else as soon as the plumber
        answers.

        Raises nothing of its own, but lets a time limit through that breaks in; the event is kept
        then.
        """
        settled = False  # it is sent, refused or kept
        try:
            if in_line and not self._posts:
                try:
                    self._quick.deliver(post)
                    settled = True
                    return
                except Refused as error:
                    settled = True
                    self._losses.report(post.id, str(error))
                    return
                except Undelivered as error:
                    _log.warning("%s; it goes to the outbox", error)
            self._keep(post)
            settled = True
        finally:
            if not settled:  # a time limit broke in; a second copy is the same event to the plumber
                self._keep(post)

    def flush(self, timeout: float | None = None) -> bool:
        """
        Wait until everything is sent, for `timeout` seconds at most; None is the time for the end
        of a process.

        Returns whether nothing waits any more.  What does goes on waiting, and the log says so.
        Call it where a process ends without a close_going_away (``os._exit``), as RQ ends the
        process of each job.
        """
        seconds = self._exit_timeout if timeout is None else timeout
        waiting = self._wait(seconds)
        if waiting:
            verb = "event is" if waiting == 1 else "events are"
            _log.warning("%d %s not sent within %g seconds", waiting, verb, seconds)
        self._losses.tell(at_once=True)
        return not waiting

    def _wait(self, seconds: float) -> int:
        self._leaving.set()
        with self._changed:
            self._start()  # for what a process that could start no thread left here
            self._changed.wait_for(lambda: not self._posts, seconds)
            waiting = len(self._posts)
        self._leaving.clear()
        return waiting

    def close(self, timeout: float | None = None) -> bool:
        """
        Flush; what is left then is lost.  Returns whether nothing was.  The outbox can still be
        used.
        """
        waiting = self._wait(self._exit_timeout if timeout is None else timeout)
        with self._changed:
            for post in self._posts:
                self._losses.add(post.id, "the process ends")
            self._posts.clear()
            self._size = 0
        self._losses.tell(at_once=True)
        for sender in (self._quick, self._patient):
            sender.close()
        return not waiting

    # The queue

    def _keep(self, post: Post) -> None:
        with self._changed:
            size = len(post.body)
            if len(self._posts) >= self._max_events or self._size + size > self._max_bytes:
                self._losses.report(post.id, "the outbox is full")
                return
            self._posts.append(post)
            self._size += size  # not from what was read before: a signal handler may send meanwhile
            self._start()

    def _start(self) -> None:
        """Have a thread, if there is something for it to do.  The lock is held."""
        if not self._posts or (self._thread is not None and self._thread.is_alive()):
            return
        self._finalize()
        self._thread = threading.Thread(target=self._run, name="asyncplumber-outbox", daemon=True)
        try:
            self._thread.start()
        except (
            RuntimeError
        ) as error:  # too many, or the interpreter ends: the next call tries again
            _log.warning("the outbox has no thread now: %s", error)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._posts:
                    self._thread = None
                    self._changed.notify_all()
                    return
                post = self._posts[0]  # stays there while it is sent: nothing overtakes it
            lost = ""
            try:
                self._patient.deliver(post)
            except Exception as error:
                lost = str(error) or error.__class__.__name__
            with self._changed:
                if self._posts and self._posts[0] is post:
                    self._posts.popleft()
                    self._size -= len(post.body)
                    if lost:
                        self._losses.report(post.id, lost)
            self._losses.tell()

    def _pause(self, seconds: float) -> None:
        if self._leaving.wait(seconds):
            time_module.sleep(min(seconds, HURRY))

    def _finalize(self) -> None:
        """
        A child of `multiprocessing` ends without `atexit`: it has its own way to say that it does.
        """
        if not self._finalized:
            self._finalized = True
            process = sys.modules.get("multiprocessing.process")
            util = sys.modules.get("multiprocessing.util")
            if process is not None and util is not None and process.parent_process() is not None:
                util.Finalize(None, self.close, exitpriority=0)


#: Those of this process that somebody can still use; a thread keeps its own alive while there is
#: something to send.
_open: WeakSet[Outbox] = WeakSet()


def _after_fork() -> None:
    for outbox in list(_open):
        outbox._begin()


def _at_exit() -> None:
    for outbox in list(_open):
        outbox.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
