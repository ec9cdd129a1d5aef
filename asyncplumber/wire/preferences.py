"""
What a client prefers: ``Prefer`` (RFC 7240), and ``Cache-Control`` of a request (RFC 9111, 5.2.1).

Both are lists of words, some of which have a value.  A server may ignore what it does not
understand, and this one does: nothing here raises.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from asyncplumber.wire.fields import Headers

MAX_WAIT = 120.0  # seconds that a request or a message can wait at most
MAX_DIGITS = 9  # of a number of seconds: more would be thirty years

# A word, perhaps with a value, which is a token or a quoted string; then parameters.  It takes
# linear time for any text.
_ENTRY = re.compile(
    rb"""([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:\s*=\s*("(?:[^"\\]|\\.)*"|[^\s",;]*))?[^,]*"""
)


class Wish(NamedTuple):
    """
    How long a client wants to wait for a result.

    Attributes:
        wait: Seconds; None if it does not say.
        is_async: Whether it wants to be told that the result comes later, and not to wait for it.
    """

    wait: int | None = None
    is_async: bool = False

    def applied(self, seconds: float, *, is_later: bool) -> bytes:
        """
        Return the value of ``Preference-Applied``, empty if no preference was honoured.

        Args:
            seconds: How long the server would have waited.
            is_later: Whether the result was not there in that time.
        """
        words = [b"respond-async"] if self.is_async and is_later else []
        if self.wait is not None:
            words.append(b"wait=%d" % seconds)
        return b", ".join(words)


class Freshness(NamedTuple):
    """
    Which results of the past a client takes.

    Attributes:
        max_age: Seconds that a result may be old; None: none may be reused.
        only_if_cached: Whether nothing may be begun.
    """

    max_age: float | None = None
    only_if_cached: bool = False


def wish_of(headers: Headers) -> Wish:
    """Return what ``Prefer`` says.  Of a preference that is there twice, the first one counts."""
    if b"prefer" not in headers:
        return Wish()
    words = _words(headers[b"prefer"])
    return Wish(_seconds(words.get("wait")), "respond-async" in words)


def freshness_of(headers: Headers) -> Freshness:
    """
    Return what ``Cache-Control`` says.

    ``no-cache`` takes no result of the past, as if the header was not there; browsers send it
    without being asked to.
    """
    if b"cache-control" not in headers:
        return Freshness()
    words = _words(headers[b"cache-control"])
    only_if_cached = "only-if-cached" in words
    max_age: float | None = _seconds(words.get("max-age"))
    if "no-cache" in words or "no-store" in words or max_age == 0:
        # An age is never below 0.  With None, `only-if-cached` would take a result of any age.
        max_age = -1.0 if only_if_cached else None
    return Freshness(max_age, only_if_cached)


def _words(value: bytes) -> dict[str, str]:
    words: dict[str, str] = {}
    for match in _ENTRY.finditer(value):
        name, given = match[1], match[2] or b""
        words.setdefault(name.decode("ascii").lower(), given.decode("latin-1").strip('"'))
    return words


def _seconds(text: str | None) -> int | None:
    """Return a number of seconds; None for anything else."""
    if text is None or not (text.isascii() and text.isdigit()):
        return None
    return int(text) if len(text) <= MAX_DIGITS else 10**MAX_DIGITS
