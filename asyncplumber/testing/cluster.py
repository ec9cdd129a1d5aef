"""Several servers in memory, which act as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.testing import MemoryReactorClock

from asyncplumber.interfaces import IStore
from asyncplumber.relays.memory import MemoryNetwork
from asyncplumber.stores.memory import MemoryStore
from asyncplumber.stores.retention import Retention
from asyncplumber.testing.server import NOW, MemoryServer


class MemoryCluster:
    """
    Servers on one store, which relay events to each other without a network.  They run already.

    Args:
        count: The number of servers.
        store: Makes the store from the clock.  None makes one in memory.
        plumber: Further arguments for each ``asyncplumber.Plumber``.
        limits: Further limits, see ``MemoryServer``.

    Attributes:
        clock: The reactor of all servers, and its clock.
        servers: The servers.
    """

    def __init__(
        self,
        count: int = 2,
        *,
        store: Callable[[Any], IStore] | None = None,
        plumber: Mapping[str, Any] | None = None,
        **limits: Any,
    ) -> None:
        """Make the servers, and start them."""
        self.clock = MemoryReactorClock()
        self.clock.rightNow = NOW
        if store is None:
            shared: IStore = MemoryStore(Retention(), self.clock, shared=True)
        else:
            shared = store(self.clock)
        options = {"carrier": MemoryNetwork(self.clock).carrier, **(plumber or {})}
        self.servers = [
            MemoryServer(store=shared, clock=self.clock, plumber=options, **limits)
            for _ in range(count)
        ]

    def settle(self) -> None:
        """Let the reactor turn until nothing is due.  No time passes."""
        self.servers[0].settle()

    def advance(self, seconds: float) -> None:
        """Let time pass, in steps of at most half a second."""
        self.servers[0].advance(seconds)
