"""The right to start and cancel tasks: who has it, by each way to authenticate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.authority import Authority, Parts
from asyncplumber.auth.call_out.call_out import AskedGrant, CallOut
from asyncplumber.auth.call_out.recheck import Recheck
from asyncplumber.auth.call_out.table import CallOutTable
from asyncplumber.auth.fetch import Reply
from asyncplumber.auth.keys import Keys, publisher
from asyncplumber.auth.revocations import RevokedGrants
from asyncplumber.auth.senders.senders import Sender
from asyncplumber.auth.tickets import Tickets
from asyncplumber.auth.tokens.mint import mint
from asyncplumber.auth.tokens.signing_keys import Secrets
from asyncplumber.auth.tokens.templates import Template
from asyncplumber.auth.tokens.verifier import Issuer
from asyncplumber.errors import InsufficientScope, InvalidToken
from asyncplumber.grant import ALL_ACCOUNTS, OPEN, OPERATOR, Accounts, Action, Grant
from asyncplumber.interfaces import Facts, Revocation, RevocationKind
from asyncplumber.stores.memory import MemoryStore
from asyncplumber.stores.retention import Retention
from harness.tokens import NOW, SECRET, claims, token
from tests.unit.test_auth_config import ConfigTestCase
from tests.unit.test_callout import CallOutTestCase
from tests.unit.test_tokens import RULES, VerifierTestCase

ORIGIN = {b"origin": b"http://127.0.0.1", b"sec-fetch-site": b"same-origin"}


def may_start(grant: Grant, account: str = "user-42") -> bool:
    return grant.allows(Action.START, account)


class TokenTests(VerifierTestCase):
    """The claim has a third list."""

    def test_a_token_starts_what_its_list_names(self) -> None:
        """It neither subscribes nor publishes by that."""
        grant = self.grant(token(plumber={"start": ["user-42", {"prefix": "team-7."}]}))
        self.assertEqual(grant.start, Accounts(frozenset(["user-42"]), ("team-7.",)))
        self.assertFalse(grant.subscribe)
        self.assertFalse(grant.publish)
        grant.check(Action.START, "team-7.x")
        self.assertRaises(InsufficientScope, grant.check, Action.START, "user-4")

    def test_other_rights_are_not_this_one(self) -> None:
        """Whoever may read and publish everything starts nothing."""
        every = [{"all": True}]
        grant = self.grant(token(plumber={"subscribe": every, "publish": every}))
        self.assertFalse(grant.start)
        self.assertRaises(InsufficientScope, grant.check, Action.START, "user-42")

    def test_a_wrong_list_refuses_the_token(self) -> None:
        """As a wrong list of another right does."""
        for lists in ({"start": "user-42"}, {"start": [""]}, {"start": None}, {"starts": []}):
            self.assert_refused(token(plumber=lists), "grants")

    def test_a_template_of_the_issuer(self) -> None:
        """For tokens that know nothing of us; a list in the token wins."""
        rules = replace(RULES, start=Template.parse(["user-{sub}"]))
        self.verifier = self.make(Issuer(rules, Secrets([SECRET])))
        self.assertEqual(
            self.grant(token(iss="x", plumber=None, sub="7")).start,
            Accounts(frozenset(["user-7"])),
        )
        self.assertFalse(self.grant(token(claims(iss="x", sub="7"))).start)

    def test_a_token_that_we_make(self) -> None:
        """`mint` has the list; and it leaves it out if it is empty."""
        self.verifier = self.make(Issuer(RULES, Secrets([SECRET])))
        made = {"audience": RULES.audience, "now": NOW}
        grant = self.grant(mint(SECRET, "u", start=["user-42"], **made))  # type: ignore[arg-type]
        self.assertTrue(may_start(grant))
        self.assertRaises(ValueError, mint, SECRET, "u", start=[""])
        grant = self.grant(mint(SECRET, "u", subscribe=["user-42"], **made))  # type: ignore[arg-type]
        self.assertFalse(may_start(grant))


class KeyTests(ConfigTestCase):
    """Static keys, and requests without credential."""

    def test_a_key_of_the_application_publishes_and_starts(self) -> None:
        """It does not subscribe, and is no administrator's."""
        grant = publisher("k" * 16)
        self.assertTrue(may_start(grant))
        self.assertTrue(grant.allows(Action.PUBLISH, "user-42"))
        self.assertFalse(grant.allows(Action.SUBSCRIBE, "user-42"))
        self.assertFalse(grant.is_admin)

    def test_a_key_of_the_file_does_what_its_table_says(self) -> None:
        """A key that publishes starts nothing unless the table says so."""
        digest = "0" * 64
        config = self.load(
            f'[[key]]\nname = "a"\nsha256 = "{digest}"\npublish = [{{ all = true }}]\n'
            f'[[key]]\nname = "b"\nsha256 = "{"1" * 64}"\nstart = [{{ prefix = "user-" }}]\n'
        )
        first, second = config.keys
        self.assertFalse(may_start(first.grant))
        self.assertTrue(may_start(second.grant))
        self.assertFalse(may_start(second.grant, "team-7"))
        self.refused(f'[[key]]\nname = "a"\nsha256 = "{digest}"\nstart = "user-42"', "start")
        self.refused(f'[[key]]\nname = "a"\nsha256 = "{digest}"', "start")

    def test_without_credential(self) -> None:
        """Only if the file says so."""
        config = self.load('[anonymous]\nsubscribe = ["public"]')
        assert config.anonymous is not None
        self.assertFalse(may_start(config.anonymous, "public"))
        config = self.load('[anonymous]\nstart = ["public"]')
        assert config.anonymous is not None
        self.assertTrue(may_start(config.anonymous, "public"))
        self.assertFalse(config.anonymous.subscribe)

    def test_an_issuer(self) -> None:
        """The template is in its rules."""
        config = self.load(
            '[[issuer]]\niss = "a"\njwks_url = "https://a.example/"\nstart = ["user-{sub}"]'
        )
        rules = config.issuers[0].rules("us")
        self.assertIn("user-7", rules.start.accounts({"sub": "7"}))
        self.assertFalse(rules.subscribe.entries)

    def test_a_sender_never_starts(self) -> None:
        """A signature shows who reports, and its provider is asked to do nothing."""
        table = (
            '[[sender]]\nname = "g"\nscheme = "github"\nsecret_files = ["s"]\naccounts = ["a"]\n'
        )
        self.write("s", "a secret of GitHub's\n")
        sender: Sender = self.load(table).senders[0]
        self.assertFalse(sender.grant.start)
        self.refused(table + 'start = ["a"]', "start")

    def test_the_operator_and_everybody_without_authentication(self) -> None:
        """Both may, as they may do all else."""
        self.assertTrue(may_start(OPERATOR))
        self.assertTrue(may_start(OPEN))


class CallOutRightTests(CallOutTestCase):
    """The application decides."""

    def test_it_is_asked_by_the_name_of_the_action(self) -> None:
        """A cookie does not go along, as for publishing: any page's requests would have it."""
        self.ask(action=Action.START, method=b"PUT", cookie="s=1", authorization="Bearer x")
        self.assertEqual(self.sent[b"x-plumber-action"], b"start")
        self.assertNotIn(b"cookie", self.sent)

    def test_2xx_allows_only_what_was_asked(self) -> None:
        """Subscribing and publishing give no right to start, and starting gives only that."""
        for action in Action:
            grant = self.ask(action=action, address=f"192.0.2.{len(action.value)}")
            self.assertEqual(
                [each for each in Action if grant.allows(each, "user-42")], [action], action
            )

    def test_a_list_is_all_that_is_allowed(self) -> None:
        """Also an empty one, in an answer to a question about starting."""
        self.application.allows({"subscribe": ["user-42"], "start": ["user-42"]})
        self.assertTrue(may_start(self.ask()))
        self.application.allows({"start": []})
        self.assertFalse(may_start(self.ask(action=Action.START, address="192.0.2.2")))
        self.application.allows({"start": "user-42"})
        self.assertEqual(self.refused(address="192.0.2.3").status, 503)

    def test_a_cookie_gives_a_stream_no_right_to_start(self) -> None:
        """It counts for subscribing only, and a WebSocket can start tasks."""
        lists = {"subscribe": ["user-42"], "publish": ["user-42"], "start": ["user-42"]}
        self.application.allows(lists)
        grant = self.ask(cookie="session=1", origin="http://127.0.0.1")
        self.assertTrue(grant.allows(Action.SUBSCRIBE, "user-42"))
        self.assertFalse(grant.start)
        self.assertFalse(grant.publish)
        self.assertTrue(may_start(self.ask(cookie="session=1", authorization="Bearer x")))


class RecheckRightTests(SynchronousTestCase):
    """A stream has the right as long as the application says so."""

    def test_a_stream_ends_when_the_right_changes(self) -> None:
        """Its client comes back with the right that it has then; nobody else is disturbed."""
        clock = Clock()
        bodies = {b"a": b'{"start": ["a"], "subscribe": ["a"]}', b"b": b"{}"}

        def fetch(url: str, headers: Any, **_: Any) -> Deferred[Reply]:
            body = bodies[headers[b"x-plumber-account"]]
            return succeed(Reply(200, {b"content-type": b"application/json"}, body))

        call_out = CallOut(CallOutTable(url="http://127.0.0.1/"), fetch, clock, clock.seconds)
        recheck = Recheck(call_out, clock, clock.seconds)
        ended: list[Any] = []
        grants = []
        for account in ("a", "b"):
            facts = Facts(b"GET", b"/events/a", {}, Action.SUBSCRIBE, account)
            found = call_out.grant(facts)
            assert isinstance(found, Deferred)
            grants.append(self.successResultOf(found))
        recheck.end = lambda matches, error: ended.extend(
            (grant, error.code) for grant in grants if matches(grant, "")
        )
        recheck.start()
        self.addCleanup(recheck.stop)
        clock.pump([1.0] * 150)
        self.assertEqual(ended, [])
        bodies[b"a"] = b'{"subscribe": ["a"]}'
        clock.pump([1.0] * 61)
        self.assertEqual(ended, [(grants[0], "expired")])
        self.assertIsInstance(grants[0], AskedGrant)


class OtherWaysTests(SynchronousTestCase):
    """Cookies with a token, tickets, and revocation."""

    def test_a_token_in_a_cookie_starts_nothing(self) -> None:
        """Also not over a WebSocket, which is opened with it."""
        text = "the token of a cookie"
        grant = Grant("u", ALL_ACCOUNTS, ALL_ACCOUNTS, mechanism="jwt", start=ALL_ACCOUNTS)

        class Tokens:
            def grant(self, token: str, action: Action | None) -> Grant:
                return grant

        authority = Authority(Parts(tokens=Tokens(), keys=Keys({}), cookie="__Host-plumber"))
        cookie = {b"cookie": b"__Host-plumber=" + text.replace(" ", "").encode(), **ORIGIN}
        found = authority.grant(Facts(b"GET", b"/events/a", cookie, Action.SUBSCRIBE, "a"))
        assert isinstance(found, Grant)
        self.assertTrue(found.allows(Action.SUBSCRIBE, "a"))
        self.assertFalse(found.start)
        self.assertFalse(found.publish)

    def test_a_ticket_starts_nothing(self) -> None:
        """It is part of a URL, and is for one stream."""
        clock = Clock()
        store = MemoryStore(Retention(), clock)
        tickets = Tickets(store, store.revocations, clock, clock.seconds)
        grant = Grant("s", ALL_ACCOUNTS, ALL_ACCOUNTS, start=ALL_ACCOUNTS)
        ticket, _ = self.successResultOf(Deferred.fromCoroutine(tickets.mint(grant, "a")))
        facts = Facts(b"GET", b"/events/a", {}, Action.SUBSCRIBE, "a")
        spent = self.successResultOf(tickets.grant(ticket, facts))
        self.assertTrue(spent.allows(Action.SUBSCRIBE, "a"))
        self.assertFalse(spent.start)

    def test_a_revoked_grant_starts_nothing(self) -> None:
        """By its subject, its id or the account, as for all else."""
        revoked = RevokedGrants(lambda: NOW)
        grant = Grant("u", issued=NOW - 1, id="t-1", mechanism="jwt", start=ALL_ACCOUNTS)
        revoked.replace([])
        revoked.check(grant, "a")
        for kind, value in (
            (RevocationKind.SUB, "u"),
            (RevocationKind.JTI, "t-1"),
            (RevocationKind.ACCOUNT, "a"),
        ):
            before = None if kind is RevocationKind.JTI else NOW
            revoked.replace([Revocation(kind, value, before, NOW + 60)])
            self.assertRaises(InvalidToken, revoked.check, grant, "a")
