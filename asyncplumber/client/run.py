"""
Runs a command as a task: ``asyncplumber run``.

Needs only the standard library.
"""

from __future__ import annotations

import json
import logging
import secrets
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from asyncplumber.client.child import SIGNALED, Child, open_standard_descriptors
from asyncplumber.client.join import UNKNOWN, JoinedRun
from asyncplumber.client.linger import send_later
from asyncplumber.client.outbox import Outbox
from asyncplumber.client.response import Refused, interpret_json
from asyncplumber.client.retry import RetryPolicy, Undelivered
from asyncplumber.client.send import Sender
from asyncplumber.client.task import TaskRun
from asyncplumber.client.task_errors import TEXT_LENGTH

# Together less than a second: what an absent plumber may cost.
START_WAIT = 0.4  # seconds until the command runs although nothing was answered
MINT_WAIT = 0.2  # seconds for the URL that the command may report its progress to
END_WAIT = 0.3  # seconds until the process ends, and another one goes on sending

CALLBACK_VARIABLE = "ASYNCPLUMBER_CALLBACK"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command:
    """
    A command that is to run as a task.

    Attributes:
        account: Who waits for the task.
        key: The name of the task.
        words: The program and its arguments.
        url: Where the plumber is.
        token: The bearer token; None for none.
        deadline: Seconds without a report after which the task counts as lost.
        max_result: The most bytes of its output that are its result; None leaves the output alone.
        linger: Seconds for which another process tries to report the end if this one cannot.
        waits: Whether it waits for a run that is live already.
        env: The environment.
    """

    account: str
    key: str
    words: Sequence[str]
    url: str
    token: str | None
    deadline: float
    max_result: int | None
    linger: float
    waits: bool
    env: Mapping[str, str]


def run(command: Command) -> int:
    """
    Run a command, or join the run that is live.

    Returns:
        The status to end with: that of the command, whatever the plumber does.

    Raises:
        ValueError: The URL or the token cannot be used.
    """
    open_standard_descriptors()
    outbox = Outbox(command.url, token=command.token, exit_timeout=0.0)
    task = _start(outbox, command, _new_run())
    live = task.conflict.task if task.conflict is not None else {}
    if live.get("state") == "submitted":
        # Somebody has started it, and this is what executes it.
        task = _start(outbox, command, live.get("run"))
        live = task.conflict.task if task.conflict is not None else {}
    if live.get("done") is False:
        if not command.waits:
            _log.warning("task %s runs already", command.key)
            return UNKNOWN
        return JoinedRun(command.url, command.token, command.account, command.key).wait()
    if task.told is None:
        _log.warning("the plumber does not take reports now; the command runs all the same")
    if task.canceled:
        task.abort(wait=END_WAIT)
        return SIGNALED + signal.SIGTERM
    return _run(command, task, outbox)


def _start(outbox: Outbox, command: Command, run: str | None) -> TaskRun:
    task = outbox.task(
        command.account,
        command.key,
        run=run,
        deadline=command.deadline,
        beat_interval=command.deadline / 3,
    )
    return task.start(wait=START_WAIT)


def _new_run() -> str:
    """Return the id of a new run, of the server's form."""
    return f"{time.time_ns() // 1_000_000:011x}{secrets.token_hex(4)}"


def _run(command: Command, task: TaskRun, outbox: Outbox) -> int:
    env = dict(command.env)
    url = _callback(command, task, outbox) if task.told is not None else None
    if url is not None:
        env[CALLBACK_VARIABLE] = url
    child = Child(command.words, env, command.max_result)
    task.on_cancel = child.terminate
    status = child.run()
    if not _end(task, child, status):
        waiting = outbox.hand_over()
        if waiting and command.linger > 0:
            try:
                send_later(command.url, waiting, command.linger)
            except OSError as error:
                _log.warning("the end of the task is not reported: %s", error)
        elif waiting:
            _log.warning("the end of the task is not reported: the plumber does not answer")
    return status


def _end(task: TaskRun, child: Child, status: int) -> bool:
    """Report how the command has ended; return whether the plumber knows it."""
    if status:
        error = _error(child, status)
        if child.is_told_to_stop or child.signals:
            return task.abort(error, wait=END_WAIT)
        return task.fail(error, wait=END_WAIT)
    if child.stdout is None and child.stdout_size:
        message = f"the command printed {child.stdout_size} bytes, which is too much for a result"
        error = {"type": "too-large", "message": message, "size": child.stdout_size}
        return task.fail({**error, "code": 0, "end": child.stdout_end}, wait=END_WAIT)
    result, content_type = _result(child.stdout or b"")
    return task.complete(result, content_type=content_type, wait=END_WAIT)


def _error(child: Child, status: int) -> dict[str, Any]:
    """Return the error of a command that failed."""
    message = child.stderr[-TEXT_LENGTH:] or f"the command ended with status {status}"
    error: dict[str, Any] = {"type": "Exit", "code": status, "message": message}
    with suppress(ValueError):
        if status > SIGNALED:
            error["signal"] = signal.Signals(status - SIGNALED).name
    return error


def _result(output: bytes) -> tuple[Any, str | None]:
    """Return what a command printed as a result: JSON if it is that, or text, or bytes."""
    if not output.strip():
        return None, None
    try:
        text = output.decode()
    except UnicodeDecodeError:
        return output, "application/octet-stream"
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text, None
    return output, "application/json"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _callback(command: Command, task: TaskRun, outbox: Outbox) -> str | None:
    """Return a URL that the command may report its progress to; None if there is none."""
    policy = RetryPolicy(timeout=MINT_WAIT, attempts=1, deadline=MINT_WAIT)
    sender = Sender(command.url, token=command.token, retry_policy=policy)
    bound = {"account": command.account, "task": command.key, "run": task.run}
    try:
        minted = sender.exchange(outbox.endpoint.post("callbacks", data=bound), interpret_json)
    except (Refused, Undelivered) as error:
        _log.info("no callback URL: %s", error)
        return None
    finally:
        sender.close()
    url = minted.get("url")
    return url if isinstance(url, str) else None
