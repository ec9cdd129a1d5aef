"""The options of `asyncplumber run`, and what an end says; no process is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.client.run import _result
from asyncplumber.commands.run import Command

NAMES = ("--account", "42", "--task", "t")


class OptionTests(SynchronousTestCase):
    """Which command, and as which task."""

    def parse(self, *words: str, **environ: str) -> Any:
        command = Command(environ)
        command.parseOptions([*NAMES, *words])
        return command._command

    def file(self, text: str, mode: int = 0o600) -> str:
        path = Path(self.mktemp())
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return str(path)

    def test_defaults(self) -> None:
        """The environment says where the plumber is; the words after the options are a command."""
        command = self.parse("--", "ls", "-l", "--all")
        self.assertEqual((command.account, command.key), ("42", "t"))
        self.assertEqual(command.words, ("ls", "-l", "--all"))
        self.assertEqual((command.url, command.token), ("http://127.0.0.1:8080", None))
        self.assertEqual(
            (command.deadline, command.max_result, command.linger, command.waits),
            (60.0, 1024 * 1024, 60.0, True),
        )

    def test_all_options(self) -> None:
        """Each has its effect."""
        command = self.parse(
            *("--url", "https://push.example", "--token-file", self.file("\nsecret\nother\n")),
            *("--deadline", "1s", "--linger", "0", "--no-output", "--no-wait", "true"),
        )
        self.assertEqual((command.url, command.token), ("https://push.example", "secret"))
        self.assertEqual((command.deadline, command.linger), (1.0, 0.0))
        self.assertEqual((command.max_result, command.waits), (None, False))
        self.assertEqual(self.parse("--max-result", "0", "true").max_result, 0)
        named = self.parse("true", ASYNCPLUMBER_TOKEN_FILE=self.file("secret"))
        self.assertEqual(named.token, "secret")

    def test_what_is_wrong(self) -> None:
        """A sentence says it, and repeats no secret."""
        for words, sentence in (
            ((), "give the command"),
            (("--deadline", "0.9s", "true"), "--deadline"),
            (("--linger", "2d", "true"), "--linger"),
            (("--max-result", "1TB", "true"), "--max-result"),
            (("--url", "nonsense", "true"), "the URL of a plumber"),
            (("--token-file", "/nonsense", "true"), "cannot be read"),
            (("--token-file", self.file(" \n"), "true"), "is empty"),
            (("--token-file", self.file("secret", 0o644), "true"), "chmod"),
            (("--token-file", self.file("s\u00e9cret"), "true"), "a token is visible ASCII"),
        ):
            with self.assertRaises(usage.UsageError) as raised:
                self.parse(*words)
            self.assertIn(sentence, str(raised.exception))
            self.assertNotIn("cret", str(raised.exception).replace("secret-file", ""))
        for missing in (["--account", "42"], ["--task", "t"]):
            with self.assertRaises(usage.UsageError):
                Command({}).parseOptions([*missing, "true"])


class ResultTests(SynchronousTestCase):
    """What a command printed, as a result."""

    def test_json_text_or_bytes(self) -> None:
        """Each goes out as it is; nothing is null."""
        for output, expected in (
            (b"", (None, None)),
            (b" \n", (None, None)),
            (b'{"a": 1}\n', (b'{"a": 1}\n', "application/json")),
            (b"7", (b"7", "application/json")),
            (b"NaN", ("NaN", None)),
            (b"[" * 100_000, ("[" * 100_000, None)),
            (b"7 rows\n", ("7 rows\n", None)),
            (b"\xff", (b"\xff", "application/octet-stream")),
        ):
            self.assertEqual(_result(output), expected)
