"""
What a signal does, beside SIGINT and SIGTERM, which the reactor takes: nothing ends without a word
to subscribers.

Left alone, each of these ends the process at once.
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
    Ignore SIGHUP (there are no files to read again), stop on SIGQUIT as on SIGTERM, ignore SIGUSR1
    and SIGUSR2.

    Whatever somebody else has set for a signal stays: ``nohup`` for SIGHUP, twistd for SIGUSR1, on
    which it rotates its log file.
    """

    def ignore(number: int, frame: Any) -> None:
        reactor.callFromThread(_log.info, "{name} is ignored", name=signal.Signals(number).name)

    _set(signal.SIGHUP, ignore)
    _set(signal.SIGQUIT, _stop)
    for number in (signal.SIGTERM, signal.SIGINT):
        reactor.callWhenRunning(_once, number, ignore)
    # twistd looks later whether it may have the signal.
    reactor.callWhenRunning(_set, signal.SIGUSR1, ignore)
    reactor.callWhenRunning(_set, signal.SIGUSR2, ignore)


def _once(number: signal.Signals, afterwards: Any) -> None:
    """
    Have the reactor stop at the first signal only.

    Parent and service manager may both send one to a worker, and the second is no error.
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
