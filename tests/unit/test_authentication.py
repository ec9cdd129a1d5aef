"""What the gate does with credentials, on our own port and in a site of another application."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.errors import GrantRevoked, PlumberError, TooManyRequests, Unavailable
from asyncplumber.grant import Accounts, Grant
from asyncplumber.testing import ClientResponse, MemoryServer
from harness.authority import FakeAuthority
from harness.frames import CLOSE, close_code, handshake_request, server_frames
from harness.http_text import error_code
from harness.mounted import MountedServer

ONE = Accounts.parse(["a"])
GRANTS: dict[str, Grant | PlumberError] = {
    "reader": Grant("r", subscribe=ONE),
    "writer": Grant("w", publish=ONE),
    "admin": Grant("root", is_admin=True),
    "busy": TooManyRequests(retry_after=3),
    "away": Unavailable(),
}


class AuthenticationCase(SynchronousTestCase):
    """A server with an authority that knows a few tokens."""

    make_server: type[MemoryServer] = MemoryServer

    def setUp(self) -> None:
        self.authority = FakeAuthority(dict(GRANTS))
        self.server = self.make_server(
            plumber={"authority": self.authority, "origins": ["https://app.example"]}
        )

    def ask(
        self, method: str, path: str, token: str = "", *headers: tuple[str, str], body: bytes = b""
    ) -> ClientResponse:
        """The response to a request with this token."""
        credential = [("Authorization", f"Bearer {token}")] if token else []
        return self.server.request(method, path, [*credential, *headers], body)


class GateTests(AuthenticationCase):
    """Requests that are answered."""

    def test_what_is_no_secret_needs_no_credential(self) -> None:
        """Probes and static files."""
        for path in ("/healthz", "/readyz", "/asyncplumber.js", "/favicon.svg"):
            self.assertEqual(self.ask("GET", path).status, 200, path)
        self.assertEqual(self.authority.asked, [])

    def test_everything_else_needs_one(self) -> None:
        """Also paths at which there is nothing.  The challenge is that of RFC 6750."""
        for method, path in (
            ("POST", "/hooks/a"),
            ("POST", "/hooks"),
            ("GET", "/events/a?wait=0"),
            ("GET", "/accounts/a"),
            ("GET", "/metrics"),
            ("POST", "/instances/x/hooks/a"),
            ("GET", "/nothing"),
            ("GET", "/m%65trics"),
            ("DELETE", "/hooks/a"),
        ):
            bare = self.ask(method, path)
            self.assertEqual(error_code(bare), (401, "unauthenticated"), path)
            self.assertEqual(bare.headers[b"www-authenticate"], b'Bearer realm="asyncplumber"')
            bad = self.ask(method, path, "unknown")
            self.assertEqual(error_code(bad), (401, "invalid-token"), path)
            self.assertEqual(
                bad.headers[b"www-authenticate"],
                b'Bearer realm="asyncplumber", error="invalid_token"',
            )

    def test_instances_prove_themselves_by_their_signature(self) -> None:
        """The gate leaves that to what takes the request."""
        reply = self.ask("POST", "/instances/x/events", body=b"1")
        self.assertIn(reply.status, (403, 410))
        self.assertEqual(self.authority.asked, [])

    def test_a_grant_allows_what_it_says_and_no_more(self) -> None:
        """Whether or not the account exists, the refusal is the same."""
        self.assertEqual(self.ask("POST", "/hooks/a", "writer", body=b"1").status, 202)
        self.assertEqual(self.ask("GET", "/events/a?wait=0", "reader").status, 200)
        refusals = [
            self.ask("POST", "/hooks/a", "reader", body=b"1"),
            self.ask("GET", "/events/a?wait=0", "writer"),
            self.ask("POST", "/hooks/b", "writer", body=b"1"),
            self.ask("GET", "/events/b?wait=0", "reader"),
        ]
        for refusal in refusals:
            self.assertEqual(error_code(refusal), (403, "insufficient-scope"))
            self.assertEqual(refusal.body, refusals[0].body)
            self.assertIn(b'error="insufficient_scope"', refusal.headers[b"www-authenticate"])
        self.assertEqual(self.server.plumber.intake.accepted, 1)
        self.assertEqual(self.server.plumber.hub.accounts, ["a"])

    def test_the_account_may_be_in_the_body(self) -> None:
        """There the intake compares it with the grant."""
        own, other = (
            json.dumps({"keys": {"account_id": name}, "data": 1}).encode() for name in "ab"
        )
        content = ("Content-Type", "application/json")
        self.assertEqual(self.ask("POST", "/hooks", "writer", content, body=own).status, 202)
        refusal = self.ask("POST", "/hooks", "writer", content, body=other)
        self.assertEqual(error_code(refusal), (403, "insufficient-scope"))
        self.assertEqual(self.ask("POST", "/hooks", "reader", content, body=own).status, 403)
        self.assertEqual(self.server.plumber.intake.accepted, 1)

    def test_the_hook_in_the_registry_asks_for_the_same_right(self) -> None:
        """It is no way around the other one."""
        path = f"/instances/{self.server.plumber.leases.instance.id}/hooks/a"
        self.assertEqual(self.ask("POST", path, "reader", body=b"1").status, 403)
        self.assertEqual(self.ask("POST", path, "writer", body=b"1").status, 410)  # no subscriber

    def test_each_right_lets_an_account_be_looked_at(self) -> None:
        """Of that account alone."""
        for token in ("reader", "writer"):
            self.assertEqual(self.ask("GET", "/accounts/a", token).status, 200)
            self.assertEqual(self.ask("GET", "/accounts/b", token).status, 403)

    def test_figures_need_an_administrator(self) -> None:
        """With any other credential they are refused."""
        self.assertEqual(self.ask("GET", "/metrics", "admin").status, 200)
        self.assertEqual(self.ask("GET", "/metrics", "reader").status, 403)
        # No spelling of the path is a way around.
        for path in ("/m%65trics", "/metrics/", "/metrics;x", "/x/../metrics", "/metrics%00"):
            self.assertIn(self.ask("GET", path, "reader").status, (400, 404), path)

    def test_what_the_authority_says_is_the_answer(self) -> None:
        """Too many, or not now."""
        busy = self.ask("GET", "/events/a?wait=0", "busy")
        self.assertEqual((busy.status, busy.headers[b"retry-after"]), (429, b"3"))
        self.assertEqual(self.ask("GET", "/events/a?wait=0", "away").status, 503)

    def test_a_bug_in_an_authority_lets_nobody_in(self) -> None:
        """The client is told no more than that."""
        self.authority.grants = None  # type: ignore[assignment]
        self.assertEqual(self.ask("POST", "/hooks/a", "writer", body=b"1").status, 500)
        self.assertEqual(self.server.plumber.intake.accepted, 0)
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)

    def test_a_revoked_grant_is_refused(self) -> None:
        """The gate asks with each use of it."""
        asked: list[Any] = []

        def check(grant: Grant, account: str | None) -> None:
            asked.append((grant.subject, account))
            raise GrantRevoked

        self.server.plumber.gate.check_revoked = check
        self.assertEqual(error_code(self.ask("GET", "/events/a", "reader")), (401, "revoked"))
        self.assertEqual(asked, [("r", "a")])

    def test_a_page_can_read_the_refusal(self) -> None:
        """It needs the status to know that it needs a new token.  A preflight needs none."""
        origin = ("Origin", "https://app.example")
        refusal = self.ask("GET", "/events/a", "unknown", origin)
        self.assertEqual(refusal.headers[b"access-control-allow-origin"], b"https://app.example")
        large = self.ask("POST", "/hooks/a", "unknown", origin, body=b"1" * 100_000)
        self.assertEqual(large.status, 401)
        self.assertEqual(large.headers[b"access-control-allow-origin"], b"https://app.example")
        asked = ("Access-Control-Request-Method", "POST")
        self.assertEqual(self.ask("OPTIONS", "/hooks/a", "", origin, asked).status, 200)


class MountedGateTests(GateTests):
    """The same in a site of another application."""

    make_server = MountedServer


class BodyTests(AuthenticationCase):
    """A refused request on our own port."""

    def send(self, *lines: str) -> Any:
        """A client that has sent this head."""
        client = self.server.connect()
        client.send("\r\n".join([*lines, "Host: localhost", "", ""]).encode())
        return client

    def test_a_large_body_is_not_asked_for(self) -> None:
        """No ``100 Continue``: the client is refused, and the connection ends."""
        client = self.send(
            "POST /hooks/a HTTP/1.1", "Content-Length: 1048576", "Expect: 100-continue"
        )
        received = client.received()
        self.assertTrue(received.startswith(b"HTTP/1.1 401 "))
        self.assertIn(b"Connection: close", received)

    def test_a_body_without_a_length_is_not_read(self) -> None:
        """Nor one that is announced as large."""
        for line in ("Transfer-Encoding: chunked", "Content-Length: 16385"):
            client = self.send("POST /hooks/a HTTP/1.1", line)
            self.assertTrue(client.received().startswith(b"HTTP/1.1 401 "), line)

    def test_a_short_body_is_dropped(self) -> None:
        """The connection lives on: its next request may have a better credential."""
        client = self.send("POST /hooks/a HTTP/1.1", "Content-Length: 16384")
        self.assertEqual(client.received(), b"")
        client.send(b"1" * 16384)
        self.assertTrue(client.received().startswith(b"HTTP/1.1 401 "))
        client.send(
            b"POST /hooks/a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer writer\r\n"
            b"Content-Length: 1\r\n\r\n1"
        )
        self.assertTrue(client.received().startswith(b"HTTP/1.1 202 "))


class LaterTests(AuthenticationCase):
    """An authority that has to ask somebody."""

    def setUp(self) -> None:
        super().setUp()
        self.authority.later = True

    def send(self, method: str, path: str, token: str, body: str = "") -> Any:
        """A client that has sent this request."""
        client = self.server.connect()
        client.send(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        return client

    def test_a_request_waits_for_the_answer(self) -> None:
        """On the fast path, the full path and as a subscriber."""
        for method, path, token, status in (
            ("POST", "/hooks/a", "writer", 202),
            ("POST", "/hooks/a", "unknown", 401),
            ("POST", "/hooks/b", "writer", 403),
            ("GET", "/events/a?wait=0", "reader", 200),
            ("GET", "/events/a?wait=0", "writer", 403),
            ("GET", "/accounts/a", "reader", 200),
            ("GET", "/accounts/a", "unknown", 401),
            ("GET", "/accounts/a", "away", 503),
        ):
            client = self.send(method, path, token, "1" if method == "POST" else "")
            self.assertEqual(client.received(), b"", path)
            self.authority.answer()
            self.server.settle()
            self.assertTrue(
                client.received().startswith(b"HTTP/1.1 %d " % status), f"{path} {token}"
            )
            client.disconnect()

    def test_a_client_that_leaves_cancels_the_question(self) -> None:
        """Nothing is logged, and nothing is done."""
        for method, path in (("POST", "/hooks/a"), ("GET", "/events/a"), ("GET", "/accounts/a")):
            client = self.send(method, path, "writer", "1" if method == "POST" else "")
            client.disconnect()
            self.server.settle()
        self.assertEqual(self.authority.cancelled, 3)
        self.assertEqual(self.server.plumber.intake.accepted, 0)

    def test_a_failure_of_a_request_that_was_dropped_is_not_logged(self) -> None:
        """Its body was too large, and so nobody waits for the answer."""
        client = self.server.connect()
        client.send(
            b"POST /hooks/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        client.disconnect()
        self.authority.answer()
        self.assertEqual(self.flushLoggedErrors(), [])


class MountedLaterTests(LaterTests):
    """The same in a site of another application."""

    make_server = MountedServer


class RefusedWebSocketTests(AuthenticationCase):
    """A page sees no status of a handshake that fails; so it does not fail."""

    def handshake(self, token: str, *lines: str) -> Any:
        """A client that has sent a handshake."""
        client = self.server.connect()
        client.send(handshake_request("/events/a", f"Authorization: Bearer {token}", *lines))
        return client

    def test_a_close_code_says_why(self) -> None:
        """It is 4000 and the status; the reason is the error's code.  Then the connection ends."""
        for token, code, reason in (
            ("unknown", 4401, b"invalid-token"),
            ("writer", 4403, b"insufficient-scope"),
            ("busy", 4429, b"too-many"),
        ):
            client = self.handshake(
                token, "Origin: https://app.example", "Sec-WebSocket-Protocol: plumber.v1"
            )
            head, _, frames = client.received().partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 101 "))
            self.assertIn(b"Sec-WebSocket-Protocol: plumber.v1", head)
            # Where there is a Retry-After, plumber.bye comes first.
            opcode, payload = server_frames(frames)[-1]
            self.assertEqual((opcode, close_code(payload), payload[2:]), (CLOSE, code, reason))
            self.server.advance(5)
            self.assertIsNotNone(client.ended)
        self.assertEqual(self.server.plumber.hub.accounts, [])

    def test_a_program_gets_the_status(self) -> None:
        """It sends no Origin."""
        for token, status in (("unknown", 401), ("writer", 403), ("busy", 429)):
            self.assertTrue(
                self.handshake(token).received().startswith(b"HTTP/1.1 %d " % status), token
            )

    def test_a_page_of_a_foreign_origin_is_told_nothing(self) -> None:
        """Its handshake fails, whatever its credential."""
        for token in ("unknown", "reader"):
            client = self.handshake(token, "Origin: https://evil.example")
            self.assertTrue(client.received().startswith(b"HTTP/1.1 403 "))

    def test_what_has_no_code_is_a_failed_handshake(self) -> None:
        """503 means that the client should try again, as for any failure of the network."""
        client = self.handshake("away", "Origin: https://app.example")
        self.assertTrue(client.received().startswith(b"HTTP/1.1 503 "))


class MountedRefusedWebSocketTests(RefusedWebSocketTests):
    """The same in a site of another application."""

    make_server = MountedServer
