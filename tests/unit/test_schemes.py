"""Signatures of senders: the published examples, and what an attacker may try."""

from __future__ import annotations

from base64 import b64encode

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.senders.ed25519 import verify_ed25519
from asyncplumber.auth.senders.schemes import (
    GITHUB,
    MAX_ID_LENGTH,
    MAX_PUBLIC_SIGNATURES,
    MAX_SIGNATURES,
    SLACK,
    STANDARD,
    STRIPE,
    TOLERANCE,
    Content,
    Keys,
    Proof,
    Scheme,
    standard_keys,
)
from asyncplumber.errors import InvalidSignature
from tests import signing
from tests.unit import examples

BODY = signing.STANDARD_BODY
STANDARD_KEYS = standard_keys([signing.STANDARD_SECRET.encode()])
GITHUB_KEYS = Keys((signing.GITHUB_SECRET.encode(),))
STRIPE_KEYS = Keys((signing.STRIPE_SECRET.encode(),))
SLACK_KEYS = Keys((signing.SLACK_SECRET.encode(),))


class SchemeCase(SynchronousTestCase):
    """Asks whether a request is genuine."""

    scheme: Scheme
    keys: Keys
    time: float = signing.STANDARD_TIME

    def refusal(self, lines: dict[str, str | bytes], body: bytes, keys: Keys | None = None) -> str:
        """Return why a request is refused; empty if it is genuine."""
        headers = {
            name.lower().encode(): text.encode() if isinstance(text, str) else text
            for name, text in lines.items()
        }
        try:
            claim = self.scheme.read(headers, self.time)
        except InvalidSignature as error:
            return error.reason
        right = self.scheme.is_genuine(claim, body, keys or self.keys, verify_ed25519)
        return "" if right else "signature"


class StandardTests(SchemeCase):
    """Standard Webhooks."""

    scheme, keys = STANDARD[0], STANDARD_KEYS

    def ask(
        self,
        body: bytes = BODY,
        keys: Keys | None = None,
        *,
        id: str = signing.STANDARD_ID,
        timestamp: str | bytes = str(signing.STANDARD_TIME),
        signature: str | bytes = signing.STANDARD_SIGNATURE,
    ) -> str:
        """Ask about the published example, changed."""
        lines = {"webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": signature}
        return self.refusal(lines, body, keys)

    def test_the_published_example(self) -> None:
        """It is right; with another byte anywhere it is not."""
        self.assertEqual(self.ask(), "")
        self.assertEqual(self.ask(b'{"test":2432232314}'), "signature")
        self.assertEqual(self.ask(signature=signing.STANDARD_SIGNATURE[:-3] + "OA="), "signature")
        self.assertEqual(self.ask(id="msg_other"), "signature")
        self.assertEqual(self.ask(timestamp=str(signing.STANDARD_TIME + 1)), "signature")

    def test_the_time(self) -> None:
        """It may be away from now by the tolerance, before and after."""
        for away, reason in (
            (-TOLERANCE - 1, "expired"),
            (-TOLERANCE, ""),
            (TOLERANCE, ""),
            (TOLERANCE + 1, "expired"),
        ):
            self.time = signing.STANDARD_TIME + away
            self.assertEqual(self.ask(), reason, away)

    def test_only_ascii_digits_are_a_time(self) -> None:
        """Nothing else that Python reads as a number."""
        number = str(signing.STANDARD_TIME)
        arabic = "".join(chr(ord("\u0660") + int(digit)) for digit in number)
        for text in (
            *(
                f"{number}.0",
                f" {number}",
                f"{number} ",
                f"+{number}",
                f"{number}\n",
                "1_614_265_330",
            ),
            *("NaN", "inf", "1e9", "-1", "", arabic, "\uff11", "0x60379f32", "9" * 13, "9" * 5000),
        ):
            self.assertEqual(self.ask(timestamp=text), "malformed", text)
        self.assertEqual(self.ask(timestamp=b"\xff\xfe"), "malformed")

    def test_signatures_of_other_forms(self) -> None:
        """None of them raises anything else."""
        for text, reason in (
            ("", "malformed"),
            ("v1", "malformed"),
            ("v1,", "signature"),
            ("v1,%%", "signature"),
            ("v2," + signing.STANDARD_SIGNATURE[3:], "malformed"),
            ("V1," + signing.STANDARD_SIGNATURE[3:], "malformed"),
            (signing.STANDARD_SIGNATURE[3:], "malformed"),
            ("v1,é", "signature"),
            (signing.STANDARD_SIGNATURE.rstrip("="), "signature"),
            (signing.STANDARD_SIGNATURE.swapcase(), "malformed"),
            (",".join([signing.STANDARD_SIGNATURE] * 2), "signature"),
            ("v1a," + signing.STANDARD_SIGNATURE[3:], "signature"),
        ):
            self.assertEqual(self.ask(signature=text), reason, text)
        for raw in (b"v1,\xff\xfe", b"v1a,\xff", b"v1a,====", b"v1,\x00"):
            self.assertEqual(self.ask(signature=raw), "signature", raw)

    def test_several_signatures(self) -> None:
        """One that is right is enough; more than anybody has are refused."""
        right = signing.STANDARD_SIGNATURE
        self.assertEqual(self.ask(signature=f"v1,AAAA {right} v9,x"), "")
        self.assertEqual(
            self.ask(signature=" ".join(["v1,A"] * (MAX_SIGNATURES - 1) + [right])), ""
        )
        many = " ".join(["v1,A"] * MAX_SIGNATURES + [right])
        self.assertEqual(self.ask(signature=many), "malformed")

    def test_several_secrets(self) -> None:
        """Each of them is right, while they are changed."""
        other = standard_keys([b"whsec_" + b64encode(b"another secret of 24 byt")])
        both = Keys(other.secrets + STANDARD_KEYS.secrets)
        self.assertEqual(self.ask(keys=other), "signature")
        self.assertEqual(self.ask(keys=both), "")

    def test_an_id_with_a_dot(self) -> None:
        """It could move to the timestamp, so it is refused although its signature is right."""
        for id, reason in (("msg.1", "malformed"), ("", "malformed"), ("msg_1", "")):
            lines = dict(signing.standard(signing.STANDARD_SECRET, id, self.time, BODY))
            self.assertEqual(self.refusal(dict(lines), BODY), reason)
        for length, reason in ((MAX_ID_LENGTH, ""), (MAX_ID_LENGTH + 1, "malformed")):
            lines = dict(signing.standard(signing.STANDARD_SECRET, "x" * length, self.time, BODY))
            self.assertEqual(self.refusal(dict(lines), BODY), reason)

    def test_a_header_that_is_missing(self) -> None:
        """The id or the timestamp."""
        lines = dict(signing.standard(signing.STANDARD_SECRET, "a", self.time, BODY))
        for name in ("webhook-id", "webhook-timestamp"):
            less = {other: value for other, value in lines.items() if other != name}
            self.assertEqual(self.refusal(dict(less), BODY), "malformed")

    def test_the_names_of_svix(self) -> None:
        """The same, with other names."""
        self.scheme = STANDARD[1]
        lines = signing.standard(signing.STANDARD_SECRET, "a", self.time, b"\xff", "svix")
        self.assertEqual(self.refusal(dict(lines), b"\xff"), "")

    def test_public_keys(self) -> None:
        """Ed25519: a signature of each kind counts only for a key of its kind."""
        private, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        self.keys = standard_keys([signing.public_key(private).encode()])
        lines = dict(signing.standard_public(private, "a", self.time, BODY))
        self.assertEqual(self.refusal(dict(lines), BODY), "")
        self.assertEqual(self.refusal(dict(lines), BODY + b" "), "signature")
        self.assertEqual(self.refusal(dict(lines), BODY, STANDARD_KEYS), "signature")
        foreign = dict(signing.standard_public(other, "a", self.time, BODY))
        self.assertEqual(self.refusal(dict(foreign), BODY), "signature")
        for text in ("v1a,", "v1a,AAAA", "v1a,%%", lines["webhook-signature"].replace("v1a", "v1")):
            changed = {**lines, "webhook-signature": text}
            self.assertEqual(self.refusal(dict(changed), BODY), "signature", text)

    def test_several_public_signatures(self) -> None:
        """They are dear to verify, so there may be a few only."""
        private = Ed25519PrivateKey.generate()
        self.keys = standard_keys([signing.public_key(private).encode()])
        lines = dict(signing.standard_public(private, "a", self.time, BODY))
        for others, reason in (
            (MAX_PUBLIC_SIGNATURES - 1, ""),
            (MAX_PUBLIC_SIGNATURES, "malformed"),
        ):
            text = " ".join(["v1a,AAAA"] * others + [lines["webhook-signature"]])
            self.assertEqual(self.refusal({**lines, "webhook-signature": text}, BODY), reason)

    def test_the_public_key_is_no_secret(self) -> None:
        """Who knows it cannot sign with it."""
        private = Ed25519PrivateKey.generate()
        self.keys = standard_keys([signing.public_key(private).encode()])
        known = signing.public_key(private).replace("whpk_", "whsec_")
        lines = signing.standard(known, "a", self.time, BODY)
        self.assertEqual(self.refusal(dict(lines), BODY), "signature")


class OtherSchemeTests(SchemeCase):
    """GitHub, Stripe, Slack."""

    def test_github(self) -> None:
        """The published example; digits of either case."""
        self.scheme, self.keys = GITHUB, GITHUB_KEYS
        right = signing.GITHUB_SIGNATURE
        for text, body, reason in (
            (right, signing.GITHUB_BODY, ""),
            ("sha256=" + right[7:].upper(), signing.GITHUB_BODY, ""),
            (right, b"Hello, World", "signature"),
            (right[7:], signing.GITHUB_BODY, "malformed"),
            ("sha1=" + right[7:], signing.GITHUB_BODY, "malformed"),
            (right[:-1], signing.GITHUB_BODY, "signature"),
            (f"{right}, {right}", signing.GITHUB_BODY, "signature"),
            ("sha256=é", signing.GITHUB_BODY, "signature"),
        ):
            self.assertEqual(self.refusal({"X-Hub-Signature-256": text}, body), reason, text)

    def test_stripe(self) -> None:
        """The published example; one of several signatures is enough, and v0 is none."""
        self.scheme, self.keys, self.time = STRIPE, STRIPE_KEYS, signing.STRIPE_TIME
        now, right = signing.STRIPE_TIME, signing.STRIPE_SIGNATURE
        for text, reason in (
            (f"t={now},v1={right}", ""),
            (f"t={now}, v1={right}", ""),
            (f"t={now},v1=bad,v1={right},v0=x", ""),
            (f"v1={right},t={now}", ""),
            (f"t={now},v0={right}", "malformed"),
            (f"t={now}", "malformed"),
            (f"v1={right}", "malformed"),
            (f"t={now},t={now},v1={right}", "malformed"),
            (f"t={now}.0,v1={right}", "malformed"),
            (f"t={now - 301},v1={right}", "expired"),
            (f"t={now - 1},v1={right}", "signature"),
        ):
            lines: dict[str, str | bytes] = {"Stripe-Signature": text}
            self.assertEqual(self.refusal(lines, signing.STRIPE_BODY), reason, text)

    def test_slack(self) -> None:
        """The published example."""
        self.scheme, self.keys, self.time = SLACK, SLACK_KEYS, signing.SLACK_TIME
        now, right = str(signing.SLACK_TIME), signing.SLACK_SIGNATURE
        for time, text, reason in (
            (now, right, ""),
            (now, right.replace("v0", "v1"), "malformed"),
            (str(signing.SLACK_TIME + 1), right, "signature"),
            (str(signing.SLACK_TIME - 301), right, "expired"),
        ):
            lines = {"X-Slack-Request-Timestamp": time, "X-Slack-Signature": text}
            self.assertEqual(self.refusal(dict(lines), signing.SLACK_BODY), reason)

    def test_a_secret_that_is_sent(self) -> None:
        """It is compared whole."""
        self.scheme = Scheme(b"x-gitlab-token", Proof.PLAIN, Content.parse("{body}"))
        self.keys = Keys((b"long enough secret", b"a second one, longer"))
        for text, reason in (
            ("long enough secret", ""),
            ("a second one, longer", ""),
            ("long enough secre", "signature"),
            ("long enough secret ", "signature"),
            ("é", "signature"),
            ("", "signature"),
        ):
            self.assertEqual(self.refusal({"X-Gitlab-Token": text}, b"any"), reason, text)

    def test_whatever_comes(self) -> None:
        """Every header is genuine or refused."""
        schemes = (*STANDARD, GITHUB, STRIPE, SLACK)

        @given(some.sampled_from(schemes), some.binary(), some.binary(), some.binary())
        @settings(max_examples=examples(200))
        def check(scheme: Scheme, signature: bytes, time: bytes, body: bytes) -> None:
            headers = {scheme.header: scheme.prefix + signature}
            for name in (scheme.timestamp_header, scheme.id_header):
                if name is not None:
                    headers[name] = time
            try:
                claim = scheme.read(headers, 0.0)
            except InvalidSignature:
                return
            keys = Keys((b"x" * 16,), (bytes(32),))
            self.assertFalse(scheme.is_genuine(claim, body, keys, verify_ed25519))

        check()


class ContentTests(SynchronousTestCase):
    """What is signed."""

    def test_content(self) -> None:
        """The fields are replaced, whatever is in the values."""
        for text, before, behind in (
            ("{body}", b"", b""),
            ("{timestamp}.{body}", b"12.", b""),
            ("v0:{timestamp}:{body}", b"v0:12:", b""),
            ("{id}.{timestamp}.{body}", b"{body}.12.", b""),
            ("{body}|{timestamp};", b"", b"|12;"),
        ):
            content = Content.parse(text)
            self.assertEqual(content.fill({"id": b"{body}", "timestamp": b"12"}), (before, behind))

    def test_content_that_does_not_tell_its_fields_apart(self) -> None:
        """Or that has no body, or another field."""
        for text in (
            *(
                "",
                "{timestamp}",
                "{body}{body}",
                "{body}.{body}",
                "{timestamp}{body}",
                "{url}.{body}",
            ),
            *("{id}{timestamp}.{body}", "{body", "body}", "{{body}}", "{}{body}", "é{body}"),
        ):
            self.assertRaises(ValueError, Content.parse, text)

    def test_an_id_behind_the_body(self) -> None:
        """It has no text of what is around it either."""
        scheme = Scheme(b"s", Proof.HEX, Content.parse("{body}.{id}"), id_header=b"i")
        self.assertRaises(InvalidSignature, scheme.read, {b"s": b"x", b"i": b"a.b"}, 0.0)
        self.assertEqual(scheme.read({b"s": b"x", b"i": b"ab"}, 0.0).behind, b".ab")


class StandardKeyTests(SynchronousTestCase):
    """Secrets in the form of Standard Webhooks."""

    def test_forms(self) -> None:
        """With the prefix of its version, as some show it, or without."""
        keys = standard_keys(
            [b"whsec_" + b64encode(b"a" * 24), b"v1,whsec_" + b64encode(b"b" * 24)]
        )
        self.assertEqual(keys, Keys((b"a" * 24, b"b" * 24)))
        self.assertEqual(repr(keys), "<2 secrets, 0 public keys>")

    def test_what_is_none(self) -> None:
        """A secret that was mistyped is no other secret; and no message has it."""
        for text in (
            *(
                b"whsec_",
                b"whsec_a-b_",
                b"whsec_abc",
                b"whsec_YWJj=",
                b"whsec_YWJk\xff",
                b"YWJj" * 8,
            ),
            *(b"whsk_" + b64encode(b"a" * 32), b"whpk_" + b64encode(b"a" * 31), b"whsec_YWJ="),
            *(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS",),
        ):
            error = self.assertRaises(ValueError, standard_keys, [text])
            self.assertNotIn(text[6:].decode("latin-1") or "\n", str(error))
