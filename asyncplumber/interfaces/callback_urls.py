"""The boundary of callback URLs: for people and services that have no credential of their own."""

from __future__ import annotations

from dataclasses import dataclass, field

from twisted.internet.defer import Deferred
from zope.interface import Interface

REMEMBERED_URL = 86_400.0  # seconds for which an expired URL can be told from one that never was


@dataclass(frozen=True, slots=True)
class CallbackUrl:
    """
    A URL whose last segment is the credential.

    Attributes:
        digest: SHA-256 of the token in the URL.  The token itself is nowhere in a store.
        account: The account that its POSTs are for.
        expires_at: Seconds since 1970 after which it is refused with 410.  The row is kept for
            another day, so that it can be told from a URL that never was.
        task: The key of the task that its POSTs report; empty for plain events.
        run: The run of the task; empty for the newest one.
        ends: Whether it may report the end of the run.
        scheme: How its POSTs are signed; empty for not at all: then the URL is the secret.
        secret: What they are signed with.
        pointer: Where in a JSON body the state is (RFC 6901); empty for the known places.
        type_prefix: How the types of its events must begin; empty for any.
        id: By what it can be listed and removed; it is no secret.
    """

    digest: bytes = field(repr=False)
    account: str
    expires_at: float
    task: str = ""
    run: str = ""
    ends: bool = True
    scheme: str = ""
    secret: str = field(default="", repr=False)
    pointer: str = ""
    type_prefix: str = ""
    id: str = ""


class ICallbackUrls(Interface):
    """The callback URLs of all accounts.  Every method may fail with `Unavailable`."""

    def add(url: CallbackUrl) -> Deferred[None]:
        """Add one.  It is durable when the Deferred fires."""

    def get(digest: bytes) -> Deferred[CallbackUrl | None]:
        """Return the one with this digest, also if it has expired; None if there is none."""

    def of_account(account: str, limit: int) -> Deferred[list[CallbackUrl]]:
        """Return those of an account that have not expired, in the order of their ids."""

    def remove(account: str, id: str) -> Deferred[bool]:
        """Remove one, and return whether it was there."""

    def expire(account: str, task: str, run: str, at: float) -> Deferred[None]:
        """Let those of a run expire at this time, in seconds since 1970, if not earlier."""

    def sweep() -> Deferred[int]:
        """Delete those that expired more than a day ago, and return how many."""
