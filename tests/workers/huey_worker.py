"""A consumer of Huey, with SQLite."""

from __future__ import annotations

import os
from typing import Any

from huey import SqliteHuey

from asyncplumber.integrations.huey import announce, for_account
from tests.workers import work

huey = SqliteHuey(filename=os.environ["HUEY_FILE"])
announce(huey, work.announcer())


@huey.task(retries=0)
def run(name: str) -> Any:
    """Run a task of this name."""
    return work.run(name)


@huey.task(retries=2)
def run_thrice(name: str) -> Any:
    """Run a task of this name, which is tried again."""
    return work.run(name)


if __name__ == "__main__":
    for name in work.NAMES:
        task = run_thrice if name in work.RETRIES else run
        task(name, **for_account(work.ACCOUNT, name))
    huey.create_consumer(
        workers=len(work.NAMES), periodic=False, initial_delay=0.02, max_delay=0.05
    ).run()
