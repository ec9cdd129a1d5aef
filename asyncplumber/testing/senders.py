"""Senders for the tests of applications that only send."""

from __future__ import annotations

from collections.abc import Callable
from json import loads
from time import time as time_of_day
from typing import Any, NamedTuple, Self
from urllib.parse import unquote

from asyncplumber.client.beats import Beats
from asyncplumber.client.request import Endpoint
from asyncplumber.client.response import Noted, Refused
from asyncplumber.client.task import TaskRun
from asyncplumber.client.waiting import Entry
from asyncplumber.errors import PlumberError
from asyncplumber.event import Event, checked_account, timestamp
from asyncplumber.sending import DEFAULT_TYPE, Key, Receipt, Time, message
from asyncplumber.wire.parse import drafts_of

EPOCH = "fake"  # the epoch of the cursors


def _data(content_type: str, body: bytes) -> Any:
    if content_type == "application/json":
        return loads(body)
    return body.decode() if content_type.startswith("text/") else body or None


class _Recorder:
    """What the fakes have in common: what was sent, and what is to fail."""

    def __init__(self, *, subscribers: int = 0, now: Callable[[], float] = time_of_day) -> None:
        """
        Args:
            subscribers: How many subscribers each receipt tells of.
            now: Returns the seconds since 1970, for events that say no time.
        """
        #: The events that were sent, as a subscriber gets them.  One that was sent twice with the
        #: same id is there once.
        self.sent: list[Event] = []
        self.subscribers = subscribers
        self._now = now
        self._error: Exception | None = None
        self._failures = 0

    def fail(self, error: Exception, times: int | None = None) -> None:
        """
        Let the next sends fail.

        Args:
            error: What they raise, for example ``asyncplumber.client.Undelivered``.
            times: How many of them; None is all, until ``recover``.
        """
        self._error, self._failures = error, -1 if times is None else times

    def recover(self) -> None:
        """Let no further send fail."""
        self._error = None

    def record(self, account: Key, data: Any, options: dict[str, Any]) -> Receipt:
        """Do what a plumber does with an event.  Arguments and errors are those of a sender."""
        sent = message(account, data, **options)
        if self._error is not None and self._failures:
            self._failures -= 1
            raise self._error
        headers = {name.lower().encode(): value.encode() for name, value in sent.headers.items()}
        try:
            name = checked_account(sent.account)
            drafts = drafts_of(name, headers, sent.body, timestamp(self._now()))
        except PlumberError as error:
            raise Refused(error.status, error.code, error.message) from None
        if len(drafts) != 1:
            raise Refused(200, "no-receipt", "a sender sends one event, and not a batch")
        own = [event for event in self.sent if event.account == name]
        found = next((event for event in own if event.id == sent.id), None)
        event = found or Event.from_draft(drafts[0], EPOCH, len(own) + 1)
        if found is None:
            self.sent.append(event)
        instances = {"ok": int(self.subscribers > 0), "failed": 0}
        return Receipt(event.id, str(event.cursor), found is not None, self.subscribers, instances)


class FakeSender(_Recorder):
    """Stands for an ``asyncplumber.client.Sender``."""

    def send(
        self,
        account: Key,
        data: Any,
        *,
        id: Key | None = None,
        type: str = DEFAULT_TYPE,
        content_type: str | None = None,
        time: Time | None = None,
    ) -> Receipt:
        """Remember the event, or fail as ``fail`` said.  What cannot be sent raises as usual."""
        options = {"id": id, "type": type, "content_type": content_type, "time": time}
        return self.record(account, data, options)

    def close(self) -> None:
        """Do nothing: no connection is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class FakeTreqSender(_Recorder):
    """
    Stands for a ``TreqSender``.

    It can stand for a ``Plumber`` that is only sent to.  There is one difference: what a plumber
    does not accept raises ``Refused`` here, and a ``PlumberError`` there.
    """

    async def send(
        self,
        account: Key,
        data: Any,
        *,
        id: Key | None = None,
        type: str = DEFAULT_TYPE,
        content_type: str | None = None,
        time: Time | None = None,
    ) -> Receipt:
        """Remember the event, or fail as ``fail`` said.  What cannot be sent raises as usual."""
        options = {"id": id, "type": type, "content_type": content_type, "time": time}
        return self.record(account, data, options)


class TaskReport(NamedTuple):
    """
    A report of a task that a ``FakeOutbox`` took.

    Attributes:
        account: Who waits for the task.
        task: The key of the task.
        state: ``started``, ``running``, ``completed``, ``failed`` or ``canceled``.
        data: The progress, the result or the error; None if the report says nothing else.
    """

    account: str
    task: str
    state: str
    data: Any


class _NoBeats:
    def stop(self) -> None:
        """Nothing beats in a test."""


class FakeOutbox(_Recorder):
    """
    Stands for an ``asyncplumber.client.Outbox``.  Nothing waits in it, and its tasks have no beats.

    Attributes:
        dropped: How many events were lost, because they cannot be sent or ``fail`` said so.
        reports: What its tasks reported, in order.
        to_cancel: The keys of the tasks that somebody wants to stop: their next report says so.
    """

    endpoint = Endpoint("http://127.0.0.1:8080", None, None)

    def __init__(self, *, subscribers: int = 0, now: Callable[[], float] = time_of_day) -> None:
        super().__init__(subscribers=subscribers, now=now)
        self.dropped = 0
        self.reports: list[TaskReport] = []
        self.to_cancel: set[str] = set()

    def task(self, account: Any, key: Any, **options: Any) -> TaskRun:
        """Return a run of a task whose reports are remembered; the arguments are the real ones."""
        return TaskRun(self, account, key, **options)

    def report(self, entry: Entry, *, wait: float = 0.0) -> bool:
        """Remember a report; a run calls it."""
        request = entry.request
        account = unquote(request.path.rpartition("/")[2])
        key = request.headers["Task"].encode("latin-1").decode()
        state = request.headers["Task-State"]
        data = _data(request.headers["Content-Type"], request.body)
        self.reports.append(TaskReport(account, key, state, data))
        if entry.settle is not None:
            entry.settle(Noted("fake", state, key in self.to_cancel))
        return True

    def lose(self, id: object, reason: str) -> None:
        """Count what cannot be sent; a run calls it."""
        self.dropped += 1

    def beats(self, beat: Callable[[], None], interval: float) -> Beats:
        """Return beats that never come; a run calls it."""
        return _NoBeats()

    def send(
        self,
        account: Key,
        data: Any,
        *,
        id: Key | None = None,
        type: str = DEFAULT_TYPE,
        content_type: str | None = None,
        time: Time | None = None,
    ) -> None:
        """Remember the event, or count it as lost.  Raises nothing."""
        options = {"id": id, "type": type, "content_type": content_type, "time": time}
        try:
            self.record(account, data, options)
        except Exception:
            self.dropped += 1

    def flush(self, timeout: float | None = None) -> bool:
        """Return that nothing waits."""
        return True

    def close(self, timeout: float | None = None) -> bool:
        """Return that everything was sent."""
        return True
