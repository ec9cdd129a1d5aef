"""Tickets: for one account, for a moment, and once."""

from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.authority import Authority, Parts
from asyncplumber.auth.tickets import KEY_LIFETIME, LIFETIME, SHORTEST_STREAM, Tickets
from asyncplumber.errors import InsufficientScope, InvalidToken, PlumberError, Unavailable
from asyncplumber.grant import ALL_ACCOUNTS, Accounts, Action, Grant
from asyncplumber.interfaces import Facts
from asyncplumber.relays.memory import MemoryNetwork
from asyncplumber.stores.memory import MemoryStore
from asyncplumber.stores.retention import Retention
from asyncplumber.testing import NOW, ClientResponse, MemoryServer
from harness.http_text import error_code
from harness.memory_subscribers import dechunked, parse_event_stream
from harness.mounted import MountedServer

TEAM = Accounts.parse(["a", "b"])


def facts(account: str = "a", **headers: str) -> Facts:
    """A request for events."""
    named = {name.encode(): value.encode() for name, value in headers.items()}
    return Facts(b"GET", b"/events/a", named, Action.SUBSCRIBE, account)


def decoded(part: str) -> dict[str, Any]:
    """The JSON of a part of a ticket."""
    value: dict[str, Any] = json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return value


class TicketCase(SynchronousTestCase):
    """Tickets of one instance."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = NOW
        self.store = MemoryStore(Retention(), self.clock)
        self.tickets = self.made()

    def made(self) -> Tickets:
        """Those of one more instance on the store."""
        return Tickets(self.store, self.store.revocations, self.clock, self.clock.seconds)

    def mint(self, grant: Grant, account: str = "a", origin: str | None = None) -> str:
        """A new ticket."""
        minting = Deferred.fromCoroutine(self.tickets.mint(grant, account, origin))
        return self.successResultOf(minting)[0]

    def refused(self, ticket: str, facts: Facts = facts(), error: type = InvalidToken) -> str:
        """The reason for which a ticket is refused."""
        failure = self.failureResultOf(self.tickets.grant(ticket, facts), error)
        return getattr(failure.value, "reason", "")


class MintTests(TicketCase):
    """What is in a ticket, and who gets one."""

    def test_a_ticket_allows_what_its_credential_allowed_for_one_account(self) -> None:
        """To subscribe, and nothing else; until the credential ends; with its names."""
        grant = Grant("s", TEAM, ALL_ACCOUNTS, NOW + 600, NOW - 5, "j", "jwt", is_admin=True)
        granted = self.successResultOf(self.tickets.grant(self.mint(grant), facts()))
        self.assertEqual(
            granted,
            Grant(
                "s",
                Accounts.parse(["a"]),
                until=NOW + 600,
                issued=NOW - 5,
                id="j",
                mechanism="ticket",
            ),
        )

    def test_it_is_typed(self) -> None:
        """So that it is never taken for a token."""
        header, claims, _ = self.mint(Grant("s", TEAM, mechanism="jwt")).split(".")
        self.assertEqual(decoded(header), {"typ": "plumber-ticket+jwt", "alg": "HS256"})
        self.assertEqual(
            {name: value for name, value in decoded(claims).items() if name != "jti"},
            {
                "exp": NOW + LIFETIME,
                "account": "a",
                "sub": "s",
                "until": None,
                "iat": None,
                "of": None,
                "origin": None,
            },
        )

    def test_the_ticket_of_a_key_is_as_old_as_itself(self) -> None:
        """So that an account can be revoked, and its readers come back with new tickets."""
        for mechanism in ("key", "call-out"):
            ticket = self.mint(Grant("s", TEAM, mechanism=mechanism))
            self.assertEqual(self.successResultOf(self.tickets.grant(ticket, facts())).issued, NOW)

    def test_no_ticket_for_what_the_credential_does_not_allow(self) -> None:
        """Publishing is not enough, and another account is another one."""
        for grant in (Grant("s", publish=ALL_ACCOUNTS), Grant("s", Accounts.parse(["b"]))):
            minting = Deferred.fromCoroutine(self.tickets.mint(grant, "a"))
            self.failureResultOf(minting, InsufficientScope)

    def test_a_ticket_does_not_outlive_its_credential(self) -> None:
        """Nor is there one if a stream would end at once."""
        for left, expected in ((600, LIFETIME), (20, 20 - SHORTEST_STREAM), (5.5, 0.5)):
            minting = Deferred.fromCoroutine(
                self.tickets.mint(Grant("s", TEAM, until=NOW + left), "a")
            )
            self.assertEqual(self.successResultOf(minting)[1], expected)
        for left in (5, 0, -20):
            minting = Deferred.fromCoroutine(
                self.tickets.mint(Grant("s", TEAM, until=NOW + left), "a")
            )
            self.failureResultOf(minting, InvalidToken)

    def test_no_two_tickets_are_the_same(self) -> None:
        """Each is spent on its own."""
        grant = Grant("s", TEAM)
        self.assertEqual(len({self.mint(grant) for _ in range(10)}), 10)


class UseTests(TicketCase):
    """Which tickets count."""

    def setUp(self) -> None:
        super().setUp()
        self.ticket = self.mint(Grant("s", TEAM))

    def test_a_ticket_is_spent_by_its_first_use(self) -> None:
        """At whichever instance."""
        self.successResultOf(self.made().grant(self.ticket, facts()))
        self.assertEqual(self.refused(self.ticket), "spent")

    def test_a_ticket_must_be_used_at_once(self) -> None:
        """Up to half a minute later."""
        self.clock.advance(LIFETIME)
        self.successResultOf(self.tickets.grant(self.ticket, facts()))
        late = self.mint(Grant("s", TEAM))
        self.clock.advance(LIFETIME + 0.1)
        self.assertEqual(self.refused(late), "expired")

    def test_a_spent_ticket_is_remembered_beyond_its_end(self) -> None:
        """The clock of an instance that sweeps may be ahead of that of one that accepts."""
        self.successResultOf(self.tickets.grant(self.ticket, facts()))
        self.clock.advance(120)
        self.successResultOf(self.store.revocations.sweep())
        self.clock.advance(-120)
        self.assertEqual(self.refused(self.ticket), "spent")

    def test_a_ticket_is_for_one_account(self) -> None:
        """A wrong use does not spend it."""
        self.refused(self.ticket, facts("b"), InsufficientScope)
        self.successResultOf(self.tickets.grant(self.ticket, facts()))

    def test_a_ticket_may_be_for_pages_of_one_origin(self) -> None:
        """Those of others are refused, and so is who has none."""
        ticket = self.mint(Grant("s", TEAM), origin="https://a.example")
        for headers in ({}, {"origin": "https://b.example"}, {"origin": "null"}):
            self.refused(ticket, facts(**headers), PlumberError)
        self.successResultOf(self.tickets.grant(ticket, facts(origin="https://a.example")))

    def test_what_was_not_signed_here_is_refused(self) -> None:
        """Each changed character; another header with a right signature; and what is no ticket."""
        header, claims, signature = self.ticket.split(".")
        other = urlsafe_b64encode(b'{"typ":"at+jwt","alg":"none"}').decode().rstrip("=")
        wrong = {**decoded(claims), "account": "z"}
        forged = urlsafe_b64encode(json.dumps(wrong).encode()).decode().rstrip("=")
        tickets = [
            f"{other}.{claims}.{signature}",
            f"{other}.{claims}.",
            f"{header}.{forged}.{signature}",
            f"{header}.{claims}.",
            f"{header}.{claims}.{signature}=",
            f"{header}.{claims}.{signature} ",
            f"{header}.{claims}.{signature[::-1]}",
        ]
        for ticket in tickets:
            self.assertEqual(self.refused(ticket), "signature", ticket)
        for ticket in ("", "x", "a.b", f"{self.ticket}.x", "ä.b.c", "\ud800.b.c", "." * 8000):
            self.assertEqual(self.refused(ticket), "malformed", ticket)
        self.successResultOf(self.tickets.grant(self.ticket, facts()))

    def test_the_secret_itself_does_not_sign(self) -> None:
        """It signs what instances send each other.  Tickets have a key of their own."""
        header, claims, _ = self.ticket.split(".")
        secret = self.successResultOf(self.store.secret())
        signature = hmac.digest(secret, f"{header}.{claims}".encode(), "sha256")
        forged = urlsafe_b64encode(signature).decode().rstrip("=")
        self.assertEqual(self.refused(f"{header}.{claims}.{forged}"), "signature")

    def test_a_new_database_has_another_key(self) -> None:
        """The store is asked for its secret again after a while."""
        self.patch(self.store, "_secret", b"another secret of another database")
        self.assertEqual(self.refused("a.b.c"), "signature")
        self.clock.advance(KEY_LIFETIME)
        self.mint(Grant("s", TEAM))
        again = self.mint(Grant("s", TEAM))
        self.successResultOf(self.made().grant(again, facts()))

    def test_no_store_no_ticket(self) -> None:
        """Whether the key is known or not; afterwards the ticket can still be used."""
        self.patch(self.store.revocations, "spend", lambda *args: fail(Unavailable()))
        self.refused(self.ticket, error=Unavailable)
        del self.store.revocations.spend  # type: ignore[attr-defined]
        new = self.made()
        self.patch(self.store, "secret", lambda: fail(Unavailable()))
        self.failureResultOf(new.grant(self.ticket, facts()), Unavailable)
        self.successResultOf(self.tickets.grant(self.ticket, facts()))


class FakeTokens:
    """Knows tokens by heart."""

    def __init__(self, grants: dict[str, Grant]) -> None:
        self._grants = grants

    def grant(self, token: str, action: Action | None) -> Grant:
        if token not in self._grants:
            raise InvalidToken("unknown")
        return self._grants[token]


class ServerTests(SynchronousTestCase):
    """``POST /tickets`` and ``?ticket=``, at two instances on one store."""

    make_server: type[MemoryServer] = MemoryServer

    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.clock.rightNow = NOW
        self.store = MemoryStore(Retention(), self.clock, shared=True)
        self.network = MemoryNetwork(self.clock)
        self.grants = {
            "reader": Grant("r", TEAM, until=NOW + 60, issued=NOW - 5, id="j", mechanism="jwt"),
            "writer": Grant("w", publish=ALL_ACCOUNTS, mechanism="key"),
            "admin": Grant("root", is_admin=True, mechanism="key"),
        }
        self.anonymous: Grant | None = None
        self.events: list[str] = []
        observer: Any = self._observe
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.here, self.there = self.started(), self.started()

    def _observe(self, event: Any) -> None:
        self.events.append(repr(event))

    def started(self) -> MemoryServer:
        """Start one more instance."""
        authority = Authority(Parts(tokens=FakeTokens(self.grants), anonymous=self.anonymous))
        plumber = {"authority": authority, "carrier": self.network.carrier}
        return self.make_server(store=self.store, clock=self.clock, plumber=plumber)

    def request(
        self, method: str, path: str, token: str = "", body: Any = None, server: Any = None
    ) -> ClientResponse:
        """The response to a request with this token."""
        headers = [("Authorization", f"Bearer {token}")] if token else []
        data = b"" if body is None else json.dumps(body).encode()
        reply: ClientResponse = (server or self.here).request(method, path, headers, data)
        return reply

    def ticket(self, account: str = "a", **members: Any) -> str:
        """A new ticket."""
        reply = self.request("POST", "/tickets", "reader", {"account": account, **members})
        self.assertEqual(reply.status, 201, reply.body)
        self.assertEqual(reply.headers[b"cache-control"], b"no-store")
        answer = json.loads(reply.body)
        self.assertEqual(answer["expires_in"], 30)
        ticket: str = answer["ticket"]
        return ticket

    def use(self, ticket: str, account: str = "a", server: Any = None) -> ClientResponse:
        """A poll with a ticket."""
        return self.request("GET", f"/events/{account}?wait=0&ticket={ticket}", server=server)

    def test_a_ticket_opens_one_stream(self) -> None:
        """Once.  The URL is not stored, and not told to other sites."""
        ticket = self.ticket()
        replies = [self.use(ticket, server=server) for server in (self.there, self.here)]
        self.assertEqual(replies[0].status, 200)
        self.assertEqual(error_code(replies[1]), (401, "invalid-token"))
        for reply in replies:
            self.assertEqual(reply.headers[b"cache-control"], b"no-store")
            self.assertEqual(reply.headers[b"referrer-policy"], b"no-referrer")

    def test_an_event_source_needs_nothing_else(self) -> None:
        """Its stream ends when the credential does that the ticket was made with."""
        client = self.here.connect()
        client.send(
            f"GET /events/a?ticket={self.ticket()} HTTP/1.1\r\nHost: localhost\r\n"
            "Accept: text/event-stream\r\n\r\n".encode()
        )
        self.here.settle()
        head, _, body = client.received().partition(b"\r\n\r\n")
        self.assertIn(b"\r\nReferrer-Policy: no-referrer", head)
        self.assertIn(b"\r\nCache-Control: no-store", head)
        (opened,) = parse_event_stream(dechunked(body)[0])
        self.assertEqual(json.loads(opened["data"])["data"], {"expires_in": 60})
        while client.ended is None:
            self.here.advance(0.25)
        self.assertTrue(NOW + 48 <= self.clock.seconds() <= NOW + 60.5)

    def test_a_ticket_ends(self) -> None:
        """After half a minute."""
        ticket = self.ticket()
        self.here.advance(31)
        self.assertEqual(error_code(self.use(ticket)), (401, "invalid-token"))

    def test_a_ticket_for_another_account_is_refused(self) -> None:
        """As any grant would be, and it is not spent."""
        ticket = self.ticket()
        self.assertEqual(error_code(self.use(ticket, "b")), (403, "insufficient-scope"))
        self.assertEqual(self.use(ticket).status, 200)

    def test_a_ticket_is_no_bearer_token(self) -> None:
        """And it is for ``GET /events`` only."""
        ticket = self.ticket()
        self.assertEqual(self.request("GET", "/events/a", ticket).status, 401)
        self.assertEqual(self.request("POST", f"/hooks/a?ticket={ticket}", body=1).status, 400)
        self.assertEqual(self.request("GET", f"/events/a?ticket={ticket}", "reader").status, 400)

    def test_a_ticket_is_revoked_with_its_credential(self) -> None:
        """By its id, its subject or the account."""
        for members in ({"jti": "j"}, {"sub": "r"}, {"account": "a"}):
            ticket = self.ticket()
            reply = self.request("POST", "/revocations", "admin", members)
            self.assertEqual(reply.status, 201)
            self.assertEqual(error_code(self.use(ticket)), (401, "invalid-token"))
            refusal = self.request("POST", "/tickets", "reader", {"account": "a"})
            self.assertEqual(error_code(refusal), (401, "invalid-token"))
            self.store = MemoryStore(Retention(), self.clock, shared=True)
            self.here = self.started()

    def test_a_store_that_is_away_spends_nothing(self) -> None:
        """The answer is 503."""
        ticket = self.ticket()
        self.patch(self.store.revocations, "spend", lambda *args: fail(Unavailable()))
        self.assertEqual(self.use(ticket).status, 503)

    def test_who_may_subscribe_gets_a_ticket(self) -> None:
        """Nobody else does."""
        for token, account, status in (
            ("reader", "b", 201),
            ("reader", "c", 403),
            ("writer", "a", 403),
            ("admin", "a", 403),
            ("unknown", "a", 401),
            ("", "a", 401),
        ):
            reply = self.request("POST", "/tickets", token, {"account": account})
            self.assertEqual(reply.status, status, (token, account))

    def test_who_shows_no_credential_gets_no_ticket(self) -> None:
        """An anonymous client needs none."""
        self.anonymous = Grant("", ALL_ACCOUNTS, mechanism="anonymous")
        server = self.started()
        reply = self.request("POST", "/tickets", "", {"account": "a"}, server)
        self.assertEqual(error_code(reply), (401, "unauthenticated"))

    def test_what_is_not_understood_is_refused_with_a_reason(self) -> None:
        """A wrong origin would make a ticket that nobody can use."""
        for body, says in (
            ([], "JSON object"),
            ({}, "account is"),
            ({"account": 7}, "account is"),
            ({"account": ""}, "an account is"),
            ({"account": "a", "for": 1}, "'for' is none"),
            ({"account": "a", "origin": "https://*.example.com"}, "origin is"),
            ({"account": "a", "origin": "*"}, "origin is"),
            ({"account": "a", "origin": 7}, "origin is"),
            ({"account": "a", "origin": "example.com/path"}, "origin is"),
        ):
            reply = self.request("POST", "/tickets", "reader", body)
            self.assertEqual(reply.status, 400, body)
            self.assertIn(says, json.loads(reply.body)["error"]["message"], body)

    def test_tickets_survive_another_configuration(self) -> None:
        """They are no part of it."""
        authority = self.here.plumber.gate.authority
        assert isinstance(authority, Authority)
        authority.parts = replace(authority.parts, tickets=None)
        self.assertEqual(self.use(self.ticket()).status, 200)

    def test_no_ticket_is_in_the_log(self) -> None:
        """Neither a good one nor a bad one."""
        ticket = self.ticket()
        for _ in range(2):
            self.use(ticket)
        self.use(ticket, "b")
        self.patch(self.store.revocations, "spend", lambda *args: fail(ValueError("a bug")))
        self.use(self.ticket())
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertNotIn(ticket[-20:], "".join(self.events))


class MountedServerTests(ServerTests):
    """The same in a site of another application."""

    make_server = MountedServer
