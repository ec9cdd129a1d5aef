"""The file of ``--starter-secret-file``: what requests to the application are signed with."""

from __future__ import annotations

from asyncplumber.auth.secret_files import secret_lines
from asyncplumber.auth.senders.schemes import standard_keys

SHORTEST_SECRET = 16  # bytes
MOST_SECRETS = 8  # each is one more signature in a header


def parse_starter_secrets(data: bytes) -> tuple[bytes, ...]:
    """
    Return the secrets of a file, one a line, in the form of Standard Webhooks.

    Raises:
        ValueError: There is none, there are too many, or one has another form or is too short.  The
            sentence has no secret in it.
    """
    keys = standard_keys([secret for _, secret in secret_lines(data)])
    if keys.public or not keys.secrets:
        raise ValueError("there is no secret in it: whsec_ and base64")
    if len(keys.secrets) > MOST_SECRETS:
        raise ValueError(f"there are more than {MOST_SECRETS} secrets in it")
    if any(len(secret) < SHORTEST_SECRET for secret in keys.secrets):
        raise ValueError(f"a secret has at least {SHORTEST_SECRET} bytes")
    return keys.secrets
