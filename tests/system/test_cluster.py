"""
Several instances on one MongoDB act as one, whatever fails: real processes, sockets and a mongod.

The tests share four instances.  Each test has accounts of its own.
"""

from __future__ import annotations

import atexit
import http.client
import json
import os
import signal
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pymongo
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from harness.clients import EventSource, LongPoll, WebSocket, fetch
from harness.cluster import LEASE, Cluster, Node, TcpProxy, Traffic, eventually, until
from harness.mongod import with_database

_shared: list[Cluster] = []


def shared_cluster() -> Cluster:
    """
    Return four instances, which run until the end of all tests.

    Their history is longer than what any test posts: otherwise a comparison of positions during a
    large POST might find its beginning trimmed already.
    """
    if not _shared:
        cluster = Cluster(4, "--history-length", "20000")
        atexit.register(cluster.down)
        _shared.append(cluster)
    return _shared[0]


class ClusterTestCase(TestCase):
    """A cluster of which all instances run, and clients that leave when the test ends."""

    timeout = 25
    cluster: Cluster

    def make_cluster(self) -> Cluster:
        return shared_cluster()

    async def setUp(self) -> None:  # type: ignore[override]
        self.cluster = self.make_cluster()
        self.traffic = Traffic()
        self.ledger = self.traffic.ledger
        self.addCleanup(lambda: Deferred.fromCoroutine(self.traffic.disconnect()))
        self.addCleanup(self.cluster.log_news)
        await self.cluster.up()
        self.ports = self.cluster.ports
        self.account = self.id().rpartition(".")[2]


class RelayTests(ClusterTestCase):
    """Nothing fails."""

    async def test_what_comes_in_anywhere_arrives_everywhere(self) -> None:
        """Each instance takes events in; subscribers of each kind at each instance get all."""
        subscribers = await self.traffic.connect(self.ports, self.account)
        publishers = [self.traffic.publisher([port], self.account) for port in self.ports]
        await gatherResults([publisher.run(50) for publisher in publishers])
        await self.traffic.settled()
        self.assertEqual({len(each.events) for each in subscribers}, {200})

    async def test_four_writers_give_one_order(self) -> None:
        """Instances that append to one account at full speed give all subscribers one order."""
        subscribers = await self.traffic.connect(self.ports, self.account, [WebSocket, EventSource])
        writers = [self.traffic.publisher([self.ports[at % 4]], self.account) for at in range(12)]
        await gatherResults([writer.run(40) for writer in writers])
        await self.traffic.settled()
        self.assertEqual(sorted(self.ledger.accepted[self.account]), list(range(1, 481)))
        self.assertEqual([each.events for each in subscribers], [subscribers[0].events] * 8)

    async def test_a_receipt_counts_the_cluster(self) -> None:
        """It has the number of instances that took the event, and of their subscribers."""
        await self.traffic.connect(self.ports, self.account, [WebSocket, EventSource])
        receipt = await self.traffic.publisher(self.ports, self.account).post()
        self.assertEqual(receipt["instances"], {"ok": 4, "failed": 0})
        self.assertEqual(receipt["subscribers"], 8)

    async def test_each_instance_tells_the_number_of_subscribers(self) -> None:
        """Every instance counts the subscribers of the whole cluster."""
        await self.traffic.connect(self.ports[:2], self.account, [WebSocket, EventSource])
        for node, here in zip(self.cluster.nodes, (2, 2, 0, 0), strict=True):
            told = (await node.fetch("GET", f"/accounts/{self.account}")).json
            self.assertEqual((told["subscribers"], told["instances"], told["here"]), (4, 2, here))

    async def test_a_hook_lives_as_long_as_there_is_a_subscriber(self) -> None:
        """It is there before the subscriber is live, and survives a reload."""

        def hooks() -> list[dict[str, Any]]:
            return self.cluster.rows("hooks", account_id=self.account)

        (subscriber,) = await self.traffic.connect(self.ports[:1], self.account, [WebSocket])
        (hook,) = hooks()
        self.assertEqual(urlsplit(hook["url"]).port, self.ports[0])
        subscriber.disconnect()
        await until(lambda: subscriber.connections == 2, "it comes back")
        self.assertEqual([row["_id"] for row in hooks()], [hook["_id"]])
        await subscriber.end()
        await until(lambda: not hooks(), "the hook is withdrawn")

    async def test_batches_may_come_twice_and_in_any_order(self) -> None:
        """Subscribers get each event once and in order."""
        (subscriber,) = await self.traffic.connect(self.ports[:1], self.account, [WebSocket])
        publisher = self.traffic.publisher(self.ports[1:], self.account)
        instance = self.cluster.instance_at(self.cluster.nodes[0])
        path = f"/instances/{instance['_id']}/events"
        await publisher.run(20)
        rows = sorted(self.cluster.rows("events", account=self.account), key=lambda row: row["seq"])
        names = ("account", "epoch", "seq", "id", "type", "time", "content_type")
        batches = [
            json.dumps([*[row[name] for name in names], row["payload"].decode()]).encode()
            for row in rows
        ]
        for batch in [*reversed(batches), *batches, b"\n".join(batches[::-1])]:
            self.assertEqual((await fetch(self.ports[0], "POST", path, batch)).status, 403)
            signature = self.cluster.signed(instance, batch)
            self.assertEqual(
                (await fetch(self.ports[0], "POST", path, batch, signature)).status, 200
            )
        await publisher.post()
        await self.traffic.settled()
        self.assertEqual(len(subscriber.events), 21)

    async def test_early_batches_make_an_instance_fetch_what_is_missing(self) -> None:
        """An event that is far ahead brings along everything before it."""
        (subscriber,) = await self.traffic.connect(self.ports[:1], self.account, [WebSocket])
        instance = self.cluster.instance_at(self.cluster.nodes[0])
        collection = self.cluster.collection("hooks")
        try:
            # No instance knows of the subscriber any more, so nothing is relayed to it.
            collection.delete_many({"account_id": self.account})
        finally:
            collection.database.client.close()
        await self.traffic.publisher(self.ports[1:], self.account).run(9)
        (row,) = self.cluster.rows("events", account=self.account, seq=9)
        names = ("account", "epoch", "seq", "id", "type", "time", "content_type")
        batch = json.dumps([*[row[name] for name in names], row["payload"].decode()]).encode()
        path, signature = (
            f"/instances/{instance['_id']}/events",
            self.cluster.signed(instance, batch),
        )
        self.assertEqual((await fetch(self.ports[0], "POST", path, batch, signature)).status, 200)
        await self.traffic.settled()
        self.assertEqual(len(subscriber.events), 9)

    async def test_a_deleted_hook_delays_events_and_loses_none(self) -> None:
        """If its hook is deleted, an instance finds what it missed at the next comparison."""
        await self.traffic.connect(self.ports[:1], self.account, [WebSocket, EventSource, LongPoll])
        collection = self.cluster.collection("hooks")
        try:
            collection.delete_many({"account_id": self.account})
        finally:
            collection.database.client.close()
        await self.traffic.publisher(self.ports[1:], self.account).run(10)
        await self.traffic.settled(6)

    async def test_everything_that_may_be_posted_may_be_relayed(self) -> None:
        """One event of the largest size, and thousands of small ones in one POST."""
        await self.traffic.connect(self.ports[:1], self.account, [WebSocket])
        large = json.dumps(['"'] * 170_000).encode()
        small = b"\n".join([b"1"] * 9_000)
        for body, kind in ((large, "application/json"), (small, "application/x-ndjson")):
            self.assertLess(len(body), 1024 * 1024)
            reply = await fetch(
                self.ports[1], "POST", f"/hooks/{self.account}", body, {"Content-Type": kind}
            )
            receipt = reply.json.get("receipts", [reply.json])[0]
            self.assertEqual(receipt["instances"].get("failed"), 0, receipt)
        (subscriber,) = self.ledger.subscribers
        await until(lambda: len(subscriber.events) == 9_001, "all arrive")


def talk(uri: str, account: str, body: str, headers: dict[str, str] | None = None) -> list[int]:
    """
    Publish as the program of the talk does, with a MongoDB driver, an HTTP client and a loop.

    ::

        for hook in webhook_collection.find({"account_id": id}):
            requests.post(hook["url"], data)

    Returns:
        The statuses of the responses.
    """
    statuses = []
    client: pymongo.MongoClient[Any] = pymongo.MongoClient(uri)
    with client:
        for hook in client.get_default_database()["hooks"].find({"account_id": account}):
            url = urlsplit(hook["url"])
            connection = http.client.HTTPConnection(url.hostname, url.port, timeout=5)
            connection.request("POST", url.path, body, headers or {})
            statuses.append(connection.getresponse().status)
            connection.close()
    return statuses


class TalkTests(ClusterTestCase):
    """The protocol of 2012: look the hooks up, and POST to each."""

    async def publish(
        self, account: str, body: str, headers: dict[str, str] | None = None
    ) -> list[int]:
        return await deferToThread(talk, self.cluster.uri, account, body, headers)

    async def test_the_plain_loop_reaches_all_subscribers(self) -> None:
        """A program that knows only the collection reaches each subscriber once."""
        subscribers = await self.traffic.connect(self.ports, self.account, [WebSocket, EventSource])
        for number in range(3):
            self.assertEqual(await self.publish(self.account, json.dumps({"n": number})), [201] * 4)
        await until(lambda: all(len(each.ephemeral) == 3 for each in subscribers), "all have all")
        self.assertEqual(
            [each.ephemeral for each in subscribers], [[{"n": 0}, {"n": 1}, {"n": 2}]] * 8
        )

    async def test_the_loop_with_an_id_is_one_event(self) -> None:
        """Copies with the same Webhook-Id are one event: kept, in order, and delivered once."""
        subscribers = await self.traffic.connect(self.ports, self.account)
        self.assertEqual(await self.publish(self.account, "{}", {"Webhook-Id": "only"}), [201] * 4)
        await until(lambda: all(each.events for each in subscribers), "all have it")
        await self.traffic.publisher(self.ports, self.account).post()
        await until(lambda: all(len(each.events) == 2 for each in subscribers), "and the next")
        self.assertEqual(
            {tuple(each.events) for each in subscribers},
            {((1, "only"), (2, f"{self.account}.0-1"))},
        )

    async def test_odd_accounts_have_hooks_too(self) -> None:
        """The URL alone identifies the account, whatever characters the account has."""
        account = "Jörg/№ 7?&#%2F+"
        (subscriber,) = await self.traffic.connect(
            self.ports[:1], quote(account, safe=""), [WebSocket]
        )
        self.assertEqual(await self.publish(account, "{}"), [201])
        await until(lambda: subscriber.ephemeral, "it arrives")

    async def test_an_old_hook_is_gone(self) -> None:
        """An instance without the account answers 410, so the publisher may delete the row."""
        (subscriber,) = await self.traffic.connect(self.ports[:1], self.account, [WebSocket])
        (hook,) = self.cluster.rows("hooks", account_id=self.account)
        path = urlsplit(hook["url"]).path
        self.assertEqual((await fetch(self.ports[0], "POST", path, b"{}")).status, 201)
        await subscriber.end()
        await until(
            lambda: not self.cluster.rows("hooks", account_id=self.account), "the hook is withdrawn"
        )
        self.assertEqual((await fetch(self.ports[0], "POST", path, b"{}")).status, 410)
        # Another instance has taken over the address: it is not the one that was meant.
        self.assertEqual((await fetch(self.ports[1], "POST", path, b"{}")).status, 410)


class FaultTests(ClusterTestCase):
    """A process dies, or hangs."""

    async def load(self, publishers: int = 2, ports: list[int] | None = None) -> None:
        """Let publishers send without a pause from now on."""
        for _ in range(publishers):
            self.traffic.publisher(ports or self.ports, self.account).run(pause=0.002)
        await self.grown(20)

    async def grown(self, more: int) -> None:
        """Wait until so many more events have been accepted."""
        goal = self.ledger.events + more
        await until(
            lambda: self.ledger.events >= goal, f"{goal} events accepted, not {self.ledger.events}"
        )

    async def finish(self) -> None:
        """Stop the publishers, and wait until all subscribers have everything."""
        await gatherResults([publisher.stop() for publisher in self.traffic.publishers])
        await self.traffic.settled()

    async def test_an_instance_is_killed_during_a_broadcast(self) -> None:
        """Its subscribers and publishers carry on elsewhere, and miss nothing."""
        subscribers = await self.traffic.connect(self.ports, self.account)
        await self.load()
        self.cluster.nodes[0].kill()
        await self.grown(100)
        await until(
            lambda: all(each.connections >= 2 for each in subscribers[:3]), "they came back"
        )
        await self.finish()

    async def test_a_dead_instance_leaves_no_hooks(self) -> None:
        """When the lease of a killed instance has ended, its hooks and its row are swept."""
        await self.traffic.connect(self.ports[:2], self.account, [WebSocket])
        dead = self.cluster.instance_at(self.cluster.nodes[0])["_id"]
        gone = self.ledger.subscribers[0]
        await gone.end()
        self.cluster.nodes[0].kill()
        await until(
            lambda: not self.cluster.rows("hooks", instance=dead), "its hooks are swept", 3 * LEASE
        )
        await until(lambda: not self.cluster.rows("instances", _id=dead), "and its row", 3 * LEASE)
        receipt = await self.traffic.publisher(self.ports[2:], self.account).post()
        self.assertEqual(receipt["instances"], {"ok": 1, "failed": 0})

    async def test_a_dead_instance_does_not_delay_a_receipt(self) -> None:
        """Between its death and the end of its lease, POSTs are answered at once."""
        (gone, _) = await self.traffic.connect(self.ports[:2], self.account, [WebSocket])
        await gone.end()
        self.cluster.nodes[0].kill()
        publisher = self.traffic.publisher(self.ports[1:2], self.account)
        receipt = await publisher.post()
        self.assertEqual(
            (receipt["subscribers"], receipt["instances"]), (1, {"ok": 1, "failed": 1})
        )

    async def test_mongod_is_killed_under_load_and_returns(self) -> None:
        """POSTs are answered 503 with Retry-After meanwhile, and afterwards nothing is missing."""
        await self.traffic.connect(self.ports, self.account, [WebSocket, LongPoll])
        await self.load()
        self.cluster.mongod.kill()
        await until(lambda: self.ledger.refused.get(503), "a POST is refused")
        status = (await self.cluster.nodes[0].fetch("GET", "/readyz")).status
        self.assertEqual(status, 503)
        self.cluster.mongod.restart()
        await self.grown(100)
        await self.finish()
        self.assertEqual(set(self.ledger.refused), {503})

    async def test_an_instance_hangs_and_goes_on(self) -> None:
        """It delays the others only for a moment, and finds what it missed when it goes on."""
        subscribers = await self.traffic.connect(
            self.ports[:2], self.account, [WebSocket, EventSource]
        )
        sleeper = self.cluster.nodes[0]
        sleeper.signal(signal.SIGSTOP)
        self.addCleanup(lambda: sleeper.signal(signal.SIGCONT))
        publisher = self.traffic.publisher(self.ports[1:], self.account)
        receipt = await publisher.post()
        self.assertEqual(receipt["instances"].get("pending"), 1)
        await until(
            lambda: all(len(each.events) == 1 for each in subscribers[2:]), "the others have it", 2
        )
        await self.load(ports=self.ports[1:])
        await until(lambda: self.has_expired(0), "its lease runs out")
        await self.grown(100)
        sleeper.signal(signal.SIGCONT)
        await self.grown(20)
        await self.finish()
        self.assertEqual([each.connections for each in subscribers], [1, 1, 1, 1])

    def has_expired(self, at: int) -> bool:
        """Whether no instance relays to this one any more."""
        urls = [row["url"] for row in self.cluster.rows("instances")]
        return not any(f":{self.ports[at]}/" in url for url in urls)

    async def test_a_reader_that_stalls_is_closed_and_carries_on(self) -> None:
        """It is closed with 1013, delays no other subscriber, and has everything in the end."""
        lazy, brisk = [
            self.traffic.subscriber(WebSocket, self.ports[:1], self.account) for _ in range(2)
        ]
        await gatherResults([lazy.begin(), brisk.begin()])
        lazy.connection.pauseProducing()
        publisher = self.traffic.publisher(self.ports[:1], self.account)
        await publisher.run(40, data="x" * 400_000)
        await until(lambda: len(brisk.events) == 40, "the other one has everything")
        self.assertLess(len(lazy.events), 40)
        lazy.connection.resumeProducing()
        await self.traffic.settled()
        self.assertEqual(lazy.closes, [1013])

    async def test_a_rolling_restart_is_invisible(self) -> None:
        """Instances are stopped and started one by one under load; clients miss nothing."""
        subscribers = await self.traffic.connect(self.ports[:3], self.account)
        await self.load(3, ports=self.ports[:3])
        for node in self.cluster.nodes[:3]:
            self.assertEqual(await node.stop(), -signal.SIGTERM)
            await node.start()
            await self.grown(20)
        await self.finish()
        streams = [each for each in subscribers if not isinstance(each, LongPoll)]
        self.assertTrue(
            all(each.byes == len(each.closes) for each in streams),
            [(each.byes, each.closes) for each in streams],
        )
        self.assertEqual(
            {code for each in subscribers if isinstance(each, WebSocket) for code in each.closes},
            {1001},
        )
        self.assertEqual(
            {status for each in subscribers if isinstance(each, LongPoll) for status in each.closes}
            - {200, 503},
            set(),
        )


class PartitionTests(TestCase):
    """Two instances that cannot reach each other, while both reach the database."""

    timeout = 25

    async def setUp(self) -> None:  # type: ignore[override]
        self.cluster = shared_cluster()
        await self.cluster.up()
        self.wires = [await TcpProxy().open() for _ in range(2)]
        options = (
            "--store",
            with_database(self.cluster.mongod.uri, "partition"),
            "--lease",
            str(LEASE),
            "--linger",
            "0.5",
        )
        self.nodes = [
            Node(*options, "--advertise-url", f"http://127.0.0.1:{wire.port}")
            for wire in self.wires
        ]
        self.traffic = Traffic()
        for wire, node in zip(self.wires, self.nodes, strict=True):
            wire.target = node.port
            self.addCleanup(lambda wire: Deferred.fromCoroutine(wire.close()), wire)
            self.addCleanup(node.kill)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.traffic.disconnect()))
        await gatherResults([Deferred.fromCoroutine(node.start()) for node in self.nodes])
        self.ports = [node.port for node in self.nodes]

    async def test_events_arrive_late_rather_than_never(self) -> None:
        """During a partition each side finds events in the history, and after it by the relay."""
        await self.traffic.connect(self.ports, "parted")
        here, there = [self.traffic.publisher([port], "parted") for port in self.ports]
        await gatherResults([here.run(10), there.run(10)])
        await self.traffic.settled()
        for wire in self.wires:
            wire.cut()
        await gatherResults([here.run(15), there.run(15)])
        await self.traffic.settled(8)
        for wire in self.wires:
            wire.mend()

        async def receipt() -> Any:
            return (await here.post())["instances"]

        await eventually(
            receipt, lambda counts: counts == {"ok": 2, "failed": 0}, "the relay works again"
        )
        await self.traffic.settled()


class SecretTests(TestCase):
    """Two instances with a secret, whose clocks are ten minutes apart."""

    timeout = 25

    async def setUp(self) -> None:  # type: ignore[override]
        shared = shared_cluster()
        await shared.up()
        self.uri = with_database(shared.mongod.uri, "secret")
        secret = os.path.abspath(self.mktemp())
        Path(secret).write_text("sixteen bytes and more")
        options = (
            "--store",
            self.uri,
            "--lease",
            str(LEASE),
            "--linger",
            "0.5",
            "--peer-secret-file",
            secret,
        )
        self.nodes = [Node(*options, skew=skew) for skew in (-300.0, 300.0)]
        self.traffic = Traffic()
        for node in self.nodes:
            self.addCleanup(node.kill)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.traffic.disconnect()))
        await gatherResults([Deferred.fromCoroutine(node.start()) for node in self.nodes])
        self.ports = [node.port for node in self.nodes]

    async def test_clocks_may_be_minutes_apart(self) -> None:
        """Leases, order, replay and signatures do not depend on the time of day."""
        subscribers = await self.traffic.connect(self.ports, "skewed")
        publishers = [self.traffic.publisher([port], "skewed") for port in self.ports]
        await gatherResults([publisher.run(30) for publisher in publishers])
        await self.traffic.settled()
        receipt = await publishers[0].post()
        self.assertEqual(receipt["instances"], {"ok": 2, "failed": 0})
        for subscriber in subscribers:
            subscriber.disconnect()
        await gatherResults([publisher.run(60) for publisher in publishers])
        await self.traffic.settled()
        self.assertEqual(
            [
                (await node.fetch("GET", "/accounts/skewed")).json["instances"]
                for node in self.nodes
            ],
            [2, 2],
        )
        self.nodes[1].kill()
        await self.traffic.publisher(self.ports[:1], "skewed").run(10)
        await self.traffic.settled()

    async def test_a_request_without_the_secret_is_refused(self) -> None:
        """It can neither send a batch, nor ask a count, nor bypass the history."""
        await self.traffic.connect(self.ports[:1], "guarded", [WebSocket])
        self.assertEqual(await deferToThread(talk, self.uri, "guarded", "{}"), [403])
        client: pymongo.MongoClient[Any] = pymongo.MongoClient(self.uri)
        with client:
            (hook,) = client.get_default_database()["hooks"].find({"account_id": "guarded"})
        base = urlsplit(hook["url"]).path.removesuffix("/hooks/guarded")
        forged = {
            "webhook-id": "x",
            "webhook-timestamp": "1700000000",
            "webhook-signature": "v1,Zm9yZ2Vk",
        }
        for headers in ({}, forged):
            self.assertEqual(
                (await fetch(self.ports[0], "POST", f"{base}/events", b"", headers)).status, 403
            )
            self.assertEqual(
                (
                    await fetch(self.ports[0], "GET", f"{base}/accounts/guarded", b"", headers)
                ).status,
                403,
            )
        await self.traffic.publisher(self.ports[1:], "guarded").run(3)
        await self.traffic.settled()
        self.assertEqual(self.traffic.ledger.subscribers[0].ephemeral, [])
