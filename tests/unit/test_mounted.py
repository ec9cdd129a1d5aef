"""A plumber in a site of another application serves what our own port serves."""

from __future__ import annotations

import json
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from asyncplumber import Plumber
from asyncplumber.http.mounted import MountedExchange
from asyncplumber.testing import NOW, MemoryClient, parse_responses
from harness.frames import CLOSE, TEXT, close_code, handshake_request, server_frames
from harness.memory_subscribers import MemoryEventSource
from harness.mounted import MountedServer, klein_site, nested_site, quiet, twisted_site
from tests.subscribers import ServerCase
from tests.unit import test_streams, test_websocket, test_websocket_limits

SSE = "Accept: text/event-stream"


class MountedWebSocketTests(test_websocket.WebSocketTests):
    """WebSockets by way of twisted.web: handshake, heartbeats, slow readers, close codes."""

    make_server = MountedServer


class MountedWebSocketLimitTests(test_websocket_limits.LimitTests):
    """What a WebSocket client may say there."""

    make_server = MountedServer


class MountedEventStreamTests(test_streams.EventStreamTests):
    """Server-Sent Events by way of twisted.web."""

    make_server = MountedServer
    exchange_type = MountedExchange


class MountedLongPollTests(test_streams.LongPollTests):
    """Long-polls by way of twisted.web."""

    make_server = MountedServer


def get(path: str, *lines: str, host: str = "localhost") -> bytes:
    """Return a GET as it goes over the wire."""
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode()


class PlaceTests(ServerCase, SynchronousTestCase):
    """Any site, any path."""

    make_server = MountedServer
    server: MountedServer

    def setUp(self) -> None:
        super().setUp()
        resource, clock = self.server.plumber.resource(), self.server.clock
        self.places: list[tuple[Site, str]] = [
            (twisted_site(resource, clock), "/plumber"),
            (klein_site(resource, clock), "/plumber"),
            (nested_site(resource, clock), "/app/a/b/plumber"),
            (quiet(Site(resource, reactor=clock)), ""),
        ]

    def said(self, site: Site, request: bytes) -> MemoryClient:
        """Return a client of this site that has sent a request."""
        client = self.server.connect_to(site)
        client.send(request)
        return client

    def test_each_transport(self) -> None:
        """WebSocket, Server-Sent Events and long-poll, with a query and an odd account."""
        for site, prefix in self.places:
            path = f"{prefix}/events/a%2Fb?after="
            socket = self.said(site, handshake_request(path))
            source = self.said(site, get(path, SSE))
            poll = self.said(site, get(path))
            self.assertEqual(self.server.post("a%2Fb", b'"x"').status, 201, prefix)
            head, _, frames = socket.received().partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 101 "), prefix)
            opened, event = [json.loads(payload) for _, payload in server_frames(frames)]
            self.assertEqual((opened["type"], event["data"]), ("plumber.open", "x"))
            self.assertIn(b'"data":"x"', source.received())
            (reply,) = parse_responses(poll.received())
            self.assertEqual(json.loads(reply.body)["events"], [event])
            for client in (socket, source, poll):
                client.disconnect()
        self.server.advance(2)
        self.assertEqual((self.server.plumber.hub.subscribers, len(self.server.clients)), (0, 0))

    def test_everything_else(self) -> None:
        """The webhook, the page, the client script and the probes."""
        post = "POST {}/hooks/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n1"
        for site, prefix in self.places:
            (reply,) = parse_responses(self.said(site, post.format(prefix).encode()).received())
            self.assertEqual(reply.status, 202, prefix)
            for path, kind in {
                "/": b"text/html; charset=utf-8",
                "/asyncplumber.js": b"text/javascript; charset=utf-8",
                "/healthz": b"application/json",
            }.items():
                (reply,) = parse_responses(self.said(site, get(prefix + path)).received())
                self.assertEqual((reply.status, reply.headers[b"content-type"]), (200, kind))

    def test_the_page_is_found_without_its_slash(self) -> None:
        """Its links are relative to its folder.  Klein redirects by itself."""
        for site, prefix in self.places[:3]:
            (reply,) = parse_responses(self.said(site, get(prefix)).received())
            self.assertEqual(reply.status, 308)
            self.assertTrue(reply.headers[b"location"].endswith(b"/plumber/"))
        site, prefix = self.places[0]
        for path, location in (("/plumber", b"./plumber/"), ("/plumber?x=1", b"./plumber/?x=1")):
            (reply,) = parse_responses(self.said(site, get(path)).received())
            self.assertEqual(reply.headers[b"location"], location)

    def test_the_gate_is_in_front(self) -> None:
        """A foreign name, a page of another origin, two slashes: on each path, before anything."""
        for site, prefix in self.places:
            for path, *lines, status in (
                (f"{prefix}/events/a", "Origin: https://evil.example", SSE, 403),
                (f"{prefix}/events/a?wait=0", "Origin: https://evil.example", 403),
                (f"{prefix}/nope", SSE, 404),
                (f"{prefix}/events/%00", SSE, 400),
                (f"{prefix}/events/a?after=x", SSE, 400),
                (f"{prefix}/events/a?wait=x", 400),
                (f"{prefix}/events/a", "X: a\x0bb", 400),
            ):
                (reply,) = parse_responses(self.said(site, get(path, *map(str, lines))).received())
                self.assertEqual(reply.status, status, (path, lines))
            foreign = self.said(site, get(f"{prefix}/events/a", SSE, host="evil.example"))
            self.assertEqual(parse_responses(foreign.received())[0].status, 421)
        for site, prefix in (self.places[0], self.places[3]):  # Klein folds the slashes of others
            (reply,) = parse_responses(self.said(site, get(f"{prefix}//events/a", SSE)).received())
            self.assertEqual(reply.status, 404)
        self.assertEqual(self.server.plumber.hub.accounts, [])

    def test_a_page_of_a_named_origin_may_subscribe_and_ask_first(self) -> None:
        """Each response can be read by it, also an error."""
        self.server = MountedServer(plumber={"origins": ["https://app.example"]})
        origin = ("Origin", "https://app.example")
        for reply in (
            self.server.request("GET", "/events/a?wait=0", [origin]),
            self.server.request("GET", "/events/a?wait=x", [origin]),
            self.server.request("GET", "/accounts/a", [origin]),
            self.server.request("POST", "/hooks/a", [origin], b"1"),
            self.server.request("POST", "/hooks/%00", [origin], b"1"),
            self.server.request(
                "OPTIONS", "/events/a", [origin, ("Access-Control-Request-Method", "GET")]
            ),
        ):
            self.assertEqual(reply.headers[b"access-control-allow-origin"], b"https://app.example")


class TakeOverTests(ServerCase, SynchronousTestCase):
    """The moment at which a stream takes the transport."""

    make_server = MountedServer
    server: MountedServer

    def test_the_limit_of_subscribers_holds(self) -> None:
        """The connection stays twisted.web's, for another try."""
        self.server = MountedServer(plumber={"subscriber_limit": 1})
        first, second = MemoryEventSource(self.server), self.server.connect()
        second.send(get("/events/a", SSE))
        self.assertEqual(parse_responses(second.received())[0].status, 429)
        first.leave()
        second.send(get("/events/a", SSE))
        self.assertTrue(second.received().startswith(b"HTTP/1.1 200 OK"))

    def test_a_client_that_leaves_at_once_is_not_subscribed(self) -> None:
        """Whether its channel is open already or not."""
        for _ in range(2):
            for request in (handshake_request("/events/a"), get("/events/a", SSE)):
                client = self.server.connect()
                client.protocol.dataReceived(request)
                client.disconnect()
                self.server.settle()
                self.assertEqual(
                    (self.server.plumber.hub.subscribers, len(self.server.clients)), (0, 0)
                )
            self.keeper = MemoryEventSource(self.server)
            self.keeper.leave()

    def test_twisted_web_has_no_say_any_more(self) -> None:
        """Its time-out for idle connections does not end a stream, and the request is over."""
        ended: list[Any] = []

        class Watched(Resource):
            isLeaf = True

            def render(self, request: Any) -> Any:
                request.notifyFinish().addBoth(ended.append)
                return inner.render(request)

        inner: Any = self.server.plumber.resource()
        site = quiet(Site(Watched(), reactor=self.server.clock, timeout=5))
        client = self.server.connect_to(site)
        client.send(get("/events/a", SSE))
        self.assertEqual(len(ended), 1)
        self.server.advance(40)
        self.assertIsNone(client.ended)
        self.assertEqual(self.server.post("a", b"1").status, 201)

    def test_a_transport_that_cannot_be_taken(self) -> None:
        """As HTTP/2: 501 sends the browser's client to long-poll, which is served."""
        transport = StringTransport()  # no protocol can be put in the place of another
        channel: Any = self.server.site.buildProtocol(None)
        channel.makeConnection(transport)
        for request in (handshake_request("/events/a"), get("/events/a", SSE)):
            channel.dataReceived(request)
            self.server.settle()
            reply = parse_responses(transport.value())[-1]
            self.assertEqual(reply.status, 501)
            self.assertIn(b"long-poll", reply.body)
        channel.dataReceived(get("/events/a?wait=0"))
        self.server.settle()
        self.assertEqual(parse_responses(transport.value())[-1].status, 200)


class StopTests(SynchronousTestCase):
    """An application stops, and its plumber with it."""

    def setUp(self) -> None:
        self.client_address = IPv4Address("TCP", "127.0.0.1", 50000)
        self.clock = MemoryReactorClock()
        self.clock.rightNow = NOW
        self.plumber = Plumber(
            "memory:", "http://localhost/plumber", reactor=self.clock, wall=self.clock
        )
        self.application = MultiService()
        self.plumber.setServiceParent(self.application)
        self.site = quiet(Site(self.plumber.resource(), reactor=self.clock))
        self.application.startService()
        self.settle()

    def settle(self) -> None:
        """Let the reactor turn a few times."""
        for _ in range(20):
            self.clock.advance(0)

    def connect(self, request: bytes) -> MemoryClient:
        """Return a client that has sent a request."""
        protocol: Any = self.site.buildProtocol(None)
        client = MemoryClient(self, protocol)  # type: ignore[arg-type]
        protocol.makeConnection(client)
        client.send(request)
        return client

    def test_clients_are_told_and_waited_for(self) -> None:
        """A planned close by each transport; a client that does not go is cut off."""
        socket = self.connect(handshake_request("/events/a"))
        source = self.connect(get("/events/a", SSE))
        poll = self.connect(get("/events/a"))
        stopped = self.application.stopService()
        assert stopped is not None
        self.settle()
        self.assertNoResult(stopped)
        (reply,) = parse_responses(poll.received())
        self.assertEqual((reply.status, json.loads(reply.body)["events"]), (200, []))
        *notices, (opcode, payload) = server_frames(socket.received().partition(b"\r\n\r\n")[2])
        types = [json.loads(text)["type"] for kind, text in notices if kind == TEXT]
        self.assertEqual(types, ["plumber.open", "plumber.bye"])
        self.assertEqual((opcode, close_code(payload)), (CLOSE, 1001))
        self.assertIn(b"event: plumber.bye", source.received())
        self.assertIs(source.ended, ConnectionDone)
        for _ in range(12):
            self.clock.advance(0.5)
        self.settle()
        self.assertIs(socket.ended, ConnectionAborted)
        self.successResultOf(stopped)

    def test_heartbeats_and_subscribers_after_a_second_start(self) -> None:
        """The same resource serves again."""
        stopped = self.application.stopService()
        self.settle()
        if stopped is not None:
            self.successResultOf(stopped)
        refused = self.connect(get("/events/a", SSE))
        self.assertEqual(parse_responses(refused.received())[0].status, 503)
        self.application.startService()
        self.settle()
        source = self.connect(get("/events/a", SSE))
        self.assertTrue(source.received().startswith(b"HTTP/1.1 200 OK"))
        for _ in range(32):
            self.clock.advance(0.5)
        self.assertIn(b":\n\n", source.received())
