"""Why streams end, as metrics and log tell it."""

from __future__ import annotations

from twisted.internet.error import ConnectionLost
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.errors import GrantRevoked, TooManyRequests, Unavailable
from asyncplumber.testing import MemoryClient, MemoryServer
from asyncplumber.transports.closes import CODES
from harness.frames import CLOSE, client_frame, handshake_request

SSE = b"GET /events/a HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"


class ClosesTests(SynchronousTestCase):
    """Each stream counts once, under the code that it is closed with."""

    def setUp(self) -> None:
        self.server = MemoryServer(plumber={"unsent_limit": 1024})

    def clients(self) -> tuple[MemoryClient, MemoryClient]:
        """Return a WebSocket and an event stream."""
        socket, source = self.server.connect(), self.server.connect()
        socket.send(handshake_request("/events/a"))
        source.send(SSE)
        return socket, source

    def closed(self) -> dict[str, float]:
        figure = self.server.plumber.figures.collect()["streams_closed_total"]
        found = zip(figure.series, figure.numbers, strict=True)
        return {code: number for (code,), number in found if number}

    def test_clients_that_leave(self) -> None:
        """An event stream has no other way to close; a WebSocket should have said so."""
        socket, source = self.clients()
        source.disconnect()
        socket.disconnect()
        self.assertEqual(self.closed(), {"1000": 1, "1006": 1})

    def test_a_closing_handshake(self) -> None:
        """It is the client's close, and counts once."""
        socket, _ = self.clients()
        socket.send(client_frame((1000).to_bytes(2, "big"), CLOSE))
        socket.disconnect()
        self.assertEqual(self.closed(), {"1000": 1})

    def test_connections_that_are_lost(self) -> None:
        """Both count as abnormal."""
        for client in self.clients():
            client.protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.closed(), {"1006": 2})

    def test_each_reason(self) -> None:
        """An event stream counts under the code that a WebSocket would have had."""
        for error, code in (
            (GrantRevoked(), "4401"),
            (TooManyRequests(), "4429"),
            (Unavailable(), "1013"),
        ):
            before = self.closed().get(code, 0)
            clients = self.clients()
            self.server.clients.end_where(lambda grant, account: True, error)
            for client in clients:
                client.disconnect()
            self.assertEqual(self.closed().get(code), before + 2)

    def test_the_server_stops(self) -> None:
        """All are told to go away."""
        self.clients()
        self.server.stop()
        self.server.advance(1)
        self.assertEqual(self.closed(), {"1001": 2})

    def test_slow_readers(self) -> None:
        """They are counted, and logged with what an operator needs: account and address."""
        socket, source = self.clients()
        socket.reading = source.reading = False
        with capturedLogs() as events:
            for _ in range(3):
                self.server.post("a", b'"' + b"x" * 1000 + b'"')
        self.assertEqual(self.closed(), {"1013": 2})
        [line] = [formatEvent(event) for event in events if "slow" in formatEvent(event)]
        self.assertEqual(
            line,
            "a slow reader of 'a' is closed: more than 1024 bytes wait for it; "
            "it is 127.0.0.1:50000",
        )

    def test_an_account_cannot_disturb_the_log(self) -> None:
        """Controls that turn the direction of text are shown as such."""
        closes = self.server.clients.closes
        with capturedLogs() as events:
            closes.slow_reader("a\u202eb", 1, self.server.connect())
        self.assertIn(r"'a\u202eb'", formatEvent(events[0]))

    def test_all_codes_are_on_the_list(self) -> None:
        """No stream counts as another one."""
        series = self.server.plumber.figures.collect()["streams_closed_total"].series
        self.assertEqual([code for (code,) in series], [*map(str, CODES), "other"])
