"""Each limit at its edge: one passes, the next one does not; on both ways in."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.error import ConnectionAborted
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.limits.rates import Rate
from asyncplumber.auth.limits.settings import NAMES, NO_LIMITS, LimitSettings, from_toml
from asyncplumber.errors import InvalidToken
from asyncplumber.grant import ALL_ACCOUNTS, Accounts, Grant
from asyncplumber.http.client_address import parse_trusted_proxies
from asyncplumber.http.clients import ClientPolicy
from asyncplumber.testing import ClientResponse, MemoryClient, MemoryServer, parse_responses
from harness.authority import FakeAuthority
from harness.frames import close_code, handshake_request, server_frames
from harness.http_text import GET, error_code
from harness.mounted import MountedServer
from tests.unit.test_architecture import ROOT

ACCOUNTS = Accounts(prefixes=("a",))
STRANGER, OTHER = "203.0.113.7", "203.0.113.8"
GRANTS: dict[str, Any] = {
    "bob": Grant("bob", ACCOUNTS, ACCOUNTS, mechanism="jwt"),
    "eve": Grant("eve", ACCOUNTS, ACCOUNTS, mechanism="jwt"),
    "worker": Grant("key:1", publish=ALL_ACCOUNTS, mechanism="key"),
    "nobody": Grant("anonymous", ACCOUNTS, ACCOUNTS, mechanism="anonymous"),
    "old": InvalidToken("expired"),
}
SSE = ("Accept", "text/event-stream")


class LimitCase(SynchronousTestCase):
    """A server with an authority; ``make_server`` is one of two ways in."""

    make_server: type[MemoryServer] = MemoryServer

    def serve(self, trusted: str = "", *, insecure: bool = True, **limits: Any) -> MemoryServer:
        """Start a server with these limits and no others; clients are strangers from now on."""
        self.authority = FakeAuthority(GRANTS)
        policy = ClientPolicy(
            NO_LIMITS._replace(**limits),
            parse_trusted_proxies(trusted or "loopback"),
            insecure,
        )
        self.server = self.make_server(
            plumber={"authority": self.authority, "client_policy": policy, "linger": 5.0}
        )
        self.come_from(STRANGER)
        return self.server

    def come_from(self, address: str) -> None:
        """Let clients come from this address."""
        self.server.client_address = IPv4Address("TCP", address, 50000)

    def ask(
        self, method: str, path: str, who: str, *headers: tuple[str, str], body: bytes = b""
    ) -> ClientResponse:
        """Send a request with this token."""
        credential = ("Authorization", f"Bearer {who}")
        return self.server.request(method, path, [credential, *headers], body)

    def post(self, who: str, body: bytes = b"1", account: str = "a") -> int:
        """Post, and return the status."""
        return self.ask("POST", f"/hooks/{account}", who, body=body).status

    def poll(self, who: str, account: str = "a", after: str = "") -> ClientResponse:
        """Ask for the events that are there."""
        return self.ask("GET", f"/events/{account}?wait=0&after={after}", who)

    def stream(self, who: str, account: str = "a", *headers: str) -> MemoryClient:
        """Open an event stream."""
        client = self.server.connect()
        lines = [
            f"GET /events/{account} HTTP/1.1",
            "Host: localhost",
            "Accept: text/event-stream",
            f"Authorization: Bearer {who}",
            *headers,
        ]
        client.send("\r\n".join([*lines, "", ""]).encode())
        return client

    def status(self, client: MemoryClient) -> int:
        """The status that this client was answered with; 0 for none."""
        received = client.received()
        return int(received.split()[1]) if received else 0

    def assert_limited(self, reply: ClientResponse, wait: int) -> None:
        """It is a 429 that says when to come back."""
        self.assertEqual(error_code(reply), (429, "too-many"))
        self.assertEqual(reply.headers[b"retry-after"], b"%d" % wait)

    def figure(self, reason: str, name: str = "refused_total") -> float:
        """How often this limit has refused something."""
        return self.server.plumber.front.metrics.combined()[name].of(reason)


class UseTests(LimitCase):
    """What clients with a good credential do too much of."""

    def test_posts(self) -> None:
        """Of a subject, wherever it comes from; others are not concerned."""
        self.serve(posts_per_subject=Rate(3, 1))
        self.assertEqual([self.post("bob") for _ in range(3)], [202] * 3)
        self.assert_limited(self.ask("POST", "/hooks/a", "bob", body=b"1"), 1)
        self.come_from(OTHER)
        self.assertEqual(self.post("bob"), 429)
        self.assertEqual(self.post("eve"), 202)
        self.server.advance(1)
        self.assertEqual([self.post("bob"), self.post("bob")], [202, 429])
        self.assertEqual(self.server.plumber.intake.accepted, 5)
        self.assertEqual(self.figure("posts_per_subject"), 3)

    def test_posts_by_the_path_of_skyhooks(self) -> None:
        """The body names the account, and the same limit holds."""
        self.serve(posts_per_subject=Rate(1, 1))
        body = b'{"keys":{"account_id":"a"},"data":1}'
        found = [self.ask("POST", "/hooks", "bob", body=body).status for _ in range(2)]
        self.assertEqual(found, [202, 429])

    def test_posted_bytes(self) -> None:
        """What is larger than what is left passes once, and the next one waits for it."""
        self.serve(posted_bytes_per_subject=Rate(100, 10))
        self.assertEqual([self.post("bob", b"1" * 50) for _ in range(2)], [202] * 2)
        self.assertEqual(self.post("bob", b"1" * 20), 202)
        self.assert_limited(self.ask("POST", "/hooks/a", "bob", body=b"1"), 2)
        self.server.advance(2.5)
        self.assertEqual(self.post("bob"), 202)
        self.assertEqual(self.figure("posted_bytes_per_subject"), 1)

    def test_chunked_bodies_count_as_well(self) -> None:
        """Their length is known when they are there."""
        self.serve(posted_bytes_per_subject=Rate(10, 1))
        request = (
            b"POST /hooks/a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer bob\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n14\r\n%b\r\n0\r\n\r\n" % (b"1" * 20)
        )
        found = [self.server.exchange(request)[0].status for _ in range(2)]
        self.assertEqual(found, [202, 429])

    def test_those_who_may_post_everywhere(self) -> None:
        """They are the operator's own programs, and have limits of their own, if any."""
        self.serve(posts_per_subject=Rate(1, 1), posted_bytes_per_subject=Rate(1, 1))
        self.assertEqual({self.post("worker") for _ in range(10)}, {202})
        self.serve(posts_per_publisher=Rate(2, 1))
        self.assertEqual([self.post("worker") for _ in range(3)], [202, 202, 429])
        self.assertEqual(self.figure("posts_per_publisher"), 1)
        self.serve(posted_bytes_per_publisher=Rate(1, 1))
        self.assertEqual([self.post("worker", b"11"), self.post("worker")], [202, 429])
        self.assertEqual(self.figure("posted_bytes_per_publisher"), 1)

    def test_streams_of_a_subject(self) -> None:
        """Streams and waiting long-polls together, until they are closed."""
        self.serve(streams_per_subject=3)
        streams = [self.stream("bob", f"a{number}") for number in range(2)]
        poll = self.server.connect()
        poll.send(b"GET /events/a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer bob\r\n\r\n")
        self.assertEqual([self.status(each) for each in streams], [200, 200])
        self.assert_limited(self.poll("bob"), 5)
        self.assertEqual(self.status(self.stream("bob")), 429)
        self.assertEqual(self.status(self.stream("eve")), 200)
        poll.disconnect()
        self.assertEqual(self.poll("bob").status, 200)
        self.assertEqual(self.poll("bob").status, 200)
        streams.append(self.stream("bob"))
        self.assertEqual(self.poll("bob").status, 429)
        for each in streams:
            each.disconnect()
        found = [self.stream("bob") for _ in range(4)]
        self.assertEqual([self.status(each) for each in found], [200, 200, 200, 429])
        self.assertEqual(self.figure("streams_per_subject"), 4)

    def test_a_page_learns_why(self) -> None:
        """Its WebSocket is opened, and closed with 4429."""
        self.serve(streams_per_subject=1)
        self.stream("bob")
        lines = ("Authorization: Bearer bob", "Origin: http://localhost")
        for more, status in ((lines[:1], 429), (lines, 101)):
            client = self.server.connect()
            client.send(handshake_request("/events/a", *more))
            head, _, rest = client.received().partition(b"\r\n\r\n")
            self.assertEqual(int(head.split()[1]), status)
            if status == 101:
                self.assertEqual(close_code(server_frames(rest)[-1][1]), 4429)

    def test_handshakes_of_an_address(self) -> None:
        """Streams that open; what is refused for another reason does not count."""
        self.serve(handshakes_per_address=Rate(2, 1))
        for _ in range(5):
            self.assertEqual(self.ask("GET", "/events/b", "bob", SSE).status, 403)
        self.assertEqual(self.status(self.stream("bob")), 200)
        self.assertEqual(self.status(self.stream("eve")), 200)
        self.assert_limited(self.ask("GET", "/events/a", "eve", SSE), 1)
        self.assertEqual(self.poll("bob").status, 200)
        self.come_from(OTHER)
        self.assertEqual(self.status(self.stream("bob")), 200)
        self.assertEqual(self.figure("handshakes_per_address"), 1)

    def test_polls_of_an_address(self) -> None:
        """They are no streams, and have a limit of their own."""
        self.serve(polls_per_address=Rate(2, 1))
        found = [self.poll(who).status for who in ("bob", "eve", "bob")]
        self.assertEqual(found, [200, 200, 429])
        self.assertEqual(self.status(self.stream("bob")), 200)
        self.assertEqual(self.figure("polls_per_address"), 1)

    def test_replays(self) -> None:
        """None is cut short; the next one of the subject waits, and live streams do not."""
        self.serve(replayed_bytes_per_subject=Rate(1000, 100))
        self.post("eve", b'"%b"' % (b"x" * 600))
        events = json.loads(self.poll("bob", after="earliest").body)["events"]
        self.assertEqual(len(events), 1)
        head = events[0]["cursor"]
        self.assertEqual(self.poll("bob", after="earliest").status, 200)
        self.assert_limited(self.poll("bob", after="earliest"), 3)
        self.assertEqual(self.poll("bob").status, 200)
        self.assertEqual(self.poll("eve", after="earliest").status, 200)
        self.server.advance(3)
        # At the head there is nothing to replay, so it costs nothing.
        found = [self.poll("bob", after=head).status for _ in range(5)]
        self.assertEqual(found, [200] * 5)
        self.assertEqual(self.figure("replayed_bytes_per_subject"), 1)

    def test_replays_of_streams(self) -> None:
        """They count like those of long-polls."""
        self.serve(replayed_bytes_per_subject=Rate(1000, 100))
        self.post("eve", b'"%b"' % (b"x" * 1200))
        self.assertEqual(self.status(self.stream("bob", "a?after=earliest")), 200)
        self.assertEqual(self.status(self.stream("bob", "a?after=earliest")), 429)

    def test_new_accounts_of_a_subject(self) -> None:
        """Accounts that nobody else is subscribed to; an open one costs nothing."""
        self.serve(new_accounts_per_subject=Rate(2, 1))
        self.stream("eve", "a0")
        found = [self.poll("bob", f"a{number}").status for number in (0, 1, 2, 1, 2, 3)]
        self.assertEqual(found, [200] * 5 + [429])
        self.assertEqual(len(self.server.plumber.hub.accounts), 3)
        self.server.advance(1)
        self.assertEqual([self.poll("bob", f"a{n}").status for n in (3, 4)], [200, 429])
        self.assertEqual(self.figure("new_accounts_per_subject"), 2)

    def test_open_accounts_of_a_subject(self) -> None:
        """They are open until they are closed, some seconds after the last subscriber left."""
        self.serve(open_accounts_per_subject=2)
        self.assertEqual([self.poll("bob", f"a{n}").status for n in range(3)], [200, 200, 429])
        self.assertEqual(self.poll("eve", "a3").status, 200)
        self.server.advance(6)
        self.assertEqual(self.server.plumber.hub.accounts, [])
        self.assertEqual([self.poll("bob", f"a{n}").status for n in range(3)], [200, 200, 429])
        self.assertEqual(self.figure("open_accounts_per_subject"), 2)

    def test_new_accounts_of_an_address(self) -> None:
        """For those who are nobody in particular."""
        self.serve(
            new_accounts_per_address=Rate(1, 1),
            posts_per_subject=Rate(1, 1),
            streams_per_subject=1,
        )
        self.assertEqual([self.poll("nobody", f"a{n}").status for n in range(2)], [200, 429])
        self.assertEqual([self.post("nobody"), self.post("nobody")], [202, 429])
        self.assertEqual(self.poll("bob", "a2").status, 200)
        self.come_from(OTHER)
        self.assertEqual(self.poll("nobody", "a3").status, 200)
        self.assertEqual(self.post("nobody"), 202)
        # Their streams are bounded by the connections of their address.
        self.assertEqual([self.status(self.stream("nobody", "a3")) for _ in range(3)], [200] * 3)
        self.assertEqual(self.figure("new_accounts_per_address"), 1)


class MountedUseTests(UseTests):
    """The same in a site."""

    make_server = MountedServer


class FailureTests(LimitCase):
    """Bad credentials."""

    def test_bad_credentials(self) -> None:
        """Beyond the limit nothing is verified any more, be it good or bad."""
        self.serve(failures_per_address=Rate(3, 1 / 3))
        self.assertEqual([self.post("guess") for _ in range(3)], [401] * 3)
        asked = len(self.authority.asked)
        self.assert_limited(self.ask("POST", "/hooks/a", "guess", body=b"1"), 3)
        self.assertEqual([self.post("bob"), self.poll("bob").status], [429, 429])
        self.assertEqual(len(self.authority.asked), asked)
        self.assertEqual(self.server.request("GET", "/healthz").status, 200)
        self.come_from(OTHER)
        self.assertEqual(self.post("bob"), 202)
        self.come_from(STRANGER)
        self.server.advance(3)
        self.assertEqual([self.post("bob"), self.post("guess"), self.post("bob")], [202, 401, 429])
        self.assertEqual(self.figure("failures_per_address"), 4)

    def test_what_is_no_guess(self) -> None:
        """No credential, one that has expired, and one that allows less."""
        self.serve(failures_per_address=Rate(1, 1))
        for _ in range(5):
            self.assertEqual(self.server.request("GET", "/events/a?wait=0").status, 401)
            self.assertEqual(self.post("old"), 401)
            self.assertEqual(self.post("bob", account="b"), 403)
        self.assertEqual(self.post("bob"), 202)

    def test_those_that_are_known_later(self) -> None:
        """An application that is asked counts as well."""
        self.serve(failures_per_address=Rate(2, 1))
        self.authority.later = True
        clients = [self.stream("guess") for _ in range(2)]
        self.authority.answer()
        self.assertEqual([self.status(each) for each in clients], [401, 401])
        self.assertEqual(self.status(self.stream("guess")), 429)
        self.assertEqual(self.authority.waiting, [])

    def test_a_large_body_is_not_read(self) -> None:
        """The answer comes at the head."""
        self.serve(failures_per_address=Rate(1, 1), posts_per_subject=Rate(1, 1))
        self.assertEqual(self.post("bob"), 202)
        if self.make_server is MountedServer:
            return  # a site reads bodies by itself
        client = self.server.connect()
        client.send(
            b"POST /hooks/a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer bob\r\n"
            b"Content-Length: 900000\r\nExpect: 100-continue\r\n\r\n"
        )
        (reply,) = parse_responses(client.received())
        self.assert_limited(reply, 1)


class MountedFailureTests(FailureTests):
    """The same in a site."""

    make_server = MountedServer


class PlaceTests(LimitCase):
    """Whose limit a client meets."""

    def found(self, *forwarded: str) -> list[int]:
        """The statuses of three polls, the last one too many for an address."""
        headers = [("X-Forwarded-For", each) for each in forwarded]
        return [self.ask("GET", "/events/a?wait=0", "bob", *headers).status for _ in range(3)]

    def test_clients_on_this_machine(self) -> None:
        """They are proxies or tools, unless that is not wanted."""
        self.serve(polls_per_address=Rate(2, 1))
        self.come_from("127.0.0.1")
        self.assertEqual(self.found(), [200] * 3)
        self.serve("none", polls_per_address=Rate(2, 1))
        self.come_from("127.0.0.1")
        self.assertEqual(self.found(), [200, 200, 429])

    def test_behind_a_proxy(self) -> None:
        """Each client has its own, and cannot get another one by a lie."""
        self.serve("10.0.0.0/8", polls_per_address=Rate(2, 1))
        self.come_from("10.0.0.1")
        self.assertEqual(self.found(STRANGER), [200, 200, 429])
        self.assertEqual(self.found(f"198.51.100.1, {STRANGER}"), [429] * 3)
        self.assertEqual(self.found(OTHER), [200, 200, 429])
        self.assertEqual(self.found(), [200] * 3)

    def test_lies_of_somebody_else(self) -> None:
        """The header counts for nothing, and all lies meet one limit."""
        self.serve("10.0.0.0/8", polls_per_address=Rate(2, 1))
        found = [self.found(f"198.51.100.{number}") for number in range(3)]
        self.assertEqual(found, [[200, 200, 429], [429] * 3, [429] * 3])
        self.come_from("10.0.0.1")
        self.assertEqual(self.found("198.51.100.1"), [200, 200, 429])

    def test_streams_behind_a_proxy(self) -> None:
        """Its connections have no limit, and the streams of each client do."""
        self.serve("10.0.0.0/8", connections_per_address=2)
        self.come_from("10.0.0.1")
        told = f"X-Forwarded-For: {STRANGER}"
        streams = [self.stream("bob", "a", told) for _ in range(3)]
        self.assertEqual([self.status(each) for each in streams], [200, 200, 429])
        others = [self.stream("bob", "a", f"X-Forwarded-For: {OTHER}") for _ in range(2)]
        self.assertEqual([self.status(each) for each in others], [200, 200])
        streams[0].disconnect()
        self.assertEqual(self.status(self.stream("bob", "a", told)), 200)
        self.assertEqual(self.figure("connections_per_address"), 1)

    def test_the_authority_gets_the_address(self) -> None:
        """The one of the client, for the application that is asked."""
        self.serve("10.0.0.0/8")
        self.come_from("10.0.0.1")
        self.found(STRANGER)
        self.assertEqual(self.authority.asked[-1].address, STRANGER)

    def test_credentials_over_plain_http(self) -> None:
        """From here and through a trusted proxy only, unless the proxy says that it was plain."""
        self.serve("loopback, 10.0.0.0/8, unix", insecure=False)
        cases: list[tuple[Any, tuple[tuple[str, str], ...], int]] = [
            (STRANGER, (), 403),
            (STRANGER, (("X-Forwarded-Proto", "https"),), 403),
            ("127.0.0.1", (), 200),
            ("10.0.0.1", (("X-Forwarded-For", STRANGER),), 200),
            ("10.0.0.1", (("X-Forwarded-For", STRANGER), ("X-Forwarded-Proto", "https")), 200),
            ("10.0.0.1", (("X-Forwarded-For", STRANGER), ("X-Forwarded-Proto", "http")), 403),
            ("10.0.0.1", (("X-Forwarded-Proto", "http"),), 200),
        ]
        for address, headers, status in cases:
            self.come_from(address)
            reply = self.ask("GET", "/events/a?wait=0", "bob", *headers)
            self.assertEqual(reply.status, status, (address, headers))
            if status == 403:
                self.assertEqual(error_code(reply)[1], "not-encrypted")
        self.server.client_address = UNIXAddress("/run/plumber")  # type: ignore[assignment]
        self.assertEqual(self.poll("bob").status, 200)
        self.come_from(STRANGER)
        asked = len(self.authority.asked)
        protocol = ("Sec-WebSocket-Protocol", "plumber.v1, plumber.bearer.Ym9i")
        self.assertEqual(self.server.request("GET", "/events/a", [protocol]).status, 403)
        self.assertEqual(len(self.authority.asked), asked)
        # Who has none is told what is wanted.
        self.assertEqual(self.server.request("GET", "/events/a").status, 401)
        self.serve(insecure=True)
        self.assertEqual(self.poll("bob").status, 200)


class MountedPlaceTests(PlaceTests):
    """The same in a site."""

    make_server = MountedServer


class ConnectionTests(LimitCase):
    """Connections to our own port; those of a site are its own."""

    def connections(self, count: int) -> list[MemoryClient]:
        """Connections, of which nothing is known yet."""
        found = [self.server.connect() for _ in range(count)]
        self.server.settle()
        return found

    def test_of_an_address(self) -> None:
        """The next one is closed before anything is read; others get in."""
        self.serve(connections_per_address=200)
        clients = self.connections(200)
        self.assertEqual({each.ended for each in clients}, {None})
        refused = self.server.connect()
        refused.send(GET)
        self.assertEqual((refused.ended, refused.received()), (ConnectionAborted, b""))
        self.come_from(OTHER)
        self.assertEqual(self.server.request("GET", "/healthz").status, 200)
        self.come_from(STRANGER)
        clients[0].disconnect()
        self.assertEqual(self.server.request("GET", "/healthz").status, 200)
        self.assertEqual(self.figure("connections_per_address", "connections_refused_total"), 1)

    def test_a_stream_is_still_a_connection(self) -> None:
        """Until it is closed, by either side; one that was refused as well."""
        self.serve(connections_per_address=2)
        stream = self.stream("bob")
        self.assertEqual(self.status(stream), 200)
        socket = self.server.connect()
        self.assertEqual(self.connections(1)[0].ended, ConnectionAborted)
        socket.send(handshake_request("/events/b", "Origin: http://localhost"))
        self.assertEqual(self.status(socket), 101)
        socket.disconnect()
        limits = self.server.plumber.gate.clients.limits
        self.assertEqual(limits._connections[STRANGER], 1)
        stream.disconnect()
        self.assertEqual(limits._connections[STRANGER], 0)

    def test_of_all(self) -> None:
        """With the connections of streams; without a limit for each address."""
        self.server = MemoryServer(max_connections=3)
        self.stream("")
        self.assertEqual([each.ended for each in self.connections(2)], [None, None])
        with capturedLogs() as lines:
            self.assertEqual({each.ended for each in self.connections(5)}, {ConnectionAborted})
        (line,) = lines
        self.assertIn("--max-connections", formatEvent(line))
        self.assertEqual(self.figure("connections", "connections_refused_total"), 5)
        self.assertEqual(self.server.plumber.figures.collect()["connections"].value, 3)

    def test_nothing_is_left_when_all_have_gone(self) -> None:
        """Whatever became of them."""
        self.serve(connections_per_address=50, streams_per_subject=50)
        clients = [self.stream("bob", f"a{n}") for n in range(5)]
        clients += [self.stream("bob", "b"), self.stream("guess"), *self.connections(3)]
        self.poll("bob")
        self.server.advance(100)
        for each in clients:
            each.disconnect()
        limits = self.server.plumber.gate.clients.limits
        self.assertEqual(
            (len(limits._connections), len(limits._streams), limits._openers), (0, 0, {})
        )

    def test_without_authentication_nobody_is_a_stranger(self) -> None:
        """There are no limits but those that are given."""
        self.server = MemoryServer()
        self.come_from(STRANGER)
        self.assertEqual({each.ended for each in self.connections(300)}, {None})
        self.assertEqual({self.poll("").status for _ in range(600)}, {200})
        policy = ClientPolicy(NO_LIMITS._replace(polls_per_address=Rate(2, 1)))
        self.server = MemoryServer(plumber={"client_policy": policy})
        self.come_from(STRANGER)
        self.assertEqual([self.poll("").status for _ in range(3)], [200, 200, 429])


class SlowTests(SynchronousTestCase):
    """Requests that come too slowly."""

    def setUp(self) -> None:
        self.server = MemoryServer(request_timeout=60.0)

    def drip(self, begin: bytes, piece: bytes, interval: float, seconds: float) -> MemoryClient:
        """A client that sends a piece now and then, as long as it is connected."""
        client = self.server.connect()
        client.send(begin)
        while seconds > 0 and not client.value():
            self.server.advance(interval)
            client.send(piece)
            seconds -= interval
        return client

    def test_a_head_in_time(self) -> None:
        """One byte every 5 seconds is none."""
        client = self.drip(b"GET / HTTP/1.1\r\n", b"X", 5, 30)
        (reply,) = parse_responses(client.received())
        self.assertEqual(error_code(reply), (408, "too-slow"))
        self.assertLessEqual(self.server.clock.seconds() - 1_800_000_000, 15)

    def post(self, size: int) -> bytes:
        return b"POST /hooks/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size

    def test_a_body_of_500_bytes_a_second(self) -> None:
        """Less is refused, more is not; the first byte comes after a second."""
        for rate, status in ((480, 408), (700, 202)):
            client = self.drip(self.post(20_000), b"1" * rate, 1, 60)
            self.assertEqual(parse_responses(client.received())[0].status, status)

    def test_a_body_may_pause_if_it_was_fast(self) -> None:
        """It is the average that counts."""
        client = self.server.connect()
        client.send(self.post(20_000) + b"1" * 10_000)
        self.server.advance(19)
        self.assertEqual(client.received(), b"")
        client.send(b"1" * 10_000)
        self.assertEqual(parse_responses(client.received())[0].status, 202)

    def test_there_are_five_seconds(self) -> None:
        """In which a body may be as slow as it is."""
        client = self.server.connect()
        client.send(self.post(1))
        self.server.advance(5)
        client.send(b"1")
        self.assertEqual(parse_responses(client.received())[0].status, 202)

    def test_no_such_limit(self) -> None:
        """Only the time for the whole body."""
        self.server = MemoryServer(request_timeout=60.0, min_body_rate=0.0)
        client = self.drip(self.post(100), b"1", 5, 70)
        self.assertEqual(parse_responses(client.received())[0].status, 408)
        self.assertGreaterEqual(self.server.clock.seconds() - 1_800_000_000, 60)


class UnprovenBodyTests(LimitCase):
    """Bodies that come before it is known who sends them count from their first byte."""

    def test_they_are_bounded_together(self) -> None:
        """While the application is asked; small bodies of others are taken all the same."""
        self.authority = FakeAuthority(GRANTS, later=True)
        self.server = MemoryServer(
            plumber={"authority": self.authority, "client_policy": ClientPolicy(NO_LIMITS)},
            bodies_limit=100_000,
        )
        head = (
            b"POST /hooks/a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer bob\r\n"
            b"Content-Length: 40000\r\n\r\n"
        )
        clients = [self.server.connect() for _ in range(3)]
        for each in clients:
            each.send(head + b"1" * 40_000)
        self.assertEqual([self.status(each) for each in clients], [0, 0, 429])
        self.authority.answer()
        self.server.settle()
        self.assertEqual([self.status(each) for each in clients[:2]], [202, 202])
        self.assertEqual(self.server.listener.bodies.held, 0)
        self.authority.later = False
        known = [self.server.connect() for _ in range(3)]
        for each in known:
            each.send(head + b"1" * 39_999)
        self.assertEqual([self.status(each) for each in known], [0, 0, 0])
        self.assertEqual(self.server.listener.bodies.held, 0)


class SettingsTests(SynchronousTestCase):
    """The table of the file."""

    def test_the_page_shows_the_defaults(self) -> None:
        """All of them, as they are."""
        page = (ROOT / "docs/reference/limits.rst").read_text(encoding="utf-8")
        block = page.partition("code-block:: toml\n")[2].partition("\n``connections_per")[0]
        table = tomllib.loads("\n".join(line.strip() for line in block.splitlines()))["limits"]
        self.assertEqual(from_toml(table), LimitSettings())
        self.assertEqual(sorted(table), sorted(NAMES))

    def test_what_is_not_named_has_its_default(self) -> None:
        """And false is no limit."""
        found = from_toml({"streams_per_subject": 7, "posts_per_subject": False})
        self.assertEqual(
            found, LimitSettings()._replace(streams_per_subject=7, posts_per_subject=None)
        )
        rate = from_toml({"polls_per_address": {"burst": 10, "per_hour": 60}}).polls_per_address
        self.assertEqual(rate, Rate(10, 1 / 60))

    def test_mistakes_name_the_key(self) -> None:
        """Each gets a sentence."""
        for key, value in (
            ("streams", 1),
            ("streams_per_subject", 0),
            ("streams_per_subject", True),
            ("streams_per_subject", "many"),
            ("streams_per_subject", {"burst": 1, "per_second": 1}),
            ("posts_per_subject", 500),
            ("posts_per_subject", {"burst": 1}),
            ("posts_per_subject", {"burst": 0.5, "per_second": 1}),
            ("posts_per_subject", {"burst": 1, "per_second": 0}),
            ("posts_per_subject", {"burst": 1, "per_day": 1}),
            ("posts_per_subject", {"burst": 1, "per_second": 1, "per_hour": 1}),
            ("posts_per_subject", {"burst": 1, "per_second": float("nan")}),
        ):
            error = self.assertRaises(ValueError, from_toml, {key: value})
            self.assertIn(key, str(error))
            self.assertIn("[limits]", str(error))


del LimitCase
