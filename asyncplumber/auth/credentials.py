"""
Where a request may carry a credential, and which one counts.

It is in the ``Authorization`` header, in an entry of ``Sec-WebSocket-Protocol``, in ``?ticket=``,
or else in a cookie.  It decides alone: if it is bad, the request is refused, whatever else is
allowed without one.  A token in a URL is refused, because URLs are in logs, in the history of
browsers and in ``Referer``.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from enum import Enum
from typing import NamedTuple
from urllib.parse import parse_qsl

from asyncplumber.auth.reasons import Reason
from asyncplumber.errors import BadRequest, InvalidToken, NotAllowed
from asyncplumber.grant import Action
from asyncplumber.interfaces import Facts
from asyncplumber.wire.fields import Headers

MAX_HEADER_TOKEN = 8192  # bytes of a credential in a header
MAX_PROTOCOL_TOKEN = 4096  # bytes of a token in a subprotocol, decoded: proxies limit that header
SUBPROTOCOL = b"plumber.bearer."  # and behind it the token in base64url
SEVERAL = "a request has one credential; this one has several"

_EVENTS = b"/events"
_VISIBLE = bytes(range(0x21, 0x7F))  # signs of ASCII, without the space
_BASE64URL = re.compile(rb"[A-Za-z0-9_-]+")


class Kind(Enum):
    """How a credential came."""

    BEARER = "bearer"  # in Authorization, or as a subprotocol
    COOKIE = "cookie"
    TICKET = "ticket"
    OTHER = "other"  # another scheme of Authorization, which only the application can read


class Credential(NamedTuple):
    """
    What a request shows.

    Attributes:
        kind: How it came.
        value: The token, the key or the ticket; empty for `Kind.OTHER`.
    """

    kind: Kind
    value: str

    def __repr__(self) -> str:
        # It may be in a traceback.
        return f"<Credential {self.kind.value}>"


def find(facts: Facts, cookie_name: str | None, tickets_enabled: bool) -> Credential | None:
    """
    Return the credential that decides about a request; None if there is none.

    Args:
        facts: The request.
        cookie_name: The name of the cookie with a token; None if no cookie is accepted.
        tickets_enabled: Whether ``?ticket=`` is accepted.

    Raises:
        BadRequest: There are several, or one where it may not be.
        InvalidToken: It is longer than any credential, or a ticket although there are no tickets.
        NotAllowed: A cookie, and nothing shows that a page of ours sent it.
    """
    headers = facts.headers
    found = _authorization(headers[b"authorization"]) if b"authorization" in headers else None
    if facts.upgrade and b"sec-websocket-protocol" in headers:
        protocol = _subprotocol(headers[b"sec-websocket-protocol"])
        if protocol is not None:
            found = _only(found, protocol)
    if b"?" in facts.target:
        ticket = _query(facts, tickets_enabled)
        if ticket is not None:
            found = _only(found, ticket)
    if found is None and cookie_name is not None and facts.action is Action.SUBSCRIBE:
        value = cookie(headers, cookie_name)
        if value is not None:
            check_ambient(facts)
            return Credential(Kind.COOKIE, value)
    return found


def _only(found: Credential | None, other: Credential) -> Credential:
    if found is not None:
        raise BadRequest(SEVERAL)
    return other


def _authorization(value: bytes) -> Credential:
    """Read the header (RFC 9110, 11.6.2; RFC 6750, 2.1)."""
    scheme, _, token = value.partition(b" ")
    if scheme.lower() != b"bearer":
        return Credential(Kind.OTHER, "")
    token = token.strip(b" ")
    if b"," in token and b" " in token:  # two headers are joined by a comma
        raise BadRequest(SEVERAL)
    if b"," in token or token.translate(None, _VISIBLE):  # such as a token in the JSON form
        raise InvalidToken(Reason.MALFORMED)
    if len(token) > MAX_HEADER_TOKEN:
        raise InvalidToken(Reason.TOO_LONG)
    return Credential(Kind.BEARER, token.decode("ascii"))


def _subprotocol(value: bytes) -> Credential | None:
    """
    Read the token in ``plumber.v1, plumber.bearer.<base64url>``, which a browser can send.

    The rules are those of the Kubernetes API server: one token, in base64url without padding, of
    UTF-8, and another subprotocol beside it that the handshake can choose.
    """
    entries = [entry.strip() for entry in value.split(b",")]
    tokens = [entry for entry in entries if entry.startswith(SUBPROTOCOL)]
    if not tokens:
        return None
    if len(tokens) > 1:
        raise BadRequest(SEVERAL)
    if len(entries) == 1:
        raise BadRequest("offer another subprotocol beside the credential, such as plumber.v1")
    encoded = tokens[0].removeprefix(SUBPROTOCOL)
    # Four characters for three bytes: longer than that is not worth decoding.
    if len(encoded) > -(-MAX_PROTOCOL_TOKEN * 4 // 3):
        raise InvalidToken(Reason.TOO_LONG)
    try:
        token = decode_base64url(encoded).decode()
    except ValueError:
        raise BadRequest(
            "behind plumber.bearer. is a credential in base64url without padding"
        ) from None
    return Credential(Kind.BEARER, token)


def _query(facts: Facts, tickets_enabled: bool) -> Credential | None:
    text = facts.target.partition(b"?")[2].decode("latin-1")
    fields = parse_qsl(text, keep_blank_values=True)
    if any(name == "access_token" for name, _ in fields):
        raise BadRequest(
            "a token does not belong in a URL, which logs show: send it as Authorization: Bearer, "
            "or get a ticket for ?ticket= from POST /tickets"
        )
    tickets = [value for name, value in fields if name == "ticket"]
    if not tickets:
        return None
    if len(tickets) > 1:
        raise BadRequest(SEVERAL)
    if facts.action is not Action.SUBSCRIBE or not facts.target.startswith(_EVENTS):
        raise BadRequest("a ticket is for GET /events only")
    if not tickets_enabled:
        raise InvalidToken(Reason.UNKNOWN)
    if len(tickets[0]) > MAX_HEADER_TOKEN:
        raise InvalidToken(Reason.TOO_LONG)
    return Credential(Kind.TICKET, tickets[0])


def cookie(headers: Headers, name: str) -> str | None:
    """
    Return the value of a cookie; None if the request has none of that name.

    Raises:
        BadRequest: There are several with different values: a neighbouring domain may have set one.
        InvalidToken: It is longer than any credential.
    """
    header = headers.get(b"cookie")
    if header is None:
        return None
    wanted = name.encode("ascii")
    # Split at semicolons only.  At a comma another site's cookie could begin one of ours.
    pairs = [pair.partition(b"=") for pair in header.split(b";")]
    values = {value.strip().strip(b'"') for key, _, value in pairs if key.strip() == wanted}
    if not values:
        return None
    if len(values) > 1:
        raise BadRequest(SEVERAL)
    value = values.pop()
    if len(value) > MAX_HEADER_TOKEN:
        raise InvalidToken(Reason.TOO_LONG)
    return value.decode("latin-1")


def check_ambient(facts: Facts) -> None:
    """
    Raise `NotAllowed` if a cookie may come from the request of a foreign page.

    A browser attaches cookies to the requests of any page.  An Origin was checked before.  Without
    one, a WebSocket comes from no browser.  A GET comes from a page of our own origin only if the
    browser says so: requests for images have no Origin either.
    """
    headers = facts.headers
    if b"origin" in headers:
        return
    if facts.upgrade or headers.get(b"sec-fetch-site") != b"same-origin":
        raise NotAllowed("a cookie counts only in the requests of pages that are allowed")


def decode_base64url(text: bytes) -> bytes:
    """
    Decode base64url without padding (RFC 7515, 2), in its one canonical form.

    Raises ValueError for anything else, also for bits that are left over and not zero: no two
    texts may stand for the same token.
    """
    if not _BASE64URL.fullmatch(text):
        raise ValueError("not base64url")
    decoded = urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    if urlsafe_b64encode(decoded).rstrip(b"=") != text:
        raise ValueError("not the canonical form")
    return decoded
