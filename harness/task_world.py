"""
A small world of tasks with faults: instances that crash, a store that fails, runners that die.

All is in memory and on one virtual clock, and follows from a seed.  `World.run` lets tasks begin
and end under faults, then lets the world come to rest.  What must hold then is up to the caller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any, cast

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from asyncplumber.concurrency import PeriodicTask
from asyncplumber.core.callbacks import CallbackSubscriber
from asyncplumber.core.hub import Hub
from asyncplumber.core.intake import LATE_CHECK, Intake
from asyncplumber.core.tasks.errors import TaskError, UnknownTask
from asyncplumber.core.tasks.outcomes import Outcome, Reported
from asyncplumber.core.tasks.service import Tasks
from asyncplumber.core.tasks.settings import TaskSettings
from asyncplumber.errors import TooManyRequests, Unavailable
from asyncplumber.event import EARLIEST, Draft, Event
from asyncplumber.interfaces import (
    Appended,
    Dispatch,
    Finished,
    IStarter,
    IStore,
    Later,
    Refused,
    StarterFailed,
)
from asyncplumber.stores.memory import MemoryStore
from asyncplumber.stores.retention import Retention
from asyncplumber.task import Report, StartRequest, TaskState
from harness.core import TIME

ACCOUNT = "42"
INSTANCES = 3
SETTINGS = TaskSettings(start_deadline=20.0, patience=10.0, progress_interval=0.5)
# The part of the calls of each kind in which an instance crashes.
CRASHES = {
    "read": 0.001,
    "claim": 0.01,
    "row": 0.01,
    "append": 0.01,
    "note": 0.01,
    "dispatch": 0.02,
}
FAILURES = 0.02  # the part of all calls that fail, although they may have done their work
LATENCIES = (0.0, 0.0, 0.0, 0.001, 0.02, 0.2)  # seconds of a call, each way
ANSWER = 5.0  # seconds that a runner or a client waits for the answer to a report
CALM = 90.0  # seconds without faults, in which everything comes to its end


class _MortalClock:
    """The clock of one instance: after its death nothing of it happens any more."""

    def __init__(self, clock: Clock, instance: Instance) -> None:
        self._clock = clock
        self._instance = instance
        self.seconds = clock.seconds

    def callLater(self, delay: float, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
        def due() -> None:
            if not self._instance.is_dead:
                call(*args, **named)

        return _Call(self._clock.callLater(delay, due), self._instance)


class _Call:
    """A delayed call of an instance.  What is collected after its death cancels nothing."""

    def __init__(self, call: Any, instance: Instance) -> None:
        self._call = call
        self._instance = instance
        self.active = call.active
        self.getTime = call.getTime

    def cancel(self) -> None:
        if not self._instance.is_dead:
            self._call.cancel()


class _Part:
    """The history or the rows, as one instance reaches them."""

    def __init__(self, instance: Instance, part: Any) -> None:
        self._instance = instance
        self._part = part

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._part, name)

        def call(*args: Any, **named: Any) -> Deferred[Any]:
            kind = "read"
            if name == "claim":
                kind = "claim"
            elif name == "change":
                kind = "note" if args[1].get("is_announced") else "row"
            return self._instance.ask(kind, lambda: method(*args, **named))

        return call


class _FaultyStore:
    """The shared store, as one instance reaches it."""

    shared = False
    figures = ()

    def __init__(self, instance: Instance, store: MemoryStore) -> None:
        self._instance = instance
        self._store = store
        self.history: Any = _Part(instance, store.history)
        self.tasks: Any = _Part(instance, store.tasks)
        self.callback_urls: Any = _Part(instance, store.callback_urls)

    def append(self, drafts: Sequence[Draft]) -> Deferred[Appended]:
        def appended() -> Deferred[Appended]:
            done = self._store.append(list(drafts))
            done.addCallback(self._instance.world.relay, self._instance)
            return done

        return self._instance.ask("append", appended)


@implementer(IStarter)
class Instance:
    """One instance, with a subscriber from the beginning of the history."""

    needs_callback = False

    def __init__(self, world: World) -> None:
        self.world = world
        self.is_dead = False
        self.on_death: dict[object, Callable[[], object]] = {}
        clock = cast(IReactorTime, _MortalClock(world.clock, self))
        store = cast(IStore, _FaultyStore(self, world.store))
        self.hub = Hub(store.history, clock)
        self.intake = Intake(store.append, self.hub, clock)
        self.tasks = Tasks(store, self.hub, self.intake, clock, world.clock.seconds, self, SETTINGS)
        self.tasks.serve()
        PeriodicTask(self.hub.check, 3.0, clock).start()
        PeriodicTask(self.intake.answer_late, LATE_CHECK, clock).start()
        self.heard: list[Event] = []
        CallbackSubscriber(self.hub, ACCOUNT, self.heard.append, EARLIEST, clock).start()

    def die(self) -> None:
        """Stop to exist, in the middle of whatever is under way, unless it is the last one."""
        if len(self.world.alive) == 1:
            return
        self.is_dead = True
        self.bury()
        self.world.restart_later()

    def bury(self) -> None:
        """Let no coroutine that is collected resume another one that is, in any order."""
        for lock, _ in self.tasks._turns._locks.values():
            lock._waiting.clear()
        calls, self.on_death = list(self.on_death.values()), {}
        for call in calls:
            call()

    def ask(self, kind: str, method: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        """Call the store some time later, unless a fault comes between."""
        world, answer = self.world, Deferred[Any]()
        fault = world.fault(kind)

        def settle(result: Any) -> None:
            if not self.is_dead and not answer.called:
                answer.callback(result)

        def call() -> None:
            if self.is_dead:
                return
            if fault == "crash before":
                self.die()
                settle(Failure(Unavailable()))
                return
            result: Any = Failure(Unavailable())
            if fault != "failure before":
                done: list[Any] = []
                method().addBoth(done.append)
                result = done[0]
            if fault == "crash after":
                self.die()
            if fault in ("crash after", "failure after"):
                result = Failure(Unavailable())
            world.clock.callLater(world.latency(), settle, result)

        world.clock.callLater(world.latency(), call)
        return answer

    # IStarter

    def start(self, dispatch: Dispatch) -> Deferred[Finished | Later | Refused]:
        fault = self.world.fault("dispatch")
        if fault == "crash before":
            self.die()
            return fail(StarterFailed("it has crashed"))
        answer = self.world.application(dispatch)
        if fault == "crash after":
            self.die()
        if fault:
            answer.addErrback(lambda _: None)
            return fail(StarterFailed("the answer was lost"))
        return answer

    def cancel(self, account: str, task: str, run: str) -> Deferred[None]:
        return succeed(None)


class World:
    """Three instances, runners and clients.

    Attributes:
        counts: How often each fault was injected, and each answer was given.
        accepted: The reports of ends that were accepted, with the answer.
        outcomes: What clients were told in the end.
        dispatches: How often each run was dispatched.
    """

    def __init__(self, seed: int, tasks: int = 50) -> None:
        self.dice = Random(seed)
        self.clock = Clock()
        self.clock.advance(1_000_000 + seed)
        self.store = MemoryStore(Retention(length=100_000), self.clock)
        self.counts: Counter[str] = Counter()
        self.accepted: list[tuple[Report, Reported]] = []
        self.outcomes: list[Outcome] = []
        self.dispatches: Counter[str] = Counter()
        self._tasks = tasks
        self._fates: dict[str, str] = {}
        self._open = 0  # runners and clients that have not ended
        self._number = 0
        self.has_faults = True
        self.instances: list[Instance] = []
        self.instances = [Instance(self) for _ in range(INSTANCES)]

    # What goes wrong

    def latency(self) -> float:
        """Return the seconds that something takes."""
        return self.dice.choice(LATENCIES)

    def fault(self, kind: str) -> str:
        """Return what goes wrong with one call, empty for nothing."""
        if not self.has_faults:
            return ""
        chance, when = self.dice.random(), self.dice.choice(("before", "after"))
        fault = ""
        if chance < CRASHES[kind]:
            fault = f"crash {when}"
        elif chance < CRASHES[kind] + FAILURES:
            fault = f"failure {when}"
        if fault:
            self.counts[f"{fault} {kind}"] += 1
        return fault

    def restart_later(self) -> None:
        """Replace an instance that has died, after some time."""
        self.clock.callLater(self.dice.uniform(0.5, 15.0), self._restart)

    def _restart(self) -> None:
        self.instances = [each for each in self.instances if not each.is_dead]
        while len(self.instances) < INSTANCES:
            self.instances.append(Instance(self))

    @property
    def alive(self) -> list[Instance]:
        """The instances that run."""
        return [each for each in self.instances if not each.is_dead]

    def relay(self, appended: Appended, sender: Instance) -> Appended:
        """Send what was appended to the other instances; some of it never arrives."""
        events = [each.event for each in appended.results if not isinstance(each, Exception)]
        for other in self.alive:
            if other is sender or (self.has_faults and self.dice.random() < 0.05):
                continue
            self.clock.callLater(self.latency(), self._deliver, other, events)
        return appended

    @staticmethod
    def _deliver(instance: Instance, events: list[Event]) -> None:
        if not instance.is_dead:
            instance.hub.publish(events)

    # The application

    def application(self, dispatch: Dispatch) -> Deferred[Finished | Later | Refused]:
        """Begin a run, once for each id."""
        run = dispatch.run
        self.dispatches[run] += 1
        fate = self._fates.get(run)
        if fate is None:
            fate = self._fates[run] = self.dice.choices(
                ("later", "at once", "refused", "lost answer", "never begun"), (70, 12, 4, 10, 4)
            )[0]
            if fate in ("later", "lost answer"):
                self._runner(dispatch.task, run)
            if fate == "lost answer":
                self.counts["answer of the starter lost"] += 1
                return fail(StarterFailed("the answer was lost"))
        if fate == "at once":
            return succeed(Finished("application/json", b'"%b"' % run.encode()))
        if fate == "refused":
            return succeed(Refused(400, "text/plain", b"no"))
        if fate == "never begun":
            self.counts["application away"] += 1
            return fail(StarterFailed("the application is away"))
        return succeed(Later())

    def _runner(self, key: str, run: str) -> None:
        """Plan what the runner of a run reports, and when."""
        dice = self.dice
        end = dice.choices((TaskState.COMPLETED, TaskState.FAILED), (80, 20))[0]
        states = [TaskState.RUNNING] * dice.randint(0, 8) + [end]
        if dice.random() < 0.12:
            del states[dice.randrange(len(states)) :]
            self.counts["runner killed"] += 1
        at = dice.choice((0.0, 0.0, 0.3, 3.0))  # the first may come before the starter's answer
        for state in states:
            report = self._report_of(key, run, state)
            for _ in range(1 + (dice.random() < 0.15)):
                jitter = dice.choice((0.0, 0.0, 0.0, 1.5))
                self.counts["report out of order"] += jitter > 0
                self._later(at + jitter, partial(self._send, report))
            at += dice.choice((0.0, 0.1, 0.4, 2.0))
            if dice.random() < 0.03:
                at += SETTINGS.patience + 7.0
                self.counts["runner stopped beyond its deadline"] += 1

    def _report_of(self, key: str, run: str, state: TaskState) -> Report:
        self._number += 1
        id = f"report-{self._number}"
        payload = b'"data":%d' % self._number
        draft = Draft(ACCOUNT, id, id, "", TIME, "application/json", payload)
        is_beat = not state.is_done and self.dice.random() < 0.3
        return Report(draft, key, state, run, is_beat=is_beat)

    def _later(self, seconds: float, call: Callable[[], object]) -> None:
        self._open += 1

        def due() -> None:
            self._open -= 1
            call()

        self.clock.callLater(seconds, due)

    def _send(self, report: Report) -> None:
        """Send a report until it has an answer, as our senders do."""

        def answered(result: Any) -> None:
            if isinstance(result, Reported):
                self.counts["reports accepted"] += 1
                if report.state.is_done:
                    self.accepted.append((report, result))
            elif isinstance(result, TaskError):
                self.counts[f"reports refused: {result.code}"] += 1
            else:
                self._later(self.dice.uniform(0.1, 2.0), lambda: self._send(report))

        self._ask(lambda instance: instance.tasks.report(report), ANSWER, answered)

    def _ask(
        self,
        ask: Callable[[Instance], Deferred[Any]],
        timeout: float,
        answered: Callable[[Any], object],
    ) -> None:
        """Ask any instance; the answer is an error if it dies, or does not answer in time."""
        instance = self.dice.choice(self.alive)
        self._open += 1
        token = object()

        def settle(result: Any) -> None:
            if token in settled:
                return
            settled.add(token)
            instance.on_death.pop(token, None)
            if timer.active():
                timer.cancel()
            self._open -= 1
            if isinstance(result, Failure):
                result.trap(Unavailable, TooManyRequests, TaskError)
                result = result.value
            answered(result)

        settled: set[object] = set()
        timer = self.clock.callLater(timeout, settle, Unavailable())
        instance.on_death[token] = lambda: settle(Unavailable())
        ask(instance).addBoth(settle)

    # Clients

    def _client(self, key: str, is_back: bool = False) -> None:
        """Start or join a task, and wait for its end, whatever happens on the way."""
        wait = self.dice.choice((0.0, 5.0, 20.0))
        request = StartRequest(ACCOUNT, key, "application/json", b"[3,4]")

        def answered(result: Any) -> None:
            if isinstance(result, Outcome) and result.task.is_done:
                self.outcomes.append(result)
                return
            back = isinstance(result, Outcome) or (is_back and not isinstance(result, UnknownTask))
            self._later(0.5, lambda: self._client(key, back))

        def ask(instance: Instance) -> Deferred[Outcome]:
            if is_back:
                return instance.tasks.get(ACCOUNT, key, wait)
            return instance.tasks.start(request, wait)

        self._ask(ask, wait + ANSWER, answered)

    def _cancel(self, key: str) -> None:
        def answered(result: Any) -> None:
            self.counts[f"cancel: {getattr(result, 'code', 'taken')}"] += 1

        self._ask(lambda instance: instance.tasks.cancel(ACCOUNT, key), ANSWER, answered)

    # Time

    def run(self) -> None:
        """Let all tasks begin under faults, and let everything come to its end."""
        for number in range(self._tasks):
            key = f"task-{number % (self._tasks // 3 + 1)}"
            at = number * 0.6 + self.dice.random()
            for _ in range(self.dice.randint(1, 4)):
                self._later(
                    at + self.dice.choice((0.0, 0.0, 0.01, 1.0)), lambda k=key: self._client(k)
                )
            if self.dice.random() < 0.1:
                self._later(at + self.dice.uniform(0, 2.0), lambda k=key: self._cancel(k))
        self._pass(self._tasks * 0.6 + 20.0)
        self.has_faults = False
        self._restart()
        self._pass(CALM)
        for instance in self.instances:
            instance.bury()

    def _pass(self, seconds: float) -> None:
        until = self.clock.seconds() + seconds
        while self.clock.calls and self.clock.calls[0].getTime() <= until:
            self.clock.advance(max(0.0, self.clock.calls[0].getTime() - self.clock.seconds()))

    @property
    def is_at_rest(self) -> bool:
        """Whether all runners and clients have ended."""
        return not self._open

    @property
    def events(self) -> list[Event]:
        """All events of the account."""
        events: list[Event] = []
        log = self.store.history._logs.get(ACCOUNT)
        if log is not None:
            events.extend(log.events)
        return events
