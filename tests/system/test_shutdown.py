"""A planned stop: in which order, how long, and what everybody is told."""

from __future__ import annotations

import signal
import time

from twisted.internet.defer import gatherResults

from harness.clients import TRANSPORTS, EventSource, HttpConnection, WebSocket, connect
from harness.cluster import Cluster, eventually, until
from tests.system.test_cluster import ClusterTestCase


class Stubborn(WebSocket):
    """A client that does not answer a close frame."""

    answers_close = False


class StopTests(ClusterTestCase):
    """SIGTERM to one instance of a cluster."""

    async def setUp(self) -> None:
        await super().setUp()
        self.node = self.cluster.nodes[0]
        self.addCleanup(self.node.kill)  # half stopped, it is of no use to the next test

    def term(self) -> None:
        self.began = time.monotonic()
        self.node.signal(signal.SIGTERM)

    async def test_hooks_go_first(self) -> None:
        """When a subscriber is told goodbye, the registry has forgotten the instance already."""
        (subscriber,) = await self.traffic.connect(self.ports[:1], self.account, [Stubborn])
        instance = self.cluster.instance_at(self.node)["_id"]
        self.assertTrue(self.cluster.rows("hooks", instance=instance))
        self.term()
        await until(lambda: subscriber.byes, "it is told goodbye")
        self.assertEqual(self.cluster.rows("hooks", instance=instance), [])
        self.assertEqual(self.cluster.rows("instances", _id=instance), [])

    async def test_new_work_is_refused_while_the_old_ends(self) -> None:
        """
        Events, subscribers and readiness are answered 503 with Retry-After; a request that was half
        here is answered too.
        """
        (subscriber,) = await self.traffic.connect(self.ports[:1], self.account, [Stubborn])
        old = await connect(self.node.port, HttpConnection())
        answer = old.request("POST", f"/hooks/{self.account}", b"{}", withhold=1)
        # An answer on another connection says that what was written before has been read.
        self.assertEqual((await self.node.fetch("GET", "/healthz")).status, 200)
        self.term()
        await until(lambda: subscriber.byes, "it is told goodbye")
        old.transport.write(b"}")
        replies = [await answer]
        requests = [
            ("POST", f"/hooks/{self.account}"),
            ("GET", f"/events/{self.account}"),
            ("GET", "/readyz"),
        ]
        replies += [await self.node.fetch(method, path) for method, path in requests]
        self.assertEqual([reply.status for reply in replies], [503] * 4)
        self.assertTrue(all(1 <= int(reply.headers["retry-after"]) <= 5 for reply in replies))
        self.assertTrue(old.lost, "the connection is closed after the answer")
        self.assertEqual((await self.node.fetch("GET", "/healthz")).status, 200)

    async def test_everybody_is_told_to_come_back_elsewhere(self) -> None:
        """
        Streams hear plumber.bye with advice when to come back, WebSockets are closed with 1001,
        polls are answered.
        """
        subscribers = [
            self.traffic.subscriber(kind, self.ports, self.account) for kind in TRANSPORTS
        ]
        await gatherResults([subscriber.begin() for subscriber in subscribers])
        socket, stream, poll = subscribers

        async def present() -> int:
            return (await self.node.fetch("GET", f"/accounts/{self.account}")).json["here"]

        await eventually(present, lambda count: count == 3, "all three wait, the poll included")
        self.term()
        await self.node.ended(3)
        self.assertEqual((socket.byes, socket.closes), (1, [1001]))
        self.assertEqual(stream.byes, 1)
        self.assertEqual(set(poll.closes), {200})
        self.assertEqual(poll.aborted, 0)
        self.assertTrue(all(0 <= each.bye_delay <= 5 for each in subscribers))

    async def test_the_advice_is_spread(self) -> None:
        """Not everybody is told to come back at the same moment."""
        subscribers = [
            self.traffic.subscriber(EventSource, self.ports[:1], self.account) for _ in range(20)
        ]
        await gatherResults([subscriber.begin() for subscriber in subscribers])
        self.term()
        await until(lambda: all(subscriber.byes for subscriber in subscribers), "all are told")
        self.assertGreater(len({subscriber.bye_delay for subscriber in subscribers}), 10)

    async def test_what_was_accepted_is_answered(self) -> None:
        """
        POSTs under way when the signal comes get a receipt or a 503, and no broken connection.
        """
        publishers = [self.traffic.publisher(self.ports, self.account) for _ in range(20)]
        for publisher in publishers:
            publisher.run()
        await until(lambda: self.ledger.events >= 40, "under load")
        self.term()
        await self.node.ended(5)
        await gatherResults([publisher.stop() for publisher in publishers])
        self.assertEqual(set(self.ledger.refused) - {503}, set())
        subscribers = [self.traffic.subscriber(WebSocket, self.ports[1:], self.account, "earliest")]
        await subscribers[0].begin()
        await self.traffic.settled()

    async def test_a_stubborn_client_does_not_hold_it_up(self) -> None:
        """A client that does not go is cut off, and the stop ends within its bound."""
        await self.traffic.connect(self.ports[:1], self.account, [Stubborn])
        self.term()
        await self.node.ended(10)
        self.assertLess(time.monotonic() - self.began, 8)

    async def test_a_second_signal_changes_nothing(self) -> None:
        """SIGTERM again, as an impatient operator sends it, neither breaks nor hurries the stop."""
        (subscriber,) = await self.traffic.connect(self.ports[:1], self.account, [WebSocket])
        self.term()
        await until(lambda: "stopping" in self.node.output, "it begins to stop")
        self.node.signal(signal.SIGTERM)
        await self.node.ended(10)
        # The process may end before its last bytes are read here.
        await until(lambda: subscriber.closes, "the close is read")
        self.assertEqual((subscriber.byes, subscriber.closes), (1, [1001]))


class LonelyStopTests(ClusterTestCase):
    """A stop when the database is not there."""

    def make_cluster(self) -> Cluster:
        cluster = Cluster(1)
        self.addCleanup(cluster.down)
        return cluster

    async def test_it_ends_without_its_database(self) -> None:
        """An unreachable store delays the end, within the bound, and prevents no goodbye."""
        (subscriber,) = await self.traffic.connect(self.ports, self.account, [WebSocket])
        self.cluster.mongod.pause()
        self.addCleanup(self.cluster.mongod.resume)
        began = time.monotonic()
        self.cluster.nodes[0].signal(signal.SIGTERM)
        await self.cluster.nodes[0].ended(25)
        self.assertLess(time.monotonic() - began, 22)
        await until(lambda: subscriber.closes, "the close is read")
        self.assertEqual((subscriber.byes, subscriber.closes[0]), (1, 1001))
