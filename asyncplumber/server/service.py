"""Joins the rooms into the server that ``twistd asyncplumber`` starts: begin, drain, stop."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from asyncplumber.http.listener import Listener
from asyncplumber.plumber import Plumber
from asyncplumber.transports.connected_clients import ConnectedClients

STOPPING = 20.0  # seconds that a stop may take; then whatever is left is cut off


def own_url(port: IListeningPort | None) -> str:
    """What a listening port is called on this machine."""
    address = port.getHost() if port is not None else None
    host = getattr(address, "host", "127.0.0.1")
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    scheme = "https" if isinstance(getattr(port, "factory", None), TLSMemoryBIOFactory) else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{getattr(address, 'port', 80)}"


def listen(endpoint: IStreamServerEndpoint, factory: Any, name: str) -> IListeningPort | None:
    """
    Listen now.  Raises SystemExit, with a sentence for the user, if that cannot be: a deaf server
    must not run on.

    Returns None where the endpoint takes its time.
    """
    outcome: list[Any] = []
    endpoint.listen(factory).addBoth(outcome.append)
    if not outcome:
        return None
    port = outcome[0]
    if isinstance(port, Failure):
        error = port.value
        reason = error.socketError if isinstance(error, CannotListenError) else error
        sys.stderr.write(f"asyncplumber cannot listen on {name}: {reason}\n")
        raise SystemExit(1)
    return port  # type: ignore[no-any-return]


class Server(Service):
    """The plumber and its doors."""

    _log = Logger()

    def __init__(
        self,
        plumber: Plumber,
        endpoints: Sequence[tuple[IStreamServerEndpoint, str]],
        reactor: Any,
        *,
        shares_port: bool = False,
        ready: Callable[[str], None] | None = None,
        **limits: Any,
    ) -> None:
        """
        `endpoints`, each with what to call it in a message: the first is for everybody, the last
        for the other instances.

        `shares_port` says that other workers accept on the first as well, so that a stop leaves it
        to them at once. `ready` is called with the server's URL when it serves.  `limits` are those
        of `Listener`.
        """
        self._plumber = plumber
        self._endpoints = endpoints
        self._reactor = reactor
        self._shares_port = shares_port
        self._ready = ready or (
            lambda url: self._log.info("asyncplumber is ready at {url}/", url=url)
        )
        self._attendance = ConnectedClients(
            reactor, random.random
        )  # only the time of a reconnection depends on it
        site = plumber.routes.site(reactor)
        self._listener = Listener(
            plumber.webhook,
            plumber.hub,
            self._attendance,
            site,
            reactor,
            gate=plumber.gate,
            **limits,
        )
        self._ports: list[IListeningPort | None] = []

    @property
    def connected(self) -> int:
        """How many are connected: clients with their requests, and those who have a stream."""
        return len(self._listener.connections) + len(self._attendance)

    def privilegedStartService(self) -> None:
        """Listen, while a daemon still has the rights to."""
        self._ports = [listen(endpoint, self._listener, name) for endpoint, name in self._endpoints]
        self._listener.ports = list(self._ports)

    def startService(self) -> None:
        if not self._ports:
            self.privilegedStartService()  # ``twist`` does not call it
        super().startService()
        if not self._plumber.advertise_url:
            self._plumber.advertise_url = own_url(self._ports[-1])
        self._listener.start()
        self._attendance.start()
        self._plumber.opened.addCallbacks(self._serve, self._cannot_open)
        self._plumber.startService()

    def _serve(self, _: None) -> None:
        if self.running:  # and not about to stop already
            self._ready(own_url(self._ports[0]))

    def _cannot_open(self, failure: Failure) -> None:
        """End with status 1, for which twistd has no way of its own."""
        self._log.critical("the store cannot be opened: {error}", error=failure.getErrorMessage())
        self._reactor.addSystemEventTrigger("after", "shutdown", os._exit, 1)
        self._reactor.stop()

    def stopService(self) -> Deferred[None]:
        """@return: Deferred that fires when all is done, or `STOPPING` seconds have gone by."""
        super().stopService()
        stopped = Deferred.fromCoroutine(self._stop())
        stopped.addTimeout(STOPPING, self._reactor)
        return stopped.addErrback(
            lambda failure: self._log.failure("stopping was cut short", failure)
        )

    async def _stop(self) -> None:
        """
        First nobody is sent here any more, then everybody is sent away, then the lights go out.
        """
        self._log.info(
            "stopping; {count} subscribers are asked to come back elsewhere",
            count=len(self._attendance),
        )
        self._listener.refuse()
        if self._shares_port:
            await self._close(self._ports[0])
        await self._plumber.withdraw()
        await self._attendance.dismiss()
        await self._plumber.intake.stop()
        for port in self._ports:
            await self._close(port)
        self._listener.stop()
        await self._plumber.stopService()

    @staticmethod
    async def _close(port: IListeningPort | None) -> None:
        if port is not None:
            closed = port.stopListening()
            if isinstance(closed, Deferred):
                await closed
