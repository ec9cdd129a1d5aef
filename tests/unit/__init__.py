"""Tests in memory: no network, no other process.  They are the fast tier.

With ``ASYNCPLUMBER_TESTS_IN_MEMORY=1`` in the environment, a test that opens a connection, binds a
port or starts a process fails.  ``nox -s fast`` sets it.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings
from typing import Any

from hypothesis import HealthCheck, settings

# Dependencies warn while they are imported.  Everything else stays as ``python -W`` says.
_NOT_OURS = (
    # twisted.web.static makes an error page in a way that Twisted itself has deprecated.
    "twisted.web.resource._UnsafeNoResource.__init__ was deprecated",
    "twisted.web.resource._UnsafeForbiddenResource.__init__ was deprecated",
    "twisted.web.resource._UnsafeErrorPage.__init__ was deprecated",
)
for _message in _NOT_OURS:
    warnings.filterwarnings("ignore", _message, DeprecationWarning)

# How long an example takes depends on what else the machine does, and fails no test.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
# The fast tier tries a few examples of what is generated; all other runs try more.
IS_FAST = bool(os.environ.get("ASYNCPLUMBER_TESTS_IN_MEMORY"))


def examples(count: int) -> int:
    """Return how many examples of a generated test to try: ``count``, or a few in the fast tier."""
    return min(count, 10) if IS_FAST else count


settings.register_profile("fast", settings.get_profile("any machine"), max_examples=examples(100))
settings.load_profile("fast")

_SOCKET_EVENTS = {"socket.connect", "socket.bind", "socket.sendto"}
_PROCESS_EVENTS = {
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.system",
    "subprocess.Popen",
}


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: raise for what needs a network or another process.

    Raises:
        AssertionError: a test in memory did what only tests in ``tests.system`` may do.
    """
    if event in _PROCESS_EVENTS or event == "socket.getaddrinfo":
        raise AssertionError(f"{event} in a test that runs in memory: {arguments!r}")
    if event in _SOCKET_EVENTS and arguments[0].family in (socket.AF_INET, socket.AF_INET6):
        raise AssertionError(f"{event} in a test that runs in memory: {arguments[1]!r}")


if IS_FAST:
    sys.addaudithook(refuse)
