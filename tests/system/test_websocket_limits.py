"""A WebSocket client that sends too much, on real sockets."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from asyncplumber.testing import MemoryServer
from harness.frames import (
    CLOSE,
    client_frame,
    handshake_request,
    server_frames,
)
from harness.reactor import reactor


class RealSocketTests(TestCase):
    """Between two real sockets."""

    async def test_a_client_that_floods_reads_why(self) -> None:
        """The close frame and the end arrive: no reset destroys them, with much unread."""
        server = MemoryServer()
        port: Any = reactor.listenTCP(0, server.listener, interface="127.0.0.1")
        self.addCleanup(port.stopListening)

        def flood() -> bytes:
            with socket.create_connection(("127.0.0.1", port.getHost().port), 10) as client:
                client.sendall(handshake_request())
                data = b""
                while b"plumber.open" not in data:
                    data += client.recv(65536)
                client.sendall(client_frame(b"") * 50_000)
                while piece := client.recv(65536):
                    data += piece
                client.sendall(client_frame(b"") * 50_000)
            return data.partition(b"\r\n\r\n")[2]

        (opcode, payload) = server_frames(await deferToThread(flood))[-1]
        self.assertEqual((opcode, int.from_bytes(payload[:2], "big")), (CLOSE, 1008))
        while len(server.clients):
            await deferLater(reactor, 0.001, lambda: None)
