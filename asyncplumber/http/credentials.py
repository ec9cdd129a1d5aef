"""What an instance with authentication has beside its authority: revocations and tickets."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from asyncplumber.auth.authority import Authority
from asyncplumber.auth.revocations import RevocationPoll, RevokedGrants
from asyncplumber.auth.tickets import Tickets
from asyncplumber.errors import GrantRevoked, PlumberError
from asyncplumber.figures import Gauge, Metric
from asyncplumber.grant import Grant
from asyncplumber.http.credential_pages import CredentialPages
from asyncplumber.http.gate import Gate
from asyncplumber.interfaces import IAuthority, IStore


class Credentials:
    """
    Knows what is revoked, ends the streams concerned, and makes tickets.

    Attributes:
        revoked: What is revoked.
        pages: ``/revocations`` and ``/tickets``.
    """

    def __init__(
        self,
        store: IStore,
        authority: IAuthority,
        gate: Gate,
        end: Callable[[Callable[[Grant, str], bool], PlumberError], None],
        clock: IReactorTime,
        now: Callable[[], float],
    ) -> None:
        """
        Args:
            store: What the instances share.
            authority: Accepts tickets, if it is ours.
            gate: Asks whether a grant is revoked.
            end: Ends what is open of the grants and accounts that match, with this error.
            clock: The reactor's clock.
            now: Returns the time in seconds since 1970.
        """
        self._end = end
        revocations = store.revocations
        self.revoked = RevokedGrants(now)
        self._poll = RevocationPoll(revocations, self.revoked, clock, self._end_revoked)
        gate.check_revoked = self.revoked.check
        tickets = self._backing = None
        if isinstance(authority, Authority):
            self._backing = authority.backing
            tickets = Tickets(store, revocations, clock, now)
            authority.accept_tickets(tickets)
        if self._backing is not None:
            self._backing.end_by(self._end)
        self.pages = CredentialPages(revocations, self.revoked, self._poll, tickets, now)

    def open(self) -> None:
        """Begin to fetch what decides about credentials and is not in the store."""
        if self._backing is not None:
            self._backing.start()

    def check_ready(self) -> None:
        """Raise `Unavailable` if something that decides about credentials is not there yet."""
        if self._backing is not None:
            self._backing.check_ready()

    async def learn(self) -> None:
        """Learn what is revoked.  Returns when it is known, or the store takes too long."""
        await self._poll.learn()

    def start(self) -> None:
        """Look what is revoked from now on."""
        self._poll.start()

    async def stop(self) -> None:
        """Look for revocations no more, and fetch nothing."""
        self._poll.stop()
        if self._backing is not None:
            await self._backing.stop()

    def figures(self) -> list[Metric]:
        """Return what metrics show of it."""
        return [
            Gauge(
                "revocations",
                "Revocations that have not ended.",
                lambda: len(self.revoked),
                merge="max",
            ),
            Gauge(
                "revocations_age_seconds",
                "Seconds since the store was last asked for revocations.",
                lambda: self._poll.age,
                merge="max",
            ),
            *(self._backing.metrics() if self._backing is not None else ()),
        ]

    def _end_revoked(self) -> None:
        self._end(self.revoked.covers, GrantRevoked())
