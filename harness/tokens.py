"""Tokens of all kinds, also wrong ones, made by hand: no library would make most of them."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from functools import cache
from typing import Any

from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from asyncplumber.auth.tokens.signing_keys import Secret

NOW = 1_793_500_000.0  # the time of the tests, in seconds since 1970
AUDIENCE = "https://push.example.com"
APP = "https://app.example.com"
IDP = "https://idp.example.com"
SECRET = b"k1 is a secret of the application app"


def encode(data: bytes | str | object) -> bytes:
    """Encode bytes, a text, or JSON as base64url without padding."""
    if isinstance(data, str):
        data = data.encode()
    elif not isinstance(data, bytes):
        data = json.dumps(data, separators=(",", ":")).encode()
    return urlsafe_b64encode(data).rstrip(b"=")


@cache
def rsa_key(bits: int = 2048, number: int = 1) -> RSAKey:
    """Return an RSA key; `number` tells several of the same size apart."""
    return RSAKey.generate_key(bits)


@cache
def ec_key(curve: str = "P-256") -> ECKey:
    """Return a key of an elliptic curve."""
    return ECKey.generate_key(curve)  # type: ignore[arg-type]


@cache
def okp_key() -> OKPKey:
    """Return an Ed25519 key."""
    return OKPKey.generate_key("Ed25519")


def sign(key: Any, alg: str, content: bytes) -> bytes:
    """Return the signature of some bytes: `key` is a secret, or a key of this module."""
    if isinstance(key, bytes):
        return Secret(key).sign(content)
    return JWSRegistry(algorithms=[alg]).get_alg(alg).sign(content, key)


def claims(**changes: Any) -> dict[str, Any]:
    """Return the claims of a good token of the application; None takes one out."""
    good: dict[str, Any] = {
        "iss": APP,
        "aud": AUDIENCE,
        "sub": "user-42",
        "iat": NOW - 10,
        "exp": NOW + 3600,
        "plumber": {"subscribe": ["user-42"], "publish": ["jobs"]},
    }
    good.update(changes)
    return {name: value for name, value in good.items() if value is not None}


def token(
    payload: Any = None,
    header: Any = None,
    key: Any = SECRET,
    alg: str = "HS256",
    **changes: Any,
) -> str:
    """
    Return a token.

    Args:
        payload: The payload, as `encode` takes it; None is that of `claims`.
        header: The header, as `encode` takes it; None is a good one for `alg`.
        key: What signs.
        alg: By which algorithm.
        changes: What differs from a good payload.
    """
    if header is None:
        header = {"alg": alg, "typ": "at+jwt"}
    signed = encode(header) + b"." + encode(claims(**changes) if payload is None else payload)
    return (signed + b"." + encode(sign(key, alg, signed))).decode("ascii")
