"""The fast tier refuses what is not in memory."""

from __future__ import annotations

import socket

from twisted.trial.unittest import SynchronousTestCase

from tests.unit import refuse


class RefusalTests(SynchronousTestCase):
    """The audit hook, called as the interpreter calls it."""

    def test_the_network_is_refused(self) -> None:
        """Connecting, binding and asking for a name, of both kinds of addresses."""
        for family in (socket.AF_INET, socket.AF_INET6):
            with socket.socket(family) as one:
                for event in ("socket.connect", "socket.bind", "socket.sendto"):
                    with self.assertRaisesRegex(AssertionError, event):
                        refuse(event, (one, ("localhost", 1)))
        with self.assertRaisesRegex(AssertionError, "getaddrinfo"):
            refuse("socket.getaddrinfo", ("localhost", 1, 0, 0, 0))

    def test_processes_are_refused(self) -> None:
        """However they are started."""
        for event in ("os.fork", "os.posix_spawn", "os.exec", "subprocess.Popen"):
            with self.assertRaisesRegex(AssertionError, event):
                refuse(event, ("command",))

    def test_all_else_is_allowed(self) -> None:
        """Files, imports and sockets that stay inside the process."""
        with socket.socket(socket.AF_UNIX) as one:
            refuse("socket.connect", (one, "/tmp/socket"))
        refuse("open", ("/tmp/file", "r", 0))
