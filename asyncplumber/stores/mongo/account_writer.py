"""
What a process knows of each account that it writes to.

`AccountWriter` caches the head of an account and numbers drafts after it.  The unique index tells
it when the head is out of date, but only while the event after that head exists.  So a cached head
is trusted for a limited time, and the trimmer deletes events later than that after it has raised a
floor.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from enum import Enum, auto

from asyncplumber.event import Cursor, Event
from asyncplumber.stores.mongo.accounts import MongoAccount
from asyncplumber.stores.mongo.link import CALL_TIMEOUT
from asyncplumber.stores.mongo.pending import PendingDraft
from asyncplumber.stores.retention import Retention

HEAD_LIFETIME = 60.0  # seconds that a cached head is trusted without another look
# Seconds from raising a floor to deleting the events below it: by then, each insert that relies on
# a cached head has arrived.
DELETE_DELAY = HEAD_LIFETIME + 2 * CALL_TIMEOUT
CALM = 1.0  # seconds after a lost race in which an account counts as contended
# Seconds that the winner leaves a contended account to others: about what a loser needs to look up
# the head.
YIELD = (0.0, 0.002)
REMEMBERED = 100_000  # accounts


class State(Enum):
    """What is known of an account."""

    UNKNOWN = auto()  # the head has to be looked up
    KNOWN = auto()  # the head is cached, and only this process writes, as far as it knows
    BEHIND = auto()  # another process inserted first; the head has to be looked up
    CONTENDED = auto()  # the head is cached, and another process writes as well


class Input(Enum):
    """What happens to an account."""

    LOADED = auto()  # the head was looked up
    STORED = auto()  # an insert went in
    RACE_LOST = auto()  # the number was taken
    DOUBTED = auto()  # the head may be out of date
    CALMED = auto()  # no race was lost for a while


TRANSITIONS = {
    (State.UNKNOWN, Input.LOADED): State.KNOWN,
    (State.KNOWN, Input.LOADED): State.KNOWN,
    (State.KNOWN, Input.STORED): State.KNOWN,
    (State.KNOWN, Input.RACE_LOST): State.BEHIND,
    (State.KNOWN, Input.DOUBTED): State.UNKNOWN,
    (State.BEHIND, Input.LOADED): State.CONTENDED,
    (State.CONTENDED, Input.LOADED): State.CONTENDED,
    (State.CONTENDED, Input.STORED): State.CONTENDED,
    (State.CONTENDED, Input.RACE_LOST): State.BEHIND,
    (State.CONTENDED, Input.DOUBTED): State.BEHIND,
    (State.CONTENDED, Input.CALMED): State.KNOWN,
}
_CACHED = (State.KNOWN, State.CONTENDED)


class AccountWriter:
    """
    Numbers the drafts of one account.

    Attributes:
        state: See `State`; all changes are in `TRANSITIONS`.
        account: The numbering, as far as this process knows.
    """

    __slots__ = ("_confirmed", "_looked_up", "_race_lost", "account", "state")

    def __init__(self) -> None:
        self.state = State.UNKNOWN
        self.account = MongoAccount("", 0, 0)
        self._looked_up = 0.0  # when the look-up was sent
        self._confirmed = 0.0  # when that which last proved the head right was sent
        self._race_lost = 0.0

    def _take(self, input: Input) -> None:
        """
        Change the state.

        Raises:
            KeyError: The input is illegal in this state.
        """
        self.state = TRANSITIONS[self.state, input]

    def is_trusted(self, confirmed_after: float, looked_up_after: float) -> bool:
        """Whether drafts may be numbered by the cached head."""
        return (
            self.state in _CACHED
            and self._confirmed >= confirmed_after
            and self._looked_up >= looked_up_after
        )

    def loaded(self, account: MongoAccount, asked: float) -> None:
        """Take a head that was looked up; the question was sent at `asked`."""
        self._take(Input.LOADED)
        self.account = account
        self._looked_up = self._confirmed = asked

    def stored(self, head: int, sent: float, total: int) -> None:
        """
        Take note that our events up to `head` are durable.

        Args:
            head: The number of the last one.
            sent: When the insert was sent.
            total: The payload bytes up to there.
        """
        self._take(Input.STORED)
        self.account.head = head
        self.account.total = total
        self._confirmed = sent

    def race_lost(self, now: float) -> None:
        """Take note that another process was first with the number."""
        self._take(Input.RACE_LOST)
        self._race_lost = now

    def doubted(self) -> None:
        """Forget the head."""
        self._take(Input.DOUBTED)

    def is_contended(self, now: float) -> bool:
        """Whether another process writes to the account as well."""
        if self.state is State.CONTENDED and self._race_lost <= now - CALM:
            self._take(Input.CALMED)
        return self.state is State.CONTENDED


class AccountWriters:
    """The account writers of a process, for the accounts used last."""

    def __init__(
        self,
        retention: Retention,
        looked_up_lifetime: float,
        uniform: Callable[[float, float], float],
    ) -> None:
        """
        Args:
            retention: How much history is kept.
            looked_up_lifetime: Seconds after which a head is looked up again in any case.
            uniform: Returns a random number between two.
        """
        # Events are also deleted at once when they are too old, so trust ends before that.
        self._lifetime = max(0.0, min(HEAD_LIFETIME, retention.age - 2 * CALL_TIMEOUT))
        self._looked_up_lifetime = looked_up_lifetime
        self._uniform = uniform
        self._writers: OrderedDict[str, AccountWriter] = OrderedDict()
        self._yielding: dict[str, float] = {}  # accounts that are left to others, and until when

    def __iter__(self) -> Iterator[str]:
        """Iterate over the accounts whose head is cached."""
        return (name for name, writer in self._writers.items() if writer.state in _CACHED)

    def cached(self, account: str) -> MongoAccount | None:
        """Return what is known of the account; None if its head is not cached."""
        writer = self._writers.get(account)
        return writer.account if writer is not None and writer.state in _CACHED else None

    def forget_all(self) -> None:
        """Forget all heads, because the server may have forgotten them."""
        self._writers.clear()

    def untrusted(self, accounts: Collection[str], now: float) -> list[str]:
        """Return those of these accounts whose head has to be looked up, and remember all."""
        writers = self._writers
        for account in accounts:
            if account in writers:
                writers.move_to_end(account)
            else:
                writers[account] = AccountWriter()
        while len(writers) > max(REMEMBERED, len(accounts)):
            writers.popitem(last=False)
        confirmed_after, looked_up_after = now - self._lifetime, now - self._looked_up_lifetime
        return [
            account
            for account in accounts
            if not writers[account].is_trusted(confirmed_after, looked_up_after)
        ]

    def loaded(self, account: str, found: MongoAccount, asked: float) -> None:
        """Take a head that was looked up, see `AccountWriter.loaded`."""
        self._writers[account].loaded(found, asked)

    def numbered(self, drafts: Sequence[PendingDraft]) -> tuple[list[Event], list[int]]:
        """
        Return the events that these drafts become if nobody else writes.

        The second list has for each event the payload bytes of its account up to there.
        """
        heads: dict[str, tuple[int, int]] = {}
        events: list[Event] = []
        totals: list[int] = []
        for pending in drafts:
            draft = pending.draft
            name = draft.account
            account = self._writers[name].account
            seq, total = heads.get(name) or (account.head, account.total)
            seq, total = heads[name] = seq + 1, total + len(draft.payload)
            events.append(Event.from_draft(draft, account.epoch, seq))
            totals.append(total)
        return events, totals

    def stored(
        self, cursors: dict[str, Cursor], totals: dict[str, int], sent: float, now: float
    ) -> None:
        """Take note of new heads, and leave contended accounts to others for a moment."""
        for account, cursor in cursors.items():
            writer = self._writers[account]
            writer.stored(cursor.seq, sent, totals[account])
            if writer.is_contended(now):
                self._yielding[account] = now + self._uniform(*YIELD)

    def race_lost(self, account: str, now: float) -> None:
        """Take note that another process was first with the number."""
        self._writers[account].race_lost(now)

    def doubted(self, account: str) -> None:
        """Forget the head of an account."""
        self._writers[account].doubted()

    def floor_raised(self, account: str, epoch: str, floor: int) -> None:
        """Take note that the events up to `floor` are deleted."""
        known = self.cached(account)
        if known is not None and known.epoch == epoch:
            known.floor = max(known.floor, floor)
            known.head = max(known.head, floor)

    def yielding(self, now: float) -> dict[str, float]:
        """Return the accounts that are left to others at present, and until when."""
        if self._yielding:
            self._yielding = {
                account: until for account, until in self._yielding.items() if until > now
            }
        return self._yielding
