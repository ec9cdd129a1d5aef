"""``asyncplumber check-config``: what is wrong, or what is configured, and never a secret."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout

from asyncplumber.commands.check_config import Command
from tests.unit.test_auth_config import KEY, P256, SECRET, WHOLE, ConfigTestCase


class CheckConfigTests(ConfigTestCase):
    def check(self, *words: str, **environ: str) -> tuple[int, str, str]:
        """Return the status, the output, and the errors."""
        command = Command(environ)
        command.parseOptions(["--store", "memory:", *words])
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = command.run()
        for text in (out.getvalue(), err.getvalue()):
            self.assertNotIn("sesame", text)
            self.assertNotIn("a secret of", text)
        return status, out.getvalue(), err.getvalue()

    def described(self, *words: str, **environ: str) -> str:
        status, out, err = self.check(*words, **environ)
        self.assertEqual((status, err), (0, ""))
        return out

    def write_all(self) -> str:
        self.write("jwt", f"{SECRET}\n{SECRET}2\n")
        self.write("app.jwks", {"keys": [P256]}, 0o644)
        self.write("github", "a secret of GitHub's\n")
        self.write("callout", "a secret of the call-out\n")
        self.write("cron", f"{KEY}-of-cron\n")
        return self.write("auth.toml", WHOLE)

    def test_a_right_file_is_described(self) -> None:
        """Issuers with their keys, and who may do what."""
        out = self.described("--auth", self.write_all())
        for line in (
            "Tokens of 'https://app.example.com', for the audience 'https://push.example.com':",
            "  keys: e1 (ES256), in ",
            "Tokens of 'https://old.example.com', for the audience 'other':",
            "  keys: 2 secrets of HS256, in ",
            "  they live 600 s at most; their typ is: at+jwt, jwt, none",
            "  keys: from https://idp.example.com/certs, for ES256",
            "  accounts: those of the claim 'plumber'; without it: subscribe to user-{sub}",
            "Key 'celery' (1 key): publish to user-…",
            "Key 'operator' (2 keys): administrate",
            "Key 'cron' (1 key): publish to all accounts",
            "Sender 'github', by its signature: publish to ci",
            "Cookie __Host-plumber: ",
            "All others: the application decides, at http://127.0.0.1:8000/auth",
            "  it is sent: cookie",
            "  the questions are signed",
            "Requests without credential: subscribe to public.…",
            "Further names of this server: push.example.com, *.example.org",
        ):
            self.assertIn(f"\n{line}", f"\n{out}")

    def test_the_options_are_described_as_well(self) -> None:
        """Alone, and beside the file."""
        secrets = self.write("secrets", f"{SECRET}\n")
        keys = self.write("keys", f"{KEY}\n")
        words = ("--jwt-secret-file", secrets, "--publisher-key-file", keys)
        out = self.described(*words, "--audience", "us")
        self.assertIn("Tokens that name any issuer, or none, for the audience 'us':\n", out)
        self.assertIn("  keys: 1 secret of HS256", out)
        self.assertIn(
            "Keys of publishers (1 key): publish to all accounts, start tasks of all accounts\n",
            out,
        )
        out = self.described(*words, "--auth", self.write_all())
        self.assertIn("Tokens that name no issuer above, for the audience 'https://push", out)

    def test_the_environment_counts(self) -> None:
        """As for the server."""
        out = self.described(ASYNCPLUMBER_AUTH=self.write_all())
        self.assertIn("celery", out)

    def test_without_authentication_it_says_so(self) -> None:
        """Nothing is wrong with that on one machine."""
        self.assertIn("Nobody is authenticated", self.described())

    def test_a_key_of_an_interface_in_a_url_is_not_shown(self) -> None:
        """Only the query can have one: users and passwords are refused."""
        text = (
            '[[issuer]]\niss = "a"\njwks_url = "https://b.example/?key=sesame"\n'
            '[callout]\nurl = "http://10.0.0.1/?key=sesame"'
        )
        out = self.described("--auth", self.write("auth.toml", text))
        self.assertIn("https://b.example/, for", out)
        self.assertIn("WARNING: http://", out)

    def test_what_is_wrong_is_named(self) -> None:
        """With the option, the file, the table and the key; the status is 1."""
        for words, expected in (
            (("--auth", self.write("a.toml", "[[key]]\nnam = 1")), ["--auth", "a.toml", "name"]),
            (("--auth", self.write("b.toml", "")), ["--auth", "b.toml", "who may do what"]),
            (("--auth", "none.toml"), ["--auth", "none.toml", "cannot be read"]),
            (("--jwt-secret-file", self.write("c", "sesame")), ["--jwt-secret-file", "line 1"]),
            (("--auth", self.write_all(), "--allow-origin", "*"), ["--allow-origin", "cookie"]),
            (
                ("--auth", self.write("d.toml", "[cookie]\n[anonymous]\nsubscribe=['a']")),
                ["issuer"],
            ),
            (("--listen", "tcp:0"), ["--listen"]),
            (("--port", "x"), ["--port"]),
        ):
            status, out, err = self.check(*words)
            self.assertEqual((status, out), (1, ""), words)
            self.assertTrue(err.startswith("asyncplumber check-config: --"), err)
            for word in expected:
                self.assertIn(word, err)

    def test_authentication_lets_it_listen_on_any_interface(self) -> None:
        """Without --insecure."""
        self.described("--listen", "tcp:0", "--auth", self.write_all())
