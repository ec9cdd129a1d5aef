"""
What a POST to a callback URL says of a run: the words and bodies of services that we know.  Pure.

The state is looked for, in this order: in the query, in the header ``Task-State``, where the URL's
pointer says, and in the bodies that are known.  Without any, the body is the result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from asyncplumber.errors import BadRequest
from asyncplumber.task import TaskState, is_beginning, state_of
from asyncplumber.wire.fields import Headers, header_text
from asyncplumber.wire.json_text import elements, members, one_line, value

POINTER_LENGTH = 256  # characters
_POINTER = re.compile(r"(?:/(?:[^~/\x00-\x1f]|~[01])*)+")
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
# Words of services beside those that are known everywhere; see `state_of`.  An agent that waits
# for input goes on.
_MORE_WORDS = {
    "input_required": TaskState.RUNNING,  # A2A
    "auth_required": TaskState.RUNNING,  # A2A
    "rejected": TaskState.FAILED,  # A2A
    "incomplete": TaskState.FAILED,  # OpenAI
    "expired": TaskState.FAILED,  # OpenAI
    "timed_out": TaskState.FAILED,  # GitHub
    "cancel": TaskState.CANCELED,  # CDEvents
}
_A2A = ("/statusUpdate/status/state", "/task/status/state")
_A2A_KINDS = ('"status-update"', '"task"')  # before version 1.0, the body is the object itself
_CDEVENT_OUTCOME = "/subject/content/outcome"
_MESSAGES = (
    "/message",
    "/error/message",
    "/error",
    "/data/error/message",
    "/statusUpdate/status/message/parts/0/text",
    "/task/status/message/parts/0/text",
    "/status/message/parts/0/text",
)
LONGEST_MESSAGE = 1000  # characters


class Said(NamedTuple):
    """
    What a POST says.

    Attributes:
        state: The state that it reports; None for a word that is not known.
        begins: Whether it says that a run begins; see `is_beginning`.
    """

    state: TaskState | None
    begins: bool = False

    @property
    def is_end(self) -> bool:
        """Whether it says that the run has ended."""
        return self.state is not None and self.state.is_done


RESULT = Said(TaskState.COMPLETED)
UNKNOWN = Said(None)


def said_by(word: str) -> Said:
    """Return what a word of a service says."""
    word = word.strip().lower().replace("-", "_").removeprefix("task_state_")
    state = state_of(word) or _MORE_WORDS.get(word)
    return Said(state, is_beginning(word))


def checked_pointer(text: str) -> str:
    """
    Return a pointer into a JSON body (RFC 6901), such as ``/status``.

    Raises:
        BadRequest: It is none.
    """
    if len(text) > POINTER_LENGTH or not _POINTER.fullmatch(text):
        raise BadRequest("state is a JSON pointer, such as /status (RFC 6901)")
    return text


def at_pointer(text: bytes, pointer: str) -> bytes | None:
    """
    Return the JSON text at a pointer, None if there is nothing.

    Args:
        text: What `one_line` returned.
        pointer: See `checked_pointer`.
    """
    found: bytes | None = text
    for token in pointer.split("/")[1:]:
        if found is None:
            return None
        token = token.replace("~1", "/").replace("~0", "~")
        if found[:1] == b"{":
            found = members(found).get(token)
        elif found[:1] == b"[" and _INDEX.fullmatch(token):
            items = elements(found)
            found = items[int(token)] if int(token) < len(items) else None
        else:
            return None
    return found


def _text_in(top: Mapping[str, bytes], pointer: str) -> str | None:
    """Return the string at a pointer in an object; None if there is none, or something else."""
    name, slash, rest = pointer[1:].partition("/")
    found = top.get(name)
    if found is not None and slash:
        found = at_pointer(found, f"/{rest}")
    return str(value(found)) if found is not None and found[:1] == b'"' else None


def json_of(body: bytes) -> bytes | None:
    """
    Return a body as JSON in one line, None if it is no object or array.

    Its content type is not asked for: Amazon SNS sends JSON as text.
    """
    if body.lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        return one_line(body)
    except BadRequest:
        return None


def said(query_state: str | None, headers: Headers, text: bytes | None, pointer: str) -> Said:
    """
    Return what a POST says of its run.

    Args:
        query_state: The parameter ``state`` of its URL; None if it has none.
        headers: Those of the request.
        text: Its body; see `json_of`.
        pointer: Where in the body the state is; empty for the known places.

    Raises:
        BadRequest: The query or the header has a word that is not known: whoever wrote that is to
            be told.
    """
    word, name = query_state, "state"
    if word is None:
        word, name = header_text(headers, b"task-state"), "Task-State"
    if word is not None:
        told = said_by(word)
        if told.state is None:
            raise BadRequest(
                f"{name} is submitted, running, completed, failed or canceled, or a word for one"
            )
        return told
    if pointer:
        return _at_place(text, pointer)
    return _of_known_headers(headers) or (text and _of_known_body(text)) or RESULT


def _at_place(text: bytes | None, pointer: str) -> Said:
    """Return what is at the pointer: a word, or whether it is done."""
    found = at_pointer(text, pointer) if text is not None else None
    if found in (b"true", b"false"):
        return RESULT if found == b"true" else Said(TaskState.RUNNING)
    return said_by(value(found)) if found is not None and found[:1] == b'"' else UNKNOWN


def _of_known_headers(headers: Headers) -> Said | None:
    if b"x-function-status" in headers:  # OpenFaaS: the HTTP status of the function
        succeeded = re.fullmatch(rb"[123][0-9]{2}", headers[b"x-function-status"]) is not None
        return RESULT if succeeded else Said(TaskState.FAILED)
    if b"ce-type" in headers:
        return _of_dotted(header_text(headers, b"ce-type") or "")
    return None


def _of_known_body(text: bytes) -> Said | None:
    if text[:1] != b"{":
        return None
    try:
        top = members(text)
        return _of_a2a(top) or _of_event(top) or _of_object(top)
    except BadRequest:  # it is large and has half a character, as no service that we know sends it
        return None


def _of_a2a(top: Mapping[str, bytes]) -> Said | None:
    places: Iterable[str] = _A2A
    if top.get("kind", b"").decode("utf-8", "replace") in _A2A_KINDS:
        places = ("/status/state",)
    word = next((found for place in places if (found := _text_in(top, place)) is not None), None)
    if word is not None:
        return said_by(word)
    if top.get("kind") == b'"artifact-update"' or "artifactUpdate" in top:
        return Said(TaskState.RUNNING)
    return None


def _of_event(top: Mapping[str, bytes]) -> Said | None:
    """Return what an event of OpenAI, a CloudEvent or a CDEvent says by its type."""
    is_event = "specversion" in top or top.get("object") == b'"event"' or "context" in top
    type = _text_in(top, "/type") or _text_in(top, "/context/type")
    if not is_event or type is None:
        return None
    outcome = _text_in(top, _CDEVENT_OUTCOME) or _text_in(top, f"/data{_CDEVENT_OUTCOME}")
    if type.startswith("dev.cdevents.") and outcome is not None:
        return said_by(outcome)
    return _of_dotted(type)


def _of_dotted(type: str) -> Said | None:
    """Return what the last word says that is in a type such as ``response.completed``."""
    told = [said for word in type.split(".") if (said := said_by(word)).state is not None]
    return told[-1] if told else None


def _of_object(top: Mapping[str, bytes]) -> Said | None:
    """Return what the member ``status`` says beside an id: of Replicate, cog, OpenAI or RQ."""
    word = _text_in(top, "/status")
    if word is None or not {"id", "job_id"} & top.keys():
        return None
    told = said_by(word)
    if told.state is None and not {"urls", "logs", "func_name"} & top.keys():
        return None  # a result of somebody else that has such members
    return told


def explained(text: bytes) -> bytes:
    """
    Return the body of a failure, with a member ``message`` for people.

    The traceback in the webhook of an RQ job is left out, but for its last line: the browsers of
    an account have no use for it.

    Args:
        text: A JSON object; see `json_of`.
    """
    try:
        top = members(text)
    except BadRequest:  # see `_of_known_body`
        return text
    traceback = _text_in(top, "/exc_info") if "func_name" in top else None
    if traceback is not None:
        lines = traceback.strip().splitlines() or [""]
        del top["exc_info"]
        top.setdefault("message", _quoted(lines[-1]))
        pairs = [b"%b:%b" % (_quoted(name), part) for name, part in top.items()]
        return b"{%b}" % b",".join(pairs)
    if "message" in top or len(text) <= len(b"{}"):
        return text
    for place in _MESSAGES:
        message = _text_in(top, place)
        if message:
            return b'{"message":%b,%b' % (_quoted(message), text[1:].lstrip())
    return text


def _quoted(text: str) -> bytes:
    return json.dumps(text[:LONGEST_MESSAGE]).encode("ascii")
