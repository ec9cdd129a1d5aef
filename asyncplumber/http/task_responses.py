"""Where a task is, as a response."""

from __future__ import annotations

import json
from collections.abc import Sequence

from asyncplumber.core.tasks.errors import NotEnded
from asyncplumber.core.tasks.outcomes import Outcome
from asyncplumber.core.tasks.settings import MAX_LISTED
from asyncplumber.http.problems import end_problem, problem, state_headers
from asyncplumber.http.responses import JSON, Response
from asyncplumber.http.task_paths import location_of
from asyncplumber.http.task_requests import Asked
from asyncplumber.sending import is_header_value
from asyncplumber.task import Task, TaskState
from asyncplumber.wire.payload import body_of
from asyncplumber.wire.tasks import task_object

RETRY_AFTER = (b"Retry-After", b"2")  # seconds until a client that polls asks again
MAX_LIST_BYTES = 1024 * 1024  # of the task objects in one list; a single one may be larger
NO_STORE = (b"Cache-Control", b"no-store")
# The body is a stranger's.  If it is a page, its scripts do not run, and it is of no origin.
_HARMLESS = (b"Content-Security-Policy", b"default-src 'none'; sandbox")
_VARY = (b"Vary", b"Prefer")
_OCTETS = b"application/octet-stream"


def started_response(outcome: Outcome, asked: Asked) -> Response:
    """
    Return the response to a start.

    Args:
        outcome: Where the task is.  If it is completed, its row has the result.
        asked: What was asked.
    """
    task = outcome.task
    response = _ended(task) if task.is_done else _live(task, 202)
    headers = [
        *response.headers,
        (b"Task-Joined", b"true" if outcome.joined else b"false"),
        (b"Location", asked.location),
        _VARY,
    ]
    applied = asked.wish.applied(asked.wait, is_later=not task.is_done)
    if applied:
        headers.append((b"Preference-Applied", applied))
    if outcome.age is not None:
        headers.append((b"Age", b"%d" % outcome.age))
    return response._replace(headers=tuple(headers))


def task_response(task: Task, asked: Asked) -> Response:
    """Return the task object; its status says nothing of the task."""
    if task.is_done:
        body = _object(task, asked.location) + b"\n"
        return Response(200, JSON, body, (*state_headers(task), NO_STORE))
    return _live(task, 200)


def result_response(task: Task) -> Response:
    """Return the result itself, or the problem that there is none."""
    if task.is_done:
        return _ended(task)
    response = problem(NotEnded(task))
    return response._replace(headers=(*response.headers, RETRY_AFTER, NO_STORE))


def canceled_response(task: Task, asked: Asked) -> Response:
    """Return the response to a request that a task be canceled."""
    headers = (*state_headers(task), (b"Location", asked.location), NO_STORE)
    return Response(202, JSON, task_object(task) + b"\n", headers)


def list_response(tasks: Sequence[Task], asked: Asked) -> Response:
    """Return a list of task objects; ``more`` says whether some are left out."""
    objects: list[bytes] = []
    size = 0
    for task in tasks:
        location = location_of(asked.root, task.account, task.key)
        text = _object(task, location, with_result=False)
        size += len(text)
        if objects and size > MAX_LIST_BYTES:
            break
        objects.append(text)
    more = len(objects) < len(tasks) or len(tasks) >= MAX_LISTED
    body = b'{"account":%b,"more":%b,"tasks":[%b]}\n' % (
        json.dumps(asked.path.account).encode("ascii"),
        b"true" if more else b"false",
        b",".join(objects),
    )
    return Response(200, JSON, body, (NO_STORE,))


def _object(task: Task, location: bytes, *, with_result: bool = True) -> bytes:
    """Return the task object; a result that is not in it has a URL."""
    text = task_object(task, with_result=with_result)
    if task.state is not TaskState.COMPLETED or (with_result and task.result is not None):
        return text
    return b'%b,"result_url":"%b/result"}' % (text[:-1], location)


def _live(task: Task, status: int) -> Response:
    headers = (*state_headers(task), RETRY_AFTER, NO_STORE)
    return Response(status, JSON, task_object(task) + b"\n", headers)


def _ended(task: Task) -> Response:
    if task.state is not TaskState.COMPLETED:
        response = end_problem(task)
        return response._replace(headers=(*response.headers, NO_STORE))
    content_type, body = body_of(task.result_type, task.result or b'"data":null')
    kind = content_type.encode("ascii") if is_header_value(content_type) else _OCTETS
    return Response(200, kind, body, (*state_headers(task), NO_STORE, _HARMLESS))
