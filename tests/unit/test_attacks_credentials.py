"""Attacks on revocation, on keys that are fetched, on tickets, and on the question to the app."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.testing import MemoryReactorClock
from twisted.web.server import NOT_DONE_YET

from asyncplumber.errors import Unavailable
from asyncplumber.relays.memory import MemoryNetwork
from asyncplumber.stores.memory import MemoryStore
from asyncplumber.stores.retention import Retention
from asyncplumber.testing import NOW, ClientResponse, MemoryClient, MemoryServer
from harness.frames import CLOSE, close_code, server_frames
from harness.mounted import MountedServer
from tests.attackers import (
    ADMIN,
    IDP,
    JWKS_URL,
    AttackCase,
    b64,
    hs256,
    json_of,
    rsa_jwk,
    rsa_key,
)
from tests.unit import examples

CALL_OUT = "http://127.0.0.1:8000/plumber/auth"
STREAM = "Accept: text/event-stream"


class ClusterCase(AttackCase):
    """Two instances on one store."""

    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.clock.rightNow = NOW
        self.store = MemoryStore(Retention(), self.clock, shared=True)
        self.relaying = MemoryNetwork(self.clock)
        super().setUp()
        self.servers = [self.server, self.start_server()]

    def start_server(self, **options: Any) -> MemoryServer:
        """Return another instance on the store."""
        plumber = {"carrier": self.relaying.carrier}
        return super().start_server(
            **{"store": self.store, "clock": self.clock, "plumber": plumber, **options}
        )

    def at(self, number: int) -> None:
        """Let the next requests go to this instance."""
        self.server = self.servers[number]

    def is_closed(self, client: MemoryClient, code: int = 4401) -> bool:
        """Whether a WebSocket was closed with this code."""
        frames = server_frames(client.value().partition(b"\r\n\r\n")[2])
        return bool(frames) and frames[-1][0] == CLOSE and close_code(frames[-1][1]) == code


class RevocationAttacks(ClusterCase):
    """Row 18."""

    def test_18_a_revoked_subject(self) -> None:
        """It is sent away at every instance within 5 seconds, and stays so after a restart."""
        old = self.bearer(self.token())
        self.at(1)
        socket = self.handshake("user-42", old)
        stream = self.send("GET", "/events/user-42", STREAM, old)
        poll = self.send("GET", "/events/user-42?wait=120", old)
        other = self.handshake(
            "user-7", self.bearer(self.token(sub="user-7", plumber={"subscribe": ["user-7"]}))
        )
        self.at(0)
        body = json.dumps({"sub": "user-42", "before": int(NOW) + 1}).encode()
        for credential in ("", old):
            lines = [credential] if credential else []
            reply = self.ask("POST", "/revocations", *lines, body=body)
            self.assertIn(reply.status, (401, 403))
        self.assertEqual(
            self.ask("POST", "/revocations", self.bearer(ADMIN), body=body).status, 201
        )
        self.advance(5)
        self.assertTrue(self.is_closed(socket))
        self.assertIn(b'"revoked"', stream.value())
        self.assertIsNotNone(stream.ended)
        self.assertTrue(poll.value())
        self.assertIsNone(other.ended)
        for server in self.servers:
            stopped = server.stop()
            self.advance(10)
            self.successResultOf(stopped)
        self.servers = [self.start_server(), self.start_server()]
        for number in (0, 1):
            self.at(number)
            for token in (self.token(), self.token(iat=...), self.token(iat=int(NOW) + 1)):
                line = self.bearer(token)
                self.assertEqual(self.post("user-42", line).status, 401)
                self.assertEqual(self.statuses("user-42", line), [401] * 3)
            self.assertEqual(
                self.post("user-42", self.bearer(self.token(iat=int(NOW) + 2))).status, 202
            )

    def test_18_a_revoked_token_and_a_revoked_account(self) -> None:
        """Neither concerns anything else."""
        for row, token in (
            ({"jti": "t1"}, self.token(jti="t1")),
            ({"account": "user-42"}, self.token(jti="t2")),
        ):
            line = self.bearer(token)
            self.at(1)
            socket = self.handshake("user-42", line)
            self.at(0)
            made = self.ask(
                "POST", "/revocations", self.bearer(ADMIN), body=json.dumps(row).encode()
            )
            self.assertEqual(made.status, 201)
            self.advance(5)
            self.assertTrue(self.is_closed(socket), row)
            for number in (0, 1):
                self.at(number)
                self.assertEqual(self.statuses("user-42", line), [401] * 3)
            later = self.token(jti="t3", iat=int(self.now) + 1)
            self.assertEqual(self.statuses("user-42", self.bearer(later)), [101, 200, 200])


class MountedRevocationAttacks(RevocationAttacks):
    """The same in a site of another application."""

    make_server = MountedServer


class KeyAttacks(AttackCase):
    """Row 19: the keys of the IdP."""

    def setUp(self) -> None:
        super().setUp()
        self.publish(rsa_jwk(rsa_key("r1"), "r1"))
        self.minutes(15)

    def publish(self, *members: Any) -> None:
        """Let the IdP publish these keys, for a minute."""

        def respond(request: Any) -> bytes:
            request.setHeader(b"cache-control", b"max-age=60")
            return self.jwks(*members)

        self.network.published[JWKS_URL] = respond

    def minutes(self, count: int) -> None:
        """Let minutes pass, in steps that are long for a server and short for this."""
        for _ in range(4 * count):
            self.server.clock.advance(15)
            self.settle()

    def status(self, token: str) -> int:
        """Return what a POST with this token is answered with, perhaps some seconds later."""
        client = self.send("POST", "/hooks/user-42", self.bearer(token), body=b"1")
        if not client.value():
            self.advance(4)
        status = int(client.value().split(b" ", 2)[1])
        client.disconnect()
        return status

    def test_19_unknown_keys(self) -> None:
        """A thousand random ids lead to a fetch in 30 seconds."""
        asked = len(self.network.asked)
        for seconds in range(3):
            for number in range(examples(333)):
                header = {"alg": "RS256", "kid": f"random-{seconds}-{number}", "typ": "at+jwt"}
                token = self.signed(header, self.claims(iss=IDP), lambda _: b"x" * 256)
                self.assertEqual(self.status(token), 401)
            self.advance(10)
        # One of them is the refresh that was due anyway.
        self.assertLessEqual(len(self.network.asked) - asked, 2)
        self.good(self.idp_token(exp=int(self.now) + 60))

    def test_19_an_outage(self) -> None:
        """Tokens that are good stay good, and bad ones bad."""
        answers: tuple[tuple[int, Callable[[Any], Any]], ...] = (
            (10, lambda request: self.failing(request, 503)),
            (2, lambda request: self.failing(request, 302)),
            (1, lambda request: b"x" * 10 * 1024 * 1024),
            (2, lambda request: b"{"),
            (2, lambda request: b'{"keys": []}'),
            (2, lambda request: NOT_DONE_YET),
        )
        for minutes, answer in answers:
            self.network.published[JWKS_URL] = answer
            asked = len(self.network.asked)
            self.minutes(minutes)
            self.assertGreater(len(self.network.asked), asked)
            self.assertEqual(self.status(self.idp_token(exp=int(self.now) + 60)), 202)
            evil = self.idp_token(kid="evil", key="evil", exp=int(self.now) + 60)
            self.assertEqual(self.status(evil), 401)
        self.assertFalse(any(b"elsewhere" in request.uri for request in self.network.asked))

    @staticmethod
    def failing(request: Any, status: int) -> bytes:
        """Answer with a status, and another place to look."""
        request.setResponseCode(status)
        request.setHeader(b"location", f"{IDP}/elsewhere".encode())
        return b""

    def test_19_a_key_that_was_removed(self) -> None:
        """It verifies nothing after the next refresh, also no token that was good before."""
        token = self.idp_token(exp=int(self.now) + 7200)
        self.assertEqual(self.status(token), 202)
        self.publish(rsa_jwk(rsa_key("r2"), "r2"))
        self.minutes(2)
        self.assertEqual(self.status(token), 401)
        later = {"exp": int(self.now) + 60}
        self.assertEqual(self.status(self.idp_token(kid="r2", key="r2", **later)), 202)
        self.assertEqual(self.status(self.idp_token(kid="r1", key="r2", **later)), 401)

    def test_19_members_that_are_none(self) -> None:
        """They are left out alone; a secret that everybody can read is no key."""
        good = rsa_jwk(rsa_key("r2"), "r2")
        public = {"kty": "oct", "kid": "o1", "alg": "HS256", "k": b64(b"public" * 8)}
        self.publish(
            *({}, "x", 7, {"kty": "RSA"}, {**good, "kid": 7}, {**good, "n": "AQAB", "kid": "w"}),
            *({**good, "e": b64(b"\x03"), "kid": "e"}, public, {**good, "use": "enc", "kid": "u"}),
            good,
        )
        self.minutes(2)
        later = {"exp": int(self.now) + 60}
        self.assertEqual(self.status(self.idp_token(kid="r2", key="r2", **later)), 202)
        for kid in ("w", "e", "u"):
            self.assertEqual(self.status(self.idp_token(kid=kid, key="r2", **later)), 401)
        header = {"alg": "HS256", "kid": "o1", "typ": "at+jwt"}
        forged = self.signed(header, self.claims(iss=IDP, **later), hs256(b"public" * 8))
        self.assertEqual(self.status(forged), 401)


class MountedKeyAttacks(KeyAttacks):
    """The same in a site of another application."""

    make_server = MountedServer


class TicketAttacks(ClusterCase):
    """Row 20."""

    def ticket(self, account: str = "user-42", **members: str) -> str:
        """Return a new ticket."""
        body = json.dumps({"account": account, **members}).encode()
        reply = self.ask("POST", "/tickets", self.bearer(self.token()), body=body)
        self.assertEqual(reply.status, 201)
        ticket = str(json_of(reply)["ticket"])
        self.secret(ticket.rpartition(".")[2])
        self.given_out |= {ticket, ticket.rpartition(".")[2]}
        return self.secret(ticket)

    def use(self, ticket: str, account: str = "user-42", *lines: str) -> ClientResponse:
        """Poll with a ticket."""
        return self.ask("GET", f"/events/{account}?wait=0&ticket={ticket}", *lines)

    def test_20_a_ticket_counts_once(self) -> None:
        """Also if two instances get it at the same moment."""
        ticket = self.ticket()
        clients = []
        for server in self.servers:
            client = server.connect()
            target = f"/events/user-42?wait=0&ticket={ticket}"
            client.protocol.dataReceived(
                f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            )
            clients.append(client)
        self.settle()
        found = sorted(int(client.received().split(b" ", 2)[1]) for client in clients)
        self.assertEqual(found, [200, 401])
        self.assertEqual(self.use(ticket).status, 401)

    def test_20_a_ticket_is_for_little(self) -> None:
        """One account, thirty seconds, and nothing but reading."""
        late = self.ticket()
        self.advance(31)
        self.assertEqual(self.use(late).status, 401)
        ticket = self.ticket()
        self.assertEqual(self.use(ticket, "user-7").status, 403)
        self.assertEqual(self.post("user-42", self.bearer(ticket)).status, 401)
        self.assertEqual(self.statuses("user-42", self.bearer(ticket)), [401] * 3)
        reply = self.ask("POST", f"/hooks/user-42?ticket={ticket}", body=b"1")
        self.assertIn(reply.status, (400, 401))
        self.assertEqual(self.use(ticket, "user-42", self.bearer(self.token())).status, 400)
        for other in (ticket[:-1], f"{ticket}=", "x", "", "a.b.c", f"{ticket}&ticket={ticket}"):
            self.assertIn(self.use(other).status, (400, 401), other)
        self.assertEqual(self.use(self.token()).status, 401)  # a token is no ticket
        self.assertEqual(self.use(ticket).status, 200)  # it was not spent by any of these
        body = b'{"account": "user-7"}'
        reply = self.ask("POST", "/tickets", self.bearer(self.token()), body=body)
        self.assertEqual(reply.status, 403)
        self.assertEqual(self.ask("POST", "/tickets", body=body).status, 401)
        bound = self.ticket(origin="https://app.example.com")
        self.assertEqual(self.use(bound).status, 403)

    def test_20_a_ticket_lives_no_longer_than_its_token(self) -> None:
        """Nor does the stream that begins with it."""
        body = b'{"account": "user-42"}'
        token = self.bearer(self.token(exp=int(NOW) + 20))
        made = json_of(self.ask("POST", "/tickets", token, body=body))
        ticket = self.secret(made["ticket"])
        self.given_out.add(ticket)
        stream = self.send("GET", f"/events/user-42?ticket={ticket}", STREAM)
        self.assertIn(b"200 OK", stream.value())
        self.advance(21)
        self.assertIsNotNone(stream.ended)

    def test_20_the_store_is_down(self) -> None:
        """Nobody can say whether the ticket was spent."""
        ticket = self.ticket()
        self.break_store()
        self.assertEqual(self.use(ticket).status, 503)

    def break_store(self) -> None:
        """Let the store spend no more tickets."""

        def spend(jti: str, expires_at: float) -> Any:
            raise Unavailable

        self.patch(self.store.revocations, "spend", spend)


class MountedTicketAttacks(TicketAttacks):
    """The same in a site of another application."""

    make_server = MountedServer


class CallOutAttacks(AttackCase):
    """Row 21: the application decides by its cookie."""

    def toml(self) -> str:
        """Add the question to the application."""
        return f"""
            hosts = ["push.example.com"]
            [callout]
            url = "{CALL_OUT}"
            forward = ["cookie"]
            recheck = 10
            grace = 30
        """

    def setUp(self) -> None:
        super().setUp()
        self.cookie = f"Cookie: session={self.secret('s3cr3t-of-the-session')}"
        self.numbers = 0

    def answer(self, respond: Callable[[Any], Any] = lambda _: b"", status: int = 200) -> list[Any]:
        """Let the application answer so, and return the requests that it gets from now on."""
        requests: list[Any] = []

        def answered(request: Any) -> Any:
            requests.append(request)
            request.setResponseCode(status)
            request.setHeader(b"content-type", b"")
            return respond(request)

        self.network.published[CALL_OUT] = answered
        return requests

    def ask_as_new(self, *lines: str) -> ClientResponse:
        """Poll with a new cookie, for which no answer is remembered."""
        self.numbers += 1
        same = "Sec-Fetch-Site: same-origin"
        return self.ask("GET", "/events/a?wait=0", f"{self.cookie}{self.numbers}", same, *lines)

    def test_21_what_the_application_answers(self) -> None:
        """2xx, 401 and 403 are answers; for all others the client is to come again."""
        for status, expected in (
            *((200, 200), (204, 200), (401, 401), (403, 403)),
            *((302, 503), (304, 503), (404, 503), (500, 503), (511, 503)),
        ):
            self.answer(status=status)
            self.assertEqual(self.ask_as_new().status, expected, status)
        for body in (
            b"x" * 10 * 1024 * 1024,
            b'{"subscribe":"x"}',
            b"{",
            b"[]",
            b'{"expires_in":"1"}',
        ):
            self.answer(lambda _, body=body: body)
            self.assertEqual(self.ask_as_new().status, 503, body[:20])
        self.answer(lambda request: NOT_DONE_YET)
        client = self.send(
            "GET", "/events/a?wait=0", f"{self.cookie}x", "Sec-Fetch-Site: same-origin"
        )
        self.assertEqual(client.received(), b"")
        self.advance(3)
        self.assertTrue(client.received().startswith(b"HTTP/1.1 503 "))

    def test_21_many_equal_questions(self) -> None:
        """They are one question."""
        waiting: list[Any] = []

        def later(request: Any) -> Any:
            waiting.append(request)
            return NOT_DONE_YET

        self.answer(later)
        clients = [
            self.send("GET", "/events/a?wait=0", self.cookie, "Sec-Fetch-Site: same-origin")
            for _ in range(100)
        ]
        self.assertEqual(len(waiting), 1)
        waiting[0].finish()
        self.settle()
        for client in clients:
            self.assertTrue(client.received().startswith(b"HTTP/1.1 200 "))

    def test_21_headers_of_the_client(self) -> None:
        """None of them reaches the application under a name of ours."""
        requests = self.answer()
        self.server.client_address = IPv4Address("TCP", "203.0.113.5", 50000)
        self.ask_as_new(
            "X-Original-URI: /events/other",
            "X-Original-Method: OPTIONS",
            "X-Plumber-Account: other",
            "X-Plumber_Account: other",
            "X-Plumber-Action: publish",
            "X-Forwarded-For: 6.6.6.6",
            "X-Request-Id: theirs",
            "X-User: root",
        )
        (request,) = requests
        self.assertEqual(request.getHeader("x-original-uri"), "/events/a")
        self.assertEqual(request.getHeader("x-original-method"), "GET")
        self.assertEqual(request.getHeader("x-plumber-account"), "a")
        self.assertEqual(request.getHeader("x-plumber-action"), "subscribe")
        self.assertEqual(request.getHeader("x-forwarded-for"), "203.0.113.5")
        self.assertNotEqual(request.getHeader("x-request-id"), "theirs")
        for name in ("x-user", "x-plumber_account"):
            self.assertIsNone(request.getHeader(name))

    def test_21_an_application_that_changes_its_mind(self) -> None:
        """Open streams end at the next question; if it is away, they stay for a while."""
        self.answer()
        origin = "Origin: http://push.example.com"
        refused, kept = (
            self.handshake(account, self.cookie, origin) for account in ("refused", "kept")
        )

        def decide(request: Any) -> bytes:
            if request.getHeader("x-plumber-account") == "refused":
                request.setResponseCode(403)
            return b""

        self.answer(decide)
        self.advance(11)
        frames = server_frames(refused.value().partition(b"\r\n\r\n")[2])
        self.assertEqual((frames[-1][0], close_code(frames[-1][1])), (CLOSE, 4403))
        self.assertIsNone(kept.ended)
        self.answer(status=500)
        self.advance(20)
        self.assertEqual(self.ask_as_new().status, 503)
        self.assertIsNone(kept.ended)
        self.advance(30)
        frames = server_frames(kept.value().partition(b"\r\n\r\n")[2])
        self.assertEqual((frames[-1][0], close_code(frames[-1][1])), (CLOSE, 1013))


class MountedCallOutAttacks(CallOutAttacks):
    """The same in a site of another application."""

    make_server = MountedServer
