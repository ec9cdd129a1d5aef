"""Reminds the operator that a server was started with ``--insecure``."""

from __future__ import annotations

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from asyncplumber.concurrency import PeriodicTask

INTERVAL = 60.0  # seconds between two lines


class InsecureWarning(Service):
    """Writes a line a minute: nobody finds the one that was written months ago at the start."""

    _log = Logger()

    def __init__(self, reactor: IReactorTime) -> None:
        self._lines = PeriodicTask(self._warn, INTERVAL, reactor, now=True)

    def startService(self) -> None:
        """Begin."""
        super().startService()
        self._lines.start()

    def stopService(self) -> None:
        """Write no more."""
        super().stopService()
        self._lines.stop()

    def _warn(self) -> None:
        self._log.warn(
            "--insecure is given: without authentication everybody who reaches this server may "
            "read and post everything, and with it credentials are taken over plain http"
        )
