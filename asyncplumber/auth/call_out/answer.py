"""
What the application's response to a question means.  Pure.

As with nginx's ``auth_request``, 2xx allows, and 401 and 403 refuse.  Everything else means that
nobody knows: the client is told to come again, and nothing is allowed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from asyncplumber.auth.fetch import Reply
from asyncplumber.auth.strict_json import parse_object
from asyncplumber.errors import NotAllowed, PlumberError, Unauthenticated
from asyncplumber.event import is_plain
from asyncplumber.grant import NO_ACCOUNTS, Accounts, Action, Grant

MAX_REFUSAL = 4096  # bytes of a body that are passed on
LONGEST = 366 * 86400  # seconds that a permission may last

_LISTS = ("subscribe", "publish", "start")
# The body of a refusal was written for the application's own pages.  Here nothing in it runs.
_HARMLESS = (b"Content-Security-Policy", b"default-src 'none'; sandbox")


class Unusable(Exception):
    """The response allows and refuses nothing; `reason` is one of a few words, for metrics."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class CallOutUnauthenticated(Unauthenticated):
    """The application says 401.  Its challenge and its body are passed on."""

    def __init__(self, refused: Refused) -> None:
        super().__init__("the application wants another credential", reason="call-out")
        self.body = refused.body
        self.challenge = refused.challenge or Unauthenticated.challenge
        self._harmless = (_HARMLESS,) if refused.body is not None else ()

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The headers of the response."""
        return (*super().headers, *self._harmless)


class CallOutRefused(NotAllowed):
    """The application says 403.  Its body is passed on."""

    def __init__(self, refused: Refused) -> None:
        super().__init__("the application does not allow this")
        self.body = refused.body
        challenge = refused.challenge
        self.headers = (
            *(((b"WWW-Authenticate", challenge),) if challenge is not None else ()),
            *((_HARMLESS,) if refused.body is not None else ()),
        )


class Refused(NamedTuple):
    """
    The application refuses.

    Attributes:
        status: 401 or 403.
        challenge: Its ``WWW-Authenticate``; None if it sent none.
        body: Its content type and body; None if it sent none, or a longer one than is passed on.
    """

    status: int
    challenge: bytes | None = None
    body: tuple[bytes, bytes] | None = None

    @property
    def error(self) -> PlumberError:
        """A new error; one that is raised twice would keep the traceback of both."""
        return CallOutUnauthenticated(self) if self.status == 401 else CallOutRefused(self)


@dataclass(frozen=True, slots=True)
class Allowed:
    """
    The application allows.

    Attributes:
        subject: Who the client is; empty if the application does not say so.
        subscribe: What it may subscribe to; None: the account that was asked about.
        publish: What it may publish to; None: the account that was asked about.
        start: Whose tasks it may start; None: those of the account that was asked about.
        expires_in: Seconds from the response on; None: until the application says otherwise.
    """

    subject: str = ""
    subscribe: Accounts | None = None
    publish: Accounts | None = None
    start: Accounts | None = None
    expires_in: float | None = None

    def grant(self, action: Action | None, account: str | None, now: float) -> Grant:
        """
        Return what this allows.

        A response without lists allows one action with the one account that was asked about.

        Args:
            action: The action that was asked about.
            account: The account; None if the request names it in its body, or concerns none.
            now: Seconds since 1970 at which the response came.
        """
        asked = Accounts(frozenset({account})) if account is not None else NO_ACCOUNTS
        said = {
            Action.SUBSCRIBE: self.subscribe,
            Action.PUBLISH: self.publish,
            Action.START: self.start,
        }
        allowed = {
            each: accounts if accounts is not None else asked if each is action else NO_ACCOUNTS
            for each, accounts in said.items()
        }
        return Grant(
            self.subject,
            allowed[Action.SUBSCRIBE],
            allowed[Action.PUBLISH],
            None if self.expires_in is None else now + self.expires_in,
            now,
            mechanism="call-out",
            start=allowed[Action.START],
        )


def read(reply: Reply) -> Allowed | Refused:
    """
    Return what a response means.

    Raises:
        Unusable: It has another status, or a body that is malformed.
    """
    if reply.status in (401, 403):
        challenge = reply.headers.get(b"www-authenticate")
        content_type = reply.headers.get(b"content-type", b"text/plain")
        passed_on = 0 < len(reply.body) <= MAX_REFUSAL
        return Refused(reply.status, challenge, (content_type, reply.body) if passed_on else None)
    if not 200 <= reply.status < 300:
        raise Unusable("status", f"the response has status {reply.status}")
    if not _is_json(reply):
        return Allowed()
    try:
        return _allowed(parse_object(reply.body))
    except ValueError as error:
        raise Unusable("malformed", f"the body of the response is wrong: {error}") from None


def _is_json(reply: Reply) -> bool:
    """
    Whether a body that is there has to be what `_allowed` takes.

    The text of an existing endpoint, such as ``OK``, says nothing.  What looks like JSON counts
    whatever its type is: a limit in it must not be overlooked.
    """
    text = reply.body.strip()
    if not text:
        return False
    kind = reply.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return not kind or kind == b"application/json" or kind.endswith(b"+json") or text[:1] in b"{["


def _allowed(body: dict[str, Any]) -> Allowed:
    """
    Read the members that are ours, and ignore all others.

    Raises:
        ValueError: One of ours is wrong.
    """
    subject = body.get("sub", "")
    if "sub" in body and not (isinstance(subject, str) and is_plain(subject)):
        raise ValueError("sub is a text of 1 to 256 characters")
    lists = {name: Accounts.parse(body[name]) for name in _LISTS if name in body}
    expires_in = body.get("expires_in")
    if "expires_in" in body and (
        isinstance(expires_in, bool)
        or not isinstance(expires_in, int | float)
        or not math.isfinite(expires_in)
        or not 0 < expires_in <= LONGEST
    ):
        raise ValueError(f"expires_in is a number of seconds, at most {LONGEST}")
    return Allowed(
        subject, lists.get("subscribe"), lists.get("publish"), lists.get("start"), expires_in
    )
