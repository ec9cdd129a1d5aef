"""From a token to its grant: once with cryptography, and from then on by looking it up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

from twisted.internet.defer import Deferred

from asyncplumber.auth.credentials import MAX_HEADER_TOKEN
from asyncplumber.auth.reasons import Reason
from asyncplumber.auth.tokens.claims import (
    Known,
    Rules,
    Token,
    check_early,
    check_time,
    known,
    read,
)
from asyncplumber.auth.tokens.signing_keys import MOST_SECRETS, Key, KeySource, Secret
from asyncplumber.errors import InvalidToken
from asyncplumber.grant import Action, Grant

MAX_KNOWN = 4096  # verified tokens that are remembered
MAX_UNNAMED = 2  # public keys that a token without `kid` may be of: two while they are rotated


class Issuer(NamedTuple):
    """Whose tokens are accepted: what they must be like, and the keys that verify them."""

    rules: Rules
    keys: KeySource


class _Entry(NamedTuple):
    """A verified token, and by which keys it was."""

    known: Known
    source: KeySource
    generation: int


class Verifier:
    """
    Verifies tokens.

    A token that was verified is known by its SHA-256, until the keys of its issuer change.  Its
    times are checked at every use.  A token that was refused is not remembered.
    """

    def __init__(
        self,
        issuers: Mapping[str, Issuer],
        seconds: Callable[[], float],
        other: Issuer | None = None,
        most: int = MAX_KNOWN,
    ) -> None:
        """
        Args:
            issuers: By the `iss` of their tokens.
            seconds: Returns the seconds since 1970.
            other: For tokens with any other `iss`, or without; None refuses those.
            most: Tokens that are remembered.
        """
        self._issuers = dict(issuers)
        self._seconds = seconds
        self._other = other
        self._most = most
        self._known: OrderedDict[bytes, _Entry] = OrderedDict()

    def grant(self, token: str, action: Action | None) -> Grant | Deferred[Grant]:
        """See `authority.Tokens`."""
        if len(token) > MAX_HEADER_TOKEN or not token.isascii():
            raise InvalidToken(Reason.MALFORMED if not token.isascii() else Reason.TOO_LONG)
        digest = sha256(token.encode("ascii")).digest()
        entry = self._known.get(digest)
        if entry is not None and entry.generation == entry.source.generation:
            self._known.move_to_end(digest)
            check_time(entry.known, action, self._seconds())
            return entry.known.grant
        return self._verify(token, digest, action)

    def _verify(self, text: str, digest: bytes, action: Action | None) -> Grant | Deferred[Grant]:
        token = read(text)
        issuer = self._other
        if token.issuer is not None:
            issuer = self._issuers.get(token.issuer, issuer)
        if issuer is None:
            raise InvalidToken(Reason.ISSUER)
        check_early(token, issuer.rules, self._seconds())
        keys = issuer.keys.keys(token.kid, token.alg)

        def verified(keys: Sequence[Key]) -> Grant:
            _check_signature(token, keys)
            now = self._seconds()
            found = known(token, issuer.rules, now)
            check_time(found, action, now)
            self._remember(digest, _Entry(found, issuer.keys, issuer.keys.generation))
            return found.grant

        return keys.addCallback(verified) if isinstance(keys, Deferred) else verified(keys)

    def _remember(self, digest: bytes, entry: _Entry) -> None:
        self._known[digest] = entry
        self._known.move_to_end(digest)
        if len(self._known) > self._most:
            self._known.popitem(last=False)


def _check_signature(token: Token, keys: Sequence[Key]) -> None:
    """Raise `InvalidToken` if none of these keys has signed the token."""
    most = MOST_SECRETS if token.alg == Secret.alg else MAX_UNNAMED
    if not keys or len(keys) > most:
        raise InvalidToken(Reason.NO_KEY)
    if not any(key.alg == token.alg and key.verify(token.signed, token.signature) for key in keys):
        raise InvalidToken(Reason.SIGNATURE)
