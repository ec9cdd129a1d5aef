"""What is revoked, how instances learn of it, and what becomes of those who are connected."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.revocations import (
    POLL_INTERVAL,
    RELOAD_INTERVAL,
    START_TIMEOUT,
    RevocationPoll,
    RevokedGrants,
)
from asyncplumber.errors import InvalidToken, PlumberError, Unavailable
from asyncplumber.grant import ALL_ACCOUNTS, OPEN, Accounts, Grant
from asyncplumber.interfaces import Revocation, RevocationKind
from asyncplumber.relays.memory import MemoryNetwork
from asyncplumber.stores.memory import MemoryStore
from asyncplumber.stores.memory_revocations import MemoryRevocations
from asyncplumber.stores.retention import Retention
from asyncplumber.testing import NOW, ClientResponse, MemoryServer, parse_responses
from harness.authority import FakeAuthority
from harness.frames import CLOSE, close_code, handshake_request, server_frames
from harness.http_text import error_code
from harness.memory_subscribers import dechunked, parse_event_stream
from harness.mounted import MountedServer

JTI, SUB, ACCOUNT = RevocationKind.JTI, RevocationKind.SUB, RevocationKind.ACCOUNT
LATER = NOW + 86400


class RulesTests(SynchronousTestCase):
    """Which grants a revocation covers."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = NOW
        self.revoked = RevokedGrants(self.clock.seconds)

    def covered(self, row: Revocation, account: str | None = "a", **fields: Any) -> bool:
        """Whether this row covers a grant with these fields."""
        self.revoked.replace([row])
        return self.revoked.covers(
            Grant(**{"subject": "s", "subscribe": ALL_ACCOUNTS, "mechanism": "jwt", **fields}),
            account,
        )

    def test_a_token_is_revoked_by_its_id(self) -> None:
        """Whenever it was issued, and whatever it is used for.  A grant may have no id."""
        row = Revocation(JTI, "j", None, LATER)
        for issued in (None, NOW - 5, NOW + 5):
            self.assertTrue(self.covered(row, id="j", issued=issued))
        self.assertTrue(self.covered(row, None, id="j"))
        for id in ("k", None):
            self.assertFalse(self.covered(row, id=id))
        self.assertFalse(self.covered(row, subject="j"))

    def test_a_subject_is_revoked_up_to_a_time(self) -> None:
        """What was issued later counts, and not what has no time of issue: nobody can know."""
        row = Revocation(SUB, "s", NOW, LATER)
        for issued, expected in ((NOW - 1, True), (NOW, True), (NOW + 0.5, False), (None, True)):
            self.assertEqual(self.covered(row, issued=issued), expected, issued)
            self.assertEqual(self.covered(row, None, issued=issued), expected, issued)
            self.assertFalse(self.covered(row, subject="t", issued=issued))
        for mechanism in ("key", "call-out", "sender", "ticket"):
            self.assertTrue(self.covered(row, mechanism=mechanism), mechanism)

    def test_nobody_in_particular_is_no_subject(self) -> None:
        """A row of an empty subject, if there could be one, covers nobody."""
        self.assertFalse(self.covered(Revocation(SUB, "", NOW, LATER), subject=""))

    def test_an_account_is_revoked_up_to_a_time(self) -> None:
        """For this account, and not for others that the same grant has."""
        row = Revocation(ACCOUNT, "a", NOW, LATER)
        for issued, expected in ((NOW - 1, True), (NOW, True), (NOW + 0.5, False), (None, True)):
            self.assertEqual(self.covered(row, issued=issued), expected, issued)
            for account in ("b", None):
                self.assertFalse(self.covered(row, account, issued=issued))

    def test_the_rules_of_the_configuration_go_on(self) -> None:
        """Senders still reach an account whose readers were sent away."""
        row = Revocation(ACCOUNT, "a", NOW, LATER)
        for mechanism in ("key", "sender", "anonymous", "call-out", "none"):
            self.assertFalse(self.covered(row, mechanism=mechanism), mechanism)
            self.assertTrue(self.covered(row, mechanism=mechanism, issued=NOW - 1), mechanism)
        for mechanism in ("jwt", "cookie", "ticket"):
            self.assertTrue(self.covered(row, mechanism=mechanism), mechanism)

    def test_a_row_ends(self) -> None:
        """In the moment that it says, although nobody has looked at the store."""
        row = Revocation(JTI, "j", None, NOW + 10)
        self.assertTrue(self.covered(row, id="j"))
        self.assertEqual(len(self.revoked), 1)
        self.clock.advance(10)
        self.assertFalse(self.covered(row, id="j"))
        self.assertEqual(len(self.revoked), 0)

    def test_nothing_is_accepted_before_the_store_was_asked(self) -> None:
        """A grant that was revoked before the restart must not slip in."""
        with self.assertRaises(Unavailable):
            self.revoked.check(OPEN, "a")
        self.revoked.replace([])
        self.revoked.check(OPEN, "a")
        self.revoked.replace([Revocation(SUB, "s", NOW, LATER)])
        with self.assertRaises(InvalidToken) as caught:
            self.revoked.check(Grant("s"), None)
        self.assertEqual(
            (caught.exception.reason, caught.exception.code), ("revoked", "invalid-token")
        )


class CountingStore(MemoryRevocations):
    """Revocations that may be away, and count how often they are asked."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.error: PlumberError | None = None
        self.waits = False
        self.asked: list[str] = []

    def version(self) -> Deferred[int]:
        self.asked.append("version")
        if self.waits:
            return Deferred()
        return super().version() if self.error is None else fail(self.error)

    def revocations(self) -> Deferred[list[Revocation]]:
        self.asked.append("rows")
        return super().revocations() if self.error is None else fail(self.error)


class PollTests(SynchronousTestCase):
    """How an instance learns what others revoke."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = NOW
        self.store = CountingStore(self.clock)
        self.revoked = RevokedGrants(self.clock.seconds)
        self.changes: list[int] = []
        self.poll = RevocationPoll(
            self.store, self.revoked, self.clock, lambda: self.changes.append(len(self.revoked))
        )
        self.addCleanup(self.poll.stop)

    def begin(self) -> None:
        """Do what a plumber does at its start."""
        self.successResultOf(Deferred.fromCoroutine(self.poll.learn()))
        self.poll.start()

    def revoke(self, value: str) -> None:
        """Revoke a token, as another instance would."""
        self.successResultOf(self.store.revoke(Revocation(JTI, value, None, LATER)))

    def test_it_knows_everything_at_the_start(self) -> None:
        """Before the first request is answered."""
        self.revoke("j")
        self.begin()
        self.assertEqual((self.revoked.is_known, self.changes), (True, [1]))

    def test_it_asks_for_the_version_only_while_nothing_changes(self) -> None:
        """That is one small read every few seconds."""
        self.begin()
        self.store.asked.clear()
        self.clock.pump([POLL_INTERVAL] * 5)
        self.assertEqual(self.store.asked, ["version"] * 5)
        self.revoke("j")
        self.clock.advance(POLL_INTERVAL)
        self.assertEqual((self.store.asked[5:], self.changes), (["version", "rows"], [0, 1]))

    def test_it_asks_for_all_now_and_then(self) -> None:
        """The store may be a restored backup whose version is the one that is known."""
        self.begin()
        self.store.asked.clear()
        self.clock.pump([POLL_INTERVAL] * round(RELOAD_INTERVAL / POLL_INTERVAL))
        self.assertEqual(self.store.asked.count("rows"), 1)

    def test_what_is_known_stays_while_the_store_is_away(self) -> None:
        """The log says so, once in a minute; when the store is back, what is new is found."""
        self.revoke("j")
        self.begin()
        self.store.error = Unavailable()
        self.clock.pump([POLL_INTERVAL] * 15)
        self.assertEqual((len(self.revoked), round(self.poll.age)), (1, 45))
        self.revoke("k")
        self.store.error = None
        self.clock.advance(POLL_INTERVAL)
        self.assertEqual((len(self.revoked), self.poll.age), (2, 0))

    def test_a_start_waits_for_a_store_for_a_limited_time(self) -> None:
        """Then nothing is accepted until the store answers."""
        self.store.waits = True
        learned = Deferred.fromCoroutine(self.poll.learn())
        self.clock.advance(START_TIMEOUT / 2)
        self.assertNoResult(learned)
        self.clock.advance(START_TIMEOUT / 2)
        self.successResultOf(learned)
        self.assertEqual((self.revoked.is_known, self.poll.age), (False, 0))

    def test_a_store_that_is_away_is_no_end_of_a_start(self) -> None:
        """It is asked again every few seconds."""
        self.store.error = Unavailable()
        self.begin()
        self.assertFalse(self.revoked.is_known)
        self.store.error = None
        self.clock.advance(POLL_INTERVAL)
        self.assertTrue(self.revoked.is_known)

    def test_rows_that_have_ended_are_swept(self) -> None:
        """Nobody else does that."""
        self.begin()
        self.successResultOf(self.store.spend("t", NOW + 1))
        self.clock.advance(RELOAD_INTERVAL)
        self.assertTrue(self.successResultOf(self.store.spend("t", NOW + 99)))


GRANTS: dict[str, Grant | PlumberError] = {
    "one": Grant("s", ALL_ACCOUNTS, ALL_ACCOUNTS, issued=NOW - 60, id="j1", mechanism="jwt"),
    "two": Grant("s", ALL_ACCOUNTS, ALL_ACCOUNTS, issued=NOW - 50, id="j2", mechanism="jwt"),
    "new": Grant("s", ALL_ACCOUNTS, ALL_ACCOUNTS, issued=NOW + 60, id="j3", mechanism="jwt"),
    "undated": Grant("s", ALL_ACCOUNTS, ALL_ACCOUNTS, mechanism="jwt"),
    "other": Grant("t", ALL_ACCOUNTS, ALL_ACCOUNTS, issued=NOW - 60, mechanism="jwt"),
    "sender": Grant("celery", publish=ALL_ACCOUNTS, mechanism="key"),
    "admin": Grant("root", is_admin=True, mechanism="key"),
    "reader": Grant("r", subscribe=Accounts.parse(["a"])),
}


class RevocationCase(SynchronousTestCase):
    """Two instances on one store, each with an authority that knows some tokens."""

    make_server: type[MemoryServer] = MemoryServer

    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.clock.rightNow = NOW
        self.store = MemoryStore(Retention(), self.clock, shared=True)
        self.network = MemoryNetwork(self.clock)
        self.here, self.there = self.started(), self.started()

    def started(self) -> MemoryServer:
        """Start one more instance."""
        plumber = {"authority": FakeAuthority(dict(GRANTS)), "carrier": self.network.carrier}
        return self.make_server(store=self.store, clock=self.clock, plumber=plumber)

    def ask(
        self,
        method: str,
        path: str,
        token: str,
        body: Any = None,
        server: MemoryServer | None = None,
    ) -> ClientResponse:
        """The response to a request with this token."""
        data = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        headers = [("Authorization", f"Bearer {token}"), ("Content-Type", "application/json")]
        return (server or self.here).request(method, path, headers, data)

    def revoke(self, **members: Any) -> dict[str, Any]:
        """Revoke, and return the row."""
        reply = self.ask("POST", "/revocations", "admin", members)
        self.assertEqual(reply.status, 201, reply.body)
        row: dict[str, Any] = json.loads(reply.body)
        return row

    def may(self, token: str, server: MemoryServer | None = None, account: str = "a") -> bool:
        """Whether a POST with this token is taken, and a poll as well."""
        posted = self.ask("POST", f"/hooks/{account}", token, b"1", server)
        polled = self.ask("GET", f"/events/{account}?after=earliest", token, None, server)
        if posted.status == 401:
            self.assertEqual(error_code(posted), (401, "invalid-token"))
            self.assertEqual(error_code(polled), (401, "invalid-token"))
            return False
        self.assertEqual((posted.status // 100, polled.status), (2, 200))
        return True


class ConnectedTests(RevocationCase):
    """Those who are connected, at the instance where they are revoked and at another one."""

    def open(self, server: MemoryServer, path: str, token: str, *lines: str) -> Any:
        """A client that has asked for events."""
        client = server.connect()
        head = [f"GET {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {token}", *lines]
        client.send("\r\n".join([*head, "", ""]).encode())
        server.settle()
        return client

    def stream(self, server: MemoryServer, token: str, account: str = "a") -> Any:
        """A client of Server-Sent Events, which has read its head and ``plumber.open``."""
        client = self.open(server, f"/events/{account}", token, "Accept: text/event-stream")
        self.assertIn(b"plumber.open", client.received())
        return client

    def check_ended(self, client: Any) -> None:
        """The stream was told why it ended, and has ended."""
        stream = dechunked(client.received().removesuffix(b"0\r\n\r\n"))[0]
        (event,) = parse_event_stream(stream)
        self.assertEqual(
            json.loads(event["data"])["data"], {"reason": "revoked", "reconnect_after": 0}
        )
        self.assertIsNotNone(client.ended)

    def test_streams_end_everywhere(self) -> None:
        """Within five seconds, and at once where they are revoked; those of others go on."""
        clients = [self.stream(server, "one") for server in (self.here, self.there)]
        others = [self.stream(server, "other") for server in (self.here, self.there)]
        self.revoke(sub="s")
        self.here.advance(0)
        self.check_ended(clients[0])
        self.here.advance(5)
        self.check_ended(clients[1])
        self.assertEqual([client.received() for client in others], [b"", b""])

    def test_a_websocket_is_closed_with_a_code(self) -> None:
        """After a ``plumber.bye`` with the reason."""
        client = self.there.connect()
        client.send(handshake_request("/events/a", "Authorization: Bearer one"))
        self.there.settle()
        client.received()
        self.revoke(jti="j1")
        self.here.advance(5)
        (_, bye), (opcode, payload) = server_frames(client.received())
        self.assertEqual(
            (json.loads(bye)["type"], json.loads(bye)["data"]),
            ("plumber.bye", {"reason": "revoked", "reconnect_after": 0}),
        )
        self.assertEqual((opcode, close_code(payload), payload[2:]), (CLOSE, 4401, b"revoked"))

    def test_a_long_poll_is_refused(self) -> None:
        """It is given nothing any more."""
        client = self.open(self.there, "/events/a?wait=60", "one")
        self.assertEqual(client.received(), b"")
        self.revoke(account="a")
        self.here.advance(5)
        (response,) = parse_responses(client.received())
        self.assertEqual(error_code(response), (401, "revoked"))

    def test_an_account_is_closed_to_those_who_are_there(self) -> None:
        """Its streams end, and no others of the same grant."""
        gone, stays = self.stream(self.there, "one"), self.stream(self.there, "one", "b")
        self.revoke(account="a")
        self.here.advance(5)
        self.check_ended(gone)
        self.assertEqual(stays.received(), b"")

    def test_one_who_waits_for_its_channel_does_not_slip_through(self) -> None:
        """It was revoked between its request and its subscription."""
        hooks: Deferred[None] = Deferred()
        self.patch(self.there.plumber.leases, "register", lambda account: hooks)
        client = self.open(self.there, "/events/new", "one", "Accept: text/event-stream")
        self.assertEqual(client.received(), b"")
        self.revoke(sub="s")
        self.here.advance(5)
        hooks.callback(None)
        self.there.settle()
        self.assertEqual(error_code(parse_responses(client.received())[0]), (401, "invalid-token"))
        self.assertEqual(self.there.plumber.hub.subscribers, 0)


class MountedConnectedTests(ConnectedTests):
    """The same in a site of another application."""

    make_server = MountedServer


class RequestTests(RevocationCase):
    """Requests after a revocation."""

    def test_a_revoked_subject_is_refused_everywhere(self) -> None:
        """Also after a restart of both; what was issued later counts; and others do."""
        self.assertTrue(self.may("one"))
        self.revoke(sub="s", before=NOW)
        self.here.advance(5)
        for server in (self.here, self.there, self.started(), self.started()):
            self.assertFalse(self.may("one", server))
            self.assertFalse(self.may("undated", server))
            self.assertTrue(self.may("new", server))
            self.assertTrue(self.may("other", server))

    def test_a_revoked_token_is_refused(self) -> None:
        """Another token of the same subject is not."""
        self.revoke(jti="j1")
        self.assertFalse(self.may("one"))
        self.assertTrue(self.may("two"))

    def test_a_revoked_account_is_refused(self) -> None:
        """To those whose tokens are older, and not to senders with a key."""
        self.revoke(account="a")
        self.assertFalse(self.may("one"))
        self.assertTrue(self.may("one", account="b"))
        self.assertTrue(self.may("new"))
        self.assertEqual(self.ask("POST", "/hooks/a", "sender", b"1").status, 202)
        body = {"keys": {"account_id": "a"}, "data": 1}
        refusal = self.ask("POST", "/hooks", "one", body)
        self.assertEqual(error_code(refusal), (401, "invalid-token"))
        self.assertEqual(self.ask("POST", "/hooks", "new", body).status, 202)

    def test_a_revocation_ends(self) -> None:
        """At the time that was given; a day later if none was."""
        self.revoke(jti="j1", expires_at=NOW + 60)
        self.revoke(jti="j2")
        self.here.advance(61)
        self.assertTrue(self.may("one"))
        self.assertFalse(self.may("two"))
        self.clock.advance(86400)
        self.here.settle()
        self.assertTrue(self.may("two"))

    def test_an_instance_that_never_reached_its_store_accepts_nothing(self) -> None:
        """It does not know what is revoked."""
        self.patch(self.store.revocations, "version", lambda: fail(Unavailable()))
        server = self.started()
        self.assertEqual(self.ask("GET", "/accounts/a", "one", None, server).status, 503)


class MountedRequestTests(RequestTests):
    """The same in a site of another application."""

    make_server = MountedServer


class PageTests(RevocationCase):
    """``/revocations``."""

    def test_what_was_revoked_is_returned_and_listed(self) -> None:
        """With the defaults: until now, and for a day."""
        end = datetime.fromtimestamp(NOW + 300, UTC).isoformat()
        rows = [
            self.revoke(jti="j", expires_at=NOW + 500),
            self.revoke(sub="s", before="2026-01-01T00:00:00.5+01:00", expires_at=NOW + 400),
            self.revoke(account="a", expires_at=end),
        ]
        self.assertEqual(
            rows,
            [
                {"jti": "j", "expires_at": NOW + 500},
                {"sub": "s", "before": 1767222000.5, "expires_at": NOW + 400},
                {"account": "a", "before": NOW, "expires_at": NOW + 300},
            ],
        )
        reply = self.ask("GET", "/revocations", "admin", server=self.there)
        self.assertEqual(json.loads(reply.body), {"revocations": rows})
        self.assertEqual(reply.headers[b"cache-control"], b"no-store")
        self.assertEqual(self.revoke(sub="x")["expires_at"], NOW + 86400)

    def test_only_an_administrator_may(self) -> None:
        """Nobody else may look, either."""
        for method in ("GET", "POST"):
            for token, status in (("reader", 403), ("one", 403), ("unknown", 401)):
                reply = self.ask(method, "/revocations", token, {"sub": "t"})
                self.assertEqual(reply.status, status)
        self.assertTrue(self.may("other"))

    def test_what_is_not_understood_is_refused_with_a_reason(self) -> None:
        """And nothing is revoked."""
        for body, says in (
            (b"", "JSON object"),
            (b"[]", "JSON object"),
            (b"[" * 100_000, "JSON object"),
            (b"\xff", "JSON object"),
            ({}, "jti, sub and account"),
            ({"jti": "j", "sub": "s"}, "jti, sub and account"),
            ({"subject": "s"}, "'subject' is none"),
            ({"jti": 7}, "jti is"),
            ({"sub": ""}, "sub is"),
            ({"sub": "a\nb"}, "sub is"),
            ({"account": "x" * 257}, "account is"),
            ({"jti": "j", "before": 1}, "leave out before"),
            ({"sub": "s", "before": True}, "before is a number"),
            ({"sub": "s", "before": "yesterday"}, "before is a number"),
            ({"sub": "s", "before": "2026-01-01T00:00:00"}, "before is a number"),
            ({"sub": "s", "before": "0001-01-01T00:00:00+23:59"}, "before is"),
            ({"sub": "s", "before": None}, "before is a number"),
            ({"sub": "s", "before": -1}, "before is after"),
            ({"sub": "s", "before": NOW + 86401}, "before is after"),
            (b'{"sub":"s","before":NaN}', "before is a number"),
            (b'{"sub":"s","before":1e400}', "before is a number"),
            (b'{"sub":"s","before":1%s}' % (b"0" * 400), "before is a number"),
            (b'{"sub":"s","expires_at":NaN}', "expires_at is a number"),
            ({"sub": "s", "before": NOW * 1000}, "before is a number"),
            ({"sub": "s", "expires_at": NOW}, "in the future"),
            ({"sub": "s", "expires_at": NOW + 367 * 86400}, "in the future"),
        ):
            reply = self.ask("POST", "/revocations", "admin", body)
            self.assertEqual(error_code(reply), (400, "bad-request"), body)
            self.assertIn(says, json.loads(reply.body)["error"]["message"], body)
        self.assertEqual(self.successResultOf(self.store.revocations.revocations()), [])

    def test_there_is_a_limit(self) -> None:
        """Beyond it the answer is 429, and what is revoked stays so."""
        self.store.revocations.limit = 2
        for name in ("j1", "j2", "j1"):
            self.revoke(jti=name)
        reply = self.ask("POST", "/revocations", "admin", {"jti": "j3"})
        self.assertEqual(error_code(reply), (429, "too-many"))
        self.assertEqual([self.may(name) for name in ("one", "two", "new")], [False, False, True])

    def test_a_store_that_is_away_revokes_nothing(self) -> None:
        """The answer is 503: ask again."""
        self.patch(self.store.revocations, "revoke", lambda row: fail(Unavailable()))
        reply = self.ask("POST", "/revocations", "admin", {"sub": "s"})
        self.assertEqual(reply.status, 503)

    def test_a_store_that_goes_away_afterwards_has_revoked_it(self) -> None:
        """The next look finds it."""
        self.patch(self.store.revocations, "version", lambda: fail(Unavailable()))
        self.revoke(sub="s")
        self.assertEqual(len(self.successResultOf(self.store.revocations.revocations())), 1)

    def test_figures_tell_how_many_there_are(self) -> None:
        """And how long ago the store was asked."""
        self.revoke(sub="s")
        self.here.advance(2)
        text = self.ask("GET", "/metrics", "admin").body.decode()
        self.assertIn("asyncplumber_revocations 1.0\n", text)
        self.assertIn("asyncplumber_revocations_age_seconds 2.0\n", text)

    def test_without_authentication_there_is_nothing_to_revoke(self) -> None:
        """Nobody may revoke what others do not need."""
        server = self.make_server()
        for method, path in (
            ("POST", "/revocations"),
            ("GET", "/revocations"),
            ("POST", "/tickets"),
        ):
            self.assertEqual(server.request(method, path, [], b"{}").status, 404)


class MountedPageTests(PageTests):
    """The same in a site of another application."""

    make_server = MountedServer
