"""
The Celery app of the workers in `tests.system.test_celery`.

The environment says where its folder and its plumber are.
"""

from __future__ import annotations

import os
import signal
import time
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

from celery import Celery, signals
from celery.utils.dispatch import Signal

from asyncplumber.client import RetryPolicy
from asyncplumber.integrations.celery import announce
from harness.processes import celery_settings

app = Celery("tests", set_as_current=False)
app.conf.update(celery_settings(Path(os.environ["CELERY_TEST_FOLDER"])))


def tell(signal: Signal, **_: object) -> None:
    """Say that a process ends, before the announcer gets the signal."""
    os.write(1, f"{signal.name}\n".encode())


for ending in (signals.worker_process_shutdown, signals.worker_shutdown):
    ending.connect(tell, weak=False)

# Pauses far longer than any test: what is announced in time is sent in line, or because its process
# ends.
plumber = announce(
    app,
    inline_timeout=2.0,
    retry_policy=RetryPolicy(timeout=2.0, deadline=600.0, initial_backoff=300.0, max_backoff=300.0),
)


class Odd:
    """A value that JSON cannot express."""

    def __repr__(self) -> str:
        return "<something odd>"


@app.task
def add(x: int, y: int) -> int:
    """Return a result."""
    return x + y


@app.task
def fail() -> None:
    """Fail."""
    raise ValueError("no such thing")


@app.task
def report(steps: int) -> str:
    """Report progress."""
    for step in range(steps):
        plumber.progress({"done": step, "of": steps})
    return "complete"


@app.task(bind=True, max_retries=2)
def second_time(self: Any) -> str:
    """Fail in the first run."""
    if self.request.retries == 0:
        raise self.retry(exc=OSError("try again"), countdown=0)
    return "at last"


@app.task(ignore_result=True)
def rich() -> dict[str, object]:
    """Return what Celery's JSON can express and Python's cannot."""
    return {"day": date(2012, 9, 28), "price": Decimal("1.50")}


@app.task(ignore_result=True)
def odd() -> Odd:
    """Return what no JSON can express; Celery accepts it if the result is not kept."""
    return Odd()


@app.task
def endless() -> None:
    """Report progress until somebody asks it to stop."""
    while True:
        plumber.progress({"at": time.time()}, raise_on_cancel=True)
        time.sleep(0.05)


@app.task
def die() -> None:
    """Kill the process, as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def sleep(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)
