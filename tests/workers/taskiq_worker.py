"""A worker of taskiq, with its broker in memory."""

from __future__ import annotations

import asyncio
from typing import Any

from taskiq import InMemoryBroker, SimpleRetryMiddleware

from asyncplumber.integrations.taskiq import Announcements, for_account
from tests.workers import work

broker = InMemoryBroker(sync_tasks_pool_size=8).with_middlewares(
    SimpleRetryMiddleware(default_retry_count=3), Announcements(work.announcer())
)


@broker.task(retry_on_error=True)
def run(name: str) -> Any:
    """Run a task of this name, in a thread."""
    return work.run(name)


async def main() -> None:
    """Start the tasks, and wait for them."""
    await broker.startup()
    for name in work.NAMES:
        await run.kicker().with_labels(**for_account(work.ACCOUNT, name)).kiq(name)
    await broker.wait_all()


if __name__ == "__main__":
    asyncio.run(main())
