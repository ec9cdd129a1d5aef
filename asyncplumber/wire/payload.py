"""A body as one JSON member of the envelope: ``"data":…`` or ``"data_base64":"…"``.  Pure."""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from codecs import lookup
from functools import lru_cache

from asyncplumber.errors import BadRequest, Unavailable
from asyncplumber.wire.json_text import one_line

# Content types that say nothing about the body: none, and what ``curl -d`` sends.
_UNKNOWN = ("", "application/x-www-form-urlencoded")
_DATA = b'"data":'
TASK_MEMBER = b',"task":'  # before the member that the payload of a task's event has beside its own
_BASE64 = b'"data_base64":"'
_CHARSET = re.compile(r';\s*charset\s*=\s*"?([^\s";,]+)', re.IGNORECASE)
# The codecs of Python that are used on the web.  Some of the others take minutes for a body within
# the limit.
_CHARSETS = re.compile(
    "(utf-?(8|16|32)|ascii|iso8859|cp(125|437|850|866|874|932|949|950)|koi8|big5|gb|euc_"
    "|shift_jis|iso2022)"
)


def json_member(body: bytes) -> bytes:
    """
    Return a JSON body as the envelope's member ``data``.

    Raises:
        BadRequest: `body` is not JSON in UTF-8.
    """
    return _DATA + one_line(body)


def bytes_member(body: bytes) -> bytes:
    """Return any body as the envelope's member ``data_base64``."""
    return _BASE64 + b64encode(body) + b'"'


def _text_member(body: bytes, content_type: str) -> bytes:
    """
    Return a text as the envelope's member ``data``, or as bytes if it is not in its charset.

    The charset is the one that the content type names, or UTF-8.
    """
    named = _CHARSET.search(content_type)
    try:
        codec = lookup(named[1] if named is not None else "utf-8")
        if _CHARSETS.match(codec.name):
            return _DATA + json.dumps(body.decode(codec.name)).encode("ascii")
    except (UnicodeError, LookupError):
        pass
    except OSError:
        # Python imports a codec at its first use, and no file could be opened.  That will pass.
        raise Unavailable("that charset cannot be loaded right now; try again") from None
    return bytes_member(body)


@lru_cache(maxsize=256)
def media_type(content_type: str) -> str:
    """Return a content type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def payload_of(content_type: str, body: bytes) -> tuple[str, bytes]:
    """
    Return the content type that the envelope will name, and the member that holds the body.

    Raises:
        BadRequest: The content type is that of JSON, and the body is not JSON in UTF-8.
    """
    kind = media_type(content_type)
    if kind == "application/json" or kind.endswith("+json"):
        return content_type, json_member(body)
    if kind in _UNKNOWN:
        try:
            return "application/json", json_member(body)
        except BadRequest:
            return (content_type or "text/plain"), _text_member(body, "")
    if kind.startswith("text/") or kind.endswith(("/xml", "+xml")):
        return content_type, _text_member(body, content_type)
    return content_type, bytes_member(body)


def body_of(content_type: str, member: bytes) -> tuple[str, bytes]:
    """
    Return the content type and the body of which `payload_of` made a member.

    A text comes back in the charset that its content type names, and as UTF-8 if that cannot
    express it.  The content type of a text always names its charset.

    Args:
        content_type: As the envelope names it.
        member: The member ``data`` or ``data_base64``.
    """
    if member.startswith(_BASE64):
        return content_type or "application/octet-stream", b64decode(member[len(_BASE64) : -1])
    text, kind = member[len(_DATA) :], media_type(content_type)
    if kind == "application/json" or kind.endswith("+json"):
        return content_type, text
    if text[:1] != b'"':
        return "application/json", text  # such as the data of a CloudEvent
    return _encoded_text(content_type or "text/plain", json.loads(text))


def _encoded_text(content_type: str, text: str) -> tuple[str, bytes]:
    named = _CHARSET.search(content_type)
    try:
        codec = lookup(named[1]) if named is not None else None
        if codec is not None and _CHARSETS.match(codec.name):
            return content_type, text.encode(codec.name)
    except (UnicodeError, LookupError, OSError):
        pass
    if named is not None:
        content_type = content_type[: named.start()] + content_type[named.end() :]
    return f"{content_type.rstrip('; ')}; charset=utf-8", text.encode(errors="replace")


def is_payload(member: bytes) -> bool:
    """Return whether `member` is one JSON member without line breaks, as `payload_of` makes it."""
    if member.startswith(_DATA):
        try:
            return json_member(member[len(_DATA) :]) == member
        except BadRequest:
            return False
    if not member.startswith(_BASE64) or not member.endswith(b'"', len(_BASE64)):
        return False
    try:
        b64decode(member[len(_BASE64) : -1], validate=True)
    except BadBase64:
        return False
    return True


def is_task_payload(members: bytes) -> bool:
    """Return whether these are a payload and the member ``task``; see ``wire.tasks``."""
    whole = b"{%b}" % members
    try:
        if one_line(whole) != whole:
            return False
        pairs: list[tuple[str, object]] = json.loads(whole, object_pairs_hook=_Pairs)
        (name, value), (task, about) = pairs
        if name == "data_base64":
            b64decode(value if isinstance(value, str) else "!", validate=True)
    except (BadRequest, BadBase64, ValueError):
        return False
    return name in ("data", "data_base64") and task == "task" and isinstance(about, _Pairs)


class _Pairs(list[tuple[str, object]]):
    """The members of a JSON object, also those with the same name."""
