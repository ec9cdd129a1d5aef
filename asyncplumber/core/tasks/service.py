"""What the ways in ask of tasks: start or join, look, wait, report, cancel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from asyncplumber.concurrency import PeriodicTask
from asyncplumber.core.hub import Hub
from asyncplumber.core.intake import Intake
from asyncplumber.core.tasks.callback_urls import CallbackMint
from asyncplumber.core.tasks.dispatcher import Dispatcher
from asyncplumber.core.tasks.errors import (
    NoStarter,
    NothingCached,
    OtherInput,
    TaskEnded,
    UnknownTask,
)
from asyncplumber.core.tasks.figures import TaskFigures
from asyncplumber.core.tasks.holds import Hold
from asyncplumber.core.tasks.journal import Journal
from asyncplumber.core.tasks.outcomes import Outcome, Reported
from asyncplumber.core.tasks.progress import ConflatedProgress
from asyncplumber.core.tasks.renewals import Renewals
from asyncplumber.core.tasks.reports import Reports
from asyncplumber.core.tasks.results import with_result
from asyncplumber.core.tasks.settings import DEFAULT_SETTINGS, MAX_LISTED, TaskSettings
from asyncplumber.core.tasks.sweeper import FORGET_INTERVAL, SWEEP_INTERVAL, Sweeper
from asyncplumber.core.tasks.turns import Turns, shielded
from asyncplumber.errors import Unavailable
from asyncplumber.event import new_id
from asyncplumber.grant import OPEN, Action, Grant
from asyncplumber.interfaces import (
    Claim,
    IStarter,
    IStoppableStarter,
    IStore,
)
from asyncplumber.task import Report, StartRequest, Task, TaskState, new_run
from asyncplumber.wire.tasks import ended, input_digest

# The digest of a run that was started without an input.  It is no digest of any input; the empty
# one is that of a run that was only reported, whose input nobody knows here.
_NO_INPUT = b"-"
_CANCELED = b'{"type":"canceled","message":"the task was canceled before it began"}'


class Tasks:
    """
    The tasks of an instance.

    A Deferred that a method returns may be cancelled: the client has left.  What it has asked for
    goes on.
    """

    _log = Logger()

    def __init__(
        self,
        store: IStore,
        hub: Hub,
        intake: Intake,
        clock: IReactorTime,
        now: Callable[[], float],
        starter: IStarter | None = None,
        settings: TaskSettings = DEFAULT_SETTINGS,
        callbacks: CallbackMint | None = None,
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
            callbacks: Makes the URLs to which runs are reported; None: there are none.
        """
        self._tasks = store.tasks
        self._history = store.history
        self._hub = hub
        self._clock = clock
        self._now = now
        self._starter = starter
        self._settings = settings
        self._holds: set[Hold] = set()
        self._is_draining = False
        #: What is counted.
        self.figures = TaskFigures(lambda: len(self._holds))
        self._journal = Journal(store.tasks, intake, now, self.figures.ended, callbacks)
        self._turns = Turns()
        self._progress = ConflatedProgress(clock)
        renewals = Renewals(clock.seconds)
        self._reports = Reports(self._journal, self._turns, self._progress, renewals, settings, now)
        self._dispatcher: Dispatcher | None = None
        if starter is not None:
            minting = {}
            if callbacks is not None and getattr(starter, "needs_callback", True):
                minting = {"mint": callbacks.mint}
            self._dispatcher = Dispatcher(
                self._journal,
                starter,
                settings,
                clock,
                now,
                lambda report: shielded(self._reports.take(report)),
                self.figures,
                **minting,
            )
        sweeper = Sweeper(
            self._journal, self._turns, self._dispatcher, store.callback_urls, settings
        )
        self._periodic = [
            PeriodicTask(sweeper.sweep, SWEEP_INTERVAL, clock, now=True),
            PeriodicTask(sweeper.forget, FORGET_INTERVAL, clock),
        ]

    @property
    def hold(self) -> float:
        """Seconds for which a start is held that does not say how long."""
        return self._settings.hold

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
        until = self._until(wait, grant)
        hold = await self._hold(request.account, request.key) if wait > 0 else None
        try:
            outcome = await shielded(self._begin_or_join(request))
            return await self._ended(outcome, hold, until)
        finally:
            self._let_go(hold)

    async def _begin_or_join(self, request: StartRequest) -> Outcome:
        if request.max_age is not None or request.only_if_cached:
            known = await self._known(request)
            if known is not None:
                return known
            if request.only_if_cached:
                raise NothingCached
        digest = input_digest(request.content_type, request.body)
        if self._is_draining:
            raise Unavailable("this instance is about to stop", retry_after=1)
        claim = Claim(
            request.account,
            request.key,
            new_run(self._now()),
            deadline_in=self._settings.start_deadline,
            patience=self._settings.patience,
            input=request.body,
            input_type=request.content_type,
            digest=digest or _NO_INPUT,
        )
        task, began = await self._journal.claim(claim)
        self.figures.started(joined=not began)
        if not began:
            if _is_other(task, digest):
                raise OtherInput(task)
            return Outcome(task, joined=True)
        task, _ = await self._journal.announce(task)
        assert self._dispatcher is not None
        self._dispatcher.dispatch(task)
        return Outcome(task)

    async def _known(self, request: StartRequest) -> Outcome | None:
        """Return the live run, or a result that is young enough; None if there is neither."""
        task = await self._tasks.get(request.account, request.key)
        if task is None:
            return None
        is_other = _is_other(task, input_digest(request.content_type, request.body))
        if not task.is_done:
            if is_other:
                raise OtherInput(task)
            return Outcome(task, joined=True)
        if task.state is not TaskState.COMPLETED or task.ended_at is None:
            return None
        age = max(0.0, self._now() - task.ended_at)
        if request.max_age is not None and age > request.max_age:
            return None
        if is_other:
            if request.is_once:
                raise OtherInput(task)
            return None  # it is the result of another input
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
        until = self._until(wait, grant)
        hold = await self._hold(account, key) if wait > 0 else None
        try:
            task = await self._tasks.get(account, key)
            if task is None:
                raise UnknownTask
            return await self._ended(Outcome(task, joined=True), hold, until)
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

    def _until(self, wait: float, grant: Grant) -> float:
        """Return the time of the clock at which a wait that begins now is over."""
        if grant.until is not None:
            wait = min(wait, grant.until - self._now())  # nothing is told after that
        return self._clock.seconds() + max(wait, 0.0)

    async def _ended(self, outcome: Outcome, hold: Hold | None, until: float) -> Outcome:
        """Return the outcome when its task has ended, or as it is when the wait is over."""
        task = outcome.task
        if hold is None or task.is_done or self._is_draining:
            return outcome
        timer = self._clock.callLater(max(until - self._clock.seconds(), 0.0), hold.give_up)
        try:
            event = await hold.wait(task.run)
            while event is None:
                row = await self._newest(task)
                if row.is_done or hold.is_over:
                    return outcome._replace(task=row)
                event = await hold.wait(task.run)  # some events were missed, but not its end
        finally:
            if timer.active():
                timer.cancel()
        now = self._now()
        return outcome._replace(task=replace(ended(task, event), updated_at=now, ended_at=now))

    async def _newest(self, task: Task) -> Task:
        """Return the row of a run as it is now, or as it was if the store is away."""
        try:
            row: Task | None = await self._tasks.get(task.account, task.key)
        except Unavailable:
            return task  # the client is told that it goes on, as it knew before
        return row if row is not None and row.run == task.run else task

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
        return Deferred.fromCoroutine(with_result(task, self._history))

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
        if self._is_draining:
            raise Unavailable("this instance is about to stop", retry_after=1)
        return await shielded(self._reports.take(report))

    def cancel(self, account: str, key: str) -> Deferred[Task]:
        """
        Ask that a task be canceled.

        One that was not handed over yet is canceled at once.  Any other goes on until its runner
        says that it has ended, which may be with a result.

        Raises:
            UnknownTask: There is none.
            TaskEnded: It has ended.
        """
        return shielded(self._cancel(account, key))

    async def _cancel(self, account: str, key: str) -> Task:
        place = account, key
        task: Task = await self._turns.run(place, lambda: self._ask_to_stop(account, key))
        if self._starter is not None:
            # Nobody waits for that: it may take as long as the application likes.
            self._starter.cancel(account, key, task.run).addErrback(
                lambda failure: self._log.failure("a starter failed to cancel", failure)
            )
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
        if self._dispatcher is not None:
            self._dispatcher.start()
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
        await self._turns.stop()  # first: a report that is being taken may leave a progress
        await self._progress.flush()
        await self._journal.stop()


def _is_other(task: Task, digest: bytes) -> bool:
    """Return whether a task has another input than this one; an empty digest is of no input."""
    return bool(digest and task.digest and digest != task.digest)
