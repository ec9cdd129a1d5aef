"""
Files with secrets: one secret a line.

A file that every user of the machine can read is refused, because what is in it is no secret.
Messages name the file and the number of the line, and never what is in it.
"""

from __future__ import annotations

import os
import stat

LARGEST_FILE = 64 * 1024  # bytes


def read_secret_lines(path: str, shortest: int) -> tuple[bytes, ...]:
    """
    Return the secrets of a file in their order, without empty lines and the space around each.

    Args:
        path: The file.
        shortest: The fewest bytes that a secret may have.

    Raises:
        ValueError: The file cannot be read, others can read it, or it has no secret or one that is
            too short.
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
    secrets = []
    for number, line in enumerate(text.splitlines(), 1):
        secret = line.strip()
        if not secret:
            continue
        if len(secret) < shortest:
            raise ValueError(f"{path}: the secret in line {number} has less than {shortest} bytes")
        secrets.append(secret)
    if not secrets:
        raise ValueError(f"{path} has no secret: one of {shortest} bytes or more is needed")
    return tuple(secrets)
