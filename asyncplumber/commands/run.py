"""``asyncplumber run``: runs a command, and reports it as a task."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib.metadata import version

from twisted.python import usage

from asyncplumber.auth.secret_files import read_secret_file
from asyncplumber.client.request import Endpoint
from asyncplumber.client.run import Command as RunCommand
from asyncplumber.client.run import run
from asyncplumber.client.send import from_environment
from asyncplumber.server.units import Quantity, duration, size

_DAY = 86_400.0  # seconds
_SIZE = size(0, 64 * 1024 * 1024)


class Command(usage.Options):
    """Which command, and as which task."""

    synopsis = "Usage: asyncplumber run --account A --task T [options] -- COMMAND [arguments]"
    longdesc = (
        "Runs the command and reports its beginning, that it goes on, and its end: its output is "
        "the result, as JSON or as text; the end of its standard error says why it failed.  Ends "
        "with the command's status, whatever the plumber does.  If the task runs already, "
        "elsewhere, waits for that run, prints its result, and ends as it did.  The command finds "
        "a URL for its progress in ASYNCPLUMBER_CALLBACK: "
        'curl -d \'{"done": 3}\' "$ASYNCPLUMBER_CALLBACK?state=running"'
    )
    optParameters = [
        ["account", None, "", "The account that waits for the task."],
        ["task", None, "", "The name of the task within the account."],
        ["url", None, "", "Where the plumber is.  Default: ASYNCPLUMBER_URL, or port 8080 here."],
        ["token-file", None, "", "A file with the token.  Default: ASYNCPLUMBER_TOKEN."],
        ["deadline", None, "60s", "Silence after which the task counts as lost; beats are thrice."],
        ["max-result", None, "1MiB", "The most output that is a result; more is a failure."],
        ["linger", None, "60s", "How long the end is sent after the command, in the background."],
    ]
    optFlags = [
        ["no-output", None, "Leave output and errors alone: the result is null."],
        ["no-wait", None, "If the task runs already, end at once with status 75."],
    ]

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        super().__init__()
        self._environ = environ
        self._words: tuple[str, ...] = ()
        self["token-file"] = environ.get("ASYNCPLUMBER_TOKEN_FILE", "")

    def getSynopsis(self) -> str:
        """Return the usage line, without that of the command before it."""
        return self.synopsis

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"asyncplumber {version('asyncplumber')}")
        raise SystemExit(0)

    def parseArgs(self, *words: str) -> None:
        """Take the command."""
        self._words = words

    def postOptions(self) -> None:
        """
        Check the options.

        Raises:
            UsageError: Something is missing or wrong.
        """
        for name in ("account", "task"):
            if not self[name]:
                raise usage.UsageError(f"--{name}: say which")
        if not self._words:
            raise usage.UsageError("give the command after --")
        try:
            url, token = from_environment(self["url"], self._token())
            Endpoint(url, token, None)
            self._command = RunCommand(
                account=self["account"],
                key=self["task"],
                words=self._words,
                url=url,
                token=token,
                deadline=self._number("deadline", duration(1, 30 * _DAY)),
                max_result=None if self["no-output"] else int(self._number("max-result", _SIZE)),
                linger=self._number("linger", duration(0, _DAY)),
                waits=not self["no-wait"],
                env=self._environ,
            )
        except ValueError as error:
            raise usage.UsageError(str(error)) from None

    def _number(self, name: str, quantity: Quantity) -> float:
        try:
            return quantity(self[name])
        except ValueError as error:
            raise ValueError(f"--{name}: {error}") from None

    def _token(self) -> str | None:
        """Return the first word of the file with the token, None if there is no file."""
        if not self["token-file"]:
            return None
        words = read_secret_file(self["token-file"]).decode(errors="replace").split()
        if not words:
            raise ValueError(f"{self['token-file']} is empty")
        return words[0]

    def run(self) -> int:
        """Run the command; return its status."""
        logging.basicConfig(format="asyncplumber run: %(message)s", level=logging.WARNING)
        return run(self._command)
