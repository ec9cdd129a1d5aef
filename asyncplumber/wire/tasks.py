"""Tasks on the wire: the task object, the member of the envelope, and the headers of a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from asyncplumber.errors import BadRequest
from asyncplumber.event import Cursor, Draft, Event, is_plain, timestamp
from asyncplumber.task import KEY_LENGTH, Task, TaskState, digest_of, is_beginning, state_of
from asyncplumber.wire.json_text import compact
from asyncplumber.wire.payload import TASK_MEMBER, media_type, payload_of

MAX_DEADLINE = 30 * 86_400.0  # seconds: the longest patience that a report can ask for
_encoded = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def member_of(task: Task) -> dict[str, Any]:
    """Return the member ``task`` of an envelope, which says whose event it is."""
    member: dict[str, Any] = {
        "task": task.key,
        "run": task.run,
        "state": task.state.value,
        "done": task.is_done,
    }
    if task.is_late:
        member["late"] = True
    if task.error is not None:
        member["error"] = json.loads(task.error)
    return member


def with_member(payload: bytes, task: Task) -> bytes:
    """Return the payload of an event of a task: that of its runner, and the member ``task``."""
    return b"%b%b%b" % (payload, TASK_MEMBER, _encoded(member_of(task)).encode())


def member_begins(key: str) -> bytes:
    """
    Return bytes that the payload of each event of a task contains.

    Other payloads may contain them as well.
    """
    return _encoded({"task": key})[:-1].encode()


def without_member(event: Event) -> bytes:
    """Return the payload of the runner in an event of a task, as it was before `with_member`."""
    task = event.task
    if task is None:
        return event.payload
    # The member is the last one, and an encoder of the same kind wrote it.
    return event.payload[: -len(TASK_MEMBER) - len(_encoded(task).encode())]


def input_digest(content_type: str, body: bytes) -> bytes:
    """
    Return that by which two inputs of a task are compared; see `digest_of`.

    Space between the tokens of JSON does not count, and neither does the content type that
    ``curl -d`` sends: a page and a shell that start a task with the same value join one run.
    """
    try:
        kind, payload = payload_of(content_type, body)
    except BadRequest:
        return digest_of(content_type, body)
    if not body or not payload.startswith(b'"data":'):
        return digest_of(content_type, body)
    return digest_of(media_type(kind), compact(payload.removeprefix(b'"data":')))


def task_object(task: Task, *, with_result: bool = True) -> bytes:
    """
    Return a task as a JSON object in UTF-8.

    Exactly one of ``result`` (or ``result_base64``) and ``error`` is there when ``done``.  A result
    that only the history has is left out, and ``result_url`` is not: it is the member of responses
    that know their URL.

    Args:
        task: The row.
        with_result: Whether the result is in it.
    """
    fields: dict[str, Any] = {
        "account": task.account,
        "task": task.key,
        "run": task.run,
        "state": task.state.value,
        "done": task.is_done,
        "submitted_at": timestamp(task.submitted_at),
        "started_at": _time(task.started_at),
        "updated_at": timestamp(task.updated_at),
        "ended_at": _time(task.ended_at),
        "deadline": _time(task.deadline),
        "cancel_requested": task.is_cancel_requested,
        "late": task.is_late,
        "cursor": str(task.cursor) if task.cursor is not None else None,
    }
    members = [_encoded(fields).encode()[:-1]]
    if task.progress is not None:
        members.append(b'"progress' + task.progress.removeprefix(b'"data'))
    if task.result is not None and with_result:
        members.append(_encoded({"content_type": task.result_type}).encode()[1:-1])
        members.append(b'"result' + task.result.removeprefix(b'"data'))
    if task.error is not None:
        members.append(b'"error":' + task.error)
    return b",".join(members) + b"}"


def tasks_notice(account: str, cursor: Cursor, objects: Sequence[bytes], *, is_cut: bool) -> bytes:
    """
    Return the notice ``plumber.tasks``, with which a late subscriber learns of all live tasks.

    Args:
        account: The account.
        cursor: Up to where in the history the tasks include what happened.
        objects: The task objects, see `task_object`.
        is_cut: Whether there are more live tasks than these.
    """
    return b'{"type":"plumber.tasks","account":%b,"cursor":null,"data":{%b,"tasks":[%b]}}' % (
        _encoded(account).encode(),
        _encoded({"cursor": str(cursor), "more": is_cut}).encode()[1:-1],
        b",".join(objects),
    )


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else timestamp(seconds)


def error_of(state: TaskState, draft: Draft) -> bytes:
    """
    Return the error of a run, as its runner tells it, as JSON with ``type`` and ``message``.

    Args:
        state: FAILED or CANCELED.
        draft: The report.  An object keeps its members; a text is the message.
    """
    was = "was " if state is TaskState.CANCELED else ""
    default = {"type": state.value, "message": f"the task {was}{state.value}"}
    try:
        return _encoded(_explained(default, draft)).encode()
    except ValueError:  # a number that is too large for Python, or infinite for browsers
        return _encoded(default).encode()


def _explained(default: Mapping[str, Any], draft: Draft) -> dict[str, Any]:
    """Return an error with what its runner tells.  Raises ValueError for a number too large."""
    error, data = dict(default), Event.from_draft(draft, "", 0).data
    if isinstance(data, dict):
        error.update(data)
        for name in ("type", "message"):
            if not isinstance(error[name], str):
                error[name] = _encoded(error[name])
    elif isinstance(data, str) and data.strip():
        error["message"] = data
    elif isinstance(data, bytes) and data:
        error["data_base64"] = draft.payload.partition(b":")[2].strip(b'"').decode()
    elif not isinstance(data, bytes) and data is not None and data != "":
        error["data"] = data
    return error


def ended(task: Task, event: Event) -> Task:
    """
    Return a live row as the event of its end leaves it, without asking the store.

    ``updated_at`` and ``ended_at`` stay as they are in ``task``.
    """
    member = event.task or {}
    state = TaskState(member.get("state", task.state.value))
    changes: dict[str, Any] = {"error": None, "result": None}
    if state is TaskState.COMPLETED:
        changes = {"result": without_member(event), "result_type": event.content_type}
    elif "error" in member:
        changes = {"error": _encoded(member["error"]).encode()}
    return replace(
        task,
        state=state,
        is_late=bool(member.get("late")),
        end_id=event.id,
        deadline=None,
        input=None,
        **changes,
    ).with_cursor(event.cursor)


class TaskFields(NamedTuple):
    """
    What the headers of a report say.

    Attributes:
        key: The key of the task.
        state: The state.
        run: The run; None for the newest one.
        begins: Whether a run begins.
        patience: Seconds of silence until it is lost, 0 for never; None if it is not said.
    """

    key: str
    state: TaskState
    run: str | None
    begins: bool
    patience: float | None


def task_key(text: str) -> str:
    """
    Return the key of a task.

    Raises:
        BadRequest: It is empty, too long, or has control characters.
    """
    if not is_plain(text, KEY_LENGTH):
        raise BadRequest(f"a task is named by 1 to {KEY_LENGTH} characters, none of them control")
    return text


def task_fields(headers: Mapping[bytes, bytes]) -> TaskFields:
    """
    Read ``Task``, ``Task-State``, ``Task-Run`` and ``Task-Deadline``.

    Without ``Task-State`` the report is the result.

    Raises:
        BadRequest: One of them cannot be understood.
    """
    key = task_key(_text(headers, b"task"))
    word = _text(headers, b"task-state") or TaskState.COMPLETED.value
    state = state_of(word)
    if state is None:
        raise BadRequest(
            "Task-State is submitted, running, completed, failed or canceled, or a word for one"
        )
    run = _text(headers, b"task-run") or None
    if run is not None and not is_plain(run, KEY_LENGTH):
        raise BadRequest(f"Task-Run is at most {KEY_LENGTH} characters, none of them control")
    return TaskFields(key, state, run, is_beginning(word), deadline_in(headers))


def deadline_in(headers: Mapping[bytes, bytes]) -> float | None:
    """
    Return the seconds of ``Task-Deadline``, None if it is not there.

    Raises:
        BadRequest: It is no number of seconds.
    """
    text = _text(headers, b"task-deadline")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_DEADLINE:
        raise BadRequest(f"Task-Deadline is a number of seconds from 0 to {MAX_DEADLINE:.0f}")
    return seconds


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str:
    """Return a header that may have UTF-8 in it."""
    try:
        return headers.get(name, b"").decode().strip()
    except UnicodeDecodeError:
        raise BadRequest(f"{name.decode().title()} is UTF-8") from None
