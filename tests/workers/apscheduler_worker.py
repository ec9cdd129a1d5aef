"""A scheduler of APScheduler, with jobs in memory.  It does not try again what failed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.blocking import BlockingScheduler

from asyncplumber.integrations.apscheduler import announce, for_account
from tests.workers import work

scheduler = BlockingScheduler(timezone=UTC)
announce(scheduler, work.announcer())

if __name__ == "__main__":
    for name in work.NAMES:
        if name != "flaky":
            scheduler.add_job(work.run, args=(name,), id=for_account(work.ACCOUNT, name))
    yesterday = datetime.now(UTC) - timedelta(days=1)
    late = for_account(work.ACCOUNT, "late")
    scheduler.add_job(work.run, "date", args=("late",), run_date=yesterday, id=late)
    scheduler.start()
