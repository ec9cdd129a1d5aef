"""
What an instance tells about itself: the one read model for metrics, pages and commands.

``asyncplumber.Plumber.status`` makes a ``Status``.  It is a snapshot of what this instance knows;
the store is not asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from asyncplumber.core.lifecycle import State
from asyncplumber.event import Cursor, Instance
from asyncplumber.figures import Figures


@dataclass(frozen=True, slots=True)
class AccountStatus:
    """
    An account that has a channel at this instance.

    Attributes:
        account: Its name.
        subscribers: How many subscribers are here.
        cursor: How far the channel has delivered; None while it opens.
        hook: Whether this instance has a hook for the account, or is about to.  It needs none if
            no other process can use the store.
    """

    account: str
    subscribers: int
    cursor: Cursor | None
    hook: bool


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """
    Another instance that events wait for, or that has failed to take some.

    Attributes:
        instance_id: Its id.
        url: Where it takes events in.
        queued: How many events wait to be sent to it.
        failures: How many batches it has not taken in a row.
    """

    instance_id: str
    url: str
    queued: int
    failures: int


@dataclass(frozen=True, slots=True)
class Status:
    """
    A snapshot of an instance.

    Attributes:
        instance_id: The id of the instance.
        advertise_url: Where the other instances reach it.
        state: Where it is in its life.
        figures: Numbers about it, by name.
        accounts: The accounts that have a channel here.
        peers: Other instances that events wait for, or that failed.
        worker: Its number among the workers of one server, from 1; None if it is the only one.
    """

    instance_id: str
    advertise_url: str
    state: State
    figures: Figures
    accounts: tuple[AccountStatus, ...]
    peers: tuple[PeerStatus, ...]
    worker: int | None = None

    @property
    def hooks(self) -> tuple[str, ...]:
        """The accounts for which this instance has a hook in the registry, or is about to."""
        return tuple(each.account for each in self.accounts if each.hook)


def account_statuses(
    channels: Iterable[tuple[str, int, Cursor | None]], hook: bool
) -> tuple[AccountStatus, ...]:
    """Return the status of each channel, as `Hub.channels` tells them."""
    return tuple(AccountStatus(*channel, hook) for channel in channels)


def peer_statuses(peers: Iterable[tuple[Instance, int, int]]) -> tuple[PeerStatus, ...]:
    """Return the status of other instances, each with its queued events and its failures."""
    return tuple(PeerStatus(peer.id, peer.url, *counts) for peer, *counts in peers)
