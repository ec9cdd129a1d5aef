"""Streams are read in doses, on real sockets."""

from __future__ import annotations

import select
import socket
from itertools import pairwise
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from asyncplumber.testing import MemoryServer
from asyncplumber.transports.dosed_reads import READS_PER_TURN
from harness.frames import PING, PONG, client_frame, handshake_request, server_frames
from harness.reactor import reactor

NO_EPOLL = None if hasattr(select, "epoll") else "this system has no epoll"


class VanishingTests(TestCase):
    """Between real sockets."""

    skip = NO_EPOLL

    async def test_many_clients_that_vanish_at_once_are_closed_in_doses(self) -> None:
        """The reactor has a turn after each dose, and a client that stays is answered."""
        server = MemoryServer()
        port: Any = reactor.listenTCP(0, server.listener, 5 * READS_PER_TURN, "127.0.0.1")
        self.addCleanup(port.stopListening)
        clients = []
        for _ in range(4 * READS_PER_TURN + 1):
            client = socket.create_connection(("127.0.0.1", port.getHost().port))
            self.addCleanup(client.close)
            client.sendall(handshake_request())
            clients.append(client)
        *leaving, staying = clients
        while len(server.clients) < len(clients):
            await self.turn(server)
        for client in leaving:
            client.close()
        staying.sendall(client_frame(b"here", PING))
        counts = [len(server.clients)]
        while counts[-1] > 1:
            await self.turn(server)
            counts.append(len(server.clients))
        steps = [before - after for before, after in pairwise(counts)]
        self.assertLessEqual(max(steps), READS_PER_TURN)
        staying.setblocking(False)
        heard = b""
        while b"here" not in heard:
            await self.turn(server)
            try:
                heard += staying.recv(65536)
            except BlockingIOError:
                continue
        self.assertEqual(server_frames(heard.partition(b"\r\n\r\n")[2])[-1], (PONG, b"here"))
        staying.close()
        while len(server.clients):
            await self.turn(server)

    def turn(self, server: MemoryServer) -> Deferred[None]:
        """Let the reactor turn once."""
        server.settle()
        return deferLater(reactor, 0, lambda: None)
