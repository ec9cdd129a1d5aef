"""
URLs whose last segment is the credential: how they are made, found, and when they end.

A token is 128 random bits.  It says nothing about the account, and the store has only its digest.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from secrets import token_bytes, token_hex
from typing import NamedTuple

from twisted.internet.defer import Deferred

from asyncplumber.auth.limits.rates import Limiter, Rate
from asyncplumber.core.tasks.settings import CALLBACK_RATE
from asyncplumber.interfaces import CallbackUrl, ICallbackUrls
from asyncplumber.task import Task

PATH = "/callbacks/"
TOKEN_BYTES = 16
AFTER_END = 86_400.0  # seconds after the end of its run that a URL answers repeated POSTs
# Seconds.  The end of a run shortens it.  This is for runs of which nobody ever hears an end.
LONGEST = 366 * 86_400.0
MAX_LISTED = 1000  # URLs of one account in a list


def digest_of(token: str) -> bytes:
    """Return what the store knows of a token; any text is one."""
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


class Minted(NamedTuple):
    """
    A new URL.

    Attributes:
        row: What the store has of it.
        token: Its last segment.
        url: The whole URL.
    """

    row: CallbackUrl
    token: str
    url: str

    def __repr__(self) -> str:
        # It may be in a traceback.
        return f"<callback URL {self.row.id}>"


class CallbackMint:
    """
    Makes callback URLs, and finds them.

    Attributes:
        rate: POSTs that one URL may get in a minute; 0 for any number.
    """

    def __init__(
        self,
        urls: ICallbackUrls,
        now: Callable[[], float],
        base: Callable[[], str],
        rate: int = CALLBACK_RATE,
        seconds: Callable[[], float] | None = None,
    ) -> None:
        """
        Args:
            urls: Where they are kept.
            now: Returns the time in seconds since 1970.
            base: Returns the URL below which clients and services reach this server.
            rate: POSTs that one URL may get in a minute, at this instance; 0 for any number.
            seconds: Returns the time by a clock that is never set; None takes ``now``.
        """
        self._urls = urls
        self._now = now
        self._base = base
        self.rate = rate
        self._limiter = Limiter(Rate(rate, rate / 60), seconds or now) if rate else None

    def mint(self, task: Task) -> Deferred[str]:
        """
        Return a URL at which a run can be reported, for the one who executes it.

        It may report the end.  It is good until a day after the end; see `ended`.

        Returns:
            A Deferred of the URL.  Fails with `Unavailable`.
        """
        made = self.add(
            lambda digest, id: CallbackUrl(
                digest, task.account, self._now() + LONGEST, task.key, task.run, id=id
            )
        )
        return made.addCallback(lambda minted: minted.url)

    def ended(self, task: Task) -> Deferred[None]:
        """
        Let the URLs of a run end a day after the run did.

        It is to be called, and may be repeated, before the end of the run is noted as announced.
        Then no crash leaves a URL that outlives its run.

        Returns:
            A Deferred that fails with `Unavailable`.
        """
        at = (self._now() if task.ended_at is None else task.ended_at) + AFTER_END
        return self._urls.expire(task.account, task.key, task.run, at)

    def add(self, row_of: Callable[[bytes, str], CallbackUrl]) -> Deferred[Minted]:
        """
        Keep a new URL.

        Args:
            row_of: Returns its row, from the digest of its token and from its id.

        Returns:
            A Deferred that fires when it is durable.  Fails with `Unavailable`.
        """
        token = urlsafe_b64encode(token_bytes(TOKEN_BYTES)).rstrip(b"=").decode("ascii")
        row = row_of(digest_of(token), token_hex(8))
        minted = Minted(row, token, self.url_of(token))
        return self._urls.add(row).addCallback(lambda _: minted)

    def url_of(self, token: str) -> str:
        """Return the URL with this token."""
        return f"{self._base().rstrip('/')}{PATH}{token}"

    def of_account(self, account: str) -> Deferred[list[CallbackUrl]]:
        """Return those of an account that have not expired, at most `MAX_LISTED`."""
        return self._urls.of_account(account, MAX_LISTED)

    def remove(self, account: str, id: str) -> Deferred[bool]:
        """Remove one, and return whether it was there."""
        return self._urls.remove(account, id)

    def take(self, row: CallbackUrl, kind: str = "") -> float:
        """
        Count a POST, if the rate allows it.

        Args:
            row: The URL.
            kind: What is counted by itself, so that it is not refused because of others.

        Returns:
            0 if it was counted, or else the seconds after which it would be.
        """
        return 0.0 if self._limiter is None else self._limiter.take((row.digest, kind))

    def find(self, token: str) -> Deferred[CallbackUrl | None]:
        """
        Return what is known of a URL; None if nothing is.

        The work is the same for a token that exists, one that does not, and one that cannot exist.
        """
        digest = digest_of(token)

        def checked(row: CallbackUrl | None) -> CallbackUrl | None:
            known = row.digest if row is not None else b"\0" * len(digest)
            return row if hmac.compare_digest(known, digest) else None

        return self._urls.get(digest).addCallback(checked)
