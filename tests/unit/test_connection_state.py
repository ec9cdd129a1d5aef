"""The states of an HTTP connection: what leads to each, and that nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.errors import IllegalTransition
from asyncplumber.http.connection import LINGER, Connection
from asyncplumber.http.connection_state import (
    ANSWERING,
    BLOCKED,
    CLOSING,
    DETACHED,
    LINGERING,
    LOST,
    READING,
    TRANSITIONS,
    State,
)
from asyncplumber.http.responses import Response
from asyncplumber.testing import MemoryClient, MemoryServer, parse_responses
from harness.http_text import EVENT_STREAM, GET, POLL, post
from tests.unit import examples


class TableTests(SynchronousTestCase):
    """The table by itself."""

    def test_each_state_has_its_row(self) -> None:
        """And the last ones have no way out."""
        self.assertEqual(set(TRANSITIONS), set(State))
        self.assertEqual([state for state in State if not TRANSITIONS[state]], [DETACHED, LOST])

    def test_no_request_is_answered_after_a_refusal(self) -> None:
        """From `LINGERING` on a connection only goes on to its end."""
        for state in State:
            if state >= LINGERING:
                self.assertTrue(all(after > state for after in TRANSITIONS[state]), state)


class WayTests(SynchronousTestCase):
    """From one state to the next."""

    def setUp(self) -> None:
        self.server = MemoryServer(request_timeout=10.0)
        self.client = self.server.connect()
        self.connection: Connection = self.client.protocol

    def check(self, state: State) -> None:
        """The connection is in this state."""
        self.assertIs(self.connection.state, state)

    def test_a_request_that_is_answered(self) -> None:
        """It is read, answered, and the next one is read."""
        self.check(READING)
        self.client.send(POLL)
        self.check(ANSWERING)
        self.server.post("a", b"1")
        self.check(READING)

    def test_a_response_that_is_not_taken(self) -> None:
        """Nothing more is read until it is."""
        self.client.reading = False
        self.client.send(GET)
        self.check(BLOCKED)
        self.client.send(GET)
        self.check(BLOCKED)
        self.client.resume_reading()
        self.check(READING)
        self.assertEqual(len(parse_responses(self.client.received())), 2)

    def test_a_refusal(self) -> None:
        """The client may send on for a while; then the connection is cut off."""
        self.client.loseWriteConnection = lambda: None  # type: ignore[attr-defined]
        self.client.send(b"nonsense\r\n\r\n")
        self.check(LINGERING)
        self.client.send(b"more nonsense")
        self.check(LINGERING)
        self.server.advance(LINGER + 2)
        self.check(LOST)

    def test_a_refused_client_that_closes(self) -> None:
        """Both directions have ended: nothing is waited for."""
        self.client.loseWriteConnection = lambda: None  # type: ignore[attr-defined]
        self.client.send(b"nonsense\r\n\r\n")
        self.connection.readConnectionLost()
        self.check(CLOSING)
        self.server.settle()
        self.check(LOST)

    def test_the_last_response(self) -> None:
        """The transport closes when the client has it."""
        self.client.reading = False
        self.client.send(GET[:-2] + b"Connection: close\r\n\r\n")
        self.check(CLOSING)
        self.client.resume_reading()
        self.check(LOST)

    def test_a_stream(self) -> None:
        """The connection has nothing to do with it any more."""
        self.client.send(EVENT_STREAM)
        self.check(DETACHED)
        self.assertNotIn(self.connection, self.server.listener.connections)
        self.client.disconnect()
        self.check(DETACHED)

    def test_a_lost_connection(self) -> None:
        """In the midst of a request and of a response."""
        for data in (b"", b"GET", POLL):
            client = self.server.connect()
            client.send(data)
            client.disconnect()
            self.assertIs(client.protocol.state, LOST)

    def test_an_illegal_transition_raises(self) -> None:
        """Without a request there is no stream, and a connection is lost once."""
        self.assertRaises(IllegalTransition, self.connection.detach, Protocol())
        self.client.disconnect()
        self.assertRaises(IllegalTransition, self.connection.connectionLost, None)

    def test_a_second_response_raises(self) -> None:
        """A request has one."""
        self.assertRaises(RuntimeError, self.connection.respond, Response(200, b"text/plain", b""))

    def test_a_response_to_a_client_that_has_gone_is_dropped(self) -> None:
        """However late it comes."""
        self.client.send(POLL)
        self.client.disconnect()
        self.connection.respond(Response(200, b"text/plain", b""))
        self.assertEqual(self.client.received(), b"")


REQUESTS = [
    GET,
    POLL,
    EVENT_STREAM,
    post(b"1"),
    post(b"22", b"/hooks/a", b"Expect: 100-continue")[:-2],
    GET[:-2] + b"Connection: close\r\n\r\n",
    GET[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    b"nonsense\r\n\r\n",
    b"GET /healthz HT",
    b"22",
]

Step = Callable[[MemoryServer, MemoryClient], Any]


def say(data: bytes) -> Step:
    """Return the step in which the client sends these bytes."""
    return lambda server, client: client.send(data)


def stop_reading(server: MemoryServer, client: MemoryClient) -> None:
    """The client takes no more."""
    client.reading = False


def half_close(server: MemoryServer, client: MemoryClient) -> None:
    """The client ends its direction."""
    if client.ended is None and not client.protocol.__class__.__name__.endswith("Stream"):
        client.protocol.readConnectionLost()
        server.settle()


STEPS: list[Step] = [
    *map(say, REQUESTS),
    stop_reading,
    half_close,
    lambda server, client: client.resume_reading(),
    lambda server, client: server.post("a", b"1"),
    lambda server, client: server.advance(1),
    lambda server, client: server.advance(40),
    lambda server, client: server.listener.refuse(),
    lambda server, client: client.disconnect(),
]


class GeneratedTests(SynchronousTestCase):
    """Whatever a client does, and in whatever order."""

    @settings(
        max_examples=examples(150),
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(some.lists(some.sampled_from(STEPS), max_size=12))
    def test_no_transition_is_illegal(self, steps: list[Step]) -> None:
        """None raises, and the connection ends in one of the two last states."""
        server = MemoryServer(request_timeout=10.0, idle_timeout=10.0)
        client = server.connect()
        connection = client.protocol
        for step in steps:
            step(server, client)
        client.resume_reading()
        client.disconnect()
        server.settle()
        self.assertIn(connection.state, (DETACHED, LOST))
        self.assertEqual(server.listener.connections, set())
        self.assertEqual(server.plumber.hub.subscribers, 0)
        self.assertEqual(self.flushLoggedErrors(), [])
