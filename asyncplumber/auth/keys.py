"""Static keys: long random words for programs that send, such as workers, cron jobs and curl."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256

from asyncplumber.auth.secret_files import is_sample, secret_lines
from asyncplumber.grant import ALL_ACCOUNTS, Grant

SHORTEST_KEY = 16  # characters
LONGEST_KEY = 1024
# What can be a bearer token: no space, and no comma, by which repeated headers are joined.
_KEY = re.compile(r"[\x21-\x2b\x2d-\x7e]+")


def digest(key: str) -> bytes:
    """Return that by which a key is kept and found."""
    return sha256(key.encode()).digest()


def publisher(key: str) -> Grant:
    """
    Return what a key of `--publisher-key-file` allows: publishing, and starting tasks.

    Who publishes to an account can report the beginning and the end of each of its tasks anyway.
    The program with the key is the application, or belongs to it, and so does what is started.  A
    key that is to do less has a table in the ``--auth`` file.

    Its subject tells keys apart in logs, and does not help to guess one.
    """
    return Grant(
        f"key:{digest(key).hex()[:8]}",
        publish=ALL_ACCOUNTS,
        mechanism="key",
        start=ALL_ACCOUNTS,
    )


def publishers(keys: Iterable[str]) -> Mapping[bytes, Grant]:
    """Return what these keys of `--publisher-key-file` allow, as `Keys` takes it."""
    return {digest(key): publisher(key) for key in keys}


def parse_keys(data: bytes) -> tuple[str, ...]:
    """
    Return the keys of a file, one a line; see `secret_files` for what is left out.

    Raises:
        ValueError: There is none, or one is too short, cannot travel in a header, or is an example.
            The sentence names the line, and not the key.
    """
    keys = []
    for number, line in secret_lines(data):
        key = line.decode("ascii", "replace")
        if not SHORTEST_KEY <= len(key) <= LONGEST_KEY:
            raise ValueError(
                f"line {number}: a key has {SHORTEST_KEY} to {LONGEST_KEY:,} characters"
            )
        if not _KEY.fullmatch(key):
            raise ValueError(
                f"line {number}: a key has letters, digits and signs of ASCII, without space or "
                "comma"
            )
        if is_sample(key):
            raise ValueError(f"line {number}: this key is an example; make a random one")
        keys.append(key)
    if not keys:
        raise ValueError("there is no key in it")
    return tuple(keys)


class Keys:
    """
    Finds the grant of a key.

    A key is found by its SHA-256.  The time that takes may depend on how much of that matches, but
    nobody can make a key whose SHA-256 begins in a wanted way without knowing the right one.
    """

    def __init__(self, grants: Mapping[bytes, Grant]) -> None:
        """`grants` is what each key allows, by the `digest` of the key."""
        self._grants = dict(grants)

    @classmethod
    def of_publishers(cls, keys: Iterable[str]) -> Keys:
        """Return those of `--publisher-key-file`."""
        return cls(publishers(keys))

    def replace(self, grants: Mapping[bytes, Grant]) -> None:
        """Know these from now on, and no others."""
        self._grants = dict(grants)

    def grant(self, key: str) -> Grant | None:
        """Return what this key allows; None if it is none of ours."""
        return self._grants.get(digest(key))
