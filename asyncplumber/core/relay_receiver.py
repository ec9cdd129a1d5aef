"""What this instance does with the events that other instances relay to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from asyncplumber.core.hub import Hub
from asyncplumber.event import Event


class RelayReceiver:
    """Takes events from other instances in: a relay is started with `deliver`."""

    def __init__(self, hub: Hub, drop_stale: Callable[[str], None]) -> None:
        """`drop_stale` is called with each account that has no channel here."""
        self._hub = hub
        self._drop_stale = drop_stale

    def deliver(self, events: Sequence[Event]) -> dict[str, int]:
        """
        Deliver events that are in the history to the subscribers here.

        Without events, compare positions with the history: something may have been missed.

        Returns:
            For each account of the events how many subscribers were given them.
        """
        if not events:
            self._hub.check_soon()
        subscribers: dict[str, int] = {}
        for event, given in zip(events, self._hub.publish(events), strict=True):
            subscribers[event.account] = max(given, subscribers.get(event.account, 0))
        for account in subscribers:
            if not self._hub.serves(account):
                self._drop_stale(account)
        return subscribers
