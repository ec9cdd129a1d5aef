"""
Senders that sign their requests in place of a bearer token, such as GitHub and Stripe.  Pure.

A sender is bound to accounts: its secret is worth nothing elsewhere.  What it posts is one event,
whose data is the body.  The id and the type of the event are where the sender has them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from asyncplumber.auth.reasons import Reason
from asyncplumber.auth.senders.ed25519 import verify_ed25519
from asyncplumber.auth.senders.schemes import Claim, Keys, Scheme
from asyncplumber.errors import BadRequest, InvalidSignature, Unauthenticated
from asyncplumber.event import RESERVED_TYPES, is_plain
from asyncplumber.grant import Accounts, Grant
from asyncplumber.interfaces import AwaitsBody, Facts, Verified
from asyncplumber.wire.fields import Headers
from asyncplumber.wire.json_text import members, one_line, value
from asyncplumber.wire.parse import as_one_event

_HOOKS = b"/hooks/"
_CHALLENGE = frozenset({"type", "challenge"})  # what is read of Slack's first request


@dataclass(frozen=True, slots=True)
class Naming:
    """
    Where a sender has the id and the type of an event; each is None if there is none.

    Attributes:
        id_header: In a header, which nobody has signed.
        id_member: In a member of the body, which is a JSON object.
        type_header: In a header.
        type_member: In a member of the body.
    """

    id_header: bytes | None = None
    id_member: str | None = None
    type_header: bytes | None = None
    type_member: str | None = None


@dataclass(frozen=True, slots=True)
class Sender:
    """
    Somebody who posts, and what is known of them.

    Attributes:
        name: Of the sender, for the log.
        accounts: Where it may post to.
        schemes: How it signs: one of them.
        keys: What its signatures are verified with.  While they are changed, there are several.
        naming: Where ids and types of events are.
        answers_challenge: Whether it asks first whether the URL is right, as Slack does.
    """

    name: str
    accounts: Accounts
    schemes: tuple[Scheme, ...]
    keys: Keys = field(repr=False)
    naming: Naming = Naming()
    answers_challenge: bool = False

    @property
    def grant(self) -> Grant:
        """What a signed request allows."""
        return Grant(f"sender:{self.name}", publish=self.accounts, mechanism="sender")

    def scheme_of(self, headers: Headers) -> Scheme | None:
        """Return how this request is signed; None if not in a way of this sender."""
        return next((scheme for scheme in self.schemes if scheme.header in headers), None)

    def verified(self, claim: Claim, headers: Headers, body: bytes) -> Verified:
        """Return what a body says whose signature is right."""
        naming = self.naming
        names = {name for name in (naming.id_member, naming.type_member) if name is not None}
        message = _message(body, names | _CHALLENGE if self.answers_challenge else names)
        if self.answers_challenge and message.get("type") == "url_verification":
            reply = json.dumps({"challenge": message.get("challenge", "")}).encode("ascii")
            return Verified(self.grant, headers, reply=reply)
        signed_id = _name(_text(claim.id)) or _name(message.get(naming.id_member or ""))
        id = signed_id or _name(_header(headers, naming.id_header))
        type = _name(_header(headers, naming.type_header)) or _name(
            message.get(naming.type_member or "")
        )
        if type is not None and type.startswith(RESERVED_TYPES):
            type = None
        # Anybody who has seen the request once can change an id that is not signed.
        key = None if signed_id is not None else self._key(body)
        return Verified(self.grant, as_one_event(headers, id, type), key)

    def _key(self, body: bytes) -> str:
        # Two line breaks: no key of another event has them.
        return f"{self.grant.subject}\n\n{sha256(body).hexdigest()}"


def _message(body: bytes, names: Collection[str]) -> dict[str, str]:
    """Return those of these members that are there and strings; the body may be anything."""
    if not names:
        return {}
    try:
        text = one_line(body)
        parts = members(text) if text.startswith(b"{") else {}
        return {name: value(part) for name in names if (part := parts.get(name, b""))[:1] == b'"'}
    except BadRequest:
        return {}


def _text(name: bytes | None) -> str | None:
    try:
        return name.decode() if name is not None else None
    except UnicodeDecodeError:
        return None


def _header(headers: Headers, name: bytes | None) -> str | None:
    return _text(headers.get(name)) if name is not None else None


def _name(text: str | None) -> str | None:
    """Return an id or a type that an event can have; None for any other."""
    return text if text is not None and is_plain(text) else None


class Senders:
    """All senders."""

    def __init__(self, senders: Sequence[Sender], now: Callable[[], float]) -> None:
        """`now` returns the seconds since 1970."""
        self._senders = tuple(senders)
        self._now = now

    def find(self, facts: Facts) -> AwaitsBody | None:
        """
        Return what verifies the body of this request.

        Returns:
            None if the request is signed in no sender's way.  That, and a signature that is in
            time, is all that is known without the body.

        Raises:
            InvalidSignature: It is signed in the way of a sender, but malformed or too old.
        """
        if facts.account is None or not facts.target.startswith(_HOOKS) or facts.method != b"POST":
            return None
        now, headers = self._now(), facts.headers
        claims: list[tuple[Sender, Scheme, Claim]] = []
        refusal: Unauthenticated | None = None
        for sender in self._senders:
            scheme = sender.scheme_of(headers)
            if scheme is None:
                continue
            try:
                claims.append((sender, scheme, scheme.read(headers, now)))
            except InvalidSignature as error:
                refusal = refusal or error
        if claims:
            return AwaitsBody(_Verification(claims, headers, facts.account).verify)
        if refusal is not None:
            raise refusal
        return None


class _Verification:
    """Verifies one request when its body is there."""

    def __init__(
        self, claims: Sequence[tuple[Sender, Scheme, Claim]], headers: Headers, account: str
    ) -> None:
        self._claims = claims
        self._headers = headers
        self._account = account

    def verify(self, body: bytes) -> Verified:
        """
        Return what the request is.

        Several senders may have signed it if two have the same secret.  Then it is one that may
        post to the account.

        Raises:
            InvalidSignature: No sender has signed it.
        """
        genuine = [
            (sender, claim)
            for sender, scheme, claim in self._claims
            if scheme.is_genuine(claim, body, sender.keys, verify_ed25519)
        ]
        if not genuine:
            raise InvalidSignature(Reason.SIGNATURE)
        allowed = [found for found in genuine if self._account in found[0].accounts]
        sender, claim = (allowed or genuine)[0]
        return sender.verified(claim, self._headers, body)
