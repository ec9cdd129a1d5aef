"""``asyncplumber token``."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from time import time
from typing import Any

from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.tokens.claims import Rules
from asyncplumber.auth.tokens.signing_keys import Secrets
from asyncplumber.auth.tokens.verifier import Issuer, Verifier
from asyncplumber.command import main
from asyncplumber.commands.token import Command
from asyncplumber.grant import Accounts, Action, Grant
from harness.tokens import SECRET


class TokenCommandTests(SynchronousTestCase):
    """What it prints is accepted by a server with the same file."""

    def setUp(self) -> None:
        self.path = self.mktemp()
        self.write(b"# since today\n" + SECRET + b"\nanother secret, which is the older one\n")

    def write(self, content: bytes, mode: int = 0o600) -> None:
        with open(self.path, "wb") as file:
            file.write(content)
        os.chmod(self.path, mode)

    def mint(self, *words: str, **environ: str) -> str:
        """Return what is printed."""
        command = Command(environ)
        command.parseOptions(words)
        out = io.StringIO()
        with redirect_stdout(out):
            self.assertEqual(command.run(), 0)
        return out.getvalue().removesuffix("\n")

    def grant(self, *words: str, audience: str = "asyncplumber", **environ: str) -> Grant:
        """Return what the server grants."""
        issuer = Issuer(Rules(audience=audience), Secrets([SECRET]))
        found: Any = Verifier({}, time, issuer).grant(self.mint(*words, **environ), Action.PUBLISH)
        return found

    def test_what_it_says(self) -> None:
        """Each account that is named, and the patterns."""
        grant = self.grant(
            *("--secret-file", self.path, "--sub", "user-42"),
            *("--subscribe", "user-42", "--subscribe", "*", "--subscribe-prefix", "team-7."),
            *("--publish", "jobs", "--publish-all", "--expires", "10min", "--id", "t-1"),
            *("--start", "user-42", "--start-prefix", "team-8."),
        )
        self.assertEqual(grant.subject, "user-42")
        self.assertEqual(
            grant.subscribe, Accounts(frozenset(["user-42", "*"]), ("team-7.",), False)
        )
        self.assertEqual(grant.publish, Accounts(frozenset(["jobs"]), (), True))
        self.assertEqual(grant.start, Accounts(frozenset(["user-42"]), ("team-8.",), False))
        self.assertEqual(grant.id, "t-1")
        assert grant.until is not None
        assert grant.issued is not None
        self.assertEqual(grant.until - grant.issued, 600)

    def test_the_environment_of_the_server(self) -> None:
        """It has the file and the audience."""
        grant = self.grant(
            *("--sub", "u", "--publish-prefix", "a."),
            audience="https://push.example.com",
            ASYNCPLUMBER_JWT_SECRET_FILE=self.path,
            ASYNCPLUMBER_AUDIENCE="https://push.example.com",
        )
        self.assertEqual(grant.publish.prefixes, ("a.",))

    def test_wrong_use(self) -> None:
        """A sentence that names the option, and never shows a secret."""
        good = ("--secret-file", self.path, "--sub", "u", "--subscribe", "u")
        for words, part in (
            ((), "--secret-file"),
            (good[:2], "--sub"),
            (good[:4], "--subscribe"),
            ((*good, "--expires", "25h"), "--expires"),
            ((*good, "--expires", "soon"), "--expires"),
            ((*good, "--subscribe", ""), "account"),
            ((*good, "--sub", "a\nb"), "subject"),
            (("--secret-file", "/no/such/file", *good[2:]), "--secret-file: /no/such/file"),
        ):
            error = self.assertRaises(usage.UsageError, self.mint, *words)
            self.assertIn(part, str(error))
        for content, mode in ((b"short", 0o600), (SECRET, 0o644), (b"", 0o600)):
            self.write(content, mode)
            error = self.assertRaises(usage.UsageError, self.mint, *good)
            self.assertIn("--secret-file", str(error))
            self.assertNotIn(content.decode() or "nothing", str(error).replace(self.path, ""))

    def test_in_the_shell(self) -> None:
        """Its name is a subcommand."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = main(["token", "--secret-file", self.path, "--sub", "u", "--subscribe-all"])
            wrong = main(["token", "--sub", "u"])
        self.assertEqual((status, wrong), (0, 1))
        self.assertEqual(out.getvalue().count("."), 2)
        self.assertTrue(err.getvalue().startswith("asyncplumber token: --secret-file"))
