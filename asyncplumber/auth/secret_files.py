"""
Files with secrets: one secret a line.

Empty lines, and lines that begin with ``#``, are left out.  A file that every user of the machine
can read is refused, because what is in it is no secret.  Messages name the file and the number of
the line, and never what is in it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

LARGEST_FILE = 64 * 1024  # bytes

# What people copy from documentation, and what tools write as a reminder; without - _ and spaces.
_SAMPLES = re.compile(
    "changeme|changethis|replaceme|replacethis|your(256bit)?(secret|key)|placeholder"
    "|astringsecretatleast|djangoinsecure|notasecret|insecuresecret"
    "|^((my|super|top|a)*(secret|password|key|example|test))+[0-9]*$"
)
_FEWEST_CHARACTERS = 6  # different ones: a random secret of 16 characters has more


def read_secret_file(path: str) -> bytes:
    """
    Return what is in a file that only its owner, and perhaps a group, can read.

    Raises:
        ValueError: The file cannot be read, others can read it, or it is too long.
    """
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    if stat.S_IMODE(mode) & stat.S_IRWXO:
        raise ValueError(f"{path} is open to every user of this machine: chmod o= {path}")
    if len(text) > LARGEST_FILE:
        raise ValueError(f"{path} has more than {LARGEST_FILE} bytes")
    return text


class SecretFile(NamedTuple):
    """A file with secrets, and what was in it when the options were read."""

    path: str
    text: bytes

    def __repr__(self) -> str:
        return f"<SecretFile {self.path}>"


def read_or_inherit(
    path: str, check: Callable[[bytes], object], inherited: bytes | None
) -> SecretFile:
    """
    Read a file; a worker may do without, which may have no right to read it any more.

    Args:
        path: The file.
        check: Raises ValueError for a content that cannot be used.
        inherited: What the parent process has read; None if there is no such process.

    Raises:
        ValueError: The file cannot be read or used, and nothing was inherited.
    """
    try:
        text = read_secret_file(path)
        try:
            check(text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    except ValueError:
        if inherited is None:
            raise
        text = inherited
    return SecretFile(path, text)


def secret_lines(text: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number of each line with a secret, and the secret without the space around it."""
    for number, line in enumerate(text.splitlines(), 1):
        secret = line.strip()
        if secret and not secret.startswith(b"#"):
            yield number, secret


def read_secret_lines(path: str, shortest: int) -> tuple[bytes, ...]:
    """
    Return the secrets of a file in their order.

    Args:
        path: The file.
        shortest: The fewest bytes that a secret may have.

    Raises:
        ValueError: The file cannot be read, others can read it, or it has no secret or one that is
            too short.
    """
    secrets = []
    for number, secret in secret_lines(read_secret_file(path)):
        if len(secret) < shortest:
            raise ValueError(f"{path}: the secret in line {number} has less than {shortest} bytes")
        secrets.append(secret)
    if not secrets:
        raise ValueError(f"{path} has no secret: one of {shortest} bytes or more is needed")
    return tuple(secrets)


def is_sample(secret: str) -> bool:
    """Whether a secret is an example that somebody forgot to replace, or hardly random at all."""
    plain = re.sub(r"[-_ .]", "", secret.lower())
    return len(set(secret)) < _FEWEST_CHARACTERS or bool(_SAMPLES.search(plain))
