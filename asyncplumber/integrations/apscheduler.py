"""
Announces the jobs of APScheduler 3 as tasks.

``announce(scheduler)`` is all that is needed.  A job is announced if its id says for whom it is;
see `for_account`.  Each time that it runs is a run of the task.

The listeners of APScheduler do not suffice: a job may be done before the scheduler says that it was
submitted, and they are not called in the thread of the job.  So the function of a job is wrapped
when the job is given to its executor.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote

from apscheduler.events import (
    EVENT_EXECUTOR_ADDED,
    EVENT_JOB_MISSED,
    EVENT_SCHEDULER_SHUTDOWN,
    EVENT_SCHEDULER_STARTED,
    JobExecutionEvent,
)
from apscheduler.executors.base import BaseExecutor
from apscheduler.executors.pool import ProcessPoolExecutor
from apscheduler.job import Job
from apscheduler.schedulers.base import BaseScheduler
from apscheduler.util import iscoroutinefunction_partial

from asyncplumber.integrations.announcer import (
    Address,
    Announcer,
    Attempt,
    default_announcer,
    guarded,
    is_canceled,
    progress,
)
from asyncplumber.sending import Key, key_text

__all__ = ["announce", "for_account", "is_canceled", "progress"]

PREFIX = "plumber:"  # of the ids of jobs that are announced

_log = logging.getLogger(__name__)


def for_account(account: Key, task: Key) -> str:
    """
    Return the id of a job that is announced.

    For example ``scheduler.add_job(work, "cron", hour=3, id=for_account("42", "nightly"))``.

    Args:
        account: Who waits for the task.
        task: Its name within the account.
    """
    names = key_text("account", account), key_text("task", task)
    return PREFIX + "/".join(quote(name, safe="") for name in names)


def announce(scheduler: BaseScheduler, announcer: Announcer | None = None) -> None:
    """
    Announce the jobs of ``scheduler`` from now on.

    Args:
        scheduler: The scheduler, of any kind.
        announcer: How to reach the plumber; None for what the environment says.
    """
    _Announcements(scheduler, announcer or default_announcer()).connect()


def _address(job_id: str) -> Address | None:
    account, separator, task = job_id.removeprefix(PREFIX).partition("/")
    if not (job_id.startswith(PREFIX) and separator and account and task):
        return None
    # Each time that a job runs is a new run; the plumber gives it an id.
    return Address(unquote(account), unquote(task), None)


class _Announcements:
    """What one scheduler announces."""

    def __init__(self, scheduler: BaseScheduler, announcer: Announcer) -> None:
        self._scheduler = scheduler
        self._announcer = announcer
        self._wrapped: set[int] = set()  # ids of the executors

    def connect(self) -> None:
        """Listen to the scheduler, and wrap the executors that it has already."""
        self._scheduler.add_listener(
            self._wrap_executors, EVENT_EXECUTOR_ADDED | EVENT_SCHEDULER_STARTED
        )
        self._scheduler.add_listener(self._on_missed, EVENT_JOB_MISSED)
        self._scheduler.add_listener(self._on_shutdown, EVENT_SCHEDULER_SHUTDOWN)
        self._wrap_executors()

    @guarded
    def _wrap_executors(self, event: object = None) -> None:
        for alias, executor in self._scheduler._executors.items():
            if id(executor) not in self._wrapped:
                self._wrapped.add(id(executor))
                if isinstance(executor, ProcessPoolExecutor):
                    _log.warning("jobs of executor %r run elsewhere and are not announced", alias)
                else:
                    self._wrap(executor)

    def _wrap(self, executor: BaseExecutor) -> None:
        submit = executor.submit_job

        def submit_announced(job: Job, run_times: Any) -> Any:
            return submit(self._announced(job) or job, run_times)

        executor.submit_job = submit_announced

    @guarded
    def _announced(self, job: Job) -> Job | None:
        """Return a copy of a job with a function that reports; None if it is not announced."""
        address = _address(job.id)
        if address is None:
            return None
        twin = object.__new__(Job)
        for name in Job.__slots__:
            if name != "__weakref__" and hasattr(job, name):
                setattr(twin, name, getattr(job, name))
        make = self._coroutine if iscoroutinefunction_partial(job.func) else self._function
        twin.func = make(job.func, address)
        return twin

    def _function(self, function: Callable[..., Any], address: Address) -> Callable[..., Any]:
        def announced(*args: Any, **options: Any) -> Any:
            attempt = self._begin(address)
            try:
                result = function(*args, **options)
            except BaseException as error:
                _fail(attempt, error)
                raise
            _succeed(attempt, result)
            return result

        return announced

    def _coroutine(self, function: Callable[..., Any], address: Address) -> Callable[..., Any]:
        async def announced(*args: Any, **options: Any) -> Any:
            attempt = self._begin(address)
            try:
                result = await function(*args, **options)
            except BaseException as error:
                _fail(attempt, error)
                raise
            _succeed(attempt, result)
            return result

        return announced

    @guarded
    def _begin(self, address: Address) -> Attempt:
        return self._announcer.begin(address)

    @guarded
    def _on_missed(self, event: JobExecutionEvent) -> None:
        address = _address(event.job_id)
        if address is not None:
            late = f"the job was to run at {event.scheduled_run_time.isoformat()}"
            self._announcer.attempt(address).give_up("Missed", late)

    def _on_shutdown(self, event: object) -> None:
        self._announcer.outbox.close()


@guarded
def _succeed(attempt: Attempt | None, result: Any) -> None:
    if attempt is not None:
        attempt.succeed(result)


@guarded
def _fail(attempt: Attempt | None, error: BaseException) -> None:
    if attempt is not None:
        attempt.fail(error)
