"""Attacks by pages of other origins and by rebound names, and on the signatures of senders."""

from __future__ import annotations

from twisted.internet.address import IPv4Address

from asyncplumber.testing import ClientResponse
from harness.mounted import MountedServer
from tests import signing
from tests.attackers import ADMIN, HOST, AttackCase, json_of

EVIL = "https://evil.example"


class HostAttacks(AttackCase):
    """Row 22."""

    def status(self, host: str, target: str = "/events/user-42?wait=0", *lines: str) -> int:
        """Return what a request with this Host and a good token is answered with."""
        line = self.bearer(self.token())
        return self.ask("GET", target, f"Host: {host}", line, *lines).status

    def test_22_names_that_are_not_ours(self) -> None:
        """Whatever the credential and the Origin are."""
        evil = "evil.example:8080"
        self.assertEqual(self.status(evil, "/events/user-42", f"Origin: http://{evil}"), 421)
        for host in (
            evil,
            "localhost.evil.example",
            f"{HOST}.evil.example",
            f"evil.{HOST}",
            "127.0.0.1.evil.example",
            "[::ffff:6.6.6.6]",
            "6.6.6.6",
            "2130706433",
            "0x7f.1",
            "xn--80ak6aa92e.com",
        ):
            self.assertEqual(self.status(host), 421, host)
            self.assertEqual(self.status(host, "/hooks"), 421, host)
            self.assertEqual(self.status(host, "/"), 421, host)
        for host in (
            f"{HOST},evil.example",
            "evil.example/",
            "a b",
            f"user@{HOST}",
            "[::1",
            f"{HOST}:x",
        ):
            self.assertEqual(self.status(host), 400, host)
        self.nothing_stored()

    def test_22_names_that_are_ours(self) -> None:
        """In every spelling.  Probes are answered to any name."""
        for host in (
            HOST,
            "PUSH.example.com.",
            f"{HOST}:8443",
            "localhost",
            "127.0.0.1",
            "[::1]:80",
        ):
            self.assertEqual(self.status(host), 200, host)
        for target in ("/healthz", "/readyz"):
            self.assertEqual(self.status("evil.example", target), 200)

    def test_22_a_target_that_is_a_url(self) -> None:
        """Its host counts, and not the header beside it."""
        for target, status in (
            ("http://evil.example/events/user-42?wait=0", 421),
            (f"http://{HOST}/events/user-42?wait=0", 200),
            (f"http://user@{HOST}/events/user-42?wait=0", 400),
        ):
            reply = self.ask("GET", target, self.bearer(self.token()))
            if self.make_server is MountedServer:
                # twisted.web knows no such target: it is a path like any other.
                self.assertIn(reply.status, (400, 404, 421), target)
            else:
                self.assertEqual(reply.status, status, target)

    def test_22_an_address_of_another_interface(self) -> None:
        """No name was resolved, so none was rebound; a port may be forwarded to this one."""
        client = self.server.connect()
        client.hostAddr = IPv4Address("TCP", "10.0.0.7", 8080)
        client.send(b"GET /events/user-42 HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n")
        self.assertTrue(client.received().startswith(b"HTTP/1.1 401 "))


class MountedHostAttacks(HostAttacks):
    """The same in a site of another application."""

    make_server = MountedServer


class PageAttacks(AttackCase):
    """Row 23: what a browser can be made to send."""

    def toml(self) -> str:
        """Accept a cookie as well."""
        return f'{super().toml()}\n[cookie]\nname = "__Host-plumber"\n'

    def setUp(self) -> None:
        super().setUp()
        self.cookie = f"Cookie: theme=dark; __Host-plumber={self.token()}"

    def test_23_forms(self) -> None:
        """A page of another origin posts nothing, whoever its visitor is."""
        credentials = (self.bearer(self.token()), self.cookie, "X: y")
        forms = ["text/plain", "application/x-www-form-urlencoded"]
        if self.make_server is not MountedServer:
            # A site of twisted.web reads such a body itself, and refuses this one.
            forms.append("multipart/form-data")
        for content in forms:
            for origin in (
                EVIL,
                "null",
                "",
                f"http://{HOST}.evil.example",
                f"{EVIL}, http://{HOST}",
            ):
                for credential in credentials:
                    lines = (f"Content-Type: {content}", f"Origin: {origin}", credential)
                    self.assertEqual(self.post("user-42", *lines).status, 403)
                    for target in ("/tickets", "/revocations", "/hooks"):
                        reply = self.ask("POST", target, *lines, body=b"{}")
                        self.assertEqual(reply.status, 403, target)
        reply = self.post("user-42", "Sec-Fetch-Site: cross-site", self.bearer(self.token()))
        self.assertEqual(reply.status, 403)
        self.nothing_stored()

    def test_23_images_and_links(self) -> None:
        """They have no Origin; the browser says by another header where they come from."""
        for site in ("cross-site", "same-site"):
            for mode in ("no-cors", "navigate"):
                fetch = (
                    f"Sec-Fetch-Site: {site}",
                    f"Sec-Fetch-Mode: {mode}",
                    "Sec-Fetch-Dest: image",
                )
                for credential in ("X: y", self.cookie, self.bearer(self.token())):
                    reply = self.ask("GET", "/events/user-42?wait=0", *fetch, credential)
                    self.assertEqual(reply.status, 403, fetch)
        self.nothing_stored()

    def test_23_cookies(self) -> None:
        """A cookie counts only where the browser says that a page of ours sent it."""
        own = f"http://{HOST}"
        for lines, expected in (
            ((f"Origin: {EVIL}",), [403, 403, 403]),
            ((), [403, 403, 403]),
            ((f"Origin: {own}",), [101, 200, 200]),
            (("Sec-Fetch-Site: same-origin",), [403, 200, 200]),
            (("Sec-Fetch-Site: none",), [403, 403, 403]),
            (("Sec-Fetch-Site: cross-site",), [403, 403, 403]),
        ):
            self.assertEqual(self.statuses("user-42", self.cookie, *lines), expected, lines)
        self.assertEqual(self.post("user-42", self.cookie).status, 401)
        self.assertEqual(self.post("user-42", self.cookie, f"Origin: {own}").status, 401)
        self.assertEqual(self.server.plumber.intake.accepted, 0)
        # A bad credential is refused, although the cookie beside it is good.
        same = "Sec-Fetch-Site: same-origin"
        bad = "Authorization: Bearer nonsense"
        self.assertEqual(self.statuses("user-42", self.cookie, same, bad), [401] * 3)
        two = f"{self.cookie}; __Host-plumber={self.token(sub='other')}"
        self.assertEqual(self.statuses("user-42", two, same), [400] * 3)

    def test_23_responses_that_no_foreign_page_can_read(self) -> None:
        """No response allows an origin that was not named, nor lets its type be guessed."""
        line = self.bearer(self.token())
        for target in ("/events/user-42?wait=0", "/accounts/user-42", "/healthz", "/nothing"):
            for credential in (line, "X: y"):
                reply = self.ask("GET", target, f"Origin: {EVIL}", credential)
                self.assertNotIn(b"access-control-allow-origin", reply.headers, target)
                self.assertNotIn(b"access-control-allow-credentials", reply.headers, target)
                self.assertEqual(reply.headers[b"x-content-type-options"], b"nosniff", target)


class MountedPageAttacks(PageAttacks):
    """The same in a site of another application."""

    make_server = MountedServer


class SenderCase(AttackCase):
    """Senders whose secrets are those of the published examples."""

    def toml(self) -> str:
        """Add them."""
        text = super().toml()
        old = "whsec_" + "b2xk" * 8
        for scheme, account, *secrets in (
            ("standard", "s", old, signing.STANDARD_SECRET),
            ("github", "ci", signing.GITHUB_SECRET),
            ("stripe", "pay", signing.STRIPE_SECRET),
            ("slack", "chat", signing.SLACK_SECRET),
        ):
            self.secrets.update(secrets)
            self.file(scheme, "\n".join(secrets).encode())
            text += f"""
                [[sender]]
                name = "{scheme}"
                scheme = "{scheme}"
                secret_files = ["{scheme}"]
                accounts = ["{account}"]
            """
        return text

    def send_signed(
        self, account: str, lines: signing.Lines, body: bytes, *more: str
    ) -> ClientResponse:
        """Send a POST with these headers."""
        return self.post(account, *(f"{name}: {value}" for name, value in lines), *more, body=body)


class StandardAttacks(SenderCase):
    """Row 24 at the time of the published examples of Standard Webhooks and Stripe."""

    begin = float(signing.STANDARD_TIME)

    def status(
        self,
        body: bytes = signing.STANDARD_BODY,
        time: str = str(signing.STANDARD_TIME),
        signature: str = signing.STANDARD_SIGNATURE,
    ) -> int:
        """Return what the published example is answered with, changed."""
        lines = [("webhook-id", signing.STANDARD_ID), ("webhook-timestamp", time)]
        lines.append(("webhook-signature", signature))
        return self.send_signed("s", lines, body).status

    def test_24_standard_webhooks(self) -> None:
        """The example is accepted, by the second secret; no other spelling of it is."""
        number = str(signing.STANDARD_TIME)
        arabic = "".join(chr(ord("\u0660") + int(digit)) for digit in number)
        for time in (f"{number}.0", f"+{number}", "NaN", "inf", arabic, "", f"{number}e0", "-1"):
            self.assertEqual(self.status(time=time), 401, time)
        for signature in (
            "v1",
            "v1,%%",
            "v1,é",
            "",
            "v1,",
            "v1,=",
            ",",
            "v1a,AAAA",
            "v2,AAAA",
            " ",
        ):
            self.assertEqual(self.status(signature=signature), 401, signature)
        self.assertEqual(self.status(b'{"test":2432232314}'), 401)
        self.nothing_stored()
        self.assertEqual(self.status(), 202)
        self.assertEqual(self.status(signature=f"v1,AAAA {signing.STANDARD_SIGNATURE} v1"), 202)
        self.assertEqual(self.server.plumber.intake.accepted, 1)  # the others are duplicates
        self.server.clock.advance(301)
        self.assertEqual(self.status(), 401)

    def test_24_a_body_that_is_not_utf_8(self) -> None:
        """It is signed as it is."""
        for body in (b"\xff\xfe", b"\x00" * 100, b'{"type": "\xff"}', b""):
            lines = signing.standard(signing.STANDARD_SECRET, f"m{len(body)}", self.now, body)
            self.assertEqual(self.send_signed("s", lines, body).status, 202, body)

    def test_24_stripe(self) -> None:
        """One good signature is enough; the older version is none."""
        time, right = signing.STRIPE_TIME, signing.STRIPE_SIGNATURE
        for value, status in (
            (f"t={time},v0={right}", 401),
            (f"t={time},v1=bad", 401),
            (f"t={time}", 401),
            (f"v1={right}", 401),
            (f"t={time},t={time + 1},v1={right}", 401),
            (f"t={time},v1=bad,v1={right}", 202),
        ):
            lines = [("Stripe-Signature", value)]
            self.assertEqual(self.send_signed("pay", lines, signing.STRIPE_BODY).status, status)
        # The secret is worth nothing for another account.
        lines = [("Stripe-Signature", f"t={time},v1={right}")]
        for account in ("s", "ci", "user-42", "PAY", "pay%2F"):
            self.assertEqual(self.send_signed(account, lines, signing.STRIPE_BODY).status, 403)


class MountedStandardAttacks(StandardAttacks):
    """The same in a site of another application."""

    make_server = MountedServer


class GitHubAttacks(SenderCase):
    """Row 24: GitHub signs neither a time nor an id."""

    def test_24_github(self) -> None:
        """The published example, and the same body once more with other headers."""
        body, event = signing.GITHUB_BODY, ("X-GitHub-Event", "push")
        signed = ("X-Hub-Signature-256", signing.GITHUB_SIGNATURE)
        for value in (
            signing.GITHUB_SIGNATURE[7:],
            "sha256=",
            "sha256=é",
            "sha1=0",
            f"{signed[1]}0",
        ):
            lines = [("X-Hub-Signature-256", value), event]
            self.assertEqual(self.send_signed("ci", lines, body).status, 401, value)
        # Everybody can let GitHub send bad ones, from the addresses from which the good ones come.
        behind_proxy = self.server.client_address
        self.server.client_address = IPv4Address("TCP", "203.0.113.5", 50000)
        for _ in range(30):
            lines = [("X-Hub-Signature-256", f"sha256={'0' * 64}"), event]
            self.assertEqual(self.send_signed("ci", lines, body).status, 401)
        self.nothing_stored()
        first = self.send_signed("ci", [signed, event, ("X-GitHub-Delivery", "one")], body)
        self.assertEqual((first.status, json_of(first)["duplicate"]), (202, False))
        for lines in (
            [signed, event, ("X-GitHub-Delivery", "two")],
            [signed, ("X-GitHub-Event", "release"), ("X-GitHub-Delivery", "three")],
            [signed, ("Webhook-Id", "four"), ("Content-Type", "text/plain")],
            [
                signed,
                ("ce-specversion", "1.0"),
                ("ce-id", "5"),
                ("ce-source", "/"),
                ("ce-type", "t"),
            ],
        ):
            again = self.send_signed("ci", lines, body)
            self.assertEqual((again.status, json_of(again)["duplicate"]), (202, True), lines)
        self.assertEqual(self.send_signed("pay", [signed, event], body).status, 403)
        # The secret itself is no bearer token, and a sender reads nothing.
        self.server.client_address = behind_proxy
        self.assertEqual(self.post("ci", self.bearer(signing.GITHUB_SECRET[:4])).status, 401)
        reply = self.ask("GET", "/events/ci?wait=0", f"X-Hub-Signature-256: {signed[1]}")
        self.assertEqual(reply.status, 401)
        self.assertEqual(self.ask("GET", "/metrics", self.bearer(ADMIN)).status, 200)

    def test_24_a_secret_that_is_changed(self) -> None:
        """The old one counts as long as it is in the file, and no longer."""
        new = "the new secret of GitHub"
        self.secret(new)

        def status(secret: str) -> int:
            body = f"{secret} {self.now}".encode()[-9:]
            return self.send_signed("ci", signing.github(secret, body), body).status

        for lines, expected in (
            ([new, signing.GITHUB_SECRET], [202, 202]),
            ([new], [401, 202]),
            (["too short"], [401, 202]),  # the server keeps what it has, and logs an error
        ):
            self.file("github", "\n".join(lines).encode())
            self.advance(11)
            found = [status(secret) for secret in (signing.GITHUB_SECRET, new)]
            self.assertEqual(found, expected, lines)


class MountedGitHubAttacks(GitHubAttacks):
    """The same in a site of another application."""

    make_server = MountedServer


class SlackAttacks(SenderCase):
    """Row 24 at the time of Slack's published example."""

    begin = float(signing.SLACK_TIME)

    def test_24_slack(self) -> None:
        """It is accepted; five minutes later it is not."""
        lines = [
            ("X-Slack-Request-Timestamp", str(signing.SLACK_TIME)),
            ("X-Slack-Signature", signing.SLACK_SIGNATURE),
        ]
        content = "Content-Type: application/x-www-form-urlencoded"
        body = signing.SLACK_BODY
        self.assertEqual(self.send_signed("chat", lines, body, content).status, 202)
        self.assertEqual(self.send_signed("pay", lines, body, content).status, 403)
        self.assertEqual(self.send_signed("chat", lines, body + b"&x=1", content).status, 401)
        self.server.clock.advance(301)
        self.assertEqual(self.send_signed("chat", lines, body, content).status, 401)


class MountedSlackAttacks(SlackAttacks):
    """The same in a site of another application."""

    make_server = MountedServer
