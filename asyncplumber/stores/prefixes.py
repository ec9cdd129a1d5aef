"""Names with a prefix, as a range of an index."""

from __future__ import annotations


def prefix_end(prefix: str) -> str | None:
    """
    Return the first text, by code points, that comes after all texts with this prefix.

    None: there is no such text, as for the empty prefix.
    """
    while prefix:
        number = ord(prefix[-1]) + 1
        prefix = prefix[:-1]
        if number == 0xD800:
            number = 0xE000  # UTF-8 has no surrogates
        if number <= 0x10FFFF:
            return prefix + chr(number)
    return None
