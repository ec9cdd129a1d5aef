"""The boundary of authentication: from what a request carries to what it may do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from twisted.internet.defer import Deferred
from zope.interface import Interface

from asyncplumber.grant import Action, Grant


class Facts(NamedTuple):
    """
    What is known of a request when its head has arrived.

    Attributes:
        method: Its method.
        target: Path and query, below our root, as they were sent.
        headers: With names in lower case.
        action: What it wants to do; None if it concerns no account, such as an admin request.
        account: With which account; None if the body names it, or if none is concerned.
        address: The address of the client, as `--trusted-proxies` lets it be known; empty for a
            UNIX socket.
        upgrade: Whether it wants a WebSocket.
    """

    method: bytes
    target: bytes
    headers: Mapping[bytes, bytes]
    action: Action | None
    account: str | None
    address: str = ""
    upgrade: bool = False


class Verified(NamedTuple):
    """
    A body whose signature is right.

    Attributes:
        grant: What its sender may do.
        headers: Those of the request, with the ones that `wire.parse` reads an id and a type from
            in place of the sender's own.
        key: By what the duplicate check knows the event; None for its id.
        reply: A JSON body that answers the request in place of a receipt, and no event is taken;
            None as a rule.
    """

    grant: Grant
    headers: Mapping[bytes, bytes]
    key: str | None = None
    reply: bytes | None = None


class AwaitsBody(NamedTuple):
    """
    Nobody can say before the body is there, because it is signed.

    Attributes:
        verify: Called with the whole body; returns `Verified` or raises `Unauthenticated`.
    """

    verify: Callable[[bytes], Verified]


Decision = Grant | AwaitsBody


class IAuthority(Interface):
    """Says what the sender of a request may do."""

    def grant(facts: Facts) -> Decision | Deferred[Grant]:
        """
        Return what the request's credential allows, at once if it is known.

        It does not compare that with the action and the account of `facts`: the gate does.  A
        credential that is bad is refused.  It never counts as none.

        Raises:
            BadRequest: The request has a credential in a place where none may be, or several.
            Unauthenticated: It has none, or a bad one.
            NotAllowed: The application refuses it (call-out).
            TooManyRequests: A limit was reached.
            Unavailable: Nobody can say now, such as while the application is down.

        They are raised, or fail the Deferred.  A Deferred may be cancelled: the client has left.
        """
