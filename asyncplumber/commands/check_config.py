"""``asyncplumber check-config``: what is wrong with the options of a server, or what they mean."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from twisted.python import usage

from asyncplumber.auth.describe import describe
from asyncplumber.options import Options
from asyncplumber.starters.address import describe_starter


class Command(usage.Options):
    """Takes all options of ``asyncplumber serve``, and starts nothing."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        super().__init__()
        self._environ = environ
        self._words: list[str] = []

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Keep the words for `run`."""
        self._words = list(options or ())

    def run(self) -> int:
        """
        Read the options and the files that they name.

        Returns:
            0, with a description on standard output; or 1, with what is wrong on standard error.
        """
        options = Options(self._environ)
        try:
            options.parseOptions(self._words)
        except usage.UsageError as error:
            sys.stderr.write(f"asyncplumber check-config: {error}\n")
            return 1
        lines = [
            *describe(options.configured, options["audience"]),
            *describe_starter(options["starter"], is_signed=options.starter_secrets is not None),
        ]
        for line in lines:
            # Names may have characters that the terminal does not know.
            encoding = sys.stdout.encoding or "utf-8"
            print(line.encode(encoding, "backslashreplace").decode(encoding))
        return 0
