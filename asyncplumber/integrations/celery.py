"""
Makes a Celery worker announce what becomes of its tasks.

A task that is started for an account, with the message header ``account``, tells the subscribers of
that account how it ended.  The first attempt to send is made in line and is short: normally the
event is kept before the task counts as done, so that with ``acks_late`` a worker killed in between
runs the task again, and the same event id keeps the result from being there twice.  If the plumber
does not answer, the event goes to an outbox, and a thread sends it when the plumber is back; as
long as anything is in the outbox everything goes through it, so order holds and a task is held up
once, not each.  The outbox is emptied before a process ends.  None of this changes the outcome of a
task.
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

from asyncplumber.client.outbox import EXIT, PATIENCE, Outbox
from asyncplumber.client.retry import Account, RetryPolicy, plain

ACCOUNT_HEADER = "account"
TEXT_LENGTH = 1000  # characters of an error's message, or of the repr of what JSON cannot express
STALL = 1.0  # seconds without an answer after which a task is held up no longer

_log = get_logger(__name__)


def for_account(account: Account) -> dict[str, Any]:
    """
    The options that start a task for an account: ``task.apply_async(args, **for_account("42"))``,
    or ``.set(…)``.
    """
    return {"headers": {ACCOUNT_HEADER: str(account)}}


def announce(
    app: Celery,
    url: str | None = None,
    *,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
    tracebacks: bool = False,
    stall: float = STALL,
    retry_policy: RetryPolicy = PATIENCE,
    flush: float = EXIT,
) -> Announcer:
    """
    From now on, announce what becomes of the tasks of `app` that were started for an account.

    `url` and `token` default to ``ASYNCPLUMBER_URL`` and ``ASYNCPLUMBER_TOKEN``; `headers` are
    added to each request. `tracebacks`: send them with failures; they tell the subscribers about
    your code.  `stall`: seconds that a task waits for an answer.  `retry_policy`: how long the
    outbox tries with each event.  `flush`: seconds that an ending process waits.

    Call it once, where the app is made.  Raises ValueError for a URL, token or header that cannot
    be used.
    """
    outbox = Outbox(
        url,
        token=token,
        headers=headers,
        retry_policy=retry_policy,
        exit_timeout=flush,
        stall=stall,
    )
    announcer = Announcer(app, outbox, tracebacks)
    announcer.listen()
    return announcer


class Announcer:
    """Turns Celery's signals into events.  `progress` is for the tasks themselves."""

    def __init__(self, app: Celery, outbox: Outbox, tracebacks: bool) -> None:
        self._app = app
        self._outbox = outbox
        self._tracebacks = tracebacks
        # Requests by task id, for as long as Celery holds them: some failures are told without one,
        # after the task or, by the main process, in place of a process that can do so no more.
        self._requests: WeakValueDictionary[str, Any] = WeakValueDictionary()

    def listen(self) -> None:
        """Connect to the signals of Celery."""
        for signal, receiver in (
            (signals.task_received, self._received),
            (signals.task_prerun, self._begun),
            (signals.task_success, self._succeeded),
            (signals.task_failure, self._failed),
            (signals.task_retry, self._retried),
            (signals.task_revoked, self._revoked),
            (signals.worker_process_shutdown, self._ending),
            (signals.worker_shutdown, self._ending),
        ):
            signal.connect(receiver, weak=False)

    def progress(self, data: Any) -> None:
        """
        Tell the subscribers of the running task how far it is; `data` is anything that JSON can
        express.

        Does nothing in a task that was not started for an account.  Raises nothing, but lets a soft
        time limit through.
        """
        task = current_task
        if task and not task.request.called_directly:
            self._event(task, task.request, "progress", "PROGRESS", None, progress=data)

    def _received(self, request: Any, **_: Any) -> None:
        self._requests[request.id] = request

    def _begun(self, task_id: str, task: Any, **_: Any) -> None:
        self._requests[task_id] = task.request

    def _succeeded(self, sender: Any, result: Any, **_: Any) -> None:
        self._event(sender, sender.request, "result", "SUCCESS", "SUCCESS", result=result)

    def _failed(
        self, sender: Any, task_id: str, exception: BaseException, einfo: Any = None, **_: Any
    ) -> None:
        error = _error(exception)
        if self._tracebacks and einfo is not None:
            error["traceback"] = str(einfo.traceback)
        request = sender.request if sender.request.id == task_id else self._requests.get(task_id)
        if request is not None:
            # The main process has its own kind of request.
            request = Context(request.request_dict) if hasattr(request, "request_dict") else request
            self._event(sender, request, "failure", "FAILURE", "FAILURE", error=error)

    def _retried(self, sender: Any, request: Any, reason: Any = None, **_: Any) -> None:
        cause = getattr(reason, "exc", None)
        error = _error(cause) if isinstance(cause, BaseException) else None
        self._event(
            sender,
            request,
            "retry",
            "RETRY",
            f"RETRY:{request.retries}",
            error=error,
            retries=request.retries,
        )

    def _revoked(
        self, sender: Any, request: Any, terminated: Any = False, expired: Any = False, **_: Any
    ) -> None:
        kind = "Expired" if expired else "Terminated" if terminated else "Revoked"
        error = {"type": kind, "message": f"the task was {kind.lower()}"}
        self._event(sender, request, "failure", "REVOKED", "REVOKED", error=error)

    def _ending(self, **_: Any) -> None:
        self._outbox.close()

    def _event(
        self, task: Any, request: Any, type: str, state: str, step: str | None, **said: Any
    ) -> None:
        """
        Send one event; `step` makes its id the same when the task is run again, None makes it a new
        one.
        """
        try:
            account = (request.headers or {}).get(ACCOUNT_HEADER)
            if account is None or task.app is not self._app:
                return
            post = self._outbox.address.post(
                str(account),
                _as_json({"task": task.name, "task_id": request.id, "state": state}, said),
                id=None if step is None else f"{request.id}:{step}",
                type=type,
                content_type="application/json",
                time=datetime.now(UTC),
            )
            # The main process of a worker has other things to do than to wait for an answer.
            running = bool(current_task) and current_task.request.id == request.id
            self._outbox.put(post, in_line=running)
        except SoftTimeLimitExceeded:
            raise
        except Exception:  # the outcome of the task is not ours to change
            _log.exception("cannot announce %s of task %s", state, getattr(request, "id", None))


class _Encoder(JSONEncoder):
    """
    Kombu's, without the marks that are for its own decoder: a browser has more use for the bare
    value.
    """

    def default(self, o: Any) -> Any:
        if not hasattr(o, "__json__"):
            with suppress(TypeError):
                return plain(o)  # of a UUID kombu would make an object
        said = super().default(o)
        if isinstance(said, dict) and said.keys() == {"__type__", "__value__"}:
            return said["__value__"]
        return said


def _as_json(about: dict[str, Any], said: dict[str, Any]) -> bytes:
    """
    UTF-8.  Where JSON cannot express what is said, its repr stands there, and the member ``"repr":
    true`` beside it.
    """
    try:
        return json.dumps(
            {**about, **said}, cls=_Encoder, allow_nan=False, separators=(",", ":")
        ).encode()
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # a value's own code may raise anything
        reprs = {name: saferepr(value, TEXT_LENGTH) for name, value in said.items()}
        return json.dumps({**about, **reprs, "repr": True}, separators=(",", ":")).encode()


def _error(exception: BaseException) -> dict[str, str]:
    """
    Type and message.  An exception that cannot be pickled comes wrapped, with the name of its type
    beside.
    """
    name = getattr(exception, "exc_cls_name", type(exception).__name__)
    try:
        message = str(exception)
    except Exception:  # its own code may raise anything
        message = ""
    return {"type": name, "message": message[:TEXT_LENGTH]}
