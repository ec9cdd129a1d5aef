"""
The public keys of an issuer of tokens, fetched from its URL (RFC 7517).

A set of keys that was fetched replaces the one before it as a whole: a key that the issuer has
taken out is not valid any more.  While the issuer cannot be reached, the last set is used on, for
a day at most.  A token with an unknown ``kid`` leads to a fetch, because the issuer may have a new
key.  There is at most one such fetch in 30 seconds, however many of these tokens come.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.auth.fetch import BODY_LIMIT, Fetch, FetchFailed, Reply
from asyncplumber.concurrency import Waiters
from asyncplumber.errors import Unavailable
from asyncplumber.rate_limited_log import RateLimitedLog

TIMEOUT = 3.0  # seconds for one fetch
MAX_KEYS = 50  # in one set
LIFETIME = 900  # seconds that a set is used if the response says nothing about it
SHORTEST_LIFETIME, LONGEST_LIFETIME = 60, 86400  # seconds, whatever the response says
REFRESH_AT = 0.8  # of the lifetime: the next fetch
LONGEST_OUTAGE = 86400.0  # seconds that a set is used while no other can be fetched
INTERVAL = 30.0  # seconds between two fetches because of an unknown key, and after a failure
FIRST_RETRY = 1.0  # seconds until the next try before there is any set; doubled up to INTERVAL
MAX_UNKNOWN = 256  # unknown key ids that are remembered
UNKNOWN_FOR = 300.0  # seconds that an unknown key id is not looked for again
MAX_WAITING = 1000  # requests that wait for one fetch

_HEADERS = {b"accept": b"application/jwk-set+json, application/json"}


class PublicKey(Protocol):
    """A key that verifies by exactly one algorithm."""

    @property
    def kid(self) -> str | None:
        """Its id; None if it has none."""

    @property
    def alg(self) -> str:
        """Its algorithm, as in the header of a token."""


K = TypeVar("K", bound=PublicKey)
Load = Callable[[Mapping[str, Any]], K]


def parse_set(body: bytes, load: Load[K]) -> tuple[list[K], list[str]]:
    """
    Read a set of keys.

    Keys for encryption are left out, and so are secrets (``oct``): what a URL gives to everybody
    is no secret.  A member that cannot be used is left out alone.

    Args:
        body: The JSON.
        load: Makes the key of a member, or raises ValueError.

    Returns:
        The keys, and for each member that cannot be used a sentence.

    Raises:
        ValueError: It is no set, has more than `MAX_KEYS` members, or no key that can be used.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the response is not JSON") from None
    members = value.get("keys") if isinstance(value, dict) else None
    if not isinstance(members, list):
        raise ValueError("the response is not a JWK set: an object with a list of keys")
    if len(members) > MAX_KEYS:
        raise ValueError(f"the set has more than {MAX_KEYS} keys")
    keys: list[K] = []
    left_out: list[str] = []
    for number, member in enumerate(members, 1):
        try:
            if not isinstance(member, dict):
                raise ValueError("it is not an object")
            if _verifies(member):
                keys.append(load(member))
        except ValueError as error:
            left_out.append(f"key {number}: {error}")
    if not keys:
        raise ValueError("the set has no key that can verify a token")
    return keys, left_out


def _verifies(member: Mapping[str, Any]) -> bool:
    """Whether a member is a public key for signatures."""
    operations = member.get("key_ops")
    return (
        member.get("kty") != "oct"
        and member.get("use", "sig") == "sig"
        and (not isinstance(operations, list) or "verify" in operations)
    )


class FetchedKeys(Generic[K]):
    """The keys of one issuer."""

    _log = Logger()

    def __init__(
        self, issuer: str, url: str, fetch: Fetch, clock: IReactorTime, load: Load[K]
    ) -> None:
        """
        Args:
            issuer: Its name, for the log.
            url: Where its keys are.
            fetch: Sends the requests.
            clock: Tells the time; one that is never set.
            load: Makes the key of a member of a set, or raises ValueError.
        """
        self.issuer = issuer
        self._url = url
        self._fetch = fetch
        self._clock = clock
        self._load = load
        self._generation = 0
        self._body = b""  # of the set that is used
        self._keys: tuple[K, ...] = ()
        self._by_id: dict[str, tuple[K, ...]] = {}
        self._fetched: float | None = None  # when; None: never
        self._asked: float | None = None  # when the last fetch began
        self._failures = 0  # since the last set
        self._running: Deferred[Any] | None = None  # a fetch
        self._waiters = Waiters()
        self._unknown: OrderedDict[str, float] = OrderedDict()  # until when
        self._timer: IDelayedCall | None = None
        self._is_started = False
        self._failed = RateLimitedLog(self._log, clock.seconds)

    @property
    def age(self) -> float | None:
        """Seconds since the set that is used was fetched; None if there is none."""
        return None if self._fetched is None else self._clock.seconds() - self._fetched

    @property
    def generation(self) -> int:
        """Another number than before when other keys are there, or when none is valid any more."""
        return self._generation if self._is_usable() else -1

    @property
    def is_ready(self) -> bool:
        """Whether a set was ever fetched."""
        return self._fetched is not None

    def start(self) -> None:
        """Fetch the keys now, and again before they are too old.  Harmless if it is started."""
        if not self._is_started:
            self._is_started = True
            self._refresh()

    def stop(self) -> None:
        """Fetch no more.  Those who wait are told that the keys are not there."""
        self._is_started = False
        self._cancel_timer()
        if self._running is not None:
            self._running.cancel()

    def keys(self, kid: str | None, alg: str) -> Sequence[K] | Deferred[Sequence[K]]:
        """
        Return the keys by which a token can be verified, at once if they are known.

        Args:
            kid: The id of the key, as the token has it; None: all keys of the algorithm.
            alg: The algorithm, as the token has it.

        Returns:
            The keys of that id and that algorithm; none if the issuer has no such key.

        Raises:
            Unavailable: The keys cannot be fetched, for so long that none is valid.
        """
        if not self._is_usable():
            if self._running is None and not self._may_ask():
                raise self._unavailable()
            return self._wait(kid, alg)
        found = self._find(kid, alg)
        if kid is None or kid in self._by_id or not self._may_look_for(kid):
            return found
        return self._wait(kid, alg)

    def _is_usable(self) -> bool:
        return self.age is not None and self.age <= LONGEST_OUTAGE

    @staticmethod
    def _unavailable() -> Unavailable:
        return Unavailable(
            "the keys that verify this token cannot be had right now", retry_after=int(INTERVAL)
        )

    def _find(self, kid: str | None, alg: str) -> Sequence[K]:
        keys = self._keys if kid is None else self._by_id.get(kid, ())
        return [key for key in keys if key.alg == alg]

    def _may_ask(self) -> bool:
        return self._asked is None or self._clock.seconds() - self._asked >= INTERVAL

    def _may_look_for(self, kid: str) -> bool:
        """Whether an unknown id may lead to a fetch, or may wait for the one under way."""
        until = self._unknown.get(kid)
        if until is not None:
            if self._clock.seconds() < until:
                self._unknown.move_to_end(kid)
                return False
            del self._unknown[kid]
        return self._running is not None or self._may_ask()

    def _wait(self, kid: str | None, alg: str) -> Deferred[Sequence[K]]:
        """Look again after the fetch that is under way or begins now."""
        if len(self._waiters) >= MAX_WAITING:
            raise self._unavailable()
        waiter = self._waiters.wait()

        def look(_: None) -> Sequence[K]:
            if not self._is_usable():
                raise self._unavailable()
            if kid is not None and kid not in self._by_id:
                self._remember_unknown(kid)
            return self._find(kid, alg)

        found = waiter.addCallback(look)
        if self._running is None:
            self._refresh()
        return found

    def _remember_unknown(self, kid: str) -> None:
        if self._failures:
            return  # it was not looked for
        self._unknown[kid] = self._clock.seconds() + UNKNOWN_FOR
        if len(self._unknown) > MAX_UNKNOWN:
            self._unknown.popitem(last=False)

    # Fetching

    def _refresh(self) -> None:
        """Fetch, and set the timer for the next time."""
        if self._running is not None:
            return
        self._cancel_timer()
        self._asked = self._clock.seconds()
        running: Deferred[float] = Deferred.fromCoroutine(self._ask())
        self._running = running
        running.addErrback(self._broke_off)
        running.addCallback(self._done)

    async def _ask(self) -> float:
        """Fetch once, and return the seconds until the next time."""
        try:
            reply = await self._fetch(self._url, _HEADERS, timeout=TIMEOUT, limit=BODY_LIMIT)
            return self._take(reply)
        except (FetchFailed, ValueError) as error:
            return self._note_failure(error)

    def _broke_off(self, failure: Failure) -> float:
        self._failures += 1
        if not failure.check(CancelledError):
            self._log.failure("the keys of {issuer} cannot be used", failure, issuer=self.issuer)
        return INTERVAL

    def _done(self, delay: float) -> None:
        self._running = None
        if self._is_started:
            self._timer = self._clock.callLater(delay, self._refresh)
        self._waiters.release()

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _take(self, reply: Reply) -> float:
        """Use a response, and return the seconds until the next fetch."""
        if reply.status != 200:
            raise ValueError(f"the response has status {reply.status}")
        keys, left_out = parse_set(reply.body, self._load)
        if reply.body != self._body:
            self._replace(reply.body, keys)
            for sentence in left_out:
                self._log.warn(
                    "a key of {issuer} is left out: {sentence}",
                    issuer=self.issuer,
                    sentence=sentence,
                )
        self._fetched = self._clock.seconds()
        self._failures = 0
        lifetime = reply.max_age()
        if lifetime is None:
            lifetime = LIFETIME
        return REFRESH_AT * min(max(lifetime, SHORTEST_LIFETIME), LONGEST_LIFETIME)

    def _replace(self, body: bytes, keys: Sequence[K]) -> None:
        by_id: dict[str, tuple[K, ...]] = {}
        for key in keys:
            if key.kid is not None:
                by_id[key.kid] = (*by_id.get(key.kid, ()), key)
        self._body, self._keys, self._by_id = body, tuple(keys), by_id
        self._unknown.clear()
        self._generation += 1
        self._log.info(
            "the keys of {issuer} were fetched: {keys}",
            issuer=self.issuer,
            keys=", ".join(f"{key.kid} ({key.alg})" for key in keys),
        )

    def _note_failure(self, error: Exception) -> float:
        """Log a failure, and return the seconds until the next fetch."""
        self._failures += 1
        age = self.age
        self._failed.warn(
            "the keys of {issuer} cannot be fetched: {error}; {used}",
            issuer=self.issuer,
            error=str(error),
            used="there are none yet"
            if age is None
            else f"those from {age:.0f} s ago are used on"
            if self._is_usable()
            else "those that are there are too old",
        )
        if self._fetched is not None:
            return INTERVAL
        return min(FIRST_RETRY * 2.0 ** min(self._failures - 1, 10), INTERVAL)
