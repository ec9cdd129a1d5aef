"""The tasks of an instance together with what executes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from twisted.internet.interfaces import IReactorTime

from asyncplumber.core.hub import Hub
from asyncplumber.core.intake import Intake
from asyncplumber.core.tasks.callback_urls import CallbackMint
from asyncplumber.core.tasks.service import Tasks
from asyncplumber.core.tasks.settings import TaskSettings
from asyncplumber.interfaces import IStarter, IStore
from asyncplumber.starters.in_process import InProcessStarter, Run

# A text, because interfaces know no ``|`` before zope.interface 7.
Starter: TypeAlias = "IStarter | Callable[[Run], Any]"


def build_tasks(
    store: IStore,
    hub: Hub,
    intake: Intake,
    clock: IReactorTime,
    now: Callable[[], float],
    starter: Starter | None,
    settings: TaskSettings,
    callbacks: CallbackMint,
    limit: int,
) -> Tasks:
    """
    Return the tasks of an instance.

    Args:
        store: Where the rows are.
        hub: Where those who wait subscribe.
        intake: Takes the events.
        clock: The reactor's clock.
        now: Returns the time in seconds since 1970.
        starter: An `IStarter`, or a callable that is called with each `Run`; None: tasks are only
            reported.
        settings: How long tasks are waited for, and kept.
        callbacks: Makes the URLs to which runs are reported.
        limit: The most bytes of a result of a callable.

    Raises:
        TypeError: The starter is none.
    """
    if starter is None or IStarter.providedBy(starter):
        return Tasks(store, hub, intake, clock, now, starter, settings, callbacks)
    if not callable(starter):
        raise TypeError("a starter is a callable, or provides IStarter")
    in_process = InProcessStarter(starter, clock, now, limit)
    tasks = Tasks(store, hub, intake, clock, now, in_process, settings, callbacks)
    in_process.report = tasks.report
    return tasks
