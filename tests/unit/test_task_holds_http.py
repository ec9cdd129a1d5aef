"""Who may do what with tasks, and how requests that are held end."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import deferLater

from asyncplumber.auth.limits.rates import Rate
from asyncplumber.auth.limits.settings import NO_LIMITS
from asyncplumber.grant import Accounts, Grant
from asyncplumber.http.clients import ClientPolicy
from asyncplumber.interfaces import Finished
from asyncplumber.testing import NOW, parse_responses
from harness.authority import FakeAuthority
from harness.mounted import MountedServer
from tests.task_http import TaskCase, header, told

SUM = "/tasks/42/sum"
MINE, THEIRS = Accounts.parse(["42"]), Accounts.parse(["43"])
GRANTS = {
    "reader": Grant("reader", subscribe=MINE),
    "writer": Grant("writer", publish=MINE),
    "starter": Grant("starter", start=MINE),
    "admin": Grant("admin", is_admin=True),
    "other": Grant("other", THEIRS, THEIRS, start=THEIRS),
    "brief": Grant("brief", MINE, MINE, until=NOW + 8, start=MINE),
}


def bearer(name: str) -> tuple[str, str]:
    """Return the header by which somebody is known."""
    return "Authorization", f"Bearer {name}"


class GrantedCase(TaskCase):
    """A server where each has rights of their own."""

    limits: Any = None
    later = False

    def options(self) -> dict[str, Any]:
        """Return the arguments of the server."""
        self.authority = FakeAuthority(dict(GRANTS), later=self.later)
        policy = ClientPolicy(self.limits, insecure=True)
        return {
            "plumber": {
                "starter": self.starter,
                "authority": self.authority,
                "client_policy": policy,
            }
        }

    def status(self, method: str, path: str, name: str, *lines: tuple[str, str]) -> int:
        """Return the status of a request that is not held."""
        body = b"1" if method in ("PUT", "POST") else b""
        lines = (bearer(name), ("Prefer", "respond-async"), *lines)
        return int(self.ask(method, path, body, *lines).status)


class AccessTests(GrantedCase):
    """Rights."""

    def test_each_page_needs_a_right(self) -> None:
        """To start, to read, or to publish; an account of somebody else is refused alike."""
        names = ("starter", "reader", "writer", "other", "admin")
        for method, path, statuses in (
            ("PUT", SUM, (202, 403, 403, 403, 403)),
            ("POST", SUM, (202, 403, 403, 403, 403)),
            ("POST", "/tasks/42", (202, 403, 403, 403, 403)),
            ("GET", SUM, (200, 200, 403, 403, 403)),
            ("HEAD", SUM, (200, 200, 403, 403, 403)),
            ("GET", f"{SUM}?wait=0", (200, 200, 403, 403, 403)),
            ("GET", f"{SUM}/result", (409, 409, 403, 403, 403)),
            ("GET", "/tasks/42", (403, 200, 403, 403, 403)),
            ("GET", "/tasks/42?live", (403, 200, 403, 403, 403)),
            ("POST", f"{SUM}/cancel", (202, 403, 403, 403, 403)),
            ("DELETE", SUM, (405, 405, 403, 403, 403)),
            ("OPTIONS", SUM, (200, 200, 403, 403, 403)),
        ):
            found = tuple(self.status(method, path, name) for name in names)
            self.assertEqual(found, statuses, (method, path))

    def test_refusals_tell_nothing(self) -> None:
        """They are the same for tasks that exist and for those that do not."""
        self.status("PUT", SUM, "starter")
        found = set()
        for path in (SUM, "/tasks/42/none", "/tasks/44/sum"):
            reply = self.ask("GET", path, b"", bearer("other"))
            found.add((reply.status, reply.body, header(reply, "WWW-Authenticate")))
            self.assertEqual(header(reply, "Content-Type"), "application/problem+json")
        self.assertEqual(len(found), 1)
        reply = self.ask("PUT", SUM, b"1")
        self.assertEqual((reply.status, told(reply)["error"]["code"]), (401, "unauthenticated"))
        self.assertEqual(self.ask("PUT", SUM, b"1", bearer("nobody")).status, 401)

    def test_a_path_is_decoded_once(self) -> None:
        """No spelling of it leads to an account of somebody else."""
        for path in (
            "/tasks/43%2F..%2F42/sum",
            "/tasks/43/../42/sum",
            "/tasks/43%2f42/sum",
            "/tasks/%34%33/../../42/sum",
            "/tasks/43;/42/sum",
            "/tasks//42/sum",
            "/tasks/4%32/sum",
            "/tasks/42%00/sum",
        ):
            for method in ("GET", "PUT"):
                self.assertIn(self.status(method, path, "other"), (400, 403, 404), path)
        self.assertEqual(self.starter.dispatched, [])
        self.assertEqual(self.status("PUT", "/tasks/%34%33/%73um", "other"), 202)
        self.assertEqual(self.starter.dispatched[0].account, "43")

    def test_reports_need_the_right_to_publish(self) -> None:
        """To that account; and who may only report reads nothing."""
        for name, status in (("writer", 202), ("starter", 403), ("reader", 403), ("other", 403)):
            reply = self.report("sum", "running", b'"secret"', bearer(name))
            self.assertEqual(reply.status, status, name)
        self.report("sum", "failed", b'"secret"', bearer("writer"))
        for state in ("running", "completed", "failed"):
            reply = self.report("sum", state, b"1", bearer("writer"), ("Task-Run", "other"))
            self.assertNotIn(b"secret", reply.body, state)


class LaterAccessTests(GrantedCase):
    """Where the credential takes its time."""

    later = True

    def test_the_request_waits_for_its_decision(self) -> None:
        client = self.send("PUT", SUM, b"1", bearer("starter"), ("Prefer", "respond-async"))
        refused = self.send("PUT", SUM, b"1", bearer("reader"))
        left = self.send("PUT", "/tasks/42/left", b"1", bearer("starter"))
        left.disconnect()
        self.assertEqual(self.authority.cancelled, 1)
        self.authority.waiting.pop()
        self.assertEqual((client.received(), self.starter.dispatched), (b"", []))
        self.authority.answer()
        self.server.settle()
        self.assertEqual(self.heard(client).status, 202)
        self.assertEqual(self.heard(refused).status, 403)
        self.assertEqual([each.task for each in self.starter.dispatched], ["sum"])


class EndingTests(GrantedCase):
    """How requests that are held end."""

    def hold(self, name: str = "starter", *lines: tuple[str, str]) -> Any:
        return self.send("PUT", SUM, b"1", bearer(name), *lines)

    @property
    def subscribers(self) -> int:
        """How many are subscribed here to account 42."""
        return self.server.plumber.hub.count("42")

    def test_a_client_that_leaves(self) -> None:
        """It frees everything, and the task goes on."""
        clients = [self.hold() for _ in range(3)]
        self.assertEqual(self.subscribers, 3)
        for client in clients:
            client.disconnect()
        self.server.settle()
        self.assertEqual(self.subscribers, 0)
        self.report("sum", "completed", b"7", bearer("writer"))
        reply = self.ask("GET", f"{SUM}/result", b"", bearer("reader"))
        self.assertEqual((reply.status, reply.body), (200, b"7"))

    def test_nothing_is_sent_after_a_grant_has_ended(self) -> None:
        """A hold is answered before."""
        client = self.hold("brief", ("Prefer", "wait=60"))
        self.server.advance(6)
        self.assertEqual(client.received(), b"")
        self.server.advance(1.5)
        reply = self.heard(client)
        self.assertEqual((reply.status, told(reply)["done"]), (202, False))
        self.server.advance(1)
        self.assertEqual(self.subscribers, 0)

    def test_a_store_that_is_slow_beyond_the_end_of_a_grant(self) -> None:
        """What it says comes too late: 401."""

        self.report("sum", "completed", b"7", bearer("writer"))
        tasks, clock = self.server.plumber.store.tasks, self.server.clock
        get = tasks.get
        slow = lambda *args: deferLater(clock, 10, get, *args)  # noqa: E731
        self.patch(tasks, "get", slow)
        client = self.send("GET", SUM, b"", bearer("brief"))
        self.server.advance(11)
        reply = self.heard(client)
        self.assertEqual((reply.status, told(reply)["error"]["code"]), (401, "expired"))

    def test_a_grant_that_is_revoked(self) -> None:
        """The held request is answered at once, and hears nothing of the end."""
        clients = [self.hold(), self.send("GET", f"{SUM}?wait=20", b"", bearer("reader"))]
        reply = self.ask("POST", "/revocations", b'{"sub": "starter"}', bearer("admin"))
        self.assertEqual(reply.status, 201)
        self.server.settle()
        reply = self.heard(clients[0])
        self.assertEqual((reply.status, told(reply)["error"]["code"]), (401, "revoked"))
        self.assertEqual((clients[1].received(), self.subscribers), (b"", 1))
        self.report("sum", "completed", b"7", bearer("writer"))
        self.assertEqual(clients[0].received(), b"")
        self.assertEqual(told(self.heard(clients[1]))["result"], 7)
        self.assertEqual(self.status("PUT", SUM, "starter"), 401)

    def test_a_stop(self) -> None:
        """Those who are held are answered, and can come back to another instance."""
        put, get = self.hold(), self.send("GET", f"{SUM}?wait=20", b"", bearer("reader"))
        stopped = self.server.stop()
        replies = [self.heard(client) for client in (put, get)]
        self.assertEqual([reply.status for reply in replies], [202, 200])
        self.assertEqual([told(reply)["done"] for reply in replies], [False, False])
        self.assertEqual(header(replies[0], "Location"), SUM)
        self.server.advance(20)
        self.successResultOf(stopped)

    def test_a_client_that_ends_its_direction(self) -> None:
        """It may have left: what it has begun goes on, and nothing is held for it."""
        if self.make_server is MountedServer:
            return  # there, twisted.web ends the connection
        client = self.hold()
        self.assertEqual(self.subscribers, 1)
        client.protocol.readConnectionLost()
        self.server.settle()
        self.assertEqual(self.subscribers, 0)
        tasks, clock = self.server.plumber.store.tasks, self.server.clock
        get = tasks.get
        self.patch(tasks, "get", lambda *args: deferLater(clock, 1, get, *args))
        client = self.send("GET", SUM, b"", bearer("reader"))
        head = "PUT /tasks/42/next HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer starter\r\n"
        client.send(f"{head}Content-Length: 1\r\n\r\n1".encode())
        client.protocol.readConnectionLost()
        self.server.advance(2)
        replies = parse_responses(client.received())
        self.assertEqual([reply.status for reply in replies], [200, 202])
        self.assertEqual(self.subscribers, 0)


class MountedAccessTests(AccessTests):
    """The same in a site of another application."""

    make_server = MountedServer


class MountedLaterAccessTests(LaterAccessTests):
    """The same in a site of another application."""

    make_server = MountedServer


class MountedEndingTests(EndingTests):
    """The same in a site of another application."""

    make_server = MountedServer


class LimitTests(GrantedCase):
    """Limits at their edges."""

    limits = NO_LIMITS._replace(
        streams_per_subject=2,
        posts_per_subject=Rate(5, 1),
        posted_bytes_per_subject=Rate(1000, 1000),
        polls_per_address=Rate(4, 1),
    )

    def setUp(self) -> None:
        super().setUp()
        self.server.client_address = IPv4Address("TCP", "203.0.113.5", 50000)

    def test_a_held_request_is_a_stream_of_its_subject(self) -> None:
        """The next one is refused until one of them ends."""
        held = [self.send("PUT", SUM, b"1", bearer("starter")) for _ in range(2)]
        reply = self.ask("PUT", SUM, b"1", bearer("starter"))
        self.assertEqual((reply.status, header(reply, "Retry-After")), (429, "5"))
        self.assertEqual(header(reply, "Content-Type"), "application/problem+json")
        self.assertEqual(self.status("PUT", SUM, "starter"), 202)  # it is not held
        held[0].disconnect()
        self.server.settle()
        self.server.advance(1)
        last = self.send("PUT", SUM, b"1", bearer("starter"))
        self.assertEqual(last.received(), b"")
        self.report("sum", "completed", b"7", bearer("writer"))
        self.assertEqual(self.heard(last).status, 200)

    def test_a_start_is_a_post(self) -> None:
        """Starts and cancels count against the rate of POSTs, and their bytes as well."""
        statuses = [self.status("PUT", SUM, "starter") for _ in range(6)]
        self.assertEqual(statuses, [202] * 5 + [429])
        self.server.advance(1)
        self.assertEqual(self.status("POST", f"{SUM}/cancel", "starter"), 202)
        self.assertEqual(self.status("PUT", SUM, "starter"), 429)
        self.server.advance(10)
        lines = (bearer("starter"), ("Prefer", "respond-async"))
        self.assertEqual(self.ask("PUT", "/tasks/42/large", b"x" * 2000, *lines).status, 202)
        self.assertEqual(self.ask("PUT", "/tasks/42/more", b"x", *lines).status, 429)

    def test_a_look_is_a_poll(self) -> None:
        """Of its address."""
        statuses = [self.status("GET", "/tasks/42", "reader") for _ in range(5)]
        self.assertEqual(statuses, [200] * 4 + [429])

    def test_room_for_subscribers(self) -> None:
        """A start that cannot be held is not begun."""
        more = {**self.options()["plumber"], "subscriber_limit": 1}
        self.server = self.make_server(plumber=more)
        self.send("PUT", SUM, b"1", bearer("starter"))
        reply = self.ask("PUT", "/tasks/42/next", b"1", bearer("starter"))
        self.assertEqual((reply.status, header(reply, "Retry-After")), (429, "5"))
        self.assertEqual([each.task for each in self.starter.dispatched], ["sum"])


class MountedLimitTests(LimitTests):
    """The same in a site of another application."""

    make_server = MountedServer


class PageTests(TaskCase):
    """Pages of other origins."""

    origin = ("Origin", "https://app.example")

    def options(self) -> dict[str, Any]:
        """Return the arguments of the server."""
        return {"plumber": {"starter": self.starter, "origins": ["https://app.example"]}}

    def test_a_preflight(self) -> None:
        """PUT, and the headers of tasks."""
        asked = "prefer, content-type, task, task-run, task-state, task-deadline, idempotency-key"
        for method, path in (("PUT", SUM), ("POST", "/hooks/42"), ("POST", f"{SUM}/cancel")):
            lines = (
                self.origin,
                ("Access-Control-Request-Method", method),
                ("Access-Control-Request-Headers", asked),
            )
            reply = self.ask("OPTIONS", path, b"", *lines)
            self.assertEqual(reply.status, 200)
            self.assertIn(method, header(reply, "Access-Control-Allow-Methods") or "")
            self.assertEqual(header(reply, "Access-Control-Allow-Headers"), asked)

    def test_what_a_page_can_read(self) -> None:
        """All headers of a response, also of a refusal."""
        self.starter.answer = Finished("text/plain", b"seven")
        for line in (self.origin, ("Prefer", "wait=x")):
            reply = self.ask("PUT", SUM, b"1", line)
            self.assertEqual(reply.status, 200)
        reply = self.ask("GET", f"{SUM}x", b"", self.origin)
        self.assertEqual(reply.status, 404)
        reply = self.ask("PUT", SUM, b"1", self.origin)
        exposed = (header(reply, "Access-Control-Expose-Headers") or "").lower().split(", ")
        for name in ("location", "task-state", "task-run", "task-joined", "preference-applied"):
            self.assertIn(name, exposed)
        self.assertEqual(header(reply, "Access-Control-Allow-Origin"), self.origin[1])

    def test_a_foreign_page_starts_nothing(self) -> None:
        """Nor does a form on one, whose request has no Origin."""
        for line in (
            ("Origin", "https://evil.example"),
            ("Origin", "null"),
            ("Sec-Fetch-Site", "cross-site"),
        ):
            for method, path in (("PUT", SUM), ("POST", "/tasks/42"), ("POST", f"{SUM}/cancel")):
                self.assertEqual(self.ask(method, path, b"1", line).status, 403, (line, path))
        self.assertEqual(self.starter.dispatched, [])


class MountedPageTests(PageTests):
    """The same in a site of another application."""

    make_server = MountedServer
