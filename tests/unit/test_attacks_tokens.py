"""
Attacks on tokens, and on requests without one.

Each test is named by its row in the list of attacks.  The next rows are in `test_attacks_access`
and `test_attacks_parts`.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from asyncplumber.testing import NOW, MemoryServer
from harness.frames import CLOSE, close_code, server_frames
from harness.mounted import MountedServer
from tests.attackers import (
    APP,
    AUDIENCE,
    IDP,
    JWKS_URL,
    SECRET,
    AttackCase,
    b64,
    hs256,
    rs256,
    rsa_jwk,
    rsa_key,
)

EVIL = "https://evil.example/keys"


class TokenAttacks(AttackCase):
    """Rows 1 to 10."""

    def test_the_setting(self) -> None:
        """Good tokens of both issuers are accepted: else the tests below would prove nothing."""
        self.good(self.token())
        self.good(self.idp_token())

    def test_01_a_large_post_without_credential(self) -> None:
        """It is refused, with a challenge that has no error."""
        reply = self.post("a", body=b"x" * 1_048_576)
        self.assertEqual(reply.status, 401)
        self.assertEqual(reply.headers[b"www-authenticate"], b'Bearer realm="asyncplumber"')
        self.nothing_stored()

    def test_02_algorithms(self) -> None:
        """Every spelling of none, another type, and no algorithm at all."""
        for alg in ("none", "None", "nOnE", "NONE", "", None, ["HS256"], ..., "hs256", "HS512"):
            header = {"alg": alg, "kid": "k1", "typ": "at+jwt"}
            header = {name: value for name, value in header.items() if value is not ...}
            for sign in (lambda _: b"", hs256(SECRET)):
                self.bad(self.signed(header, self.claims(), sign))
        header = {"alg": "HS256", "kid": "k1", "typ": "at+jwt"}
        self.bad(self.signed(header, self.claims(), lambda _: b""))

    def test_03_a_public_key_is_no_secret(self) -> None:
        """In whichever spelling it is taken for one."""
        public = rsa_key("r1").public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        jwk = rsa_jwk(rsa_key("r1"), "r1")
        for key in (
            pem,
            pem.replace(b"\n", b"\r\n"),
            pem.rstrip(b"\n"),
            b" " + pem,
            der,
            public.public_bytes(Encoding.PEM, PublicFormat.PKCS1),
            public.public_bytes(Encoding.DER, PublicFormat.PKCS1),
            json.dumps(jwk).encode(),
            json.dumps(jwk, separators=(",", ":"), sort_keys=True).encode(),
            jwk["n"].encode(),
            public.public_numbers().n.to_bytes(256, "big"),
            b"",
        ):
            for issuer in (IDP, APP):
                header = {"alg": "HS256", "kid": "r1", "typ": "at+jwt"}
                self.bad(self.signed(header, self.claims(iss=issuer), hs256(key)))

    def test_03_forged_signatures(self) -> None:
        """Everything is right but the key, or the content, or some bits."""
        header = {"alg": "HS256", "kid": "k1", "typ": "at+jwt"}
        rsa = {"alg": "RS256", "kid": "r1", "typ": "at+jwt"}
        theirs = self.claims(iss=IDP)
        for sign in (
            hs256(b"another secret that has 32 bytes!"),
            lambda _: bytes(32),
            lambda _: b"x",
        ):
            self.bad(self.signed(header, self.claims(), sign))
        for sign in (
            rs256(rsa_key("evil")),
            lambda _: bytes(256),
            lambda _: b"x" * 256,
            lambda _: b"x",
        ):
            self.bad(self.signed(rsa, theirs, sign))
        more = {"subscribe": [{"all": True}], "publish": [{"all": True}]}
        for mine, root in (
            (self.token(), self.token(sub="root", plumber=more)),
            (self.idp_token(), self.idp_token(sub="root", plumber=more)),
        ):
            first, _, signature = mine.split(".")
            self.bad(f"{first}.{root.split('.')[1]}.{signature}")
            self.bad(f"{first}.{mine.split('.')[1]}.{root.split('.')[2]}")
            flipped = bytearray(urlsafe_b64decode(signature + "=="))
            flipped[0] ^= 1
            self.bad(f"{first}.{mine.split('.')[1]}.{b64(bytes(flipped))}")
        self.good(self.token())

    def test_04_a_key_of_another_issuer(self) -> None:
        """Also if its id is the same, whichever key was used first."""
        # The IdP calls its key as the application calls its secret.
        self.network.published[JWKS_URL] = self.jwks(rsa_jwk(rsa_key("r1"), "k1"))
        for first in (self.token(), self.idp_token(kid="k1")):
            self.server = self.start_server()
            self.good(first)
            accepted = self.server.plumber.intake.accepted
            self.server.advance(60)  # no subscriber is left
            mine = {"alg": "RS256", "kid": "k1", "typ": "at+jwt"}
            crossed = self.signed(mine, self.claims(iss=APP), rs256(rsa_key("r1")))
            theirs = {"alg": "HS256", "kid": "k1", "typ": "at+jwt"}
            back = self.signed(theirs, self.claims(iss=IDP), hs256(SECRET))
            for token in (crossed, back):
                self.assertEqual(self.post("user-42", self.bearer(token)).status, 401)
                self.assertEqual(self.statuses("user-42", self.bearer(token)), [401] * 3)
            self.assertEqual(self.server.plumber.intake.accepted, accepted)

    def test_05_keys_that_the_token_brings_along(self) -> None:
        """They are not used, and nothing is fetched."""
        asked = len(self.network.asked)
        jwk = rsa_jwk(rsa_key("evil"), "evil")
        self.network.published[EVIL] = self.jwks(jwk)
        for member in (
            {"jku": EVIL},
            {"x5u": EVIL},
            {"jwk": jwk},
            {"x5c": ["MIIB"]},
            {"jwk": {"kty": "oct", "k": b64(b"evil" * 8)}},
        ):
            header = {"alg": "RS256", "kid": "evil", "typ": "at+jwt", **member}
            self.bad(self.signed(header, self.claims(iss=IDP), rs256(rsa_key("evil"))))
            self.bad(self.token({**member}))
        self.assertEqual(len(self.network.asked), asked)

    def test_06_issuer_audience_and_subject(self) -> None:
        """Exactly ours."""
        for iss in ([APP], f"{APP}/", f"{APP}.evil", APP.upper(), ..., None, {APP: 1}, ""):
            self.bad(self.token(iss=iss))
        for aud in (..., None, "https://other.example", [], ["https://other.example"], {}, 7, [7]):
            self.bad(self.token(aud=aud))
        for sub in (..., None, 7, "", [], "a\nb", "x" * 257):
            self.bad(self.token(sub=sub))
        self.good(self.token(aud=[AUDIENCE, "https://other.example"]))

    def test_07_times_that_are_none(self) -> None:
        """Also those that Python's JSON takes for numbers."""
        for exp in (..., None, "9999999999", True, -1, [], {}, int(NOW) + 25 * 3600, 10**400):
            self.bad(self.token(exp=exp))
        for text in (b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"0x7fffffff"):
            claims = json.dumps(self.claims(exp=0)).encode().replace(b'"exp": 0', b'"exp": ' + text)
            self.assertIn(text, claims)
            header = {"alg": "HS256", "kid": "k1", "typ": "at+jwt"}
            self.bad(self.signed(header, claims, hs256(SECRET)))
        for name in ("nbf", "iat"):
            for value in ("1", True, int(NOW) + 31, float(NOW) + 1e9):
                changes: dict[str, Any] = {name: value}
                self.bad(self.token(None, **changes))

    def test_07_the_end_of_a_token(self) -> None:
        """A POST may be late, and a stream must have a few seconds left, in which it ends."""
        late = self.bearer(self.token(exp=int(NOW) - 31))
        self.assertEqual(self.post("user-42", late).status, 401)
        self.assertEqual(self.statuses("user-42", late), [401] * 3)
        short = self.bearer(self.token(exp=int(NOW) + 4))
        self.assertEqual(self.statuses("user-42", short), [401] * 3)
        self.nothing_stored()
        self.assertEqual(
            self.post("user-42", self.bearer(self.token(exp=int(NOW) - 29))).status, 202
        )
        token = self.bearer(self.token(exp=int(NOW) + 6))
        socket = self.handshake("user-42", token)
        stream = self.send("GET", "/events/user-42", "Accept: text/event-stream", token)
        poll = self.send("GET", "/events/user-42?wait=120", token)
        for client in (socket, stream):
            client.received()
        self.assertEqual(poll.received(), b"")
        self.server.advance(6)
        frames = server_frames(socket.received())
        self.assertEqual((frames[-1][0], close_code(frames[-1][1])), (CLOSE, 4401))
        self.assertIn(b"plumber.bye", stream.received())
        self.assertTrue(poll.received().startswith(b"HTTP/1.1 200 "))

    def test_08_members_that_are_there_twice(self) -> None:
        """Two readers might take different ones."""
        header = {"alg": "HS256", "kid": "k1", "typ": "at+jwt"}
        claims = json.dumps(self.claims()).encode()
        for name in (b'"exp": 1, ', b'"sub": "root", ', b'"plumber": {}, ', b'"iss": "x", '):
            self.bad(self.signed(header, b"{" + name + claims[1:], hs256(SECRET)))
        for text in (
            b'{"alg":"none","alg":"HS256","kid":"k1","typ":"at+jwt"}',
            b'{"alg":"HS256","alg":"none","kid":"k1","typ":"at+jwt"}',
            b'{"alg":"HS256","kid":"k2","kid":"k1","typ":"at+jwt"}',
        ):
            self.bad(self.signed(text, self.claims(), hs256(SECRET)))

    def test_09_sizes_and_other_forms(self) -> None:
        """A token has one form, and no other stands for it."""
        header = {"alg": "HS256", "kid": "k1", "typ": "at+jwt"}
        deep = b'{"a":' + b"[" * 5000
        self.bad(self.signed(header, deep, hs256(SECRET)))
        self.bad(self.signed(header, b"[" * 5000, hs256(SECRET)))
        self.bad(self.signed(b"[" * 700, self.claims(), hs256(SECRET)))
        self.bad(self.token(padding="x" * 9 * 1024))
        huge = self.bearer(self.token(padding="x" * 17 * 1024))
        received = self.send("POST", "/hooks/user-42", huge, body=b"1").received()
        # A site of twisted.web has its own limit on a line, and hangs up.
        is_own = self.make_server is MemoryServer
        self.assertTrue(received.startswith(b"HTTP/1.1 431 ") if is_own else not received)
        token = self.token(sub="user-42")
        for other in (
            token + "=",
            token[:-1] + chr(ord(token[-1]) + 1),
            token + ".",
            "." + token,
            token.replace(".", "..", 1),
            token.replace(".", ".A.", 1),
            token.upper(),
            token[:-2],
            f"{token}%20",
            f'"{token}"',
        ):
            self.bad(other)
        dashed = next(
            found
            for number in range(1000)
            if "-" in (found := self.token(jti=str(number))).rpartition(".")[2]
        )
        self.bad(dashed.replace("-", "+"))
        for claims in (
            json.dumps(self.claims()).encode("utf-16"),
            json.dumps(self.claims()).encode("utf-16-be"),
            b"\xef\xbb\xbf" + json.dumps(self.claims()).encode(),
            json.dumps(self.claims(sub="é"), ensure_ascii=False).encode("latin-1"),
            b"",
            b"null",
            b"[]",
            b'"x"',
        ):
            self.bad(self.signed(header, claims, hs256(SECRET)))

    def test_09_bytes_that_are_no_token(self) -> None:
        """Each is refused, and none of them is a 500."""
        for text in ("é", "\udcff\udcfe", "x" * 9000, ".", "..", "...", "a.b.c", "e30.e30.", "%00"):
            self.secret(text)
            reply = self.post("user-42", self.bearer(text))
            self.assertEqual(reply.status, 401, text)
        for line in ("Authorization:", "Authorization: Bearer", "Authorization: Basic eDp5"):
            self.assertEqual(self.post("user-42", line).status, 401, line)
        self.nothing_stored()

    def test_10_other_kinds_of_tokens(self) -> None:
        """Extensions, the JSON form, encrypted tokens, tickets and ID tokens."""
        for member in (
            {"crit": ["b64"], "b64": False},
            {"crit": ["x"]},
            {"b64": True},
            {"crit": []},
        ):
            self.bad(self.token({**member}))
        for typ in ("plumber-ticket+jwt", "JWT", "", "at+jwt ", None, 7, ["at+jwt"], ...):
            self.bad(self.token({"typ": typ}))
        self.bad(self.token({"typ": "JWT"}, nonce="n"))
        token = self.token()
        header, claims, signature = token.split(".")
        self.bad(f"{header}.{claims}.{signature}.{claims}.{signature}")
        encrypted = b64(b'{"alg":"dir","enc":"A128GCM"}')
        self.bad(f"{encrypted}..{claims}.{claims}.{signature}")
        flat = {"payload": claims, "protected": header, "signature": signature}
        self.bad(json.dumps(flat, separators=(",", ":")))
        one = {"protected": header, "signature": signature}
        self.bad(json.dumps({"payload": claims, "signatures": [one]}, separators=(",", ":")))


class KeyIdAttacks(AttackCase):
    """Row 4, where two issuers call keys of the same kind by the same name."""

    def toml(self) -> str:
        """Let the application publish its keys as well."""
        url = f"{APP}/certs"
        self.network.published[url] = self.jwks(rsa_jwk(rsa_key("r2"), "1"))
        self.network.published[JWKS_URL] = self.jwks(rsa_jwk(rsa_key("r1"), "1"))
        return super().toml().replace('keys_file = "app.jwks"', f'jwks_url = "{url}"')

    def test_04_a_key_id_of_two_issuers(self) -> None:
        """A key verifies the tokens of its own issuer, whichever was used first."""
        own = {APP: "r2", IDP: "r1"}
        for order in ([APP, IDP], [IDP, APP]):
            self.server = self.start_server()
            for issuer in order:
                token = self.idp_token("1", own[issuer], iss=issuer, sub=f"of {issuer}")
                self.assertEqual(self.post("user-42", self.bearer(token)).status, 202)
            for issuer, other in (order, order[::-1]):
                token = self.idp_token("1", own[other], iss=issuer)
                self.assertEqual(self.post("user-42", self.bearer(token)).status, 401)
                self.assertEqual(self.statuses("user-42", self.bearer(token)), [401] * 3)


class MountedKeyIdAttacks(KeyIdAttacks):
    """The same in a site of another application."""

    make_server = MountedServer


class MountedTokenAttacks(TokenAttacks):
    """The same in a site of another application."""

    make_server = MountedServer


class BodyAttacks(AttackCase):
    """Row 1, at our own port, where nobody else reads the body first."""

    def test_01_the_body_of_a_refused_post_is_not_read(self) -> None:
        """The client is not asked for it, and what it sends all the same is not kept."""
        client = self.send("POST", "/hooks/a", "Content-Length: 1048576", "Expect: 100-continue")
        received = client.received()
        self.assertTrue(received.startswith(b"HTTP/1.1 401 "))
        self.assertNotIn(b"100 Continue", received)
        client.send(b"x" * 1_048_576)
        self.assertEqual(client.received(), b"")
        self.nothing_stored()
