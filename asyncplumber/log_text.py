"""Text of strangers, made safe for a log that a person reads in a terminal."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

# Controls could move the cursor or start a new line, and bidirectional ones show a name as another
# one (Unicode TR 36, 3.3).  Lone surrogates cannot be written as UTF-8.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
# What follows is a credential, wherever we are mounted.
_BEFORE_TOKEN = re.compile(rb"(?i)/callbacks/")
_UNSAFE_IN_LINES = re.compile(_UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))


def escaped(text: str, *, lines: bool = False) -> str:
    """
    Return the text with a backslash escape for each character that is not safe.

    Args:
        text: What is to be shown.
        lines: Whether line feeds are kept, as in a traceback.
    """
    pattern = _UNSAFE_IN_LINES if lines else _UNSAFE
    return pattern.sub(lambda match: ascii(match[0])[1:-1], text)


def path_of(target: bytes, longest: int = 200) -> str:
    """
    Return the path of a request for a log: without the query, and not longer than this.

    A query can have a ticket in it, and what follows ``/callbacks/`` is a token.
    """
    path = target.partition(b"?")[0]
    before = _BEFORE_TOKEN.search(path)
    if before is not None:
        return f"{path_of(path[: before.end() - 1], longest)}/…"
    if b"%" in path and _BEFORE_TOKEN.search(unquote_to_bytes(path)):
        return "…"  # nobody sends it so, but it may be a token all the same
    text = escaped(path[:longest].decode("ascii", "backslashreplace"))
    return text if len(path) <= longest else f"{text}…"
