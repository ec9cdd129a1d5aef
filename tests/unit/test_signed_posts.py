"""Signed POSTs of the senders that the how-to shows, at our own port and through a site."""

from __future__ import annotations

import json
import os
import tomllib
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.authority import Authority, Parts
from asyncplumber.auth.keys import Keys, digest
from asyncplumber.auth.senders.senders import Sender, Senders
from asyncplumber.auth.senders.table import from_toml
from asyncplumber.errors import GrantRevoked
from asyncplumber.grant import ALL_ACCOUNTS, Grant
from asyncplumber.testing import MemoryServer
from harness.documents import named_blocks
from harness.mounted import MountedServer
from tests import signing
from tests.signing import Lines

PAGE = "howto/receive-webhooks.rst"
SECRET = "a secret of theirs"
READER, WRITER = "key-of-a-reader-1234", "key-of-a-writer-1234"


class SignedCase(SynchronousTestCase):
    """Senders of the how-to, at a server of each kind."""

    names: tuple[str, ...] = ("github.toml", "stripe.toml", "slack.toml", "standard.toml")

    def setUp(self) -> None:
        self.servers: list[MemoryServer] = []
        senders = [self.sender(name) for name in self.names]
        grants = {
            digest(READER): Grant("reader", subscribe=ALL_ACCOUNTS),
            digest(WRITER): Grant("writer", publish=ALL_ACCOUNTS),
        }
        authority = Authority(Parts(keys=Keys(grants), senders=Senders(senders, self.now)))
        for kind in (MemoryServer, MountedServer):
            self.servers.append(kind(plumber={"authority": authority}))

    def now(self) -> float:
        """Return the time of the servers."""
        return float(self.servers[0].clock.seconds())

    def sender(self, name: str) -> Sender:
        """Return the sender of a block of the how-to, with a secret of our own."""
        (table,) = tomllib.loads(named_blocks(PAGE)[name])["sender"]
        path = self.mktemp()
        with open(path, "w", encoding="utf-8") as file:
            file.write(signing.STANDARD_SECRET if table["scheme"] == "standard" else SECRET)
        os.chmod(path, 0o600)
        return from_toml({**table, "secret_files": [path]})

    def post(self, path: str, lines: Lines, body: bytes) -> tuple[int, dict[str, Any]]:
        """Return status and JSON of the response, which are the same on both ways in."""
        found = []
        for server in self.servers:
            reply = server.request("POST", path, lines, body)
            answer = json.loads(reply.body)
            answer.pop("cursor", None)
            found.append((reply.status, answer))
        self.assertEqual(found[0], found[1])
        return found[0]

    def events(self, account: str) -> list[tuple[str, str, Any]]:
        """Return id, type and data of each event, which are the same on both ways in."""
        found = []
        for server in self.servers:
            path = f"/events/{account}?after=earliest&wait=0"
            reply = server.request("GET", path, [("Authorization", f"Bearer {READER}")])
            events = json.loads(reply.body)["events"]
            found.append([(event["id"], event["type"], event["data"]) for event in events])
        self.assertEqual(found[0], found[1])
        return found[0]


class HowToTests(SignedCase):
    """Each sender of the page, alone."""

    names: tuple[str, ...] = ()

    def check(
        self, name: str, account: str, lines: Lines, body: bytes, expected: tuple[str, str]
    ) -> None:
        """A request is taken, once; with another body or for another account it is refused."""
        self.names = (name,)
        self.setUp()
        status, receipt = self.post(f"/hooks/{account}", lines, body)
        self.assertEqual((status, receipt["duplicate"]), (202, False))
        self.assertTrue(self.post(f"/hooks/{account}", lines, body)[1]["duplicate"])
        self.assertEqual(self.events(account), [(*expected, json.loads(body))])
        if name != "gitlab.toml":  # its token says nothing about the body
            self.assertEqual(self.post(f"/hooks/{account}", lines, body + b" ")[0], 401)
        status, refusal = self.post("/hooks/elsewhere", lines, body)
        self.assertEqual((status, refusal["error"]["code"]), (403, "insufficient-scope"))

    def test_github(self) -> None:
        """Type and id are in its headers."""
        lines = signing.github(SECRET, b"{}", "d1", "push")
        self.check("github.toml", "ci", lines, b"{}", ("d1", "push"))

    def test_stripe(self) -> None:
        """Type and id are in the body."""
        body = b'{"id": "evt_1", "type": "charge.failed"}'
        lines = signing.stripe(SECRET, self.now(), body)
        self.check("stripe.toml", "payments", lines, body, ("evt_1", "charge.failed"))

    def test_slack(self) -> None:
        """Type and id are in the body."""
        body = b'{"event_id": "Ev1", "type": "event_callback"}'
        lines = signing.slack(SECRET, self.now(), body)
        self.check("slack.toml", "chat", lines, body, ("Ev1", "event_callback"))

    def test_standard(self) -> None:
        """The id is in a header, the type in the body."""
        body = b'{"type": "invoice.paid"}'
        lines = signing.standard(signing.STANDARD_SECRET, "msg_1", self.now(), body)
        self.check("standard.toml", "payments", lines, body, ("msg_1", "invoice.paid"))

    def test_gitlab(self) -> None:
        """In both of its ways."""
        lines = signing.gitlab(SECRET, "g1", "Push Hook")
        self.check("gitlab.toml", "ci", lines, b"{}", ("g1", "Push Hook"))
        signed = signing.standard(signing.STANDARD_SECRET, "g2", self.now(), b"{}")
        lines = [*signed, ("X-Gitlab-Event", "Push Hook")]
        self.check("gitlab-signed.toml", "ci", lines, b"{}", ("g2", "Push Hook"))

    def test_shopify(self) -> None:
        """Type and id are in its headers."""
        lines = signing.shopify(SECRET, b"{}", "b5", "orders/create")
        self.check("shopify.toml", "orders", lines, b"{}", ("b5", "orders/create"))

    def test_paddle(self) -> None:
        """Time and signature are in one header."""
        body = b'{"event_id": "e1", "event_type": "transaction.paid"}'
        lines = signing.paddle(SECRET, self.now(), body)
        self.check("paddle.toml", "payments", lines, body, ("e1", "transaction.paid"))

    def test_no_other_sender_is_on_the_page(self) -> None:
        """Each block is in a test above."""
        tested = ("github", "stripe", "slack", "standard", "gitlab", "gitlab-signed", "shopify")
        blocks = {f"{name}.toml" for name in (*tested, "paddle")}
        self.assertEqual(set(named_blocks(PAGE)), blocks)


class WebhookTests(SignedCase):
    """What becomes of a signed POST."""

    def test_the_answer_to_slack(self) -> None:
        """Its question is answered and is no event; for another account it is not answered."""
        body = b'{"type": "url_verification", "challenge": "3eZb"}'
        lines = signing.slack(SECRET, self.now(), body)
        self.assertEqual(self.post("/hooks/chat", lines, body), (200, {"challenge": "3eZb"}))
        self.assertEqual(self.post("/hooks/ci", lines, body)[0], 403)
        self.assertEqual(self.events("chat"), [])

    def test_an_old_body_under_a_new_id(self) -> None:
        """It is a duplicate of the first, whatever the type and the content type are now."""
        self.post("/hooks/ci", signing.github(SECRET, b"{}", "one"), b"{}")
        lines = signing.github(SECRET, b"{}", "two", "release")
        for more in ([], [("Content-Type", "application/x-ndjson")]):
            status, receipt = self.post("/hooks/ci", [*lines, *more], b"{}")
            self.assertEqual((status, receipt["id"], receipt["duplicate"]), (202, "one", True))
        self.assertEqual(self.events("ci"), [("one", "push", {})])

    def test_a_bearer_token_decides_alone(self) -> None:
        """A signature beside it neither helps nor harms; another scheme is none of ours."""
        lines = signing.github(SECRET, b"{}", "d1")
        for credential, status in (
            ("Bearer unknown-key-12345678", 401),
            (f"Bearer {READER}", 403),
            (f"Bearer {WRITER}", 202),
            ("Basic dXNlcjpwYXNz", 202),
        ):
            signed = [*lines, ("Authorization", credential), ("Webhook-Id", "w1")]
            self.assertEqual(self.post("/hooks/ci", signed, b"{}")[0], status, credential)

    def test_only_the_webhook_of_an_account_takes_a_signature(self) -> None:
        """The account of skyhooks' payload is in the body, which the sender may not choose."""
        body = b'{"keys": {"account_id": "ci"}, "data": 1}'
        lines = signing.github(SECRET, body)
        for path in ("/hooks", "/events/ci", "/instances/x/hooks/ci", "/nothing"):
            self.assertEqual(self.post(path, lines, body)[0], 401, path)
        self.assertEqual(self.events("ci"), [])

    def test_a_body_that_cannot_be_an_event(self) -> None:
        """It is refused as it would be from anybody."""
        lines = signing.github(SECRET, b"{")
        for line, status in (
            (("Content-Type", "application/json"), 400),
            (("Content-Encoding", "gzip"), 415),
        ):
            self.assertEqual(self.post("/hooks/ci", [*lines, line], b"{")[0], status)

    def test_a_sender_that_was_revoked(self) -> None:
        """Its subject is that of any other grant."""

        def check(grant: Grant, account: str | None) -> None:
            if grant.subject == "sender:github":
                raise GrantRevoked

        for server in self.servers:
            server.plumber.gate.check_revoked = check
        self.assertEqual(self.post("/hooks/ci", signing.github(SECRET, b"{}"), b"{}")[0], 401)

    def test_late_requests_are_refused_before_their_body(self) -> None:
        """The time is in the head, as is whatever else can be malformed."""
        lines = signing.stripe(SECRET, self.now() - 301, b"{}")
        head = "\r\n".join(
            ["POST /hooks/payments HTTP/1.1", "Host: localhost", "Content-Length: 1048576"]
            + [f"{name}: {value}" for name, value in lines]
            + ["Expect: 100-continue", "", ""]
        )
        client = self.servers[0].connect()
        client.send(head.encode())
        received = client.received()
        self.assertTrue(received.startswith(b"HTTP/1.1 401 "), received)
        self.assertIn(b'"invalid-signature"', received)
        self.assertNotIn(b"100 Continue", received)
