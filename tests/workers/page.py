"""
Executes the Python programs of the how-to about integrations, for account 42.

Each is executed as the page shows it.  What is around it in an application is here.
"""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

from harness.documents import named_blocks

BLOCKS = named_blocks("howto/integrations.rst")
SOON = 30.0  # seconds


def execute(name: str, **names: Any) -> dict[str, Any]:
    """Execute a block, and return its names."""
    names = {"__name__": "__main__", **names}
    exec(compile(BLOCKS[name], name, "exec"), names)
    return names


def run_dramatiq() -> None:
    """A broker in memory, and its worker."""
    import dramatiq
    from dramatiq.brokers.stub import StubBroker

    broker = StubBroker()
    dramatiq.set_broker(broker)
    execute("dramatiq_tasks.py")
    worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=1)
    worker.start()
    broker.join("default")
    worker.stop()


def run_huey() -> None:
    """What the consumer does with the next task."""
    huey = execute("huey_tasks.py")["huey"]
    huey.execute(huey.dequeue())


def run_django() -> None:
    """Settings with the backend that runs a task at once."""
    import django
    from django.conf import settings

    named: dict[str, Any] = execute("django_settings.py", INSTALLED_APPS=[])
    apps = named["INSTALLED_APPS"]
    module = "django.tasks"
    try:
        __import__(module)
    except ImportError:
        module = "django_tasks"
        apps.insert(0, module)
    backend = f"{module}.backends.immediate.ImmediateBackend"
    del named["ASYNCPLUMBER"]["url"]  # the environment says it
    settings.configure(
        INSTALLED_APPS=apps,
        ASYNCPLUMBER=named["ASYNCPLUMBER"],
        TASKS={"default": {"BACKEND": backend}},
    )
    django.setup()
    execute("django_tasks.py", task=__import__(module, fromlist=["task"]).task)


def run_taskiq() -> None:
    """The program has its own loop to run."""
    asyncio.run(execute("taskiq_tasks.py")["main"]())


def run_apscheduler() -> None:
    """The scheduler has a thread."""
    scheduler = execute("apscheduler_jobs.py")["scheduler"]
    end = time.monotonic() + SOON
    while scheduler.get_jobs() and time.monotonic() < end:
        time.sleep(0.02)
    scheduler.shutdown()


def run_fastapi() -> None:
    """An application that keeps its view, and background tasks that wait for the answer."""
    waiting: list[Any] = []
    background = SimpleNamespace(add_task=lambda *call: waiting.append(call))
    app = SimpleNamespace(post=lambda *_, **__: lambda view: view)
    page = execute("fastapi_background.py", app=app, BackgroundTasks=SimpleNamespace)
    answer = asyncio.run(page["start"]("42", "fastapi", "2026-11", background))
    assert answer == {"task": "/tasks/42/fastapi"}, answer
    for function, *arguments in waiting:
        function(*arguments)


def run_airflow() -> None:
    """Contexts as Airflow makes them: one task that is tried again, and one that fails."""
    callbacks = execute("airflow_callbacks.py")["default_args"]
    instance = SimpleNamespace(task_id="load", try_number=1, xcom_pull=lambda task_ids: {"rows": 3})
    good = {
        "dag_run": SimpleNamespace(conf={"account": "42"}, dag_id="airflow", run_id="manual__1"),
        "task_instance": instance,
    }
    for name in ("execute", "retry", "execute", "success"):
        callbacks[f"on_{name}_callback"](good)
    failing = SimpleNamespace(conf={"account": "42"}, dag_id="airflow-fails", run_id="manual__2")
    bad = {**good, "dag_run": failing, "exception": ValueError("no such month")}
    callbacks["on_execute_callback"](bad)
    callbacks["on_failure_callback"](bad)


def run_announcer() -> None:
    """The settings, and a worker class for RQ that has them."""
    announcer = execute("announcer.py")["announcer"]
    worker = execute("rq_worker.py", announcer=announcer)["Worker"]
    assert worker.announcer is announcer


if __name__ == "__main__":
    run_dramatiq()
    run_huey()
    run_django()
    run_taskiq()
    run_apscheduler()
    run_fastapi()
    run_airflow()
    run_announcer()
