"""
Announces the messages of Dramatiq as tasks.

``broker.add_middleware(Announcements())`` is all that a worker needs.  A message is announced if
its options name an account; see `for_account`.

Whether a failed message is tried again is decided by another middleware, which puts the message
back into its queue.  So a message that is enqueued while it is being processed is tried again; one
that is rejected, or acknowledged without that, has ended.
"""

from __future__ import annotations

import threading
from typing import Any

from dramatiq import Broker, MessageProxy, Middleware
from dramatiq.message import Message

from asyncplumber.client.reports import TaskCanceled
from asyncplumber.integrations.announcer import (
    Announcer,
    Attempt,
    address_in,
    default_announcer,
    for_account,
    guarded,
    is_canceled,
    progress,
)

__all__ = ["Announcements", "for_account", "is_canceled", "progress"]


class _Processing:
    """A message that a thread of a worker processes."""

    def __init__(self, id: str, attempt: Attempt) -> None:
        self.id = id
        self.attempt = attempt
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_retried = False
        self.is_skipped = False


class Announcements(Middleware):
    """
    The middleware.

    Args:
        announcer: How to reach the plumber; None for what the environment says.
    """

    def __init__(self, announcer: Announcer | None = None) -> None:
        self._announcer = announcer or default_announcer()
        # All that concerns a message happens in one thread, up to its acknowledgement.
        self._here = threading.local()

    @property
    def _processing(self) -> _Processing | None:
        return getattr(self._here, "processing", None)

    @guarded
    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Report that it started, unless another middleware has rejected it already."""
        self._here.processing = None
        address = address_in(message.options, message.message_id)
        if address is None:
            return
        attempt = self._announcer.attempt(address)
        if not message.failed:
            attempt.start()
        self._here.processing = _Processing(message.message_id, attempt)

    @guarded
    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        """Keep the outcome until it is known whether it is the last one."""
        if self._processing is None:
            return
        self._processing.result, self._processing.error = result, exception
        if isinstance(exception, TaskCanceled):
            message.options["throws"] = TaskCanceled  # those are not tried again

    @guarded
    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """Note that the actor was not called."""
        if self._processing is not None:
            self._processing.is_skipped = True

    @guarded
    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Report that a message which failed is tried again."""
        processing = self._processing
        if processing is not None and processing.id == message.message_id:
            processing.is_retried = True
            number = message.options.get("retries")
            processing.attempt.retry(processing.error, number=number, delay=(delay or 0) / 1000)

    @guarded
    def after_ack(self, broker: Broker, message: MessageProxy) -> None:
        """Report the end of a message that is done."""
        processing = self._processing
        if processing is None or processing.id != message.message_id:
            return  # a delayed message, which its thread puts into the proper queue
        self._here.processing = None
        attempt = processing.attempt
        if processing.is_retried:
            attempt.release()
        elif processing.is_skipped:
            attempt.cancel("Skipped", "the message was skipped")
        elif processing.error is not None:
            attempt.fail(processing.error)
        else:
            attempt.succeed(processing.result)

    @guarded
    def after_nack(self, broker: Broker, message: MessageProxy) -> None:
        """Report the end of a message that is rejected."""
        processing = self._processing
        address = address_in(message.options, message.message_id)
        if processing is not None and processing.id == message.message_id:
            self._here.processing = None
            attempt, error = processing.attempt, processing.error
        elif address is not None:  # for example because there is no such actor
            attempt, error = self._announcer.attempt(address), None
        else:
            return
        error = error or getattr(message, "_exception", None)
        if error is not None:
            attempt.fail(error)
        else:
            attempt.give_up("Rejected", "the message was rejected")

    def after_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        """Send what is waiting."""
        self._announcer.outbox.close()
