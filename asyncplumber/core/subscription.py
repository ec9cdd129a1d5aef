"""One subscriber's place in one account's stream."""

from __future__ import annotations

from typing import Protocol

from asyncplumber.errors import PlumberError
from asyncplumber.event import Cursor
from asyncplumber.interfaces import ISubscriber


class SubscribedChannel(Protocol):
    """What a subscription needs of its channel."""

    account: str

    def start(self, subscription: Subscription, after: Cursor | str | None) -> None:
        """Serve this subscription from now on."""

    def remove(self, subscription: Subscription) -> None:
        """Serve it no more."""

    def dismiss(self, subscription: Subscription, error: PlumberError) -> None:
        """Serve it no more, and tell its subscriber why."""


class Subscription:
    """
    The link between a subscriber and a channel.

    Each `Channel.subscribe` makes a new one, also for a subscriber that was there before.  A
    connection that follows several accounts holds several subscriptions, each with an `ISubscriber`
    of its own.
    """

    __slots__ = ("channel", "subscriber")

    def __init__(self, channel: SubscribedChannel, subscriber: ISubscriber) -> None:
        self.channel = channel
        self.subscriber = subscriber

    @property
    def account(self) -> str:
        """The account whose events it gets."""
        return self.channel.account

    def start(self, after: Cursor | str | None) -> None:
        """
        Begin to deliver.  Call this once.

        The subscriber is told where it stands by ``opened`` before anything else.  It may cancel
        at any time, also in answer to what it is told before this call returns.

        Args:
            after: None means live events only.  A `Cursor`, or ``EARLIEST``, means the events after
                it from the history, and then live events.
        """
        self.channel.start(self, after)

    def cancel(self) -> None:
        """Deliver nothing more.  Harmless if it was cancelled before, or has ended."""
        self.channel.remove(self)

    def end(self, error: PlumberError) -> None:
        """Cancel, and tell the subscriber why."""
        self.channel.dismiss(self, error)
