"""
Tasks: what an account waits for, and the runs that execute them.

A *task* is named by a key within its account.  A *run* is one execution of it.  There is at most
one live run of a task, and each run has exactly one end.  `TRANSITIONS` has all transitions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from hashlib import sha256
from secrets import token_hex

from asyncplumber.errors import IllegalTransition
from asyncplumber.event import Cursor, Draft

KEY_LENGTH = 256  # characters of a task's key, and of a run's id
FORMER_RUNS = 8  # ids of earlier runs that a row remembers, to know their late reports by
START_DEADLINE = 600.0  # seconds in which somebody has to report that a run began
PATIENCE = 900.0  # seconds of silence after which a run counts as lost
PROGRESS_INTERVAL = 0.5  # seconds between two progress events of one task
HOLD = 25.0  # seconds for which a start waits for the end; many proxies give up after 30
TASK_AGE = 86_400.0  # seconds that a task is kept after its end
DISPATCH_LEASE = 15.0  # seconds for which one instance dispatches a run alone
MAX_PROGRESS_BYTES = 64 * 1024  # of one progress report
MAX_ROW_RESULT_BYTES = 64 * 1024  # a larger result is in the history only
NEVER = 0.0  # as patience: the run is never lost


class TaskState(Enum):
    """
    How far a run is.

    Values are the words of the wire.  New words may be added one day: clients look at ``done``.
    """

    SUBMITTED = "submitted"  # nobody has reported that it began
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    LOST = "lost"  # nobody reports any more

    @property
    def is_done(self) -> bool:
        """Whether the run has ended."""
        return self not in (TaskState.SUBMITTED, TaskState.RUNNING)

    @property
    def event_type(self) -> str:
        """The type of the event that says that a run came to this state."""
        return f"task.{'started' if self is TaskState.RUNNING else self.value}"


PROGRESS_TYPE = "task.progress"  # the type of an event of a run that goes on

_ENDS = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELED})
# All transitions within one run.  A run that was lost may still end: a result beats a guess.
TRANSITIONS: Mapping[TaskState, frozenset[TaskState]] = {
    TaskState.SUBMITTED: frozenset({TaskState.RUNNING, TaskState.LOST, *_ENDS}),
    TaskState.RUNNING: frozenset({TaskState.LOST, *_ENDS}),
    TaskState.LOST: _ENDS,
    TaskState.COMPLETED: frozenset(),
    TaskState.FAILED: frozenset(),
    TaskState.CANCELED: frozenset(),
}

_WORDS: Mapping[TaskState, tuple[str, ...]] = {
    TaskState.SUBMITTED: ("submitted", "queued", "pending", "starting"),
    TaskState.RUNNING: (
        "running",
        "started",
        "working",
        "in_progress",
        "processing",
        "progress",
        "retry",
    ),
    TaskState.COMPLETED: ("completed", "done", "success", "succeeded", "finished"),
    TaskState.FAILED: ("failed", "failure", "error"),
    TaskState.CANCELED: ("canceled", "cancelled", "revoked", "stopped", "aborted"),
}
_STATES = {word: state for state, words in _WORDS.items() for word in words}
_BEGINNINGS = frozenset({*_WORDS[TaskState.SUBMITTED], "started"})


def state_of(word: str) -> TaskState | None:
    """
    Return the state that a sender's word stands for, None if it is none.

    Celery, RQ, Replicate, A2A, OpenAI and GitHub each have words of their own.  Nobody reports that
    a run is lost: the server says so.
    """
    return _STATES.get(word.strip().lower())


def is_beginning(word: str) -> bool:
    """Return whether a sender's word says that a run begins, and not only that one goes on."""
    return word.strip().lower() in _BEGINNINGS


@dataclass(frozen=True, slots=True)
class Task:
    """
    A task, as far as its newest run is.  This is the row of a store.

    Times are in seconds since 1970, by the store's clock.

    The row is written before the event that tells of it is in the history.  So whoever subscribes
    to the account and then reads a live row is sent the event of its end.

    Attributes:
        account: The account that waits for it.
        key: Its name within the account.
        run: Its newest run.
        state: How far the run is.
        submitted_at: When the run was claimed.
        updated_at: When the row was last changed.
        started_at: When the first report of its work came; None before.
        ended_at: When it ended; None before.
        deadline: When it counts as lost unless a report comes; None if never, or if it has ended.
        patience: Seconds by which each report moves the deadline; `NEVER` for never lost.
        progress: The payload (see `Draft`) of the last progress; None if there was none.
        progressed_at: When that came in, by the clock of the instance that took it.
        result: The payload of its result; None if it has none, or if only the history has it.
        result_type: The content type of the result.
        error: Why it has no result: a JSON object with ``type`` and ``message``.  None unless it
            failed, was canceled or lost.
        cursor: Where in the account's history the newest event is that this row includes; None if
            that is not known.
        is_announced: Whether the event of its state is in the history.
        is_late: Whether it had been lost before it ended.
        is_cancel_requested: Whether somebody asked it to stop.
        digest: See `digest_of`.
        input: What it was started with, until it is dispatched; None after that, and if nobody is
            to dispatch it.
        input_type: The content type of the input.
        attempts: How often its dispatch failed.
        former: The ids of runs before this one, the newest first, at most `FORMER_RUNS`.
        end_id: The id of the event of its end; empty before.
    """

    account: str
    key: str
    run: str
    state: TaskState
    submitted_at: float
    updated_at: float
    started_at: float | None = None
    ended_at: float | None = None
    deadline: float | None = None
    patience: float = PATIENCE
    progress: bytes | None = None
    progressed_at: float = 0.0
    result: bytes | None = None
    result_type: str = ""
    error: bytes | None = None
    cursor: Cursor | None = None
    is_announced: bool = False
    is_late: bool = False
    is_cancel_requested: bool = False
    digest: bytes = b""
    input: bytes | None = None
    input_type: str = ""
    attempts: int = 0
    former: tuple[str, ...] = ()
    end_id: str = ""

    @property
    def is_done(self) -> bool:
        """Whether its run has ended."""
        return self.state.is_done

    def check(self, state: TaskState) -> None:
        """Raise `IllegalTransition` if its run cannot come to this state."""
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransition(f"run {self.run}", self.state, state)

    def with_cursor(self, cursor: Cursor) -> Task:
        """Return the row with the place of the event that tells of its state."""
        return replace(self, cursor=cursor, is_announced=True)


@dataclass(frozen=True, slots=True)
class StartRequest:
    """
    A wish that a task be done.

    Attributes:
        account: Who waits for it.
        key: Its name.
        content_type: That of the input.
        body: The input; empty joins any live run.
        max_age: Seconds that a completed run may be old to be the answer; None: none may.
        only_if_cached: Whether no run may begin.
        is_once: Whether the key names this request, as ``Idempotency-Key`` does.  Then another
            input is refused also if it has completed.
    """

    account: str
    key: str
    content_type: str = ""
    body: bytes = b""
    max_age: float | None = None
    only_if_cached: bool = False
    is_once: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """
    What a runner says about a run.

    Attributes:
        draft: Its payload, id, time and account.  Its type and key are replaced.
        key: The key of the task.
        state: The state that it reports.
        run: The run that it means; None for the newest one.
        begins: Whether it says that a run begins; see `is_beginning`.
        is_beat: Whether it has no body: it only says that the run goes on.
        patience: The new patience in seconds; None leaves it as it is.
    """

    draft: Draft
    key: str
    state: TaskState
    run: str | None = None
    begins: bool = False
    is_beat: bool = False
    patience: float | None = None


def new_run(now: float, random: str = "") -> str:
    """Return the id of a new run: the milliseconds since 1970, and something random."""
    return f"{round(now * 1000):011x}{random or token_hex(4)}"


def end_key(run: str) -> str:
    """
    Return the key that the end of a run has in the history.

    The history keeps one event for a key.  So an end that is appended again, after a crash or by
    another instance, is the same event.  No client can send such a key: ids have no control
    characters.
    """
    return f"\x1f{run}\x1fend"


def late_key(run: str) -> str:
    """Return the key of the one end that may follow after a run was lost."""
    return f"\x1f{run}\x1flate"


def began_key(run: str, state: TaskState) -> str:
    """Return the key of the event that says that a run was submitted or started."""
    return f"\x1f{run}\x1f{state.value}"


def state_key(task: Task) -> str:
    """Return the key of the event that tells of a row's state."""
    if not task.is_done:
        return began_key(task.run, task.state)
    return late_key(task.run) if task.is_late else end_key(task.run)


def digest_of(content_type: str, body: bytes) -> bytes:
    """Return that by which two inputs are compared; empty for no input, which joins any."""
    if not body:
        return b""
    return sha256(b"%d\n%b%b" % (len(content_type), content_type.encode(), body)).digest()
