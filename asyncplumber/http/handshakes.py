"""
What services ask a callback URL before they use it: whether its owner wants their requests.

Each answer is made of what the service has sent, so it is short, plain and cannot be a page.  No
handshake makes an event.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from asyncplumber.auth.senders.callback_senders import zoom_token
from asyncplumber.errors import BadRequest, NotAllowed
from asyncplumber.http.responses import Response, json_response
from asyncplumber.interfaces import CallbackUrl
from asyncplumber.wire.callbacks import at_pointer
from asyncplumber.wire.fields import Headers
from asyncplumber.wire.json_text import value

TEXT = b"text/plain; charset=utf-8"
LONGEST_ECHO = 512  # characters
LONGEST_BODY = 16 * 1024  # bytes; what is longer asks nothing
_SAFE = re.compile(r"[A-Za-z0-9._~+/=-]{1,512}")
# Microsoft Graph asks with the sentence "Validation: Testing client application reachability …".
_SAFE_SENTENCE = re.compile(r"[A-Za-z0-9._~+/=: -]{1,512}")


@dataclass(frozen=True, slots=True)
class Asked:
    """
    A request to a callback URL.

    Attributes:
        row: What is known of the URL.
        token: Its last segment.
        query: Its parameters.
        headers: Those of the request.
        text: The body as JSON in one line; None if it is none, or longer than `LONGEST_BODY`.
        rate: POSTs a minute that the URL takes; 0 for any number.
    """

    row: CallbackUrl
    token: str = field(repr=False)
    query: Mapping[str, Sequence[str]] = field(repr=False)
    headers: Headers = field(repr=False)
    text: bytes | None = field(default=None, repr=False)
    rate: int = 0

    def parameter(self, name: str) -> str | None:
        """Return a parameter of the query, None if it is not there."""
        found = self.query.get(name)
        return found[0] if found else None

    def member(self, pointer: str) -> str | None:
        """Return a string of the body, None if there is none at this place."""
        found = at_pointer(self.text, pointer) if self.text is not None else None
        return value(found) if found is not None and found[:1] == b'"' else None

    def header(self, name: bytes) -> str | None:
        """Return a header, None if it is not there."""
        found = self.headers.get(name)
        return None if found is None else found.decode("utf-8", "replace")


Handshake = Callable[[Asked], Response | None]


def _safe(text: str, pattern: re.Pattern[str] = _SAFE) -> str:
    if not pattern.fullmatch(text):
        raise BadRequest(
            f"a challenge is 1 to {LONGEST_ECHO} letters, digits and characters of ._~+/=-"
        )
    return text


def _echo(text: str | None) -> Response | None:
    return None if text is None else Response(200, TEXT, _safe(text).encode("ascii"))


# GET


def _meta(asked: Asked) -> Response | None:
    """Meta and WhatsApp: the challenge, if they know what the owner of the URL told them."""
    challenge = asked.parameter("hub.challenge")
    if challenge is None:
        return None
    given = (asked.parameter("hub.verify_token") or "").encode("utf-8", "surrogatepass")
    known = (asked.token, asked.row.secret or asked.token)
    matches = [hmac.compare_digest(given, one.encode()) for one in known]
    if not any(matches):
        raise NotAllowed("hub.verify_token is the token of this URL, or its secret")
    return _echo(challenge)


def _challenge(asked: Asked) -> Response | None:
    """Dropbox, Nylas, Lucca: what they have sent."""
    given = asked.parameter("challenge")
    return _echo(asked.parameter("echo") if given is None else given)


def _okta(asked: Asked) -> Response | None:
    given = asked.header(b"x-okta-verification-challenge")
    return None if given is None else json_response(200, {"verification": _safe(given)})


# POST


def _graph(asked: Asked) -> Response | None:
    """Microsoft Graph: the decoded parameter of a POST without a body."""
    given = asked.parameter("validationToken")
    if given is None:
        return None
    return Response(200, TEXT, _safe(given, _SAFE_SENTENCE).encode("ascii"))


def _event_grid(asked: Asked) -> Response | None:
    """Azure Event Grid: an array with one event."""
    if asked.member("/0/eventType") != "Microsoft.EventGrid.SubscriptionValidationEvent":
        return None
    code = asked.member("/0/data/validationCode") or ""
    return json_response(200, {"validationResponse": _safe(code)})


def _zoom(asked: Asked) -> Response | None:
    """Zoom: the token and its HMAC.  See `zoom_token` for why it has no colon."""
    if asked.row.scheme != "zoom" or asked.member("/event") != "endpoint.url_validation":
        return None
    plain = _safe(asked.member("/payload/plainToken") or "")
    encrypted = zoom_token(asked.row.secret, plain)
    return json_response(200, {"plainToken": plain, "encryptedToken": encrypted})


def _slack(asked: Asked) -> Response | None:
    """Slack: the challenge."""
    if asked.member("/type") != "url_verification":
        return None
    return _echo(asked.member("/challenge") or "")


# OPTIONS


def _cloudevents(asked: Asked) -> Response | None:
    """
    Every sender of CloudEvents may send, at the rate that is taken.

    See "Abuse protection" in the specification of CloudEvents' webhooks, version 1.0.
    """
    origin = asked.header(b"webhook-request-origin")
    if origin is None:
        return None
    rate = str(asked.rate) if asked.rate else "*"
    return Response(
        200,
        TEXT,
        b"",
        (
            (b"WebHook-Allowed-Origin", _safe(origin).encode("ascii")),
            (b"WebHook-Allowed-Rate", rate.encode("ascii")),
            (b"Allow", b"GET, OPTIONS, POST"),
        ),
    )


_GET: tuple[Handshake, ...] = (_meta, _challenge, _okta)
#: What is asked without a signature, also by those who sign their events.
_UNSIGNED_POST: tuple[Handshake, ...] = (_graph, _event_grid, _zoom)
#: What is asked with the signature that the URL wants.
_SIGNED_POST: tuple[Handshake, ...] = (_slack,)
_OPTIONS: tuple[Handshake, ...] = (_cloudevents,)
_TABLES = {b"GET": _GET, b"HEAD": _GET, b"OPTIONS": _OPTIONS}


def _first(asked: Asked, handshakes: Sequence[Handshake]) -> Response | None:
    found = (handshake(asked) for handshake in handshakes)
    return next((response for response in found if response is not None), None)


def answer(method: bytes, asked: Asked) -> Response | None:
    """
    Return the answer to a handshake by GET or OPTIONS, None if it is none.

    Raises:
        BadRequest: Its text is not safe to be sent back.
        NotAllowed: It does not know what the owner of the URL told the service.
    """
    return _first(asked, _TABLES[method])


def answer_post(asked: Asked, *, is_signed: bool) -> Response | None:
    """
    Return the answer to a handshake by POST, None if it is none.

    Args:
        asked: The request.
        is_signed: Whether its signature was looked at, and found right where the URL wants one.

    Raises:
        BadRequest: Its text is not safe to be sent back.
    """
    return _first(asked, _SIGNED_POST if is_signed else _UNSIGNED_POST)


def is_sns_confirmation(headers: Headers) -> bool:
    """
    Whether Amazon SNS wants a URL to be visited, which confirms a subscription.

    That URL is not visited from here: anybody could have it be any address of our own network.
    """
    return headers.get(b"x-amz-sns-message-type") == b"SubscriptionConfirmation"


def confirmation(text: bytes) -> bytes:
    """
    Return what people of the account are to be told of it, as JSON.

    Raises:
        BadRequest: It is not what SNS sends.
    """
    names = ("TopicArn", "Message", "SubscribeURL", "Timestamp")
    told = {}
    for name in names:
        found = at_pointer(text, f"/{name}")
        if found is not None and found[:1] == b'"':
            told[name] = value(found)
    if not told.get("SubscribeURL", "").startswith("https://"):
        raise BadRequest("this confirms no subscription of Amazon SNS")
    return json.dumps(told).encode("ascii")
