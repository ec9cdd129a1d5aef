"""The boundary between the hub and one connected client."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from asyncplumber.errors import PlumberError
from asyncplumber.event import Cursor, Position
from asyncplumber.wire.delivery import Delivery


class ISubscriber(Interface):
    """
    One connected client of one account, as the hub sees it.

    No method blocks.  If one raises, only this subscriber is ended.
    """

    page_size = Attribute(
        "int: bytes of one page of a replay, as its transport writes them.  "
        "A single event may be larger."
    )

    def opened(cursor: Cursor) -> None:
        """Take the position to begin at: what follows comes after `cursor`."""

    def deliver(batch: Delivery) -> None:
        """Take these events now.  All events come in order and without a gap."""

    def replayed(size: int) -> None:
        """Learn that so many bytes of payload were read from the history for this subscriber."""

    def caught_up() -> None:
        """
        Learn that the replay has ended: from now on events come as they happen.

        `missed` may still be called.
        """

    def missed(cursor: Cursor, position: Position) -> None:
        """
        Learn that events were missed that cannot be replayed.

        Args:
            cursor: The subscriber's position before; what came after it is missed.
            position: How far the history reaches.  Its head is the subscriber's position now: what
                follows comes after it.
        """

    def drained() -> Deferred[None]:
        """
        Return a Deferred that fires when there is room for another page of a replay.

        It also fires when the subscriber has disconnected.
        """

    def end(error: PlumberError | None) -> None:
        """
        Stop: the hub does not serve this subscriber any more.

        Args:
            error: The reason; None if the instance stops.
        """


class ITaskSubscriber(ISubscriber):
    """A subscriber that can be told which tasks are live."""

    def notify(type: str, envelope: bytes) -> None:
        """Take a notice about the stream; it moves no cursor."""

    def await_notice() -> None:
        """Learn that a notice follows soon: a response is not complete without it."""
