"""
How workers share a listening socket: real sockets, in one process, where it is known who is asked
first.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sys
import tempfile

from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from asyncplumber.server.accept import UNKNOWN_BACKLOG, ConnectionCounts, SharedEndpoint
from harness.clients import sleep
from harness.cluster import until


class Connections(Factory):
    """The connections of one worker."""

    noisy = False

    def __init__(self) -> None:
        self.present: list[Protocol] = []

    def buildProtocol(self, addr: object) -> Protocol:
        self.present.append(connection := Protocol())
        return connection

    def __len__(self) -> int:
        return len(self.present)


class SharedPortTests(TestCase):
    """Two workers, of which both serve, on one socket."""

    timeout = 20

    async def setUp(self) -> None:
        self.listen(socket.socket())

    def listen(self, listening: socket.socket, name: object = ("127.0.0.1", 0)) -> None:
        listening.bind(name)  # type: ignore[arg-type]
        listening.listen(200)
        self.addCleanup(listening.close)
        self.listening = listening
        self.clients: list[socket.socket] = []
        table = ConnectionCounts.for_workers(2)
        self.workers = [Connections(), Connections()]
        self.counts = [
            ConnectionCounts(os.fdopen(os.dup(table.fileno()), "r+b"), number) for number in (1, 2)
        ]
        self.ports = []
        for connections, counts in zip(self.workers, self.counts, strict=True):
            endpoint = SharedEndpoint(reactor, os.dup(listening.fileno()), listening.family, counts)
            port = self.successResultOf(endpoint.listen(connections))
            self.ports.append(port)
            self.addCleanup(port.stopListening)
            self.addCleanup(
                lambda connections=connections: [
                    connection.transport.abortConnection() for connection in connections.present
                ]
            )
            counts.serve(connections.__len__)

    def come(self, count: int) -> None:
        """So many connect at once, before any worker has a look."""
        for _ in range(count):
            client = socket.socket(self.listening.family)
            self.addCleanup(client.close)
            client.connect(self.listening.getsockname())
            self.clients.append(client)

    async def all_in(self) -> list[int]:
        """Wait until all are accepted, and return how many are at each worker."""
        await until(
            lambda: sum(map(len, self.workers)) == len(self.clients), "everyone is taken in"
        )
        return list(map(len, self.workers))

    async def test_those_who_come_at_once_are_shared(self) -> None:
        self.come(16)
        self.assertEqual(await self.all_in(), [8, 8])
        self.come(150)  # more than one takes in a turn
        first, second = await self.all_in()
        self.assertLessEqual(abs(first - second), 1)

    async def test_those_who_come_one_by_one_are_shared(self) -> None:
        for count in range(1, 13):
            self.come(1)
            self.assertEqual(max(await self.all_in()), (count + 1) // 2)

    async def test_who_has_fewer_catches_up(self) -> None:
        self.counts[1].leave()
        self.come(6)
        self.assertEqual(await self.all_in(), [6, 0])
        self.counts[1].serve(self.workers[1].__len__)
        for count in range(1, 7):
            self.come(1)
            self.assertEqual(await self.all_in(), [6, count])

    async def test_one_that_is_stuck_keeps_nobody_waiting(self) -> None:
        """It has nobody, and does not come for its share."""
        reactor.removeReader(self.ports[1])  # type: ignore[arg-type]
        self.come(30)
        self.assertEqual(await self.all_in(), [30, 0])

    async def test_one_that_does_not_serve_yet_leaves_them_to_the_other(self) -> None:
        self.counts[0].leave()
        self.come(3)
        self.assertEqual(await self.all_in(), [0, 3])
        self.counts[1].leave()
        self.come(3)
        self.assertEqual(sum(await self.all_in()), 6)

    async def test_one_that_has_stopped_leaves_them_to_the_other(self) -> None:
        self.ports[0].stopListening()
        self.ports[0].stopListening()
        self.come(3)
        self.assertEqual(await self.all_in(), [0, 3])

    async def test_one_without_descriptors_lets_them_wait(self) -> None:
        """They are not turned away, and it tries again: another may have some, or it has again."""
        await sleep(0)  # the reactor has all the descriptors that it needs
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        self.come(2)
        following = os.dup(0)
        os.close(following)
        resource.setrlimit(resource.RLIMIT_NOFILE, (following, limits[1]))
        warned = []
        globalLogPublisher.addObserver(warned.append)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, warned.append)  # type: ignore[arg-type]
        await until(
            lambda: (
                sum("cannot accept" in (event.get("log_format") or "") for event in warned) == 2
            ),
            "both are told",
        )
        self.assertEqual(sum(map(len, self.workers)), 0)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await self.all_in()

    async def test_a_client_that_has_gone_already_does_no_harm(self) -> None:
        self.come(1)
        self.clients.pop().close()
        self.come(1)
        await until(
            lambda: any(len(connections) for connections in self.workers),
            "the one who stayed is taken in",
        )

    async def test_a_protocol_that_fails_does_no_harm(self) -> None:
        self.counts[1].leave()
        build, self.workers[0].buildProtocol = self.workers[0].buildProtocol, lambda addr: 1 // 0  # type: ignore[assignment, return-value]
        self.come(1)
        await until(lambda: self.flushLoggedErrors(ZeroDivisionError), "it is logged")
        self.clients.clear()
        self.workers[0].buildProtocol = build
        self.come(2)
        self.assertEqual(await self.all_in(), [2, 0])


class UnixSocketTests(SharedPortTests):
    """Where nobody tells how many wait, they are not shared as evenly."""

    async def setUp(self) -> None:
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        self.path = f"{folder}/door"
        self.listen(socket.socket(socket.AF_UNIX), self.path)

    async def test_those_who_come_at_once_are_shared(self) -> None:
        self.come(150)
        first, second = await self.all_in()
        self.assertLessEqual(abs(first - second), UNKNOWN_BACKLOG)

    async def test_those_who_come_one_by_one_are_shared(self) -> None:
        for _ in range(100):
            self.come(1)
            first, second = await self.all_in()
            self.assertLessEqual(abs(first - second), UNKNOWN_BACKLOG)

    async def test_who_has_fewer_catches_up(self) -> None:
        self.counts[1].leave()
        self.come(UNKNOWN_BACKLOG + 6)
        self.assertEqual(await self.all_in(), [UNKNOWN_BACKLOG + 6, 0])
        self.counts[1].serve(self.workers[1].__len__)
        self.come(1)
        self.assertEqual(await self.all_in(), [UNKNOWN_BACKLOG + 6, 1])

    async def test_its_file_stays(self) -> None:
        for port in self.ports:
            port.stopListening()
        self.assertTrue(os.path.exists(self.path))


if sys.platform != "linux":
    SharedPortTests.skip = "only Linux tells how many wait"  # type: ignore[attr-defined]
