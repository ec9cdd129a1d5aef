"""
The profile of tokens, as an attacker meets it.

The numbers are those of the table of tests in the design of authentication: what is refused is
refused with 401 and ``invalid_token``, and the client never learns why.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import replace
from typing import Any

from joserfc.jwk import RSAKey
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.credentials import MAX_HEADER_TOKEN
from asyncplumber.auth.tokens.claims import (
    LEEWAY,
    MAX_AGE,
    MAX_HEADER,
    MAX_KID_LENGTH,
    PLAIN_TYPES,
    STREAM_MARGIN,
    Rules,
    read,
)
from asyncplumber.auth.tokens.jose import load_jwk
from asyncplumber.auth.tokens.mint import mint
from asyncplumber.auth.tokens.signing_keys import Key, KeySet, Secret, Secrets
from asyncplumber.auth.tokens.templates import Template
from asyncplumber.auth.tokens.verifier import Issuer, Verifier
from asyncplumber.errors import InvalidToken, Unavailable
from asyncplumber.grant import MAX_ENTRIES, Accounts, Action, Grant
from harness.tokens import (
    APP,
    AUDIENCE,
    IDP,
    NOW,
    SECRET,
    claims,
    ec_key,
    encode,
    okp_key,
    rsa_key,
    token,
)

RULES = Rules(audience=AUDIENCE)


def public(key: Any, kid: str, **members: Any) -> Key:
    """Return the public part of a key, as it is loaded from a JWK."""
    return load_jwk({**key.as_dict(private=False), "kid": kid, **members})


class VerifierTestCase(SynchronousTestCase):
    """An issuer `app` with a secret ``k1``, and an issuer `idp` with three public keys."""

    def setUp(self) -> None:
        self.now = NOW
        self.app = KeySet([Secret(SECRET, "k1")])
        self.idp = KeySet(
            [public(rsa_key(), "r1"), public(ec_key(), "e1"), public(okp_key(), "d1")]
        )
        self.verifier = self.make()

    def make(self, other: Issuer | None = None, **issuers: Issuer) -> Verifier:
        known = {APP: Issuer(RULES, self.app), IDP: Issuer(RULES, self.idp), **issuers}
        return Verifier(known, lambda: self.now, other)

    def grant(self, text: str, action: Action | None = Action.SUBSCRIBE) -> Grant:
        found = self.verifier.grant(text, action)
        assert isinstance(found, Grant)
        return found

    def assert_refused(
        self, text: str, reason: str | None = None, action: Action = Action.SUBSCRIBE
    ) -> None:
        """The token is refused; for this reason, if one is given."""
        error = self.assertRaises(InvalidToken, self.grant, text, action)
        self.assertEqual(error.status, 401)
        self.assertIn((b"WWW-Authenticate", error.challenge), error.headers)
        self.assertEqual(error.message, InvalidToken.default)
        if reason is not None:
            self.assertEqual(error.reason, reason)


class AcceptedTests(VerifierTestCase):
    """Tokens that are good."""

    def test_what_a_token_says(self) -> None:
        """All of it is in the grant."""
        self.assertEqual(
            self.grant(token(jti="t-1")),
            Grant(
                "user-42",
                Accounts(frozenset(["user-42"])),
                Accounts(frozenset(["jobs"])),
                NOW + 3600,
                NOW - 10,
                "t-1",
                "jwt",
            ),
        )

    def test_each_algorithm(self) -> None:
        """By its own key; EdDSA under its old name and its new one."""
        for alg, key, kid in (
            ("RS256", rsa_key(), "r1"),
            ("ES256", ec_key(), "e1"),
            ("Ed25519", okp_key(), "d1"),
            ("EdDSA", okp_key(), "d1"),
        ):
            header = {"alg": alg, "kid": kid, "typ": "at+jwt"}
            signing = "Ed25519" if alg == "EdDSA" else alg
            text = token(claims(iss=IDP), header, key, signing)
            self.assertEqual(self.grant(text).subject, "user-42", alg)
            without = token(claims(iss=IDP), {"alg": alg, "typ": "at+jwt"}, key, signing)
            self.assertEqual(self.grant(without).subject, "user-42", alg)

    def test_types(self) -> None:
        """That of RFC 9068, in any case; others only where the issuer is configured so."""
        for typ in ("at+jwt", "AT+JWT", "application/at+jwt", "Application/At+Jwt"):
            self.grant(token(header={"alg": "HS256", "typ": typ}))
        plain: tuple[dict[str, Any], ...] = (
            {"alg": "HS256"},
            {"alg": "HS256", "typ": "JWT"},
            {"alg": "HS256", "typ": "jwt", "cty2": "x"},
        )
        for header in plain:
            self.assert_refused(token(header=header), "type")
        self.verifier = self.make(
            **{APP: Issuer(replace(RULES, types=PLAIN_TYPES), self.app)}  # type: ignore[arg-type]
        )
        for header in plain:
            self.grant(token(header=header))
        others: list[Any] = ["plumber-ticket+jwt", "secevent+jwt", "", None, 7, ["JWT"]]
        for other in others:
            self.assert_refused(token(header={"alg": "HS256", "typ": other}), "type")

    def test_a_token_that_a_library_makes(self) -> None:
        """Such as PyJWT by default: the type JWT, and a space after each colon."""
        self.verifier = self.make(Issuer(replace(RULES, types=PLAIN_TYPES), Secrets([SECRET])))
        payload: dict[str, Any] = {
            "aud": AUDIENCE,
            "sub": "user-42",
            "exp": int(NOW) + 60,
            "plumber": {"subscribe": ["user-42"]},
        }
        text = token(json.dumps(payload), '{"alg": "HS256", "typ": "JWT"}')
        self.assertEqual(self.grant(text).subscribe, Accounts(frozenset(["user-42"])))
        self.assertIsNone(self.grant(text).issued)

    def test_a_token_that_we_make(self) -> None:
        """`mint`, with all that it takes."""
        self.verifier = self.make(Issuer(RULES, Secrets([SECRET])))
        text = mint(
            SECRET,
            "Grüße",
            subscribe=["user-42", {"prefix": "team-7."}],
            publish=[{"all": True}],
            expires_in=60,
            audience=AUDIENCE,
            issuer="https://anybody.example.com",
            id="t-1",
            now=NOW,
        )
        grant = self.grant(text)
        self.assertEqual(
            (grant.subject, grant.until, grant.issued, grant.id),
            ("Grüße", NOW + 60, NOW, "t-1"),
        )
        self.assertIn("team-7.x", grant.subscribe)
        self.assertTrue(grant.publish.every)

    def test_what_cannot_be_minted(self) -> None:
        """It would not be accepted."""
        for change in (
            {"subject": ""},
            {"subject": "a\n"},
            {"id": ""},
            {"issuer": ""},
            {"subscribe": [""]},
            {"publish": "jobs"},
            {"secret": SECRET[:31]},
        ):
            values: dict[str, Any] = {"secret": SECRET, "subject": "user-42", **change}
            self.assertRaises(ValueError, mint, **values)


class RefusedTests(VerifierTestCase):
    """The rows of the table."""

    def test_2_algorithms_that_are_none(self) -> None:
        """Also with the right signature, and with none at all."""
        for alg in ("none", "None", "nOnE", "", None, ["HS256"], "HS512", "hs256", "PS256", 256):
            self.assert_refused(token(header={"alg": alg, "typ": "at+jwt"}), "algorithm")
        self.assert_refused(token(header={"typ": "at+jwt"}), "algorithm")
        head, payload, _ = token().split(".")
        none = encode({"alg": "none", "typ": "at+jwt"}).decode("ascii")
        for text in (f"{head}.{payload}.", f"{none}.{payload}.", f"{head}.{payload}"):
            self.assert_refused(text)

    def test_3_a_public_key_as_a_secret(self) -> None:
        """In any spelling of the key that the issuer shows to everybody."""
        key = rsa_key()
        pem: bytes = key.as_pem(private=False)
        jwk = key.as_dict(private=False)
        spellings = [
            pem,
            pem.replace(b"\n", b"\r\n"),
            pem.rstrip(b"\n"),
            b" " + pem,
            key.as_der(private=False),
            json.dumps(jwk).encode(),
            str(jwk["n"]).encode(),
        ]
        for secret in spellings:
            for kid in ({"kid": "r1"}, {}):
                header = {"alg": "HS256", "typ": "at+jwt", **kid}
                self.assert_refused(token(claims(iss=IDP), header, secret), "no such key")
        signed = (
            encode({"alg": "HS256", "typ": "at+jwt", "kid": "r1"}) + b"." + encode(claims(iss=IDP))
        )
        empty = hmac.digest(b"", signed, "sha256")
        self.assert_refused((signed + b"." + encode(empty)).decode("ascii"), "no such key")

    def test_3_each_key_has_one_algorithm(self) -> None:
        """The header does not choose how a key is used."""
        for alg, signing, key, kid in (
            ("RS256", "ES256", ec_key(), "e1"),
            ("ES256", "RS256", rsa_key(), "r1"),
            ("Ed25519", "RS256", rsa_key(), "r1"),
            ("HS256", "Ed25519", okp_key(), "d1"),
        ):
            header = {"alg": alg, "kid": kid, "typ": "at+jwt"}
            self.assert_refused(token(claims(iss=IDP), header, key, signing), "no such key")

    def test_4_two_issuers_with_the_same_key_id(self) -> None:
        """A key verifies the tokens of its own issuer only, whichever was seen first."""
        self.app = KeySet([public(rsa_key(), "1")])
        self.idp = KeySet([public(rsa_key(2048, 2), "1")])
        self.verifier = self.make()
        header = {"alg": "RS256", "kid": "1", "typ": "at+jwt"}
        for first, second in ((APP, IDP), (IDP, APP)):
            for issuer in (first, second):
                own = rsa_key() if issuer == APP else rsa_key(2048, 2)
                foreign = rsa_key(2048, 2) if issuer == APP else rsa_key()
                self.grant(token(claims(iss=issuer), header, own, "RS256"))
                self.assert_refused(
                    token(claims(iss=issuer), header, foreign, "RS256"), "signature"
                )

    def test_5_keys_that_the_sender_brings(self) -> None:
        """They are not looked at."""
        attacker = RSAKey.import_key(rsa_key(2048, 2).as_dict(private=True))
        for name, value in (
            ("jku", "https://evil.example/jwks"),
            ("x5u", "https://evil.example/cert"),
            ("jwk", attacker.as_dict(private=False)),
            ("x5c", ["MIIB"]),
        ):
            header = {"alg": "RS256", "kid": "r1", "typ": "at+jwt", name: value}
            self.assert_refused(token(claims(iss=IDP), header, attacker, "RS256"), "header")
            self.assert_refused(token(claims(iss=IDP), header, rsa_key(), "RS256"), "header")

    def test_6_issuers(self) -> None:
        """An exact text."""
        for issuer in (
            [APP],
            f"{APP}/",
            f"{APP}.evil",
            APP.upper(),
            "",
            7,
            {"iss": APP},
        ):
            self.assert_refused(token(iss=issuer), "issuer")
        payload = {**claims(), "iss": None}
        self.assert_refused(token(payload), "issuer")
        del payload["iss"]
        self.assert_refused(token(payload), "issuer")

    def test_6_audiences(self) -> None:
        """A text, or a list with ours."""
        for audience in ("other", AUDIENCE + "/", "", [], ["other"], [AUDIENCE, 7], 7, {}):
            self.assert_refused(token(aud=audience), "audience")
        self.assert_refused(token({**claims(), "aud": None}), "audience")
        self.assert_refused(token(aud=None), "audience")
        self.grant(token(aud=[AUDIENCE, "other"]))

    def test_6_subjects(self) -> None:
        """A name."""
        for subject in (7, "", "a\x00", "a\n", "\ud800", "a" * 257, ["user-42"], {}):
            self.assert_refused(token(sub=subject), "claims")
        self.assert_refused(token(sub=None), "claims")
        self.assertEqual(self.grant(token(sub="a" * 256)).subject, "a" * 256)

    def test_7_ends_that_are_none(self) -> None:
        """A number of seconds, in a time that can come."""
        self.assert_refused(token(exp=None), "expired")
        for end in ("9999999999", True, -1, 0, [NOW], {}, 10**30, 10**400, 1e100):
            self.assert_refused(token(exp=end), "expired")
        body = json.dumps(claims(exp=1)).replace('"exp": 1', '"exp": %s')
        for text in ("NaN", "Infinity", "-Infinity", "1e400", "null", "1" * 5000, "0x1", "1_0"):
            self.assert_refused(token(body % text))
        self.assertEqual(self.grant(token(exp=NOW + 60.5)).until, NOW + 60.5)

    def test_7_a_post_may_be_a_little_late(self) -> None:
        """The clocks of two machines differ."""
        post = Action.PUBLISH
        for late in (LEEWAY, LEEWAY + 1):
            self.assert_refused(token(exp=NOW - late), "expired", post)
        self.grant(token(exp=NOW - LEEWAY + 1), post)

    def test_7_a_stream_needs_some_time(self) -> None:
        """Else it would end when it has begun."""
        for left in (-1, 0, STREAM_MARGIN - 1, STREAM_MARGIN - 0.1):
            self.assert_refused(token(exp=NOW + left), "expired")
            self.grant(token(exp=NOW + left), Action.PUBLISH)
        for left in (STREAM_MARGIN, STREAM_MARGIN + 1):
            self.grant(token(exp=NOW + left))

    def test_7_a_token_lives_a_day_at_most(self) -> None:
        """From its issue, or from now if it does not tell that."""
        self.assert_refused(token(iat=NOW, exp=NOW + 25 * 3600), "lives too long")
        self.assert_refused(token(iat=NOW - 7200, exp=NOW + MAX_AGE - 7199), "lives too long")
        self.assert_refused(token(iat=None, exp=NOW + MAX_AGE + LEEWAY + 1), "lives too long")
        for iat in (NOW, None):
            self.grant(token(iat=iat, exp=NOW + MAX_AGE))

    def test_7_a_token_of_the_future(self) -> None:
        """By more than clocks differ."""
        for name in ("nbf", "iat"):
            self.assert_refused(token({**claims(), name: NOW + LEEWAY + 1}), "not yet valid")
            self.grant(token({**claims(), name: NOW + LEEWAY}))
            for value in ("1", True, -1, [], 10**400):
                self.assert_refused(token({**claims(), name: value}), "claims")
            self.assert_refused(token({**claims(), name: None}), "claims")

    def test_8_members_that_are_there_twice(self) -> None:
        """Two readers would understand them differently."""
        body = json.dumps(claims())[:-1]
        for more in ('"exp": 9e9', '"sub": "root"', '"plumber": {}', '"x": {"y": 1, "y": 2}'):
            self.assert_refused(token(f"{body}, {more}}}"), "malformed")
        for header in (
            '{"alg":"HS256","alg":"HS256","typ":"at+jwt"}',
            '{"alg":"none","typ":"at+jwt","alg":"HS256"}',
        ):
            self.assert_refused(token(header=header), "malformed")

    def test_9_nesting(self) -> None:
        """It ends the reading, and not the server."""
        for body in ("[" * 5000, "[" * 3000 + "]" * 3000, '{"a":' * 1000 + "1" + "}" * 1000):
            self.assert_refused(token(body), "malformed")

    def test_9_sizes(self) -> None:
        """8 KiB altogether, and 1 KiB for the header."""
        good = token()
        room = (MAX_HEADER_TOKEN - len(good)) * 3 // 4 - 10
        self.grant(token(more="a" * room))
        self.assert_refused(token(more="a" * (room + 20)), "too long")
        self.assert_refused(token(more="a" * 9216), "too long")
        base = len(json.dumps({"alg": "HS256", "typ": "at+jwt", "x": ""}, separators=(",", ":")))
        self.grant(token(header={"alg": "HS256", "typ": "at+jwt", "x": "a" * (MAX_HEADER - base)}))
        self.assert_refused(
            token(header={"alg": "HS256", "typ": "at+jwt", "x": "a" * (MAX_HEADER - base + 1)}),
            "too long",
        )

    def test_9_other_spellings(self) -> None:
        """Whoever changes the text must not get a second token that is as good."""
        good = token(header={"alg": "HS256", "typ": "at+jwt", "x": "~~~~~~"})
        self.grant(good)
        head, payload, signature = good.split(".")
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        last = alphabet.index(signature[-1])
        self.assertEqual(last % 4, 0, "32 bytes leave two bits of the last character")
        for text in (
            f"{good}=",
            f"{head}=.{payload}.{signature}",
            f"{good[:-1]}{alphabet[last + 1]}",
            f"{good[:-1]}{alphabet[last + 3]}",
            good.replace("-", "+"),
            good.replace("_", "/") if "_" in good else f"{good}/",
            f" {good}",
            f"{good}\n",
            f"{good}.",
            f".{good}",
            f"{good}.{signature}",
            f"{head}..{signature}",
            f"{head}.{payload}",
            good.replace("e", "é", 1),
            "",
            ".",
            "..",
        ):
            if text != good:
                self.assert_refused(text, "malformed")

    def test_9_other_encodings(self) -> None:
        """JSON is UTF-8."""
        for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig"):
            body = json.dumps(claims(sub="é~"), ensure_ascii=False).encode(encoding)
            self.assert_refused(token(body))
        for body in (
            b'{"sub":"\xff"}',
            b'{"sub":"\xed\xa0\x80"}',
            b'{"sub":"\xc0\x80"}',
            b"",
            b"7",
        ):
            self.assert_refused(token(body), "malformed")
        for header in ("[]", '"HS256"', "null", "7", ""):
            self.assert_refused(token(header=header), "malformed")

    def test_10_other_forms(self) -> None:
        """Extensions that change what is signed, other serialisations, other kinds of token."""
        for more in (
            {"crit": ["b64"], "b64": False},
            {"crit": ["x"], "x": 1},
            {"crit": []},
            {"b64": True},
            {"cty": "JWT"},
            {"zip": "DEF"},
            {"enc": "A256GCM"},
        ):
            self.assert_refused(token(header={"alg": "HS256", "typ": "at+jwt", **more}), "header")
        head, payload, signature = token().split(".")
        for text in (
            json.dumps({"payload": payload, "protected": head, "signature": signature}),
            json.dumps({"payload": payload, "signatures": []}),
            f"{head}.{payload}.{signature}.{payload}.{signature}",
        ):
            self.assert_refused(text, "malformed")
        self.assert_refused(token(header={"alg": "HS256", "typ": "plumber-ticket+jwt"}), "type")
        self.assert_refused(token(claims(nonce="x"), {"alg": "HS256", "typ": "JWT"}), "type")

    def test_10_an_id_token_where_plain_types_are_accepted(self) -> None:
        """It says who somebody is, to a client, and not what that one may do."""
        self.verifier = self.make(Issuer(replace(RULES, types=PLAIN_TYPES), Secrets([SECRET])))
        for name in ("nonce", "at_hash", "c_hash"):
            payload = {**claims(iss="x"), name: "y"}
            self.assert_refused(token(payload, {"alg": "HS256", "typ": "JWT"}), "type")
            self.grant(token(payload))

    def test_key_ids(self) -> None:
        """A text that the issuer has."""
        for kid in (7, None, ["k1"], {}, "a" * (MAX_KID_LENGTH + 1)):
            self.assert_refused(
                token(header={"alg": "HS256", "typ": "at+jwt", "kid": kid}), "header"
            )
        for kid in ("k2", "K1", "", "../k1", "a" * MAX_KID_LENGTH):
            self.assert_refused(
                token(header={"alg": "HS256", "typ": "at+jwt", "kid": kid}), "no such key"
            )
        self.grant(token(header={"alg": "HS256", "typ": "at+jwt", "kid": "k1"}))

    def test_without_key_id(self) -> None:
        """Of two keys, as during a rotation; of three, the issuer has to say which."""
        keys = [public(rsa_key(2048, number), f"r{number}") for number in (1, 2, 3)]
        text = token(claims(iss=IDP), {"alg": "RS256", "typ": "at+jwt"}, rsa_key(2048, 2), "RS256")
        self.idp = KeySet(keys[:2])
        self.verifier = self.make()
        self.grant(text)
        self.idp = KeySet(keys)
        self.verifier = self.make()
        self.assert_refused(text, "no such key")

    def test_ids(self) -> None:
        """They may be revoked by them, so they are names."""
        for id in ("", 7, "a\n", "a" * 257, []):
            self.assert_refused(token(jti=id), "claims")
        self.assert_refused(token({**claims(), "jti": None}), "claims")
        self.assertEqual(self.grant(token(jti="a" * 256)).id, "a" * 256)

    def test_signatures(self) -> None:
        """Of another key, of another text, cut, of another form."""
        head, payload, signature = token().split(".")
        other = token(sub="root").split(".")[1]
        self.assert_refused(f"{head}.{other}.{signature}", "signature")
        self.assert_refused(token(key=b"another secret of more than 32 bytes"), "signature")
        self.assert_refused(f"{head}.{payload}.{signature[:-4]}", "signature")
        for alg, key, kid in (("ES256", ec_key(), "e1"), ("Ed25519", okp_key(), "d1"),
                              ("RS256", rsa_key(), "r1")):  # fmt: skip
            header = {"alg": alg, "kid": kid, "typ": "at+jwt"}
            head, payload, _ = token(claims(iss=IDP), header, key, alg).split(".")
            for size in (1, 32, 63, 64, 65, 70, 256, 257, 1000):
                for byte in (b"\0", b"\xff"):
                    forged = encode(byte * size).decode("ascii")
                    self.assert_refused(f"{head}.{payload}.{forged}", "signature")

    def test_nothing_shows_the_token(self) -> None:
        """Neither its parts in a traceback nor the error."""
        text = token()
        error = self.assertRaises(InvalidToken, self.grant, text + "=")
        self.assertNotIn(text[:20], repr(read(text)) + repr(error) + str(error))


class GrantsTests(VerifierTestCase):
    """The list of accounts in a token."""

    def accounts(self, value: Any) -> Accounts:
        return self.grant(token(plumber={"subscribe": value})).subscribe

    def test_12_a_user_whose_name_is_an_asterisk(self) -> None:
        """A text is one account, always."""
        accounts = self.accounts(["*"])
        self.assertIn("*", accounts)
        for account in ("user-1", "", "**", "a*"):
            self.assertNotIn(account, accounts)
        self.assertNotIn("user-1", self.accounts(["user-.*", "user-?", "%", "user-"]))

    def test_patterns(self) -> None:
        """The two that there are."""
        self.assertEqual(
            self.accounts(["a", {"prefix": "team-7."}]),
            Accounts(frozenset(["a"]), ("team-7.",)),
        )
        self.assertTrue(self.accounts([{"all": True}]).every)

    def test_one_bad_entry_refuses_the_token(self) -> None:
        """It may be a restriction that is not understood."""
        for value in (
            "user-42", {"all": True}, True, None, 7, [7], [None], [""], ["a\n"], [["a"]],
            [{"all": False}], [{"all": 1}], [{}], [{"prefix": ""}], [{"prefix": 7}],
            [{"prefix": "a", "all": True}], [{"regex": ".*"}], ["a" * 257],
            ["good", {"prefix": "a", "not": "ab"}],
        ):  # fmt: skip
            self.assert_refused(token(plumber={"subscribe": value}), "grants")
        for lists in ([], "all", True, 7, {"admin": []}, {"subscribe": [], "until": 1}):
            self.assert_refused(token(plumber=lists), "grants")
        self.assert_refused(token({**claims(), "plumber": None}), "grants")

    def test_how_many(self) -> None:
        """64 in each list."""
        most = [f"user-{n}" for n in range(MAX_ENTRIES)]
        self.assertEqual(len(self.accounts(most).names), MAX_ENTRIES)
        self.assert_refused(token(plumber={"subscribe": [*most, "one more"]}), "grants")

    def test_none(self) -> None:
        """Such a token says who somebody is, and allows nothing."""
        for change in ({"plumber": {}}, {"plumber": None}):
            grant = self.grant(token(**change))
            self.assertFalse(grant.subscribe)
            self.assertFalse(grant.publish)
            self.assertFalse(grant.is_admin)

    def test_another_claim(self) -> None:
        """Some providers want a name that is a URL."""
        name = "https://example.com/plumber"
        self.verifier = self.make(Issuer(replace(RULES, claim=name), Secrets([SECRET])))
        grant = self.grant(token({**claims(iss="x"), name: {"subscribe": ["b"]}}))
        self.assertEqual(grant.subscribe, Accounts(frozenset(["b"])))
        self.assertFalse(grant.publish)


class TemplateTests(VerifierTestCase):
    """Accounts for the tokens of a provider who knows nothing of us."""

    def setUp(self) -> None:
        super().setUp()
        rules = replace(
            RULES,
            subscribe=Template.parse(["user-{sub}", {"prefix": "{org}."}, "news"]),
            publish=Template.parse([]),
        )
        self.verifier = self.make(Issuer(rules, Secrets([SECRET])))

    def test_it_is_filled_in(self) -> None:
        """From the claims."""
        grant = self.grant(token(iss="x", plumber=None, org="acme", sub="auth0|123"))
        self.assertEqual(
            grant.subscribe, Accounts(frozenset(["user-auth0|123", "news"]), ("acme.",))
        )

    def test_a_list_in_the_token_wins(self) -> None:
        """And is not added to."""
        grant = self.grant(token(iss="x", org="acme"))
        self.assertEqual(grant.subscribe, Accounts(frozenset(["user-42"])))

    def test_values_that_are_refused(self) -> None:
        """What is missing, or could mean something else inside of a name."""
        for org in (None, "", 7, "a/b", "a b", "a%2F", "*", "é", "a\n", "a" * 129, ["a"], "{sub}"):
            self.assert_refused(token(iss="x", plumber=None, org=org), "grants")

    def test_templates_that_are_wrong(self) -> None:
        """At the start, and not at the first token."""
        for value in (
            "user-{sub}", ["user-{sub"], ["user-sub}"], ["user-{}"], ["user-{{sub}}"], [""],
            [{"prefix": ""}], [{"all": False}], [7], [{"prefix": "{"}],
        ):  # fmt: skip
            self.assertRaises(ValueError, Template.parse, value)


class LaterKeys:
    """A source of keys that have to be fetched."""

    def __init__(self) -> None:
        self.generation = 0
        self.asked: list[tuple[str | None, str]] = []
        self.waiting: list[Deferred[Any]] = []

    def keys(self, kid: str | None, alg: str) -> Deferred[Any]:
        self.asked.append((kid, alg))
        waiting: Deferred[Any] = Deferred()
        self.waiting.append(waiting)
        return waiting


class CountingKey(Secret):
    """A secret that counts how often it verifies."""

    __slots__ = ("count",)

    def __init__(self, secret: bytes) -> None:
        super().__init__(secret)
        self.count = 0

    def verify(self, signed: bytes, signature: bytes) -> bool:
        self.count += 1
        return super().verify(signed, signature)


class KnownTokenTests(VerifierTestCase):
    """A token that was verified is looked up."""

    def setUp(self) -> None:
        super().setUp()
        self.key = CountingKey(SECRET)
        self.app = KeySet([self.key])
        self.verifier = self.make()

    def test_it_is_verified_once(self) -> None:
        """And gives the same grant."""
        text = token()
        self.assertIs(self.grant(text), self.grant(text, Action.PUBLISH))
        self.assertEqual(self.key.count, 1)

    def test_its_times_are_checked_at_every_use(self) -> None:
        """It ends as it would without."""
        text = token(exp=NOW + 60, nbf=NOW)
        self.grant(text)
        self.now = NOW + 56
        self.assert_refused(text, "expired")
        self.grant(text, Action.PUBLISH)
        self.now = NOW + 90
        self.assert_refused(text, "expired", Action.PUBLISH)
        self.now = NOW - 31  # the clock was set
        self.assert_refused(text, "not yet valid")
        self.assertEqual(self.key.count, 1)

    def test_a_refused_one_is_not_remembered(self) -> None:
        """It costs its sender the same each time."""
        text = token(key=b"another secret of more than 32 bytes")
        for _ in range(3):
            self.assert_refused(text, "signature")
        self.assertEqual(self.key.count, 3)

    def test_the_oldest_is_forgotten(self) -> None:
        """The one that was not used for the longest time."""
        self.verifier = Verifier({APP: Issuer(RULES, self.app)}, lambda: self.now, most=2)
        first, second, third = [token(jti=f"t-{n}") for n in range(3)]
        for text in (first, second, first, third):
            self.grant(text)
        self.assertEqual(self.key.count, 3)
        self.grant(first)
        self.assertEqual(self.key.count, 3)
        self.grant(second)
        self.assertEqual(self.key.count, 4)

    def test_new_keys(self) -> None:
        """What the old ones verified is verified again."""
        secrets = Secrets([SECRET])
        self.verifier = self.make(Issuer(RULES, secrets))
        text = token(iss="x")
        self.grant(text)
        new = b"a new secret, of more than 32 bytes too"
        secrets.replace([new, SECRET])
        self.grant(text)
        self.grant(token(iss="x", key=new))
        secrets.replace([new])
        self.assert_refused(text, "signature")
        self.grant(token(iss="x", key=new))

    def test_cheap_refusals_need_no_key(self) -> None:
        """Whoever floods us is to cost little."""
        for text in (
            token(exp=NOW - 60),
            token(aud="other"),
            token(header={"alg": "HS256", "typ": "JWT"}),
            token(header={"alg": "none"}),
            token(iss="x"),
        ):
            self.assert_refused(text)
        self.assertEqual(self.key.count, 0)


class LaterTests(VerifierTestCase):
    """Keys that come later."""

    def setUp(self) -> None:
        super().setUp()
        self.keys = LaterKeys()
        self.verifier = Verifier({APP: Issuer(RULES, self.keys)}, lambda: self.now)

    def later(self, text: str) -> Deferred[Grant]:
        found = self.verifier.grant(text, Action.SUBSCRIBE)
        assert isinstance(found, Deferred)
        return found

    def test_the_grant_comes_with_them(self) -> None:
        """And the token is known from then on."""
        text = token()
        found = self.later(text)
        self.assertNoResult(found)
        self.keys.waiting[0].callback([Secret(SECRET)])
        self.assertEqual(self.successResultOf(found), self.grant(text))
        self.assertEqual(self.keys.asked, [(None, "HS256")])

    def test_a_wrong_signature(self) -> None:
        """It fails the Deferred."""
        found = self.later(token(key=b"another secret of more than 32 bytes"))
        self.keys.waiting[0].callback([Secret(SECRET)])
        self.assertEqual(self.failureResultOf(found, InvalidToken).value.reason, "signature")

    def test_it_ends_meanwhile(self) -> None:
        """The time is that of the grant."""
        found = self.later(token(exp=NOW + 10))
        self.now += 6
        self.keys.waiting[0].callback([Secret(SECRET)])
        self.assertEqual(self.failureResultOf(found, InvalidToken).value.reason, "expired")

    def test_keys_that_cannot_be_had(self) -> None:
        """That is no fault of the token."""
        found = self.later(token())
        self.keys.waiting[0].errback(Unavailable())
        self.failureResultOf(found, Unavailable)
