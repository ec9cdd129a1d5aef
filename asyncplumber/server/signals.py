"""
What signals do besides SIGINT and SIGTERM, which the reactor handles.

By default, each of them ends the process at once, before subscribers are told to reconnect.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from twisted.logger import Logger

_log = Logger()


def _stop(number: int, frame: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def handle(reactor: Any) -> None:
    """
    Stop on SIGQUIT as on SIGTERM, and ignore SIGHUP, SIGUSR1 and SIGUSR2.

    SIGHUP has no effect because there are no files to read again.  A handler that is already set
    for a signal stays: that of ``nohup`` for SIGHUP, and that of twistd for SIGUSR1, on which it
    rotates its log file.
    """

    def ignore(number: int, frame: Any) -> None:
        reactor.callFromThread(_log.info, "{name} is ignored", name=signal.Signals(number).name)

    _set(signal.SIGHUP, ignore)
    _set(signal.SIGQUIT, _stop)
    for number in (signal.SIGTERM, signal.SIGINT):
        reactor.callWhenRunning(_once, number, ignore)
    # twistd sets its own handler later, if none is set by then.
    reactor.callWhenRunning(_set, signal.SIGUSR1, ignore)
    reactor.callWhenRunning(_set, signal.SIGUSR2, ignore)


def _once(number: signal.Signals, afterwards: Any) -> None:
    """
    Have the reactor stop at the first signal only.

    A worker may get one signal from its parent and one from the service manager.
    """
    stop: Any = signal.getsignal(number)

    def first(number: int, frame: Any) -> None:
        signal.signal(number, afterwards)
        stop(number, frame)

    if callable(stop):
        signal.signal(number, first)


def _set(number: signal.Signals, handler: Any) -> None:
    if signal.getsignal(number) == signal.SIG_DFL:
        signal.signal(number, handler)
