"""JSON that two readers cannot understand differently (RFC 8725, 2.4; RFC 8259, 4 and 6)."""

from __future__ import annotations

import json
from typing import Any, NoReturn

# How deep Python's parser goes depends on its version.  An object in a token has far fewer arrays
# and objects than this, so it has fewer levels as well.
MAX_BRACKETS = 500


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is there twice")
    return members


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


# Made once: that takes longer than to read a token with it.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def parse_object(data: bytes) -> dict[str, Any]:
    """
    Return the object that is written in UTF-8.

    Raises:
        ValueError: It is no object, has a member twice, a number that JSON does not know, or more
            levels than can be read.
    """
    if data.count(b"[") + data.count(b"{") > MAX_BRACKETS:
        raise ValueError("it has too many levels")
    try:
        # Of bytes, `json.loads` would guess the encoding.
        value = _DECODER.decode(data.decode())
    except RecursionError:
        raise ValueError("it has too many levels") from None
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return value
