"""The server that ``twistd asyncplumber`` starts: it listens, serves, drains and stops."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from asyncplumber.figures import Gauge
from asyncplumber.http.listener import Listener
from asyncplumber.http.ports import Port
from asyncplumber.plumber import Plumber

STOP_TIMEOUT = 20.0  # seconds that a stop may take; what is left then is cut off


def own_url(port: IListeningPort | None) -> str:
    """Return the URL of a listening port on this machine."""
    address = port.getHost() if port is not None else None
    host = getattr(address, "host", "127.0.0.1")
    if host in ("0.0.0.0", "::"):  # noqa: S104
        host = "127.0.0.1"
    scheme = "https" if isinstance(getattr(port, "factory", None), TLSMemoryBIOFactory) else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{getattr(address, 'port', 80)}"


def listen(endpoint: IStreamServerEndpoint, factory: Any, name: str) -> IListeningPort | None:
    """
    Listen now.

    Args:
        endpoint: Where.
        factory: Makes the protocol of each connection.
        name: What a message calls the endpoint.

    Returns:
        The port; None if the endpoint is not ready at once.

    Raises:
        SystemExit: It cannot listen.  A sentence for the user is on standard error: a server
            that nobody can reach must not run on.
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


def tell_private(log: Logger, port: IListeningPort | None, name: str) -> None:
    """Log where the admin page is; `name` is that of the endpoint."""
    if hasattr(port.getHost() if port is not None else None, "port"):
        log.info("the admin page is at {url}/admin/", url=own_url(port))
    else:
        log.info("the admin page is at {name}", name=name)


class Place(NamedTuple):
    """
    Where a server listens.

    Attributes:
        endpoint: Where.
        name: What messages call it.
        port: What it is for.
    """

    endpoint: IStreamServerEndpoint
    name: str
    port: Port = Port.ONLY


class Server(MultiService):
    """A plumber, and the ports at which it is served."""

    _log = Logger()

    def __init__(
        self,
        plumber: Plumber,
        places: Sequence[Place],
        reactor: Any,
        *,
        shared_ports: int = 0,
        ready: Callable[[str], None] | None = None,
        **limits: Any,
    ) -> None:
        """
        Make the server; it listens from `startService` on.

        Args:
            plumber: What is served.  It becomes a child of this service.
            places: Where to listen.  Clients use the first one, the other instances the last one.
            reactor: The reactor to run on.
            shared_ports: How many of the first places other workers accept on as well.  A stop
                leaves these to them at once.
            ready: Called with the URL of the server when it serves.  None logs it.
            limits: Those of `Listener`.
        """
        super().__init__()
        self.addService(plumber)
        self._plumber = plumber
        self._places = places
        self._reactor = reactor
        self._shared_ports = shared_ports
        self._ready = ready or (
            lambda url: self._log.info("asyncplumber is ready at {url}/", url=url)
        )
        self._listener = Listener(
            plumber.front.webhook,
            plumber.front.subscribers,
            plumber.front.task_pages,
            plumber.front.site(),
            plumber.gate,
            reactor,
            **limits,
        )
        self._ports: list[IListeningPort | None] = []
        plumber.figures.add(
            self._listener.refused_connections,
            Gauge("connections", "Open connections of clients.", lambda: self.connected),
        )

    @property
    def connected(self) -> int:
        """The number of connections: those with requests, and those with a stream."""
        return len(self._listener.connections) + len(self._plumber.front.clients)

    def privilegedStartService(self) -> None:
        """Listen, while a daemon still has the right to."""
        super().privilegedStartService()
        self._ports = [
            listen(endpoint, self._listener.at(port), name) for endpoint, name, port in self._places
        ]
        self._listener.ports = list(self._ports)

    def startService(self) -> None:
        if not self._ports:
            self.privilegedStartService()  # ``twist`` does not call it
        plumber = self._plumber
        if not plumber.public_url and (not plumber.advertise_url or len(self._ports) > 1):
            # Where there are several ports, the advertised URL is for the other instances only.
            plumber.public_url = own_url(self._ports[0])
        if not plumber.advertise_url:
            plumber.advertise_url = own_url(self._ports[-1])
        self._listener.start()
        self._plumber.when_running().addCallbacks(self._serve, self._cannot_open)
        super().startService()  # the plumber as well

    def _serve(self, _: None) -> None:
        if not self.running:
            return  # it is stopping already
        for place, port in zip(self._places, self._ports, strict=True):
            if place.port is Port.PRIVATE and not self._shared_ports:
                tell_private(self._log, port, place.name)
        self._ready(own_url(self._ports[0]))

    def _cannot_open(self, failure: Failure) -> None:
        """End with status 1, which twistd itself cannot do.  The plumber has logged the reason."""
        if not self.running:
            return  # it was stopped before the store opened
        self._reactor.addSystemEventTrigger("after", "shutdown", os._exit, 1)
        self._reactor.stop()

    def stopService(self) -> Deferred[None]:
        """Return a Deferred that fires when all is done, or after `STOP_TIMEOUT` seconds."""
        self.running = 0
        stopped = Deferred.fromCoroutine(self._stop())
        stopped.addTimeout(STOP_TIMEOUT, self._reactor)
        return stopped.addErrback(
            lambda failure: self._log.failure("stopping was cut short", failure)
        )

    async def _stop(self) -> None:
        """Take no new connections, stop the plumber, and then close what is still open."""
        self._log.info(
            "stopping; {count} subscribers are asked to come back elsewhere",
            count=len(self._plumber.front.clients),
        )
        self._listener.refuse()
        for port in self._ports[: self._shared_ports]:
            await self._close(port)
        await MultiService.stopService(self)  # the plumber drains and stops
        ports, self._ports = self._ports, []  # a start after this stop listens again
        for port in ports:
            await self._close(port)
        self._listener.stop()

    @staticmethod
    async def _close(port: IListeningPort | None) -> None:
        if port is not None:
            closed = port.stopListening()
            if isinstance(closed, Deferred):
                await closed
