"""
What a subscriber that asks for the live tasks may rely on, on each transport and each store.

``TaskSubscriberContract`` is the suite; ``tests/unit/test_task_subscribers.py`` runs it on stores
in memory, ``tests/system/test_task_subscribers.py`` on SQLite and MongoDB.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred

from asyncplumber.core.tasks.snapshots import SNAPSHOT_TIMEOUT
from asyncplumber.errors import Unavailable
from asyncplumber.event import Draft, new_id
from asyncplumber.stores.retention import Retention
from asyncplumber.task import Report, TaskState
from asyncplumber.wire.payload import payload_of
from harness.memory_subscribers import (
    MemoryEventSource,
    MemoryLongPoll,
    MemorySubscriber,
    MemoryWebSocket,
)
from tests.subscribers import StoreCase

TIME = "2026-01-01T00:00:00.000Z"


class TaskSubscriberContract(StoreCase):
    """The suite.  A test case mixes in a store, and how a client connects."""

    retention = Retention(length=20)
    assertEqual: Any
    assertIn: Any
    assertLess: Any
    assertTrue: Any
    patch: Any
    flushLoggedErrors: Any

    def connect(self, after: str) -> MemorySubscriber:
        """Connect a client that asks for the live tasks."""
        raise NotImplementedError

    async def heard(self, subscriber: MemorySubscriber) -> list[dict[str, Any]]:
        """Return all that came, but `plumber.open`, which a long-poll does not have."""
        found: list[dict[str, Any]] = []
        while True:
            await self.settle()
            news = subscriber.envelopes()
            if not news:
                return [each for each in found if each["type"] != "plumber.open"]
            found += news

    async def report(self, key: str, state: str, data: object = None, run: str = "") -> None:
        """Report about a task of account a."""
        body = b"" if data is None else json.dumps(data).encode()
        content_type, payload = payload_of("application/json", body or b"null")
        id = new_id()
        draft = Draft("a", id, id, "result", TIME, content_type, payload)
        report = Report(draft, key, TaskState(state), run=run or None, is_beat=not body)
        reported = self.server.plumber.tasks.report(report)
        await self.settle()
        await reported

    async def snapshot(self, subscriber: MemorySubscriber) -> dict[str, Any]:
        """Return the data of the one notice with the tasks that came, and came first."""
        notice, *_ = await self.heard(subscriber)
        self.assertEqual((notice["type"], notice["cursor"]), ("plumber.tasks", None))
        self.assertEqual(notice["account"], "a")
        data: dict[str, Any] = notice["data"]
        return data

    async def test_the_live_tasks_come_first(self) -> None:
        """With state and progress, the newest first; those that have ended are not among them."""
        await self.report("one", "running", {"page": 1})
        await self.report("two", "running")
        await self.report("old", "completed", {"total": 7})
        found = await self.snapshot(self.connect(""))
        self.assertEqual({task["task"] for task in found["tasks"]}, {"one", "two"})
        (one,) = [task for task in found["tasks"] if task["task"] == "one"]
        self.assertEqual((one["state"], one["done"], one["account"]), ("running", False, "a"))
        self.assertEqual(found["more"], False)
        self.assertTrue(found["cursor"].endswith(".3"), found["cursor"])

    async def test_the_end_follows_the_tasks(self) -> None:
        """Whatever is live in the notice ends in the stream that follows it."""
        await self.report("one", "running")
        subscriber = self.connect("")
        await self.snapshot(subscriber)
        await self.report("one", "completed", 7)
        (event,) = await self.heard(subscriber)
        self.assertEqual((event["type"], event["data"]), ("task.completed", 7))

    async def test_nothing_is_lost_while_the_rows_are_read(self) -> None:
        """What ends meanwhile is in the notice or after it, wherever the read is at that moment."""
        for turns in range(12):
            key = f"task{turns}"
            await self.report(key, "running")
            subscriber = self.connect("")
            self.turn(turns)
            await self.report(key, "completed", turns)
            notice, *rest = await self.heard(subscriber)
            self.assertEqual(notice["type"], "plumber.tasks")
            ends = [event["data"] for event in rest if event["type"] == "task.completed"]
            is_live = key in [task["task"] for task in notice["data"]["tasks"]]
            if is_live or ends:
                self.assertEqual(ends, [turns])
            else:
                seen = int(notice["data"]["cursor"].partition(".")[2])
                self.assertEqual(seen, 2 * (turns + 1), "its end is before the place")
            subscriber.leave()

    def turn(self, turns: int) -> None:
        """Let the reactor turn so many times, which a store that is slow needs to answer."""
        for _ in range(turns):
            self.server.clock.advance(0)

    async def test_a_resume_has_the_tasks_and_then_what_was_missed(self) -> None:
        """Each event once; the place in the notice tells which of them the rows include."""
        first = self.connect("")
        await self.snapshot(first)
        await self.report("one", "running")
        await self.heard(first)
        cursor = first.cursor
        first.leave()
        await self.report("two", "running")
        await self.report("one", "completed", 1)
        again = self.connect(cursor)
        notice, *events = await self.heard(again)
        self.assertEqual([task["task"] for task in notice["data"]["tasks"]], ["two"])
        self.assertEqual([event["type"] for event in events], ["task.started", "task.completed"])
        self.assertEqual(notice["data"]["cursor"], events[-1]["cursor"])

    async def test_after_a_gap_the_tasks_come_again(self) -> None:
        """Their events may be what was missed."""
        first = self.connect("")
        head = (await self.snapshot(first))["cursor"]
        first.leave()
        await self.report("one", "running")
        for number in range(22):
            await self.report(f"other{number}", "completed", number)
        subscriber = self.connect(head)
        heard = await self.heard(subscriber)
        types = [each["type"] for each in heard]
        self.assertEqual(types[-2:], ["plumber.gap", "plumber.tasks"])
        last = heard[-1]["data"]
        self.assertEqual([task["task"] for task in last["tasks"]], ["one"])
        self.assertEqual(last["cursor"], heard[-2]["data"]["to"])
        await self.report("one", "completed", 1)
        (event,) = await self.heard(subscriber)
        self.assertEqual(event["type"], "task.completed")
        self.assertEqual(self.server.plumber.hub.subscribers, 1)

    def ended(self, subscriber: Any) -> None:
        """Check that the client knows that its stream has ended."""
        raise NotImplementedError


class MemoryOnlyContract(TaskSubscriberContract):
    """What holds on every store, and is tried on those in memory only."""

    async def test_an_account_without_tasks_has_an_empty_list(self) -> None:
        """A client knows by it that nothing is under way."""
        self.assertEqual((await self.snapshot(self.connect("")))["tasks"], [])

    async def test_a_client_that_does_not_ask_is_not_told(self) -> None:
        """Neither is one with ``tasks=0``."""
        await self.report("one", "running")
        for query in ("wait=0", "wait=0&tasks=0"):
            client = self.server.connect()
            client.send(f"GET /events/a?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await self.settle()
            self.assertIn(b'"events":[]', client.received())

    async def test_the_notice_is_bounded(self) -> None:
        """What does not fit is left out, and the notice says so."""
        for number in range(6):
            await self.report(f"task{number}", "running")
            await self.report(f"task{number}", "running", "x" * 60_000)
        await self.advance(1)  # until the progress is stored
        found = await self.snapshot(self.connect(""))
        self.assertEqual((len(found["tasks"]), found["more"]), (4, True))

    async def test_a_client_that_leaves_leaves_nothing_behind(self) -> None:
        """Also while the rows are read."""
        quiet = len(self.server.clock.getDelayedCalls())
        for turns in range(8):
            subscriber = self.connect("")
            self.turn(turns)
            subscriber.leave()
        await self.advance(2)
        self.assertEqual((self.server.plumber.hub.subscribers, len(self.server.clients)), (0, 0))
        self.assertEqual(self.server.plumber.hub.accounts, [])
        self.assertEqual(len(self.server.clock.getDelayedCalls()), quiet)

    def hang(self) -> list[Deferred[Any]]:
        """Let the store answer no question about the tasks of an account."""
        asked: list[Deferred[Any]] = []

        def of_account(*_: Any, **__: Any) -> Deferred[Any]:
            asked.append(Deferred())
            return asked[-1]

        self.patch(self.store.tasks, "of_account", of_account)
        return asked

    async def test_a_store_that_fails_ends_the_stream(self) -> None:
        """With a reason, so that the client comes back; it is never left without its tasks."""
        asked = self.hang()
        client = self.connect("")
        await self.settle()
        self.assertEqual(len(asked), 1)
        asked[0].errback(Unavailable())
        await self.settle()
        self.ended(client)

    async def test_a_store_that_hangs_ends_the_stream(self) -> None:
        """After some seconds."""
        asked = self.hang()
        client = self.connect("")
        await self.settle()
        self.assertEqual(len(asked), 1)
        await self.advance(SNAPSHOT_TIMEOUT + 1)
        self.ended(client)

    async def test_those_who_come_together_share_a_read(self) -> None:
        """The first reads; those who come during that share the next one."""
        asked = self.hang()
        clients = [self.connect("") for _ in range(20)]
        await self.settle()
        self.assertEqual(len(asked), 1)
        asked[0].callback([])
        await self.settle()
        self.assertEqual(len(asked), 2)
        asked[1].callback([])
        for client in clients:
            self.assertEqual((await self.snapshot(client))["tasks"], [])


class TasksByWebSocket(TaskSubscriberContract):
    """WebSocket subscribers."""

    def connect(self, after: str) -> MemoryWebSocket:
        return MemoryWebSocket(self.server, "a", after, tasks=True)

    def ended(self, subscriber: Any) -> None:
        self.assertEqual(subscriber.closed()[0], 1013)
        self.assertEqual(self.server.plumber.hub.subscribers, 0)


class TasksBySse(TaskSubscriberContract):
    """Subscribers of Server-Sent Events."""

    def connect(self, after: str) -> MemoryEventSource:
        return MemoryEventSource(self.server, "a", after, tasks=True)

    def ended(self, subscriber: Any) -> None:
        self.assertTrue(subscriber.client.disconnecting or subscriber.client.ended)
        self.assertEqual(self.server.plumber.hub.subscribers, 0)


class TasksByLongPoll(TaskSubscriberContract):
    """Long-polls: the first answers at once, with the tasks."""

    def connect(self, after: str) -> MemoryLongPoll:
        return MemoryLongPoll(self.server, "a", after, tasks=True)

    def ended(self, subscriber: Any) -> None:
        self.assertIn(b"HTTP/1.1 503", subscriber.client.received())
