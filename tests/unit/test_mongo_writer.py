"""
The MongoDB writer against a model: several writers, a killed server, and inserts that arrive late.

Hypothesis chooses what happens, step by step: see `harness.simulated_mongod` for the steps.
"""

from __future__ import annotations

import os
from random import Random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as some
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.errors import Unavailable
from asyncplumber.event import Cursor, Draft, Event, Stored
from asyncplumber.interfaces import CursorLost
from asyncplumber.stores.mongo.account_writer import DELETE_DELAY
from asyncplumber.stores.mongo.link import RETRY_PAUSE
from asyncplumber.stores.mongo.store import MongoStore
from asyncplumber.stores.retention import Retention
from harness.simulated_mongod import SimulatedMongod
from tests.unit import IS_FAST

WRITERS = 3
ACCOUNTS = ("a", "b", "c")
KEYS = tuple(f"k{number}" for number in range(6))
LENGTH = 6  # events kept of an account: few, so that some are forgotten while others are written
SIZE = 150  # bytes kept of an account: that many events, or fewer
AGE = 1000.0  # seconds that events are kept
TOO_LONG = 6.0  # seconds, in which every call gives up
# How many times it is tried; the fast tier tries what takes a second.
EXAMPLES = int(os.environ.get("ASYNCPLUMBER_TEST_EXAMPLES", "10" if IS_FAST else "30"))

accounts = some.sampled_from(ACCOUNTS)
pairs = some.lists(some.tuples(accounts, some.sampled_from(KEYS)), min_size=1, max_size=4)
writers = some.integers(0, WRITERS - 1)
choices = some.lists(some.integers(0, 99), max_size=20)
journals = some.booleans()


def draft(account: str, key: str) -> Draft:
    """A draft whose id is its key.  Its size depends on that: from 8 to 88 bytes."""
    payload = b'"data":1%b' % (b"0" * (16 * (sum(key.encode()) % 6)))
    return Draft(account, key, key, "result", "2026-01-01T00:00:00Z", "text/plain", payload)


class Append:
    """One call, and what came of it."""

    def __init__(self, drafts: list[Draft]) -> None:
        self.drafts = drafts
        self.result: Any = None  # None: it is under way


class SuspendableClock:
    """A steady clock, which does not count the seconds in which its machine was suspended."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.suspended = 0.0

    def seconds(self) -> float:
        """Return the seconds that it has counted."""
        return self._clock.seconds() - self.suspended


class WriterMachine(RuleBasedStateMachine):
    """Writers and readers of one database, on a single server."""

    replicated = False

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.server = SimulatedMongod(self.clock, replicated=self.replicated)
        self.retention = Retention(length=LENGTH, age=AGE, size=SIZE)
        self.steady = [SuspendableClock(self.clock) for _ in range(WRITERS)]
        self.stores = [
            MongoStore(
                "mongodb://simulated/",
                self.retention,
                self.clock,
                self.clock,
                steady=steady,
                uniform=lambda low, high: high,
                connect=self.server.pool,
            )
            for steady in self.steady
        ]
        self.appends: list[list[Append]] = [[] for _ in range(WRITERS)]
        self.told: dict[tuple[str, str, int], Event] = {}  # what somebody was told of
        self.heads: dict[str, Cursor] = {}  # where somebody was told that an account stands
        self.firsts: set[tuple[str, str, int]] = set()  # told as stored by that very call
        self.errors: list[Any] = []
        globalLogPublisher.addObserver(self._observe)  # type: ignore[arg-type]

    def _observe(self, event: Any) -> None:
        if "log_failure" in event:
            self.errors.append(event["log_failure"])

    @initialize()
    def begin(self) -> None:
        """All writers are connected, and one account has an event."""
        for store in self.stores:
            store.start()
        self._settle()
        for account in ACCOUNTS[:1]:
            self._append(0, [(account, "first")])
        self._settle()

    # What may happen.

    @rule(writer=writers, pairs=pairs, choices=choices, journal=journals)
    def append(
        self, writer: int, pairs: list[tuple[str, str]], choices: list[int], journal: bool
    ) -> None:
        """A writer is asked to append some drafts."""
        self._append(writer, pairs)
        self._go_on(choices, journal)

    @rule(choices=choices, journal=journals)
    def go_on(self, choices: list[int], journal: bool) -> None:
        """The server and the network take some steps."""
        self._go_on(choices, journal)

    @rule()
    def settle_for_now(self) -> None:
        """Everything that can happen without time passing happens."""
        self._run_dry()

    @rule(writer=writers, choices=choices, journal=journals)
    def cut(self, writer: int, choices: list[int], journal: bool) -> None:
        """A writer loses its connections; what it sent may still arrive."""
        self._pools(writer)[1].cut()
        self._go_on(choices, journal)

    @rule(choices=choices, journal=journals)
    def crash(self, choices: list[int], journal: bool) -> None:
        """The server is killed, and is back before a writer tries again."""
        self.server.kill()
        self.server.start()
        self.clock.advance(RETRY_PAUSE)
        self._go_on(choices, journal)

    @rule(
        asked=some.lists(some.tuples(writers, pairs), min_size=2, max_size=5),
        choices=some.lists(some.integers(0, 99), min_size=10, max_size=50),
    )
    def race(self, asked: list[tuple[int, list[tuple[str, str]]]], choices: list[int]) -> None:
        """Several writers are asked at once, and the server is killed amid it."""
        for writer, pairs in asked:
            self._append(writer, pairs)
        self._go_on(choices, journal=False)
        self.crash([], journal=True)
        self._run_dry()

    @rule()
    def kill(self) -> None:
        """The server is killed, and stays away."""
        self.server.kill()

    @precondition(lambda self: not self.server.is_up)
    @rule()
    def restart(self) -> None:
        """The server comes back."""
        self.server.start()

    @rule(seconds=some.sampled_from([0.001, 0.1, 0.5]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.clock.advance(seconds)

    @rule(seconds=some.sampled_from([TOO_LONG, 50.0, 100.0, AGE]))
    def wait_long(self, seconds: float) -> None:
        """Time passes, in which calls give up, heads are not trusted any more, or events age."""
        self.clock.advance(seconds)

    @rule(writer=writers)
    def sweep(self, writer: int) -> None:
        """What is too old, or too much, is forgotten."""
        self._asked(self.stores[writer].history.sweep())

    @rule(reader=writers, account=accounts)
    def read(self, reader: int, account: str) -> None:
        """Somebody reads where an account stands, and all that is kept of it."""
        history = self.stores[reader].history
        asked: Deferred[Any] = history.ensure(account)

        def read_on(position: Any) -> Any:
            self._learn_head(account, position.cursor)
            if position.head == position.floor:
                return []
            return history.read(account, Cursor(position.epoch, position.floor), None, 100)

        asked.addCallback(read_on).addCallback(self._learn_page)
        # What was read may be forgotten meanwhile, because the account grew.
        self._asked(asked)

    # What must hold.

    @invariant()
    def there_are_no_holes(self) -> None:
        """Neither in what readers see, nor in what survives a kill, after any step."""
        self._check_holes()

    def _check_holes(self) -> None:
        for state in (self.server.state, self.server.durable_state):
            for account in ACCOUNTS:
                kept = self._kept(state, account)
                seqs = sorted(kept)
                floor = state["accounts"].get(account, {"floor": 0})["floor"]
                assert seqs == list(range(floor + 1, floor + 1 + len(seqs))), (account, seqs)
                for seq in seqs[1:]:
                    size = kept[seq]["total"] - kept[seq - 1]["total"]
                    assert size == len(kept[seq]["payload"]), (account, seq, "miscounted")

    @invariant()
    def what_was_told_is_durable(self) -> None:
        """Whether by an answer to an append, or by a read."""
        for event in self.told.values():
            self._check_durable(event)
        for account, cursor in self.heads.items():
            row = self.server.durable_state["accounts"][account]
            kept_seqs = self._kept(self.server.durable_state, account)
            assert cursor.epoch == row["epoch"]
            assert cursor.seq <= max([row["floor"], *kept_seqs]), f"{account} {cursor} is lost"

    @invariant()
    def nothing_is_logged_as_a_failure(self) -> None:
        """What a server does is no error of ours; and no check failed amid a step."""
        for failure in self.errors:
            failure.raiseException()

    def _check_sizes(self) -> None:
        """After a sweep by who has written last, no account has too much, and each has an event."""
        self._asked(self.stores[WRITERS - 1].history.sweep())
        self._settle()
        for account in ACCOUNTS:
            sizes = [
                len(each["payload"]) for each in self._kept(self.server.state, account).values()
            ]
            assert len(sizes) == 1 or 0 < sum(sizes) <= SIZE, (account, sizes)

    def teardown(self) -> None:
        """At last all works again: each call has an answer, and the numbering goes on."""
        try:
            self.server.start()
            self._settle()
            for writer in range(WRITERS):
                self._append(writer, [(account, f"last {writer}") for account in ACCOUNTS])
                self._settle()
                last = self.appends[writer][-1]
                assert isinstance(last.result, list), last.result
                assert not any(answer.duplicate for answer in last.result)
            self._check_sizes()
            self.there_are_no_holes()
            self.what_was_told_is_durable()
            self.nothing_is_logged_as_a_failure()
            for calls in self.appends:
                assert all(call.result is not None for call in calls)
                self._check_order(calls)
            self._check_firsts()
        finally:
            globalLogPublisher.removeObserver(self._observe)  # type: ignore[arg-type]
            for store in self.stores:
                store.stop()

    # How.

    def _asked(self, call: Deferred[Any]) -> None:
        """A call may fail as the interfaces say, and in no other way."""
        call.addErrback(lambda failure: failure.trap(Unavailable, CursorLost) and None)
        call.addErrback(self.errors.append)

    def _go_on(self, choices: list[int], journal: bool) -> None:
        """Take some steps; without `journal`, the journal is slow and none of them is its."""
        for choice in choices:
            steps = self.server.steps(journal=journal)
            if steps:
                steps[choice % len(steps)]()
                self._check_holes()

    def _pools(self, writer: int) -> list[Any]:
        return self.server.pools[2 * writer : 2 * writer + 2]

    def _append(self, writer: int, pairs: list[tuple[str, str]]) -> None:
        drafts = [draft(account, key) for account, key in pairs]
        call = Append(drafts)
        self.appends[writer].append(call)

        def ended(result: Any) -> None:
            call.result = result
            self._check(call)

        self.stores[writer].history.append(drafts).addBoth(ended).addErrback(self.errors.append)

    def _run_dry(self) -> None:
        """Take steps until none is left, one of each kind in turn."""
        turn = 0
        while steps := self.server.steps():
            steps[turn % len(steps)]()
            self._check_holes()
            turn += 1
            assert turn < 5000, "it never comes to rest"

    def _settle(self) -> None:
        """Let time pass, and all happen that can happen, until all calls are answered."""
        self._run_dry()
        for _ in range(100):
            self.clock.advance(0.11)
            self._run_dry()
            if all(call.result is not None for calls in self.appends for call in calls):
                return
        raise AssertionError("an append has no answer")

    @staticmethod
    def _kept(state: Any, account: str) -> dict[int, Any]:
        """The events of an account above its floor, by number."""
        row = state["accounts"].get(account, {"epoch": "", "floor": 0})
        found = [each for each in state["events"].values() if each["account"] == account]
        if not row["epoch"]:
            assert not found, "events without a numbering"
        return {
            each["seq"]: each
            for each in found
            if each["epoch"] == row["epoch"] and each["seq"] > row["floor"]
        }

    def _check(self, call: Append) -> None:
        if isinstance(call.result, Failure):
            assert call.result.check(Unavailable), call.result
            return
        for wanted, answer in zip(call.drafts, call.result, strict=True):
            if not isinstance(answer, Stored):
                assert isinstance(answer, Unavailable), answer
                continue
            event = answer.event
            place = (event.account, event.epoch, event.seq)
            assert (event.account, event.id) == (wanted.account, wanted.id)
            self._tell(event)
            if not answer.duplicate:
                assert place not in self.firsts, "stored by two calls"
                self.firsts.add(place)

    def _check_firsts(self) -> None:
        """Each event is new for one call, if no call for it failed."""
        failed = {
            (each.account, each.id)
            for calls in self.appends
            for call in calls
            if isinstance(call.result, Failure)
            for each in call.drafts
        }
        for place, event in self.told.items():
            assert place in self.firsts or (event.account, event.id) in failed, "new for nobody"

    def _check_order(self, calls: list[Append]) -> None:
        """What one writer stored of an account has the order in which it was handed over."""
        last: dict[str, int] = {}
        for call in calls:
            for answer in call.result if isinstance(call.result, list) else ():
                if isinstance(answer, Stored) and not answer.duplicate:
                    assert answer.event.seq > last.get(answer.event.account, 0), "out of order"
                    last[answer.event.account] = answer.event.seq

    def _tell(self, event: Event) -> None:
        """Somebody is told of this event: at this moment it is durable."""
        place = (event.account, event.epoch, event.seq)
        assert self.told.setdefault(place, event) == event, "two events at one place"
        self._check_durable(event)

    def _check_durable(self, event: Event) -> None:
        row = self.server.durable_state["accounts"][event.account]
        assert row["epoch"] == event.epoch
        if event.seq > row["floor"]:
            kept = self._kept(self.server.durable_state, event.account).get(event.seq)
            assert kept is not None, f"{event.account} {event.seq} is lost"
            assert (kept["id"], bytes(kept["payload"])) == (event.id, event.payload)

    def _learn_head(self, account: str, cursor: Cursor) -> None:
        if cursor.seq:  # an account without events has no numbering of its own
            self.heads[account] = max(self.heads.get(account, cursor), cursor)

    def _learn_page(self, page: list[Event]) -> None:
        seqs = [event.seq for event in page]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs))) if seqs else True
        for event in page:
            self._tell(event)


class ReplicaSetMachine(WriterMachine):
    """The same on a replica set, of which the primary is replaced."""

    replicated = True


class WriterTests(SynchronousTestCase):
    """Histories that Hypothesis makes up."""

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

    def test_a_single_server_loses_nothing_and_leaves_no_hole(self) -> None:
        """Several writers, a server that is killed, and inserts that arrive late."""
        self.run_machine(WriterMachine)

    def test_a_crash_amid_first_appends_leaves_no_hole(self) -> None:
        """A head is known by one connection, and the numbering beside it begun by the next."""
        for seed in range(2 * EXAMPLES):
            random = Random(seed)
            machine = WriterMachine()
            machine.begin()
            machine.append(0, [("a", "0")], [], journal=True)
            machine.append(1, [("a", "1"), ("b", "1")], [], journal=True)
            choices = [random.randrange(1000) for _ in range(random.randrange(10, 30))]
            machine.go_on(choices, journal=False)
            machine.crash([], journal=True)
            machine.go_on([random.randrange(1000) for _ in range(60)], journal=True)
            machine.teardown()

    def write_while_another_is_idle(self, idle: float, suspended: bool = False) -> None:
        """Others write, and delete what followed the last event that a writer knows of."""
        machine = WriterMachine()
        machine.begin()
        machine.append(1, [("a", "1")], [], journal=True)
        machine.settle_for_now()
        began = machine.clock.seconds()
        for number in range(2 * LENGTH + 1):
            machine.append(0, [("a", f"busy {number}")], [], journal=True)
            machine.settle_for_now()
            machine.wait(0.1)  # the account is contended
        machine.wait_long(idle)
        # The number of this one is below the floor, and it is not taken for a first.
        machine.append(0, [("a", "busy 0")], [], journal=True)
        machine.settle_for_now()
        machine.append(0, [("b", "0")], [], journal=True)  # which also deletes what is due
        machine.settle_for_now()
        if suspended:
            machine.steady[1].suspended = machine.clock.seconds() - began
        machine.append(1, [("a", "again")], [], journal=True)
        machine.teardown()

    def test_deleted_numbers_stay_taken_for_a_while(self) -> None:
        """While a cached head is trusted, the numbers after it collide, whatever the floor is."""
        self.write_while_another_is_idle(1.0)

    def test_a_writer_that_was_idle_looks_again(self) -> None:
        """A cached head is trusted for less time than the events after it stay."""
        self.write_while_another_is_idle(DELETE_DELAY)

    def test_a_process_that_was_suspended_looks_again(self) -> None:
        """The steady clock stood still meanwhile, so a cached head seems to be fresh."""
        self.write_while_another_is_idle(DELETE_DELAY, suspended=True)

    def test_a_replica_set_loses_nothing_and_leaves_no_hole(self) -> None:
        """The same with a primary that is replaced."""
        self.run_machine(ReplicaSetMachine)
