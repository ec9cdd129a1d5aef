"""
What is done about tasks from time to time, at every instance.

The steps can be repeated: an instance that dies in the middle of one leaves it to the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from twisted.logger import Logger

from asyncplumber.core.tasks.dispatcher import Dispatcher
from asyncplumber.core.tasks.journal import Journal
from asyncplumber.core.tasks.settings import TaskSettings
from asyncplumber.core.tasks.turns import Turns
from asyncplumber.errors import PlumberError, Unavailable
from asyncplumber.event import new_id
from asyncplumber.interfaces import ICallbackUrls
from asyncplumber.task import DISPATCH_LEASE, Task, TaskState

SWEEP_INTERVAL = 5.0  # seconds
FORGET_INTERVAL = 30.0  # seconds
ABSENCE = 30.0  # seconds without any instance, after which the deadlines are moved
LIMIT = 64  # rows in one step; a full step is repeated at once
STEPS = 50  # of one kind, then the other kinds have their turn


class Sweeper:
    """Finds runs that nobody reports any more, and makes up for instances that died."""

    _log = Logger()

    def __init__(
        self,
        journal: Journal,
        turns: Turns,
        dispatcher: Dispatcher | None,
        callback_urls: ICallbackUrls,
        settings: TaskSettings,
    ) -> None:
        """
        Args:
            journal: Writes what happens.
            turns: Keeps what is done with one task in order.
            dispatcher: Dispatches what another instance left; None if nothing executes tasks.
            callback_urls: Those that expired are deleted.
            settings: How long tasks are kept.
        """
        self._journal = journal
        self._turns = turns
        self._dispatcher = dispatcher
        self._callback_urls = callback_urls
        self._settings = settings

    async def sweep(self) -> None:
        """Do what has to be done every `SWEEP_INTERVAL` seconds."""
        tasks = self._journal.tasks
        # First: while no instance was there, nobody could report.
        await tasks.extend(SWEEP_INTERVAL, ABSENCE)
        for _ in range(STEPS):
            if await self._lose(await tasks.overdue(LIMIT)) < LIMIT:
                break
        await self._announce(await tasks.unannounced(LIMIT, SWEEP_INTERVAL))
        if self._dispatcher is not None:
            for task in await tasks.undispatched(LIMIT, DISPATCH_LEASE):
                self._dispatcher.dispatch(task)

    async def _lose(self, found: list[Task]) -> int:
        for task in found:
            await self._guarded(task, self._lost)
        return len(found)

    async def _guarded(self, task: Task, step: Callable[[Task], Coroutine[Any, Any, None]]) -> None:
        """Do something with a task; if that fails, the others have their turn all the same."""
        try:
            await self._turns.run((task.account, task.key), partial(step, task))
        except Unavailable:
            raise  # the others would wait for the store as long as this one
        except PlumberError as error:
            self._log.warn("a task could not be swept: {error}", error=error.message)
        except Exception:
            self._log.failure("a task could not be swept")

    async def _lost(self, task: Task) -> None:
        silent = task.state is TaskState.RUNNING
        error = {
            "type": "silent" if silent else "not-started",
            "message": "nobody reports this run any more"
            if silent
            else "nobody reported that this run began",
        }
        changes = {"error": json.dumps(error).encode(), "end_id": new_id()}
        changed = await self._journal.finish(task, TaskState.LOST, changes, overdue_only=True)
        if changed is not None:
            announced, _ = await self._journal.announce(changed)
            self._journal.note_soon(announced)

    async def _announce(self, found: list[Task]) -> None:
        for task in found:
            await self._guarded(task, self._announce_one)

    async def _announce_one(self, task: Task) -> None:
        row = await self._journal.tasks.get(task.account, task.key)
        if row is not None and row.run == task.run and not row.is_announced:
            announced, _ = await self._journal.announce(row)
            self._journal.note_soon(announced)

    async def forget(self) -> None:
        """Do what has to be done every `FORGET_INTERVAL` seconds."""
        while await self._journal.tasks.forget(self._settings.age, LIMIT) == LIMIT:
            pass
        await self._callback_urls.sweep()
