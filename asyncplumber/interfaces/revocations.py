"""The boundary of what instances share about credentials: which are revoked, and which spent."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

MAX_REVOCATIONS = 10_000  # that have not ended, in one store: each instance keeps all in memory


class RevocationKind(Enum):
    """What a revocation names."""

    JTI = "jti"
    SUB = "sub"
    ACCOUNT = "account"


@dataclass(frozen=True, slots=True)
class Revocation:
    """
    Credentials that count no more.

    Attributes:
        kind: What `value` is.
        value: The id of a token, a subject, or an account.
        before: Seconds since 1970.  What was issued then or earlier is revoked, and what was issued
            later is not.  None for a token, which is revoked whenever it was issued.
        expires_at: Seconds since 1970, after which no such credential lives anyway.
    """

    kind: RevocationKind
    value: str
    before: float | None
    expires_at: float


class IRevocations(Interface):
    """
    What is revoked, and which tickets are spent, for all instances on one store.

    It is durable.  Rows that have ended are not returned and do not count, swept or not.
    """

    limit = Attribute("int: the most revocations that have not ended, `MAX_REVOCATIONS`")

    def revoke(revocation: Revocation) -> Deferred[Revocation]:
        """
        Add a revocation.

        If there is one of the same kind and value, the later `before` and the later end count.

        Returns:
            A Deferred of the row as it is now.

        Raises:
            TooManyRequests: It would be one more than `limit`.  Several instances that add rows at
                the same moment may go a little beyond.
            Unavailable: Both through the Deferred.
        """

    def version() -> Deferred[int]:
        """
        Return a number that is another one after each `revoke`, by one small read.

        When `revoke` has answered, all instances see the new number, and the row if they then read
        the rows.
        """

    def revocations() -> Deferred[list[Revocation]]:
        """Return all revocations that have not ended, in any order."""

    def spend(ticket: str, expires_at: float) -> Deferred[bool]:
        """
        Spend a ticket.

        Args:
            ticket: Its id, of at most 64 characters.
            expires_at: Seconds since 1970, after which nobody accepts it anyway.

        Returns:
            A Deferred of whether this call spent it.  Of all calls, at whichever instance, one
            returns True at most.
        """

    def sweep() -> Deferred[int]:
        """Delete the rows that have ended, and return how many revocations were among them."""
