"""
Sending events from another program, such as a background task.

``send`` and ``Sender`` wait until the event is kept, and raise if that is not possible.  An
``Outbox`` sends in the background, and neither waits nor raises.  ``Outbox.task``, or ``task`` for
short, reports how far a task is.  All of them need only the standard library.

``asyncplumber.client.twisted`` is for programs on Twisted; ``asyncplumber.integrations.celery``
announces the results of Celery tasks.
"""

from asyncplumber.client.outbox import Outbox, task
from asyncplumber.client.reports import TaskCanceled
from asyncplumber.client.response import Refused
from asyncplumber.client.retry import RetryPolicy, Undelivered
from asyncplumber.client.send import Sender, send
from asyncplumber.client.task import TaskRun, current_task
from asyncplumber.sending import Receipt

__all__ = [
    "Outbox",
    "Receipt",
    "Refused",
    "RetryPolicy",
    "Sender",
    "TaskCanceled",
    "TaskRun",
    "Undelivered",
    "current_task",
    "send",
    "task",
]
