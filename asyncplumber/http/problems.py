"""Errors as problem documents (RFC 9457), which tell the task as well."""

from __future__ import annotations

import json
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from asyncplumber.core.tasks.errors import OtherInput, TaskError
from asyncplumber.errors import PlumberError
from asyncplumber.http.responses import Response, error_response
from asyncplumber.sending import is_header_value
from asyncplumber.task import Task, TaskState
from asyncplumber.wire.tasks import member_of, task_object

PROBLEM = b"application/problem+json"
_ENDS = {
    TaskState.FAILED: HTTPStatus.BAD_GATEWAY,
    TaskState.CANCELED: HTTPStatus.CONFLICT,
    TaskState.LOST: HTTPStatus.GATEWAY_TIMEOUT,
}
# Statuses with a meaning for the connection between this server and its client, and those that
# need a header of their own.
_NOT_PASSED_ON = frozenset({401, 405, 407, 408, 411, 417, 421, 425, 426, 429, 431})
_PASSED_ON = {status.value for status in HTTPStatus if 400 <= status < 500} - _NOT_PASSED_ON


def _document(status: int, code: str, message: str, task: bytes | None) -> bytes:
    """Return a problem document; ``error`` is what every error of this server has."""
    members = json.dumps(
        {
            "type": "about:blank",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": message,
            "error": {"code": code, "message": message},
        }
    ).encode("ascii")
    return members + b"\n" if task is None else b'%b,"task":%b}\n' % (members[:-1], task)


def problem(error: PlumberError, *, reads: bool = True) -> Response:
    """
    Return the response that tells of an error.

    Args:
        error: The error.
        reads: Whether the client may read the task that the error is about, with its progress and
            its result.  If not, it is told the run and the state.
    """
    response = error_response(error)
    if error.body is not None:
        return response
    task = error.task if isinstance(error, TaskError) else None
    told, headers = None, response.headers
    if task is not None:
        told = task_object(task) if reads else json.dumps(receipt_member(task)).encode("ascii")
        headers = (*headers, *state_headers(task))
        if isinstance(error, OtherInput):
            headers = (*headers, (b"Task-Joined", b"false"))
    body = _document(error.status, error.code, error.message, told)
    return response._replace(content_type=PROBLEM, body=body, headers=headers)


def as_problem(response: Response) -> Response:
    """Return the response to a refused request as a problem document, if it is none yet."""
    if response.error is None or response.content_type == PROBLEM:
        return response
    return problem(response.error)


def end_problem(task: Task) -> Response:
    """Return the response that tells of an end without a result: failed, canceled or lost."""
    error: dict[str, Any] = json.loads(task.error) if task.error is not None else {}
    status = int(_ENDS[task.state])
    refused = error.get("status")
    if error.get("type") == "refused" and isinstance(refused, int) and refused in _PASSED_ON:
        status = refused
    message = str(error.get("message") or f"the task is {task.state.value}")
    body = _document(status, task.state.value, message, task_object(task))
    return Response(status, PROBLEM, body, state_headers(task))


def state_headers(task: Task) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers ``Task-State`` and ``Task-Run``."""
    return (
        (b"Task-State", task.state.value.encode("ascii")),
        (b"Task-Run", header_value(task.run)),
    )


def header_value(text: str) -> bytes:
    """Return a text as the value of a header, percent-encoded if it is not plain ASCII."""
    return (text if is_header_value(text) else quote(text, safe="")).encode("ascii")


def receipt_member(task: Task) -> dict[str, Any]:
    """
    Return the member ``task`` of a receipt.

    Who may report need not be allowed to read, so it has neither a result nor an error.
    """
    cancel = task.is_cancel_requested and not task.is_done
    return {**member_of(replace(task, error=None)), "cancel": cancel}
