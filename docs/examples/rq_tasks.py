"""
RQ jobs whose results arrive at the subscribers of an account.

With Redis and asyncplumber running, start a worker in this folder with ``rq worker``, and a job
with ``python rq_tasks.py 42``.  The result arrives at ``/events/42``.
"""

import os
import sys

from redis import Redis
from rq import Callback, Queue

from asyncplumber.client import Outbox

plumber = Outbox()  # where ASYNCPLUMBER_URL says: made once, before RQ forks


def render(pages: int) -> dict[str, int]:
    """Do the work.  It knows nothing about the account that waits for it."""
    return {"pages": pages}


def succeeded(job, connection, result, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
    """Send the result.  An outbox raises nothing, so the job stays finished."""
    plumber.send(job.meta["account"], result, id=job.id)
    # RQ ends the process of a job at once.  Wait until it is sent, for one second at most.
    plumber.flush(1.0)


def failed(job, connection, type, value, traceback) -> None:  # type: ignore[no-untyped-def]
    """Send the failure of a job that is not tried again."""
    if not job.retries_left:
        plumber.send(
            job.meta["account"], {"error": str(value)}, id=f"{job.id}:failed", type="failure"
        )
        plumber.flush(1.0)


if __name__ == "__main__":
    queue = Queue(connection=Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")))
    queue.enqueue(
        "rq_tasks.render",
        args=(3,),
        meta={"account": sys.argv[1]},
        on_success=Callback("rq_tasks.succeeded"),
        on_failure=Callback("rq_tasks.failed"),
    )
