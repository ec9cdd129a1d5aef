"""The boundary to what executes tasks: the application behind ``--starter``, Celery, a callable."""

from __future__ import annotations

from dataclasses import dataclass, field

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface


@dataclass(frozen=True, slots=True)
class Dispatch:
    """
    A run that is to begin.

    Attributes:
        account: Who waits for it.
        task: The key of the task.
        run: The id of the run.  It may come again with the same id: then it is the same run.
        content_type: That of the input; empty for none.
        body: The input.
        callback: The URL to which reports can be POSTed; empty if this instance has none.
    """

    account: str
    task: str
    run: str
    content_type: str
    body: bytes
    callback: str = field(default="", repr=False)  # it is a credential


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is the result: the run is completed."""

    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Later:
    """
    The run has begun, or waits in a queue of the application, and will be reported.

    Attributes:
        deadline_in: Seconds in which the first report has to come; None for the default.
    """

    deadline_in: float | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """
    The application will never do this, or its answer is of no use: the run has failed.

    Attributes:
        status: Of the answer.
        content_type: Of what it says.
        body: What it says.
        type: The type of the run's error.
        message: Its message; empty for one that has the status.
    """

    status: int
    content_type: str
    body: bytes
    type: str = "refused"
    message: str = ""


#: What a starter answers to a `Dispatch`.
Answer = Finished | Later | Refused


class StarterFailed(Exception):
    """
    Nobody knows whether the run has begun: it is dispatched again, with the same id.

    Attributes:
        retry_after: Seconds until then; None leaves that to the caller.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        """``message`` is for the log."""
        super().__init__(message)
        self.retry_after = retry_after


class IStarter(Interface):
    """Begins runs, at least once each."""

    needs_callback = Attribute(
        "bool: whether `Dispatch.callback` is wanted.  A starter without this attribute wants it"
    )

    def start(dispatch: Dispatch) -> Deferred[Answer]:
        """
        Begin a run.

        Raises:
            StarterFailed: Through the Deferred.
        """

    def cancel(account: str, task: str, run: str) -> Deferred[None]:
        """Tell that a run is not wanted any more.  Best effort; never fails."""


class IStoppableStarter(IStarter):
    """A starter that keeps something open."""

    def stop() -> Deferred[None]:
        """Close it.  The instance has stopped to dispatch, and may begin again."""
