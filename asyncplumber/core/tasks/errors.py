"""The errors of tasks that clients see.  Each has the row that explains it."""

from __future__ import annotations

from asyncplumber.errors import PlumberError
from asyncplumber.task import Task


class TaskError(PlumberError):
    """
    A request about a task that is refused.

    Attributes:
        task: The row; None if there is none.
    """

    def __init__(self, task: Task | None = None, message: str | None = None) -> None:
        super().__init__(message)
        self.task = task


class UnknownTask(TaskError):
    """Nobody knows a task by that key, or it was forgotten."""

    status, code, default = 404, "unknown-task", "there is no task with that key"


class NoStarter(TaskError):
    """This server has nothing that executes tasks."""

    status, code, default = 404, "no-starter", "this server starts no tasks; see --starter"


class OtherInput(TaskError):
    """The task is live and was started with another input (RFC 9110, 15.5.21)."""

    status, code, default = 422, "other-input", "this task runs with another input"


class TaskEnded(TaskError):
    """The run has ended, and nothing more of it is taken."""

    status, code, default = 409, "ended", "this run has ended"


class NotEnded(TaskError):
    """The result is wanted, and the run goes on."""

    status, code, default = 409, "not-ended", "this run has not ended; wait for it with ?wait="


class Superseded(TaskError):
    """The report is of another run than the newest one."""

    status, code, default = 409, "superseded", "this is not the newest run of the task"


class NothingCached(TaskError):
    """The client wants no run to begin, and there is no result (RFC 9111, 5.2.1.7)."""

    status, code, default = 504, "nothing-cached", "the task is not live, and has no such result"


class ResultGone(TaskError):
    """The result was too large for the row, and the history has dropped it (RFC 9110, 15.5.11)."""

    status, code, default = 410, "result-gone", "this result is not kept any more"
