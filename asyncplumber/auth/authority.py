"""Decides what a request may do, by the ways to authenticate that are configured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.auth.credentials import Credential, Kind, find
from asyncplumber.auth.reasons import Reason
from asyncplumber.errors import InvalidToken, PlumberError, Unauthenticated
from asyncplumber.figures import Metric
from asyncplumber.grant import NO_ACCOUNTS, Action, Grant
from asyncplumber.interfaces import AwaitsBody, Decision, Facts, IAuthority

#: Ends the open streams whose grant and account match, with this error.
End = Callable[[Callable[[Grant, str], bool], PlumberError], object]


class Tokens(Protocol):
    """Verifies tokens."""

    def grant(self, token: str, action: Action | None) -> Grant | Deferred[Grant]:
        """
        Return what a token allows, at once if it is known.

        Args:
            token: As it was sent.
            action: What is wanted: a stream needs a token that does not end in this moment.

        Raises:
            Unauthenticated: It is not valid.
            Unavailable: The keys cannot be had.
        """


class StaticKeys(Protocol):
    """Knows keys."""

    def grant(self, key: str) -> Grant | None:
        """Return what a key allows; None if there is no such key."""


class Tickets(Protocol):
    """Verifies and spends tickets."""

    def grant(self, ticket: str, facts: Facts) -> Grant | Deferred[Grant]:
        """Return what a ticket allows.  Raises `Unauthenticated` or `Unavailable`."""


class Senders(Protocol):
    """Knows who signs bodies."""

    def find(self, facts: Facts) -> AwaitsBody | None:
        """Return what verifies the body; None if no sender signs requests such as this one."""


class CallOut(Protocol):
    """Asks the application."""

    @property
    def forwards(self) -> Collection[bytes]:
        """The headers that it shows to the application, in lower case."""

    def grant(self, facts: Facts) -> Grant | Deferred[Grant]:
        """Return what the application allows.  Raises its refusal, or `Unavailable`."""


class Backing(Protocol):
    """What the parts of an authority need beside requests, such as keys from elsewhere."""

    def start(self) -> None:
        """Begin to fetch, to watch and to ask."""

    def stop(self) -> Deferred[None]:
        """Do so no more.  The Deferred fires when idle connections are closed."""

    def check_ready(self) -> None:
        """Raise `Unavailable` if not all is there that the first request may need."""

    def metrics(self) -> Sequence[Metric]:
        """Return what it counts and measures."""

    def end_by(self, end: End) -> None:
        """Let this end open streams that are not allowed any more."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """
    The ways to authenticate; each is None where it is not configured.

    Attributes:
        tokens: JSON Web Tokens.
        keys: Static keys.
        tickets: What ``?ticket=`` is.
        senders: Those who sign the body of a POST.
        call_out: Asks the application about all others.
        anonymous: What a request without credential may do.  It never stands in for a bad one.
        cookie: The name of the cookie that may have a token.
    """

    tokens: Tokens | None = None
    keys: StaticKeys | None = None
    tickets: Tickets | None = None
    senders: Senders | None = None
    call_out: CallOut | None = None
    anonymous: Grant | None = None
    cookie: str | None = None


@implementer(IAuthority)
class Authority:
    """
    Finds the credential of a request, and asks the part that can judge it.

    `parts` may be replaced at any time, as a whole.

    Attributes:
        backing: What stands behind the parts and has to be started; None if there is nothing.
    """

    def __init__(self, parts: Parts, backing: Backing | None = None) -> None:
        self.backing = backing
        self._tickets: Tickets | None = None
        self.parts = parts

    @property
    def parts(self) -> Parts:
        """What it asks."""
        return self._parts

    @parts.setter
    def parts(self, parts: Parts) -> None:
        self._parts = parts if parts.tickets else replace(parts, tickets=self._tickets)

    def accept_tickets(self, tickets: Tickets) -> None:
        """Accept these from now on: they are no configuration, they come with the store."""
        self._tickets = tickets
        self.parts = self.parts

    def grant(self, facts: Facts) -> Decision | Deferred[Grant]:
        """See `IAuthority`."""
        parts = self.parts
        credential = find(facts, parts.cookie, parts.tickets is not None)
        if credential is not None and credential.kind is not Kind.OTHER:
            return _judge(parts, credential, facts)
        # A provider may put a user and a password into the URL beside its signature.
        signed = parts.senders.find(facts) if parts.senders is not None else None
        if signed is not None:
            return signed
        if parts.call_out is not None and (
            credential is None or b"authorization" in parts.call_out.forwards
        ):
            return parts.call_out.grant(facts)
        if credential is not None:
            raise Unauthenticated(reason=Reason.SCHEME)
        if parts.anonymous is not None:
            return parts.anonymous
        raise Unauthenticated(reason=Reason.NONE)


def _judge(parts: Parts, credential: Credential, facts: Facts) -> Grant | Deferred[Grant]:
    """Ask the one part that can judge this credential."""
    kind, value = credential
    if kind is Kind.TICKET:
        assert parts.tickets is not None, "else it was refused"
        return parts.tickets.grant(value, facts)
    if kind is Kind.COOKIE:
        found = _by_token(parts, value, facts)
        return found.addCallback(_by_cookie) if isinstance(found, Deferred) else _by_cookie(found)
    granted = parts.keys.grant(value) if parts.keys is not None else None
    if granted is not None:
        return granted
    # It may be a token of the application's own.  Where the application does not see it, the answer
    # would be about something else, such as a cookie.
    if (
        parts.tokens is None
        and parts.call_out is not None
        and b"authorization" in parts.call_out.forwards
        and b"authorization" in facts.headers
    ):
        return parts.call_out.grant(facts)
    return _by_token(parts, value, facts)


def _by_token(parts: Parts, token: str, facts: Facts) -> Grant | Deferred[Grant]:
    if parts.tokens is None:
        raise InvalidToken(Reason.UNKNOWN)
    return parts.tokens.grant(token, facts.action)


def _by_cookie(grant: Grant) -> Grant:
    # It counts for subscribing only, and a WebSocket can start tasks as well.
    return replace(grant, publish=NO_ACCOUNTS, start=NO_ACCOUNTS, mechanism="cookie")
