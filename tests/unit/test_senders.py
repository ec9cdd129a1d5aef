"""Senders: which one signed, what it may do, and what its event is."""

from __future__ import annotations

import json
import os
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.senders.senders import Sender, Senders
from asyncplumber.auth.senders.table import from_toml
from asyncplumber.errors import InvalidSignature
from asyncplumber.event import Draft
from asyncplumber.grant import Accounts, Action
from asyncplumber.interfaces import AwaitsBody, Facts, Verified
from asyncplumber.wire.parse import drafts_of
from tests import signing
from tests.signing import Lines

NOW = 1_800_000_000.0
SECRET = "a secret of theirs"


class SenderCase(SynchronousTestCase):
    """Makes senders as the file describes them."""

    def file(self, *secrets: str) -> str:
        """Return the path of a file with secrets."""
        path = self.mktemp()
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(secrets))
        os.chmod(path, 0o600)
        return path

    def sender(self, scheme: str, *secrets: str, **keys: Any) -> Sender:
        """Return a sender."""
        table = {"name": scheme, "scheme": scheme, "accounts": ["ci"], **keys}
        return from_toml({**table, "secret_files": [self.file(*secrets)]})

    def facts(self, lines: Lines, account: str | None = "ci", target: str = "/hooks/ci") -> Facts:
        """Return what is known of a POST when its head is there."""
        headers = {name.lower().encode(): value.encode() for name, value in lines}
        return Facts(b"POST", target.encode(), headers, Action.PUBLISH, account)

    def found(self, senders: list[Sender], facts: Facts) -> AwaitsBody | None:
        """Return who is found."""
        return Senders(senders, lambda: NOW).find(facts)

    def verify(
        self, senders: list[Sender], lines: Lines, body: bytes, account: str = "ci"
    ) -> Verified:
        """Verify a request."""
        awaits = self.found(senders, self.facts(lines, account))
        assert awaits is not None
        return awaits.verify(body)

    def draft(self, sender: Sender, lines: Lines, body: bytes) -> Draft:
        """Return the event of a request."""
        verified = self.verify([sender], lines, body)
        (draft,) = drafts_of("ci", verified.headers, body, "now")
        return draft if verified.key is None else draft._replace(key=verified.key)


class FindTests(SenderCase):
    """Who may have sent it."""

    def test_only_posts_to_a_hook_that_are_signed(self) -> None:
        """No other request concerns a sender."""
        senders = [self.sender("github", SECRET)]
        lines = signing.github(SECRET, b"x")
        signed = self.facts(lines)
        self.assertIsNotNone(self.found(senders, signed))
        for facts in (
            self.facts([]),
            self.facts(lines[:2]),
            self.facts(lines, None, "/hooks"),
            self.facts(lines, "ci", "/instances/i/hooks/ci"),
            self.facts(lines, "ci", "/events/ci"),
            signed._replace(method=b"GET"),
        ):
            self.assertIsNone(self.found(senders, facts))
        self.assertIsNone(self.found([], signed))

    def test_a_request_that_is_late_is_refused_without_its_body(self) -> None:
        """As is one that is malformed."""
        senders = [self.sender("stripe", SECRET)]
        for lines, reason in (
            (signing.stripe(SECRET, NOW - 301, b"x"), "expired"),
            ([("Stripe-Signature", "t=x,v1=y")], "malformed"),
        ):
            error = self.assertRaises(InvalidSignature, self.found, senders, self.facts(lines))
            self.assertEqual((error.status, error.reason), (401, reason))

    def test_several_senders_of_one_scheme(self) -> None:
        """The one whose signature it is, and which may post to the account."""
        first = self.sender("github", SECRET, name="first", accounts=["a"])
        second = self.sender("github", "another secret here", name="second", accounts=["b"])
        third = self.sender("github", SECRET, name="third", accounts=["c"])
        senders = [first, second, third]
        for secret, account, name, allowed in (
            (SECRET, "a", "first", True),
            ("another secret here", "b", "second", True),
            (SECRET, "c", "third", True),
            (SECRET, "b", "first", False),
            ("another secret here", "a", "second", False),
        ):
            grant = self.verify(senders, signing.github(secret, b"x"), b"x", account).grant
            self.assertEqual(grant.subject, f"sender:{name}")
            self.assertIs(grant.allows(Action.PUBLISH, account), allowed)

    def test_a_sender_that_is_late_does_not_spoil_another(self) -> None:
        """A request with the headers of two schemes."""
        senders = [self.sender("stripe", SECRET), self.sender("github", SECRET)]
        lines = signing.github(SECRET, b"x") + signing.stripe(SECRET, 0, b"x")
        self.assertEqual(self.verify(senders, lines, b"x").grant.subject, "sender:github")

    def test_the_grant(self) -> None:
        """A sender may only post, and only to its accounts."""
        sender = self.sender("github", SECRET, accounts=["ci", {"prefix": "ci."}])
        grant = self.verify([sender], signing.github(SECRET, b"x"), b"x").grant
        self.assertEqual(grant.publish, Accounts(frozenset({"ci"}), ("ci.",)))
        self.assertFalse(grant.subscribe)
        self.assertFalse(grant.is_admin)
        self.assertEqual(grant.mechanism, "sender")

    def test_rotation(self) -> None:
        """The old secret and the new one, in one file or in two, until the old one is removed."""
        for files in (
            [self.file("new secret 123456", SECRET)],
            [self.file("new secret 123456"), self.file(SECRET)],
        ):
            table = {"name": "x", "scheme": "github", "accounts": ["ci"], "secret_files": files}
            sender = from_toml(table)
            for secret in ("new secret 123456", SECRET):
                self.verify([sender], signing.github(secret, b"x"), b"x")
        new = self.sender("github", "new secret 123456")
        with self.assertRaises(InvalidSignature):
            self.verify([new], signing.github(SECRET, b"x"), b"x")

    def test_no_secret_in_a_repr(self) -> None:
        """Nor in that of what waits for the body."""
        sender = self.sender("github", SECRET)
        awaits = self.found([sender], self.facts(signing.github(SECRET, b"x")))
        for value in (sender, sender.keys, sender.grant, awaits):
            self.assertNotIn(SECRET, repr(value))


class EventTests(SenderCase):
    """The event of each sender."""

    def test_standard(self) -> None:
        """The id is that which is signed, the type is in the body."""
        private = Ed25519PrivateKey.generate()
        sender = self.sender("standard", signing.STANDARD_SECRET, signing.public_key(private))
        body = b'{"type": "invoice.paid", "data": 1}'
        for lines in (
            signing.standard(signing.STANDARD_SECRET, "msg_1", NOW, body),
            signing.standard(signing.STANDARD_SECRET, "msg_1", NOW, body, "svix"),
            signing.standard_public(private, "msg_1", NOW, body),
        ):
            draft = self.draft(sender, lines, body)
            self.assertEqual((draft.id, draft.key, draft.type), ("msg_1", "msg_1", "invoice.paid"))
            self.assertEqual(draft.payload, b'"data":' + body)

    def test_github(self) -> None:
        """Nobody has signed the id, so the body tells whether it is the same event."""
        sender = self.sender("github", SECRET)
        first = self.draft(sender, signing.github(SECRET, b"{}", "one", "push"), b"{}")
        again = self.draft(sender, signing.github(SECRET, b"{}", "two", "ping"), b"{}")
        other = self.draft(sender, signing.github(SECRET, b"{ }", "one", "push"), b"{ }")
        self.assertEqual(
            (first.id, first.type, again.id, again.type), ("one", "push", "two", "ping")
        )
        self.assertEqual(first.key, again.key)
        self.assertNotEqual(first.key, other.key)

    def test_stripe(self) -> None:
        """Id and type are in the body."""
        sender = self.sender("stripe", SECRET)
        body = b'{"id": "evt_1", "type": "charge.failed"}'
        draft = self.draft(sender, signing.stripe(SECRET, NOW, body), body)
        self.assertEqual((draft.id, draft.key, draft.type), ("evt_1", "evt_1", "charge.failed"))

    def test_slack(self) -> None:
        """The same; and it asks first whether the URL is right."""
        sender = self.sender("slack", SECRET)
        body = b'{"type": "event_callback", "event_id": "Ev1", "event": {"type": "message"}}'
        draft = self.draft(sender, signing.slack(SECRET, NOW, body), body)
        self.assertEqual((draft.id, draft.key, draft.type), ("Ev1", "Ev1", "event_callback"))
        ask = json.dumps({"type": "url_verification", "challenge": 'a"\u00e9'}).encode()
        verified = self.verify([sender], signing.slack(SECRET, NOW, ask), ask)
        assert verified.reply is not None
        self.assertEqual(json.loads(verified.reply), {"challenge": 'a"\u00e9'})
        with self.assertRaises(InvalidSignature):
            self.verify([sender], signing.slack("a wrong secret...", NOW, ask), ask)

    def test_only_slack_has_a_challenge(self) -> None:
        """For others it is an event."""
        body = b'{"type": "url_verification", "challenge": "x"}'
        sender = self.sender("stripe", SECRET)
        self.assertIsNone(self.verify([sender], signing.stripe(SECRET, NOW, body), body).reply)

    def test_templates(self) -> None:
        """Shopify, Paddle and GitLab."""
        shopify = self.sender(
            "hmac",
            SECRET,
            header="X-Shopify-Hmac-Sha256",
            encoding="base64",
            id_header="X-Shopify-Webhook-Id",
            type_header="X-Shopify-Topic",
        )
        draft = self.draft(shopify, signing.shopify(SECRET, b"{}", "b5", "orders/create"), b"{}")
        self.assertEqual((draft.id, draft.type), ("b5", "orders/create"))
        again = self.draft(shopify, signing.shopify(SECRET, b"{}", "other"), b"{}")
        self.assertEqual(draft.key, again.key)
        paddle = self.sender(
            "hmac",
            SECRET,
            header="Paddle-Signature",
            separator=";",
            prefix="h1=",
            timestamp_prefix="ts=",
            signed="{timestamp}:{body}",
            tolerance=5,
            id_member="event_id",
            type_member="event_type",
        )
        body = b'{"event_id": "e1", "event_type": "transaction.paid"}'
        draft = self.draft(paddle, signing.paddle(SECRET, NOW - 5, body), body)
        self.assertEqual((draft.id, draft.key, draft.type), ("e1", "e1", "transaction.paid"))
        with self.assertRaises(InvalidSignature):
            self.draft(paddle, signing.paddle(SECRET, NOW - 6, body), body)
        gitlab = self.sender(
            "token",
            SECRET,
            header="X-Gitlab-Token",
            id_header="Idempotency-Key",
            type_header="X-Gitlab-Event",
        )
        draft = self.draft(gitlab, signing.gitlab(SECRET, "g1", "Push Hook"), b"{}")
        self.assertEqual((draft.id, draft.type), ("g1", "Push Hook"))

    def test_a_signed_id_in_a_template(self) -> None:
        """It is the id of the event, and its key."""
        sender = self.sender(
            "hmac",
            signing.GITHUB_SECRET,
            header="X-Signature",
            signed="{id}:{timestamp}:{body}",
            id_header="X-Id",
            timestamp_header="X-Time",
        )
        content = b"a-1:1800000000:body"
        digest = signing.github(signing.GITHUB_SECRET, content)[2][1].removeprefix("sha256=")
        lines = [("X-Id", "a-1"), ("X-Time", "1800000000"), ("X-Signature", digest)]
        draft = self.draft(sender, lines, b"body")
        self.assertEqual((draft.id, draft.key, draft.type), ("a-1", "a-1", "result"))

    def test_other_places_for_the_type(self) -> None:
        """A table may say where a preset finds it, such as for GitLab's Standard Webhooks."""
        sender = self.sender("standard", signing.STANDARD_SECRET, type_header="X-Gitlab-Event")
        lines = signing.standard(signing.STANDARD_SECRET, "m", NOW, b'{"type": "x"}')
        lines.append(("X-Gitlab-Event", "Push Hook"))
        self.assertEqual(self.draft(sender, lines, b'{"type": "x"}').type, "Push Hook")

    def test_names_that_no_event_can_have(self) -> None:
        """They are left out: a sender could do nothing about an error."""
        sender = self.sender("stripe", SECRET)
        for body in (
            *(b"", b"[]", b"\xff", b"{", b'"id"', b"{}", b'{"id": 7, "type": null}'),
            *(b'{"id": "", "type": ""}', b'{"id": "a\\nb", "type": "a\\u0000"}', b"[" * 5000),
            *(b'{"id": "\\ud800", "type": "\\ud800"}', b'{"id": "%b"}' % (b"x" * 300)),
            b'{"id": ["a"], "type": "plumber.bye"}',
        ):
            draft = self.draft(sender, signing.stripe(SECRET, NOW, body), body)
            again = self.draft(sender, signing.stripe(SECRET, NOW - 1, body), body)
            self.assertEqual(draft.type, "result")
            self.assertNotEqual(draft.id, again.id)
            self.assertEqual(draft.key, again.key)
        github = self.sender("github", SECRET)
        lines = signing.github(SECRET, b"x", "x" * 300, "plumber.open")
        draft = self.draft(github, lines, b"x")
        self.assertEqual((len(draft.id) < 300, draft.type), (True, "result"))

    def test_headers_that_are_not_signed(self) -> None:
        """Whoever saw a request cannot make another event of its body."""
        sender = self.sender("stripe", SECRET)
        body = b'{"specversion": "1.0", "id": "evt_1", "source": "/s", "type": "t"}'
        plain = self.draft(sender, signing.stripe(SECRET, NOW, body), body)
        for line in (
            ("Content-Type", "application/cloudevents+json"),
            ("Content-Type", "application/x-ndjson; charset=utf-8"),
            ("Content-Type", "application/jsonl"),
            ("Webhook-Id", "other"),
            ("Idempotency-Key", "other"),
            ("Event-Type", "other"),
            ("ce-specversion", "1.0"),
        ):
            draft = self.draft(sender, [*signing.stripe(SECRET, NOW, body), line], body)
            self.assertEqual(draft, plain, line)

    def test_the_content_type_is_kept(self) -> None:
        """A form stays a form."""
        sender = self.sender("slack", SECRET)
        kind = "application/x-www-form-urlencoded"
        lines = [*signing.slack(SECRET, NOW, b"a=1&b=2"), ("Content-Type", kind)]
        draft = self.draft(sender, lines, b"a=1&b=2")
        self.assertEqual((draft.content_type, draft.payload), (kind, b'"data":"a=1&b=2"'))
