"""
Which grants are revoked.

Every instance keeps all revocations in memory, so that a request asks no store, and looks every few
seconds whether the store has new ones.

A grant is revoked if one of these rows is there:

- of its token: its id;
- of its subject: if it was issued at the time of the row or before, or nobody knows when;
- of an account: if it is used for that account, and was issued at that time or before, or nobody
  knows when.  The rules of the configuration (static keys, senders, anonymous clients) and what the
  application says when it is asked were issued to nobody, and go on: else a sender could not reach
  an account any more whose readers were sent away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from asyncplumber.auth.reasons import Reason
from asyncplumber.concurrency import PeriodicTask, SingleFlight
from asyncplumber.errors import InvalidToken, PlumberError, Unavailable
from asyncplumber.grant import Grant
from asyncplumber.interfaces import IRevocations, Revocation, RevocationKind
from asyncplumber.rate_limited_log import RateLimitedLog

POLL_INTERVAL = 3.0  # seconds between looks at the store: a revocation is in force within 5
START_TIMEOUT = 2.0  # seconds that a start waits for a store that is down
# Seconds between complete looks, whatever the version says: it may be that of a restored backup.
RELOAD_INTERVAL = 60.0
# How a client proved itself where no credential was issued to it.
ISSUED_TO_NOBODY = frozenset({"none", "key", "sender", "anonymous", "call-out"})


class RevokedGrants:
    """
    The revocations that this instance knows.

    Until it knows any state of the store, it accepts no grant.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        """`now` returns the time in seconds since 1970."""
        self._now = now
        self._rows: dict[tuple[RevocationKind, str], Revocation] = {}
        self.is_known = False

    def __len__(self) -> int:
        """Return how many revocations have not ended."""
        now = self._now()
        return sum(row.expires_at > now for row in self._rows.values())

    def replace(self, rows: Iterable[Revocation]) -> None:
        """Take what the store has as all there is."""
        self._rows = {(row.kind, row.value): row for row in rows}
        self.is_known = True

    def covers(self, grant: Grant, account: str | None) -> bool:
        """
        Return whether a grant is revoked.

        Args:
            grant: The grant.
            account: What it is used for; None if that is not known, or no account at all.
        """
        if not self._rows:
            return False
        if grant.id is not None and self._row(RevocationKind.JTI, grant.id) is not None:
            return True
        if grant.subject and self._is_before(grant, self._row(RevocationKind.SUB, grant.subject)):
            return True
        if account is None or (grant.issued is None and grant.mechanism in ISSUED_TO_NOBODY):
            return False
        return self._is_before(grant, self._row(RevocationKind.ACCOUNT, account))

    def _row(self, kind: RevocationKind, value: str) -> Revocation | None:
        row = self._rows.get((kind, value))
        return row if row is not None and row.expires_at > self._now() else None

    @staticmethod
    def _is_before(grant: Grant, row: Revocation | None) -> bool:
        if row is None:
            return False
        return grant.issued is None or row.before is None or grant.issued <= row.before

    def check(self, grant: Grant, account: str | None) -> None:
        """
        Do nothing if the grant counts; for the arguments see `covers`.

        Raises:
            InvalidToken: It is revoked.
            Unavailable: Nobody knows, because the store was never reached.
        """
        if self.covers(grant, account):
            raise InvalidToken(Reason.REVOKED)
        if not self.is_known:
            raise Unavailable("what is revoked is not known yet; try again")


class RevocationPoll:
    """
    Keeps a `RevokedGrants` equal to the store.

    While the store is away, what was known stays in force.
    """

    _log = Logger()

    def __init__(
        self,
        store: IRevocations,
        revoked: RevokedGrants,
        clock: IReactorTime,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            store: Where the revocations are.
            revoked: What to keep equal.
            clock: The reactor's clock.
            changed: Called when there may be new revocations: the streams that they cover are to
                be ended.
        """
        self._store = store
        self._revoked = revoked
        self._clock = clock
        self._changed = changed
        self._version: int | None = None  # of what `revoked` has
        self._reload_at = 0.0
        self._looks = SingleFlight(self._look, "a look at the revocations")
        self._task = PeriodicTask(self._guarded_look, POLL_INTERVAL, clock)
        self._sweeping = PeriodicTask(self._sweep, RELOAD_INTERVAL, clock)
        self._outages = RateLimitedLog(self._log, clock.seconds, RELOAD_INTERVAL)
        #: When the store was last asked with success, by the reactor's clock; None: never.
        self.asked: float | None = None

    @property
    def age(self) -> float:
        """Seconds since the store was last asked with success; 0 before the first time."""
        return 0.0 if self.asked is None else self._clock.seconds() - self.asked

    async def learn(self) -> None:
        """Look once, for a limited time."""
        self._version = None  # the store may be another one than before a stop
        first = Deferred.fromCoroutine(self._guarded_look())
        try:
            await first.addTimeout(START_TIMEOUT, self._clock)
        except TimeoutError:
            self._log.warn("what is revoked is not known yet: the store does not answer")

    def start(self) -> None:
        """Look every few seconds from now on."""
        self._task.start()
        self._sweeping.start()

    def stop(self) -> None:
        """Look no more."""
        self._task.stop()
        self._sweeping.stop()

    def look(self) -> Deferred[None]:
        """
        Look at the store now.

        Returns:
            A Deferred that fires when what is in the store by now is in force here.  Fails with
            `Unavailable`.
        """
        return self._looks.run()

    async def _guarded_look(self) -> None:
        try:
            await self._looks.run()
        except PlumberError:
            self._outages.warn(
                "the store cannot be asked for revocations; what was known {age} s ago is in force",
                age=round(self.age),
            )

    async def _look(self) -> None:
        asked = self._clock.seconds()
        # The version comes first: what is revoked in between is read now and once more.
        version = await self._store.version()
        if version != self._version or asked >= self._reload_at:
            self._revoked.replace(await self._store.revocations())
            self._version = version
            self._reload_at = asked + RELOAD_INTERVAL
            self._changed()
        self.asked = asked

    async def _sweep(self) -> None:
        await self._store.sweep()
