"""
What a JSON Web Token must be like, and the grant that its claims stand for.

No I/O, and the time is an argument.  The rules are those of RFC 8725 (best current practices) and,
for what a token says, of RFC 9068 (access tokens).  A caller goes through them in this order, so
that nonsense costs no cryptography and nothing is believed before the signature was verified:
`read`, `check_early`, the signature, `known`, and `check_time` at every use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from asyncplumber.auth.credentials import MAX_HEADER_TOKEN, decode_base64url
from asyncplumber.auth.reasons import Reason
from asyncplumber.auth.strict_json import parse_object
from asyncplumber.auth.tokens.signing_keys import ALGORITHMS
from asyncplumber.auth.tokens.templates import EMPTY, Template
from asyncplumber.errors import InvalidToken
from asyncplumber.event import is_plain
from asyncplumber.grant import NO_ACCOUNTS, Accounts, Action, Grant

LEEWAY = 30.0  # seconds that the clocks of issuer and server may differ
STREAM_MARGIN = 5.0  # seconds that a token has left, or a stream would end when it has begun
MAX_AGE = 86400.0  # seconds between the issue and the end of a token
MAX_HEADER = 1024  # bytes, decoded
MAX_KID_LENGTH = 128  # characters
MAX_TIME = 1e11  # seconds since 1970: far beyond any token, and no trouble for arithmetic
CLAIM = "plumber"  # the member with the accounts
ACCESS_TOKEN = "at+jwt"  # noqa: S105 - the typ of RFC 9068
PLAIN_TYPES = frozenset({ACCESS_TOKEN, "jwt", ""})  # what libraries write by themselves as well

# The first four name a key that the sender chose.  The others change what is signed.
_FORBIDDEN = frozenset({"jku", "jwk", "x5u", "x5c", "b64", "crit", "enc", "zip", "cty"})
# Only a token for a client has these (OpenID Connect Core, 2 and 3.3.2.11).
_OF_ID_TOKENS = ("nonce", "at_hash", "c_hash")
_LISTS = ("subscribe", "publish", "start")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """
    What is asked of the tokens of one issuer.

    Attributes:
        audience: One of the values of `aud`.
        types: What `typ` may be, in lower case and without ``application/``; empty if absent.
        max_age: Seconds between `iat` and `exp`, at most.
        claim: The member with the accounts.
        subscribe: The accounts to subscribe of a token without that member.
        publish: Those to publish.
        start: Those whose tasks it may start and cancel.
    """

    audience: str
    types: frozenset[str] = frozenset({ACCESS_TOKEN})
    max_age: float = MAX_AGE
    claim: str = CLAIM
    subscribe: Template = EMPTY
    publish: Template = EMPTY
    start: Template = EMPTY


class Token(NamedTuple):
    """
    A token in its parts; nothing of it is to be believed yet.

    Attributes:
        alg: The algorithm of the key that it wants, a value of `ALGORITHMS`.
        kid: The id of the key; None if it names none.
        typ: Its type, in lower case and without ``application/``; empty if absent.
        issuer: `iss`; None if absent.
        claims: The payload.
        signed: The bytes under the signature.
        signature: The signature.
    """

    alg: str
    kid: str | None
    typ: str
    issuer: str | None
    claims: Mapping[str, Any]
    signed: bytes
    signature: bytes

    def __repr__(self) -> str:
        # It may be in a traceback.
        return f"<Token {self.alg}>"


class Known(NamedTuple):
    """What a verified token allows, and from when to when."""

    grant: Grant
    not_before: float | None
    until: float


def read(token: str) -> Token:
    """
    Take a token apart.

    Raises:
        InvalidToken: It is too long, not in the compact form (RFC 7515, 3.1), or its header or its
            issuer are not acceptable.
    """
    if len(token) > MAX_HEADER_TOKEN:
        raise InvalidToken(Reason.TOO_LONG)
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii():
        raise InvalidToken(Reason.MALFORMED)
    first, second, third = [part.encode("ascii") for part in parts]
    if len(first) > MAX_HEADER * 4 // 3 + 1:
        raise InvalidToken(Reason.TOO_LONG)
    try:
        header = parse_object(decode_base64url(first))
        alg, kid, typ = _header(header)
        signature = decode_base64url(third)
        claims = parse_object(decode_base64url(second))
    except ValueError:
        raise InvalidToken(Reason.MALFORMED) from None
    issuer = claims.get("iss")
    if "iss" in claims and not isinstance(issuer, str):
        raise InvalidToken(Reason.ISSUER)
    return Token(alg, kid, typ, issuer, claims, first + b"." + second, signature)


def _header(header: Mapping[str, Any]) -> tuple[str, str | None, str]:
    alg = header.get("alg")
    if not isinstance(alg, str) or alg not in ALGORITHMS:
        raise InvalidToken(Reason.ALGORITHM)
    if not _FORBIDDEN.isdisjoint(header):
        raise InvalidToken(Reason.HEADER)
    kid = header.get("kid")
    if "kid" in header and not (isinstance(kid, str) and len(kid) <= MAX_KID_LENGTH):
        raise InvalidToken(Reason.HEADER)
    typ = header.get("typ", "")
    if not isinstance(typ, str) or ("typ" in header and not typ):
        raise InvalidToken(Reason.TYPE)
    return ALGORITHMS[alg], kid, typ.lower().removeprefix("application/")


def check_early(token: Token, rules: Rules, now: float) -> None:
    """
    Refuse what is cheap to refuse, before the signature is verified.

    Raises:
        InvalidToken: It is of another type or for another audience, or it has ended.
    """
    if token.typ not in rules.types:
        raise InvalidToken(Reason.TYPE)
    claims = token.claims
    if token.typ != ACCESS_TOKEN and any(name in claims for name in _OF_ID_TOKENS):
        raise InvalidToken(Reason.TYPE)
    audience = claims.get("aud")
    if isinstance(audience, str):
        audience = [audience]
    if (
        not isinstance(audience, list)
        or not all(isinstance(name, str) for name in audience)
        or rules.audience not in audience
    ):
        raise InvalidToken(Reason.AUDIENCE)
    if _time(claims, "exp") + LEEWAY <= now:
        raise InvalidToken(Reason.EXPIRED)


def known(token: Token, rules: Rules, now: float) -> Known:
    """
    Return what a token allows whose signature is right.

    Raises:
        InvalidToken: It lives too long, or a claim is missing or wrong.
    """
    claims = token.claims
    until = _time(claims, "exp")
    issued = _time(claims, "iat") if "iat" in claims else None
    not_before = _time(claims, "nbf") if "nbf" in claims else None
    if issued is not None and issued > now + LEEWAY:
        raise InvalidToken(Reason.TOO_EARLY)
    if until - (now + LEEWAY if issued is None else issued) > rules.max_age:
        raise InvalidToken(Reason.TOO_LONG_LIVED)
    subject, id = claims.get("sub"), claims.get("jti")
    if not isinstance(subject, str) or not is_plain(subject):
        raise InvalidToken(Reason.CLAIMS)
    if "jti" in claims and not (isinstance(id, str) and is_plain(id)):
        raise InvalidToken(Reason.CLAIMS)
    try:
        subscribe, publish, start = _accounts(claims, rules)
    except ValueError:
        raise InvalidToken(Reason.GRANTS) from None
    grant = Grant(subject, subscribe, publish, until, issued, id, "jwt", start=start)
    return Known(grant, not_before, until)


def _accounts(claims: Mapping[str, Any], rules: Rules) -> list[Accounts]:
    """
    Return the accounts to subscribe, to publish, and to start.

    Raises ValueError.  What is not understood may be a restriction, so it is not ignored.
    """
    lists = claims.get(rules.claim)
    if rules.claim not in claims:
        templates = (rules.subscribe, rules.publish, rules.start)
        return [template.accounts(claims) for template in templates]
    if not isinstance(lists, dict) or not lists.keys() <= set(_LISTS):
        raise ValueError("it has subscribe, publish and start")
    return [Accounts.parse(lists[name]) if name in lists else NO_ACCOUNTS for name in _LISTS]


def check_time(token: Known, action: Action | None, now: float) -> None:
    """
    Check at each use that a token is valid now.

    A POST may come some seconds late.  A stream must have some seconds left: else the client would
    come back at once, with the same token.

    Raises:
        InvalidToken: It has ended, or not begun.
    """
    if token.not_before is not None and token.not_before > now + LEEWAY:
        raise InvalidToken(Reason.TOO_EARLY)
    left = token.until - now
    if left < STREAM_MARGIN if action is Action.SUBSCRIBE else left <= -LEEWAY:
        raise InvalidToken(Reason.EXPIRED)


def _time(claims: Mapping[str, Any], name: str) -> float:
    """Return seconds since 1970 (RFC 7519, 2: a number, perhaps with a fraction)."""
    value = claims.get(name)
    # A comparison with NaN is false, and one with a number of any size is no trouble.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MAX_TIME:
        raise InvalidToken(Reason.EXPIRED if name == "exp" else Reason.CLAIMS)
    return float(value)
