"""
Makes the tokens that `--jwt-secret-file` accepts, for tests, for the shell, and for applications.

It needs nothing but the standard library.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from time import time
from typing import Any

from asyncplumber.auth.tokens.signing_keys import Secret
from asyncplumber.event import is_plain
from asyncplumber.grant import Accounts

AUDIENCE = "asyncplumber"


def _encode(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def mint(
    secret: bytes,
    subject: str,
    *,
    subscribe: Sequence[Any] = (),
    publish: Sequence[Any] = (),
    start: Sequence[Any] = (),
    expires_in: float = 3600,
    audience: str = AUDIENCE,
    issuer: str | None = None,
    id: str | None = None,
    now: float | None = None,
) -> str:
    """
    Return a token, signed with HMAC-SHA256.

    ::

        token = mint(secret, "user-42", subscribe=["user-42"])

    Args:
        secret: The first line of the file, without the line break.
        subject: Who it is for: the unit of limits and of revocation.
        subscribe: The accounts whose events may be read: names, ``{"prefix": "team-7."}``, or
            ``{"all": True}``.
        publish: The accounts to which events may be posted.
        start: The accounts whose tasks may be started and canceled.
        expires_in: Seconds.
        audience: That of the server.
        issuer: Who makes the token; None leaves it out.
        id: Its id, by which it can be revoked; None leaves it out.
        now: Seconds since 1970; None takes the time of day.

    Raises:
        ValueError: The secret is too short, or one of the values would not be accepted.
    """
    Accounts.parse(subscribe)
    Accounts.parse(publish)
    Accounts.parse(start)
    for name, value in (("subject", subject), ("id", id), ("issuer", issuer)):
        if value is not None and not is_plain(value):
            raise ValueError(f"the {name} is 1 to 256 characters without control characters")
    issued = int(time() if now is None else now)
    lists = {"subscribe": list(subscribe), "publish": list(publish)}
    if start:
        lists["start"] = list(start)
    claims: dict[str, Any] = {
        "aud": audience,
        "sub": subject,
        "iat": issued,
        "exp": issued + int(expires_in),
        "plumber": lists,
    }
    if issuer is not None:
        claims["iss"] = issuer
    if id is not None:
        claims["jti"] = id
    signed = _encode(_json({"alg": "HS256", "typ": "at+jwt"})) + b"." + _encode(_json(claims))
    return (signed + b"." + _encode(Secret(secret).sign(signed))).decode("ascii")
