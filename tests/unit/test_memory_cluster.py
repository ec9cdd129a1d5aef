"""Several servers in memory that act as one."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.testing import MemoryCluster, MemoryServer
from harness.memory_subscribers import MemoryEventSource


class MemoryClusterTests(SynchronousTestCase):
    """Two servers on one store."""

    def setUp(self) -> None:
        self.cluster = MemoryCluster()
        self.here, self.there = self.cluster.servers

    def post(self, server: MemoryServer, result: object) -> tuple[int, Any]:
        """POST a result to account a; return status and receipt."""
        client = server.connect()
        body = json.dumps(result).encode()
        head = f"POST /hooks/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        client.send(head.encode() + body)
        status, _, rest = client.received().partition(b"\r\n")
        return int(status.split()[1]), json.loads(rest.partition(b"\r\n\r\n")[2])

    def results(self, source: MemoryEventSource) -> list[object]:
        return [each["data"] for each in source.results()]

    def test_an_event_reaches_the_subscribers_at_both(self) -> None:
        """And its receipt counts both."""
        sources = [MemoryEventSource(server) for server in self.cluster.servers]
        status, receipt = self.post(self.here, 1)
        self.assertEqual([self.results(source) for source in sources], [[1], [1]])
        self.assertEqual(
            (status, receipt["subscribers"], receipt["instances"]),
            (201, 2, {"ok": 2, "failed": 0}),
        )
        self.assertEqual(self.here.plumber.relay.relayed, 1)

    def test_a_client_carries_on_at_the_other_server(self) -> None:
        """With its cursor, and without a gap."""
        first = MemoryEventSource(self.here)
        self.post(self.there, 1)
        self.assertEqual(self.results(first), [1])
        first.leave()
        self.post(self.there, 2)
        second = MemoryEventSource(self.there, after=first.cursor)
        self.post(self.here, 3)
        self.assertEqual(self.results(second), [2, 3])

    def test_a_server_that_stops_leaves_the_others_to_go_on(self) -> None:
        """Nothing is sent to it any more."""
        MemoryEventSource(self.there)
        source = MemoryEventSource(self.here)
        stopped = self.there.stop()
        self.cluster.advance(10)
        self.successResultOf(stopped)
        _, receipt = self.post(self.here, 1)
        self.assertEqual(receipt["instances"], {"ok": 1, "failed": 0})
        self.assertEqual(self.results(source), [1])

    def test_a_callback_hears_of_what_was_posted_elsewhere(self) -> None:
        """As in an application that is embedded in several processes."""
        heard: list[object] = []
        self.there.plumber.register("a", lambda event: heard.append(event.data))
        self.cluster.settle()
        self.post(self.here, "done")
        self.cluster.settle()
        self.assertEqual(heard, ["done"])
