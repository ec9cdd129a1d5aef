"""Senders as the ``--auth`` file describes them: what is wrong with it is said."""

from __future__ import annotations

import os
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.senders.schemes import TOLERANCE
from asyncplumber.auth.senders.table import MAX_TOLERANCE, from_toml

SECRET = "a secret of theirs"


class SenderTableTests(SynchronousTestCase):
    """`from_toml`."""

    def setUp(self) -> None:
        self.path = self.file(SECRET)

    def file(self, text: str) -> str:
        """Return the path of a file with secrets."""
        path = self.mktemp()
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, 0o600)
        return path

    def table(self, scheme: str = "github", **keys: Any) -> dict[str, Any]:
        """Return a table; a key that is None is left out."""
        table = {"name": "gh", "scheme": scheme, "accounts": ["ci"], "secret_files": [self.path]}
        return {key: value for key, value in {**table, **keys}.items() if value is not None}

    def refused(self, table: object) -> str:
        """Return why a table is refused."""
        return str(self.assertRaises(ValueError, from_toml, table))

    def test_each_scheme(self) -> None:
        """With no more than it needs."""
        standard = self.file("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        for table in (
            self.table("standard", secret_files=[standard]),
            self.table("github"),
            self.table("stripe", tolerance=60),
            self.table("slack", type_member="event_type"),
            self.table("hmac", header="X-Sig"),
            self.table("token", header="X-Token"),
        ):
            self.assertEqual(from_toml(table).name, "gh")

    def test_defaults(self) -> None:
        """Of a template, and of the tolerance."""
        (scheme,) = from_toml(self.table("hmac", header="X-Sig")).schemes
        self.assertEqual((scheme.header, scheme.proof.value, scheme.prefix), (b"x-sig", "hex", b""))
        self.assertEqual(scheme.content.parts, ("", "body", ""))
        (scheme,) = from_toml(self.table("slack")).schemes
        self.assertEqual(scheme.tolerance, TOLERANCE)
        (scheme,) = from_toml(self.table("slack", tolerance=MAX_TOLERANCE)).schemes
        self.assertEqual(scheme.tolerance, MAX_TOLERANCE)

    def test_what_is_wrong_is_named(self) -> None:
        """Together with the sender."""
        timestamp = "{timestamp}.{body}"
        for keys, part in (
            ({"name": None}, "has no name"),
            ({"name": "a\nb"}, "name is printable"),
            ({"scheme": None}, "scheme is one of standard, github"),
            ({"scheme": "gitlab"}, "scheme is one of standard, github"),
            ({"accounts": None}, "has no accounts"),
            ({"accounts": []}, "accounts has one account at least"),
            ({"accounts": ["*", ""]}, "accounts: an entry is"),
            ({"secret_files": None}, "has no secret_files"),
            ({"secret_files": self.path}, "secret_files is a list"),
            ({"secret": "x"}, "keys that do not exist: secret"),
            ({"header": "X"}, "keys that do not exist: header"),
            ({"tolerance": 5}, "keys that do not exist: tolerance"),
            ({"scheme": "slack", "tolerance": 0}, "tolerance is a whole number from 1 to 3600"),
            ({"scheme": "slack", "tolerance": MAX_TOLERANCE + 1}, "tolerance is a whole number"),
            ({"scheme": "hmac"}, "has no header"),
            ({"scheme": "hmac", "header": "Authorization"}, "header is the name"),
            ({"scheme": "hmac", "header": "a b"}, "header is the name"),
            ({"scheme": "hmac", "header": "X", "encoding": "base32"}, "encoding is one of hex"),
            ({"scheme": "hmac", "header": "X", "algorithm": "sha1"}, "do not exist: algorithm"),
            ({"scheme": "hmac", "header": "X", "signed": "{url}"}, '"signed" has {body}'),
            ({"scheme": "hmac", "header": "X", "signed": timestamp}, "one of them"),
            ({"scheme": "hmac", "header": "X", "tolerance": 5}, "do not exist: tolerance"),
            ({"scheme": "hmac", "header": "X", "timestamp_header": "Y"}, "do not exist"),
            ({"scheme": "hmac", "header": "X", "signed": "{id}.{body}"}, "has an id_header"),
            ({"scheme": "hmac", "header": "X", "prefix": "é"}, "prefix is printable ASCII"),
            (
                {"scheme": "hmac", "header": "X", "signed": timestamp, "timestamp_prefix": "t="},
                "has a separator",
            ),
            ({"scheme": "token", "header": "X", "encoding": "hex"}, "do not exist: encoding"),
        ):
            table = {
                key: value for key, value in {**self.table(), **keys}.items() if value is not None
            }
            message = self.refused(table)
            self.assertIn("[[sender]]", message)
            self.assertIn(part, message)
        self.assertIn("[[sender]] is a table", self.refused("github"))

    def test_secrets_that_are_none(self) -> None:
        """The message names the file, and has no secret."""
        short = self.file("fifteen bytes..")
        for scheme, path, part in (
            ("github", short, "less than 16 bytes"),
            ("github", self.file(""), "has no secret"),
            ("github", self.mktemp(), "cannot be read"),
            ("standard", self.path, "is whsec_ and base64"),
            ("standard", self.file("whsec_" + "YWJj" * 5), "at least 16 bytes"),
        ):
            message = self.refused(self.table(scheme, secret_files=[path]))
            self.assertIn(part, message)
            self.assertIn(path, message)
            self.assertIn("'gh'", message)
            for secret in (SECRET, "fifteen", "YWJj"):
                self.assertNotIn(secret, message)
