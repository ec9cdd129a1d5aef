"""
What the envelope says of a body: one JSON member, ``"data":…`` or ``"data_base64":"…"``.  Pure.

JSON is checked, and passed on as the text that it is.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from codecs import lookup
from functools import lru_cache

import msgspec

from asyncplumber.errors import BadRequest, Unavailable

_GUESSED = (
    "",
    "application/x-www-form-urlencoded",
)  # what curl -d and a bare string say: nothing about the body


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")  # RFC 8259, 6: Python would take NaN and Infinity


# Numbers stay text: only their grammar is wanted, and int() of a million digits takes minutes.
_SLOW = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=str, parse_float=str)
# Reads without making objects, 20 to 30 times faster; but it takes no lone surrogates (RFC 8259,
# 8.2).
_FAST = msgspec.json.Decoder(msgspec.Raw)
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_SPACE = re.compile(r"[ \t\n\r]*")
SLOW_BYTES = (
    64 * 1024
)  # that are read again by the slow decoder, for its verdict and its words: some 10 ms
_CHARSET = re.compile(r';\s*charset\s*=\s*"?([^\s";,]+)', re.IGNORECASE)
# Of Python's codecs only those that are found on the web: some of the others take minutes for a
# body within the limit.
_CHARSETS = re.compile(
    "(utf-?(8|16|32)|ascii|iso8859|cp(125|437|850|866|874|932|949|950)|koi8|big5|gb|euc_|shift_jis|iso2022)"
)
_NEWLINES = bytes.maketrans(b"\r\n", b"  ")


def _check(body: bytes) -> None:
    """Raises ValueError unless `body` is one JSON value (RFC 8259) in UTF-8."""
    text = body.decode()
    try:
        _FAST.decode(body)
        return
    except msgspec.DecodeError:
        if len(body) <= SLOW_BYTES:
            _SLOW.decode(text)
            return
    try:
        # The two differ only in lone surrogates.  Another escape in their place changes nothing
        # else.
        _FAST.decode(_SURROGATE.sub(rb"\\u0041", body))
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None


def json_member(body: bytes) -> bytes:
    """
    The body as the envelope's member ``"data"``.  Raises `BadRequest` for anything that is not JSON
    in UTF-8.

    Line breaks become spaces: inside JSON's strings they cannot occur, so they are only layout.
    """
    try:
        _check(body)
    except UnicodeDecodeError:
        raise BadRequest("the body says that it is JSON, but it is not UTF-8") from None
    except RecursionError:
        raise BadRequest("the body's JSON is nested too deep") from None
    except ValueError as error:
        raise BadRequest(f"the body says that it is JSON, but it is not: {error}") from None
    return (
        b'"data":' + (body.translate(_NEWLINES) if b"\n" in body or b"\r" in body else body).strip()
    )


def bytes_member(body: bytes) -> bytes:
    """The body as the envelope's member ``"data_base64"``."""
    return b'"data_base64":"%b"' % b64encode(body)


def _text_member(body: bytes, content_type: str) -> bytes:
    """
    Text in the charset that the content type names, UTF-8 if none; bytes if it is not text in that.
    """
    named = _CHARSET.search(content_type)
    try:
        codec = lookup(named[1] if named is not None else "utf-8")
        if _CHARSETS.match(codec.name):
            return b'"data":' + json.dumps(body.decode(codec.name)).encode("ascii")
    except (UnicodeError, LookupError):
        pass
    except OSError:
        # Python imports a codec when it is first named: no file could be opened, which will pass.
        raise Unavailable("that charset cannot be loaded right now; try again") from None
    return bytes_member(body)


@lru_cache(maxsize=256)
def kind_of(content_type: str) -> str:
    """A content type without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def payload_of(content_type: str, body: bytes) -> tuple[str, bytes]:
    """What the envelope will say: its content type, and the member that holds the body."""
    kind = kind_of(content_type)
    if kind == "application/json" or kind.endswith("+json"):
        return content_type, json_member(body)
    if kind in _GUESSED:
        try:
            return "application/json", json_member(body)
        except BadRequest:
            return (content_type or "text/plain"), _text_member(body, "")
    if kind.startswith("text/") or kind.endswith(("/xml", "+xml")):
        return content_type, _text_member(body, content_type)
    return content_type, bytes_member(body)


def is_payload(member: bytes) -> bool:
    """
    Whether `member` can be a draft's payload, as `payload_of` makes it: one JSON member, without
    line breaks.
    """
    if member.startswith(b'"data":'):
        try:
            return json_member(member[7:]) == member
        except BadRequest:
            return False
    start = b'"data_base64":"'
    if not member.startswith(start) or not member.endswith(b'"', len(start)):
        return False
    try:
        b64decode(member[len(start) : -1], validate=True)
    except BadBase64:
        return False
    return True


def parts_of(text: str) -> list[tuple[str, str]]:
    """
    The members of a JSON object, or the elements of an array (named ""), each as the text that it
    is.

    What is passed on thus stays as it came: Python would make infinity of 1e400, and round what has
    many digits. `text` is JSON, and begins and ends with its bracket.
    """
    try:
        if text[0] == "{":
            return [(name, bytes(value).decode()) for name, value in _OBJECT.decode(text).items()]
        return [("", bytes(value).decode()) for value in _ARRAY.decode(text)]
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        if len(text) > SLOW_BYTES:
            raise BadRequest(f"the body's JSON cannot be taken in: {error}") from None
        return _slow_parts(text)
    except RecursionError:
        raise BadRequest("the body's JSON is nested too deep") from None


def _slow_parts(text: str) -> list[tuple[str, str]]:
    """The same for JSON with lone surrogates."""
    parts = []
    at = _after_space(text, 1)
    while text[at] not in "]}":
        name = ""
        if text[0] == "{":
            name, at = _SLOW.raw_decode(text, at)
            at = _after_space(text, _after_space(text, at) + 1)
        _, end = _SLOW.raw_decode(text, at)
        parts.append((name, text[at:end]))
        at = _after_space(text, end)
        if text[at] == ",":
            at = _after_space(text, at + 1)
    return parts


def _after_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches everywhere
