"""
What runs on the other side: how a task sends its result.

`send` and `Sender` are for any synchronous program and need nothing but Python; an `Outbox` neither
waits nor fails.  For a program on Twisted there is `asyncplumber.tasks.twisted`, and
`asyncplumber.tasks.celery` makes a Celery worker announce the results of its tasks.
"""

from asyncplumber.tasks.delivery import Patience, Receipt, Refused, Undelivered
from asyncplumber.tasks.outbox import Outbox
from asyncplumber.tasks.sender import Sender, send

__all__ = ["Outbox", "Patience", "Receipt", "Refused", "Sender", "Undelivered", "send"]
