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
from twisted.trial.unittest import SynchronousTestCase, TestCase

from asyncplumber.server.accept import UNTOLD, Seat, Seats, SharedEndpoint
from harness.clients import sleep
from harness.cluster import until


class SeatsTests(SynchronousTestCase):
    """The arithmetic."""

    def setUp(self) -> None:
        self.seats = Seats.for_workers(3)

    def counted(self, *counts: int) -> None:
        for number, count in enumerate(counts, 1):
            self.seats.note(number, count)

    def shares(self, waiting: int) -> list[int]:
        return [self.seats.share(number, waiting) for number in (1, 2, 3)]

    def test_all_are_to_have_as_many(self) -> None:
        self.counted(5, 5, 5)
        self.assertEqual(self.shares(9), [3, 3, 3])
        self.counted(10, 4, 0)
        self.assertEqual(self.shares(1), [-5, 1, 5])
        self.assertEqual(self.shares(16), [0, 6, 10])

    def test_what_cannot_be_divided_is_for_whoever_comes_first(self) -> None:
        self.counted(0, 0, 0)
        self.assertEqual(self.shares(1), [1, 1, 1])
        self.counted(1, 0, 0)
        self.assertEqual(self.shares(1), [0, 1, 1])

    def test_who_is_absent_is_not_counted(self) -> None:
        self.counted(4, 0, 2)
        self.seats.leave(2)
        self.assertEqual(self.shares(2), [0, 0, 2])
        self.assertEqual([self.seats.part(number, 5) for number in (1, 2, 3)], [3, 0, 3])

    def test_nobody_serves(self) -> None:
        """Whoever is there takes them all, to tell them so."""
        self.assertEqual(self.shares(7), [7, 7, 7])
        self.assertEqual(self.seats.part(1, 7), 7)

    def test_it_is_one_table_for_all(self) -> None:
        """Another process has it by its descriptor."""
        other = Seats(os.fdopen(os.dup(self.seats.fileno()), "r+b"))
        self.counted(4, 0, 2)
        other.leave(3)
        self.assertEqual(self.shares(2), [-1, 3, 0])


class Guests(Factory):
    """Those who are connected to one worker."""

    noisy = False

    def __init__(self) -> None:
        self.present: list[Protocol] = []

    def buildProtocol(self, addr: object) -> Protocol:
        self.present.append(guest := Protocol())
        return guest

    def __len__(self) -> int:
        return len(self.present)


class SharedPortTests(TestCase):
    """Two workers, of which both serve, on one socket."""

    timeout = 20

    async def setUp(self) -> None:
        self.listen(socket.socket())

    def listen(self, listening: socket.socket, name: object = ("127.0.0.1", 0)) -> None:
        listening.bind(name)
        listening.listen(200)
        self.addCleanup(listening.close)
        self.listening = listening
        self.clients: list[socket.socket] = []
        self.seats = Seats.for_workers(2)
        self.workers = [Guests(), Guests()]
        self.places = [Seat(self.seats, number) for number in (1, 2)]
        self.ports = []
        for guests, seat in zip(self.workers, self.places, strict=True):
            endpoint = SharedEndpoint(reactor, os.dup(listening.fileno()), listening.family, seat)
            port = self.successResultOf(endpoint.listen(guests))
            self.ports.append(port)
            self.addCleanup(port.stopListening)
            self.addCleanup(
                lambda guests=guests: [
                    guest.transport.abortConnection() for guest in guests.present
                ]
            )
            seat.serve(guests.__len__)

    def come(self, count: int) -> None:
        """So many connect at once, before any worker has a look."""
        for _ in range(count):
            client = socket.socket(self.listening.family)
            self.addCleanup(client.close)
            client.connect(self.listening.getsockname())
            self.clients.append(client)

    async def all_in(self) -> list[int]:
        """Wait until everyone was taken in.  @return: how many are at each worker."""
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
        self.places[1].leave()
        self.come(6)
        self.assertEqual(await self.all_in(), [6, 0])
        self.places[1].serve(self.workers[1].__len__)
        for count in range(1, 7):
            self.come(1)
            self.assertEqual(await self.all_in(), [6, count])

    async def test_one_that_is_stuck_keeps_nobody_waiting(self) -> None:
        """It has nobody, and does not come for its share."""
        reactor.removeReader(self.ports[1])
        self.come(30)
        self.assertEqual(await self.all_in(), [30, 0])

    async def test_one_that_does_not_serve_yet_leaves_them_to_the_other(self) -> None:
        self.places[0].leave()
        self.come(3)
        self.assertEqual(await self.all_in(), [0, 3])
        self.places[1].leave()
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
        globalLogPublisher.addObserver(warned.append)
        self.addCleanup(globalLogPublisher.removeObserver, warned.append)
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
            lambda: any(len(guests) for guests in self.workers), "the one who stayed is taken in"
        )

    async def test_a_protocol_that_fails_does_no_harm(self) -> None:
        self.places[1].leave()
        build, self.workers[0].buildProtocol = self.workers[0].buildProtocol, lambda addr: 1 // 0
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
        self.assertLessEqual(abs(first - second), UNTOLD)

    async def test_those_who_come_one_by_one_are_shared(self) -> None:
        for _ in range(100):
            self.come(1)
            first, second = await self.all_in()
            self.assertLessEqual(abs(first - second), UNTOLD)

    async def test_who_has_fewer_catches_up(self) -> None:
        self.places[1].leave()
        self.come(UNTOLD + 6)
        self.assertEqual(await self.all_in(), [UNTOLD + 6, 0])
        self.places[1].serve(self.workers[1].__len__)
        self.come(1)
        self.assertEqual(await self.all_in(), [UNTOLD + 6, 1])

    async def test_its_file_stays(self) -> None:
        for port in self.ports:
            port.stopListening()
        self.assertTrue(os.path.exists(self.path))


if sys.platform != "linux":
    SharedPortTests.skip = "only Linux tells how many wait"  # type: ignore[attr-defined]
