"""The command ``asyncplumber``: its subcommands, its help, and what it says of wrong use."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import version

from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber import command
from asyncplumber.command import SUBCOMMANDS, Options, main
from asyncplumber.options import Options as ServerOptions


class Fake(usage.Options):
    """A subcommand that ends with the status that it is given."""

    optParameters = [["status", None, "0", "What to end with.", int]]

    def run(self) -> int:
        return int(self["status"])


class CommandTests(SynchronousTestCase):
    """What the words lead to, without a process."""

    def setUp(self) -> None:
        self.patch(command, "SUBCOMMANDS", {"fake": ("fake", "Does nothing.")})
        self.patch(command, "_make", lambda module: Fake())

    def run_main(self, *words: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status = main(words)
            except SystemExit as ended:
                status = int(ended.code or 0)
        return status, out.getvalue(), err.getvalue()

    def test_a_subcommand_says_how_the_process_ends(self) -> None:
        """Its status is that of the process."""
        self.assertEqual(self.run_main("fake"), (0, "", ""))
        self.assertEqual(self.run_main("fake", "--status", "7"), (7, "", ""))

    def test_wrong_use_is_a_sentence_and_status_1(self) -> None:
        """On standard error, with the command that explains more."""
        for words, sentence in (
            ((), "asyncplumber: give a command: fake\n(asyncplumber --help lists"),
            (("--nonsense",), "asyncplumber: option --nonsense not recognized\n(asyncplumber --"),
            (("nonsense",), "asyncplumber: Unknown command: nonsense\n(asyncplumber --help"),
            (("fake", "--no"), "asyncplumber fake: option --no not recognized\n(asyncplumber fake"),
            (("fake", "x"), "asyncplumber fake: Wrong number of arguments.\n(asyncplumber fake"),
        ):
            status, out, err = self.run_main(*words)
            self.assertEqual((status, out), (1, ""), words)
            self.assertTrue(err.startswith(sentence), err)

    def test_version(self) -> None:
        """Of the distribution."""
        self.assertEqual(
            self.run_main("--version"), (0, f"asyncplumber {version('asyncplumber')}\n", "")
        )

    def test_help(self) -> None:
        """It lists the subcommands, and that of a subcommand lists its options."""
        status, out, err = self.run_main("--help")
        self.assertEqual((status, err), (0, ""))
        self.assertIn("fake", out)
        self.assertIn("Does nothing.", out)
        status, out, err = self.run_main("fake", "--help")
        self.assertEqual((status, err), (0, ""))
        self.assertIn("--status=", out)


class SubcommandTests(SynchronousTestCase):
    """The subcommands that there are."""

    def test_each_can_be_run(self) -> None:
        """Its module has a `Command` with a `run`."""
        for module, _ in SUBCOMMANDS.values():
            self.assertTrue(callable(command._make(module).run))  # type: ignore[attr-defined]

    def test_all_are_offered(self) -> None:
        """In the order of the table."""
        self.assertEqual([name for name, *_ in Options().subCommands], list(SUBCOMMANDS))

    def test_the_version_is_that_of_the_distribution(self) -> None:
        """Also behind a subcommand, where Twisted would print its own."""
        for words in (["--version"], ["token", "--version"]):
            out = io.StringIO()
            with redirect_stdout(out):
                self.assertRaises(SystemExit, main, words)
            self.assertEqual(out.getvalue(), f"asyncplumber {version('asyncplumber')}\n", words)

    def test_the_server_names_the_command_that_started_it(self) -> None:
        """In its usage line."""
        self.assertNotIn("serve", ServerOptions().getSynopsis())
        self.patch(ServerOptions, "command", "asyncplumber serve")
        self.assertEqual(ServerOptions().getSynopsis(), "Usage: asyncplumber serve [options]")
