"""The boundary of a store: a history of events and a registry of who wants them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from asyncplumber.errors import PlumberError
from asyncplumber.event import Cursor, Draft, Event, Instance, Position, Stored
from asyncplumber.interfaces.registry_listing import MAX_MEMBERS, Hook, HookQuery, Member

PAGE_BYTES = 1024 * 1024  # of payloads in one page of a history; a single event may be larger
LEASE = 15.0  # seconds that an instance counts as alive after its last renewal


@dataclass(slots=True)
class Appended:
    """
    The result of `IStore.append`.

    Attributes:
        results: For each draft, in order, a `Stored`, or the `PlumberError` of this draft alone.
        recipients: Fires with what `IRegistry.instances` returns for the accounts of all drafts
            that are `Stored`.  If the look-up fails, only this Deferred fails; the events are
            stored.  None if no look-up was needed: nothing is `Stored`, or no other process can
            use the store.
    """

    results: list[Stored | PlumberError]
    recipients: Deferred[dict[str, list[Instance]]] | None


class HistorySize(NamedTuple):
    """How many events a history has, and the bytes that the store needs for them."""

    events: int
    bytes: int


class CursorLost(Exception):
    """
    The events after a cursor cannot be read: they were deleted, or the numbering began anew.

    This is no response for a client: a subscriber gets ``plumber.gap``.  ``position`` says how far
    the history reaches now.
    """

    def __init__(self, position: Position) -> None:
        super().__init__(
            f"the history reaches from {position.floor} to {position.head} "
            f"of epoch {position.epoch}"
        )
        self.position = position


class CursorMoved(Exception):
    """
    Nothing is lost, but the place before an account's first event has a new name: use ``cursor``.

    Accounts without events share one epoch, which is replaced from time to time.
    """

    def __init__(self, cursor: Cursor) -> None:
        super().__init__(f"the place before the first event is {cursor} now")
        self.cursor = cursor


class IHistory(Interface):
    """
    The durable, numbered, expiring record of each account's events.  `IStore.append` writes it.

    The numbers of an account's events are 1, 2, 3 … within an epoch.  A reader that can read a
    number can read all numbers before it, down to the floor: nothing is ever inserted behind a
    reader's back.
    """

    def ensure(account: str) -> Deferred[Position]:
        """
        Return how far this account's history reaches, and mark the account as used.

        What the position counts is durable.  An account without events has no row in the store:
        its position is number 0 of an epoch that all such accounts share.  Its first event gets
        number 1, in that epoch or in a later one; see `read`.

        This may write: the mark keeps the account's numbering from expiring, and the shared epoch
        is begun when it is due.

        Raises:
            Unavailable: Through the Deferred.
        """

    def heads(accounts: Collection[str]) -> Deferred[dict[str, Cursor]]:
        """Return the `Cursor` (epoch and head) of each account, as `ensure` does for one."""

    def read(
        account: str, cursor: Cursor, upto: int | None, limit: int, size: int = PAGE_BYTES
    ) -> Deferred[list[Event]]:
        """
        Return the events after `cursor`, in order and without a gap.

        Args:
            account: The account.
            cursor: The position after which to begin.
            upto: The last number to return; None means the head.
            limit: The largest number of events.  Large events make it fewer.
            size: The largest number of payload bytes, at most `PAGE_BYTES`.  One event is always
                returned, whatever its size.

        Returns:
            The events.  An empty list means that `cursor` is the head, or not before `upto`.

        Raises:
            CursorLost: The event after `cursor` was deleted or never existed (another epoch, or a
                number beyond the head).
            CursorMoved: `cursor` is a former name of the place before the first event.
            Unavailable: All three through the Deferred.
        """

    def size() -> Deferred[HistorySize]:
        """
        Return how much is kept.  It is asked for once a minute, and may be an estimate.

        Raises:
            Unavailable: Through the Deferred.
        """

    def begin_epoch() -> Deferred[str]:
        """
        Continue all numberings in a new epoch, after the store was restored from a backup.

        Numbers that were given out after the backup will be given out again.  The new epoch lets
        clients that know the old ones notice the gap.  Kept events stay and get the new epoch.  A
        call that was interrupted can be repeated.

        Returns:
            The new epoch.

        Raises:
            InstancesRunning: An instance has a lease.  Through the Deferred.
        """

    def sweep() -> Deferred[int]:
        """Delete the events beyond the retention, and return their number."""


class IRegistry(Interface):
    """
    Which instances have subscribers of which account.

    A hook counts while the lease of its instance runs.
    """

    def add_instance(instance: Instance) -> Deferred[Instance]:
        """Add the instance with a fresh lease and no hooks, and return it with that lease."""

    def renew(instance: Instance) -> Deferred[Instance | None]:
        """
        Extend the lease.

        Returns:
            The instance with its new lease.  None if the registry does not know the instance any
            more: then call `add_instance`, and `register` all hooks again.
        """

    def remove_instance(instance: Instance) -> Deferred[None]:
        """Remove the instance and all its hooks.  Idempotent."""

    def register(instance: Instance, accounts: Collection[str]) -> Deferred[None]:
        """Add a hook of this instance for each account.  Idempotent."""

    def unregister(instance: Instance, accounts: Collection[str]) -> Deferred[None]:
        """Remove this instance's hooks for these accounts.  Idempotent."""

    def instances(accounts: Collection[str]) -> Deferred[dict[str, list[Instance]]]:
        """
        Return the instances that want the events of these accounts.

        The store is read at each call: a cache would break the promise that either the publisher
        sees a hook, or the subscriber's replay sees the event.  Instances whose lease ran out, and
        accounts without an instance, are left out.
        """

    def prune(instance: Instance) -> Deferred[bool]:
        """
        Remove an instance that does not answer, with its hooks, if its lease is still this one.

        Returns:
            Whether the instance was removed.
        """

    def sweep() -> Deferred[int]:
        """
        Remove instances whose lease ran out, and hooks without an instance.

        Returns:
            The number of instances removed.
        """

    def members(limit: int = MAX_MEMBERS) -> Deferred[list[Member]]:
        """Return the first instances by id, also those whose lease ran out."""

    def hooks(query: HookQuery) -> Deferred[list[Hook]]:
        """
        Return some hooks, in the order of their accounts by code points.

        Hooks of one account are in an order of the store's own, which does not change.
        """


class ISecrets(Interface):
    """Keeps a secret that only the instances on one store know."""

    def secret() -> Deferred[bytes]:
        """
        Return the secret with which the instances on this store sign requests to each other.

        The first call creates it, once, even if several instances call at the same moment.  It
        lasts as long as the store.

        Returns:
            At least 16 bytes.

        Raises:
            Unavailable: Through the Deferred.
        """


class IStore(ISecrets):
    """All that the instances share, on one connection."""

    history = Attribute("IHistory")
    registry = Attribute("IRegistry")
    revocations = Attribute("IRevocations")
    tasks = Attribute("ITasks")
    callback_urls = Attribute("ICallbackUrls")
    figures = Attribute(
        "Sequence[asyncplumber.figures.Metric]: what it counts and measures.  A store without this "
        "attribute has none"
    )
    shared = Attribute(
        "bool: whether other processes can use the same store, so that the registry must be asked"
    )

    def append(drafts: Sequence[Draft]) -> Deferred[Appended]:
        """
        Append to the history, and *then* look up in the registry which instances want the events.

        The order of drafts is kept within each account.  When the Deferred fires, the events
        survive the death of any process.  A draft whose (account, key) is already in the history,
        or earlier in `drafts`, is not stored again.

        Raises:
            PlumberError: If it holds for all drafts, for example `Unavailable`.  Through the
                Deferred.
        """

    def start() -> Deferred[None]:
        """
        Connect, and create what is missing.

        A server that is down is no failure: the store connects when it is up.

        Raises:
            ValueError: The store can never be used, for example a file that cannot be opened.
                Through the Deferred; the message is a sentence for the user.
        """

    def stop() -> Deferred[None]:
        """Finish the calls under way and disconnect.  Harmless if it is stopped."""

    def ping() -> Deferred[None]:
        """Fail with `Unavailable` within a few seconds if the store cannot be used."""
