"""
Announces the tasks of Django as tasks of an account.

``"asyncplumber.integrations.django.Announcements"`` in ``INSTALLED_APPS`` is all that is needed.
It is for ``django.tasks`` (Django 6) and its backport ``django_tasks``, with any backend that sends
their signals.  A task is announced if its call says for whom it is; see `for_account`.

The optional setting ``ASYNCPLUMBER`` has the arguments of `Announcer`, and ``url``, ``token`` and
``headers`` for its outbox.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from importlib import import_module
from typing import Any

from django.apps import AppConfig
from django.conf import settings

from asyncplumber.client.outbox import Outbox
from asyncplumber.integrations.announcer import (
    ARGUMENT,
    Announcer,
    Attempt,
    address_in_call,
    for_call,
    guarded,
    is_canceled,
    progress,
)

__all__ = ["Announcements", "announce", "for_account", "is_canceled", "progress"]

for_account = for_call

FRAMEWORKS = ("django.tasks", "django_tasks")
_OF_OUTBOX = ("url", "token", "headers")


class Announcements(AppConfig):  # type: ignore[misc]
    """The application for ``INSTALLED_APPS``."""

    name = "asyncplumber.integrations.django"
    label = "asyncplumber"

    def ready(self) -> None:
        """Announce tasks from now on."""
        options = dict(getattr(settings, "ASYNCPLUMBER", {}))
        connection = {name: options.pop(name) for name in _OF_OUTBOX if name in options}
        announce(Announcer(Outbox(connection.pop("url", None), **connection), **options))


def announce(announcer: Announcer) -> None:
    """
    Announce the tasks of all frameworks that are installed.

    Raises:
        ImportError: There is none.
    """
    announcements = _Announcements(announcer)
    found = 0
    for framework in FRAMEWORKS:
        try:
            signals = import_module(f"{framework}.signals")
        except ImportError:
            continue
        found += 1
        signals.task_started.connect(announcements.on_started, weak=False)
        signals.task_finished.connect(announcements.on_finished, weak=False)
    if not found:
        raise ImportError("there is neither django.tasks (Django 6) nor django_tasks")


class _Announcements:
    """The receivers."""

    def __init__(self, announcer: Announcer) -> None:
        self._announcer = announcer
        self._attempt: ContextVar[tuple[str, Attempt] | None] = ContextVar("attempt", default=None)

    @guarded
    def on_started(self, task_result: Any, **_: Any) -> None:
        """Report that a task starts, and take the argument that is not the function's."""
        address = address_in_call(task_result.kwargs, str(task_result.id))
        task_result.kwargs.pop(ARGUMENT, None)
        if address is not None:
            self._attempt.set((str(task_result.id), self._announcer.begin(address)))

    @guarded
    def on_finished(self, task_result: Any, **_: Any) -> None:
        """Report how a task ended."""
        found = self._attempt.get()
        if found is not None and found[0] == str(task_result.id):
            self._attempt.set(None)
            attempt = found[1]
        else:  # it could not even start
            address = address_in_call(task_result.kwargs, str(task_result.id))
            if address is None:
                return
            attempt = self._announcer.attempt(address)
        if task_result.status == "SUCCESSFUL":
            attempt.succeed(task_result.return_value)
            return
        error = sys.exception()
        if error is not None:  # it is being handled while the signal is sent
            attempt.fail(error)
        else:
            attempt.give_up(*_last_error(task_result))


def _last_error(task_result: Any) -> tuple[str, str]:
    """Return type and message of the error that a result has."""
    if not task_result.errors:
        return "Failed", "the task failed"
    error = task_result.errors[-1]
    name = error.exception_class_path.rpartition(".")[2]
    last_line = error.traceback.strip().rpartition("\n")[2]
    return name, last_line.partition(": ")[2] or last_line
