"""Where a credential may travel, which one decides, and what the authority does with it."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.authority import Authority, Parts
from asyncplumber.auth.credentials import (
    MAX_HEADER_TOKEN,
    MAX_PROTOCOL_TOKEN,
    SEVERAL,
    Credential,
    Kind,
    decode_base64url,
    find,
)
from asyncplumber.auth.keys import LONGEST_KEY, Keys, digest, parse_keys, publishers
from asyncplumber.errors import (
    BadRequest,
    InvalidToken,
    NotAllowed,
    PlumberError,
    Unauthenticated,
)
from asyncplumber.grant import ALL_ACCOUNTS, Action, Grant
from asyncplumber.interfaces import AwaitsBody, Facts, Verified

TOKEN = "abc.def.ghi"
KEY = "0123456789abcdef"


def facts(target: bytes = b"/events/a", action: Any = Action.SUBSCRIBE, **headers: Any) -> Facts:
    """Return a request; ``sec_fetch_site`` stands for ``sec-fetch-site``."""
    named = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return Facts(
        b"POST" if action is Action.PUBLISH else b"GET",
        target,
        named,
        action,
        "a",
        upgrade=b"upgrade" in named,
    )


def websocket(protocols: bytes, **headers: Any) -> Facts:
    return facts(upgrade=b"websocket", sec_websocket_protocol=protocols, **headers)


def encoded(token: str | bytes = TOKEN) -> bytes:
    data = token.encode() if isinstance(token, str) else token
    return b"plumber.bearer." + urlsafe_b64encode(data).rstrip(b"=")


class FindTests(SynchronousTestCase):
    """One credential, from the place with the highest rank."""

    def find(self, request: Facts, cookie: str | None = None, tickets: bool = True) -> Any:
        return find(request, cookie, tickets)

    def refused(self, request: Facts, cookie: str | None = None, tickets: bool = True) -> Any:
        """Return the error that a request is refused with."""
        return self.assertRaises(PlumberError, self.find, request, cookie, tickets)

    def test_there_may_be_none(self) -> None:
        """That is for the authority to judge."""
        self.assertIsNone(self.find(facts()))
        self.assertIsNone(self.find(websocket(b"plumber.v1")))
        self.assertIsNone(self.find(facts(b"/events/a?after=earliest", cookie=b"x=1"), "plumber"))

    def test_authorization(self) -> None:
        """The scheme in any case, and one space or more (RFC 9110, 11.1)."""
        for value in (b"Bearer abc.def.ghi", b"bearer abc.def.ghi", b"BEARER   abc.def.ghi"):
            self.assertEqual(
                self.find(facts(authorization=value)), Credential(Kind.BEARER, TOKEN), value
            )

    def test_another_scheme(self) -> None:
        """It is a credential, though none that is understood here."""
        for value in (b"Basic dXNlcjpwYXNz", b"Digest x=1", b"Bearertoken", b"", b"abc.def.ghi"):
            self.assertEqual(self.find(facts(authorization=value)).kind, Kind.OTHER, value)

    def test_two_authorization_headers(self) -> None:
        """The reader joins them by a comma."""
        for value in (b"Bearer a, Bearer b", b"Bearer a,Bearer b", b"Bearer a, Basic b"):
            self.assertEqual(self.refused(facts(authorization=value)).message, SEVERAL, value)

    def test_what_no_token_can_be(self) -> None:
        """A space in it, or bytes beyond ASCII."""
        for value in (b"Bearer a b", b"Bearer \xc3\xa9", b"Bearer a\x7f"):
            self.assertIsInstance(self.refused(facts(authorization=value)), InvalidToken, value)

    def test_the_longest_token_of_a_header(self) -> None:
        """At the limit and beyond."""
        longest = b"a" * MAX_HEADER_TOKEN
        self.assertEqual(
            len(self.find(facts(authorization=b"Bearer " + longest)).value), MAX_HEADER_TOKEN
        )
        error = self.refused(facts(authorization=b"Bearer a" + longest))
        self.assertEqual((error.status, error.reason), (401, "too long"))

    def test_a_subprotocol(self) -> None:
        """In any order, and also in two headers."""
        for protocols in (
            b"plumber.v1, " + encoded(),
            encoded() + b",plumber.v1",
            b"other , " + encoded() + b" , plumber.v1",
        ):
            self.assertEqual(self.find(websocket(protocols)), Credential(Kind.BEARER, TOKEN))

    def test_wrong_subprotocols(self) -> None:
        """Each is a request that cannot be understood."""
        for protocols in (
            encoded(),  # alone: the handshake has none to choose
            b"plumber.v1, " + encoded() + b", " + encoded(),
            b"plumber.v1, " + encoded() + b", " + encoded("other"),
            b"plumber.v1, plumber.bearer.",
            b"plumber.v1, plumber.bearer.a",  # no number of bytes has one character
            b"plumber.v1, plumber.bearer.YWI=",  # padding
            b"plumber.v1, plumber.bearer.YW+/",
            b"plumber.v1, plumber.bearer.YWK",  # bits that are left over: YWI is canonical
            b"plumber.v1, plumber.bearer.abc.def.ghi",  # a token that was not encoded
            b"plumber.v1, " + encoded(b"\xff\xfe"),
        ):
            error = self.refused(websocket(protocols))
            self.assertIsInstance(error, BadRequest, protocols)
            self.assertNotIn("YW", error.message)

    def test_the_longest_token_of_a_subprotocol(self) -> None:
        """4 KiB, which most proxies let pass."""
        longest = "a" * MAX_PROTOCOL_TOKEN
        found = self.find(websocket(b"plumber.v1, " + encoded(longest)))
        self.assertEqual(found.value, longest)
        self.assertEqual(
            self.refused(websocket(b"plumber.v1, " + encoded(longest + "a"))).reason, "too long"
        )

    def test_subprotocols_of_a_request_that_is_no_handshake(self) -> None:
        """They mean nothing."""
        self.assertIsNone(self.find(facts(sec_websocket_protocol=b"plumber.v1, " + encoded())))

    def test_a_token_in_the_url(self) -> None:
        """It is refused with a sentence that says where to put it, also beside a good one."""
        for target in (
            b"/events/a?access_token=" + TOKEN.encode(),
            b"/events/a?after=earliest&access_token=",
            b"/events/a?%61ccess_token=x",
        ):
            for headers in ({}, {"authorization": b"Bearer " + TOKEN.encode()}):
                error = self.refused(facts(target, **headers))
                self.assertIsInstance(error, BadRequest)
                self.assertIn("Authorization: Bearer", error.message)
                self.assertNotIn(TOKEN, error.message)
        self.assertEqual(
            self.refused(facts(b"/hooks/a?access_token=x", Action.PUBLISH)).status, 400
        )

    def test_a_ticket(self) -> None:
        """For subscribing, if there are tickets."""
        request = facts(b"/events/a?after=earliest&ticket=t.u.v")
        self.assertEqual(self.find(request), Credential(Kind.TICKET, "t.u.v"))
        self.assertEqual(self.refused(request, tickets=False).status, 401)
        for other in (
            facts(b"/hooks/a?ticket=t", Action.PUBLISH),
            facts(b"/tasks/a/x?ticket=t"),
            facts(b"/instances?ticket=t", None),
            facts(b"/events/a?ticket=t&ticket=u"),
        ):
            self.assertEqual(self.refused(other).status, 400)

    def test_two_of_them(self) -> None:
        """A request that is not sure who it is is refused."""
        bearer = b"Bearer " + TOKEN.encode()
        for request in (
            websocket(b"plumber.v1, " + encoded(), authorization=bearer),
            websocket(b"plumber.v1, " + encoded(), authorization=b"Basic dXNlcjpwYXNz"),
            facts(b"/events/a?ticket=t", authorization=bearer),
        ):
            error = self.refused(request)
            self.assertEqual((error.status, error.message), (400, SEVERAL))

    def test_a_credential_does_not_show_itself(self) -> None:
        """In a traceback, for example."""
        self.assertNotIn(TOKEN, repr(Credential(Kind.BEARER, TOKEN)))


class CookieTests(SynchronousTestCase):
    """A cookie, which a browser attaches by itself."""

    def find(self, **headers: Any) -> Any:
        return find(facts(**headers), "__Host-plumber", False)

    def test_of_a_page_that_is_allowed(self) -> None:
        """An Origin was checked by the gate; else the browser must say that the page is ours."""
        cookie = b'a=1; __Host-plumber="abc.def.ghi"; b=2'
        for headers in (
            {"origin": b"https://www.example.com"},
            {"sec_fetch_site": b"same-origin"},
            {"origin": b"https://www.example.com", "upgrade": b"websocket"},
        ):
            self.assertEqual(
                self.find(cookie=cookie, **headers), Credential(Kind.COOKIE, TOKEN), headers
            )

    def test_of_another_page(self) -> None:
        """An image, a link, a program: without Origin, nobody vouches for the page."""
        cookie = b"__Host-plumber=abc.def.ghi"
        for headers in (
            {},
            {"sec_fetch_site": b"cross-site"},
            {"sec_fetch_site": b"same-site"},
            {"sec_fetch_site": b"none"},
            {"upgrade": b"websocket"},
            {"upgrade": b"websocket", "sec_fetch_site": b"same-origin"},
        ):
            with self.assertRaises(NotAllowed):
                self.find(cookie=cookie, **headers)

    def test_it_counts_for_nothing_beside_another_credential(self) -> None:
        """That is no mistake of the client: the browser sends it always."""
        found = self.find(cookie=b"__Host-plumber=x", authorization=b"Bearer abc.def.ghi")
        self.assertEqual(found, Credential(Kind.BEARER, TOKEN))

    def test_it_never_publishes(self) -> None:
        """So no page can make its visitors publish."""
        request = facts(
            b"/hooks/a", Action.PUBLISH, cookie=b"__Host-plumber=x", origin=b"https://x.example"
        )
        self.assertIsNone(find(request, "__Host-plumber", False))

    def test_two_of_the_same_name(self) -> None:
        """Whose it is cannot be told."""
        with self.assertRaises(BadRequest):
            self.find(cookie=b"__Host-plumber=x; __Host-plumber=y", sec_fetch_site=b"same-origin")

    def test_another_cookie_cannot_contain_it(self) -> None:
        """A neighbouring domain may set any other cookie."""
        for cookie in (b"a=1,__Host-plumber=x", b"a=__Host-plumber=x", b"x__Host-plumber=x"):
            self.assertIsNone(self.find(cookie=cookie, sec_fetch_site=b"same-origin"))

    def test_the_longest(self) -> None:
        """As in a header."""
        value = b"__Host-plumber=" + b"a" * MAX_HEADER_TOKEN
        self.assertEqual(
            len(self.find(cookie=value, sec_fetch_site=b"same-origin").value), MAX_HEADER_TOKEN
        )
        with self.assertRaises(InvalidToken):
            self.find(cookie=value + b"a", sec_fetch_site=b"same-origin")


class Base64UrlTests(SynchronousTestCase):
    """One text for one value."""

    def test_each_length(self) -> None:
        """What is encoded comes back."""
        for length in range(1, 20):
            data = bytes(range(250 - length, 250))
            self.assertEqual(decode_base64url(urlsafe_b64encode(data).rstrip(b"=")), data)

    def test_other_forms(self) -> None:
        """Padding, the standard alphabet, line breaks, leftover bits, impossible lengths."""
        for text in (b"", b"YQ==", b"YR", b"YWJ", b"a", b"+/+/", b"YW\n", b"YW Jj", b"\xff\xff"):
            self.assertRaises(ValueError, decode_base64url, text)


class KeysTests(SynchronousTestCase):
    """`--publisher-key-file`."""

    def test_a_file(self) -> None:
        """One a line; empty lines and comments are left out."""
        text = f"# Celery\n{KEY}\n\n  {KEY}2  \r\n#{KEY}3\n"
        self.assertEqual(parse_keys(text.encode()), (KEY, f"{KEY}2"))

    def test_what_is_refused(self) -> None:
        """With the number of the line, and without the key."""
        self.assertRaisesRegex(ValueError, "no key", parse_keys, b"# nothing\n\n")
        for key in ("0123456789abcde", "0123456789 abcdef", "0123456789,abcdef", "a" * 15 + "é",
                    "a1b2c3d4" * 128 + "a", "change-me-change-me"):  # fmt: skip
            error = self.assertRaises(ValueError, parse_keys, f"{KEY}\n{key}".encode())
            self.assertIn("line 2", str(error))
            self.assertNotIn(key, str(error))
        self.assertEqual(len(parse_keys(b"a1b2c3d4" * (LONGEST_KEY // 8))), 1)

    def test_other_keys_from_now_on(self) -> None:
        """When the file has changed."""
        keys = Keys.of_publishers([KEY])
        keys.replace(publishers(["f" * 16]))
        self.assertIsNone(keys.grant(KEY))
        self.assertIsNotNone(keys.grant("f" * 16))

    def test_what_a_key_allows(self) -> None:
        """Publishing to all accounts, and nothing else."""
        grant = Keys.of_publishers([KEY, "f" * 16]).grant(KEY)
        assert grant is not None
        self.assertEqual(grant.publish, ALL_ACCOUNTS)
        self.assertFalse(grant.subscribe)
        self.assertFalse(grant.is_admin)
        self.assertEqual(grant.mechanism, "key")
        self.assertIsNone(grant.until)

    def test_its_subject_does_not_show_it(self) -> None:
        """And is the same in every process."""
        grant = Keys.of_publishers([KEY]).grant(KEY)
        assert grant is not None
        self.assertEqual(grant.subject, f"key:{digest(KEY).hex()[:8]}")

    def test_an_unknown_key(self) -> None:
        """Also one that begins like a known one."""
        keys = Keys.of_publishers([KEY])
        for key in ("", KEY[:-1], KEY + "0", KEY.upper(), "é" * 16):
            self.assertIsNone(keys.grant(key))


class FakeTokens:
    """Knows one token."""

    def __init__(self, later: bool = False) -> None:
        self.later = later
        self.asked: list[tuple[str, Action | None]] = []

    def grant(self, token: str, action: Action | None) -> Grant | Deferred[Grant]:
        self.asked.append((token, action))
        if token != TOKEN:
            raise InvalidToken("signature")
        grant = Grant("user", ALL_ACCOUNTS, mechanism="jwt")
        return succeed(grant) if self.later else grant


class FakeSenders:
    """Takes every POST for a signed one."""

    def find(self, facts: Facts) -> AwaitsBody | None:
        if facts.action is not Action.PUBLISH:
            return None
        return AwaitsBody(lambda body: Verified(Grant("ci", mechanism="sender"), {}))


class FakeCallOut:
    """Allows everything."""

    def __init__(self, *forwards: bytes) -> None:
        self.forwards = forwards

    def grant(self, facts: Facts) -> Grant | Deferred[Grant]:
        return Grant("app", ALL_ACCOUNTS, mechanism="call-out")


class FakeTickets:
    """Takes every ticket."""

    def grant(self, ticket: str, facts: Facts) -> Grant | Deferred[Grant]:
        return succeed(Grant(ticket, mechanism="ticket"))


BEARER = b"Bearer " + TOKEN.encode()
ANONYMOUS = Grant("", mechanism="anonymous")
ALL = Parts(
    tokens=FakeTokens(),
    keys=Keys.of_publishers([KEY]),
    tickets=FakeTickets(),
    senders=FakeSenders(),
    call_out=FakeCallOut(b"cookie"),
    anonymous=ANONYMOUS,
    cookie="plumber",
)


class AuthorityTests(SynchronousTestCase):
    """Which part judges."""

    def mechanism(self, parts: Parts, request: Facts) -> str:
        """Return by which mechanism the request is granted."""
        found: Any = Authority(parts).grant(request)
        if isinstance(found, Deferred):
            found = self.successResultOf(found)
        if isinstance(found, AwaitsBody):
            found = found.verify(b"").grant
        return str(found.mechanism)

    def refusal(self, parts: Parts, request: Facts) -> Any:
        return self.assertRaises(Unauthenticated, Authority(parts).grant, request)

    def test_each_credential_has_its_judge(self) -> None:
        """With all ways configured."""
        post = Action.PUBLISH
        for request, mechanism in (
            (facts(authorization=BEARER), "jwt"),
            (facts(b"/hooks/a", post, authorization=BEARER), "jwt"),
            (facts(b"/hooks/a", post, authorization=b"Bearer " + KEY.encode()), "key"),
            (facts(b"/events/a?ticket=x"), "ticket"),
            (facts(cookie=b"plumber=" + TOKEN.encode(), sec_fetch_site=b"same-origin"), "cookie"),
            (facts(b"/hooks/a", post), "sender"),
            (facts(b"/hooks/a", post, authorization=b"Basic x"), "sender"),
            (facts(), "call-out"),
            (facts(cookie=b"session=1"), "call-out"),
        ):
            self.assertEqual(self.mechanism(ALL, request), mechanism, request)

    def test_without_credential(self) -> None:
        """Anonymous, if that is configured; else a bare challenge."""
        parts = Parts(tokens=FakeTokens(), anonymous=ANONYMOUS)
        self.assertEqual(self.mechanism(parts, facts()), "anonymous")
        error = self.refusal(replace(parts, anonymous=None), facts())
        self.assertEqual(error.headers, ((b"WWW-Authenticate", b'Bearer realm="asyncplumber"'),))
        self.assertEqual(error.reason, "no credential")

    def test_a_bad_credential_is_never_anonymous(self) -> None:
        """Nor does it fall through to the application or to a cookie."""
        good = {"cookie": b"plumber=" + TOKEN.encode(), "sec_fetch_site": b"same-origin"}
        for request in (
            facts(authorization=b"Bearer x", **good),
            facts(b"/hooks/a", Action.PUBLISH, authorization=b"Bearer x"),
            facts(authorization=b"Bearer ", **good),
            facts(authorization=b"Bearer", **good),
            facts(authorization=b"Basic dXNlcjpwYXNz", **good),
            facts(cookie=b"plumber=x", sec_fetch_site=b"same-origin"),
            facts(cookie=b"plumber=", sec_fetch_site=b"same-origin"),
            websocket(b"plumber.v1, " + encoded("x"), **good),
        ):
            self.assertEqual(self.refusal(ALL, request).status, 401, request)

    def test_another_scheme_has_a_bare_challenge(self) -> None:
        """It is no bad token: there is none."""
        error = self.refusal(Parts(anonymous=ANONYMOUS), facts(authorization=b"Basic x"))
        self.assertNotIsInstance(error, InvalidToken)
        self.assertEqual(error.reason, "another scheme")

    def test_the_application_judges_what_it_sees(self) -> None:
        """Tokens and other schemes of its own, where the header is forwarded to it."""
        parts = Parts(call_out=FakeCallOut(b"authorization"), keys=Keys.of_publishers([KEY]))
        for value in (BEARER, b"Basic x"):
            self.assertEqual(self.mechanism(parts, facts(authorization=value)), "call-out")
        self.assertEqual(
            self.mechanism(parts, facts(authorization=b"Bearer " + KEY.encode())), "key"
        )
        blind = replace(parts, call_out=FakeCallOut(b"cookie"))
        for value in (BEARER, b"Basic x"):
            self.assertEqual(self.refusal(blind, facts(authorization=value)).status, 401)
        self.assertEqual(
            self.refusal(parts, websocket(b"plumber.v1, " + encoded())).reason,
            "unknown credential",
        )

    def test_where_nothing_reads_tokens(self) -> None:
        """A token is an unknown key."""
        parts = Parts(keys=Keys.of_publishers([KEY]), cookie="plumber")
        self.assertEqual(
            self.refusal(parts, facts(authorization=BEARER)).reason, "unknown credential"
        )

    def test_a_cookie_that_is_verified_later(self) -> None:
        """The grant says how it came."""
        parts = Parts(tokens=FakeTokens(later=True), cookie="plumber")
        request = facts(cookie=b"plumber=" + TOKEN.encode(), sec_fetch_site=b"same-origin")
        self.assertEqual(self.mechanism(parts, request), "cookie")

    def test_tokens_hear_what_is_wanted(self) -> None:
        """A stream needs a token with some life left."""
        tokens = FakeTokens()
        authority = Authority(Parts(tokens=tokens))
        authority.grant(facts(authorization=BEARER))
        authority.grant(facts(b"/hooks/a", Action.PUBLISH, authorization=BEARER))
        self.assertEqual(tokens.asked, [(TOKEN, Action.SUBSCRIBE), (TOKEN, Action.PUBLISH)])
