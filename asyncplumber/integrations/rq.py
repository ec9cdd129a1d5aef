"""
Announces the jobs of RQ as tasks.

A worker needs only ``rq worker --worker-class asyncplumber.integrations.rq.Worker``.  A job is
announced if its ``meta`` names an account; see `for_account`.

The callbacks of RQ are called before it is decided whether a failed job is tried again, and a
callback that raises makes a job fail.  So not callbacks report here, but the worker itself.

RQ forks for each job, and ends that process by ``os._exit``.  What is not sent by then goes to the
process of the worker (see `Handover`).  So a plumber that is away delays no job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rq
from rq.exceptions import AbandonedJobError
from rq.job import Job, JobStatus

from asyncplumber.client.reports import TaskCanceled
from asyncplumber.integrations.announcer import (
    Address,
    Announcer,
    Attempt,
    address_in,
    default_announcer,
    for_account,
    guarded,
    is_canceled,
    progress,
)
from asyncplumber.integrations.handover import PATIENCE, Handover

__all__ = ["Announcing", "SimpleWorker", "Worker", "for_account", "is_canceled", "progress"]

TOO_OFTEN = "MaxRetriesExceeded", "the job was tried too often"
ENDS = "asyncplumber_ends"  # field of a job's hash: how many runs of it have ended


if TYPE_CHECKING:
    _Base = rq.Worker
else:
    _Base = object


class Announcing(_Base):
    """
    Makes a worker class of RQ announce its jobs: ``class W(Announcing, rq.Worker)``.

    Attributes:
        announcer: How to reach the plumber; None for what the environment says.
    """

    announcer: Announcer | None = None
    _attempt: Attempt | None = None  # at the job that runs in this process
    _error: BaseException | None = None  # that this job raised
    _handover: Handover | None = None

    # In the process of the worker

    def execute_job(self, job: Job, *args: Any, **options: Any) -> Any:
        """Have a job run, and send what its process could not send."""
        if address_in(job.meta, job.id) is None:
            return super().execute_job(job, *args, **options)
        self._handover = self._open_handover()
        try:
            return super().execute_job(job, *args, **options)
        finally:
            self._receive()

    @guarded
    def _open_handover(self) -> Handover:
        return Handover()

    @guarded
    def _receive(self) -> None:
        handover, self._handover = self._handover, None
        if handover is not None:
            handover.receive(self._plumber.outbox)

    def clean_registries(self) -> Any:
        """Tidy up, and report the jobs whose worker died."""
        handler = self._on_abandoned
        super().push_exc_handler(handler)
        try:
            return super().clean_registries()
        finally:
            super().pop_exc_handler()

    @guarded
    def _on_abandoned(self, job: Job, type: Any, error: Any, traceback: Any = None) -> None:
        address = self._address(job)
        if address is None or not isinstance(error, AbandonedJobError):
            return
        attempt = self._plumber.attempt(address)
        if job.retries_left:
            attempt.retry(None)
        else:
            self._count_end(job)
            attempt.give_up("AbandonedJobError", "the worker of the job died")

    # In the process of a job; for `SimpleWorker` that of the worker

    def perform_job(self, job: Job, *args: Any, **options: Any) -> Any:
        """Run a job, and report that it started."""
        self._error = None
        self._begin(job)
        try:
            return super().perform_job(job, *args, **options)
        finally:
            self._finish()

    @guarded
    def _begin(self, job: Job) -> None:
        address = self._address(job)
        if address is not None:
            self._attempt = self._plumber.begin(address)

    @guarded
    def _finish(self) -> None:
        attempt, self._attempt, self._error = self._attempt, None, None
        if attempt is None:
            return
        attempt.release()
        if super().is_horse:
            # The process ends now.
            if self._handover is not None:
                self._handover.give(self._plumber.outbox)
            else:  # it was not forked, but started anew
                self._plumber.outbox.flush(PATIENCE)

    def handle_exception(self, job: Job, *exc_info: Any) -> Any:
        """Keep the error of a job for the report."""
        self._error = exc_info[1]
        return super().handle_exception(job, *exc_info)

    def handle_job_success(self, job: Job, *args: Any, **options: Any) -> Any:
        """Note in Redis that a job succeeded, and then report it."""
        self._count_end(job)
        done = super().handle_job_success(job, *args, **options)
        if self._attempt is not None:
            self._attempt.succeed(getattr(job, "_result", None))
        return done

    def handle_job_retry(self, job: Job, *args: Any, **options: Any) -> Any:
        """Put a job that returned ``Retry`` back into its queue, or give it up, and report it."""
        done = super().handle_job_retry(job, *args, **options)
        self._report_retry(job)
        return done

    def handle_job_failure(self, job: Job, *args: Any, **options: Any) -> Any:
        """Report the failure of a job, and note it in Redis, which may start it again."""
        self._report_failure(job, str(options.get("exc_string", "")))
        return super().handle_job_failure(job, *args, **options)

    @guarded
    def _report_failure(self, job: Job, reason: str) -> None:
        address = self._address(job)
        if address is None:
            return
        is_stopped = self._stopped_job_id == job.id
        if isinstance(self._error, TaskCanceled):
            job.retries_left = 0
        # Without an attempt this is the process of the worker: that of the job died.
        attempt = self._attempt or self._plumber.attempt(address)
        if job.retries_left and not is_stopped:
            attempt.retry(self._error, delay=float(job.get_retry_interval()))
            return
        self._count_end(job)
        if is_stopped:
            attempt.cancel("Stopped", "the job was stopped")
        elif self._error is not None:
            attempt.fail(self._error)
        elif self._attempt is not None:  # before RQ 3, a job that returned Retry once too often
            attempt.give_up(*TOO_OFTEN)
        else:
            attempt.give_up("WorkHorseKilled", reason.strip("; "))

    @guarded
    def _report_retry(self, job: Job) -> None:
        if self._attempt is None:
            return
        if job.get_status(refresh=False) == JobStatus.FAILED:
            self._count_end(job)
            self._attempt.give_up(*TOO_OFTEN)
        else:
            self._attempt.retry(None)

    # Whose a job is

    @property
    def _plumber(self) -> Announcer:
        return self.announcer or default_announcer()

    @guarded
    def _address(self, job: Job) -> Address | None:
        """
        Return whose a job is, None if it is not announced.

        The id of the job is that of its first run.  If RQ starts a job again that has ended (it is
        requeued by hand, or repeats), that is a new run.
        """
        address = address_in(job.meta, job.id)
        if address is None:
            return None
        ends = int(job.connection.hget(job.key, ENDS) or 0)
        return address._replace(run=f"{address.run}.{ends}") if ends else address

    @guarded
    def _count_end(self, job: Job) -> None:
        if address_in(job.meta, job.id) is not None:
            # Before RQ notes the end: it may delete the job then, and this would make it anew.
            job.connection.hincrby(job.key, ENDS, 1)


class Worker(Announcing, rq.Worker):
    """RQ's worker, which announces its jobs."""


class SimpleWorker(Announcing, rq.SimpleWorker):
    """RQ's worker that runs jobs in its own process, and announces them."""
