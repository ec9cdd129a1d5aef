"""
The Celery app that the worker process of `test_celery` imports; the environment says where its
folder and its plumber are.
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
    """Say that a process ends, before asyncplumber hears of it."""
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
    """Nothing that JSON can express."""

    def __repr__(self) -> str:
        return "<something odd>"


@app.task
def add(x: int, y: int) -> int:
    """The simplest result."""
    return x + y


@app.task
def fail() -> None:
    """The simplest failure."""
    raise ValueError("no such thing")


@app.task
def report(steps: int) -> str:
    """Tells how far it is."""
    for step in range(steps):
        plumber.progress({"done": step, "of": steps})
    return "complete"


@app.task(bind=True, max_retries=2)
def second_time(self: Any) -> str:
    """Fails at first."""
    if self.request.retries == 0:
        raise self.retry(exc=OSError("try again"), countdown=0)
    return "at last"


@app.task(ignore_result=True)
def rich() -> dict[str, object]:
    """What Celery's JSON can express and Python's cannot."""
    return {"day": date(2012, 9, 28), "price": Decimal("1.50")}


@app.task(ignore_result=True)
def odd() -> Odd:
    """What nothing can express; Celery does not mind if nobody keeps the result."""
    return Odd()


@app.task
def die() -> None:
    """Takes its whole process along, as the kernel does to one that wants too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def sleep(seconds: float) -> None:
    """Takes its time."""
    time.sleep(seconds)
