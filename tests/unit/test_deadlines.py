"""No stream outlives its grant, and they do not all end at once."""

from __future__ import annotations

import json
from collections.abc import Callable

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.errors import GrantExpired, GrantRevoked, PlumberError
from asyncplumber.grant import ALL_ACCOUNTS, OPEN, Grant
from asyncplumber.testing import NOW, MemoryServer, parse_responses
from asyncplumber.transports.deadlines import TICK, Deadlines
from harness.authority import FakeAuthority
from harness.frames import CLOSE, TEXT, close_code, handshake_request, server_frames
from harness.memory_subscribers import dechunked, parse_event_stream
from harness.mounted import MountedServer


class FakeStream:
    """Remembers when it was ended."""

    def __init__(self, clock: Clock, grant: Grant) -> None:
        self.grant = grant
        self.expires: int | None = None
        self.ended: list[tuple[float, type]] = []
        self.react: Callable[[], object] = lambda: None
        self._clock = clock

    def end(self, error: PlumberError | None) -> None:
        self.ended.append((self._clock.seconds(), type(error)))
        self.react()


class DeadlinesTests(SynchronousTestCase):
    """Streams that remember when they were ended."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1000.1
        self.random = 0.0
        # The time of day, which is another time than the clock's.
        self.deadlines = Deadlines(
            self.clock, lambda: NOW + self.clock.seconds() - 1000.1, lambda: self.random
        )
        self.deadlines.start()

    def stream(self, seconds: float | None) -> FakeStream:
        """A stream whose grant lasts so many seconds."""
        until = None if seconds is None else NOW + self.clock.seconds() - 1000.1 + seconds
        stream = FakeStream(self.clock, Grant("s", ALL_ACCOUNTS, until=until))
        self.deadlines.add(stream)
        return stream

    def life(self, seconds: float, random: float) -> float:
        """How long a stream lives whose grant lasts so many seconds."""
        self.random = random
        begin = self.clock.seconds()
        stream = self.stream(seconds)
        while not stream.ended:
            self.clock.advance(TICK / 2)
        self.assertEqual([error for _, error in stream.ended], [GrantExpired])
        return stream.ended[0][0] - begin

    def test_a_stream_ends_in_the_last_fifth_and_never_late(self) -> None:
        """Whatever the random number is; a long grant at most five minutes early."""
        for seconds in (5.0, 20.0, 20.3, 1800.0):
            earliest = seconds - min(0.2 * seconds, 300.0)
            for random in (0.0, 0.25, 0.5, 0.999):
                life = self.life(seconds, random)
                self.assertTrue(earliest <= life <= seconds, f"{life} of {seconds}, {random}")

    def test_streams_of_one_deploy_do_not_end_together(self) -> None:
        """The random number decides."""
        self.assertLess(self.life(600.0, 0.9), self.life(600.0, 0.1) - 90)

    def test_a_grant_without_an_end_has_no_deadline(self) -> None:
        """Nothing is remembered for it."""
        stream = self.stream(None)
        self.assertIsNone(stream.expires)
        self.assertIsNone(self.deadlines.expires_in(OPEN))
        self.deadlines.discard(stream)
        self.clock.pump([1.0] * 100)
        self.assertEqual(stream.ended, [])

    def test_a_stream_that_has_left_is_forgotten(self) -> None:
        """The others with the same deadline are not."""
        gone, stays = self.stream(20), self.stream(20)
        self.deadlines.discard(gone)
        self.deadlines.discard(gone)
        self.clock.pump([TICK] * 81)
        self.assertEqual((len(gone.ended), len(stays.ended)), (0, 1))

    def test_a_grant_that_has_ended_ends_the_stream_at_the_next_tick(self) -> None:
        """For example after the clock was set."""
        stream = self.stream(-5)
        self.assertEqual(self.deadlines.expires_in(stream.grant), 0.0)
        self.clock.advance(TICK)
        self.assertEqual(len(stream.ended), 1)

    def test_a_long_pause_ends_all_that_were_due(self) -> None:
        """The process was suspended."""
        streams = [self.stream(seconds) for seconds in (10, 20, 30)]
        self.clock.advance(25)
        self.assertEqual([len(stream.ended) for stream in streams], [1, 1, 0])

    def test_a_stream_that_raises_does_not_keep_the_others(self) -> None:
        """Its error is logged."""
        streams = [self.stream(10) for _ in range(3)]
        for stream in streams[:2]:
            stream.react = lambda: 1 / 0
        self.clock.pump([TICK] * 41)
        self.assertEqual([len(stream.ended) for stream in streams], [1, 1, 1])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)


class ExpiryTests(SynchronousTestCase):
    """Real streams, on our own port."""

    make_server: type[MemoryServer] = MemoryServer
    LIFE = 20.0  # seconds of the token

    def setUp(self) -> None:
        grant = Grant("s", ALL_ACCOUNTS, ALL_ACCOUNTS, until=NOW + self.LIFE)
        self.server = self.make_server(
            plumber={"authority": FakeAuthority({"t": grant, "later": Grant("s", ALL_ACCOUNTS)})}
        )

    def post(self, data: int) -> None:
        """Post an event."""
        reply = self.server.post("a", str(data).encode(), ("Authorization", "Bearer t"))
        self.assertIn(reply.status, (201, 202))

    def test_a_websocket_ends_in_time(self) -> None:
        """It is told why, closed with 4401, and sent nothing that is posted later."""
        client = self.server.connect()
        client.send(handshake_request("/events/a", "Authorization: Bearer t"))
        opened = server_frames(client.received().partition(b"\r\n\r\n")[2])
        self.assertEqual(json.loads(opened[0][1])["data"], {"expires_in": 20})
        frames: list[tuple[int, bytes]] = []
        while not any(opcode == CLOSE for opcode, _ in frames):
            self.server.advance(TICK)
            self.post(1)
            frames = server_frames(client.received())
        life = self.server.clock.seconds() - NOW
        self.assertTrue(16.0 <= life <= 20.0, life)
        (_, bye), (opcode, payload) = frames
        self.assertEqual(
            (json.loads(bye)["type"], json.loads(bye)["data"]),
            ("plumber.bye", {"reason": "expired", "reconnect_after": 0}),
        )
        self.assertEqual((opcode, close_code(payload), payload[2:]), (CLOSE, 4401, b"expired"))
        self.assertEqual(self.server.plumber.hub.count("a"), 0)

    def test_an_event_stream_ends_in_time(self) -> None:
        """Its last event says why."""
        client = self.server.connect()
        client.send(
            b"GET /events/a HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
            b"Authorization: Bearer t\r\n\r\n"
        )
        stream, _ = dechunked(client.received().partition(b"\r\n\r\n")[2])
        self.assertEqual(
            json.loads(parse_event_stream(stream)[0]["data"])["data"], {"expires_in": 20}
        )
        while client.ended is None:
            self.server.advance(TICK)
        life = self.server.clock.seconds() - NOW
        self.assertTrue(16.0 <= life <= 20.5, life)
        stream, _ = dechunked(client.received())
        bye = parse_event_stream(stream)[-1]
        self.assertEqual(bye["event"], "plumber.bye")
        self.assertEqual(json.loads(bye["data"])["data"]["reason"], "expired")

    def test_a_long_poll_is_answered_in_time(self) -> None:
        """However long the client wants to wait."""
        client = self.server.connect()
        client.send(
            b"GET /events/a?wait=120 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer t\r\n\r\n"
        )
        while not (received := client.received()):
            self.server.advance(TICK)
        self.assertLessEqual(self.server.clock.seconds() - NOW, 20.0)
        (reply,) = parse_responses(received)
        self.assertEqual((reply.status, json.loads(reply.body)["events"]), (200, []))

    def test_a_grant_without_an_end_is_not_announced(self) -> None:
        """The stream goes on."""
        client = self.server.connect()
        client.send(handshake_request("/events/a", "Authorization: Bearer later"))
        opened = server_frames(client.received().partition(b"\r\n\r\n")[2])
        self.assertEqual(json.loads(opened[0][1])["data"], {})
        self.server.advance(40)
        self.assertNotIn(CLOSE, [opcode for opcode, _ in server_frames(client.received())])

    def test_streams_and_polls_can_be_ended_by_their_grants(self) -> None:
        """A revocation does so: no event is handed over any more."""
        socket = self.server.connect()
        socket.send(handshake_request("/events/a", "Authorization: Bearer t"))
        socket.received()
        poll = self.server.connect()
        poll.send(
            b"GET /events/a?wait=120 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer t\r\n\r\n"
        )
        other = self.server.connect()
        other.send(handshake_request("/events/b", "Authorization: Bearer t"))
        other.received()

        def matches(grant: Grant, account: str) -> bool:
            return (grant.subject, account) == ("s", "a")

        self.assertEqual(self.server.clients.end_where(matches, GrantRevoked()), 1)
        self.server.plumber.front.subscribers.end_polls(matches, GrantRevoked())
        self.server.settle()
        bye, (opcode, payload) = server_frames(socket.received())
        self.assertEqual(json.loads(bye[1])["data"]["reason"], "revoked")
        self.assertEqual((bye[0], opcode, close_code(payload)), (TEXT, CLOSE, 4401))
        (reply,) = parse_responses(poll.received())
        self.assertEqual(reply.status, 401)
        self.assertEqual(server_frames(other.received()), [])


class MountedExpiryTests(ExpiryTests):
    """The same in a site of another application."""

    make_server = MountedServer
