"""Every transport keeps the contract of subscribers on stores in memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from asyncplumber.testing import parse_responses
from asyncplumber.transports.long_poll import REPLAY_TIMEOUT
from harness.mounted import MountedServer
from tests.subscribers import ByLongPoll, BySse, ByWebSocket, OnDelayed, OnMemory


class WebSocketOnMemoryTests(ByWebSocket, OnMemory, TestCase):
    """WebSocket, and a store that answers at once."""


class WebSocketOnDelayedTests(ByWebSocket, OnDelayed, TestCase):
    """WebSocket, and a store that answers some turns later."""


class SseOnMemoryTests(BySse, OnMemory, TestCase):
    """Server-Sent Events, and a store that answers at once."""


class SseOnDelayedTests(BySse, OnDelayed, TestCase):
    """Server-Sent Events, and a store that answers some turns later."""


class LongPollOnMemoryTests(ByLongPoll, OnMemory, TestCase):
    """Long-poll, and a store that answers at once."""


class LongPollOnDelayedTests(ByLongPoll, OnDelayed, TestCase):
    """Long-poll, and a store that answers some turns later."""

    async def test_a_poll_whose_replay_takes_too_long_is_unavailable(self) -> None:
        """The client keeps its cursor, and finds everything with the next one."""
        cursor = (await self.poll("wait=0"))["cursor"]
        await self.post(1)
        asked: list[Deferred[Any]] = []

        def read(*words: Any) -> Deferred[Any]:
            asked.append(Deferred())
            return asked[-1]

        self.patch(self.store.history, "read", read)
        client = self.server.connect()
        client.send(
            f"GET /events/a?after={cursor}&wait=0 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        await self.advance(REPLAY_TIMEOUT - 0.5)
        self.assertEqual((client.received(), len(asked)), (b"", 1))
        await self.advance(1)
        (reply,) = parse_responses(client.received())
        self.assertEqual((reply.status, reply.headers[b"retry-after"]), (503, b"2"))
        self.assertEqual(self.server.plumber.hub.subscribers, 0)


class MountedWebSocketTests(ByWebSocket, OnDelayed, TestCase):
    """WebSocket by way of a site of twisted.web."""

    make_server = MountedServer
    visits = 50


class MountedSseTests(BySse, OnDelayed, TestCase):
    """Server-Sent Events by way of a site of twisted.web."""

    make_server = MountedServer
    visits = 50


class MountedLongPollTests(ByLongPoll, OnDelayed, TestCase):
    """Long-poll by way of a site of twisted.web."""

    make_server = MountedServer
    visits = 50
