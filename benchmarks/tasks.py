"""
What a task costs beside a plain event: ``python benchmarks/tasks.py``.

One server process on each store.  The figure is the CPU time of that process for one event, for
one task that a program reports (two POSTs: started, completed), and for one that the server starts
(a PUT, the dispatch to an application, and those two POSTs).  The ways alternate, and the best of
some rounds counts, because machines are shared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react

from benchmarks import machine
from harness.clients import HttpConnection, connect
from harness.cluster import Node
from harness.mongod import Mongod, with_database
from harness.task_application import Application

CONNECTIONS = 8
BODY = b'{"total": 7}'
JSON = {"Content-Type": "application/json"}
Way = Callable[[HttpConnection, str, int], Awaitable[None]]


async def _ask(
    line: HttpConnection, method: str, path: str, body: bytes, headers: dict[str, str]
) -> Any:
    answer = await line.request(method, path, body, {**JSON, **headers})
    assert answer.status in (200, 201, 202), (answer.status, answer.body)
    return answer


async def event(line: HttpConnection, account: str, number: int) -> None:
    """Post one event."""
    await _ask(line, "POST", f"/hooks/{account}", BODY, {})


async def reported(line: HttpConnection, account: str, number: int) -> None:
    """Report one task: it has started, it is completed."""
    task = {"Task": f"r{number}", "Task-Run": f"run-{number}"}
    path = f"/hooks/{account}"
    await _ask(line, "POST", path, b"", {**task, "Task-State": "started"})
    await _ask(line, "POST", path, BODY, {**task, "Task-State": "completed"})


async def started(line: HttpConnection, account: str, number: int) -> None:
    """Start one task, and report it."""
    key = f"s{number}"
    begun = await _ask(line, "PUT", f"/tasks/{account}/{key}", BODY, {"Prefer": "respond-async"})
    task = {"Task": key, "Task-Run": begun.headers["task-run"]}
    path = f"/hooks/{account}"
    await _ask(line, "POST", path, b"", {**task, "Task-State": "started"})
    await _ask(line, "POST", path, BODY, {**task, "Task-State": "completed"})


WAYS: dict[str, Way] = {"event": event, "task, reported": reported, "task, started": started}


async def measure(node: Node, way: Way, number: int, first: int) -> float:
    """Return the CPU microseconds of the server for each of so many."""
    lines = [await connect(node.port, HttpConnection()) for _ in range(CONNECTIONS)]

    async def work(at: int) -> None:
        for each in range(first + at, first + number, CONNECTIONS):
            await way(lines[at], f"account-{each % 50}", each)

    before = machine.cpu([node.pid])
    await gatherResults([Deferred.fromCoroutine(work(at)) for at in range(CONNECTIONS)])
    used = machine.cpu([node.pid]) - before
    for line in lines:
        line.close()
    return used / number * 1e6


async def main(number: int, rounds: int) -> None:
    """Measure all ways on all stores, and print a table."""
    print(machine.description())
    print(f"{'store':<10}" + "".join(f"{name:>18}" for name in WAYS) + "   CPU of the server, us")
    application = Application()
    await application.open()
    mongod = Mongod()
    mongod.start()
    with tempfile.TemporaryDirectory() as folder:
        stores = {
            "memory": "memory:",
            "SQLite": f"sqlite:{folder}/plumber.db",
            "MongoDB": with_database(mongod.uri, "tasks"),
        }
        for name, uri in stores.items():
            node = Node("--store", uri, "--starter", application.url)
            await node.start()
            try:
                best = dict.fromkeys(WAYS, float("inf"))
                for round in range(rounds):
                    for way, job in WAYS.items():
                        took = await measure(node, job, number, round * number)
                        best[way] = min(best[way], took)
            finally:
                node.kill()
            print(f"{name:<10}" + "".join(f"{value:>18.0f}" for value in best.values()), flush=True)
    mongod.stop()
    await application.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--number", type=int, default=1000, help="of each, in a round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    react(
        lambda reactor: Deferred.fromCoroutine(main(arguments.number, arguments.rounds)),
    )
