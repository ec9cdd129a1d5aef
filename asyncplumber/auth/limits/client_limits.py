"""
The limits that strangers meet, in the order in which a request does: connection, credential, use.

Each method that refuses raises `TooManyRequests` with the seconds after which it would not.  All
of them return at once.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from asyncplumber.auth.limits.rates import Counts, Limiter, Rate
from asyncplumber.auth.limits.settings import NO_LIMITS, LimitSettings
from asyncplumber.errors import TooManyRequests
from asyncplumber.grant import Grant

# Begins the key of a client that is known by its address alone.  No subject has a control
# character, so nobody can use up what an address may.
_ADDRESS = "\0"
BUSY = 5  # seconds after which to try again where something has to be closed first


class Hold:
    """What a connection, a stream or a long-poll counts as, until it is released."""

    __slots__ = ("_counts", "_key")

    def __init__(self, counts: Counts, key: str) -> None:
        self._counts: Counts | None = counts
        self._key = key

    def release(self) -> None:
        """Count it no more.  Harmless if it was released before."""
        counts, self._counts = self._counts, None
        if counts is not None:
            counts.leave(self._key)


def subject_key(grant: Grant, address: str) -> str:
    """
    Return what the limits of subjects count by; empty where they do not apply.

    Args:
        grant: What the client may do.
        address: The key of its address; see `ClientAddress`.
    """
    if grant.subject and grant.mechanism != "anonymous":
        return grant.subject
    return _ADDRESS + address if address else ""


class ClientLimits:
    """All limits of one process, with what each client has used of them."""

    def __init__(self, settings: LimitSettings, seconds: Callable[[], float]) -> None:
        """``seconds`` returns the time in seconds, by a clock that is never set."""
        self.settings = settings
        #: Whether there is any limit.
        self.in_force = settings != NO_LIMITS

        def limiter(rate: Rate | None) -> Limiter | None:
            return Limiter(rate, seconds) if rate is not None else None

        self._failures = limiter(settings.failures_per_address)
        self._handshakes = limiter(settings.handshakes_per_address)
        self._polls = limiter(settings.polls_per_address)
        self._posts = limiter(settings.posts_per_subject)
        self._bytes = limiter(settings.posted_bytes_per_subject)
        self._publishers = limiter(settings.posts_per_publisher)
        self._publishers_bytes = limiter(settings.posted_bytes_per_publisher)
        self._replays = limiter(settings.replayed_bytes_per_subject)
        self._accounts = limiter(settings.new_accounts_per_subject)
        self._accounts_by_address = limiter(settings.new_accounts_per_address)
        self._connections = Counts()  # by address
        self._streams = Counts()  # by subject
        self._open_accounts = Counts()  # by subject
        self._openers: dict[str, str] = {}  # who opened each account that is open

    @staticmethod
    def _refuse(limit: str, message: str, wait: float) -> TooManyRequests:
        return TooManyRequests(message, retry_after=max(1, ceil(wait)), reason=limit)

    # Connections

    def connect(self, address: str) -> Hold | None:
        """Count one more connection of an address; None if that has no limit."""
        return self._hold(
            self._connections,
            address,
            "connections_per_address",
            "this address has too many connections",
        )

    def _hold(self, counts: Counts, key: str, limit: str, message: str) -> Hold | None:
        most: int | None = getattr(self.settings, limit)
        if not key or most is None:
            return None
        if not counts.enter(key, most):
            raise self._refuse(limit, message, BUSY)
        return Hold(counts, key)

    # Credentials

    def check_failures(self, address: str) -> None:
        """
        Refuse an address with too many bad credentials, before the next one is looked at.

        So a flood of them costs next to nothing, and a good one among them is refused as well.
        """
        failures = self._failures
        if failures is not None and address in failures:
            wait = failures.wait(address, 1)
            if wait:
                raise self._refuse(
                    "failures_per_address", "too many bad credentials from this address", wait
                )

    def failed(self, address: str) -> None:
        """Count a bad credential."""
        if self._failures is not None and address:
            self._failures.take(address)

    # POSTs

    def check_post(
        self, grant: Grant, address: str, size: int, *, counted_before: bool = False
    ) -> None:
        """
        Count a POST of an event.

        Args:
            grant: What its sender may do.
            address: The key of its address.
            size: Bytes of its body; 0 if they are not known yet.
            counted_before: Whether only the bytes are still to be counted.
        """
        if grant.publish.every and grant.subject:
            posts, counted, which = self._publishers, self._publishers_bytes, "publisher"
        else:
            posts, counted, which = self._posts, self._bytes, "subject"
        if posts is None and counted is None:
            return
        key = subject_key(grant, address)
        if not key:
            return
        if posts is not None and not counted_before and (wait := posts.take(key)):
            raise self._refuse(f"posts_per_{which}", "too many POSTs in a short time", wait)
        if size and counted is not None and (wait := counted.charge(key, size)):
            raise self._refuse(
                f"posted_bytes_per_{which}", "too many bytes posted in a short time", wait
            )

    # Subscribers

    def check_handshake(self, address: str) -> None:
        """Count a stream that is about to open."""
        if self._handshakes is not None and address and (wait := self._handshakes.take(address)):
            raise self._refuse("handshakes_per_address", "too many streams in a short time", wait)

    def check_poll(self, address: str) -> None:
        """Count a long-poll."""
        if self._polls is not None and address and (wait := self._polls.take(address)):
            raise self._refuse("polls_per_address", "too many long-polls in a short time", wait)

    def check_replay(self, key: str) -> None:
        """Refuse a client that resumes while its subject owes for what was replayed before."""
        if self._replays is not None and key and (wait := self._replays.wait(key)):
            raise self._refuse(
                "replayed_bytes_per_subject", "too many bytes replayed in a short time", wait
            )

    def replayed(self, key: str, size: int) -> None:
        """Count the bytes of a replay.  It is never cut short: the next one waits."""
        if self._replays is not None and key:
            self._replays.owe(key, size)

    def stream(self, key: str) -> Hold | None:
        """Count a stream or a long-poll of a subject; None if that has no limit."""
        # Who has no credential has an address, and connections are counted by that.
        subject = "" if key.startswith(_ADDRESS) else key
        return self._hold(
            self._streams, subject, "streams_per_subject", "this subject has too many streams"
        )

    # Accounts

    def check_account(self, key: str) -> None:
        """Count an account that nobody is subscribed to here, and that somebody wants to be."""
        if not key:
            return
        is_address = key.startswith(_ADDRESS)
        limiter = self._accounts_by_address if is_address else self._accounts
        which = "address" if is_address else "subject"
        most = self.settings.open_accounts_per_subject
        if most is not None and self._open_accounts[key] >= most:
            raise self._refuse("open_accounts_per_subject", "too many accounts are open", BUSY)
        if limiter is not None and (wait := limiter.take(key)):
            raise self._refuse(
                f"new_accounts_per_{which}", "too many new accounts in a short time", wait
            )

    def account_opened(self, account: str, key: str) -> None:
        """Note who opened an account."""
        if key and self.settings.open_accounts_per_subject is not None:
            self._openers[account] = key
            self._open_accounts.enter(key, self.settings.open_accounts_per_subject + 1)

    def account_closed(self, account: str) -> None:
        """Note that an account is open no more.  Harmless for one that nobody opened."""
        key = self._openers.pop(account, None)
        if key is not None:
            self._open_accounts.leave(key)
