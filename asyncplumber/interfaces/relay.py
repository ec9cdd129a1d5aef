"""The boundary between instances: a relay routes and counts, a carrier carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from twisted.internet.defer import Deferred
from zope.interface import Interface

from asyncplumber.event import Event, Instance


class RelayFailed(Exception):
    """
    An instance could not be reached, or refused what was sent.

    The message says why, without secrets.
    """


class InstanceGone(RelayFailed):
    """The instance is not there any more: another one answers at its address."""


# Takes the events of a batch that arrived; returns the number of subscribers for each account.
Deliver = Callable[[Sequence[Event]], dict[str, int]]


@dataclass(slots=True)
class Reached:
    """How far the events of one account got at the other instances, for the receipt."""

    subscribers: int = 0
    ok: int = 0  # instances that have subscribers, and took the events
    failed: int = 0  # instances that did not take them
    pending: int = 0  # instances that had not answered when the receipt was written


class IRelay(Interface):
    """
    Sends events to the other instances that want them.

    A relay is a hint and no promise: the events are in the history already, and an instance that
    misses some finds them when it compares its positions with the history.
    """

    def start(deliver: Deliver) -> Deferred[None]:
        """
        Let in what other instances relay to this one.

        It must be called before this instance puts a hook into the registry, and may be called
        again after a stop.

        Args:
            deliver: See `ICarrier.start`.

        Returns:
            A Deferred that fires when other instances can reach this one.
        """

    def send(
        events: Sequence[Event], recipients: Mapping[str, Sequence[Instance]]
    ) -> Deferred[dict[str, Reached]]:
        """
        Send these events to the instances that want them, except to this instance.

        Args:
            events: Events that are in the history.  The order is kept for each instance.
            recipients: What the registry said, after the append: for each account the instances.

        Returns:
            A Deferred that fires within about a second, and does not fail.  It has a `Reached` for
            each account that another instance wants.
        """

    def stop() -> Deferred[None]:
        """
        Send nothing more, and let nothing in.

        Returns:
            A Deferred that fires when what is under way has ended, after some seconds at most.
        """


class ICarrier(Interface):
    """
    Carries batches of events to other instances, in one way: by HTTP, in memory, by a broker.

    A carrier knows no registry, keeps no queue and has no time-out: its caller has one batch under
    way to each instance at a time, and cancels what takes too long.
    """

    def start(deliver: Deliver) -> Deferred[None]:
        """
        Open the way in.  It may be called again after a stop.

        Args:
            deliver: Takes the events of one batch that has arrived, and returns for each of their
                accounts how many subscribers of this instance were given them.  An empty batch says
                that events may have been lost: a carrier delivers one each time that a connection
                to a broker is open again.

        Returns:
            A Deferred that fires when the way in is open.
        """

    def carry(instance: Instance, events: Sequence[Event]) -> Deferred[dict[str, int]]:
        """
        Carry one batch to one instance.  An empty one tells it to look for what it missed.

        Args:
            instance: Where to.
            events: The whole batch; it is not split.

        Returns:
            A Deferred of what `deliver` returned there.  Fails with `RelayFailed`; with
            `InstanceGone` if it is certain that the instance is not there any more.  A batch that
            failed may have arrived.  It can be cancelled, and then leaves nothing behind.
        """

    def stop() -> Deferred[None]:
        """
        Close the way in and all connections, also those that a start is about to open.

        Returns:
            A Deferred that fires when they are closed.
        """
