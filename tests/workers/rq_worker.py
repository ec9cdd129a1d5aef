"""A worker of RQ."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from redis import Redis
from rq import Queue, Retry
from rq.job import get_current_job

from asyncplumber.integrations import rq
from tests.workers import work


class Worker(rq.Worker):
    """A worker that soon seems lost."""

    announcer = work.announcer()


def run(name: str) -> object:
    """Run a task of this name."""
    job = get_current_job()
    if name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    attempt = work.RETRIES.get(name, 0) + 1 - (job.retries_left or 0)
    return work.run(name, attempt)


def abandon(queue: Queue) -> None:
    """Let the time pass after which RQ takes the job of a dead worker for abandoned."""
    redis: Any = queue.connection
    registry = queue.started_job_registry.key
    for entry in redis.zrange(registry, 0, -1):
        redis.zadd(registry, {entry: 1})


if __name__ == "__main__":
    redis = Redis(unix_socket_path=os.environ["REDIS_SOCKET"])
    queue, last = Queue(connection=redis), Queue("last", connection=redis)
    if "abandon" in sys.argv:
        abandon(last)
        Worker([queue, last]).work(burst=True)
        sys.exit()
    for name in (*work.NAMES[:-2], "dies", *work.NAMES[-2:]):
        retries = work.RETRIES.get(name)
        (last if name == "hangs" else queue).enqueue(
            "tests.workers.rq_worker.run",
            name,
            meta=rq.for_account(work.ACCOUNT, name),
            retry=Retry(max=retries) if retries else None,
        )
    Worker([queue, last]).work()
