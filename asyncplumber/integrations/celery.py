"""
Announces the results, failures and progress of Celery tasks to the subscribers of an account.

A task is started for an account by the message header ``account``.  How it ends is then sent to the
subscribers of that account:

- The first attempt is made inside the task, and is short.  So the event is normally kept before
  the task counts as done.  With ``acks_late``, a worker that is killed in between runs the task
  again; the event then has the same id, and is not there twice.
- If the plumber does not respond, the event goes to an outbox, and a thread sends it later.  While
  the outbox has events, all events go through it.  So their order holds, and an absent plumber
  delays one task and not each.
- The outbox is emptied before a process ends.

None of this changes the outcome of a task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from weakref import WeakValueDictionary

from celery import Celery, current_task, signals
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_logger
from celery.utils.saferepr import saferepr
from kombu.utils.json import JSONEncoder

from asyncplumber.client.outbox import EXIT_TIMEOUT, RETRY_POLICY, Outbox
from asyncplumber.client.retry import RetryPolicy
from asyncplumber.sending import Key, json_text

ACCOUNT_HEADER = "account"
INLINE_TIMEOUT = 1.0  # seconds that a task waits for a response
TEXT_LENGTH = 1000  # characters of an error's message, or of the repr of what JSON cannot express

_log = get_logger(__name__)


def for_account(account: Key) -> dict[str, Any]:
    """
    Return the options that start a task for an account.

    For example ``task.apply_async(args, **for_account("42"))``, or ``.set(**for_account("42"))``.
    """
    return {"headers": {ACCOUNT_HEADER: str(account)}}


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
) -> Announcer:
    """
    Announce the tasks of ``app`` from now on.  Call it once, where the app is made.

    Args:
        app: The Celery app.
        url: Where the plumber is; None takes ``ASYNCPLUMBER_URL``.
        token: Sent as ``Authorization: Bearer``; None takes ``ASYNCPLUMBER_TOKEN``.
        headers: Added to each request.
        tracebacks: Whether a failure includes its traceback, which shows your code to subscribers.
        inline_timeout: Seconds that a task waits for a response.
        retry_policy: How long the outbox tries with each event.
        exit_timeout: Seconds that an ending process waits for its outbox.

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
    announcer = Announcer(app, outbox, tracebacks, inline_timeout)
    announcer.connect()
    return announcer


class Announcer:
    """Turns the signals of Celery into events.  ``progress`` is for the tasks themselves."""

    def __init__(
        self, app: Celery, outbox: Outbox, tracebacks: bool, inline_timeout: float
    ) -> None:
        self._app = app
        self._outbox = outbox
        self._tracebacks = tracebacks
        self._inline_timeout = inline_timeout
        # Requests by task id, as long as Celery holds them.  Some failures are signalled without a
        # request: after the task, or by the main process for a child that cannot do it any more.
        self._requests: WeakValueDictionary[str, Any] = WeakValueDictionary()

    def connect(self) -> None:
        """Connect to the signals of Celery."""
        for signal, receiver in (
            (signals.task_received, self._on_received),
            (signals.task_prerun, self._on_prerun),
            (signals.task_success, self._on_success),
            (signals.task_failure, self._on_failure),
            (signals.task_retry, self._on_retry),
            (signals.task_revoked, self._on_revoked),
            (signals.worker_process_shutdown, self._on_shutdown),
            (signals.worker_shutdown, self._on_shutdown),
        ):
            # Before 5.7 Celery takes the same method of two announcers for the same receiver, and
            # ignores the second.
            uid = (id(self), receiver.__name__)
            signal.connect(receiver, weak=False, dispatch_uid=uid)

    def progress(self, data: Any) -> None:
        """
        Tell the subscribers of the running task how far it is.

        Does nothing in a task that was not started for an account.  Raises nothing, except that a
        soft time limit passes through.

        Args:
            data: Anything that JSON can express.
        """
        task = current_task
        if task and not task.request.called_directly:
            self._announce(task, task.request, "progress", "PROGRESS", None, progress=data)

    def _on_received(self, request: Any, **_: Any) -> None:
        self._requests[request.id] = request

    def _on_prerun(self, task_id: str, task: Any, **_: Any) -> None:
        self._requests[task_id] = task.request

    def _on_success(self, sender: Any, result: Any, **_: Any) -> None:
        self._announce(sender, sender.request, "result", "SUCCESS", "SUCCESS", result=result)

    def _on_failure(
        self, sender: Any, task_id: str, exception: BaseException, einfo: Any = None, **_: Any
    ) -> None:
        error = _error(exception)
        if self._tracebacks and einfo is not None:
            error["traceback"] = str(einfo.traceback)
        request = sender.request if sender.request.id == task_id else self._requests.get(task_id)
        if request is not None:
            # The main process has a request class of its own.
            request = Context(request.request_dict) if hasattr(request, "request_dict") else request
            self._announce(sender, request, "failure", "FAILURE", "FAILURE", error=error)

    def _on_retry(self, sender: Any, request: Any, reason: Any = None, **_: Any) -> None:
        cause = getattr(reason, "exc", None)
        error = _error(cause) if isinstance(cause, BaseException) else None
        retries = request.retries
        step = f"RETRY:{retries}"
        self._announce(sender, request, "retry", "RETRY", step, error=error, retries=retries)

    def _on_revoked(
        self, sender: Any, request: Any, terminated: Any = False, expired: Any = False, **_: Any
    ) -> None:
        kind = "Expired" if expired else "Terminated" if terminated else "Revoked"
        error = {"type": kind, "message": f"the task was {kind.lower()}"}
        self._announce(sender, request, "failure", "REVOKED", "REVOKED", error=error)

    def _on_shutdown(self, **_: Any) -> None:
        self._outbox.close()

    def _announce(
        self, task: Any, request: Any, type: str, state: str, step: str | None, **facts: Any
    ) -> None:
        """
        Send one event.

        Args:
            task: The task.
            request: The request that the task runs for.
            type: The type of the event.
            state: The state of the task, in Celery's words.
            step: Part of the event's id, so that it is the same if the task is run again.  None
                makes a new id.
            facts: What else the event says.
        """
        try:
            account = (request.headers or {}).get(ACCOUNT_HEADER)
            if account is None or task.app is not self._app:
                return
            event = self._outbox.endpoint.request(
                str(account),
                _as_json({"task": task.name, "task_id": request.id, "state": state}, facts),
                id=None if step is None else f"{request.id}:{step}",
                type=type,
                content_type="application/json",
                time=datetime.now(UTC),
            )
            # The main process of a worker must not wait for a response.
            inline = bool(current_task) and current_task.request.id == request.id
            self._outbox.put(event, wait=self._inline_timeout if inline else 0.0)
        except SoftTimeLimitExceeded:
            raise
        except Exception:  # must not change the outcome of the task
            _log.exception("cannot announce %s of task %s", state, getattr(request, "id", None))


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


def _as_json(about: dict[str, Any], facts: dict[str, Any]) -> bytes:
    """
    Encode both as one JSON object.

    If JSON cannot express the facts, their reprs take their place, with ``"repr": true`` beside.
    """
    try:
        return json.dumps(
            {**about, **facts}, cls=_Encoder, allow_nan=False, separators=(",", ":")
        ).encode()
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # a value's own code may raise anything
        reprs = {name: saferepr(value, TEXT_LENGTH) for name, value in facts.items()}
        return json.dumps({**about, **reprs, "repr": True}, separators=(",", ":")).encode()


def _error(exception: BaseException) -> dict[str, str]:
    """Return type and message of an exception."""
    # Celery wraps an exception that cannot be pickled, and keeps the name of its type beside.
    name = getattr(exception, "exc_cls_name", type(exception).__name__)
    try:
        message = str(exception)
    except Exception:  # its own code may raise anything
        message = ""
    return {"type": name, "message": message[:TEXT_LENGTH]}
