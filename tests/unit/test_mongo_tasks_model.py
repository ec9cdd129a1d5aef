"""
Tasks in MongoDB against a model: several instances, lost answers, and a server that is killed.

Hypothesis chooses what happens, step by step: see `harness.simulated_mongod` for the steps.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.errors import Unavailable
from asyncplumber.interfaces import Claim, Claimed
from asyncplumber.stores.mongo.store import MongoStore
from asyncplumber.stores.mongo.task_documents import as_task, id_of
from asyncplumber.stores.retention import Retention
from asyncplumber.task import FORMER_RUNS, TRANSITIONS, Task, TaskState
from harness.simulated_mongod import SimulatedMongod
from tests.unit import IS_FAST

INSTANCES = 3
KEYS = ("a", "b")
TOO_LONG = 6.0  # seconds, in which every call gives up
EXAMPLES = int(os.environ.get("ASYNCPLUMBER_TEST_EXAMPLES", "15" if IS_FAST else "50"))

instances = some.integers(0, INSTANCES - 1)
keys = some.sampled_from(KEYS)
states = some.sampled_from(
    [TaskState.RUNNING, TaskState.COMPLETED, TaskState.FAILED, TaskState.LOST]
)
choices = some.lists(some.integers(0, 99), max_size=20)


def is_later(row: Task, known: Task) -> bool:
    """Return whether a row is one that somebody was told of, or what that has become."""
    if row.run != known.run:
        return known.run in row.former or len(row.former) == FORMER_RUNS
    if row.state is known.state:
        return row.is_announced >= known.is_announced
    reachable = {row.state}
    for state in TaskState:
        if row.state in TRANSITIONS[state]:
            reachable |= {state, *[each for each in TaskState if state in TRANSITIONS[each]]}
    return known.state in reachable


class TaskMachine(RuleBasedStateMachine):
    """Instances that share one database, on a single server."""

    replicated = False

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.server = SimulatedMongod(self.clock, replicated=self.replicated)
        self.stores = [
            MongoStore(
                "mongodb://simulated/",
                Retention(),
                self.clock,
                self.clock,
                steady=self.clock,
                connect=self.server.pool,
            )
            for _ in range(INSTANCES)
        ]
        self.pending = 0
        self.runs = 0
        self.known: list[dict[str, Task]] = [{} for _ in range(INSTANCES)]
        self.told: dict[str, Task] = {}  # the latest row of each task that somebody was told of
        self.begun: Counter[str] = Counter()  # how many claims were told that they began a run
        self.ends: Counter[tuple[str, bool]] = Counter()  # by run, and whether it is a late one
        self.seen: dict[str, Task | None] = dict.fromkeys(KEYS)  # what the server has
        self.errors: list[Any] = []
        globalLogPublisher.addObserver(self._observe)  # type: ignore[arg-type]

    def _observe(self, event: Any) -> None:
        if "log_failure" in event:
            self.errors.append(event["log_failure"])

    @initialize()
    def begin(self) -> None:
        """All are connected."""
        for store in self.stores:
            store.start()
        self._settle()

    # What may happen.

    @rule(number=instances, key=keys, is_old=some.booleans(), choices=choices)
    def claim(self, number: int, key: str, is_old: bool, choices: list[int]) -> None:
        """An instance claims a new run, or one that another may have claimed."""
        self.runs += not is_old
        run = f"{key}{self.runs}"

        def told(claimed: Claimed) -> None:
            self.begun[run] += claimed.began
            self._tell(number, claimed.task)

        self._ask(self.stores[number].tasks.claim(Claim("x", key, run, input=b"")), told)
        self._go_on(choices)

    @rule(number=instances, key=keys, state=states, choices=choices)
    def report(self, number: int, key: str, state: TaskState, choices: list[int]) -> None:
        """An instance changes the state of the row as it knows it."""
        task = self.known[number].get(key)
        if task is None or state not in TRANSITIONS[task.state]:
            return

        def told(row: Task | None) -> None:
            if row is not None:
                if row.is_done:
                    self.ends[row.run, task.state is TaskState.LOST] += 1
                self._tell(number, row)

        changes = {"state": state, "is_announced": False}
        self._ask(self.stores[number].tasks.change(task, changes), told)
        self._go_on(choices)

    @rule(number=instances, key=keys, choices=choices)
    def announce(self, number: int, key: str, choices: list[int]) -> None:
        """An instance notes that the event of the row is kept."""
        task = self.known[number].get(key)
        if task is not None:
            changed = self.stores[number].tasks.change(task, {"is_announced": True})
            self._ask(changed, lambda row: row and self._tell(number, row))
            self._go_on(choices)

    @rule(number=instances, key=keys, choices=choices)
    def look(self, number: int, key: str, choices: list[int]) -> None:
        """An instance reads a task, and all of the account."""
        tasks = self.stores[number].tasks
        self._ask(tasks.get("x", key), lambda row: row and self._tell(number, row))
        self._ask(tasks.of_account("x", 10), lambda rows: [self._tell(number, row) for row in rows])
        self._go_on(choices)

    @rule(choices=choices, journal=some.booleans())
    def go_on(self, choices: list[int], journal: bool) -> None:
        """Some steps are taken."""
        self._go_on(choices, journal)

    @rule()
    def settle_for_now(self) -> None:
        """Everything is answered."""
        self._settle()

    @rule(number=instances, choices=choices)
    def cut(self, number: int, choices: list[int]) -> None:
        """An instance loses its connections; what is on its way there still arrives."""
        for pool in self.server.pools[2 * number : 2 * number + 2]:
            pool.cut()
        self._go_on(choices)

    @rule(choices=choices)
    def crash(self, choices: list[int]) -> None:
        """The server is killed before its journal has everything, and comes back."""
        self._go_on(choices, journal=False)
        self.server.kill()
        self.seen = {key: self._row(self.server.state, key) for key in KEYS}
        self.server.start()
        self.clock.advance(0.11)

    @rule(seconds=some.sampled_from([0.11, TOO_LONG]))
    def wait(self, seconds: float) -> None:
        """Time passes: calls are sent again, or given up."""
        self.clock.advance(seconds)

    def teardown(self) -> None:
        """At last all works again, and each call has an answer."""
        try:
            self._settle()
            for number, key in enumerate(KEYS):
                self.look(number, key, [])
            self._settle()
            assert not self.pending
            self._check()
        finally:
            globalLogPublisher.removeObserver(self._observe)  # type: ignore[arg-type]
            for store in self.stores:
                store.stop()

    # What must hold.

    def _check(self) -> None:
        """After each step: what was told is durable; no run begins, or ends, twice."""
        for failure in self.errors:
            failure.raiseException()
        for key in KEYS:
            row, before = self._row(self.server.state, key), self.seen[key]
            self.seen[key] = row
            self._check_step(before, row)
            told = self.told.get(key)
            if told is not None:
                durable = self._row(self.server.durable_state, key)
                assert durable is not None, "a task is lost"
                assert is_later(durable, told), (durable, told)
        assert max(self.begun.values(), default=0) <= 1, "a run began twice"
        assert max(self.ends.values(), default=0) <= 1, "a run ended twice"

    @staticmethod
    def _check_step(before: Task | None, row: Task | None) -> None:
        if before is None or row is None:
            assert before is None, "a task is gone"
            return
        if before.run != row.run:
            assert before.is_done, "a live run was replaced"
            assert before.is_announced, "an end was replaced that nobody had heard of"
            assert row.run not in (before.run, *before.former), "a run was revived"
        elif before.state is not row.state:
            assert row.state in TRANSITIONS[before.state], "an end was changed"

    # How.

    def _row(self, state: Any, key: str) -> Task | None:
        document = state["tasks"].get(id_of("x", key))
        return as_task(document) if document is not None else None

    def _tell(self, number: int, row: Task) -> None:
        """Take note that an instance was told of a row."""
        self.known[number][row.key] = row
        told = self.told.get(row.key)
        if told is None or is_later(row, told):
            self.told[row.key] = row
        # At this moment it is durable.
        durable = self._row(self.server.durable_state, row.key)
        assert durable is not None, "a task was told of before it was durable"
        assert is_later(durable, row), (durable, row)

    def _ask(self, call: Deferred[Any], told: Callable[[Any], object]) -> None:
        self.pending += 1

        def answered(result: Any) -> Any:
            self.pending -= 1
            return result

        call.addBoth(answered)
        call.addCallback(told)
        call.addErrback(lambda failure: failure.trap(Unavailable) and None)
        call.addErrback(self.errors.append)

    def _go_on(self, choices: list[int], journal: bool = True) -> None:
        for choice in choices:
            steps = self.server.steps(journal=journal)
            if steps:
                steps[choice % len(steps)]()
                self._check()

    def _settle(self) -> None:
        """Let all happen that can happen, until all calls are answered."""
        for _ in range(100):
            turn = 0
            while steps := self.server.steps():
                steps[turn % len(steps)]()
                self._check()
                turn += 1
                assert turn < 5000, "it never comes to rest"
            if not self.pending:
                return
            self.clock.advance(0.11)
        raise AssertionError("a call has no answer")


class ReplicatedTaskMachine(TaskMachine):
    """The same on a replica set, of which the primary is replaced."""

    replicated = True


class TaskModelTests(SynchronousTestCase):
    """What Hypothesis makes up."""

    def run_machine(self, machine: type[RuleBasedStateMachine]) -> None:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=30,
                deadline=None,
                derandomize=EXAMPLES <= 100,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            ),
        )

    def test_a_single_server_keeps_one_run_with_one_end(self) -> None:
        """Whatever is cut, killed or sent twice."""
        self.run_machine(TaskMachine)

    def test_a_replica_set_keeps_one_run_with_one_end(self) -> None:
        """Whatever is cut, replaced or sent twice."""
        self.run_machine(ReplicatedTaskMachine)
