"""
Tickets: what a browser's plain ``EventSource`` can carry, because it is part of the URL.

A ticket is for one account, must be used within seconds, and can be used once.  So the URL in a log
is of no use to anybody.  It is a JWS (RFC 7515) of the type ``plumber-ticket+jwt``, so
that it is never taken for a token.  The instances on one store sign with a key that only they know,
and the one that spends a ticket first writes that into the store.

What it allows is never more than what the credential allowed that it was made with, nor for longer,
and it is revoked with that credential.
"""

from __future__ import annotations

import hmac
import json
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from asyncplumber.auth.reasons import Reason
from asyncplumber.auth.revocations import ISSUED_TO_NOBODY
from asyncplumber.errors import InsufficientScope, InvalidToken, NotAllowed
from asyncplumber.grant import Accounts, Action, Grant
from asyncplumber.interfaces import Facts, IRevocations, ISecrets

LIFETIME = 30.0  # seconds in which a ticket must be used
# Seconds that a grant must have left for a stream: else it would open, close, and come back at
# once.
SHORTEST_STREAM = 5.0
# Seconds for which a spent ticket is remembered after its end: the clocks of the instances differ.
REMEMBERED = 600.0
KEY_LIFETIME = 60.0  # seconds after which the store is asked again: it may be another database
_KEY_USE = b"asyncplumber ticket"  # keeps this key apart from others that are made of the secret


def _encode(value: object) -> bytes:
    text = json.dumps(value, separators=(",", ":")).encode("ascii")
    return urlsafe_b64encode(text).rstrip(b"=")


_HEADER = _encode({"typ": "plumber-ticket+jwt", "alg": "HS256"})


class Tickets:
    """Makes, verifies and spends tickets."""

    def __init__(
        self,
        keeper: ISecrets,
        spent: IRevocations,
        clock: IReactorTime,
        now: Callable[[], float],
    ) -> None:
        """
        Args:
            keeper: Has the secret of the instances.
            spent: Where tickets are spent.
            clock: The reactor's clock.
            now: Returns the time in seconds since 1970.
        """
        self._keeper = keeper
        self._spent = spent
        self._clock = clock
        self._now = now
        self._key = b""
        self._key_until: float | None = None  # by the reactor's clock

    async def mint(
        self, grant: Grant, account: str, origin: str | None = None
    ) -> tuple[str, float]:
        """
        Return a new ticket, and the seconds in which it must be used.

        Args:
            grant: What its credential allows.
            account: What the ticket is for.
            origin: The origin whose pages may use it; None if that does not matter.

        Raises:
            InsufficientScope: The grant does not allow to subscribe to the account.
            InvalidToken: The grant ends in this moment.
            Unavailable: The store cannot be reached.
        """
        grant.check(Action.SUBSCRIBE, account)
        now = self._now()
        ends = now + LIFETIME
        if grant.until is not None:
            ends = min(ends, grant.until - SHORTEST_STREAM)
            if ends <= now:
                raise InvalidToken(Reason.EXPIRED)
        issued = grant.issued
        if issued is None and grant.mechanism in ISSUED_TO_NOBODY:
            issued = now  # a key is not issued; its ticket is, and can be revoked
        claims = {
            "jti": secrets.token_urlsafe(16),
            "exp": ends,
            "account": account,
            "sub": grant.subject,
            "until": grant.until,
            "iat": issued,
            "of": grant.id,
            "origin": origin,
        }
        content = b"%b.%b" % (_HEADER, _encode(claims))
        key = await self._signing_key()
        ticket = content + b"." + self._signature(key, content)
        return ticket.decode("ascii"), ends - now

    def grant(self, ticket: str, facts: Facts) -> Deferred[Grant]:
        """
        Spend a ticket, and return what it allows.

        Raises:
            InvalidToken: It is none of ours, too old, or was spent before.
            NotAllowed: It is for another account, or for pages of another origin.  It is not spent.
            Unavailable: The store cannot be reached.  It is not spent, as far as is known.
        """
        return Deferred.fromCoroutine(self._grant(ticket, facts))

    async def _grant(self, ticket: str, facts: Facts) -> Grant:
        claims = self._verified(await self._signing_key(), ticket)
        ends, until = claims["exp"], claims["until"]
        if ends < self._now():
            raise InvalidToken(Reason.EXPIRED)
        if claims["account"] != facts.account:
            raise InsufficientScope
        origin = claims["origin"]
        if origin is not None and facts.headers.get(b"origin", b"").decode("latin-1") != origin:
            raise NotAllowed("this ticket is for pages of another origin")
        if not await self._spent.spend(claims["jti"], ends + REMEMBERED):
            raise InvalidToken(Reason.SPENT)
        return Grant(
            claims["sub"],
            subscribe=Accounts(frozenset({claims["account"]})),
            until=until,
            issued=claims["iat"],
            id=claims["of"],
            mechanism="ticket",
        )

    @staticmethod
    def _verified(key: bytes, ticket: str) -> dict[str, Any]:
        """
        Return the claims of a ticket that is signed by us.

        The header is compared as a whole: there is nothing in it to choose.

        Raises:
            InvalidToken: It is not.
        """
        try:
            header, payload, signature = ticket.encode("ascii").split(b".")
        except ValueError:
            raise InvalidToken(Reason.MALFORMED) from None
        expected = Tickets._signature(key, b"%b.%b" % (header, payload))
        if not hmac.compare_digest(expected, signature):
            raise InvalidToken(Reason.SIGNATURE)
        if header != _HEADER:
            raise InvalidToken(Reason.HEADER)
        claims: dict[str, Any] = json.loads(urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
        return claims

    @staticmethod
    def _signature(key: bytes, content: bytes) -> bytes:
        return urlsafe_b64encode(hmac.digest(key, content, "sha256")).rstrip(b"=")

    async def _signing_key(self) -> bytes:
        now = self._clock.seconds()
        if self._key_until is None or now >= self._key_until:
            secret = await self._keeper.secret()
            # One step of HKDF (RFC 5869, 2.3), whose input is a key already.
            self._key = hmac.digest(secret, _KEY_USE + b"\x01", "sha256")
            self._key_until = now + KEY_LIFETIME
        return self._key
