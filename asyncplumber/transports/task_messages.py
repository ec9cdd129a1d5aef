"""
Messages about tasks from WebSocket clients: start, get and cancel.

Each is answered by one ``plumber.reply``, in any order.  A message that cannot be understood is
answered as well, and the stream goes on.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.core.tasks.errors import ResultGone, TaskError
from asyncplumber.core.tasks.service import Tasks
from asyncplumber.errors import (
    BadRequest,
    PlumberError,
    TooLarge,
    TooManyRequests,
    to_client_error,
)
from asyncplumber.grant import Action, Grant
from asyncplumber.task import Task
from asyncplumber.transports.stream import Visit
from asyncplumber.wire.task_messages import (
    NO_ID,
    Method,
    TaskMessage,
    error_object,
    message_id,
    message_members,
    reply,
    task_message,
)
from asyncplumber.wire.tasks import task_object

MAX_IN_FLIGHT = 16  # messages of one client that are not answered yet
MESSAGE_BYTES = 64 * 1024  # of a message, if the client may start nothing
OVERHEAD = 4 * 1024  # bytes of a message beside its input


class MessageClient(Protocol):
    """A client that sends messages: one WebSocket."""

    grant: Grant
    visit: Visit | None

    @property
    def account(self) -> str:
        """The account of its stream."""

    @property
    def is_closing(self) -> bool:
        """Whether nothing is sent to it any more."""

    def notify(self, type: str, envelope: bytes) -> None:
        """Send it a notice."""


class TaskMessages:
    """Answers the messages of all clients of this instance."""

    _log = Logger()

    def __init__(self, tasks: Tasks, body_limit: int) -> None:
        """
        Args:
            tasks: What the tasks are asked of.
            body_limit: The most bytes of an input.
        """
        self._tasks = tasks
        self._body_limit = body_limit
        # What is not answered yet, of the clients that have such.
        self._pending: dict[MessageClient, set[Deferred[Any]]] = {}

    def longest(self, client: MessageClient) -> int:
        """Return the most bytes that a message of this client may have."""
        if not self._tasks.can_start or not client.grant.allows(Action.START, client.account):
            return MESSAGE_BYTES
        return max(MESSAGE_BYTES, self._body_limit + OVERHEAD)

    def received(self, client: MessageClient, data: bytes, *, is_binary: bool) -> None:
        """Answer a message, now or later."""
        id = NO_ID
        try:
            if is_binary:
                raise BadRequest("a message is JSON, and is sent as text")
            parts = message_members(data)
            id = message_id(parts)
            message = task_message(parts, client.account)
            pending = self._pending.get(client, ())
            if len(pending) >= MAX_IN_FLIGHT:
                raise TooManyRequests(
                    f"at most {MAX_IN_FLIGHT} messages wait for their reply", retry_after=1
                )
            self._check(client, message)
        except PlumberError as error:
            self._refuse(client, id, error)
            return
        work = Deferred.fromCoroutine(self._do(client, id, message))
        if not work.called:
            self._pending.setdefault(client, set()).add(work)
        work.addBoth(self._done, client, id, work)

    def _check(self, client: MessageClient, message: TaskMessage) -> None:
        """Raise if the client may not ask this, or not now."""
        if message.method is Method.GET:
            return  # who reads the stream may see its tasks
        client.grant.check(Action.START, client.account)
        size = len(message.start.body)
        if size > self._body_limit:
            raise TooLarge(f"an input has at most {self._body_limit} bytes")
        if client.visit is not None and message.method is Method.START:
            client.visit.check_post(client.grant, size)

    async def _do(self, client: MessageClient, id: bytes, message: TaskMessage) -> bytes:
        """Return the reply."""
        account, key = client.account, message.start.key
        if message.method is Method.CANCEL:
            return reply(account, id, 202, task_object(await self._tasks.cancel(account, key)))
        if message.method is Method.GET:
            outcome = await self._tasks.get(account, key, message.wait, client.grant)
            return reply(account, id, 200, await self._object(outcome.task))
        outcome = await self._tasks.start(message.start, message.wait, client.grant)
        more: dict[str, Any] = {"joined": outcome.joined}
        if outcome.age is not None:
            more["age"] = int(outcome.age)
        status = 200 if outcome.task.is_done else 202
        return reply(account, id, status, await self._object(outcome.task), **more)

    async def _object(self, task: Task) -> bytes:
        """Return a task with its result, as far as that is kept."""
        try:
            return task_object(await self._tasks.result(task))
        except ResultGone:
            return task_object(task)

    def _done(
        self, result: bytes | Failure, client: MessageClient, id: bytes, work: Deferred[Any]
    ) -> None:
        pending = self._pending.get(client)
        if pending is not None:
            pending.discard(work)
            if not pending:
                del self._pending[client]
        if isinstance(result, bytes):
            self._send(client, result)
        elif not result.check(CancelledError):
            error = to_client_error(result, self._log, "a message about a task failed")
            self._refuse(client, id, error)

    def _refuse(self, client: MessageClient, id: bytes, error: PlumberError) -> None:
        task = error.task if isinstance(error, TaskError) else None
        data = error_object(error, task)
        self._send(client, reply(client.account, id, error.status, data))

    @staticmethod
    def _send(client: MessageClient, envelope: bytes) -> None:
        if not client.is_closing:
            client.notify("plumber.reply", envelope)

    def forget(self, client: MessageClient) -> None:
        """Drop what is not answered: the client has left.  Its tasks go on."""
        for work in self._pending.pop(client, ()):
            work.cancel()
