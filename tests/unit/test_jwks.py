"""The keys of an issuer by its URL: replaced as a whole, kept in an outage, fetched rarely."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.fetch import BODY_LIMIT, FetchFailed, Reply
from asyncplumber.auth.tokens.jwks import (
    INTERVAL,
    LIFETIME,
    LONGEST_LIFETIME,
    LONGEST_OUTAGE,
    MAX_KEYS,
    MAX_UNKNOWN,
    MAX_WAITING,
    REFRESH_AT,
    SHORTEST_LIFETIME,
    TIMEOUT,
    UNKNOWN_FOR,
    FetchedKeys,
    parse_set,
)
from asyncplumber.errors import Unavailable

URL = "https://idp.example.com/certs"


class Key(NamedTuple):
    kid: str | None
    alg: str


def load(member: Mapping[str, Any]) -> Key:
    if member.get("kty") != "RSA":
        raise ValueError("it is of no kind that is known")
    return Key(member.get("kid"), member.get("alg", "RS256"))


def key_set(*kids: str, **more: Any) -> bytes:
    return json.dumps({"keys": [{"kty": "RSA", "kid": kid, **more} for kid in kids]}).encode()


class Issuer:
    """Answers each fetch as told."""

    def __init__(self) -> None:
        self.fetches = 0
        self.answer: Any = None
        self.gives("r1")

    def gives(self, *kids: str, max_age: int | None = None) -> None:
        headers = {} if max_age is None else {b"cache-control": b"max-age=%d" % max_age}
        self.answer = Reply(200, headers, key_set(*kids))

    def is_down(self) -> None:
        self.answer = FetchFailed("connection", "refused")

    def get(
        self, url: str, headers: Mapping[bytes, bytes], *, timeout: float, limit: int = BODY_LIMIT
    ) -> Deferred[Reply]:
        assert (url, timeout, limit) == (URL, TIMEOUT, BODY_LIMIT)
        self.fetches += 1
        if isinstance(self.answer, Deferred):
            return self.answer
        return fail(self.answer) if isinstance(self.answer, Exception) else succeed(self.answer)


class FetchedKeysTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.issuer = Issuer()
        self.keys = FetchedKeys("https://idp.example.com", URL, self.issuer.get, self.clock, load)
        self.addCleanup(self.keys.stop)

    def ids(self, kid: str | None, alg: str = "RS256") -> list[str | None]:
        """Return the ids of the keys that are found, now."""
        found = self.keys.keys(kid, alg)
        keys = self.successResultOf(found) if isinstance(found, Deferred) else found
        return [key.kid for key in keys]

    def test_a_known_key_is_there_at_once(self) -> None:
        """No Deferred on the way of every request."""
        self.keys.start()
        self.assertEqual(self.keys.keys("r1", "RS256"), [Key("r1", "RS256")])
        self.assertEqual(self.issuer.fetches, 1)

    def test_a_key_has_one_algorithm(self) -> None:
        """A token that names another one finds no key, and no fetch looks for it."""
        self.keys.start()
        self.clock.advance(INTERVAL)
        self.assertEqual(self.keys.keys("r1", "HS256"), [])
        self.assertEqual(self.issuer.fetches, 1)

    def test_without_an_id_all_keys_of_the_algorithm_are_found(self) -> None:
        """The issuer may be changing from one to the next."""
        self.issuer.gives("r1", "r2")
        self.keys.start()
        self.assertEqual(self.ids(None), ["r1", "r2"])
        self.assertEqual(self.ids(None, "ES256"), [])

    def test_it_is_ready_when_there_is_a_set(self) -> None:
        """Before that, requests wait or are told to come again, and are not refused."""
        self.issuer.is_down()
        self.keys.start()
        self.assertFalse(self.keys.is_ready)
        self.assertIsNone(self.keys.age)
        error = self.assertRaises(Unavailable, self.keys.keys, "r1", "RS256")
        self.assertEqual(error.retry_after, INTERVAL)
        self.issuer.gives("r1")
        self.clock.advance(1)
        self.assertTrue(self.keys.is_ready)
        self.assertEqual(self.ids("r1"), ["r1"])

    def test_requests_wait_for_the_first_set(self) -> None:
        """All for the same fetch."""
        answer: Deferred[Reply] = Deferred()
        self.issuer.answer = answer
        self.keys.start()
        found = [self.keys.keys("r1", "RS256") for _ in range(3)]
        answer.callback(Reply(200, {}, key_set("r1")))
        for each in found:
            assert isinstance(each, Deferred)
            self.assertEqual(self.successResultOf(each), [Key("r1", "RS256")])
        self.assertEqual(self.issuer.fetches, 1)

    def test_requests_that_wait_are_told_when_there_is_none(self) -> None:
        """503 and not 401: the token may be good."""
        answer: Deferred[Reply] = Deferred()
        self.issuer.answer = answer
        self.keys.start()
        found = self.keys.keys("r1", "RS256")
        assert isinstance(found, Deferred)
        answer.errback(FetchFailed("timeout", "too slow"))
        self.failureResultOf(found, Unavailable)

    def test_one_that_waits_can_leave(self) -> None:
        """The others are answered all the same."""
        answer: Deferred[Reply] = Deferred()
        self.issuer.answer = answer
        self.keys.start()
        first, second = self.keys.keys("r1", "RS256"), self.keys.keys("r1", "RS256")
        assert isinstance(first, Deferred)
        assert isinstance(second, Deferred)
        first.addErrback(lambda _: None).cancel()
        answer.callback(Reply(200, {}, key_set("r1")))
        self.assertEqual(self.successResultOf(second), [Key("r1", "RS256")])

    def test_few_wait(self) -> None:
        """The first one beyond the limit is told at once to come again."""
        self.issuer.answer = Deferred()
        self.keys.start()
        waiting = [self.keys.keys("r1", "RS256") for _ in range(MAX_WAITING)]
        self.assertRaises(Unavailable, self.keys.keys, "r1", "RS256")
        self.keys.stop()
        for each in waiting:
            assert isinstance(each, Deferred)
            self.failureResultOf(each, Unavailable)

    def test_the_first_tries_come_quickly(self) -> None:
        """After 1, 2, 4 … seconds, and 30 at most."""
        self.issuer.is_down()
        self.keys.start()
        for delay in (1, 2, 4, 8, 16, INTERVAL, INTERVAL):
            before = self.issuer.fetches
            self.clock.advance(delay - 0.1)
            self.assertEqual(self.issuer.fetches, before)
            self.clock.advance(0.1)
            self.assertEqual(self.issuer.fetches, before + 1)

    def test_a_set_is_fetched_again_before_it_is_too_old(self) -> None:
        """How old it may be is said by the response, within limits."""
        for max_age, lifetime in (
            (None, LIFETIME),
            (0, SHORTEST_LIFETIME),
            (59, SHORTEST_LIFETIME),
            (61, 61),
            (86400, LONGEST_LIFETIME),
            (10**8, LONGEST_LIFETIME),
        ):
            issuer = Issuer()
            issuer.gives("r1", max_age=max_age)
            keys = FetchedKeys("idp", URL, issuer.get, self.clock, load)
            keys.start()
            self.clock.advance(REFRESH_AT * lifetime - 0.1)
            self.assertEqual(issuer.fetches, 1, max_age)
            self.clock.advance(0.2)
            self.assertEqual(issuer.fetches, 2, max_age)
            keys.stop()

    def test_a_new_set_replaces_the_old_one(self) -> None:
        """CVE-2025-22149: keys that were taken out stayed valid."""
        self.keys.start()
        self.assertEqual(self.keys.generation, 1)
        self.issuer.gives("r2")
        self.clock.advance(LIFETIME)
        self.assertEqual(self.keys.generation, 2)
        self.assertEqual((self.ids("r1"), self.ids("r2")), ([], ["r2"]))

    def test_the_same_set_again_changes_nothing(self) -> None:
        """What was derived from its keys stays valid."""
        self.keys.start()
        self.clock.advance(LIFETIME)
        self.assertEqual((self.issuer.fetches, self.keys.generation), (2, 1))
        self.assertEqual(self.keys.age, 0)

    def test_the_last_set_is_used_through_an_outage(self) -> None:
        """A day at most; then tokens are neither good nor bad."""
        self.keys.start()
        self.issuer.is_down()
        for _ in range(24):
            self.clock.advance(3600)
            self.assertEqual(self.ids("r1"), ["r1"])
        self.assertEqual(self.keys.age, LONGEST_OUTAGE)
        self.clock.advance(1)
        self.assertRaises(Unavailable, self.keys.keys, "r1", "RS256")
        self.issuer.gives("r1")
        self.clock.advance(INTERVAL)
        self.assertEqual(self.ids("r1"), ["r1"])

    def test_what_is_no_set_keeps_the_old_one(self) -> None:
        """Redirects, errors, nonsense, too much, and an empty set."""
        self.keys.start()
        for answer in (
            Reply(302, {b"location": b"https://evil.example/"}, key_set("r9")),
            Reply(500, {}, b""),
            Reply(204, {}, b""),
            Reply(200, {}, b"<html>"),
            Reply(200, {}, b"[" * 5000),
            Reply(200, {}, b"[]"),
            Reply(200, {}, b'{"keys": {}}'),
            Reply(200, {}, b'{"keys": []}'),
            Reply(200, {}, b"\xff"),
            Reply(200, {}, key_set(*map(str, range(MAX_KEYS + 1)))),
            FetchFailed("too-large", "the response is too long"),
        ):
            self.issuer.answer = answer
            before = self.issuer.fetches
            self.clock.advance(LIFETIME)
            self.assertGreater(self.issuer.fetches, before)
            self.assertEqual((self.ids("r1"), self.keys.generation), (["r1"], 1), answer)

    def test_an_unknown_key_is_looked_for(self) -> None:
        """The issuer may have a new one already."""
        self.keys.start()
        self.issuer.gives("r1", "r2")
        self.clock.advance(INTERVAL)
        self.assertEqual(self.ids("r2"), ["r2"])
        self.assertEqual(self.issuer.fetches, 2)

    def test_random_keys_lead_to_one_fetch_in_an_interval(self) -> None:
        """Each of them is unknown, and anybody can make them up."""
        self.keys.start()
        begin = self.clock.seconds()
        for number in range(1000):
            self.clock.advance(0.1)
            self.assertEqual(self.ids(f"random-{number}"), [])
        seconds = self.clock.seconds() - begin
        self.assertLessEqual(self.issuer.fetches, 1 + seconds / INTERVAL)
        self.assertGreater(self.issuer.fetches, 2)
        self.assertLessEqual(len(self.keys._unknown), MAX_UNKNOWN)

    def test_unknown_keys_at_the_same_time_share_a_fetch(self) -> None:
        """Those that ask while it is under way wait for it."""
        self.keys.start()
        self.clock.advance(INTERVAL)
        answer: Deferred[Reply] = Deferred()
        self.issuer.answer = answer
        found = [self.keys.keys(kid, "RS256") for kid in ("r2", "x", "r2")]
        answer.callback(Reply(200, {}, key_set("r2")))
        results = [self.successResultOf(each) for each in found if isinstance(each, Deferred)]
        self.assertEqual(results, [[Key("r2", "RS256")], [], [Key("r2", "RS256")]])
        self.assertEqual(self.issuer.fetches, 2)

    def test_a_key_that_was_not_found_is_not_looked_for_again(self) -> None:
        """Not for some minutes: one client with an old token would cause a fetch each 30 s."""
        self.keys.start()
        self.clock.advance(INTERVAL)
        self.ids("old")
        self.assertEqual(self.issuer.fetches, 2)
        self.clock.advance(UNKNOWN_FOR - 1)
        self.assertEqual(self.ids("old"), [])
        self.assertEqual(self.issuer.fetches, 2)
        self.clock.advance(1)
        self.assertEqual(self.ids("old"), [])
        self.assertEqual(self.issuer.fetches, 3)

    def test_a_key_is_not_unknown_because_of_an_outage(self) -> None:
        """It is looked for at the next opportunity."""
        self.keys.start()
        self.issuer.is_down()
        self.clock.advance(INTERVAL)
        self.assertEqual(self.ids("r2"), [])
        self.issuer.gives("r1", "r2")
        self.clock.advance(INTERVAL)
        self.assertEqual(self.ids("r2"), ["r2"])

    def test_a_stop_ends_all(self) -> None:
        """No timer is left, and none is made by a request that comes late."""
        self.keys.start()
        self.keys.start()
        self.keys.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(INTERVAL)
        self.assertEqual(self.ids("x"), [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_an_error_of_ours_is_logged_and_the_next_fetch_comes(self) -> None:
        """It does not end the fetching for good."""
        self.keys.start()
        self.issuer.answer = ZeroDivisionError()
        self.clock.advance(LIFETIME)
        self.assertGreaterEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.issuer.gives("r2")
        self.clock.advance(INTERVAL)
        self.assertEqual(self.ids("r2"), ["r2"])


class ParseSetTests(SynchronousTestCase):
    def parse(self, *members: Any) -> tuple[list[str | None], list[str]]:
        keys, left_out = parse_set(json.dumps({"keys": members}).encode(), load)
        return [key.kid for key in keys], left_out

    def test_a_member_that_cannot_be_used_is_left_out_alone(self) -> None:
        """CVE-2026-102274: one of them made the whole set invalid."""
        good = {"kty": "RSA", "kid": "good"}
        for bad in ({"kty": "AKP"}, {}, [], None, "RSA"):
            kids, left_out = self.parse(bad, good)
            self.assertEqual(kids, ["good"])
            self.assertEqual(len(left_out), 1)
            self.assertIn("key 1", left_out[0])

    def test_secrets_and_keys_for_other_uses_are_ignored(self) -> None:
        """A secret that everybody can fetch is none; a key for encryption verifies nothing."""
        kids, left_out = self.parse(
            {"kty": "oct", "kid": "secret", "k": "c2VjcmV0"},
            {"kty": "RSA", "kid": "enc", "use": "enc"},
            {"kty": "RSA", "kid": "wrap", "key_ops": ["wrapKey"]},
            {"kty": "RSA", "kid": "sig", "use": "sig", "key_ops": ["verify"]},
            {"kty": "RSA", "kid": "plain"},
        )
        self.assertEqual((kids, left_out), (["sig", "plain"], []))

    def test_a_set_may_have_so_many_keys(self) -> None:
        """And not one more."""
        self.assertEqual(len(parse_set(key_set(*map(str, range(MAX_KEYS))), load)[0]), MAX_KEYS)
        self.assertRaises(ValueError, parse_set, key_set(*map(str, range(MAX_KEYS + 1))), load)

    def test_a_failure_is_a_sentence(self) -> None:
        """For the log."""
        error = self.assertRaises(ValueError, parse_set, b'{"keys": [{"kty": "oct"}]}', load)
        self.assertIn("no key", str(error))
        self.assertNotIsInstance(error, Failure)
