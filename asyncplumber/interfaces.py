"""
The boundaries between the rooms: promises, units, failures.  No logic.

Where a method returns a Deferred, its failures come through it and not by raising.  ``Unavailable``
means that the store cannot be reached or is too slow: nothing may be assumed to have happened, and
the call may be repeated.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from asyncplumber.errors import PlumberError
from asyncplumber.event import Cursor, Draft, Event, Instance, Position, Stored
from asyncplumber.wire.delivery import Delivery

PAGE_BYTES = 1024 * 1024  # of payloads in one page of a history, at most; or one event

# What `IStore.append` answers.
Appended = tuple[list[Stored | PlumberError], Deferred[dict[str, list[Instance]]] | None]


class CursorLost(Exception):
    """
    What comes after a cursor is not in the history: it was forgotten, or the numbering began anew.

    Not an answer to a client: a subscriber is told by ``plumber.gap``.  `position` is how far the
    history reaches.
    """

    def __init__(self, position: Position) -> None:
        super().__init__(
            f"the history reaches from {position.floor} to {position.head} of epoch {position.epoch}"
        )
        self.position = position


class CursorMoved(Exception):
    """
    Nothing is lost, but the place before an account's first event has another name today: go on
    from `cursor`.

    Accounts without events share an epoch, which is renewed from time to time.
    """

    def __init__(self, cursor: Cursor) -> None:
        super().__init__(f"that place is called {cursor} today")
        self.cursor = cursor


class RelayFailed(Exception):
    """
    An instance could not be reached, or did not take what was sent.  The message says why, without
    secrets.
    """


class IHistory(Interface):
    """
    The durable, numbered, expiring record of each account's events.

    The numbers of an account's events are 1, 2, 3 … within an epoch, and whoever can read a number
    can read all the numbers before it down to the floor: nothing is ever inserted behind a reader's
    back.
    """

    def append(drafts: Sequence[Draft]) -> Deferred[list[Stored | PlumberError]]:
        """
        Keep these drafts, in this order within each account.

        When the Deferred fires they outlive the death of any process.  A draft whose (account, key)
        is already in the history, or earlier in the same list, is not stored again.

        @return: Deferred of a list, for each draft a `Stored`, or the `PlumberError` that befell
        this one alone.
            Fails as a whole only if that holds for all.
        """

    def position(account: str) -> Deferred[Position]:
        """
        How far this account's history reaches.  What it counts is durable.

        An account without events has no row in the store: it stands at number 0 of an epoch that it
        shares with all such accounts.  Its first event has number 1, of that epoch or of a later
        one; see `read`.

        @return: Deferred of `Position`.  Fails with `Unavailable`.
        """

    def heads(accounts: Collection[str]) -> Deferred[dict[str, Cursor]]:
        """
        The same for many accounts in one question.

        @return: Deferred of a dict from account to `Cursor` (epoch, head).
        """

    def read(
        account: str, cursor: Cursor, upto: int | None, limit: int, size: int = PAGE_BYTES
    ) -> Deferred[list[Event]]:
        """
        The events after `cursor`, in order, with no number left out, up to the number `upto` (None:
        the end).

        @param limit: at most so many events; fewer where they are large. @param size: at most so
        many bytes of payloads, and never more than `PAGE_BYTES`; or one event. @return: Deferred of
        a list of `Event`; empty means that `cursor` is the end (or `upto`).  Fails with
            `CursorLost` where the event after `cursor` is no longer there or never was (other
            epoch, beyond the head), and with `CursorMoved` where `cursor` is the place before the
            first event, by a name that it had before.
        """

    def begin_epoch() -> Deferred[str]:
        """
        Let all numberings go on in a new epoch: the store was put back from a backup.

        Numbers that were given out after the backup are given out again.  By a new epoch, clients
        that know them are told of a gap.  What is kept stays, and has its numbers in the new epoch.
        If it is interrupted, it can be done again.

        Returns:
            Deferred of the epoch.  Fails with `InstancesRunning` while an instance has a lease.
        """

    def sweep() -> Deferred[int]:
        """
        Forget what is beyond the length or the age.  @return: Deferred of the number of events
        forgotten.
        """


class IRegistry(Interface):
    """Who has subscribers of which account.  A hook counts while its instance's lease runs."""

    def add_instance(instance: Instance) -> Deferred[Instance]:
        """
        Put the instance in, with a fresh lease, and all its hooks away.  @return: Deferred of the
        `Instance`, with its lease.
        """

    def renew(instance: Instance) -> Deferred[Instance | None]:
        """
        Prolong the lease.

        @return: Deferred of the `Instance` with its new lease; or of None if the registry had
        forgotten it: then it
            must be enlisted again, and all its hooks put in again.
        """

    def remove_instance(instance: Instance) -> Deferred[None]:
        """Take the instance and all its hooks out.  @return: Deferred of None."""

    def register(instance: Instance, accounts: Collection[str]) -> Deferred[None]:
        """Put in a hook for each account.  Idempotent.  @return: Deferred of None."""

    def withdraw(instance: Instance, accounts: Collection[str]) -> Deferred[None]:
        """
        Take out the instance's hooks for these accounts, and no other.  Idempotent.  @return:
        Deferred of None.
        """

    def instances(accounts: Collection[str]) -> Deferred[dict[str, list[Instance]]]:
        """
        Who wants the events of these accounts: read at the time of the call, never from a cache,
        dead leases left out.

        @return: Deferred of a dict from account to a list of `Instance`; accounts that nobody wants
        are left out.
        """

    def prune(instance: Instance) -> Deferred[bool]:
        """
        Forget an instance that does not answer, with its hooks, but only if its lease is still the
        one named here.

        @return: Deferred of bool: whether it was forgotten.
        """

    def sweep() -> Deferred[int]:
        """
        Forget instances whose lease ran out, and hooks without an instance.  @return: Deferred of
        their number.
        """


class ISecrets(Interface):
    """Keeps what only the instances on one store may know."""

    def secret() -> Deferred[bytes]:
        """
        The secret with which the instances on this store sign what they ask of each other.

        It is made at the first call, once, however many instances ask at that moment, and lasts as
        long as the store.

        @return: Deferred of bytes, 16 or more.  Fails with `Unavailable`.
        """


class IStore(ISecrets):
    """A place that lasts (or, for tests, does not): a history and a registry on one connection."""

    history = Attribute("IHistory")
    registry = Attribute("IRegistry")
    shared = Attribute(
        "bool: whether other processes can use the same store, so that the registry must be asked"
    )

    def append(drafts: Sequence[Draft]) -> Deferred[Appended]:
        """
        Append to the history, and *then* look up in the registry who wants the events.

        @return: Deferred of a pair.  First what `IHistory.append` answers; fails as that fails.
        Then a Deferred of what
            `IRegistry.instances` answers for the accounts of all that is `Stored`; what befalls it
            befalls the look-up alone, and the events are kept.  None in its place if nobody was
            looked for: nothing is `Stored`, or the store is not shared.
        """

    def start() -> Deferred[None]:
        """
        Connect and create what is missing.  @return: Deferred of None; does not fail because the
        store is down.
        """

    def stop() -> Deferred[None]:
        """Finish what is under way and disconnect.  @return: Deferred of None."""

    def ping() -> Deferred[None]:
        """@return: Deferred of None.  Fails with `Unavailable` within a few seconds."""


class ISubscriber(Interface):
    """
    One connected client of one account, as the hub sees it.  No method blocks; what they raise ends
    this subscriber only.
    """

    page_size = Attribute(
        "int: bytes that it takes at once in a replay, as its transport writes them; or one event"
    )

    def deliver(batch: Delivery) -> None:
        """
        Take these events, a `wire.Delivery`, now.  Everything handed over is in order and without a
        hole.
        """

    def opened(cursor: Cursor) -> None:
        """You stand at this `Cursor`; what follows comes after it."""

    def caught_up() -> None:
        """
        You have been given everything that is kept; from now on you get events as they come.  (A
        gap may still be told.)
        """

    def missed(cursor: Cursor, position: Position) -> None:
        """
        You stood at `cursor`; what came after it cannot be replayed.  You stand at `position`'s
        head; what follows comes after it.
        """

    def drained() -> Deferred[None]:
        """
        @return: Deferred that fires when there is room for a further page of a replay, or when the
        subscriber is gone.
        """

    def end(error: PlumberError | None) -> None:
        """
        The hub will not serve you any more: `PlumberError` says why, None that the instance stops.
        """


class IRelay(Interface):
    """Carries events to the other instances."""

    def carry(instance: Instance, events: Sequence[Event]) -> Deferred[dict[str, int]]:
        """
        Hand these events, already in the history, to that instance.  Per instance, order is kept.

        @return: Deferred of the number of subscribers there that were given them, per account;
        fails with
            `RelayFailed`.
        """

    def stop() -> Deferred[None]:
        """Wait for what is under way, a few seconds at most.  @return: Deferred of None."""
