"""
The keys that verify tokens, each with exactly one algorithm (RFC 8725, 3.1).

A key is typed when it is loaded.  Nothing that verifies ever has to guess what some bytes are: that
guess let public keys count as secrets in several libraries.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from typing import Protocol

from twisted.internet.defer import Deferred

from asyncplumber.auth.secret_files import is_sample, secret_lines

SHORTEST_SECRET = 32  # bytes: as many as HMAC-SHA256 has (RFC 7518, 3.2)
MOST_SECRETS = 16  # in one file: each may be tried for each token

# The algorithms of a header, and those of the keys.  RFC 9864 gave EdDSA the name of its curve.
ALGORITHMS = {
    "HS256": "HS256",
    "RS256": "RS256",
    "ES256": "ES256",
    "EdDSA": "Ed25519",
    "Ed25519": "Ed25519",
}


def parse_secrets(data: bytes) -> tuple[bytes, ...]:
    """
    Return the secrets of `--jwt-secret-file`, one a line; see `secret_files` for what is left out.

    Raises:
        ValueError: There is none, too many, or one that is too short, no text, or an example.  The
            sentence names the line, and not the secret.
    """
    secrets = []
    for number, secret in secret_lines(data):
        text = secret.decode("utf-8", "replace")
        if not text.isprintable() or "\ufffd" in text:
            # In random bytes a line break may be, and they would be two secrets or another one.
            raise ValueError(
                f"line {number} is not text: write a secret in hex or base64, such as that of "
                "openssl rand -base64 48"
            )
        if len(secret) < SHORTEST_SECRET:
            raise ValueError(f"line {number}: a secret has {SHORTEST_SECRET} bytes or more")
        if is_sample(text):
            raise ValueError(f"line {number}: this secret is an example; make a random one")
        secrets.append(secret)
    if not secrets:
        raise ValueError("there is no secret in it")
    if len(secrets) > MOST_SECRETS:
        raise ValueError(f"there are more than {MOST_SECRETS} secrets in it")
    return tuple(secrets)


class Key(Protocol):
    """A key that verifies by one algorithm."""

    @property
    def kid(self) -> str | None:
        """Its id; None if it has none."""

    @property
    def alg(self) -> str:
        """Its algorithm: one of the values of `ALGORITHMS`."""

    def verify(self, signed: bytes, signature: bytes) -> bool:
        """Whether `signature` is that of `signed`.  Never raises."""


class KeySource(Protocol):
    """The keys of one issuer."""

    @property
    def generation(self) -> int:
        """Counts up when other keys are there than before."""

    def keys(self, kid: str | None, alg: str) -> Sequence[Key] | Deferred[Sequence[Key]]:
        """
        Return the keys that may have signed a token, at once if they are known.

        Args:
            kid: The id in the token's header; None returns all keys of the algorithm.
            alg: The algorithm of the key.

        Raises:
            Unavailable: They cannot be had now.
        """


class Secret:
    """A secret of HMAC-SHA256."""

    __slots__ = ("_secret", "kid")

    alg = "HS256"

    def __init__(self, secret: bytes, kid: str | None = None) -> None:
        """Raises ValueError for a secret that is too short."""
        if len(secret) < SHORTEST_SECRET:
            raise ValueError(f"a secret of HS256 has at least {SHORTEST_SECRET} bytes")
        self._secret = secret
        self.kid = kid

    def sign(self, content: bytes) -> bytes:
        """Return the signature."""
        return hmac.digest(self._secret, content, "sha256")

    def verify(self, signed: bytes, signature: bytes) -> bool:
        """See `Key`."""
        return hmac.compare_digest(self.sign(signed), signature)


class Secrets:
    """
    The secrets of `--jwt-secret-file`.

    All of them verify, and the first one signs: so a new secret can be there before anybody uses
    it, and the old one until its last token has ended.
    """

    def __init__(self, secrets: Iterable[bytes]) -> None:
        """Raises ValueError for none, too many, or one that is too short."""
        self.generation = 0
        self._secrets = self._checked(secrets)

    @staticmethod
    def _checked(secrets: Iterable[bytes]) -> tuple[Secret, ...]:
        checked = tuple(Secret(secret) for secret in secrets)
        if not 0 < len(checked) <= MOST_SECRETS:
            raise ValueError(f"there are 1 to {MOST_SECRETS} secrets")
        return checked

    @property
    def all(self) -> Sequence[Secret]:
        """All of them."""
        return self._secrets

    @property
    def signing(self) -> Secret:
        """The one that signs."""
        return self._secrets[0]

    def replace(self, secrets: Iterable[bytes]) -> None:
        """Use these from now on.  Raises ValueError as the constructor does, with no change."""
        self._secrets = self._checked(secrets)
        self.generation += 1

    def keys(self, kid: str | None, alg: str) -> Sequence[Key]:
        """Return all of them: secrets in a file have no ids."""
        return self._secrets if alg == Secret.alg else ()


class KeySet:
    """Keys from a file."""

    generation = 0

    def __init__(self, keys: Iterable[Key]) -> None:
        """Raises ValueError for no key, and for two with the same id and algorithm."""
        self._keys = tuple(keys)
        if not self._keys:
            raise ValueError("there is no key in it")
        named = [(key.kid, key.alg) for key in self._keys if key.kid is not None]
        if len(set(named)) != len(named):
            raise ValueError("two keys have the same kid")

    @property
    def all(self) -> Sequence[Key]:
        """All of them."""
        return self._keys

    def keys(self, kid: str | None, alg: str) -> Sequence[Key]:
        """See `KeySource`."""
        return [key for key in self._keys if key.alg == alg and kid in (None, key.kid)]
