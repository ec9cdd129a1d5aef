"""
The command ``asyncplumber``, which is ``python -m asyncplumber`` as well.

Each subcommand is a module in `commands`, and has a line in `SUBCOMMANDS`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

from twisted.python import usage

# A module in `commands` by the name of its subcommand, and what the help says of it.  The module
# has a class `Command`, which is a `usage.Options` with a method `run`.  That does the work when
# the options are right, and returns the status that the process ends with.  It is imported only
# when its subcommand is used: a command that mints a token does not load a server.
SUBCOMMANDS: Mapping[str, tuple[str, str]] = {
    "serve": ("serve", "Run the server.  Its options are those of twistd asyncplumber."),
    "token": ("token", "Print a token for --jwt-secret-file, for the shell and for tests."),
    "run": ("run", "Run a command, and report it as a task to those who wait for it."),
    "check-config": (
        "check_config",
        "Say what is wrong with the options of a server, or who may do what.",
    ),
}


def _make(module: str) -> usage.Options:
    command: usage.Options = import_module(f"asyncplumber.commands.{module}").Command()
    return command


class Options(usage.Options):
    """The options before a subcommand, and the subcommands."""

    synopsis = "Usage: asyncplumber COMMAND [options]"
    longdesc = "asyncplumber COMMAND --help tells about the options of a command."

    @property
    def subCommands(self) -> Iterator[tuple[str, None, Callable[[], usage.Options], str]]:
        """The subcommands, as `usage.Options` wants them."""
        for name, (module, text) in SUBCOMMANDS.items():
            yield name, None, partial(_make, module), text

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"asyncplumber {version('asyncplumber')}")
        raise SystemExit(0)

    def postOptions(self) -> None:
        """
        Check that there is a subcommand.

        Raises:
            UsageError: There is none.
        """
        if self.subCommand is None:
            raise usage.UsageError(f"give a command: {', '.join(SUBCOMMANDS)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command; the console script ends with the status that this returns.

    Args:
        arguments: The words after the name of the command; None takes those of the process.

    Returns:
        0, or 1 if the command could not do what it should.  A sentence on standard error says why.
    """
    options = Options()
    try:
        options.parseOptions(sys.argv[1:] if arguments is None else list(arguments))
    except usage.UsageError as error:
        name = " ".join(["asyncplumber", *filter(None, [options.subCommand])])
        sys.stderr.write(f"{name}: {error}\n({name} --help lists what there is)\n")
        return 1
    chosen: Any = options.subOptions
    status: int = chosen.run()
    return status
