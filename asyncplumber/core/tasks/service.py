"""What the ways in ask of tasks: start or join, look, wait, report, cancel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from asyncplumber.concurrency import PeriodicTask
from asyncplumber.core.hub import Hub
from asyncplumber.core.intake import Intake
from asyncplumber.core.tasks.dispatcher import Dispatcher
from asyncplumber.core.tasks.errors import (
    NoStarter,
    NothingCached,
    OtherInput,
    ResultGone,
    TaskEnded,
    UnknownTask,
)
from asyncplumber.core.tasks.figures import TaskFigures
from asyncplumber.core.tasks.holds import Hold
from asyncplumber.core.tasks.journal import Journal
from asyncplumber.core.tasks.outcomes import Outcome, Reported
from asyncplumber.core.tasks.progress import ConflatedProgress
from asyncplumber.core.tasks.reports import Reports
from asyncplumber.core.tasks.settings import DEFAULT_SETTINGS, MAX_LISTED, TaskSettings
from asyncplumber.core.tasks.sweeper import FORGET_INTERVAL, SWEEP_INTERVAL, Sweeper
from asyncplumber.core.tasks.turns import Turns
from asyncplumber.event import Cursor, new_id
from asyncplumber.grant import OPEN, Action, Grant
from asyncplumber.interfaces import Claim, CursorLost, IStarter, IStoppableStarter, IStore
from asyncplumber.task import Report, StartRequest, Task, TaskState, digest_of, new_run
from asyncplumber.wire.tasks import ended, without_member

Result = TypeVar("Result")
_CANCELED = b'{"type":"canceled","message":"the task was canceled before it began"}'


class Tasks:
    """
    The tasks of an instance.

    A Deferred that a method returns may be cancelled: the client has left.  What it has asked for
    goes on.
    """

    def __init__(
        self,
        store: IStore,
        hub: Hub,
        intake: Intake,
        clock: IReactorTime,
        now: Callable[[], float],
        starter: IStarter | None = None,
        settings: TaskSettings = DEFAULT_SETTINGS,
        mint: Callable[[Task], Deferred[str]] | None = None,
    ) -> None:
        """
        Args:
            store: Where the rows are.
            hub: Where those who wait subscribe.
            intake: Takes the events.
            clock: The reactor's clock.
            now: Returns the time in seconds since 1970.
            starter: Executes tasks; None: they are only reported.
            settings: How long tasks are waited for, and kept.
            mint: Returns the URL to which a run can be reported; None: there is none.
        """
        self._tasks = store.tasks
        self._history = store.history
        self._hub = hub
        self._clock = clock
        self._now = now
        self._starter = starter
        self._settings = settings
        self._journal = Journal(store.tasks, intake, now)
        self._turns = Turns()
        self._progress = ConflatedProgress(clock)
        self._reports = Reports(self._journal, self._turns, self._progress, settings, now)
        self._dispatcher: Dispatcher | None = None
        if starter is not None:
            minting = {} if mint is None else {"mint": mint}
            self._dispatcher = Dispatcher(
                self._journal, starter, settings, clock, now, self._take, **minting
            )
        self._holds: set[Hold] = set()
        self._is_draining = False
        #: What is counted.
        self.figures = TaskFigures(lambda: len(self._holds))
        sweeper = Sweeper(
            self._journal,
            self._turns,
            self._dispatcher,
            store.callback_urls,
            settings,
            lambda: self.figures.ended(TaskState.LOST),
        )
        self._periodic = [
            PeriodicTask(sweeper.sweep, SWEEP_INTERVAL, clock, now=True),
            PeriodicTask(sweeper.forget, FORGET_INTERVAL, clock),
        ]

    @property
    def can_start(self) -> bool:
        """Whether there is something that executes tasks."""
        return self._starter is not None

    # Start and wait

    def start(
        self, request: StartRequest, wait: float = 0.0, grant: Grant = OPEN
    ) -> Deferred[Outcome]:
        """
        Start or join a task, and wait for its end.

        Args:
            request: What is wanted.
            wait: Seconds; 0 returns when the run is durable.
            grant: What the client may do.

        Raises:
            NoStarter: There is nothing that executes tasks.
            OtherInput: It runs with another input.
            NothingCached: The client wants no run to begin, and there is no result.
            InsufficientScope: The grant does not allow to start it.
            Unavailable: The store is away.  The task may have been started, and can be again.
        """
        return Deferred.fromCoroutine(self._start(request, wait, grant))

    async def _start(self, request: StartRequest, wait: float, grant: Grant) -> Outcome:
        if self._starter is None:
            raise NoStarter
        grant.check(Action.START, request.account)
        hold = await self._hold(request.account, request.key) if wait > 0 else None
        try:
            outcome = await _shielded(self._begin_or_join(request))
            return await self._ended(outcome, hold, wait)
        finally:
            self._let_go(hold)

    async def _begin_or_join(self, request: StartRequest) -> Outcome:
        if request.max_age is not None or request.only_if_cached:
            known = await self._known(request)
            if known is not None:
                return known
            if request.only_if_cached:
                raise NothingCached
        digest = digest_of(request.content_type, request.body)
        claim = Claim(
            request.account,
            request.key,
            new_run(self._now()),
            deadline_in=self._settings.start_deadline,
            patience=self._settings.patience,
            input=request.body,
            input_type=request.content_type,
            digest=digest,
        )
        task, began = await self._journal.claim(claim)
        self.figures.started(joined=not began)
        if not began:
            self._check_input(task, digest)
            return Outcome(task, joined=True)
        task, _ = await self._journal.announce(task)
        self._journal.note_soon(task)
        assert self._dispatcher is not None
        self._dispatcher.dispatch(task)
        return Outcome(task)

    @staticmethod
    def _check_input(task: Task, digest: bytes) -> None:
        if digest and task.digest and digest != task.digest:
            raise OtherInput(task)

    async def _known(self, request: StartRequest) -> Outcome | None:
        """Return the live run, or a result that is young enough; None if there is neither."""
        task = await self._tasks.get(request.account, request.key)
        if task is None:
            return None
        if not task.is_done:
            self._check_input(task, digest_of(request.content_type, request.body))
            return Outcome(task, joined=True)
        if task.state is not TaskState.COMPLETED or task.ended_at is None:
            return None
        age = max(0.0, self._now() - task.ended_at)
        if request.max_age is not None and age > request.max_age:
            return None
        return Outcome(task, joined=True, age=age)

    def get(
        self, account: str, key: str, wait: float = 0.0, grant: Grant = OPEN
    ) -> Deferred[Outcome]:
        """
        Return a task, when it has ended or the wait is over.

        Args:
            account: The account.
            key: The key of the task.
            wait: Seconds.
            grant: What the client may do; one that may start it may also read it.

        Raises:
            UnknownTask: There is none.
        """
        return Deferred.fromCoroutine(self._get(account, key, wait, grant))

    async def _get(self, account: str, key: str, wait: float, grant: Grant) -> Outcome:
        if not grant.allows(Action.START, account):
            grant.check(Action.SUBSCRIBE, account)
        hold = await self._hold(account, key) if wait > 0 else None
        try:
            task = await self._tasks.get(account, key)
            if task is None:
                raise UnknownTask
            return await self._ended(Outcome(task, joined=True), hold, wait)
        finally:
            self._let_go(hold)

    async def _hold(self, account: str, key: str) -> Hold:
        """Subscribe to what a task's account is sent, before its row is read."""
        hold = Hold(await self._hub.admit(account), key)
        self._holds.add(hold)
        return hold

    def _let_go(self, hold: Hold | None) -> None:
        if hold is not None:
            self._holds.discard(hold)
            hold.cancel()

    async def _ended(self, outcome: Outcome, hold: Hold | None, wait: float) -> Outcome:
        """Return the outcome when its task has ended, or as it is when the wait is over."""
        task = outcome.task
        if task.is_done or hold is None or self._is_draining:
            return outcome
        waiting = hold.wait(task.run)
        timer = self._clock.callLater(wait, hold.give_up)
        try:
            event = await waiting
        finally:
            if timer.active():
                timer.cancel()
        if event is not None:
            return outcome._replace(task=replace(ended(task, event), ended_at=self._now()))
        row = await self._tasks.get(task.account, task.key)
        return outcome._replace(task=row) if row is not None and row.run == task.run else outcome

    # Look

    def of_account(self, account: str, *, live_only: bool = False) -> Deferred[list[Task]]:
        """Return the tasks of an account, the live ones first; at most `MAX_LISTED`."""
        found: Deferred[list[Task]]
        found = self._tasks.of_account(account, MAX_LISTED, live_only=live_only)
        return found

    def result(self, task: Task) -> Deferred[Task]:
        """
        Return a completed row with its result, which is read from the history if the row has none.

        Raises:
            ResultGone: The history does not keep it any more.
        """
        return Deferred.fromCoroutine(self._result(task))

    async def _result(self, task: Task) -> Task:
        if task.result is not None or task.state is not TaskState.COMPLETED:
            return task
        cursor = task.cursor
        if cursor is None:
            raise ResultGone(task)
        before = Cursor(cursor.epoch, cursor.seq - 1)
        try:
            events = await self._history.read(task.account, before, cursor.seq, 1)
        except CursorLost:
            raise ResultGone(task) from None
        if not events or events[0].id != task.end_id:
            raise ResultGone(task)
        return replace(task, result=without_member(events[0]))

    # Report and cancel

    def report(self, report: Report, grant: Grant = OPEN) -> Deferred[Reported]:
        """
        Take a report.

        Raises:
            Superseded: It is of another run than the newest one.
            TaskEnded: The run has ended.
            TooLarge: It is a progress with too many bytes.
            InsufficientScope: The grant does not allow to publish to the account.
        """
        return Deferred.fromCoroutine(self._report(report, grant))

    async def _report(self, report: Report, grant: Grant) -> Reported:
        grant.check(Action.PUBLISH, report.draft.account)
        reported: Reported = await _shielded(self._take(report))
        return reported

    async def _take(self, report: Report) -> Reported:
        reported = await self._reports.take(report)
        receipt = reported.receipt
        if report.state.is_done and receipt is not None and not receipt.duplicate:
            self.figures.ended(report.state)
        return reported

    def cancel(self, account: str, key: str) -> Deferred[Task]:
        """
        Ask that a task be canceled.

        One that was not handed over yet is canceled at once.  Any other goes on until its runner
        says that it has ended, which may be with a result.

        Raises:
            UnknownTask: There is none.
            TaskEnded: It has ended.
        """
        return Deferred.fromCoroutine(_shielded(self._cancel(account, key)))

    async def _cancel(self, account: str, key: str) -> Task:
        place = account, key
        task: Task = await self._turns.run(place, lambda: self._ask_to_stop(account, key))
        if self._starter is not None:
            await self._starter.cancel(account, key, task.run)
        return task

    async def _ask_to_stop(self, account: str, key: str) -> Task:
        while True:
            task = await self._tasks.get(account, key)
            if task is None:
                raise UnknownTask
            if task.is_done:
                raise TaskEnded(task)
            if task.input is not None:
                changes = {"error": _CANCELED, "end_id": new_id()}
                changed = await self._journal.finish(task, TaskState.CANCELED, changes)
                if changed is not None:
                    self.figures.ended(TaskState.CANCELED)
                    changed, _ = await self._journal.announce(changed)
                    self._journal.note_soon(changed)
            else:
                changed = await self._tasks.change(task, {"is_cancel_requested": True})
            if changed is not None:
                return changed

    # The instance

    def serve(self) -> None:
        """Begin the sweeps: the store is open."""
        self._is_draining = False
        for task in self._periodic:
            task.start()

    async def drain(self) -> None:
        """Answer those who wait, give up dispatching, and store the progress that waits."""
        self._is_draining = True
        for task in self._periodic:
            task.stop()
        for hold in list(self._holds):
            hold.give_up()
        if self._dispatcher is not None:
            self._dispatcher.stop()
        if IStoppableStarter.providedBy(self._starter):
            await IStoppableStarter(self._starter).stop()
        await self._progress.flush()
        await self._journal.stop()


async def _shielded(work: Any) -> Any:
    """Wait for work that goes on if the one who waits is cancelled."""
    waiting: Deferred[Any] = Deferred()
    done = Deferred.fromCoroutine(work)
    done.addBoth(lambda result: None if waiting.called else waiting.callback(result))
    return await waiting
