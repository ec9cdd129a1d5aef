"""A connection between real sockets, where the kernel decides what arrives."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from asyncplumber.testing import MemoryServer, parse_responses
from harness.http_text import error_code, post


class KernelTests(TestCase):
    """What only the kernel can show."""

    def listen(self, server: MemoryServer) -> int:
        """Listen for this server; return the number of the port."""
        factory: Any = server.listener
        port: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    async def test_a_client_that_shuts_down_its_side_reads_its_receipt(self) -> None:
        """As ``nc -N`` and some HTTP clients do."""
        server = MemoryServer()
        settling = LoopingCall(server.settle)  # the store answers some milliseconds later
        settling.start(0.02, now=False)
        self.addCleanup(settling.stop)
        port = self.listen(server)

        def send() -> bytes:
            with socket.create_connection(("127.0.0.1", port), 5) as client:
                client.sendall(post(b"1"))
                client.shutdown(socket.SHUT_WR)
                heard = b""
                while data := client.recv(65536):
                    heard += data
                return heard

        self.assertEqual(parse_responses(await deferToThread(send))[0].status, 202)

    async def test_a_client_reads_its_413_while_it_is_still_sending(self) -> None:
        """Had we closed with its bytes unread, the kernel would have destroyed the answer."""
        server = MemoryServer(body_limit=1000)
        port = self.listen(server)

        def send() -> bytes:
            with socket.create_connection(("127.0.0.1", port), 5) as client:
                client.sendall(
                    b"POST /hooks/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000000\r\n\r\n"
                )
                for _ in range(50):
                    client.sendall(b"x" * 100_000)
                heard = b""
                while data := client.recv(65536):
                    heard += data
                return heard

        self.assertEqual(
            error_code(parse_responses(await deferToThread(send))[0]), (413, "too-large")
        )
        while server.listener.connections:
            # The client has closed, and the reactor is about to notice.
            await deferLater(reactor, 0.01, lambda: None)  # type: ignore[arg-type]
