"""What an operator can set about tasks."""

from __future__ import annotations

from typing import NamedTuple

from asyncplumber.task import HOLD, PATIENCE, PROGRESS_INTERVAL, START_DEADLINE, TASK_AGE

MAX_LISTED = 1000  # tasks of one account in a list
CALLBACK_RATE = 60  # POSTs to one callback URL in a minute


class TaskSettings(NamedTuple):
    """
    How long tasks are waited for, and kept.

    Attributes:
        start_deadline: Seconds in which somebody has to report that a run began.
        patience: Seconds of silence after which a run counts as lost, unless its reports say else.
        progress_interval: Seconds between two progress events of one task.
        age: Seconds that a task is kept after its end.
        callback_rate: POSTs that one callback URL may get in a minute, at each instance; 0 for any
            number.
        hold: Seconds for which a start waits for the end, if it does not say how long.
    """

    start_deadline: float = START_DEADLINE
    patience: float = PATIENCE
    progress_interval: float = PROGRESS_INTERVAL
    age: float = TASK_AGE
    callback_rate: int = CALLBACK_RATE
    hold: float = HOLD


DEFAULT_SETTINGS = TaskSettings()
