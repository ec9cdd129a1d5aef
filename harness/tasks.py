"""What the tests of tasks share: instances on one store in memory, and a starter that records."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from asyncplumber.core.hub import Hub
from asyncplumber.core.intake import Intake
from asyncplumber.core.tasks.callback_urls import CallbackMint
from asyncplumber.core.tasks.outcomes import Outcome, Reported
from asyncplumber.core.tasks.service import Tasks
from asyncplumber.core.tasks.settings import DEFAULT_SETTINGS, TaskSettings
from asyncplumber.event import Draft, Stored, new_id
from asyncplumber.interfaces import Appended, Dispatch, Finished, IStarter, Later, Refused
from asyncplumber.stores.memory import MemoryStore
from asyncplumber.stores.recipients import with_recipients
from asyncplumber.stores.retention import Retention
from asyncplumber.task import Report, StartRequest, Task, TaskState
from asyncplumber.wire.payload import payload_of
from harness.core import TIME, FaultProxy, Recorder

ACCOUNT, KEY = "42", "sum"
START = StartRequest(ACCOUNT, KEY, "application/json", b"[3,4]")


@implementer(IStarter)
class RecordingStarter:
    """
    Records what is dispatched, and answers as it is told.

    Attributes:
        answer: What `start` returns, or fails with.
        dispatched: What it was asked to start.
        canceled: What it was asked to cancel.
    """

    needs_callback = True

    def __init__(self) -> None:
        self.answer: Any = Later()
        self.dispatched: list[Dispatch] = []
        self.canceled: list[tuple[str, str, str]] = []

    def start(self, dispatch: Dispatch) -> Deferred[Finished | Later | Refused]:
        self.dispatched.append(dispatch)
        if isinstance(self.answer, Exception):
            return fail(self.answer)
        return self.answer if isinstance(self.answer, Deferred) else succeed(self.answer)

    def cancel(self, account: str, task: str, run: str) -> Deferred[None]:
        self.canceled.append((account, task, run))
        return succeed(None)


def report_of(state: TaskState, body: bytes = b"", **more: Any) -> Report:
    """Return a report of `KEY`; without a body it is a beat."""
    content_type, payload = payload_of("application/json" if body else "", body)
    id = more.pop("id", None) or new_id()
    draft = Draft(ACCOUNT, id, id, "result", TIME, content_type, payload)
    return Report(draft, more.pop("key", KEY), state, is_beat=not body, **more)


class TaskInstance:
    """
    One instance.

    Attributes:
        rows: The rows as this instance reaches them: its calls can fail and wait.
        history: Its history, likewise.
        subscriber: Hears the account here.
    """

    def __init__(
        self,
        clock: Clock,
        store: MemoryStore,
        starter: Any,
        peers: list[TaskInstance],
        settings: TaskSettings = DEFAULT_SETTINGS,
    ) -> None:
        """`peers` are all instances on the store, to which this one adds itself."""
        self._clock = clock
        self._peers = peers
        peers.append(self)
        self.rows: Any = FaultProxy(store.tasks)
        self.history: Any = FaultProxy(store.history)
        self.hub = Hub(cast(Any, self.history), clock)
        self.intake = Intake(self._append, self.hub, clock)
        parts = SimpleNamespace(
            tasks=self.rows, history=self.history, callback_urls=store.callback_urls
        )
        mint = CallbackMint(
            store.callback_urls, clock.seconds, lambda: "https://push", 60, clock.seconds
        )
        self.tasks = Tasks(
            cast(Any, parts), self.hub, self.intake, clock, clock.seconds, starter, settings, mint
        )
        self.tasks.serve()
        self.subscriber = Recorder()
        self.hub.admit(ACCOUNT).addCallback(self.subscriber.subscribe)

    def _append(self, drafts: Sequence[Draft]) -> Deferred[Appended]:
        appended: Deferred[Appended] = with_recipients(self.history.append(drafts), None)
        return appended.addCallback(self._relay)

    def _relay(self, appended: Appended) -> Appended:
        events = [each.event for each in appended.results if isinstance(each, Stored)]
        for peer in self._peers:
            if peer is not self:
                self._clock.callLater(0, peer.hub.publish, events)
        return appended

    @property
    def types(self) -> list[str]:
        """What its subscriber heard."""
        return [event.type.removeprefix("task.") for event in self.subscriber.events]

    @property
    def last(self) -> dict[str, Any]:
        """The member ``task`` of the last event."""
        member = self.subscriber.events[-1].task
        assert member is not None
        return member


class TasksCase(SynchronousTestCase):
    """Two instances on a memory store; most tests use the first one only."""

    settings = DEFAULT_SETTINGS

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.store = MemoryStore(Retention(), self.clock, shared=True)
        self.starter = RecordingStarter()
        self.instances: list[TaskInstance] = []
        self._all: list[TaskInstance] = []  # also those that a test took away
        self.first, self.second = self.instance(), self.instance()
        self.turn()
        self.tasks = self.first.tasks
        self.addCleanup(self._stop)

    def instance(self) -> TaskInstance:
        """Add an instance."""
        made = TaskInstance(self.clock, self.store, self.starter, self.instances, self.settings)
        self._all.append(made)
        return made

    def _stop(self) -> None:
        # What a test left hanging ends here, and not when it is collected during another test.
        for instance in self._all:
            for proxy in (instance.rows, instance.history):
                proxy.held.clear()
                proxy.error = None
                proxy.release()
            Deferred.fromCoroutine(instance.tasks.drain())
        self.turn()

    def turn(self, times: int = 20) -> None:
        """Let so many turns of the reactor pass."""
        for _ in range(times):
            self.clock.advance(0)

    def wait(self, seconds: float) -> None:
        """Let some time pass, with all that is due in it."""
        until = self.clock.seconds() + seconds
        while self.clock.calls and self.clock.calls[0].getTime() <= until:
            self.clock.advance(max(0.0, self.clock.calls[0].getTime() - self.clock.seconds()))
        self.clock.advance(until - self.clock.seconds())
        self.turn()

    def done(self, deferred: Deferred[Any]) -> Any:
        """Return the result after the turns that it takes."""
        self.turn()
        return self.successResultOf(deferred)

    def failed(self, deferred: Deferred[Any], error: type[Exception]) -> Any:
        """Return the error after the turns that it takes."""
        self.turn()
        return self.failureResultOf(deferred, error).value

    def start(self, key: str = KEY, body: bytes = b"[3,4]", **more: Any) -> Outcome:
        """Start at the first instance, without a wait."""
        request = StartRequest(ACCOUNT, key, "application/json", body, **more)
        outcome: Outcome = self.done(self.tasks.start(request))
        return outcome

    def report(self, state: TaskState, body: bytes = b"", **more: Any) -> Reported:
        """Report at the first instance."""
        reported: Reported = self.done(self.tasks.report(report_of(state, body, **more)))
        return reported

    def refused(
        self, error: type[Exception], state: TaskState, body: bytes = b"", **more: Any
    ) -> Any:
        """Report at the first instance, which refuses it."""
        return self.failed(self.tasks.report(report_of(state, body, **more)), error)

    def row(self, key: str = KEY) -> Task:
        """Return a row."""
        task: Task | None = self.successResultOf(self.store.tasks.get(ACCOUNT, key))
        assert task is not None
        return task

    @property
    def types(self) -> list[str]:
        """What the subscriber at the first instance heard."""
        return self.first.types

    @property
    def last(self) -> dict[str, Any]:
        """The member ``task`` of the last event there."""
        return self.first.last
