"""A request must address this server by one of its names, which stops DNS rebinding."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from asyncplumber.auth.hosts import Hosts, parse_hosts
from asyncplumber.errors import PlumberError
from asyncplumber.testing import ClientResponse, MemoryServer, parse_responses

LOOPBACK = IPv4Address("TCP", "127.0.0.1", 8080)
OUTSIDE = IPv4Address("TCP", "172.17.0.2", 8080)
HANDSHAKE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


class At:
    """A connection that came in at an address."""

    def __init__(self, address: Any) -> None:
        self._address = address

    def getHost(self) -> Any:
        return self._address


class HostsTests(SynchronousTestCase):
    """Which names and addresses are those of this server."""

    def setUp(self) -> None:
        self.hosts = Hosts(["push.example.com", "*.wild.example", "bücher.example", "192.0.2.7"])
        self.hosts.set_advertised_url("https://Public.Example:8443/plumber")

    def status(self, host: str, at: Any = LOOPBACK, path: bytes = b"/hooks/a") -> int:
        """Return the status that a request is refused with; 0 if it passes."""
        try:
            self.hosts.check(path, {b"host": host.encode("latin-1")}, At(at))
        except PlumberError as error:
            return error.status
        return 0

    def test_own_names_pass(self) -> None:
        """With any port, in any case, and as a rooted name."""
        for host in (
            "localhost", "localhost:8080", "LOCALHOST:1", "localhost.", "app.localhost",
            "127.0.0.1", "127.0.0.1:80", "127.9.8.7", "[::1]", "[::1]:8080", "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]", "push.example.com", "PUSH.example.com.:443", "a.wild.example",
            "a.b.wild.example", "xn--bcher-kva.example", "192.0.2.7", "public.example",
            "public.example:1",
        ):  # fmt: skip
            self.assertEqual(self.status(host), 0, host)

    def test_foreign_names_are_refused(self) -> None:
        """Also names that resemble one of ours, or an address."""
        for host in (
            "evil.example", "evil.example:8080", "localhost.evil.example", "evil-localhost",
            "notlocalhost", "127.0.0.1.evil.example", "push.example.com.evil.example",
            "xpush.example.com", "wild.example", "evilwild.example", "127.1", "2130706433",
            "0x7f.0.0.1", "a..b", "localhost..", "10.0.0.1", "0.0.0.0", "[::]", "[2001:db8::1]",
        ):  # fmt: skip
            self.assertEqual(self.status(host), 421, host)

    def test_malformed_hosts_are_bad_requests(self) -> None:
        """Two names in one, a path, a user, no name at all."""
        for host in (
            "", ":80", "a, b", "a,b", "a b", "a/b@c?d", "user@localhost", "localhost/",
            "localhost?", "localhost#", "localhost:80:80", "localhost:8o", "localhost:123456",
            "[::1", "::1", "[127.0.0.1]", "[localhost]", "[::1]x", "\xff", "a" * 301,
        ):  # fmt: skip
            self.assertEqual(self.status(host), 400, host)
            self.assertEqual(self.status(host, path=b"/healthz"), 400, host)

    def test_an_address_is_accepted_beyond_the_loopback_interface(self) -> None:
        """An address cannot be rebound, and a port may be forwarded from another address."""
        for at, status in (
            (OUTSIDE, 0),
            (IPv6Address("TCP", "2001:db8::1", 80), 0),
            (IPv6Address("TCP", "::ffff:172.17.0.2", 80), 0),
            (IPv6Address("TCP", "::ffff:127.0.0.1", 80), 421),
            (IPv6Address("TCP", "::1", 80), 421),
            (UNIXAddress(b"/run/plumber"), 421),
        ):
            for host in ("10.0.0.1:8080", "[2001:db8::2]:80", "0.0.0.0"):
                self.assertEqual(self.status(host, at), status, (host, at))
            self.assertEqual(self.status("evil.example", at), 421)

    def test_probes_may_ask_by_any_name(self) -> None:
        """An orchestrator has its own name for us.  No other path is exempt."""
        for path, status in (
            (b"/healthz", 0),
            (b"/readyz", 0),
            (b"/healthz/x", 421),
            (b"/metrics", 421),
            (b"/", 421),
        ):
            self.assertEqual(self.status("evil.example", path=path), status, path)

    def test_a_new_advertised_url_replaces_the_old_one(self) -> None:
        """The server learns its own when it listens."""
        self.hosts.set_advertised_url("http://other.example")
        self.assertEqual([self.status("public.example"), self.status("other.example")], [421, 0])
        self.hosts.set_advertised_url("")
        self.assertEqual([self.status("other.example"), self.status("push.example.com")], [421, 0])

    def test_what_is_no_name_is_refused(self) -> None:
        """A port, a URL, a star alone: each by its own words."""
        self.assertEqual(
            parse_hosts("a.example, B.example *.C.example,[::1]"),
            ("a.example", "b.example", "*.c.example", "::1"),
        )
        self.assertEqual(parse_hosts(""), ())
        for text in (
            "*",
            "a.example:80",
            "http://a.example",
            "a..b",
            "*.*.example",
            "a*.example",
            "-",
            "a/b",
        ):
            self.assertIn(repr(text), str(self.assertRaises(ValueError, parse_hosts, text)))


class GateTests(SynchronousTestCase):
    """Our own port, on its fast and its full path, and a resource in another site."""

    def setUp(self) -> None:
        self.server = MemoryServer(plumber={"hosts": ["push.example.com"]})
        root = Resource()
        root.putChild(b"plumber", self.server.plumber.resource())
        self.site = Site(root, reactor=self.server.clock)
        self.site.log = lambda request: None  # type: ignore[method-assign]

    def request(self, method: bytes, target: bytes, host: bytes, lines: bytes = b"") -> bytes:
        """Return a request as it goes over the wire."""
        body = b"1" if method == b"POST" else b""
        return b"%b %b HTTP/1.1\r\nHost: %b\r\n%bContent-Length: %d\r\n\r\n%b" % (
            method,
            target,
            host,
            lines,
            len(body),
            body,
        )

    def own(self, *words: bytes) -> ClientResponse:
        """Return the response of our own port."""
        return self.server.exchange(self.request(*words))[0]

    def mounted(self, method: bytes, path: bytes, *words: bytes) -> ClientResponse:
        """Return the response of the resource."""
        channel: Any = self.site.buildProtocol(None)
        transport = StringTransport(hostAddress=LOOPBACK)
        channel.makeConnection(transport)
        channel.dataReceived(self.request(method, b"/plumber" + path, *words))
        self.server.settle()
        channel.connectionLost(None)
        return parse_responses(transport.value())[0]

    def test_dns_rebinding_is_refused(self) -> None:
        """A foreign Host, with an equal Origin or with none, as browsers send it."""
        for lines in (b"", b"Origin: http://evil.example:8080\r\n"):
            for method, path in (
                (b"POST", b"/hooks/a"),
                (b"POST", b"/hooks"),
                (b"GET", b"/accounts/a"),
                (b"GET", b"/metrics"),
                (b"GET", b"/"),
            ):
                for ask in (self.own, self.mounted):
                    reply = ask(method, path, b"evil.example:8080", lines)
                    self.assertEqual(
                        (reply.status, json.loads(reply.body)["error"]["code"]),
                        (421, "misdirected"),
                        (method, path),
                    )
                    self.assertIn("--host", json.loads(reply.body)["error"]["message"])
            for more in (b"", b"Accept: text/event-stream\r\n", HANDSHAKE):
                reply = self.own(
                    b"GET", b"/events/a?after=earliest&wait=0", b"evil.example:8080", lines + more
                )
                self.assertEqual(reply.status, 421, more)
        self.assertEqual(self.server.plumber.intake.accepted, 0)
        self.assertEqual(list(self.server.plumber.hub.accounts), [])

    def test_probes_answer_to_any_name(self) -> None:
        """Both ways in."""
        for path in (b"/healthz", b"/readyz"):
            for ask in (self.own, self.mounted):
                self.assertEqual(ask(b"GET", path, b"evil.example").status, 200)

    def test_names_that_were_given_are_served(self) -> None:
        """Both ways in; a WebSocket handshake as well."""
        for host in (b"push.example.com", b"localhost:8080", b"127.0.0.1:8080"):
            for ask in (self.own, self.mounted):
                self.assertEqual(ask(b"POST", b"/hooks/a", host).status, 202)
        client = self.server.connect()
        client.send(
            self.request(
                b"GET",
                b"/events/a",
                b"push.example.com",
                b"Origin: https://push.example.com\r\n" + HANDSHAKE,
            )
        )
        self.assertTrue(client.received().startswith(b"HTTP/1.1 101 "))

    def test_the_target_counts_more_than_the_header(self) -> None:
        """A target that is a whole URL has the name in it (RFC 9112, section 3.2.2)."""
        self.assertEqual(
            self.own(b"POST", b"http://evil.example/hooks/a", b"localhost").status, 421
        )
        self.assertEqual(self.own(b"GET", b"http://evil.example/metrics", b"localhost").status, 421)
        self.assertEqual(
            self.own(b"POST", b"http://localhost/hooks/a", b"evil.example").status, 202
        )
        self.assertEqual(
            self.own(b"GET", b"http://user@localhost/metrics", b"localhost").status, 400
        )
        self.assertEqual(self.own(b"GET", b"http://localhost?x=/nope", b"localhost").status, 200)
        foreign = self.own(
            b"POST",
            b"http://localhost/hooks/a",
            b"evil.example",
            b"Origin: http://evil.example\r\n",
        )
        self.assertEqual(foreign.status, 403)

    def test_the_target_counts_beside_a_foreign_upgrade(self) -> None:
        """A request that also asks for HTTP/2 is read a second time, without that."""
        upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
        for target, host, status in (
            (b"http://evil.example/metrics", b"localhost", 421),
            (b"http://localhost/metrics", b"evil.example", 200),
        ):
            self.assertEqual(self.own(b"GET", target, host, upgrade).status, status)

    def test_http_1_0_has_no_host(self) -> None:
        """Some load balancers speak it, and no browser does."""
        reply = self.server.exchange(b"POST /hooks/a HTTP/1.0\r\nContent-Length: 1\r\n\r\n1")[0]
        self.assertEqual(reply.status, 202)

    def test_a_refusal_leaves_the_connection_as_it_was(self) -> None:
        """A proxy may send requests for several names over one connection."""
        requests = [
            self.request(b"POST", b"/hooks/a", host)
            for host in (b"evil.example", b"localhost", b"evil.example")
        ]
        self.assertEqual(
            [reply.status for reply in self.server.exchange(b"".join(requests))], [421, 202, 421]
        )
