"""A configuration in use: what a new one replaces, and what goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from asyncplumber.auth.build import LiveConfiguration, Sources
from asyncplumber.auth.fetch import BODY_LIMIT, FetchFailed, Reply
from asyncplumber.auth.watched_file import INTERVAL
from asyncplumber.errors import InvalidToken, PlumberError, Unavailable
from asyncplumber.grant import Action, Grant
from asyncplumber.interfaces import Facts
from tests.unit.test_auth_config import P256, ConfigTestCase

NOW = 1_793_500_000.0
IDP = '[[issuer]]\niss = "idp"\njwks_url = "https://idp.example.com/certs"\n'
OTHER = IDP.replace('"idp"', '"other"').replace("idp.example", "other.example")
CALL_OUT = '[callout]\nurl = "http://127.0.0.1:8000/auth"\nrecheck = 5\n'
KEY = f'[[key]]\nname = "k"\nsha256 = "{"0" * 64}"\nadmin = true\n'


class LiveConfigurationTests(ConfigTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.asked: list[str] = []
        self.closed = 0
        self.answers: dict[str, Any] = {
            "https://idp.example.com/certs": Reply(200, {}, json.dumps({"keys": [P256]}).encode()),
            "https://other.example.com/certs": FetchFailed("connection", "refused"),
            "http://127.0.0.1:8000/auth": Reply(204, {}, b""),
        }

    def get(
        self,
        url: str,
        headers: Mapping[bytes, bytes],
        *,
        timeout: float,
        limit: int = BODY_LIMIT,
    ) -> Deferred[Reply]:
        self.asked.append(url)
        answer = self.answers[url]
        return fail(answer) if isinstance(answer, Exception) else succeed(answer)

    def close(self) -> Deferred[None]:
        self.closed += 1
        return succeed(None)

    def live(self, text: str) -> LiveConfiguration:
        sources = Sources(auth=self.write("auth.toml", text))
        live = LiveConfiguration(
            sources, sources.read(), self, self.clock, lambda: NOW + self.clock.seconds()
        )
        self.ended: list[PlumberError] = []
        live.end_by(self.end)
        live.start()
        self.addCleanup(live.stop)
        return live

    def end(self, matches: Any, error: PlumberError) -> None:
        if matches(self.grant, "a"):
            self.ended.append(error)

    def change(self, text: str) -> None:
        self.write("auth.toml", text)
        self.clock.advance(INTERVAL)

    def subscribe(self, live: LiveConfiguration) -> Grant:
        found = live.authority.grant(Facts(b"GET", b"/events/a", {}, Action.SUBSCRIBE, "a"))
        grant = self.successResultOf(found) if isinstance(found, Deferred) else found
        assert isinstance(grant, Grant)
        self.grant = grant
        return grant

    def test_it_is_ready_when_the_keys_of_all_issuers_are_there(self) -> None:
        """`/readyz` says no until then."""
        live = self.live(IDP + OTHER)
        self.assertRaises(Unavailable, live.check_ready)
        self.answers["https://other.example.com/certs"] = self.answers[
            "https://idp.example.com/certs"
        ]
        self.clock.advance(1)
        live.check_ready()

    def test_the_age_of_keys_is_a_metric(self) -> None:
        """NaN for keys that never came."""
        live = self.live(IDP + OTHER)
        self.clock.advance(7)
        figure = {metric.name: metric.figure() for metric in live.metrics()}["jwks_age_seconds"]
        self.assertEqual(figure.of("idp"), 7)
        self.assertTrue(math.isnan(figure.of("other")))

    def test_without_urls_there_is_no_such_metric(self) -> None:
        """The figures of the call-out are there, although none is configured: it may come."""
        names = {metric.name for metric in self.live(KEY).metrics()}
        self.assertEqual(
            names, {"auth_callout_seconds", "auth_callout_failures_total", "auth_callout_pending"}
        )

    def test_keys_that_were_fetched_stay_over_a_change(self) -> None:
        """Only those of a new issuer are fetched, and those of one that is gone no more."""
        live = self.live(IDP)
        self.change(IDP + KEY)
        self.assertEqual(self.asked, ["https://idp.example.com/certs"])
        live.check_ready()
        self.change(OTHER)
        self.assertEqual(set(self.asked[1:]), {"https://other.example.com/certs"})
        self.answers["https://other.example.com/certs"] = FetchFailed("timeout", "slow")
        self.clock.advance(86400)
        self.assertEqual(set(self.asked[1:]), {"https://other.example.com/certs"})
        self.assertRaises(Unavailable, live.check_ready)

    def test_a_mistake_changes_nothing(self) -> None:
        """It is logged once, and what was read before stays in use."""
        live = self.live(KEY)
        parts = live.authority.parts
        for text in ("[[key]]", "", "=", f'{KEY}[cookie]\nname = "__Host-x"'):
            self.change(text)
            self.assertIs(live.authority.parts, parts, text)
        self.change(KEY + CALL_OUT)
        self.assertIsNot(live.authority.parts, parts)

    def test_a_key_that_is_taken_out_counts_no_more(self) -> None:
        """From the next look at the file on."""
        live = self.live(KEY + CALL_OUT)
        self.assertIsNotNone(live.authority.parts.keys)
        self.change(CALL_OUT)
        self.assertIsNone(live.authority.parts.keys)

    def test_streams_are_asked_about_over_a_change(self) -> None:
        """By the call-out as it is then; without one, they end."""
        live = self.live(CALL_OUT)
        self.assertTrue(self.subscribe(live).allows(Action.SUBSCRIBE, "a"))
        self.change(CALL_OUT.replace("5", "3") + KEY)
        self.answers["http://127.0.0.1:8000/auth"] = Reply(403, {}, b"")
        for _ in range(3):
            self.clock.advance(1)
        self.assertEqual([error.status for error in self.ended], [403])
        self.answers["http://127.0.0.1:8000/auth"] = Reply(204, {}, b"")
        self.clock.advance(2)
        self.subscribe(live)
        self.change(KEY)
        self.clock.advance(1)
        self.assertEqual([error.status for error in self.ended], [403, 401])

    def test_a_token_of_an_unknown_issuer_asks_nobody(self) -> None:
        """No URL is ever made of a token."""
        live = self.live(IDP)
        token = b"Bearer eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJodHRwczovL2V2aWwifQ.AAAA"
        facts = Facts(b"GET", b"/events/a", {b"authorization": token}, Action.SUBSCRIBE, "a")
        self.assertRaises(InvalidToken, live.authority.grant, facts)
        self.assertEqual(self.asked, ["https://idp.example.com/certs"])

    def test_a_stop_ends_all(self) -> None:
        """Timers and connections; a start begins anew."""
        live = self.live(IDP + CALL_OUT)
        live.stop()
        self.assertEqual((self.clock.getDelayedCalls(), self.closed), ([], 1))
        live.start()
        self.assertEqual(self.asked.count("https://idp.example.com/certs"), 2)
