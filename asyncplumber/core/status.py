"""
What an instance tells about itself: the one read model for metrics, pages and commands.

``asyncplumber.Plumber.status`` makes a ``Status``.  It is a snapshot of what this instance knows;
the store is not asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from asyncplumber.core.lifecycle import State
from asyncplumber.event import Cursor
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
    """

    instance_id: str
    advertise_url: str
    state: State
    figures: Figures
    accounts: tuple[AccountStatus, ...]
    peers: tuple[PeerStatus, ...]

    @property
    def hooks(self) -> tuple[str, ...]:
        """The accounts for which this instance has a hook in the registry, or is about to."""
        return tuple(each.account for each in self.accounts if each.hook)
