"""A worker of Django's tasks framework, with SQLite."""

from __future__ import annotations

import os

import django
from django.core.management import call_command

from tests.workers import work

if __name__ == "__main__":
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.workers.django_settings"
    django.setup()
    from asyncplumber.integrations.django import for_account
    from tests.workers.django_tasks import run

    call_command("migrate", verbosity=0)
    for name in work.NAMES:
        if name != "flaky":
            run.enqueue(name, **for_account(work.ACCOUNT, name))
    call_command("db_worker", interval=0.05, startup_delay=False, reload=False)
