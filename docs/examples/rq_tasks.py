"""
RQ jobs whose progress and results arrive at the subscribers of an account.

With Redis and asyncplumber running, start a worker in this folder with ``rq worker --worker-class
asyncplumber.integrations.rq.Worker``, and a job with ``python rq_tasks.py 42``.  What happens to it
arrives at ``/events/42``.
"""

import os
import sys

from redis import Redis
from rq import Queue

from asyncplumber.integrations.rq import for_account, progress


def render(pages: int) -> dict[str, int]:
    """Do the work.  It knows nothing about the account that waits for it."""
    for page in range(pages):
        progress({"done": page + 1, "of": pages})
    return {"pages": pages}


if __name__ == "__main__":
    queue = Queue(connection=Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")))
    queue.enqueue("rq_tasks.render", 3, meta=for_account(sys.argv[1], "report-7"))
