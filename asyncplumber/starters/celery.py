"""
Starts tasks of Celery, by the message that ``apply_async`` would send.

The run is the id of the Celery task.  The message headers say whose task it is, so that
`asyncplumber.integrations.celery` in the worker reports its progress and its end.

Nothing here waits for a broker in the reactor's thread: threads of its own publish.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any

from celery import Celery
from celery.app.utils import find_app as find_by_name
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from asyncplumber.interfaces import (
    Answer,
    Dispatch,
    IStoppableStarter,
    Later,
    StarterFailed,
)
from asyncplumber.rate_limited_log import RateLimitedLog
from asyncplumber.sending import ACCOUNT_HEADER, CALLBACK_HEADER, TASK_HEADER
from asyncplumber.wire.payload import media_type

TIMEOUT = 10.0  # seconds that publishing may take
THREADS = 4  # that publish, and that a broker without answer can block
WAITING = 256  # messages that wait for a thread


def find_app(name: str) -> Celery:
    """
    Import a Celery app, as Celery's own option ``-A`` does.

    Args:
        name: ``MODULE`` or ``MODULE:APP``.  The current folder is searched as well.

    Raises:
        ValueError: There is none.
    """
    try:
        app = find_by_name(name)
    except Exception as error:  # the module is the application's, and may raise anything
        raise ValueError(
            f"the Celery app {name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(app, Celery):
        raise ValueError(f"{name!r} is no Celery app")
    return app


@implementer(IStoppableStarter)
class CeleryStarter:
    """Sends one kind of Celery task for each run."""

    _log = Logger()

    needs_callback = True

    def __init__(
        self,
        app: Celery,
        task: str,
        reactor: Any,
        *,
        timeout: float = TIMEOUT,
        waiting: int = WAITING,
    ) -> None:
        """
        Args:
            app: The Celery app.  The code of the task need not be in it.
            task: The name of the task.
            reactor: Takes the results from the threads, and measures time.
            timeout: Seconds until a message must be with the broker.
            waiting: Messages that may wait for a thread.
        """
        self._app = app
        self._task = task
        self._timeout = timeout
        self._clock: IReactorTime = reactor
        self._threads = _Threads(reactor, waiting)
        self._not_revoked = RateLimitedLog(self._log, reactor.seconds)

    # See `IStoppableStarter`

    def start(self, dispatch: Dispatch) -> Deferred[Answer]:
        """Publish the message.  A message that may not have arrived is a `StarterFailed`."""
        sent = self._threads.call(partial(self._send, dispatch))
        sent.addTimeout(self._timeout, self._clock)
        return sent.addCallbacks(lambda _: Later(), self._failed)

    def cancel(self, account: str, task: str, run: str) -> Deferred[None]:
        """
        Revoke the Celery task, and end it if it runs.  That is not waited for.

        Workers that do not run tasks in processes cannot end one.  There it ends when it asks
        whether it is canceled.
        """
        revoke = partial(self._app.control.revoke, run, terminate=True)
        revoked = self._threads.call(revoke).addTimeout(self._timeout, self._clock)
        revoked.addErrback(
            lambda failure: self._not_revoked.warn(
                "a Celery task could not be revoked: {error}", error=_sentence(failure)
            )
        )
        return succeed(None)

    def stop(self) -> Deferred[None]:
        """Let the threads end when they have sent what waits."""
        self._threads.stop()
        return succeed(None)

    def _send(self, dispatch: Dispatch) -> None:
        """Publish; called in a thread."""
        args, kwargs = arguments(dispatch.content_type, dispatch.body)
        # Not ``task``: that name is Celery's own, for the name of the task.
        headers = {ACCOUNT_HEADER: dispatch.account, TASK_HEADER: dispatch.task}
        if dispatch.callback:
            headers[CALLBACK_HEADER] = dispatch.callback
        result = self._app.send_task(
            self._task,
            args=args,
            kwargs=kwargs,
            task_id=dispatch.run,
            headers=headers,
            retry=False,  # the dispatcher tries again, and knows whether that is still wanted
        )
        # Some result backends subscribe to each task that is sent.  Nobody here asks for a result.
        forget = getattr(self._app.backend, "remove_pending_result", None)
        if forget is not None:
            forget(result)

    @staticmethod
    def _failed(failure: Failure) -> Failure:
        if failure.check(StarterFailed, CancelledError):
            return failure
        return Failure(StarterFailed(f"no message could be sent: {_sentence(failure)}"))


def arguments(content_type: str, body: bytes) -> tuple[list[Any], dict[str, Any]]:
    """
    Return what a task is called with.

    A JSON array is its positional arguments, and an object its keyword arguments.  Any other JSON
    value is its one argument, and so is a text.  Other bytes are one argument of bytes, as far as
    the serializer of the app can express them.  No input is no argument.
    """
    if not body:
        return [], {}
    kind = media_type(content_type)
    if not kind or kind == "application/x-www-form-urlencoded" or kind.endswith("json"):
        try:
            value = json.loads(body)
        except ValueError:
            pass
        else:
            if isinstance(value, list):
                return value, {}
            return ([], value) if isinstance(value, dict) else ([value], {})
    try:
        return [body.decode()], {}
    except UnicodeDecodeError:
        return [body], {}


def _sentence(failure: Failure) -> str:
    # The text of an error of a broker may have the broker's URL, with its password.
    return type(failure.value).__name__


class _Job:
    """A call for a thread.  Attributes: `is_wanted`: whether somebody still waits for it."""

    __slots__ = ("done", "function", "is_wanted")

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function
        self.is_wanted = True
        self.done: Deferred[None] = Deferred(self._cancel)

    def _cancel(self, _: Deferred[None]) -> None:
        self.is_wanted = False


class _Threads:
    """
    A few threads, and a queue before them that does not grow without end.

    The threads are daemons.  So one that waits for a broker for ever does not keep the process from
    ending, which a thread pool of Twisted would.
    """

    def __init__(self, reactor: Any, waiting: int) -> None:
        self._reactor = reactor
        self._limit = waiting + THREADS
        self._pending = 0
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._running = 0

    def call(self, function: Callable[[], object]) -> Deferred[None]:
        """
        Call a function in a thread.

        Returns:
            A Deferred that fires when it has returned, and fails with what it raises.  Cancelled, a
            call that has not begun never begins.  Fails with `StarterFailed` if too many wait.
        """
        if self._pending >= self._limit:
            return fail(StarterFailed("too many messages wait for the broker", retry_after=1))
        self._pending += 1
        job = _Job(function)
        self._queue.put(job)
        if self._running < min(THREADS, self._pending):
            self._running += 1
            Thread(target=self._work, name="asyncplumber-celery", daemon=True).start()
        return job.done

    def stop(self) -> None:
        """Let the threads end after what they have to do.  A later call makes new ones."""
        for _ in range(self._running):
            self._queue.put(None)
        self._running = 0

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            outcome: Any = None
            if job.is_wanted:
                try:
                    job.function()
                except Exception:
                    outcome = Failure()
                    outcome.cleanFailure()
            self._reactor.callFromThread(self._end, job, outcome)

    def _end(self, job: _Job, outcome: Any) -> None:
        self._pending -= 1
        if not job.done.called:
            job.done.callback(outcome)  # a Failure goes the way of errors
