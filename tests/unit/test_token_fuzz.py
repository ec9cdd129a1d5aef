"""
Tokens and credentials that nobody should send, and mutations of good ones.

``tests/corpus/tokens`` has a file for each idea: put into it what a fuzzer or a stranger found.
Those that begin with ``good-`` are accepted at the time `NOW`, by the keys in ``keys.json``.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.credentials import Credential, find
from asyncplumber.auth.tokens.claims import PLAIN_TYPES, Rules
from asyncplumber.auth.tokens.jose import load_keys
from asyncplumber.auth.tokens.verifier import Issuer, Verifier
from asyncplumber.errors import BadRequest, InvalidToken, NotAllowed, PlumberError
from asyncplumber.grant import Action, Grant
from asyncplumber.interfaces import Facts
from harness.tokens import APP, AUDIENCE, NOW, SECRET, claims, encode, sign

CORPUS = Path(__file__).resolve().parent.parent / "corpus" / "tokens"
FILES = {path.stem: path.read_bytes() for path in sorted(CORPUS.glob("*.token"))}
GOOD = sorted(name for name in FILES if name.startswith("good-"))
KEYS = load_keys((CORPUS / "keys.json").read_bytes())

_HEADER = {"alg": "HS256", "typ": "at+jwt"}
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
_members = {
    "header": ("alg", "typ", "kid", "crit", "jwk", "b64", "x"),
    "claims": ("iss", "aud", "sub", "exp", "iat", "nbf", "jti", "plumber", "nonce"),
}
# Where to cut: a place, how much to leave out, and what to put there.
_edits = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 12),
        st.text("ABCxyz019-_=.+/ \n\x00é", max_size=4) | st.text(max_size=2),
    ),
    min_size=1,
    max_size=4,
)
_values = st.binary(max_size=40) | st.sampled_from(
    [
        b"Bearer ",
        b"Bearer abc.def.ghi",
        b"Basic dTpw",
        b"plumber.v1",
        b"plumber.bearer.YWJj",
        b"plumber.v1, plumber.bearer.YWJj",
        b"plumber=abc",
        b"same-origin",
        b"https://www.example.com",
        b",",
        b"; ",
    ]
)


def verifier(rules: Rules | None = None) -> Verifier:
    """Return one that knows the keys of the corpus."""
    issuer = Issuer(rules or Rules(audience=AUDIENCE), KEYS)
    return Verifier({APP: issuer}, lambda: NOW, None if rules is None else issuer)


class CorpusTests(SynchronousTestCase):
    """Each file."""

    def test_the_good_ones_are_accepted(self) -> None:
        """As they are."""
        for name in GOOD:
            grant = verifier().grant(FILES[name].decode("ascii"), Action.SUBSCRIBE)
            self.assertIsInstance(grant, Grant, name)
        self.assertGreater(len(GOOD), 8)

    def test_all_others_are_refused(self) -> None:
        """With 401, and without a word about the reason."""
        for name, data in FILES.items():
            if name in GOOD:
                continue
            for text in {data.decode("latin-1"), data.decode("utf-8", "replace")}:
                error = self.assertRaises(InvalidToken, verifier().grant, text, Action.SUBSCRIBE)
                self.assertEqual(error.message, InvalidToken.default, name)
        self.assertGreater(len(FILES), 120)

    def test_in_each_place_of_a_request(self) -> None:
        """Nothing but the errors that a client may see comes out."""
        for name, data in FILES.items():
            encoded = urlsafe_b64encode(data).rstrip(b"=")
            for headers in (
                {b"authorization": b"Bearer " + data},
                {b"authorization": data},
                {b"sec-websocket-protocol": b"plumber.v1, plumber.bearer." + encoded},
                {b"sec-websocket-protocol": b"plumber.v1, plumber.bearer." + data},
                {b"cookie": b"plumber=" + data, b"sec-fetch-site": b"same-origin"},
            ):
                upgrade = b"sec-websocket-protocol" in headers
                facts = Facts(b"GET", b"/events/a", headers, Action.SUBSCRIBE, "a", "", upgrade)
                try:
                    found = find(facts, "plumber", True)
                    if found is not None and found.value:
                        verifier().grant(found.value, Action.SUBSCRIBE)
                except (BadRequest, InvalidToken) as error:
                    if len(data) > 10:
                        self.assertNotIn(data.decode("latin-1")[:40], error.message, name)


class FuzzTests(SynchronousTestCase):
    """Texts that hypothesis makes up."""

    def outcome(self, text: str, rules: Rules | None = None) -> Grant | None:
        """Return the grant of a token; None if it is refused.  Any other error fails the test."""
        try:
            found = verifier(rules).grant(text, Action.PUBLISH)
        except InvalidToken:
            return None
        assert isinstance(found, Grant)
        return found

    @given(st.text(max_size=200) | st.text("abcAB.-_=", max_size=60))
    def test_any_text(self, text: str) -> None:
        """It is no token."""
        self.assertIsNone(self.outcome(text))

    @given(st.lists(st.binary(max_size=60), min_size=3, max_size=3))
    def test_any_bytes_in_the_right_form(self, parts: list[bytes]) -> None:
        """Three parts in base64url."""
        self.assertIsNone(self.outcome(b".".join(map(encode, parts)).decode("ascii")))

    @given(
        st.dictionaries(st.sampled_from(_members["header"]), _json, max_size=3),
        st.dictionaries(st.sampled_from(_members["claims"]), _json, max_size=4),
    )
    def test_any_values_with_the_right_signature(
        self, header: dict[str, Any], payload: dict[str, Any]
    ) -> None:
        """An issuer with a bug: the token is refused, or its grant is a plain one."""
        texts = [
            json.dumps({**_HEADER, **header}, ensure_ascii=True),
            json.dumps({**claims(), **payload}, ensure_ascii=True),
        ]
        signed = b".".join(encode(text) for text in texts)
        token = (signed + b"." + encode(sign(SECRET, "HS256", signed))).decode("ascii")
        grant = self.outcome(token, Rules(audience=AUDIENCE, types=PLAIN_TYPES))
        if grant is not None:
            self.assertFalse(grant.is_admin)
            self.assertTrue(0 < len(grant.subject) <= 256)
            assert grant.until is not None
            self.assertTrue(NOW - 30 < grant.until <= NOW + 86400 + 60)

    @given(st.sampled_from(GOOD), _edits)
    def test_mutations_of_good_tokens(self, name: str, edits: list[tuple[float, int, str]]) -> None:
        """There is one text for a token: no other one is as good."""
        good = FILES[name].decode("ascii")
        text = good
        for place, cut, piece in edits:
            at = int(place * len(text))
            text = text[:at] + piece + text[at + cut :]
        if text != good:
            self.assertIsNone(self.outcome(text))

    @given(st.lists(st.sampled_from(GOOD), min_size=3, max_size=3))
    def test_parts_of_different_tokens(self, names: list[str]) -> None:
        """They do not fit together."""
        parts = [FILES[name].decode("ascii").split(".")[i] for i, name in enumerate(names)]
        text = ".".join(parts)
        if text.encode() not in [FILES[name] for name in GOOD]:
            self.assertIsNone(self.outcome(text))

    @given(
        st.dictionaries(
            st.sampled_from(
                [
                    b"authorization",
                    b"sec-websocket-protocol",
                    b"cookie",
                    b"origin",
                    b"sec-fetch-site",
                ]
            ),
            st.lists(_values, min_size=1, max_size=4).map(b"".join),
        ),
        st.sampled_from([b"", b"?", b"?ticket=", b"?ticket=x", b"?a&ticket=%ff", b"?access_token"]),
        st.booleans(),
        st.sampled_from([None, *Action]),
        st.booleans(),
    )
    def test_any_headers(
        self,
        headers: dict[bytes, bytes],
        query: bytes,
        upgrade: bool,
        action: Action | None,
        tickets: bool,
    ) -> None:
        """One credential, none, or an error that the client may see."""
        facts = Facts(b"GET", b"/events/a" + query, headers, action, "a", "", upgrade)
        try:
            found = find(facts, "plumber", tickets)
        except PlumberError as error:
            self.assertIsInstance(error, BadRequest | InvalidToken | NotAllowed)
        else:
            self.assertIsInstance(found, Credential | None)
