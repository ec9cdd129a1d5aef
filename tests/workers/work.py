"""What the tasks of all workers do.  Each is known by its name, and by the account of its queue."""

from __future__ import annotations

import os
import time
from typing import Any

from asyncplumber.client import Outbox, current_task
from asyncplumber.integrations.announcer import Announcer

ACCOUNT = os.environ.get("ACCOUNT", "")
#: The tasks, in the order in which they are started.
NAMES = ("works", "flaky", "fails", "stops", "hangs")
RETRIES = {"flaky": 2, "fails": 2}
LONG = 600.0  # seconds
_tries: dict[str, int] = {}


def announcer() -> Announcer:
    """Return what reports to the server of the test, which soon misses a worker that is dead."""
    return Announcer(Outbox(os.environ["ASYNCPLUMBER_URL"]), deadline=3.0, beat_interval=0.5)


def run(name: str, attempt: int | None = None) -> Any:
    """
    Do what the name says.

    Args:
        name: One of `NAMES`.
        attempt: Which attempt this is, from 1; None counts those in this process.
    """
    if attempt is None:
        attempt = _tries[name] = _tries.get(name, 0) + 1
    task = current_task()
    assert task is not None
    task.progress({"attempt": attempt})
    if name == "flaky" and attempt <= RETRIES[name]:
        raise ValueError(f"attempt {attempt}")
    if name == "fails":
        raise LookupError("not there")
    if name == "stops":
        while not task.canceled:
            time.sleep(0.02)
            task.progress({"steps": time.monotonic()})
        task.raise_if_canceled()
    if name == "hangs":
        os.write(1, f"hangs in {os.getpid()}\n".encode())
        time.sleep(LONG)
    return {"pages": attempt}
