"""
Each run of a task has exactly one end, whatever fails: ``python benchmarks/task_faults.py``.

Three instances on one MongoDB start tasks of an application and take its reports, while instances
and the database are killed, stopped and cut off.  Clients repeat their requests until they are
answered, as browsers do.  In the end the history has exactly one end for each run that was
accepted (or ``task.lost`` followed by one late end), and everyone who waited was told that end.
Otherwise the command ends with status 1.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react

from benchmarks.faults import hang, hang_database, kill_database, kill_instance, part, restart
from harness.clients import ConnectionFailed, HttpResponse, fetch, sleep
from harness.cluster import Cluster, TcpProxy
from harness.task_application import LATER, Answer, Application, Run, report_until_taken

ACCOUNTS = 8
CLIENTS = 12  # each starts one task after the other
SILENCE = 6.0  # seconds without a report, after which a run of this test is lost
END_TYPES = ("task.completed", "task.failed", "task.canceled", "task.lost")
Fault = Callable[[Any, random.Random], Awaitable[None]]


class Story:
    """
    What a run of the test did, as seen from outside.

    Attributes:
        told: The ends that clients were told: state and result.
    """

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []


class Trial:
    """The cluster, its application, and the clients."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.cluster = Cluster(3, "--history-length", "1000000")
        self.application = Application(self._behave)
        self.wires: list[TcpProxy] = []
        self.accepted: dict[str, Story] = {}  # by run
        self.answers: Counter[str] = Counter()
        self.problems: list[str] = []
        self.number = 0
        self.running = True
        self._reports: list[Deferred[None]] = []
        self.kinds: dict[str, str] = {}  # by run

    async def begin(self) -> None:
        """Start everything."""
        await self.application.open()
        self.wires = [await TcpProxy().open() for _ in self.cluster.nodes]
        for wire, node in zip(self.wires, self.cluster.nodes, strict=True):
            wire.target = node.port
            node.add_options("--advertise-url", f"http://127.0.0.1:{wire.port}")
            node.add_options("--starter", self.application.url)
        await self.cluster.up()

    # The application

    def _behave(self, run: Run) -> Answer | Awaitable[Answer]:
        kind = self.kinds.setdefault(
            run.id,
            self.dice.choice(("at-once", "later", "early", "twice", "progress", "dies", "slow")),
        )
        if kind == "at-once":
            return Answer(200, json.dumps({"run": run.id}).encode())
        if kind == "early":
            return self._early(run)
        work = Deferred.fromCoroutine(self._work(run, kind))
        work.addErrback(lambda failure: self.problems.append(failure.getTraceback()))
        self._reports.append(work)
        return LATER

    async def _early(self, run: Run) -> Answer:
        """Report the end before the dispatch is answered."""
        work = Deferred.fromCoroutine(self._end(run))
        self._reports.append(work)
        await sleep(self.dice.uniform(0, 0.01))
        return LATER

    def _ports(self) -> list[int]:
        ports = self.cluster.ports
        self.dice.shuffle(ports)
        return ports

    async def _say(self, run: Run, state: str, data: Any = None) -> HttpResponse:
        return await report_until_taken(self._ports(), run, state, data, deadline=SILENCE)

    async def _end(self, run: Run) -> None:
        await self._say(run, "completed", {"run": run.id})

    async def _work(self, run: Run, kind: str) -> None:
        await sleep(self.dice.uniform(0, 0.3))
        if kind == "dies":
            await self._say(run, "running", {"done": 0})
            return
        if kind in ("progress", "slow"):
            for number in range(self.dice.randrange(1, 6)):
                await self._say(run, "running", {"done": number})
                await sleep(self.dice.uniform(0, 0.4))
        if kind == "slow" and self.dice.random() < 0.3:
            await sleep(SILENCE + 6)  # it is lost, and comes late
        await self._end(run)
        if kind == "twice":
            await self._end(run)

    # The clients

    async def client(self) -> None:
        """Start tasks, wait for each, and note what is told."""
        while self.running:
            self.number += 1
            account, key = f"account-{self.number % ACCOUNTS}", f"task-{self.number}"
            people = 1 + (self.dice.random() < 0.3)
            await gatherResults(
                [Deferred.fromCoroutine(self._follow(account, key)) for _ in range(people)]
            )

    async def _follow(self, account: str, key: str) -> None:
        path = f"/tasks/{account}/{key}"
        answer = await self._asked("PUT", path, b"[3,4]", {"Prefer": "wait=3"})
        run = answer.headers.get("task-run")
        if run is None:
            self.problems.append(f"PUT {path}: {answer.status} {answer.body!r}")
            return
        self.accepted.setdefault(run, Story())
        if answer.status == 202:
            await self._poll(path, run)
        elif answer.status == 200:
            self._told(run, answer.headers["task-state"], answer.json)
        elif answer.status == 504:
            self._told(run, "lost", None)
        else:
            self.problems.append(f"PUT {path}: {answer.status} {answer.body!r}")

    async def _poll(self, path: str, run: str) -> None:
        """Ask for a task until it has ended."""
        while self.running:
            answer = await self._asked("GET", f"{path}?wait=3")
            if answer.status != 200:
                self.problems.append(f"GET {path}: {answer.status} {answer.body!r}")
                return
            if answer.json["done"]:
                self._told(run, answer.json["state"], answer.json.get("result"))
                return

    def _told(self, run: str, state: str, result: Any) -> None:
        self.accepted.setdefault(run, Story()).told.append((state, result))
        self.answers[state] += 1

    async def _asked(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> HttpResponse:
        """Ask one instance after the other until one answers."""
        while True:
            for port in self._ports():
                try:
                    fields = {"Content-Type": "application/json", **(headers or {})}
                    answer = await fetch(port, method, path, body, fields)
                except ConnectionFailed:
                    continue
                if answer.status not in (429, 500, 503):
                    return answer
            await sleep(0.1)

    # The check

    async def end(self) -> dict[str, list[dict[str, Any]]]:
        """Let all end, and return the events of each run."""
        self.running = False
        for wire in self.wires:
            if not wire.whole:
                wire.mend()
        await self.cluster.up()
        await gatherResults(self._reports)
        deadline = time.monotonic() + 60
        while True:
            runs = await self.history()
            open_runs = [run for run in self.accepted if not ends_of(runs.get(run, []))]
            if not open_runs or time.monotonic() > deadline:
                break
            await sleep(1)
        await sleep(SILENCE + 6)
        return await self.history()

    async def history(self) -> dict[str, list[dict[str, Any]]]:
        """Return the events of all runs, in the order of the history."""
        runs: dict[str, list[dict[str, Any]]] = {}
        for number in range(ACCOUNTS):
            after = "earliest"
            while True:
                path = f"/events/account-{number}?after={after}&wait=0"
                page = (await self._asked("GET", path)).json
                for event in page["events"]:
                    if "task" in event:
                        runs.setdefault(event["task"]["run"], []).append(event)
                if not page["events"]:
                    break
                after = page["cursor"]
        return runs


def ends_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events that are ends."""
    return [event for event in events if event["type"] in END_TYPES]


def wrong(trial: Trial, runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return what is against the promise."""
    found = list(trial.problems) + trial.application.problems
    for run in {*trial.accepted, *runs}:
        events = runs.get(run, [])
        ends = ends_of(events)
        types = [event["type"] for event in events]
        late = [bool(event["task"].get("late")) for event in ends]
        once = len(ends) == 1 and not late[0]
        corrected = len(ends) == 2 and types[-2:] and ends[0]["type"] == "task.lost" and late[1]
        if not (once or corrected):
            found.append(f"{run} ({trial.kinds.get(run)}): {types}")
            continue
        if types[0] != "task.submitted":
            found.append(f"{run} begins with {types[0]}")
        if types.count("task.submitted") > 1 or types.count("task.started") > 1:
            found.append(f"{run} began twice: {types}")
        states = {event["task"]["state"] for event in ends}
        story = trial.accepted.get(run)
        for state, result in story.told if story is not None else ():
            if state not in states:
                found.append(f"{run} ended with {states}, and somebody was told {state}")
            if state == "completed" and result != {"run": run}:
                found.append(f"{run}: somebody was given {result!r}")
    return found


FAULTS: dict[str, Fault] = {
    "kill -9 of an instance": kill_instance,
    "an instance hangs (SIGSTOP)": hang,
    "kill -9 of mongod, and its return": kill_database,
    "mongod hangs (SIGSTOP)": hang_database,
    "two instances cut off from the others": part,
    "rolling restart of all": restart,
}


async def main(runs: int, seed: int, only: str) -> int:
    """Run until so many runs were accepted; return the exit status."""
    dice = random.Random(seed)
    trial = Trial(dice)
    counts: Counter[str] = Counter()
    try:
        await trial.begin()
        clients = [Deferred.fromCoroutine(trial.client()) for _ in range(CLIENTS)]
        faults = [name for name in FAULTS if only in name]
        while len(trial.accepted) < runs:
            name = dice.choice(faults)
            before = len(trial.accepted)
            await FAULTS[name](trial, dice)
            await trial.cluster.up()
            await sleep(dice.uniform(0.5, 2))
            counts[name] += 1
            counts[f"runs: {name}"] += len(trial.accepted) - before
        history = await trial.end()
        await gatherResults(clients)
        problems = wrong(trial, history)
    finally:
        trial.cluster.down()
    ends = Counter(
        event["type"] + (", late" if event["task"].get("late") else "")
        for events in history.values()
        for event in ends_of(events)
    )
    print(f"{'fault':<42}{'times':>8}{'runs begun meanwhile':>24}")
    for name in faults:
        print(f"{name:<42}{counts[name]:>8}{counts[f'runs: {name}']:>24}")
    print(f"\n{len(history)} runs; dispatched {len(trial.application.runs)} times")
    for kind, number in sorted(Counter(trial.kinds.values()).items()):
        print(f"  the application: {kind:<24}{number:>8}")
    for name, number in sorted(ends.items()):
        print(f"  in the history: {name:<25}{number:>8}")
    for state, number in sorted(trial.answers.items()):
        print(f"  told to clients: {state:<24}{number:>8}")
    print(f"against the promise: {len(problems)}")
    for problem in problems[:20]:
        print("  ", problem)
    return 1 if problems else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=2000, help="runs to be accepted")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="a part of the name of a fault")
    arguments = parser.parse_args()

    async def run() -> None:
        """Run, and end with the status."""
        status = await main(arguments.runs, arguments.seed, arguments.only)
        if status:
            raise SystemExit(status)

    react(lambda reactor: Deferred.fromCoroutine(run()))
