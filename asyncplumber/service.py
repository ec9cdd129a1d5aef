"""Joins the rooms into the server that ``twistd asyncplumber`` starts: begin, drain, stop."""

from __future__ import annotations

import random
import sys
from typing import Any

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.plumber import Plumber
from asyncplumber.web.attendance import Attendance
from asyncplumber.web.listener import Listener


class Street(Service):
    """Listens on one endpoint, and sees everybody off at the end."""

    _log = Logger()

    def __init__(self, plumber: Plumber, listener: Listener, attendance: Attendance, endpoint: str, reactor: Any) -> None:
        """`endpoint` is a Twisted server endpoint string."""
        self._plumber = plumber
        self._listener = listener
        self._attendance = attendance
        self._endpoint = serverFromString(reactor, endpoint)
        self._description = endpoint
        self._port: IListeningPort | None = None

    def privilegedStartService(self) -> None:
        """Raises SystemExit, with a sentence for the user, if it cannot listen: a deaf server must not run on."""
        outcome: list[Any] = []
        self._endpoint.listen(self._listener).addBoth(outcome.append)
        if outcome and isinstance(outcome[0], Failure):
            error = outcome[0].value
            reason = error.socketError if isinstance(error, CannotListenError) else error
            sys.stderr.write(f"asyncplumber cannot listen on {self._description}: {reason}\n")
            raise SystemExit(1)
        if outcome:
            self._port = outcome[0]

    def startService(self) -> None:
        super().startService()
        if not self._plumber.public_url:
            self._plumber.public_url = self._own_url()
        self._listener.start()
        self._attendance.start()

    def _own_url(self) -> str:
        """What we call ourselves if nobody said: right on one machine, and for others only if they can reach that address."""
        address = self._port.getHost() if self._port is not None else None
        host = getattr(address, "host", "127.0.0.1")
        if host in ("0.0.0.0", "::"):  # noqa: S104
            host = "127.0.0.1"
        if ":" in host:
            host = f"[{host}]"
        return f"http://{host}:{getattr(address, 'port', 80)}"

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        return self._own_url() + "/"

    def stopService(self) -> Deferred[None]:
        """Withdraw the hooks, send everybody away, and hang up."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._log.info("stopping: {count} subscribers are sent away", count=len(self._attendance))
        self._listener.refuse()
        await self._plumber.withdraw()
        if self._port is not None:
            await _finished(self._port.stopListening())
        await self._attendance.dismiss()
        await self._plumber.intake.stop()
        self._listener.stop()


async def _finished(result: Any) -> None:
    if isinstance(result, Deferred):
        await result


class Server(MultiService):
    """The plumber and its street.  They stop in this order: street, plumber."""

    _log = Logger()

    def __init__(self, plumber: Plumber, endpoint: str, reactor: Any, **limits: Any) -> None:
        """`limits` are those of `Listener`."""
        super().__init__()
        attendance = Attendance(reactor, random.random)  # only the time of a reconnection depends on it
        site = plumber.routes.site(reactor)
        listener = Listener(plumber.webhook, plumber.hub, attendance, site, reactor, **limits)
        self.plumber = plumber
        self.street = Street(plumber, listener, attendance, endpoint, reactor)

    def privilegedStartService(self) -> None:
        self.street.privilegedStartService()

    def startService(self) -> None:
        Service.startService(self)
        self.street.startService()
        self.plumber.startService()
        self._log.info("asyncplumber is ready at {url}", url=self.street.url)

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        return self.street.stopService().addCallback(lambda _: self.plumber.stopService())
