"""
What a WebSocket client asks of tasks, and what it is answered.

A message is a JSON object in a text message; ``docs/reference/protocol.rst`` lists its members.
"""

from __future__ import annotations

import json
from base64 import b64decode
from binascii import Error as BadBase64
from collections.abc import Mapping
from enum import Enum
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NamedTuple

from asyncplumber.errors import BadRequest, PlumberError
from asyncplumber.event import NAME_LENGTH, is_plain
from asyncplumber.task import StartRequest, Task
from asyncplumber.wire.json_text import members, one_line, value
from asyncplumber.wire.payload import media_type
from asyncplumber.wire.preferences import MAX_WAIT
from asyncplumber.wire.tasks import task_key, task_object

MAX_ID_BYTES = 256  # of the JSON of an id
JSON = "application/json"
NO_ID = b"null"
Members = Mapping[str, bytes]


class Method(Enum):
    """What a client can ask."""

    START = "start"
    GET = "get"
    CANCEL = "cancel"


class TaskMessage(NamedTuple):
    """
    What a client asks.

    Attributes:
        method: What is to be done.
        start: The task, and with `Method.START` what it is started with.
        wait: Seconds that the reply may wait for the end of the task.
    """

    method: Method
    start: StartRequest
    wait: float


def message_members(data: bytes) -> Members:
    """
    Return the members of a message, each as JSON.

    Raises:
        BadRequest: It is no JSON object.
    """
    try:
        text = one_line(data)
        if text.startswith(b"{"):
            return members(text)
    except BadRequest:
        pass
    raise BadRequest("a message is a JSON object")


def message_id(parts: Members) -> bytes:
    """
    Return the id of a message as the JSON that it is.

    Raises:
        BadRequest: It is neither a string nor a number, or too long.
    """
    id = parts.get("id", NO_ID)
    if id[:1] not in b'"-0123456789' or len(id) > MAX_ID_BYTES:
        raise BadRequest(f"a message has an id: a string or a number, at most {MAX_ID_BYTES} bytes")
    return id


def task_message(parts: Members, account: str) -> TaskMessage:
    """
    Return what the members of a message ask for this account.

    Raises:
        BadRequest: They cannot be understood.
    """
    try:
        method = Method(_text(parts, "method"))
    except ValueError:
        raise BadRequest("the method is start, get or cancel") from None
    key = task_key(_text(parts, "task"))
    wait = _seconds(parts, "wait", MAX_WAIT) or 0.0
    start = StartRequest(account, key)
    if method is Method.START:
        content_type, body = _input(parts)
        only = value(parts.get("only_if_cached", b"false"))
        if not isinstance(only, bool):
            raise BadRequest("only_if_cached is true or false")
        start = StartRequest(
            account, key, content_type, body, _seconds(parts, "max_age", float("inf")), only
        )
    return TaskMessage(method, start, wait)


def _text(parts: Members, name: str, default: str = "") -> str:
    found = value(parts[name]) if name in parts else default
    if not isinstance(found, str):
        raise BadRequest(f"{name} is a string")
    return found


def _seconds(parts: Members, name: str, most: float) -> float | None:
    found = value(parts.get(name, b"null"))
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= most:
        limit = f" from 0 to {most:.0f}" if most != float("inf") else ""
        raise BadRequest(f"{name} is a number of seconds{limit}")
    return float(found)


def _input(parts: Members) -> tuple[str, bytes]:
    """
    Return content type and body of the input, empty for none.

    JSON stays the text that it is.  So it is the same input as a PUT of the same text.
    """
    content_type = _text(parts, "content_type")
    if content_type and not (is_plain(content_type, NAME_LENGTH) and content_type.isascii()):
        raise BadRequest(f"content_type is at most {NAME_LENGTH} characters of ASCII")
    if "input_base64" in parts:
        if "input" in parts:
            raise BadRequest("a message has input or input_base64, and not both")
        try:
            return content_type, b64decode(_text(parts, "input_base64"), validate=True)
        except (BadBase64, ValueError):
            raise BadRequest("input_base64 is no base64") from None
    if "input" not in parts:
        return "", b""
    kind = media_type(content_type)
    if not content_type or kind == JSON or kind.endswith("+json"):
        return content_type or JSON, parts["input"]
    try:
        return content_type, _text(parts, "input").encode()
    except UnicodeEncodeError:
        raise BadRequest("the input has a character that is cut in two") from None


def reply(account: str, id: bytes, status: int, data: bytes, **more: Any) -> bytes:
    """
    Return the notice ``plumber.reply``.

    Args:
        account: The account of the stream.
        id: The id of the message, as JSON.
        status: An HTTP status.
        data: A JSON object.
        more: Further members.
    """
    members = "".join([f'"{name}":{json.dumps(value)},' for name, value in more.items()])
    return (
        b'{"type":"plumber.reply","account":%b,"cursor":null,"id":%b,"status":%d,%b"data":%b}'
        % (
            quoted(account).encode(),
            id,
            status,
            members.encode(),
            data,
        )
    )


def error_object(error: PlumberError, task: Task | None) -> bytes:
    """Return an error as the JSON object that a reply carries, with the task that it is about."""
    about: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.retry_after is not None:
        about["retry_after"] = error.retry_after
    text = json.dumps({"error": about}).encode()
    return text if task is None else b'%b,"task":%b}' % (text[:-1], task_object(task))
