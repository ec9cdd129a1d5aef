"""What an application calls about tasks in its own process."""

from __future__ import annotations

from typing import Any

from asyncplumber.clocks import TimeSource
from asyncplumber.core.tasks.outcomes import Outcome, Reported
from asyncplumber.core.tasks.service import Tasks
from asyncplumber.event import checked_account, timestamp
from asyncplumber.sending import Key, encode, key_text, message
from asyncplumber.task import Report, StartRequest, Task, is_beginning, state_of
from asyncplumber.wire.own_message import draft_of
from asyncplumber.wire.tasks import task_key

NOTHING = object()  # no data at all; None is JSON's null


class TaskMethods:
    """
    The methods of a `Plumber` that are about tasks.

    Attributes:
        tasks: The tasks of the instance.
    """

    tasks: Tasks
    _wall: TimeSource
    _body_limit: int

    async def start_task(
        self,
        account: Key,
        task: Key,
        data: Any = NOTHING,
        *,
        wait: float = 0.0,
        max_age: float | None = None,
    ) -> Outcome:
        """
        Start a task, or join it if it is live, and wait for its end.

        Args:
            account: Who waits for it.
            task: Its key.
            data: The input, see ``Sender.send``; none at all joins any live run.
            wait: Seconds; 0 returns as soon as it is certain that the task will end.
            max_age: Seconds that a completed run may be old to be the answer; None: none may.

        Returns:
            ``task``, the row, whose ``is_done`` says whether it has ended; ``joined``; ``data``,
            the result; ``error``.

        Raises:
            PlumberError: ``status`` and ``code`` say why it was not started.
        """
        name, key = _names(account, task)
        content_type, body = ("", b"") if data is NOTHING else encode(data)
        request = StartRequest(name, key, content_type, body, max_age)
        outcome = await self.tasks.start(request, wait)
        return outcome._replace(task=await self.tasks.result(outcome.task))

    async def find_task(self, account: Key, task: Key, *, wait: float = 0.0) -> Outcome:
        """
        Return a task when it has ended, or the wait is over; see ``start_task``.

        Raises:
            UnknownTask: There is none.
            ResultGone: It was completed, and its result was too large to be kept for long.
        """
        outcome = await self.tasks.get(*_names(account, task), wait)
        return outcome._replace(task=await self.tasks.result(outcome.task))

    async def report_task(
        self,
        account: Key,
        task: Key,
        data: Any = NOTHING,
        *,
        state: str = "completed",
        run: str | None = None,
        id: Key | None = None,
        deadline: float | None = None,
    ) -> Reported:
        """
        Report how far a task is, or its end.

        Args:
            account: Who waits for it.
            task: Its key.
            data: The result, the progress or the error; none at all is a beat.
            state: ``submitted``, ``running``, ``completed``, ``failed`` or ``canceled``, or a word
                of another system for one of them.
            run: The id of the run; None is the newest one.
            id: Two reports with the same id are one; None makes a new id.
            deadline: Seconds of silence from now on until the run is lost, 0 for never; None leaves
                that as it is.

        Raises:
            Superseded: It is of another run than the newest one.
            TaskEnded: The run has ended.
            PlumberError: Any other reason not to take it.
            ValueError: ``state`` is no such word.
        """
        name, key = _names(account, task)
        reported = state_of(state)
        if reported is None:
            raise ValueError(f"{state!r} is no state of a task")
        is_beat = data is NOTHING
        event = message(name, None if is_beat else data, id=id)
        draft = draft_of(event, timestamp(self._wall.seconds()), self._body_limit)
        return await self.tasks.report(
            Report(draft, key, reported, run, is_beginning(state), is_beat, deadline)
        )

    async def cancel_task(self, account: Key, task: Key) -> Task:
        """
        Ask that a task be canceled; its runner may still complete it.

        Raises:
            UnknownTask: There is none.
            TaskEnded: It has ended.
        """
        return await self.tasks.cancel(*_names(account, task))


def _names(account: Key, task: Key) -> tuple[str, str]:
    return checked_account(key_text("account", account)), task_key(key_text("task", task))
