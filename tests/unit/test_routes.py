"""Klein's routes: in a site of an application, and behind our own port."""

from __future__ import annotations

import json
from typing import Any

from treq import content
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from twisted.web.resource import Resource
from twisted.web.server import Site
from zope.interface import implementer

from asyncplumber.testing import MemoryServer, parse_responses


@implementer(IBodyProducer)
class Body:
    """A body that is there at once."""

    def __init__(self, data: bytes) -> None:
        self.length = len(data)
        self._data = data

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self._data)
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done

    def pauseProducing(self) -> None: ...

    def resumeProducing(self) -> None: ...

    def stopProducing(self) -> None: ...


class MountedTests(SynchronousTestCase):
    """Below a path of another application's site."""

    def setUp(self) -> None:
        self.server = MemoryServer(body_limit=1000, plumber={"hosts": ["app.example"]})
        root = Resource()
        root.putChild(b"plumber", self.server.plumber.resource())
        self.agent = RequestTraversalAgent(root)

    def request(
        self, method: bytes, path: bytes, body: bytes = b"", **headers: str
    ) -> tuple[int, Any]:
        """Status and JSON of the answer."""
        named = Headers({name.replace("_", "-"): [value] for name, value in headers.items()})
        requested = self.agent.request(
            method, b"http://app.example/plumber" + path, named, Body(body) if body else None
        )
        self.server.settle()
        self.agent.flush()
        response = self.successResultOf(requested)
        read = content(response)
        self.agent.flush()
        return response.code, json.loads(self.successResultOf(read))

    def test_a_webhook_takes_results(self) -> None:
        """They reach the callbacks that are registered with the library."""
        heard: list[Any] = []
        self.server.plumber.register("a", lambda event: heard.append(event.data))
        self.server.settle()
        status, receipt = self.request(b"POST", b"/hooks/a", b'{"n": 1}')
        self.assertEqual((status, receipt["subscribers"], heard), (201, 1, [{"n": 1}]))

    def test_accounts_arrive_as_they_were_sent(self) -> None:
        """A slash that is percent-encoded is part of the name; one that is not, is none of ours."""
        for path, account in (
            (b"a%2Fb", "a/b"),
            (b"%2Fa", "/a"),
            (b"a%2F%2Fb", "a//b"),
            (b"%C3%A9", "é"),
            (b"%2525", "%25"),
            (b"%20", " "),
        ):
            self.assertEqual(self.request(b"POST", b"/hooks/" + path, b"1")[0], 202)
            status, told = self.request(b"GET", b"/accounts/" + path)
            self.assertEqual((status, told["account"], told["cursor"][-2:]), (200, account, ".1"))
        for path in (b"", b"a/b", b"/a", b"a//b", b"a/", b"%00", b"%ff"):
            status, told = self.request(b"POST", b"/hooks/" + path, b"1")
            self.assertEqual((status, told["error"]["code"]), (400, "bad-account"), path)

    def test_a_body_beyond_the_limit(self) -> None:
        """413; at the limit it is taken."""
        self.assertEqual(self.request(b"POST", b"/hooks/a", b"x" * 1000)[0], 202)
        self.assertEqual(self.request(b"POST", b"/hooks/a", b"x" * 1001)[0], 413)

    def test_pages_of_other_origins_may_not_post(self) -> None:
        """Our own may."""
        self.assertEqual(
            self.request(b"POST", b"/hooks/a", b"1", Origin="https://evil.example")[0], 403
        )
        self.assertEqual(
            self.request(b"POST", b"/hooks/a", b"1", Origin="https://app.example")[0], 202
        )

    def test_odd_hosts_are_refused(self) -> None:
        """By us, and not by the libraries behind: each with an answer of our own."""
        for host, status in (
            ("a..b", 421),
            ("[::1", 400),
            ("\xff", 400),
            ("a" * 301, 400),
            (":", 400),
            ("x:99999999", 400),
        ):
            self.assertEqual(self.request(b"POST", b"/hooks/a", b"1", Host=host)[0], status, host)

    def test_skyhooks_clients_find_what_they_look_for(self) -> None:
        """The account is in the payload; whether anybody was notified, in the answer."""
        payload = b'{"keys": {"account_id": 42}, "data": {"x": 1}}'
        self.assertEqual(self.request(b"POST", b"/hooks", payload)[1]["notified"], False)
        self.server.plumber.register("42", lambda event: None)
        self.server.settle()
        status, receipt = self.request(b"POST", b"/hooks", payload)
        self.assertEqual(
            (status, receipt["status"], receipt["notified"], receipt["cursor"][-2:]),
            (201, "ok", True, ".2"),
        )
        for wrong in (
            b"[]",
            b"{}",
            b'{"keys": 1}',
            b'{"keys": {"account_id": true}}',
            b'{"keys": {"account_id": ""}}',
            b"x",
        ):
            self.assertEqual(self.request(b"POST", b"/hooks", wrong)[0], 400, wrong)


class FullPathTests(SynchronousTestCase):
    """On the full path of our own port."""

    def setUp(self) -> None:
        self.server = MemoryServer()

    def test_the_page_and_what_belongs_to_it(self) -> None:
        """Each with its type, and nothing from elsewhere allowed in it."""
        kinds = {
            "/": "text/html",
            "/asyncplumber.js": "text/javascript",
            "/page.css": "text/css",
            "/favicon.svg": "image/svg+xml",
        }
        for path, kind in kinds.items():
            reply = self.server.request("GET", path)
            self.assertEqual(
                (reply.status, reply.headers[b"content-type"].decode().partition(";")[0]),
                (200, kind),
            )
            self.assertIn(b"default-src 'self'", reply.headers[b"content-security-policy"])

    def test_health_and_readiness(self) -> None:
        """A server that is about to stop is alive, and not ready."""
        self.assertEqual(self.server.request("GET", "/healthz").status, 200)
        self.assertEqual(self.server.request("GET", "/readyz").status, 200)
        slow = self.server.connect()  # the stop waits for it
        slow.send(b"GET /events/a HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
        slow.reading = False
        stopped = self.server.stop()
        self.assertEqual(self.server.request("GET", "/healthz").status, 200)
        self.assertEqual(self.server.request("GET", "/readyz").status, 503)
        self.assertNoResult(stopped)
        self.server.advance(20)
        self.successResultOf(stopped)
        reply = self.server.request("GET", "/readyz")
        message = json.loads(reply.body)["error"]["message"]
        self.assertEqual((reply.status, message), (503, "this instance is stopped"))

    def test_readiness_does_not_look_at_the_accounts(self) -> None:
        """There may be a hundred thousand, and a balancer asks each second."""
        self.patch(self.server.plumber.hub, "channels", lambda: self.fail("it looked"))
        self.assertEqual(self.server.request("GET", "/readyz").status, 200)

    def test_a_client_that_does_not_wait_does_no_harm(self) -> None:
        """Its answer is not written to a connection that is lost."""
        waiting: Deferred[None] = Deferred()
        self.patch(self.server.plumber.store, "ping", lambda: waiting)
        client = self.server.connect()
        client.send(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.disconnect()
        waiting.callback(None)
        self.server.settle()
        self.assertEqual(client.received(), b"")

    def test_what_was_posted_is_kept_although_nobody_waits_for_the_receipt(self) -> None:
        """A client that hangs up takes nothing back, and is no failure of ours."""
        client = self.server.connect()
        body = b'{"keys":{"account_id":"a"},"data":1}'
        client.protocol.dataReceived(
            b"POST /hooks HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        client.disconnect()
        self.server.settle()
        self.assertEqual((self.server.plumber.intake.accepted, client.received()), (1, b""))

    def test_an_instance_takes_only_what_is_for_it(self) -> None:
        """410 for another's hooks and batches, and for accounts that nobody here wants."""
        own = self.server.plumber.leases.instance.id
        for path in (
            "/instances/other/hooks/a",
            "/instances/other/events",
            f"/instances/{own}/hooks/nobody",
        ):
            self.assertEqual(self.server.request("POST", path, body=b"1").status, 410, path)
        self.assertEqual(
            self.server.request("POST", f"/instances/{own}/events", body=b"nonsense").status, 403
        )
        self.assertEqual(self.server.request("GET", f"/instances/{own}/accounts/a").status, 403)


class PlainSiteTests(SynchronousTestCase):
    """In a site that twisted.web parses."""

    def test_a_form_is_data_as_it_came(self) -> None:
        """Although twisted.web has read it before us."""
        server = MemoryServer()
        site = Site(server.plumber.resource(), reactor=server.clock)
        site.log = lambda request: None  # type: ignore[method-assign]
        channel: Any = site.buildProtocol(None)
        transport = StringTransport()
        channel.makeConnection(transport)
        kind = b"Content-Type: application/x-www-form-urlencoded\r\n"
        channel.dataReceived(
            b"POST /hooks/a HTTP/1.1\r\nHost: localhost\r\n%bContent-Length: 7\r\n\r\na=1&b=2"
            % kind
        )
        server.settle()
        self.assertEqual(parse_responses(transport.value())[0].status, 202)
        self.assertIn(b'"data":"a=1&b=2"', server.request("GET", "/events/a?after=earliest").body)
        channel.connectionLost(None)
