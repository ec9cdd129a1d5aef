"""Which port of a server has which paths, and who may use them."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from asyncplumber.errors import InvalidToken, Unauthenticated
from asyncplumber.grant import Accounts, Grant
from asyncplumber.http.ports import Port, has_path
from asyncplumber.interfaces import Decision, Facts, IAuthority
from asyncplumber.server.loopback import private_endpoint
from asyncplumber.testing import MemoryServer

KEYS = {
    b"Bearer admin": Grant("operator", mechanism="key", is_admin=True),
    b"Bearer user": Grant("user", Accounts(frozenset("a")), Accounts(frozenset("a"))),
}
OPERATORS = ("/metrics", "/admin/", "/admin/cluster", "/admin/admin.js", "/admin")
STATIC = ("/admin/", "/admin/admin.js", "/admin/admin.css", "/admin/asyncplumber.js")


@implementer(IAuthority)
class Keys:
    """Knows two keys; with `slow`, it answers only when it is told to."""

    def __init__(self) -> None:
        self.slow: list[Deferred[Decision]] | None = None

    def grant(self, facts: Facts) -> Decision | Deferred[Decision]:
        key = facts.headers.get(b"authorization")
        if key is None:
            raise Unauthenticated
        if key not in KEYS:
            raise InvalidToken("unknown")
        if self.slow is None:
            return KEYS[key]
        self.slow.append(Deferred().addCallback(lambda _: KEYS[key]))
        return self.slow[-1]


class PortServer(MemoryServer):
    """A server whose clients come in at one of its ports."""

    port = Port.ONLY

    def connect(self) -> Any:
        listener = self.listener
        self.listener = listener.at(self.port)  # type: ignore[assignment]
        try:
            return super().connect()
        finally:
            self.listener = listener


class PortCase(SynchronousTestCase):
    """A server, and its answers."""

    def serve(self, port: Port, authority: Any = None, **options: Any) -> PortServer:
        server = PortServer(plumber={"authority": authority, **options})
        server.port = port
        return server

    def statuses(self, server: PortServer, *paths: str, key: str = "") -> dict[str, int]:
        headers = [("Authorization", f"Bearer {key}")] if key else []
        return {path: server.request("GET", path, headers).status for path in paths}


class PathTests(SynchronousTestCase):
    """The table."""

    def test_each_port_has_its_paths(self) -> None:
        """The paths of operators and of instances are hidden beside a private port."""
        expected = {
            b"/metrics": "only private",
            b"/admin": "only private",
            b"/admin/x": "only private",
            b"/revocations": "only private",
            b"/instances/i/events": "only peers private",
            b"/accounts/a": "only public peers private",
            b"/healthz": "only public peers private",
            b"/readyz": "only public peers private",
            b"/hooks/a": "only public peers",
            b"/events/a": "only public peers",
            b"/tickets": "only public peers",
            b"/": "only public peers",
            b"/administration": "only public peers",
        }
        for path, ports in expected.items():
            found = {port.value for port in Port if has_path(port, path)}
            self.assertEqual(found, set(ports.split()), path)

    def test_an_endpoint_for_operators_names_its_interface(self) -> None:
        """A number is a port on the loopback interface."""
        self.assertIn("interface=127.0.0.1", private_endpoint("9090"))
        for text in ("tcp:9090:interface=10.0.0.7", "unix:/run/x", "tcp:0:interface=0.0.0.0"):
            self.assertEqual(private_endpoint(text), text)
        for text in ("tcp:9090", "ssl:9090:privateKey=x", "tcp:9090:backlog=5"):
            with self.assertRaises(ValueError):
                private_endpoint(text)


class PrivateTests(PortCase):
    """The private port."""

    def test_it_needs_no_credential(self) -> None:
        """With authentication and without."""
        for authority in (None, Keys()):
            server = self.serve(Port.PRIVATE, authority)
            paths = ["/metrics", "/admin/", "/admin/cluster", "/admin/accounts", "/accounts/a"]
            found = self.statuses(server, *paths, "/readyz")
            self.assertEqual(set(found.values()), {200}, found)
            self.assertEqual(server.request("POST", "/admin/hooks/a", body=b"1").status, 202)
            events = server.request("GET", "/admin/events/a?wait=0&after=earliest")
            self.assertIn(b'"data":1', events.body)

    def test_credentials_are_revoked_there(self) -> None:
        """Where there are any."""
        server = self.serve(Port.PRIVATE, Keys())
        body = b'{"sub": "user"}'
        self.assertEqual(server.request("POST", "/revocations", body=body).status, 201)
        self.assertIn(b'"sub": "user"', server.request("GET", "/revocations").body)
        server = self.serve(Port.PRIVATE)
        self.assertEqual(server.request("GET", "/revocations").status, 404)

    def test_it_serves_nobody_else(self) -> None:
        """Who only publishes or subscribes has the public port."""
        server = self.serve(Port.PRIVATE)
        found = self.statuses(server, "/", "/events/a?wait=0", "/hooks/a", "/asyncplumber.js")
        self.assertEqual(set(found.values()), {404})
        self.assertEqual(server.request("POST", "/hooks/a", body=b"1").status, 404)

    def test_a_name_of_somebody_else_is_refused(self) -> None:
        """DNS rebinding: the page of that name is in the browser of an operator."""
        server = self.serve(Port.PRIVATE)
        for path, status in (("/admin/cluster", 421), ("/metrics", 421), ("/healthz", 200)):
            reply = server.exchange(
                f"GET {path} HTTP/1.1\r\nHost: evil.example:8080\r\n\r\n".encode()
            )
            self.assertEqual(reply[0].status, status)

    def test_pages_of_other_origins_are_refused(self) -> None:
        """Also of those that --allow-origin names: they have no credential here."""
        server = self.serve(Port.PRIVATE, origins=["https://app.example", "*"])
        for origin in ("https://app.example", "https://evil.example", "null"):
            for method, path in (
                ("POST", "/admin/hooks/a"),
                ("OPTIONS", "/admin/hooks/a"),
                ("GET", "/admin/cluster"),
                ("GET", "/admin/events/a?wait=0"),
                ("POST", "/revocations"),
                ("GET", "/metrics"),
            ):
                reply = server.request(method, path, [("Origin", origin)])
                self.assertEqual(reply.status, 403, (origin, path))
        reply = server.request("POST", "/admin/hooks/a", [("Origin", "http://localhost")], b"1")
        self.assertEqual(reply.status, 202)

    def test_other_sites_cannot_send_blind_requests(self) -> None:
        """An image or a form of another page has no Origin, but says where it is."""
        server = self.serve(Port.PRIVATE)
        cross = [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors")]
        for method, path in (("GET", "/admin/events/a?wait=0"), ("POST", "/admin/hooks/a")):
            self.assertEqual(server.request(method, path, cross).status, 403)
        link = [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate")]
        self.assertEqual(server.request("GET", "/admin/", link).status, 200)


class PublicTests(PortCase):
    """The ports beside it."""

    def test_operators_have_nothing_there(self) -> None:
        """Not even with their key."""
        for port in (Port.PUBLIC, Port.PEERS):
            for authority in (None, Keys()):
                server = self.serve(port, authority)
                found = self.statuses(server, *OPERATORS, "/revocations", key="admin")
                self.assertEqual(set(found.values()), {404}, found)

    def test_instances_have_their_own_port(self) -> None:
        """What an instance asks is answered where instances are, and signed."""
        for port, status in ((Port.PUBLIC, 404), (Port.PEERS, 403), (Port.PRIVATE, 403)):
            server = self.serve(port)
            id = server.plumber.status().instance_id
            found = self.statuses(server, f"/instances/{id}/status", f"/instances/{id}/accounts/a")
            self.assertEqual(set(found.values()), {status})
            reply = server.request("POST", f"/instances/{id}/events")
            self.assertEqual(reply.status, status)

    def test_an_encoded_path_is_no_way_round(self) -> None:
        """It is another path, and there is nothing at it."""
        server = self.serve(Port.PUBLIC)
        for path in (
            "/%61dmin/cluster",
            "/metrics/",
            "/admin%2Fcluster",
            "/./metrics",
            "//metrics",
        ):
            self.assertEqual(server.request("GET", path).status, 404)

    def test_an_account_is_shown_by_its_grant(self) -> None:
        """At the public port as at the private one."""
        server = self.serve(Port.PUBLIC, Keys())
        self.assertEqual(
            self.statuses(server, "/accounts/a", "/accounts/b", key="user"),
            {"/accounts/a": 200, "/accounts/b": 403},
        )


class OnlyTests(PortCase):
    """Without a private port."""

    def test_without_authentication_there_is_no_admin_page(self) -> None:
        """The answer says how to get it; the metrics are open."""
        server = self.serve(Port.ONLY)
        for path in (*OPERATORS[1:], "/admin/events/a", "/revocations"):
            reply = server.request("GET", path)
            self.assertEqual(reply.status, 404, path)
            self.assertIn(b"--private-listen", reply.body)
        self.assertEqual(server.request("POST", "/admin/hooks/a", body=b"1").status, 404)
        self.assertEqual(server.request("GET", "/metrics").status, 200)

    def test_the_page_asks_for_a_key(self) -> None:
        """So it is there for everybody, and its documents are not."""
        server = self.serve(Port.ONLY, Keys())
        self.assertEqual(set(self.statuses(server, *STATIC).values()), {200})
        documents = ("/admin/cluster", "/admin/accounts", "/admin/hooks", "/metrics")
        for key, status in (("", 401), ("wrong", 401), ("user", 403), ("admin", 200)):
            found = self.statuses(server, *documents, key=key)
            self.assertEqual(set(found.values()), {status}, key)

    def test_an_admin_reads_and_posts_events_of_every_account(self) -> None:
        """On the admin page only: the key has no account of its own."""
        server = self.serve(Port.ONLY, Keys())
        for key, status in (("admin", 202), ("user", 403)):
            headers = [("Authorization", f"Bearer {key}")]
            reply = server.request("POST", "/admin/hooks/b", headers, b"1")
            self.assertEqual(reply.status, status)
            reply = server.request("GET", "/admin/events/b?wait=0", headers)
            self.assertEqual(reply.status, 200 if status == 202 else 403)
        headers = [("Authorization", "Bearer admin")]
        self.assertEqual(server.request("GET", "/events/b?wait=0", headers).status, 403)
        self.assertEqual(server.request("POST", "/hooks/b", headers, b"1").status, 403)

    def test_a_credential_that_takes_time_opens_the_same(self) -> None:
        """Such as one that an application is asked about."""
        authority = Keys()
        server = self.serve(Port.ONLY, authority)
        authority.slow = []
        client = server.connect()
        client.send(
            b"POST /admin/hooks/b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
            b"Authorization: Bearer admin\r\n\r\n1"
        )
        self.assertEqual(client.received(), b"")
        authority.slow[0].callback(None)  # type: ignore[arg-type]
        server.settle()
        self.assertIn(b"HTTP/1.1 202 ", client.received())

    def test_the_folder_has_a_slash(self) -> None:
        """The links of the page are relative to it."""
        server = self.serve(Port.ONLY, Keys())
        reply = server.request("GET", "/admin")
        self.assertEqual((reply.status, reply.headers[b"location"]), (308, b"./admin/"))

    def test_the_page_runs_no_script_of_others(self) -> None:
        """And it sends no address to anybody."""
        server = self.serve(Port.PRIVATE)
        headers = server.request("GET", "/admin/").headers
        policy = headers[b"content-security-policy"]
        self.assertIn(b"default-src 'none'", policy)
        self.assertNotIn(b"unsafe", policy)
        self.assertEqual(headers[b"referrer-policy"], b"no-referrer")
        self.assertEqual(headers[b"x-content-type-options"], b"nosniff")
