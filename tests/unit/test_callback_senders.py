"""Signatures at callback URLs: each scheme, with the examples that their services publish."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.senders import callback_senders
from asyncplumber.auth.senders.callback_senders import checked_secret, new_secret, verified
from asyncplumber.auth.senders.table import SHORTEST_SECRET
from asyncplumber.errors import BadRequest, InvalidSignature
from asyncplumber.interfaces import CallbackUrl
from asyncplumber.testing import NOW
from tests import signing

URL = "https://push.example/callbacks/token"
SECRET = "a secret of twenty-two"


def row(scheme: str, secret: str = SECRET) -> CallbackUrl:
    """Return a URL whose POSTs are signed in this way."""
    return CallbackUrl(b"digest", "42", NOW + 1, scheme=scheme, secret=secret, id="one")


def lines(signed: signing.Lines) -> dict[bytes, bytes]:
    """Return headers as the server has them."""
    return {name.lower().encode(): value.encode() for name, value in signed}


class SchemeTests(SynchronousTestCase):
    """A right signature is taken, and no other."""

    def check(
        self,
        scheme: str,
        signed: signing.Lines,
        body: bytes,
        secret: str = SECRET,
        url: str = URL,
        now: float = NOW,
    ) -> None:
        """Fail unless this is taken, and refused when anything of it is changed."""
        headers = lines(signed)
        proven = verified(row(scheme, secret), url, headers, body, now)
        self.assertEqual(proven.grant.publish.names, {"42"})
        self.assertNotIn(secret, repr(proven.grant))
        other = "whsec_" + b64encode(b"x" * 24).decode() if scheme == "standard" else secret[::-1]
        self.refused(row(scheme, other), headers, body, url, now)
        self.refused(row(scheme, secret), {}, body, url, now)
        if scheme != "bearer":
            self.refused(row(scheme, secret), headers, body + b"x", url, now)

    def refused(
        self, url_row: CallbackUrl, headers: dict[bytes, bytes], body: bytes, url: str, now: float
    ) -> None:
        """Fail unless it is."""
        error = self.assertRaises(InvalidSignature, verified, url_row, url, headers, body, now)
        self.assertNotIn(url_row.secret, str(error))

    def test_standard(self) -> None:
        signed = signing.standard(
            signing.STANDARD_SECRET, signing.STANDARD_ID, signing.STANDARD_TIME, b'{"a":1}'
        )
        now = signing.STANDARD_TIME
        self.check("standard", signed, b'{"a":1}', signing.STANDARD_SECRET, now=now)
        svix = signing.standard(signing.STANDARD_SECRET, "msg_1", now, b"1", "svix")
        self.check("standard", svix, b"1", signing.STANDARD_SECRET, now=now)

    def test_github(self) -> None:
        signed = signing.github(signing.GITHUB_SECRET, signing.GITHUB_BODY)
        self.assertIn(("X-Hub-Signature-256", signing.GITHUB_SIGNATURE), signed)
        self.check("github", signed, signing.GITHUB_BODY, signing.GITHUB_SECRET)

    def test_stripe(self) -> None:
        now = signing.STRIPE_TIME
        signed = signing.stripe(signing.STRIPE_SECRET, now, signing.STRIPE_BODY)
        self.check("stripe", signed, signing.STRIPE_BODY, signing.STRIPE_SECRET, now=now)

    def test_slack(self) -> None:
        now = signing.SLACK_TIME
        signed = signing.slack(signing.SLACK_SECRET, now, signing.SLACK_BODY)
        self.assertIn(("X-Slack-Signature", signing.SLACK_SIGNATURE), signed)
        self.check("slack", signed, signing.SLACK_BODY, signing.SLACK_SECRET, now=now)

    def test_zoom(self) -> None:
        self.check("zoom", signing.zoom(SECRET, NOW, b"{}"), b"{}")

    def test_timestamps_are_five_minutes_right(self) -> None:
        for away, is_taken in ((299, True), (300, True), (301, False), (-300, True), (-301, False)):
            headers = lines(signing.zoom(SECRET, NOW + away, b"{}"))
            if is_taken:
                verified(row("zoom"), URL, headers, b"{}", NOW)
            else:
                self.refused(row("zoom"), headers, b"{}", URL, NOW)

    def test_twilio(self) -> None:
        """The example of its documentation: the URL and the sorted parameters are signed."""
        url = "https://mycompany.com/myapp.php?foo=1&bar=2"
        body = (
            b"To=%2B18005551212&CallSid=CA1234567890ABCDE&Caller=%2B14158675309&Digits=1234"
            b"&From=%2B14158675309"
        )
        example = [("X-Twilio-Signature", "RSOYDt4T1cUTdK1PDd93/VVr8B8=")]
        self.check("twilio", example, body, "12345", url)
        for other in (url + "x", url.replace("https", "http")):
            self.refused(row("twilio", "12345"), lines(example), body, other, NOW)

    def test_twilio_signs_other_bodies_by_their_digest(self) -> None:
        body = b'{"CallStatus": "completed"}'
        url = f"{URL}?state=completed&bodySHA256={sha256(body).hexdigest()}"
        self.check("twilio", signing.twilio(SECRET, url.encode()), body, url=url)

    def test_bearer(self) -> None:
        for name, value in (
            ("Authorization", f"Bearer {SECRET}"),
            ("Authorization", f"bearer  {SECRET}"),
            ("X-A2A-Notification-Token", SECRET),
        ):
            self.check("bearer", [(name, value)], b"{}")
        for value in (SECRET, f"Basic {SECRET}", "Bearer", f"Bearer {SECRET}x", ""):
            headers = lines([("Authorization", value)])
            self.refused(row("bearer"), headers, b"", URL, NOW)

    def test_headers_that_nobody_signed_name_no_event(self) -> None:
        """Who has seen one signed body could send it again under another id."""
        signed = [*signing.github(SECRET, b"{}"), ("Webhook-Id", "mine"), ("Event-Type", "mine")]
        proven = verified(row("github"), URL, lines(signed), b"{}", NOW)
        self.assertEqual(proven.headers[b"event-type"], b"push")
        self.assertEqual(proven.headers[b"webhook-id"], b"72d3162e")
        self.assertIsNotNone(proven.key)


class SecretTests(SynchronousTestCase):
    """Secrets of URLs."""

    def test_each_scheme_is_known(self) -> None:
        schemes = ["none", "standard", "github", "stripe", "slack", "zoom", "bearer", "twilio"]
        self.assertEqual(sorted(callback_senders.NAMES), sorted(schemes))

    def test_a_new_one_is_made_where_we_choose(self) -> None:
        for scheme in ("standard", "github", "bearer"):
            secret = new_secret(scheme)
            self.assertEqual(checked_secret(scheme, secret), secret)
            self.assertNotEqual(new_secret(scheme), secret)
        for scheme in ("stripe", "slack", "zoom", "twilio"):
            self.assertRaises(BadRequest, new_secret, scheme)

    def test_a_bad_one_is_refused_and_not_repeated(self) -> None:
        for scheme, secret in (
            ("github", "x" * (SHORTEST_SECRET - 1)),
            ("github", "x" * (callback_senders.LONGEST_SECRET + 1)),
            ("github", "x" * 20 + "\n"),
            ("github", "é" * 20),
            ("github", 7),
            ("github", None),
            ("standard", "x" * 32),
            ("standard", "whsec_" + "!" * 32),
        ):
            error = self.assertRaises(BadRequest, checked_secret, scheme, secret)
            self.assertNotIn(str(secret), error.message)
        self.assertTrue(checked_secret("github", "x" * SHORTEST_SECRET))
        self.assertTrue(checked_secret("github", "x" * callback_senders.LONGEST_SECRET))
