"""How the POSTs to one callback URL are signed: the schemes of senders, and a few more.  Pure."""

from __future__ import annotations

import hmac
import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha1, sha256
from secrets import token_bytes, token_urlsafe
from urllib.parse import parse_qsl, urlsplit

from asyncplumber.auth.reasons import Reason
from asyncplumber.auth.senders.ed25519 import verify_ed25519
from asyncplumber.auth.senders.schemes import Content, Keys, Proof, Scheme, standard_keys
from asyncplumber.auth.senders.senders import Naming, Sender
from asyncplumber.auth.senders.table import PRESETS, SHORTEST_SECRET
from asyncplumber.errors import BadRequest, InvalidSignature
from asyncplumber.grant import Accounts
from asyncplumber.interfaces import CallbackUrl, Verified
from asyncplumber.wire.fields import Headers

ZOOM = Scheme(
    header=b"x-zm-signature",
    proof=Proof.HEX,
    content=Content.parse("v0:{timestamp}:{body}"),
    prefix=b"v0=",
    timestamp_header=b"x-zm-request-timestamp",
)
# Agents of A2A send the one or the other.
_BEARER = (
    Scheme(b"authorization", Proof.PLAIN, Content.parse("{body}"), b"Bearer "),
    Scheme(b"x-a2a-notification-token", Proof.PLAIN, Content.parse("{body}")),
)
_SCHEMES: Mapping[str, tuple[tuple[Scheme, ...], Naming]] = {
    **PRESETS,
    "zoom": ((ZOOM,), Naming(type_member="event")),
    "bearer": (_BEARER, Naming()),
    "twilio": ((), Naming(id_header=b"i-twilio-idempotency-token")),
}
NAMES = ("none", *_SCHEMES)
# With these, whoever gives out the secret is the one who is called.
_OWN_SECRET = ("standard", "github", "bearer")
LONGEST_SECRET = 1024  # characters
_BEARER_WORD = re.compile(rb"bearer +", re.IGNORECASE)
_TWILIO = b"x-twilio-signature"


def new_secret(scheme: str) -> str:
    """
    Return a secret for a scheme with which we choose it.

    Raises:
        BadRequest: The sender chooses it.
    """
    if scheme not in _OWN_SECRET:
        raise BadRequest(f"verify.secret is the secret that {scheme} gave you")
    if scheme == "standard":
        return "whsec_" + b64encode(token_bytes(32)).decode("ascii")
    return token_urlsafe(32)


def checked_secret(scheme: str, secret: object) -> str:
    """
    Return the secret of a URL.

    Raises:
        BadRequest: It is too short, too long, or has another form than the scheme wants.
    """
    if (
        not isinstance(secret, str)
        or not secret.isascii()
        or not secret.isprintable()
        or not SHORTEST_SECRET <= len(secret) <= LONGEST_SECRET
    ):
        raise BadRequest(
            f"verify.secret is {SHORTEST_SECRET} to {LONGEST_SECRET} printable characters of ASCII"
        )
    try:
        _keys(scheme, secret)
    except ValueError as error:
        raise BadRequest(f"verify.secret: {error}") from None
    return secret


def _keys(scheme: str, secret: str) -> Keys:
    line = secret.encode("ascii")
    return standard_keys([line]) if scheme == "standard" else Keys((line,))


def verified(row: CallbackUrl, url: str, headers: Headers, body: bytes, now: float) -> Verified:
    """
    Return what a signed POST says.

    Args:
        row: The URL, which has a scheme.
        url: The whole URL to which it was sent, with its query.
        headers: Those of the request.
        body: Its body, as it was sent.
        now: Seconds since 1970.

    Raises:
        InvalidSignature: It is not signed, or not in these minutes.
    """
    schemes, naming = _SCHEMES[row.scheme]
    accounts = Accounts(frozenset({row.account}))
    keys = _keys(row.scheme, row.secret)
    sender = Sender(f"callback:{row.id}", accounts, schemes, keys, naming)
    if row.scheme == "twilio":
        _check_twilio(row.secret, url, headers, body)
        return Verified(sender.grant, headers)
    if row.scheme == "bearer":
        word = _BEARER_WORD.sub(b"Bearer ", headers.get(b"authorization", b""), count=1)
        headers = {**headers, b"authorization": word} if word else headers
    scheme = sender.scheme_of(headers)
    if scheme is None:
        raise InvalidSignature(Reason.NONE)
    claim = scheme.read(headers, now)
    if not scheme.is_genuine(claim, body, keys, verify_ed25519):
        raise InvalidSignature(Reason.SIGNATURE)
    if row.scheme == "bearer":
        return Verified(sender.grant, headers)  # the secret vouches for all of the request
    return sender.verified(claim, headers, body)


def _check_twilio(secret: str, url: str, headers: Headers, body: bytes) -> None:
    """Raise `InvalidSignature` unless Twilio has signed the URL, and the form or its digest."""
    content = url.encode("utf-8", "surrogatepass")
    given = dict(parse_qsl(urlsplit(url).query)).get("bodySHA256")
    if given is None:
        form = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)
        content += "".join(name + text for name, text in sorted(form)).encode()
    is_body = given is None or hmac.compare_digest(
        given.lower().encode("utf-8", "replace"), sha256(body).hexdigest().encode()
    )
    expected = b64encode(hmac.digest(secret.encode(), content, sha1))
    if _TWILIO not in headers:
        raise InvalidSignature(Reason.NONE)
    if not (hmac.compare_digest(expected, headers[_TWILIO]) and is_body):
        raise InvalidSignature(Reason.SIGNATURE)


def zoom_token(secret: str, plain: str) -> str:
    """
    Return what Zoom wants to hear of a token that it sends before it uses a URL.

    Its secret also signs requests, as ``v0:{timestamp}:{body}``.  So whoever asks could have forged
    signatures made, if a token could have a colon in it.
    """
    return hmac.digest(secret.encode("ascii"), plain.encode("ascii"), "sha256").hex()
