"""
Every transport on every store keeps the one contract of subscribers: promises 2 and 3, crossed.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from asyncplumber.testing import replies
from asyncplumber.transports.long_poll import REPLAY_TIMEOUT
from harness.memory_subscribers import MemoryEventSource, MemoryLongPoll, MemoryWebSocket
from harness.mounted import MountedServer
from tests.subscribers import OnDelayed, OnMemory, OnMongo, OnSqlite, SubscriberContract


class ByWebSocket(SubscriberContract):
    """WebSocket subscribers."""

    def connect(self, account: str, after: str) -> MemoryWebSocket:
        return MemoryWebSocket(self.server, account, after)


class BySse(SubscriberContract):
    """Subscribers of Server-Sent Events."""

    def connect(self, account: str, after: str) -> MemoryEventSource:
        return MemoryEventSource(self.server, account, after)


class ByLongPoll(SubscriberContract):
    """Clients that poll, and poll again."""

    def connect(self, account: str, after: str) -> MemoryLongPoll:
        return MemoryLongPoll(self.server, account, after)

    async def subscribe(self, account: str = "a", after: str = "") -> MemoryLongPoll:
        # Without a cursor from where it stands now, so that nothing falls between two polls.
        after = after or (await self.poll("wait=0", account))["cursor"]
        subscriber = self.connect(account, after)
        await self.settle()
        return subscriber

    async def poll(self, query: str, account: str = "a") -> dict[str, Any]:
        """The answer to a poll that does not wait."""
        reply = await self.request("GET", f"/events/{account}?{query}")
        self.assertEqual(reply.status, 200)
        answer: dict[str, Any] = json.loads(reply.body)
        return answer

    async def test_a_poll_that_does_not_wait_is_answered_with_what_is_kept(self) -> None:
        """However slow the store is; the wait begins when everything that is kept was looked at."""
        empty = await self.poll("wait=0")
        await self.post(1, 2, 3)
        for _ in range(20):
            for after in (empty["cursor"], "earliest"):
                answer = await self.poll(f"wait=0&after={after}")
                self.assertEqual([event["data"] for event in answer["events"]], [1, 2, 3])
                self.assertEqual(answer["events"][-1]["cursor"], answer["cursor"])
            self.assertEqual(
                await self.poll(f"wait=0&after={answer['cursor']}"), {**answer, "events": []}
            )

    async def test_the_wait_is_counted_from_the_end_of_the_replay(self) -> None:
        """A poll that found nothing waits as long as it was asked to."""
        cursor = (await self.poll("wait=0"))["cursor"]
        client = self.server.connect()
        client.say(
            f"GET /events/a?after={cursor}&wait=3 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        await self.settle()
        await self.advance(2.5)
        self.assertEqual(client.heard(), b"")
        await self.advance(1)
        self.assertEqual(
            json.loads(replies(client.heard())[0].body), {"events": [], "cursor": cursor}
        )


class WebSocketOnMemoryTests(ByWebSocket, OnMemory, TestCase):
    """WebSocket, and a store that answers at once."""


class WebSocketOnDelayedTests(ByWebSocket, OnDelayed, TestCase):
    """WebSocket, and a store that answers some turns later."""


class WebSocketOnSqliteTests(ByWebSocket, OnSqlite, TestCase):
    """WebSocket, and SQLite."""


class WebSocketOnMongoTests(ByWebSocket, OnMongo, TestCase):
    """WebSocket, and MongoDB."""


class SseOnMemoryTests(BySse, OnMemory, TestCase):
    """Server-Sent Events, and a store that answers at once."""


class SseOnDelayedTests(BySse, OnDelayed, TestCase):
    """Server-Sent Events, and a store that answers some turns later."""


class SseOnSqliteTests(BySse, OnSqlite, TestCase):
    """Server-Sent Events, and SQLite."""


class SseOnMongoTests(BySse, OnMongo, TestCase):
    """Server-Sent Events, and MongoDB."""


class LongPollOnMemoryTests(ByLongPoll, OnMemory, TestCase):
    """Long-poll, and a store that answers at once."""


class LongPollOnDelayedTests(ByLongPoll, OnDelayed, TestCase):
    """Long-poll, and a store that answers some turns later."""

    async def test_a_poll_whose_replay_takes_too_long_is_unavailable(self) -> None:
        """
        It is not told that nothing is there, and keeps its cursor; the next one finds what is kept.
        """
        cursor = (await self.poll("wait=0"))["cursor"]
        await self.post(1)
        asked: list[Deferred[Any]] = []

        def read(*words: Any) -> Deferred[Any]:
            asked.append(Deferred())
            return asked[-1]

        self.patch(self.store.history, "read", read)
        client = self.server.connect()
        client.say(
            f"GET /events/a?after={cursor}&wait=0 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        await self.advance(REPLAY_TIMEOUT - 0.5)
        self.assertEqual((client.heard(), len(asked)), (b"", 1))
        await self.advance(1)
        (reply,) = replies(client.heard())
        self.assertEqual((reply.status, reply.headers[b"retry-after"]), (503, b"2"))
        self.assertEqual(self.server.plumber.hub.subscribers, 0)


class LongPollOnSqliteTests(ByLongPoll, OnSqlite, TestCase):
    """Long-poll, and SQLite."""


class LongPollOnMongoTests(ByLongPoll, OnMongo, TestCase):
    """Long-poll, and MongoDB."""


class MountedWebSocketOnMemoryTests(ByWebSocket, OnMemory, TestCase):
    """WebSocket by way of a site of twisted.web, and a store that answers at once."""

    make_server = MountedServer


class MountedWebSocketOnDelayedTests(ByWebSocket, OnDelayed, TestCase):
    """WebSocket by way of a site of twisted.web, and a store that answers some turns later."""

    make_server = MountedServer


class MountedSseOnMemoryTests(BySse, OnMemory, TestCase):
    """Server-Sent Events by way of a site of twisted.web, and a store that answers at once."""

    make_server = MountedServer


class MountedSseOnDelayedTests(BySse, OnDelayed, TestCase):
    """Server-Sent Events by way of a site of twisted.web, and a store that takes its time."""

    make_server = MountedServer


class MountedLongPollOnMemoryTests(ByLongPoll, OnMemory, TestCase):
    """Long-poll by way of a site of twisted.web, and a store that answers at once."""

    make_server = MountedServer


class MountedLongPollOnDelayedTests(ByLongPoll, OnDelayed, TestCase):
    """Long-poll by way of a site of twisted.web, and a store that answers some turns later."""

    make_server = MountedServer
