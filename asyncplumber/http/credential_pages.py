"""``/revocations`` and ``/tickets``: from requests to what is revoked, and what is given out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

from asyncplumber.auth.origins import parse_origin
from asyncplumber.auth.revocations import RevocationPoll, RevokedGrants
from asyncplumber.auth.tickets import Tickets
from asyncplumber.errors import BadRequest, NotFound, Unauthenticated, Unavailable
from asyncplumber.event import checked_account, is_plain
from asyncplumber.grant import Grant
from asyncplumber.http.json_objects import members_of
from asyncplumber.http.responses import Response, json_response
from asyncplumber.interfaces import IRevocations, Revocation, RevocationKind

DEFAULT_LIFETIME = 86400.0  # seconds: no token lives longer, unless the configuration says so
LATEST = 1e11  # seconds since 1970: what is beyond is likely to be milliseconds
MAX_LIFETIME = 366 * 86400.0  # seconds
_NO_STORE = (b"Cache-Control", b"no-store")
# Clients that have shown no credential; their rights need no ticket.
_WITHOUT_CREDENTIAL = ("none", "anonymous")


def _time(value: object, name: str) -> float:
    """Return the seconds since 1970 of a number, or of a time as RFC 3339 writes it."""
    if isinstance(value, str):
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            time = None
        if time is not None and time.tzinfo is not None:
            return time.timestamp()
    elif (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        # Not `isfinite`, which raises for an integer beyond all floats.  With NaN this is False.
        and abs(value) < LATEST
    ):
        return float(value)
    raise BadRequest(
        f"{name} is a number of seconds since 1970, or a time such as 2026-01-01T12:00:00Z"
    )


def _named(members: dict[str, Any]) -> tuple[RevocationKind, str]:
    """Return what a request wants to be revoked."""
    kinds = [kind for kind in RevocationKind if kind.value in members]
    if len(kinds) != 1:
        raise BadRequest("say what to revoke by one of the members jti, sub and account")
    kind = kinds[0]
    value = members[kind.value]
    if not isinstance(value, str) or not is_plain(value):
        raise BadRequest(f"{kind.value} is 1 to 256 characters, without control characters")
    return kind, value


def parse_revocation(body: bytes, now: float) -> Revocation:
    """
    Return what a request wants to be revoked.

    Raises:
        BadRequest: It cannot be understood; the message says what is wrong.
    """
    members = members_of(body, ("jti", "sub", "account", "before", "expires_at"))
    kind, value = _named(members)
    expires_at = now + DEFAULT_LIFETIME
    if "expires_at" in members:
        expires_at = _time(members["expires_at"], "expires_at")
        if not now < expires_at <= now + MAX_LIFETIME:
            raise BadRequest("expires_at is in the future, and less than a year away")
    if kind is RevocationKind.JTI:
        if "before" in members:
            raise BadRequest("a token is revoked whenever it was issued: leave out before")
        return Revocation(kind, value, None, expires_at)
    before = _time(members["before"], "before") if "before" in members else now
    if not 0 <= before <= expires_at:
        raise BadRequest("before is after 1970, and not later than expires_at")
    return Revocation(kind, value, before, expires_at)


def _as_json(row: Revocation) -> dict[str, Any]:
    fields: dict[str, Any] = {row.kind.value: row.value}
    if row.before is not None:
        fields["before"] = row.before
    return {**fields, "expires_at": row.expires_at}


class CredentialPages:
    """Revokes, and gives tickets out.  The gate has looked at the credential."""

    def __init__(
        self,
        store: IRevocations,
        revoked: RevokedGrants,
        poll: RevocationPoll,
        tickets: Tickets | None,
        now: Callable[[], float],
    ) -> None:
        """
        Args:
            store: Where revocations go.
            revoked: What is revoked, as far as this instance knows.
            poll: Looks what is revoked.
            tickets: Makes tickets; None if none are accepted.
            now: Returns the time in seconds since 1970.
        """
        self._store = store
        self._revoked = revoked
        self._poll = poll
        self._tickets = tickets
        self._now = now

    async def revoke(self, body: bytes) -> Response:
        """Revoke what the body names; it is in force here when this returns."""
        row = await self._store.revoke(parse_revocation(body, self._now()))
        with suppress(Unavailable):  # it is in the store, and the next look will find it
            await self._poll.look()
        return json_response(201, _as_json(row), _NO_STORE)

    async def revocations(self) -> Response:
        """List what is revoked and has not ended, the last that ends first."""
        rows = sorted(await self._store.revocations(), key=lambda row: -row.expires_at)
        return json_response(200, {"revocations": [_as_json(row) for row in rows]}, _NO_STORE)

    async def ticket(self, body: bytes, grant: Grant) -> Response:
        """Give a ticket for one account out to a client that may subscribe to it."""
        if self._tickets is None:
            raise NotFound("no tickets are accepted here")
        if grant.mechanism in _WITHOUT_CREDENTIAL:
            raise Unauthenticated
        members = members_of(body, ("account", "origin"))
        account, origin = members.get("account"), members.get("origin")
        if not isinstance(account, str):
            raise BadRequest("account is the account that the ticket is for")
        if origin is not None:
            try:
                origin = parse_origin(origin)
            except (ValueError, AttributeError, TypeError):
                origin = "*"
            if "*" in origin:
                raise BadRequest("origin is an origin such as https://www.example.com")
        self._revoked.check(grant, checked_account(account))
        ticket, expires_in = await self._tickets.mint(grant, account, origin)
        return json_response(201, {"ticket": ticket, "expires_in": int(expires_in)}, _NO_STORE)
