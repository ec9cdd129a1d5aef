"""A worker of Dramatiq, with its broker for tests."""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq.brokers.stub import StubBroker

from asyncplumber.integrations.dramatiq import Announcements, for_account
from tests.workers import work

broker = StubBroker()
broker.add_middleware(Announcements(work.announcer()))
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=2, min_backoff=10, max_backoff=20)
def run(name: str) -> Any:
    """Run a task of this name."""
    return work.run(name)


if __name__ == "__main__":
    for name in work.NAMES:
        run.send_with_options(args=(name,), **for_account(work.ACCOUNT, name))
    worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=len(work.NAMES))
    worker.start()
    worker.join()
