"""
What runs on the other side: how a task sends its result.

`send` and `Sender` are for any synchronous program and need nothing but Python; an `Outbox` neither
waits nor fails.  For a program on Twisted there is `asyncplumber.client.twisted`, and
`asyncplumber.integrations.celery` makes a Celery worker announce the results of its tasks.
"""

from asyncplumber.client.outbox import Outbox
from asyncplumber.client.retry import Receipt, Refused, RetryPolicy, Undelivered
from asyncplumber.client.send import Sender, send

__all__ = ["Outbox", "Receipt", "Refused", "RetryPolicy", "Sender", "Undelivered", "send"]
