"""
What the response to a sent event means: a receipt, a refusal, or that it is worth another attempt.

Shared by all senders.  Needs only the standard library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from asyncplumber.sending import Receipt

BODY_LIMIT = 64 * 1024  # bytes of a response that are read; a receipt has about 150
_TRANSIENT = frozenset({408, 429})  # statuses worth another attempt, beside every 5xx


class Refused(Exception):
    """
    The event is refused, and would be refused again.

    Attributes:
        status: The HTTP status of the response.
        code: A word for programs, such as ``bad-account``.
        message: The reason for a reader.
        task: The task object of a report that is refused; empty for others.
    """

    def __init__(
        self, status: int, code: str, message: str, task: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message
        self.task: Mapping[str, Any] = task or {}

    def __str__(self) -> str:
        return f"refused with {self.status} ({self.code}): {self.message}"


class Response(NamedTuple):
    """The response to one attempt; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class TryLater(NamedTuple):
    """The attempt failed, and another one may succeed."""

    reason: str
    delay: float  # seconds that the response asks to wait at least


class Noted(NamedTuple):
    """
    The answer to a report of a task.

    Attributes:
        run: The id of the run that the report belongs to; empty if the answer does not say.
        state: The state of the task; empty if the answer does not say.
        is_cancel_requested: Whether somebody asked the task to stop.
    """

    run: str
    state: str
    is_cancel_requested: bool


def interpret(response: Response) -> Receipt | TryLater:
    """
    Say what a response means.

    Raises:
        Refused: Another attempt would be refused as well.
    """
    body = _json_object(response.body)
    if 200 <= response.status < 300:
        try:
            return Receipt(*[body[name] for name in Receipt._fields])
        except KeyError:
            reason = "the response is no receipt: is this the URL of a plumber?"
            raise Refused(response.status, "no-receipt", reason) from None
    return _failed(response, body)


def interpret_report(response: Response) -> Noted | TryLater:
    """
    Say what the response to a report of a task means.

    Raises:
        Refused: Another attempt would be refused as well.
    """
    body = _json_object(response.body)
    if not 200 <= response.status < 300:
        return _failed(response, body)
    if body.get("status") != "ok":
        reason = "the response is no receipt: is this the URL of a plumber?"
        raise Refused(response.status, "no-receipt", reason)
    task = _object(body.get("task"))
    cancel = task.get("cancel") is True or body.get("cancel") is True
    return Noted(_text(task.get("run")), _text(task.get("state")), cancel)


def interpret_json(response: Response) -> dict[str, Any] | TryLater:
    """
    Return the JSON object of a response to a question.

    Raises:
        Refused: Another attempt would be refused as well.
    """
    body = _json_object(response.body)
    return body if 200 <= response.status < 300 else _failed(response, body)


def interpret_bytes(response: Response) -> bytes | TryLater:
    """
    Return the body of a response to a question.

    Raises:
        Refused: Another attempt would be refused as well.
    """
    if 200 <= response.status < 300:
        return response.body
    return _failed(response, _json_object(response.body))


def _failed(response: Response, body: dict[str, Any]) -> TryLater:
    code, message = _problem(response.status, body)
    if response.status in _TRANSIENT or response.status >= 500:
        reason = f"{response.status} ({code}): {message}"
        return TryLater(reason, _retry_after(response.headers))
    raise Refused(response.status, code, message, _object(body.get("task")))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _problem(status: int, body: dict[str, Any]) -> tuple[str, str]:
    """Return code and message: ours, those of RFC 9457, or what the status alone says."""
    if 300 <= status < 400:
        return "redirect", "redirects are not followed; send to where it points"
    error = body.get("error")
    if not isinstance(error, dict):
        error = {"code": body.get("type"), "message": body.get("detail") or body.get("title")}
    code, message = error.get("code") or "error", error.get("message") or "no reason was given"
    return str(code)[:100], str(message)[:500]


def _retry_after(headers: Mapping[str, str]) -> float:
    """
    Return the seconds that the response asks to wait (RFC 9110, 10.2.3), 0 if it does not ask.

    A date in Retry-After is compared with the response's own Date, so the local clock may be wrong.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        until = parsedate_to_datetime(value)
        sent = parsedate_to_datetime(headers.get("date", ""))
        return max(0.0, (until - sent).total_seconds())
    except (ValueError, TypeError):  # TypeError: only one of the two dates has a time zone
        return 0.0
