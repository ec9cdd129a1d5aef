"""Keys of tokens: which ones are taken from a file, and what is said about the others."""

from __future__ import annotations

import json
from typing import Any

from joserfc.jwk import OKPKey
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.tokens.jose import LARGEST_SET, MAX_KEYS, load_jwk, load_keys
from asyncplumber.auth.tokens.signing_keys import (
    MOST_SECRETS,
    KeySet,
    Secret,
    Secrets,
    parse_secrets,
)
from harness.tokens import SECRET, ec_key, encode, okp_key, rsa_key, sign


def jwk(key: Any, **changes: Any) -> dict[str, Any]:
    """Return the public part of a key; None takes a member out."""
    members = {**key.as_dict(private=False), **changes}
    return {name: value for name, value in members.items() if value is not None}


def secret(**changes: Any) -> dict[str, Any]:
    return {"kty": "oct", "k": encode(SECRET).decode("ascii"), **changes}


class JwkTests(SynchronousTestCase):
    """One public key."""

    def refused(self, member: dict[str, Any]) -> str:
        return str(self.assertRaises(ValueError, load_jwk, member))

    def test_each_type(self) -> None:
        """It verifies by the one algorithm of its type."""
        for key, alg in ((rsa_key(), "RS256"), (ec_key(), "ES256"), (okp_key(), "Ed25519")):
            for given in (None, alg):
                loaded = load_jwk(jwk(key, alg=given, kid="k", use="sig", x5t="x", more=[7]))
                self.assertEqual((loaded.alg, loaded.kid), (alg, "k"))
                signature = sign(key, alg, b"text")
                self.assertTrue(loaded.verify(b"text", signature))
                self.assertFalse(loaded.verify(b"texT", signature))
                self.assertFalse(loaded.verify(b"text", b""))
        self.assertEqual(load_jwk(jwk(okp_key(), alg="EdDSA")).alg, "Ed25519")
        self.assertIsNone(load_jwk(jwk(ec_key(), key_ops=["verify", "sign"])).kid)

    def test_other_algorithms(self) -> None:
        """A key of another algorithm is no key for us, whatever its type."""
        for key, alg in (
            (rsa_key(), "PS256"),
            (rsa_key(), "RS512"),
            (rsa_key(), "HS256"),
            (rsa_key(), "none"),
            (ec_key(), "RS256"),
            (okp_key(), "ES256"),
            (okp_key(), 7),
            (okp_key(), ["EdDSA"]),
        ):
            self.assertIn("is for", self.refused(jwk(key, alg=alg)))

    def test_other_types_and_curves(self) -> None:
        """P-384, X25519, secrets, and what is none."""
        for member in (
            jwk(ec_key("P-384")),
            jwk(ec_key("P-521")),
            jwk(ec_key("secp256k1")),
            jwk(OKPKey.generate_key("X25519")),
            jwk(OKPKey.generate_key("Ed448")),
            {**jwk(ec_key()), "crv": ["P-256"]},
            {**jwk(ec_key()), "kty": "RSA"},
            {**jwk(rsa_key()), "kty": "rsa"},
            {**jwk(rsa_key()), "kty": ["RSA"]},
            {**jwk(rsa_key()), "kty": None},
            {},
        ):
            self.refused(member)
        self.assertIn("no public key", self.refused(secret()))

    def test_weak_keys(self) -> None:
        """RSA has 2048 to 4096 bits, and the exponent that everybody has."""
        good = jwk(rsa_key())
        for exponent in (3, 1, 2**32 + 1):
            data = exponent.to_bytes((exponent.bit_length() + 7) // 8, "big")
            self.refused({**good, "e": encode(data).decode("ascii")})
        small = ((1 << 2046) + 1).to_bytes(256, "big")
        self.assertIn("bits", self.refused({**good, "n": encode(small).decode("ascii")}))
        large = ((1 << 4096) + 1).to_bytes(513, "big")
        self.assertIn("bits", self.refused({**good, "n": encode(large).decode("ascii")}))
        largest = ((1 << 4095) + 1).to_bytes(512, "big")
        load_jwk({**good, "n": encode(largest).decode("ascii")})

    def test_keys_for_something_else(self) -> None:
        """For encryption, or for signing only."""
        for changes in ({"use": "enc"}, {"use": 7}, {"key_ops": ["sign"]}, {"key_ops": "verify"}):
            self.refused(jwk(rsa_key(), **changes))

    def test_private_keys(self) -> None:
        """They belong to the issuer alone."""
        for key in (rsa_key(), ec_key(), okp_key()):
            member: Any = key.as_dict(private=True)
            message = self.refused(member)
            self.assertIn("private", message)
            self.assertNotIn(member["d"], message)

    def test_malformed_keys(self) -> None:
        """Values of other types, points that are on no curve, ids that are none."""
        for member in (
            jwk(rsa_key(), n=None), jwk(rsa_key(), n=7), jwk(rsa_key(), n=""), jwk(rsa_key(), e=[]),
            jwk(rsa_key(), n="!!"), jwk(ec_key(), x="AAAA"), jwk(ec_key(), y=None),
            jwk(ec_key(), x=7), jwk(okp_key(), x=""), jwk(okp_key(), x="AAAA"),
            jwk(okp_key(), x={}), jwk(rsa_key(), kid=7), jwk(rsa_key(), kid=""),
            jwk(rsa_key(), kid="a" * 129),
        ):  # fmt: skip
            self.refused(member)


class FileTests(SynchronousTestCase):
    """A file with keys."""

    def refused(self, value: object) -> str:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        return str(self.assertRaises(ValueError, load_keys, data))

    def test_a_set(self) -> None:
        """With secrets, which a file may have."""
        members = [jwk(rsa_key(), kid="r"), secret(kid="s"), secret(), jwk(ec_key(), kid="s")]
        keys = load_keys(json.dumps({"keys": members, "more": 1}).encode())
        self.assertEqual([key.kid for key in keys.keys("r", "RS256")], ["r"])
        self.assertEqual(len(keys.keys(None, "HS256")), 2)
        self.assertEqual(len(keys.keys("s", "HS256")), 1)
        self.assertEqual(len(keys.keys("s", "ES256")), 1)
        self.assertEqual(list(keys.keys("r", "HS256")), [])
        self.assertEqual(list(keys.keys("other", "RS256")), [])

    def test_one_key(self) -> None:
        """As a JWK, or in PEM."""
        for key, alg in ((rsa_key(), "RS256"), (ec_key(), "ES256"), (okp_key(), "Ed25519")):
            pem: bytes = key.as_pem(private=False)
            for data in (json.dumps(jwk(key)).encode(), pem, b"\n" + pem + b"\n"):
                [found] = load_keys(data).keys(None, alg)
                self.assertTrue(found.verify(b"text", sign(key, alg, b"text")))

    def test_wrong_pem(self) -> None:
        """A private key, a certificate, a key of another type, rubbish."""
        private: bytes = rsa_key().as_pem(private=True)
        self.assertIn("public key", self.refused(private))
        for data in (
            b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
            b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
            b"-----BEGIN PUBLIC KEY-----",
            ec_key("P-384").as_pem(private=False),
            OKPKey.generate_key("X25519").as_pem(private=False),
        ):
            self.refused(data)

    def test_one_bad_key(self) -> None:
        """It is named by its number, and no secret is repeated."""
        members = [jwk(rsa_key()), secret(k="c2hvcnQ")]
        message = self.refused({"keys": members})
        self.assertIn("key 2", message)
        self.assertNotIn("c2hvcnQ", message)
        for bad in ({"k": 7}, {"k": ""}, {"k": "a+b/" * 20}, {"alg": "RS256"}, {"use": "enc"}):
            self.refused({"keys": [secret(**bad)]})
        self.refused({"keys": [{"kty": "oct"}]})

    def test_what_is_no_set(self) -> None:
        """Or an empty one, or one with a name twice."""
        for value in (
            {"keys": []}, {"keys": {}}, {"keys": [7]}, {"keys": None}, [], 7, b"", b"secret",
            b'{"keys":[],"keys":[]}', {"keys": [jwk(rsa_key(), kid="a"), jwk(rsa_key(), kid="a")]},
        ):  # fmt: skip
            self.refused(value)

    def test_sizes(self) -> None:
        """50 keys, 64 KiB."""
        load_keys(json.dumps({"keys": [secret()] * MAX_KEYS}).encode())
        self.refused({"keys": [secret()] * (MAX_KEYS + 1)})
        data = json.dumps({"keys": [secret()]}).encode()
        load_keys(data.ljust(LARGEST_SET))
        self.refused(data.ljust(LARGEST_SET + 1))


class SecretsTests(SynchronousTestCase):
    """`--jwt-secret-file`."""

    def test_the_first_signs_and_all_verify(self) -> None:
        """So that they can be rotated."""
        old, new = b"o" * 32, b"n" * 32
        secrets = Secrets([new, old])
        self.assertTrue(Secret(new).verify(b"text", secrets.signing.sign(b"text")))
        for one in (old, new):
            signature = Secret(one).sign(b"text")
            self.assertTrue(
                any(key.verify(b"text", signature) for key in secrets.keys("x", "HS256"))
            )
        self.assertEqual(list(secrets.keys(None, "RS256")), [])

    def test_limits(self) -> None:
        """32 bytes, and 16 of them."""
        self.assertRaises(ValueError, Secret, b"a" * 31)
        Secrets([b"a" * 32] * MOST_SECRETS)
        for wrong in ([], [b"a" * 31], [b"a" * 32] * (MOST_SECRETS + 1)):
            self.assertRaises(ValueError, Secrets, wrong)

    def test_a_file(self) -> None:
        """One a line, in their order; empty lines and comments are left out."""
        new, old = "Zt8mXq2Lw0PfRb5nYc7sKd1vHg4jTe6u", "more than 32 bytes, with äöü in it"
        text = f"# since November\n{new}\n\n  {old}\r\n"
        self.assertEqual(parse_secrets(text.encode()), (new.encode(), old.encode()))

    def test_a_wrong_file(self) -> None:
        """The number of the line is named, and never the secret."""
        good = SECRET.decode()
        for bad, part in (
            ("k1 has less than 32 bytes", "32 bytes"),
            ("changeme-changeme-changeme-changeme", "example"),
            ("k1 has a tab in the middle\tof 32 bytes or more", "not text"),
            ("k1 has a zero in the middle\0of 32 bytes or more", "not text"),
        ):
            error = self.assertRaises(ValueError, parse_secrets, f"{good}\n{bad}\n".encode())
            self.assertIn("line 2", str(error))
            self.assertIn(part, str(error))
            self.assertNotIn(bad, str(error))
        self.assertRaisesRegex(ValueError, "not text", parse_secrets, b"\xff" * 32)
        self.assertRaisesRegex(ValueError, "no secret", parse_secrets, b"\n# none\n")
        most = [f"{number:02} {good}" for number in range(MOST_SECRETS + 1)]
        self.assertRaisesRegex(ValueError, "more than", parse_secrets, "\n".join(most).encode())
        self.assertEqual(len(parse_secrets("\n".join(most[1:]).encode())), MOST_SECRETS)

    def test_a_wrong_replacement(self) -> None:
        """It changes nothing."""
        secrets = Secrets([SECRET])
        self.assertRaises(ValueError, secrets.replace, [])
        self.assertEqual((secrets.generation, len(secrets.keys(None, "HS256"))), (0, 1))

    def test_an_empty_key_set(self) -> None:
        """It would refuse everybody."""
        self.assertRaises(ValueError, KeySet, [])
