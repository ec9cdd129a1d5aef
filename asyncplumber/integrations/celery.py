"""
Reports Celery tasks to the subscribers of an account.

A task is started for an account by the message header ``account``, and has a name there by the
header ``plumber_task``; without one, its Celery id is its name.  Its life is then reported: it is
started, goes on, makes progress, and completes, fails or is canceled.  A task that Celery tries
again is still the same run.

- An outbox sends the reports, in order.  A task waits for a moment until its end is kept, and does
  not wait if the plumber is away.  With ``acks_late``, a worker that is killed before that runs the
  task again; that is the same run, and has one end.
- The outbox is emptied before a process ends.

None of this changes the outcome of a task.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import wraps
from typing import Any
from weakref import WeakValueDictionary

from celery import Celery, current_task, signals, states
from celery.app.task import Context
from celery.exceptions import Ignore, SoftTimeLimitExceeded
from celery.utils.log import get_logger
from celery.utils.saferepr import saferepr
from kombu.utils.json import JSONEncoder

from asyncplumber.client.outbox import EXIT_TIMEOUT, RETRY_POLICY, Outbox
from asyncplumber.client.reports import BEAT_INTERVAL, DEADLINE
from asyncplumber.client.retry import RetryPolicy
from asyncplumber.client.task import TaskRun
from asyncplumber.client.task_errors import TEXT_LENGTH, error_of
from asyncplumber.sending import ACCOUNT_HEADER, TASK_HEADER, Key, json_text

INLINE_TIMEOUT = 1.0  # seconds that a task waits until its end is kept
_JSON = "application/json"
QUEUE_TIME = 600.0  # seconds that a task which is tried again may wait for a worker

_log = get_logger(__name__)


class Canceled(Ignore):  # type: ignore[misc]
    """
    Somebody asked the task to stop; see ``Announcer.progress``.

    Celery gives a task that it leaves no other end than the one that was stored before.
    """


def for_account(account: Key, task: Key | None = None) -> dict[str, Any]:
    """
    Return the options that start a task for an account.

    For example ``task.apply_async(args, **for_account("42"))``, or ``.set(**for_account("42"))``.

    Args:
        account: The account.
        task: The name that the task has there; None for its Celery id.
    """
    headers = {ACCOUNT_HEADER: str(account)}
    if task is not None:
        headers[TASK_HEADER] = str(task)
    return {"headers": headers}


def announce(
    app: Celery,
    url: str | None = None,
    *,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
    tracebacks: bool = False,
    inline_timeout: float = INLINE_TIMEOUT,
    retry_policy: RetryPolicy = RETRY_POLICY,
    exit_timeout: float = EXIT_TIMEOUT,
    deadline: float = DEADLINE,
    beat_interval: float = BEAT_INTERVAL,
) -> Announcer:
    """
    Report the tasks of ``app`` from now on.  Call it once, where the app is made.

    Args:
        app: The Celery app.
        url: Where the plumber is; None takes ``ASYNCPLUMBER_URL``.
        token: Sent as ``Authorization: Bearer``; None takes ``ASYNCPLUMBER_TOKEN``.
        headers: Added to each request.
        tracebacks: Whether a failure includes its traceback, which shows your code to subscribers.
        inline_timeout: Seconds that a task waits at most until its end is kept.
        retry_policy: How long the outbox tries with each report.
        exit_timeout: Seconds that an ending process waits for its outbox.
        deadline: Seconds without a report after which a running task counts as lost.
        beat_interval: Seconds between two reports that a task goes on.

    Raises:
        ValueError: The URL, the token or a header cannot be used.
    """
    outbox = Outbox(
        url,
        token=token,
        headers=headers,
        retry_policy=retry_policy,
        exit_timeout=exit_timeout,
    )
    announcer = Announcer(
        app,
        outbox,
        inline_timeout=inline_timeout,
        tracebacks=tracebacks,
        deadline=deadline,
        beat_interval=beat_interval,
    )
    announcer.connect()
    return announcer


class Announcer:
    """Turns the signals of Celery into reports.  Its public methods are for the tasks."""

    def __init__(self, app: Celery, outbox: Outbox, inline_timeout: float, **options: Any) -> None:
        self._app = app
        self._outbox = outbox
        self._inline_timeout = inline_timeout
        self._options = options
        self._tracebacks: bool = options["tracebacks"]
        # Requests by task id, as long as Celery holds them.  Some failures are signalled without a
        # request: after the task, or by the main process for a child that cannot do it any more.
        self._requests: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._runs: dict[str, TaskRun] = {}  # by task id: what this process executes now

    def connect(self) -> None:
        """Connect to the signals of Celery."""
        for signal, receiver in (
            (signals.task_received, self._on_received),
            (signals.task_prerun, self._on_prerun),
            (signals.task_success, self._on_success),
            (signals.task_failure, self._on_failure),
            (signals.task_retry, self._on_retry),
            (signals.task_revoked, self._on_revoked),
            (signals.task_postrun, self._on_postrun),
            (signals.worker_process_shutdown, self._on_shutdown),
            (signals.worker_shutdown, self._on_shutdown),
        ):
            # Before 5.7 Celery takes the same method of two announcers for the same receiver, and
            # ignores the second.
            uid = (id(self), receiver.__name__)
            signal.connect(receiver, weak=False, dispatch_uid=uid)

    # For tasks

    @property
    def canceled(self) -> bool:
        """Whether somebody asked the running task to stop.  False outside of a task."""
        run = self._current()
        return run is not None and run.canceled

    def progress(self, data: Any, *, raise_on_cancel: bool = False) -> None:
        """
        Tell the subscribers of the running task how far it is.

        Does nothing in a task that was not started for an account.  ``update_state`` does the same
        with its ``meta``.

        Args:
            data: Anything that JSON can express.
            raise_on_cancel: Whether to raise if somebody asked the task to stop.

        Raises:
            Canceled: Somebody did, and ``raise_on_cancel`` is true.  If it leaves the task, Celery
                counts the task as revoked.
            SoftTimeLimitExceeded: It passes through.
        """
        run = self._current()
        if run is None:
            return
        self._tell(
            current_task.request.id, lambda: run.progress(_as_json(data), content_type=_JSON)
        )
        if raise_on_cancel and run.canceled:
            task = current_task
            store = not task.ignore_result
            task.backend.mark_as_revoked(task.request.id, "canceled", task.request, store)
            raise Canceled("somebody asked the task to stop")

    send_progress = progress

    def _current(self) -> TaskRun | None:
        task = current_task
        if not task or task.request.called_directly:
            return None
        return self._runs.get(task.request.id)

    # Signals

    def _on_received(self, request: Any, **_: Any) -> None:
        self._requests[request.id] = request

    def _on_prerun(self, task_id: str, task: Any, **_: Any) -> None:
        self._requests[task_id] = task.request
        self._tell(task_id, lambda: self._begin(task_id, task))

    def _begin(self, task_id: str, task: Any) -> None:
        run = self._run_of(task, task.request)
        if run is not None:
            self._runs[task_id] = run
            self._follow_states(task)
            run.start()

    def _on_success(self, sender: Any, result: Any, **_: Any) -> None:
        self._end(
            sender,
            sender.request,
            lambda run, wait: run.complete(_as_json(result), wait=wait, content_type=_JSON),
        )

    def _on_failure(
        self, sender: Any, task_id: str, exception: BaseException, einfo: Any = None, **_: Any
    ) -> None:
        error = error_of(exception, traceback=False)
        if self._tracebacks and einfo is not None:
            error["traceback"] = str(einfo.traceback)
        request = sender.request if sender.request.id == task_id else self._requests.get(task_id)
        if request is not None:
            # The main process has a request class of its own.
            request = Context(request.request_dict) if hasattr(request, "request_dict") else request
            self._end(sender, request, lambda run, wait: run.fail(error, wait=wait))

    def _on_retry(self, sender: Any, request: Any, reason: Any = None, **_: Any) -> None:
        cause = getattr(reason, "exc", None)
        told: dict[str, Any] = {"retry": request.retries + 1}
        if isinstance(cause, BaseException):
            told["error"] = error_of(cause, traceback=False)
        patience = _seconds_until(getattr(reason, "when", None)) + QUEUE_TIME
        self._tell(request.id, lambda: self._pause(request.id, told, patience))

    def _pause(self, task_id: str, told: dict[str, Any], patience: float) -> None:
        """Report that the run goes on later, in this process or in another one."""
        run = self._runs.pop(task_id, None)
        if run is not None:
            run.pause(_as_json(told), deadline=patience, content_type=_JSON)

    def _on_revoked(
        self, sender: Any, request: Any, terminated: Any = False, expired: Any = False, **_: Any
    ) -> None:
        kind = "Expired" if expired else "Terminated" if terminated else "Revoked"
        error = {"type": kind, "message": f"the task was {kind.lower()}"}
        self._end(sender, request, lambda run, wait: run.abort(error, wait=wait))

    def _on_postrun(
        self, task_id: str, task: Any, retval: Any = None, state: str | None = None, **_: Any
    ) -> None:
        """End what no other signal has ended: a task that is canceled, ignored or rejected."""
        run = self._runs.get(task_id)
        if run is None:
            return
        if state == states.IGNORED:
            kind = "Canceled" if isinstance(retval, Canceled) else "Ignored"
            error = {"type": kind, "message": f"the task was {kind.lower()}"}
            self._end(task, task.request, lambda run, wait: run.abort(error, wait=wait))
        elif state == states.REJECTED:  # the broker may send it again
            self._tell(task_id, lambda: self._pause(task_id, {"rejected": True}, QUEUE_TIME))
        else:  # this process is told to end, and the main process knows why
            self._runs.pop(task_id).stop_beats()

    def _on_shutdown(self, **_: Any) -> None:
        self._outbox.close()

    # Reports

    def _run_of(self, task: Any, request: Any) -> TaskRun | None:
        """Return a run for a request, None if it is not for an account, or of another app."""
        headers = request.headers or {}
        account = headers.get(ACCOUNT_HEADER)
        if account is None or task.app is not self._app:
            return None
        key = headers.get(TASK_HEADER) or request.id
        return self._outbox.task(str(account), str(key), run=request.id, **self._options)

    def _end(self, task: Any, request: Any, end: Callable[[TaskRun, float], object]) -> None:
        def tell() -> None:
            run = self._runs.pop(request.id, None) or self._run_of(task, request)
            if run is not None:
                # The main process of a worker must not wait.
                is_own = bool(current_task) and current_task.request.id == request.id
                end(run, self._inline_timeout if is_own else 0.0)

        self._tell(request.id, tell)

    def _tell(self, task_id: Any, tell: Callable[[], None]) -> None:
        try:
            tell()
        except SoftTimeLimitExceeded:
            raise
        except Exception:  # must not change the outcome of the task
            _log.exception("cannot report task %s", task_id)

    def _follow_states(self, task: Any) -> None:
        """Make ``update_state`` of a task report its ``meta`` as progress."""
        update_state = task.update_state
        if getattr(update_state, "announcer", None) is self:
            return

        @wraps(update_state)
        def reporting(
            task_id: str | None = None,
            state: str | None = None,
            meta: Any = None,
            *more: Any,
            **named: Any,
        ) -> None:
            update_state(task_id, state, meta, *more, **named)
            if meta is not None and state not in states.READY_STATES:
                run = self._runs.get(task.request.id if task_id is None else task_id)
                if run is not None:
                    self._tell(task_id, lambda: run.progress(_as_json(meta), content_type=_JSON))

        reporting.announcer = self  # type: ignore[attr-defined]
        task.update_state = reporting


class _Encoder(JSONEncoder):
    """Kombu's encoder without the marks for its own decoder: a browser needs the bare value."""

    def default(self, o: Any) -> Any:
        if not hasattr(o, "__json__"):
            with suppress(TypeError):
                return json_text(o)  # kombu would make an object of a UUID
        value = super().default(o)
        if isinstance(value, dict) and value.keys() == {"__type__", "__value__"}:
            return value["__value__"]
        return value


def _as_json(value: Any) -> bytes:
    """Encode as JSON.  What JSON cannot express is an object with its ``repr``."""
    try:
        return json.dumps(value, cls=_Encoder, allow_nan=False, separators=(",", ":")).encode()
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # a value's own code may raise anything
        return json.dumps({"repr": saferepr(value, TEXT_LENGTH)}).encode()


def _seconds_until(when: Any) -> float:
    """Return the seconds until Celery tries a task again: it says seconds, or a time."""
    if isinstance(when, datetime):
        now = datetime.now(when.tzinfo or UTC)
        return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - now).total_seconds())
    return float(when) if isinstance(when, int | float) else 0.0
