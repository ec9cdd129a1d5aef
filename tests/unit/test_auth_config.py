"""The ``--auth`` file: what it takes, and that a mistake is named, and a secret never."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.call_out.table import CallOutTable
from asyncplumber.auth.config import Config, load
from asyncplumber.auth.tokens.issuer_table import IssuerTable
from asyncplumber.auth.tokens.signing_keys import Secrets
from asyncplumber.grant import Action
from tests.unit.test_architecture import ROOT

SECRET = "a secret of thirty-two bytes or more, sesame"
KEY = "plk_sesame_4f1b2c3d4e5f"
P256 = {
    "kty": "EC",
    "crv": "P-256",
    "kid": "e1",
    "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
    "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
}
OCT = {"kty": "oct", "kid": "k1", "k": "c2VzYW1lIHNlc2FtZSBzZXNhbWUgc2VzYW1lIHNlc2FtZQ"}

WHOLE = f"""
audience = "https://push.example.com"
hosts = ["push.example.com", "*.example.org"]
[[issuer]]
iss = "https://app.example.com"
keys_file = "app.jwks"
[[issuer]]
iss = "https://old.example.com"
secret_file = "jwt"
types = ["at+jwt", "JWT"]
max_age = 600
claim = "push"
audience = "other"
[[issuer]]
iss = "https://idp.example.com"
jwks_url = "https://idp.example.com/certs"
algorithms = ["ES256"]
subscribe = ["user-{{sub}}", {{ prefix = "{{team}}." }}]
[[key]]
name = "celery"
sha256 = "{sha256(KEY.encode()).hexdigest().upper()}"
publish = [{{ prefix = "user-" }}]
[[key]]
name = "operator"
sha256 = ["{"0" * 64}", "{"1" * 64}"]
admin = true
[[key]]
name = "cron"
file = "cron"
publish = [{{ all = true }}]
[[sender]]
name = "github"
scheme = "github"
secret_files = ["github"]
accounts = ["ci"]
[anonymous]
subscribe = [{{ prefix = "public." }}]
[cookie]
[callout]
url = "http://127.0.0.1:8000/auth"
forward = ["Cookie"]
secret_file = "callout"
timeout = 1
"""


class ConfigTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def write(self, name: str, content: str | Mapping[str, Any], mode: int = 0o600) -> str:
        path = self.folder / name
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return str(path)

    def load(self, text: str) -> Config:
        return load(self.write("auth.toml", text))

    def refused(self, text: str, *words: str) -> str:
        """Check that it is refused, with these words and without a secret."""
        error = str(self.assertRaises(ValueError, self.load, text))
        for word in ("auth.toml", *words):
            self.assertIn(word, error)
        self.assertNotIn("sesame", error)
        return error


class ConfigTests(ConfigTestCase):
    def test_a_whole_file(self) -> None:
        """Every table, with files beside it."""
        self.write("jwt", f"{SECRET}\n{SECRET}2\n")
        self.write("app.jwks", {"keys": [P256]}, 0o644)
        self.write("github", "a secret of GitHub's\n")
        self.write("callout", "a secret of the call-out\n")
        self.write("cron", f"{KEY}-of-cron\n")
        config = self.load(WHOLE)
        self.assertEqual(config.hosts, ("push.example.com", "*.example.org"))
        first, second, third = config.issuers
        self.assertEqual((second.max_age, second.claim), (600, "push"))
        self.assertEqual(second.types, {"at+jwt", "jwt", ""})
        self.assertEqual((first.types, first.max_age), ({"at+jwt"}, 86400))
        self.assertEqual((third.algorithms, first.algorithms[0]), (("ES256",), "HS256"))
        rules = third.rules("https://push.example.com")
        self.assertIn("user-7", rules.subscribe.accounts({"sub": "7", "team": "x"}))
        self.assertEqual(second.rules("one").audience, "other")
        kept, secrets, fetched = config.issuer_keys
        self.assertEqual([key.kid for key in kept.keys(None, "ES256")], ["e1"])
        assert isinstance(secrets, Secrets)
        self.assertEqual(len(secrets.keys(None, "HS256")), 2)
        self.assertIsNone(fetched)
        celery, operator, cron = config.keys
        self.assertEqual(celery.digests, (sha256(KEY.encode()).digest(),))
        self.assertTrue(celery.grant.allows(Action.PUBLISH, "user-1"))
        self.assertFalse(celery.grant.allows(Action.SUBSCRIBE, "user-1"))
        self.assertEqual((operator.grant.is_admin, celery.grant.is_admin), (True, False))
        self.assertEqual((cron.grant.subject, len(operator.digests)), ("key:cron", 2))
        self.assertEqual([sender.name for sender in config.senders], ["github"])
        self.assertTrue(config.anonymous.allows(Action.SUBSCRIBE, "public.x"))
        self.assertEqual(config.cookie, "__Host-plumber")
        self.assertEqual((config.callout.forward, config.callout.timeout), (("cookie",), 1))
        self.assertEqual(config.callout.secret, b"a secret of the call-out")
        names = {os.path.basename(path) for path in config.files}
        self.assertEqual(names, {"auth.toml", "jwt", "app.jwks", "github", "callout", "cron"})
        self.assertTrue(config.has_ambient_credentials)
        self.assertNotIn("sesame", repr(config))
        self.assertNotIn("secret of", repr(config))

    def test_an_empty_file_says_nothing(self) -> None:
        """Which is for whoever reads it to judge."""
        config = self.load("")
        self.assertEqual((config.decides, config.has_ambient_credentials), (False, False))
        self.assertEqual(len(config.files), 1)

    def test_which_credentials_a_browser_sends_by_itself(self) -> None:
        """Cookies: pages of any origin would act as their visitors."""
        url = 'url = "https://app.example.com/auth"'
        self.assertTrue(self.load(f"[callout]\n{url}").has_ambient_credentials)
        config = self.load(f'[callout]\n{url}\nforward = ["authorization"]')
        self.assertFalse(config.has_ambient_credentials)

    def test_what_cannot_be_read_is_named(self) -> None:
        """The file itself, and what is no TOML in it, with its line."""
        error = str(self.assertRaises(ValueError, load, str(self.folder / "none.toml")))
        self.assertIn("none.toml cannot be read: No such file", error)
        self.refused("a = 1\nb = sesame\n", "not TOML", "line 2")
        self.refused("a = 1\na = 2\n", "not TOML")
        (self.folder / "latin.toml").write_bytes(b"a = '\xff'")
        error = str(self.assertRaises(ValueError, load, str(self.folder / "latin.toml")))
        self.assertIn("UTF-8", error)
        self.refused("#" * 70_000, "bytes")

    def test_an_unknown_key_is_named(self) -> None:
        """At the top and in each table; its value may be a secret."""
        self.refused('secret = "sesame"', "secret", "do not exist")
        url = 'url = "https://app.example.com/auth"'
        for table, word in (
            ('[[issuer]]\niss = "a"\njwks_url = "https://b/"\nsecret = "sesame"', "secret"),
            (f'[[key]]\nname = "k"\nsha256 = "{"0" * 64}"\nadmin = true\nkey = "sesame"', "key"),
            ('[anonymous]\nsubscribe = ["a"]\nuser = "sesame"', "user"),
            ('[cookie]\nvalue = "sesame"', "value"),
            (f'[callout]\n{url}\nsecret = "sesame"', "secret"),
        ):
            self.refused(table, table.partition("\n")[0].strip("[]"), word, "do not exist")

    def test_what_is_no_table_is_named(self) -> None:
        """One table, or a list of them."""
        for text, word in (
            ("issuer = 1", "issuer"),
            ("[issuer]", "issuer"),
            ("issuer = [1]", "issuer"),
            ("key = 'sesame'", "key"),
            ("[[callout]]", "callout"),
            ("anonymous = true", "anonymous"),
            ("cookie = 'sesame'", "cookie"),
        ):
            self.refused(text, word)

    def test_what_is_wrong_in_an_issuer_is_named(self) -> None:
        """With its name, once that is known."""
        source = 'jwks_url = "https://b.example/"'
        for text, words in (
            ("", ["[[issuer]]", "iss"]),
            ("iss = 7", ["iss"]),
            ('iss = "a"', ["'a'", "keys_file, secret_file or jwks_url"]),
            ('iss = "a"\nkeys_file = "x"\nsecret_file = "y"', ["one of them"]),
            ('iss = "a"\njwks_url = "http://b.example/"', ["jwks_url", "https"]),
            ('iss = "a"\njwks_url = "https://u:sesame@b.example/"', ["jwks_url", "password"]),
            ('iss = "a"\njwks_url = "ftp://b.example/"', ["jwks_url"]),
            ('iss = "a"\njwks_url = 7', ["jwks_url"]),
            (f'iss = "a"\n{source}\nalgorithms = ["HS256"]', ["algorithms", "RS256"]),
            (f'iss = "a"\n{source}\nalgorithms = ["none"]', ["algorithms"]),
            (f'iss = "a"\n{source}\nalgorithms = []', ["algorithms"]),
            (f'iss = "a"\n{source}\nmax_age = 0', ["max_age"]),
            (f'iss = "a"\n{source}\nmax_age = "1h"', ["max_age"]),
            (f'iss = "a"\n{source}\ntypes = ["jwe"]', ["types", "at+jwt"]),
            (f'iss = "a"\n{source}\nclaim = ""', ["claim"]),
            (f'iss = "a"\n{source}\nsubscribe = ["user-{{sub"]', ["subscribe"]),
            (f'iss = "a"\n{source}\npublish = "all"', ["publish"]),
            (f'iss = "a"\n{source}\naudience = ""', ["audience"]),
        ):
            self.refused(f"[[issuer]]\n{text}", *words)
        self.refused(f'[[issuer]]\niss = "a"\n{source}\n' * 2, "two tables", "'a'")

    def test_what_is_wrong_in_a_file_of_keys_is_named(self) -> None:
        """The table, the key of it and the file."""
        issuer = '[[issuer]]\niss = "a"\n'
        keys, secret = issuer + 'keys_file = "keys"', issuer + 'secret_file = "keys"'
        self.refused(keys, "keys_file", "cannot be read")
        self.refused(secret, "secret_file", "cannot be read")
        for content in ("sesame", "{}", '{"keys": []}', '{"keys": ["sesame"]}', "[" * 9000):
            self.write("keys", content)
            self.refused(keys, "'a'", "keys_file", "keys")
        self.write("keys", {"keys": [{**P256, "d": "sesame"}]})
        self.refused(keys, "keys_file", "private")
        self.write("keys", {"keys": [P256]})
        self.refused(keys + '\nalgorithms = ["RS256"]', "RS256")
        self.write("keys", "sesame too short")
        self.refused(secret, "secret_file", "line 1", "32")

    def test_a_secret_that_others_can_read_is_refused(self) -> None:
        """In any kind of file; public keys may be read by everybody."""
        self.write("keys", {"keys": [P256]}, 0o644)
        self.load('[[issuer]]\niss = "a"\nkeys_file = "keys"')
        self.write("keys", {"keys": [P256, OCT]}, 0o644)
        self.refused('[[issuer]]\niss = "a"\nkeys_file = "keys"', "keys_file", "chmod")
        self.write("keys", {"keys": [P256, OCT]}, 0o640)
        self.load('[[issuer]]\niss = "a"\nkeys_file = "keys"')
        self.write("secret", SECRET, 0o604)
        self.refused('[[issuer]]\niss = "a"\nsecret_file = "secret"', "secret_file", "chmod")
        self.refused('[[key]]\nname = "k"\nfile = "secret"', "file", "chmod")
        url = 'url = "https://app.example.com/auth"'
        self.refused(f'[callout]\n{url}\nsecret_file = "secret"', "secret_file", "chmod")

    def test_what_is_wrong_in_a_key_is_named(self) -> None:
        """A digest is not repeated: it may be the key itself."""
        good = f'sha256 = "{"0" * 64}"'
        for text, words in (
            ("", ["[[key]]", "name"]),
            ('name = "k"', ["'k'", "sha256 or file"]),
            (f'name = "k"\n{good}\nfile = "x"', ["one of them"]),
            ('name = "k"\nsha256 = "sesame"\nadmin = true', ["sha256", "64"]),
            ('name = "k"\nsha256 = []\nadmin = true', ["sha256"]),
            ('name = "k"\nfile = "none"\nadmin = true', ["file", "cannot be read"]),
            (f'name = "k"\n{good}', ["allows nothing"]),
            (f'name = "k"\n{good}\nadmin = "yes"', ["admin", "true or false"]),
            (f'name = "k"\n{good}\npublish = "all"', ["publish"]),
            (f'name = "k"\n{good}\nsubscribe = [{{all = 1}}]', ["subscribe"]),
        ):
            self.refused(f"[[key]]\n{text}", *words)
        key = f'[[key]]\nname = "k"\n{good}\nadmin = true\n'
        self.refused(key * 2, "two tables", "'k'")
        self.refused(key + key.replace('"k"', '"l"'), "same key", "'k'", "'l'")
        self.write("short", "sesame")
        self.refused('[[key]]\nname = "k"\nfile = "short"\nadmin = true', "line 1", "16")

    def test_what_is_wrong_in_the_other_tables_is_named(self) -> None:
        """Each with its key."""
        url = 'url = "https://app.example.com/auth"'
        for text, words in (
            ("[anonymous]", ["[anonymous]", "allows nothing"]),
            ('[anonymous]\nsubscribe = "a"', ["subscribe"]),
            ('[cookie]\nname = "plumber"', ["[cookie]", "__Host-"]),
            ('[cookie]\nname = "__Host-a b"', ["name"]),
            ("[callout]", ["[callout]", "url"]),
            ('[callout]\nurl = "app"', ["url"]),
            (f'[callout]\n{url}\nforward = ["x-user"]', ["forward", "cookie"]),
            (f'[callout]\n{url}\nforward = "cookie"', ["forward"]),
            (f"[callout]\n{url}\ntimeout = 0", ["timeout", "1 to 30"]),
            (f"[callout]\n{url}\ntimeout = 31", ["timeout"]),
            (f"[callout]\n{url}\ncache = -1", ["cache"]),
            (f"[callout]\n{url}\nrecheck = 0", ["recheck"]),
            (f"[callout]\n{url}\ngrace = true", ["grace"]),
            (f"[callout]\n{url}\ncalls = 0", ["calls"]),
            (f"[callout]\n{url}\nwaiting = 1.5", ["waiting"]),
            ('hosts = "push.example.com"', ["hosts"]),
            ('hosts = ["https://push.example.com"]', ["hosts"]),
            ("audience = 7", ["audience"]),
            ('[[sender]]\nname = "x"\nscheme = "y"', ["[[sender]]", "'x'", "scheme"]),
        ):
            self.refused(text, *words)

    def test_limits_at_their_edges_are_taken(self) -> None:
        """They are inclusive."""
        url = 'url = "http://10.0.0.1/auth"'
        config = self.load(
            f"[callout]\n{url}\ntimeout = 30\ncache = 0\nrecheck = 1\ngrace = 0\ncalls = 1\n"
            "waiting = 0"
        )
        table = config.callout
        self.assertEqual((table.timeout, table.cache, table.recheck, table.grace), (30, 0, 1, 0))
        self.assertEqual((table.calls, table.waiting, table.is_private), (1, 0, False))


class PageTests(ConfigTestCase):
    """``docs/reference/auth-file.rst``."""

    def test_its_example_is_a_right_file(self) -> None:
        """With the files that it names."""
        page = (ROOT / "docs/reference/auth-file.rst").read_text(encoding="utf-8")
        _, _, rest = page.partition(".. code-block:: toml\n\n")
        lines = []
        for line in rest.splitlines():
            if line and not line.startswith("   "):
                break
            lines.append(line.removeprefix("   "))
        text = "\n".join(lines).replace("/run/credentials/asyncplumber", str(self.folder.resolve()))
        self.write("app.jwks", {"keys": [P256]})
        self.write("mobile", f"{SECRET}\n")
        self.write("gh-new", "a secret of GitHub's")
        self.write("gh-old", "an old secret of GitHub's")
        self.write("callout", "a secret of the call-out")
        config = self.load(text)
        self.assertEqual(len(config.issuers), 3)
        for part in (config.keys, config.senders, config.anonymous, config.cookie, config.callout):
            self.assertTrue(part)

    def test_it_has_every_key(self) -> None:
        """Each with a sentence, also those that the example leaves out."""
        page = (ROOT / "docs/reference/auth-file.rst").read_text(encoding="utf-8")
        for table in (IssuerTable, CallOutTable):
            for each in fields(table):
                if each.name not in ("is_private", "secret"):
                    self.assertRegex(page, rf"(?m)^``.*\b{each.name}``.*$", each.name)
        for key in ("hosts", "audience", "name", "sha256", "file", "admin"):
            self.assertRegex(page, rf"(?m)^``.*\b{key}``.*$", key)
        for name in ("[issuer]", "[key]", "[sender]", "anonymous", "cookie", "callout", "limits"):
            self.assertIn(f"\n``[{name}]``\n---", page)
