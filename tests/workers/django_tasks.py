"""The tasks of the worker of Django.  The framework does not try again what failed."""

from __future__ import annotations

from typing import Any

try:
    from django.tasks import task
except ImportError:
    from django_tasks import task

from tests.workers import work


@task()
def run(name: str) -> Any:
    """Run a task of this name."""
    return work.run(name)
