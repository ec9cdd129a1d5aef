"""``asyncplumber serve``: the server in the foreground."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from twisted.python import usage
from twisted.scripts import twistd

from asyncplumber.options import Options


class Command(usage.Options):
    """Takes all options of ``twistd asyncplumber`` as they are, and leaves them to twistd."""

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Keep the words.  twistd reads them, and says what is wrong with them."""
        self._words = list(options or ())

    def run(self) -> int:
        """
        Run the server until it is stopped by SIGTERM or SIGINT.

        This is ``twistd -n --pidfile= asyncplumber …``.  A process that a signal has stopped ends
        by that signal, as twistd does.
        """
        Options.command = "asyncplumber serve"
        sys.argv[1:] = ["-n", "--pidfile=", "asyncplumber", *self._words]
        twistd.run()
        return 0
