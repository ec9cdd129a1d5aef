"""Every transport on every store, where all events come in at another instance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.trial.unittest import TestCase

from asyncplumber.interfaces import IStore
from asyncplumber.stores.memory import MemoryStore
from asyncplumber.testing import ClientResponse, MemoryCluster, MemoryServer
from tests.subscribers import OnDelayed, OnMongo, OnSqlite, StoreCase
from tests.system.test_transports import ByLongPoll, BySse, ByWebSocket


def make_relayed(
    *, store: Callable[[Any], IStore], plumber: Mapping[str, Any], **limits: Any
) -> MemoryServer:
    """Return a server of a cluster; events are to be posted to its attribute ``other``."""
    cluster = MemoryCluster(2, store=store, plumber=plumber, **limits)
    server, server.other = cluster.servers  # type: ignore[attr-defined]
    return server


class Relayed(StoreCase):
    """Mixed in before the transport and the store."""

    make_server: Any = staticmethod(make_relayed)
    visits = 50  # leaks are looked for where no relay takes time

    async def request(
        self, method: str, path: str, *headers: tuple[str, str], body: bytes = b""
    ) -> ClientResponse:
        """POST to the other instance; ask everything else of the subscribers' own."""
        own = self.server
        if path.startswith("/hooks"):
            self.server = own.other  # type: ignore[attr-defined]
        try:
            return await super().request(method, path, *headers, body=body)
        finally:
            self.server = own


class OnSharedMemory(StoreCase):
    """A store that answers at once, and tells who wants an event."""

    def make(self, clock: Any) -> IStore:
        return MemoryStore(self.retention, clock, shared=True)


class WebSocketOnMemoryTests(Relayed, ByWebSocket, OnSharedMemory, TestCase):
    """WebSocket, and a store that answers at once."""


class WebSocketOnDelayedTests(Relayed, ByWebSocket, OnDelayed, TestCase):
    """WebSocket, and a store that answers some turns later."""


class WebSocketOnSqliteTests(Relayed, ByWebSocket, OnSqlite, TestCase):
    """WebSocket, and SQLite."""


class WebSocketOnMongoTests(Relayed, ByWebSocket, OnMongo, TestCase):
    """WebSocket, and MongoDB."""


class SseOnMemoryTests(Relayed, BySse, OnSharedMemory, TestCase):
    """Server-Sent Events, and a store that answers at once."""


class SseOnDelayedTests(Relayed, BySse, OnDelayed, TestCase):
    """Server-Sent Events, and a store that answers some turns later."""


class SseOnSqliteTests(Relayed, BySse, OnSqlite, TestCase):
    """Server-Sent Events, and SQLite."""


class SseOnMongoTests(Relayed, BySse, OnMongo, TestCase):
    """Server-Sent Events, and MongoDB."""


class LongPollOnMemoryTests(Relayed, ByLongPoll, OnSharedMemory, TestCase):
    """Long-poll, and a store that answers at once."""


class LongPollOnDelayedTests(Relayed, ByLongPoll, OnDelayed, TestCase):
    """Long-poll, and a store that answers some turns later."""


class LongPollOnSqliteTests(Relayed, ByLongPoll, OnSqlite, TestCase):
    """Long-poll, and SQLite."""


class LongPollOnMongoTests(Relayed, ByLongPoll, OnMongo, TestCase):
    """Long-poll, and MongoDB."""
