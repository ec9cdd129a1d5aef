"""Signatures: the example of Standard Webhooks, and everything that must not pass."""

from __future__ import annotations

from base64 import b64decode

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.signatures import PEER_TOLERANCE, Signer

NOW = 1614265330
ID = b"msg_p5jXN8AQM9LWM0D4loKWxJek"
BODY = b'{"test": 2432232314}'
SIGNATURE = b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


class SignerTests(SynchronousTestCase):
    """Genuine and fresh, or refused."""

    def setUp(self) -> None:
        self.signer = Signer(b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), 300)
        self.headers = {
            b"webhook-id": ID,
            b"webhook-timestamp": b"%d" % NOW,
            b"webhook-signature": SIGNATURE,
        }

    def verified(self, now: float = NOW, body: bytes = BODY, **headers: bytes) -> bool:
        """Return whether it passes, with some headers replaced."""
        named = {b"webhook-" + name.encode(): value for name, value in headers.items()}
        return self.signer.verify({**self.headers, **named}, body, now)

    def test_the_example_of_the_specification_passes(self) -> None:
        """Signed and verified."""
        self.assertEqual(self.signer.sign(ID, NOW + 0.9, BODY), self.headers)
        self.assertTrue(self.verified())

    def test_nothing_can_be_changed(self) -> None:
        """Body, id, time, signature."""
        self.assertFalse(self.verified(body=BODY + b" "))
        self.assertFalse(self.verified(id=ID + b"x"))
        self.assertFalse(self.verified(timestamp=b"%d" % (NOW + 1)))
        self.assertFalse(self.verified(signature=SIGNATURE.replace(b"OE=", b"OA=")))
        self.assertFalse(Signer(b"another secret of 24 byte").verify(self.headers, BODY, NOW))

    def test_old_and_future_ones_do_not_pass(self) -> None:
        """The tolerance is the same in both directions."""
        self.assertTrue(self.verified(NOW + 300))
        self.assertTrue(self.verified(NOW - 300))
        self.assertFalse(self.verified(NOW + 301))
        self.assertFalse(self.verified(NOW - 301))

    def test_keys_can_be_rotated(self) -> None:
        """One good signature among several is enough; unknown versions are ignored."""
        self.assertTrue(self.verified(signature=b"v1,AAAA v1a,xyz " + SIGNATURE))
        self.assertFalse(self.verified(signature=b"v1,AAAA v1a,xyz"))

    def test_an_invalid_header_is_no_error(self) -> None:
        """Whatever the headers contain, the signature is just not valid."""
        for signature in (b"", b"v1", b",", b"v1,!!!", b"\xff\xfe", SIGNATURE[3:]):
            self.assertFalse(self.verified(signature=signature), signature)
        for time in (
            b"",
            b"now",
            b"-1",
            b"1614265330.0",
            b" 1614265330",
            "١".encode(),
            b"\xb2",
            b"9" * 5000,
        ):
            self.assertFalse(self.verified(timestamp=time), time)
        self.assertFalse(self.verified(id=b""))
        self.assertFalse(self.signer.verify({}, BODY, NOW))

    def test_a_short_secret_is_refused(self) -> None:
        """It could be guessed."""
        self.assertRaises(ValueError, Signer, b"x" * 15)

    def test_the_clocks_of_peers_may_differ(self) -> None:
        """By some minutes; after that a captured request is of no use."""
        signer = Signer(b"x" * 16)
        headers = signer.sign(b"i", NOW, b"")
        self.assertTrue(signer.verify(headers, b"", NOW + PEER_TOLERANCE))
        self.assertFalse(signer.verify(headers, b"", NOW + PEER_TOLERANCE + 1))
        self.assertLessEqual(PEER_TOLERANCE, 900)
