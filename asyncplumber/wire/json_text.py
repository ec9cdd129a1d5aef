"""
JSON that is checked and passed on as the text that it is.  Pure.

Python would make infinity of 1e400, and round numbers of many digits: they are not ours to change.
So nothing here makes values of a body.
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import msgspec

from asyncplumber.errors import BadRequest

T = TypeVar("T")

# Bytes that the slow decoder reads to take JSON apart: some 10 ms.
SLOW_BYTES = 64 * 1024
# These only look for the grammar, which is 20 to 30 times faster than making values.  They refuse
# lone surrogates, which are grammatical (RFC 8259, 8.2): `JSON.stringify` makes them of text that
# was cut in the middle of a character.
_VALUE = msgspec.json.Decoder(msgspec.Raw)
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
# Takes lone surrogates.  Numbers stay text: int() of a million digits takes minutes.
_SLOW = json.JSONDecoder(parse_int=str, parse_float=str)
_SPACE = re.compile(r"[ \t\n\r]*")
_NEWLINES = bytes.maketrans(b"\r\n", b"  ")


def one_line(body: bytes) -> bytes:
    """
    Return a JSON text in one line, without the space around it.

    Line breaks become spaces: JSON has none inside strings, so they are only layout.

    Raises:
        BadRequest: `body` is not one JSON value (RFC 8259) in UTF-8.
    """
    try:
        body.decode()
        _check(body)
    except UnicodeDecodeError:
        raise BadRequest("the body says that it is JSON, but it is not UTF-8") from None
    except RecursionError:
        raise BadRequest("the body's JSON is nested too deep") from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"the body says that it is JSON, but it is not: {error}") from None
    return (body.translate(_NEWLINES) if b"\n" in body or b"\r" in body else body).strip()


def _check(body: bytes) -> None:
    try:
        _VALUE.decode(body)
    except msgspec.DecodeError:
        # Another escape in the place of each surrogate changes nothing else.
        plain = _SURROGATE.sub(rb"\\u0041", body)
        if plain == body:
            raise
        _VALUE.decode(plain)


def compact(text: bytes) -> bytes:
    """
    Return a JSON text without the space between its tokens.

    Args:
        text: What `one_line` returned.  With lone surrogates it is returned as it is.
    """
    try:
        return msgspec.json.format(text, indent=-1)
    except (msgspec.DecodeError, RecursionError):
        return text


def members(text: bytes) -> dict[str, bytes]:
    """
    Return the members of an object, each as the text that it is.

    Args:
        text: What `one_line` returned; it begins with ``{``.

    Raises:
        BadRequest: The text has lone surrogates and is longer than `SLOW_BYTES`.
    """
    found = _taken_apart(text, _OBJECT)
    if found is None:
        return dict(_slow_parts(text.decode()))
    return {name: bytes(part) for name, part in found.items()}


def elements(text: bytes) -> list[bytes]:
    """
    Return the elements of an array, each as the text that it is.

    Args:
        text: What `one_line` returned; it begins with ``[``.

    Raises:
        BadRequest: The text has lone surrogates and is longer than `SLOW_BYTES`.
    """
    found = _taken_apart(text, _ARRAY)
    if found is None:
        return [part for _, part in _slow_parts(text.decode())]
    return [bytes(part) for part in found]


def _taken_apart(text: bytes, decoder: msgspec.json.Decoder[T]) -> T | None:
    """Return what is in `text`; None if it has lone surrogates and must be read slowly."""
    try:
        return decoder.decode(text)
    except msgspec.DecodeError as error:
        if len(text) > SLOW_BYTES:
            raise BadRequest(f"the body's JSON cannot be read: {error}") from None
        return None
    except RecursionError:
        raise BadRequest("the body's JSON is nested too deep") from None


def _slow_parts(text: str) -> list[tuple[str, bytes]]:
    """Return names and parts of an object, or the parts of an array with an empty name each."""
    parts = []
    at = _after_space(text, 1)
    while text[at] not in "]}":
        name = ""
        if text[0] == "{":
            name, at = _SLOW.raw_decode(text, at)
            at = _after_space(text, _after_space(text, at) + 1)
        _, end = _SLOW.raw_decode(text, at)
        parts.append((name, text[at:end].encode()))
        at = _after_space(text, end)
        if text[at] == ",":
            at = _after_space(text, at + 1)
    return parts


def _after_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches everywhere


def value(text: bytes) -> Any:
    """
    Return the value of a JSON text that `one_line`, `members` or `elements` returned.

    Raises:
        BadRequest: It is a number of more digits than Python reads (4300).
    """
    if text[:1] == b'"' and b"\\" not in text:
        return text[1:-1].decode()  # a batch has ten thousands of them
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body's JSON cannot be read: {error}") from None
