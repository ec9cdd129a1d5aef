"""What every subscriber may rely on, on each transport and each store.

``SubscriberContract`` is the suite.  ``test_transports`` runs it for each transport: in
``tests/unit`` on stores in memory, in ``tests/system`` on SQLite and MongoDB.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from asyncplumber.interfaces import IStore
from asyncplumber.stores import open_store
from asyncplumber.stores.memory import MemoryStore
from asyncplumber.stores.retention import Retention
from asyncplumber.stores.sqlite.store import SqliteStore
from asyncplumber.testing import ClientResponse, MemoryServer, parse_responses
from harness.delayed_store import DelayedStore
from harness.memory_subscribers import (
    MemoryEventSource,
    MemoryLongPoll,
    MemorySubscriber,
    MemoryWebSocket,
)
from harness.mongod import fresh_uri
from harness.reactor import reactor
from tests.contracts import RealReactorWithFakeClock

# Seconds that an instance counts in a real store.  A lease lasts longer than any test: the store
# measures it by a real clock, and the server renews it by a clock that only the test moves.
LEASE = 600.0


class ServerCase:
    """A server in memory, for tests that need one store only."""

    make_server: type[MemoryServer] = MemoryServer
    server: MemoryServer
    assertIn: Any

    def setUp(self) -> None:
        """Make a server."""
        self.server = self.make_server(plumber={"retention": Retention(length=500), "linger": 1.0})

    def post(self, *results: object, account: str = "a") -> None:
        """Post results, one after the other."""
        for result in results:
            self.assertIn(self.server.post(account, json.dumps(result).encode()).status, (201, 202))

    def data(self, subscriber: MemorySubscriber) -> list[object]:
        """Return the data of the events that came."""
        return [envelope["data"] for envelope in subscriber.results()]


class StoreCase(ABC):
    """A server in memory, on a store that may need some turns of the reactor to answer."""

    retention = Retention(length=500)
    visits = 1000  # of the test that looks for leaks
    make_server: type[MemoryServer] = MemoryServer
    server: MemoryServer
    store: Any
    addCleanup: Any
    mktemp: Any

    @abstractmethod
    def make(self, clock: Any) -> IStore:
        """Make the store; ``clock`` is the server's."""

    def setUp(self) -> Any:
        """Make a store and a server; trial waits for the Deferred."""
        return Deferred.fromCoroutine(self._set_up())

    async def _set_up(self) -> None:

        def make(clock: Any) -> Any:
            store = self.make(clock)
            self.store = store if isinstance(store, DelayedStore) else DelayedStore(store, clock, 0)
            return self.store

        self.server = self.make_server(
            store=make, plumber={"retention": self.retention, "linger": 1.0}
        )
        self.addCleanup(lambda: self.store.stop())
        await self.settle()

    async def settle(self) -> None:
        """Let the reactor turn until nothing is due and the store has answered."""
        self.server.settle()
        while self.store.pending:
            await deferLater(reactor, 0.0005, lambda: None)
            self.server.settle()

    async def advance(self, seconds: float) -> None:
        """Let the server's time pass."""
        while seconds > 0:
            self.server.advance(min(0.5, seconds))
            await self.settle()
            seconds -= 0.5

    async def request(
        self, method: str, path: str, *headers: tuple[str, str], body: bytes = b""
    ) -> ClientResponse:
        """Send a request, and return the response, however long the store takes."""
        client = self.server.connect()
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers]
        client.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        await self.settle()
        heard = client.received()
        client.disconnect()
        return parse_responses(heard)[0]

    async def account_rows(self) -> int:
        """Return how many accounts have a row in the store."""
        store = self.store
        while isinstance(store, DelayedStore):
            store = store._store
        if isinstance(store, MemoryStore):
            return len(store.history.accounts)
        if isinstance(store, SqliteStore):
            counted = await store.file.run(
                lambda connection: connection.execute("SELECT count(*) FROM accounts").fetchone()
            )
            return int(counted[0])
        answer = await store._link.call(
            lambda deadline: store._link.command(deadline, {"count": "accounts"})
        )
        return int(answer["n"])


class OnMemory(StoreCase):
    """A store that answers at once."""

    def make(self, clock: Any) -> IStore:
        return MemoryStore(self.retention, clock)


class OnDelayed(StoreCase):
    """A store that answers some turns of the reactor later."""

    def make(self, clock: Any) -> IStore:
        return DelayedStore(MemoryStore(self.retention, clock, shared=True), clock, 3)


class OnSqlite(StoreCase):
    """The default store."""

    visits = 200

    def make(self, clock: Any) -> IStore:
        reactor = RealReactorWithFakeClock()
        return open_store(f"sqlite:{self.mktemp()}", self.retention, reactor, lease=LEASE)


class OnMongo(StoreCase):
    """A real MongoDB."""

    visits = 100

    def make(self, clock: Any) -> IStore:
        return open_store(fresh_uri(), self.retention, RealReactorWithFakeClock(), lease=LEASE)


class SubscriberContract(StoreCase):
    """The suite.  A test case mixes in a store, and how a client connects."""

    assertEqual: Any
    assertIn: Any
    assertLess: Any

    def connect(self, account: str, after: str) -> MemorySubscriber:
        """Connect a client that asks for the account's events."""
        raise NotImplementedError

    async def subscribe(self, account: str = "a", after: str = "") -> MemorySubscriber:
        """Connect a client, and wait until it has a position."""
        subscriber = self.connect(account, after)
        await self.settle()
        return subscriber

    async def post(self, *results: object, account: str = "a") -> None:
        """Post results, one after the other."""
        for result in results:
            reply = await self.request(
                "POST", f"/hooks/{account}", body=json.dumps(result).encode()
            )
            self.assertIn(reply.status, (201, 202))

    async def envelopes(self, subscriber: MemorySubscriber) -> list[dict[str, Any]]:
        """Return the events and notices that came."""
        found: list[dict[str, Any]] = []
        while True:
            await self.settle()
            news = subscriber.envelopes()
            if not news:
                return found
            found += news

    async def results(self, subscriber: MemorySubscriber) -> list[dict[str, Any]]:
        """Return the events that came."""
        return [
            each
            for each in await self.envelopes(subscriber)
            if not each["type"].startswith("plumber.")
        ]

    async def data(self, subscriber: MemorySubscriber) -> list[object]:
        """Return the data of the events that came."""
        return [envelope["data"] for envelope in await self.results(subscriber)]

    async def test_live_events_come_in_order_once(self) -> None:
        """And none from before the client subscribed."""
        await self.post("before")
        subscriber = await self.subscribe()
        await self.post(1, 2, 3)
        self.assertEqual(await self.data(subscriber), [1, 2, 3])
        self.assertEqual(await self.data(subscriber), [])

    async def test_an_envelope_is_the_same_on_every_transport(self) -> None:
        """It has everything about the event."""
        subscriber = await self.subscribe()
        words = (
            ("Webhook-Id", "e1"),
            ("Event-Type", "progress"),
            ("Content-Type", "application/json"),
        )
        await self.request("POST", "/hooks/a", *words, body=b'{"n": 1}')
        (envelope,) = await self.results(subscriber)
        self.assertEqual(envelope.pop("cursor"), subscriber.cursor)
        self.assertEqual(
            envelope,
            {
                "id": "e1",
                "account": "a",
                "type": "progress",
                "time": "2027-01-15T08:00:00.000Z",
                "content_type": "application/json",
                "data": {"n": 1},
            },
        )

    async def test_unusual_results_arrive_unchanged(self) -> None:
        """Line breaks of every kind, other scripts, invalid UTF-8, text like the protocol."""
        subscriber = await self.subscribe()
        odd = [
            "a\nb\r\nc\rd",
            "\u2028\u2029\x85\x0b\x00",
            "日本",
            "\ndata: x\n\nid: 7\n\n",
            {"": [None, 1e300]},
            "x" * 70_000,
        ]
        await self.post(*odd)
        body = '{"a":\n\n"\u2028"}\r\n'.encode()
        await self.request("POST", "/hooks/a", ("Content-Type", "application/json"), body=body)
        self.assertEqual(await self.data(subscriber), [*odd, {"a": "\u2028"}])
        await self.request(
            "POST", "/hooks/a", ("Content-Type", "application/octet-stream"), body=b"\xff\n\n\x00"
        )
        self.assertEqual(
            [envelope["data_base64"] for envelope in await self.results(subscriber)], ["/woKAA=="]
        )

    async def test_accounts_are_separate(self) -> None:
        """A client gets no event of another account."""
        one, other = await self.subscribe("a"), await self.subscribe("b")
        await self.post(1)
        await self.post(2, account="b")
        self.assertEqual((await self.data(one), await self.data(other)), ([1], [2]))

    async def test_a_client_resumes_from_its_cursor(self) -> None:
        """It gets each missed event once, many pages if necessary, and then new ones."""
        first = await self.subscribe()
        await self.post(0)
        self.assertEqual(await self.data(first), [0])
        first.leave()
        await self.post(*range(1, 401))
        second = await self.subscribe(after=first.cursor)
        self.assertEqual(await self.data(second), list(range(1, 401)))
        await self.post("live")
        self.assertEqual(await self.data(second), ["live"])

    async def test_all_kept_events_can_be_replayed(self) -> None:
        """From the earliest one."""
        await self.post(1, 2)
        subscriber = await self.subscribe(after="earliest")
        self.assertEqual(await self.data(subscriber), [1, 2])

    async def test_a_gap_is_reported_and_nothing_is_replayed_in_part(self) -> None:
        """The notice tells what is lost and where the client continues."""
        first = await self.subscribe()
        await self.post(0)
        await self.envelopes(first)
        first.leave()
        await self.post(*range(600))
        swept = self.store.history.sweep()
        await self.settle()
        await swept
        second = await self.subscribe(after=first.cursor)
        (gap,) = [each for each in await self.envelopes(second) if each["type"] != "plumber.open"]
        epoch = first.cursor.partition(".")[0]
        told = {"from": f"{epoch}.1", "to": f"{epoch}.601", "oldest": f"{epoch}.102"}
        self.assertEqual(
            (gap["type"], gap["cursor"], gap["data"]), ("plumber.gap", f"{epoch}.601", told)
        )
        await self.post("live")
        self.assertEqual(await self.data(second), ["live"])

    async def test_a_cursor_that_was_never_issued_is_a_gap(self) -> None:
        """One beyond the head or of another epoch; the client continues at the head."""
        await self.post(1, 2)
        head = json.loads((await self.request("GET", "/events/a?wait=0")).body)["cursor"]
        for cursor in (f"{head[:-1]}9", "0.1", "zzzzzzzzzzzzzzz.1"):
            subscriber = await self.subscribe(after=cursor)
            (gap,) = [
                each for each in await self.envelopes(subscriber) if each["type"] != "plumber.open"
            ]
            self.assertEqual(
                (gap["type"], gap["cursor"], gap["data"]["from"]), ("plumber.gap", head, cursor)
            )
            await self.post("live")
            self.assertEqual(await self.data(subscriber), ["live"])
            head = subscriber.cursor
            subscriber.leave()
        newcomer = await self.subscribe("new", head)
        (gap,) = [each for each in await self.envelopes(newcomer) if each["type"] != "plumber.open"]
        self.assertEqual(
            (gap["type"], gap["cursor"][-2:], gap["data"]["from"]), ("plumber.gap", ".0", head)
        )

    async def test_a_receipt_counts_the_subscribers(self) -> None:
        """Also long-polls, which have left when the receipt is written."""
        for count in (1, 3, 0):
            subscribers = [await self.subscribe() for _ in range(count)]
            receipt = json.loads((await self.request("POST", "/hooks/a", body=b"1")).body)
            told = receipt["subscribers"], receipt["instances"]
            self.assertEqual(told, (count, {"ok": min(1, count), "failed": 0}))
            for subscriber in subscribers:
                self.assertEqual(await self.data(subscriber), [1])
                subscriber.leave()

    async def test_an_ephemeral_event_arrives_and_moves_no_cursor(self) -> None:
        """It is in no history, so it has no cursor."""
        subscriber = await self.subscribe()
        instance = self.server.plumber.leases.instance.id
        reply = await self.request("POST", f"/instances/{instance}/hooks/a", body=b'"ephemeral"')
        self.assertEqual(reply.status, 201)
        (envelope,) = await self.results(subscriber)
        self.assertEqual((envelope["data"], envelope["cursor"]), ("ephemeral", None))
        await self.post("kept")
        again = await self.subscribe(after=subscriber.cursor)
        self.assertEqual(await self.data(again), ["kept"])

    async def test_a_client_that_leaves_leaves_nothing_behind(self) -> None:
        """Early, live or amid a replay: no subscriber, no channel, no timer."""
        quiet = len(self.server.clock.getDelayedCalls())
        await self.post(*range(300))
        for after in ("", "earliest"):
            self.connect("a", after).leave()
            subscriber = await self.subscribe(after=after)
            subscriber.leave()
        await self.advance(2)
        self.assertEqual((self.server.plumber.hub.subscribers, len(self.server.clients)), (0, 0))
        self.assertEqual(
            (self.server.plumber.hub.accounts, len(self.server.listener.connections)), ([], 0)
        )
        self.assertEqual(len(self.server.clock.getDelayedCalls()), quiet)

    async def test_a_reader_makes_no_row(self) -> None:
        """Strangers ask for any name: no account has a row, and no hook outlives them for long."""
        names = [f"nobody{number}" for number in range(5)]
        subscribers = [await self.subscribe(name, after) for name in names for after in ("", "e.7")]
        await self.advance(1)
        for subscriber in subscribers:
            subscriber.leave()
        await self.advance(2)
        self.assertEqual(await self.account_rows(), 0)
        hooks = self.store.registry.instances(names)
        await self.settle()
        self.assertEqual(await hooks, {})

    async def test_a_thousand_visits_leak_nothing(self) -> None:
        """Fewer than a thousand on a store that takes its time."""
        quiet = len(self.server.clock.getDelayedCalls())
        await self.post("first")
        cursor = ""
        for visit in range(self.visits):
            subscriber = await self.subscribe(after=cursor)
            if not visit % 100:
                await self.post(visit)
                self.assertEqual(await self.data(subscriber), [visit])
                cursor = subscriber.cursor
            subscriber.leave()
        await self.advance(2)
        self.assertEqual((self.server.plumber.hub.subscribers, len(self.server.clients)), (0, 0))
        self.assertEqual(len(self.server.clock.getDelayedCalls()), quiet)


class ByWebSocket(SubscriberContract):
    """WebSocket subscribers."""

    def connect(self, account: str, after: str) -> MemoryWebSocket:
        return MemoryWebSocket(self.server, account, after)


class BySse(SubscriberContract):
    """Subscribers of Server-Sent Events."""

    def connect(self, account: str, after: str) -> MemoryEventSource:
        return MemoryEventSource(self.server, account, after)


class ByLongPoll(SubscriberContract):
    """Long-poll subscribers, which poll again after each response."""

    def connect(self, account: str, after: str) -> MemoryLongPoll:
        return MemoryLongPoll(self.server, account, after)

    async def subscribe(self, account: str = "a", after: str = "") -> MemoryLongPoll:
        # Without a cursor it begins at the head, so that no event is missed between two polls.
        after = after or (await self.poll("wait=0", account))["cursor"]
        subscriber = self.connect(account, after)
        await self.settle()
        return subscriber

    async def poll(self, query: str, account: str = "a") -> dict[str, Any]:
        """Return the response to a long-poll that does not wait."""
        reply = await self.request("GET", f"/events/{account}?{query}")
        self.assertEqual(reply.status, 200)
        answer: dict[str, Any] = json.loads(reply.body)
        return answer

    async def test_a_poll_that_does_not_wait_is_answered_with_what_is_kept(self) -> None:
        """However slow the store is: the wait begins when the replay is done."""
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
        """A long-poll that found nothing waits as long as it was asked to."""
        cursor = (await self.poll("wait=0"))["cursor"]
        client = self.server.connect()
        client.send(
            f"GET /events/a?after={cursor}&wait=3 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        await self.settle()
        await self.advance(2.5)
        self.assertEqual(client.received(), b"")
        await self.advance(1)
        self.assertEqual(
            json.loads(parse_responses(client.received())[0].body), {"events": [], "cursor": cursor}
        )
