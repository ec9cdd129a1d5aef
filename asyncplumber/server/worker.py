"""One of several workers: a server that accepts on a socket which its parent holds."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from typing import Any

from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IReactorCore
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.stdio import StandardIO
from twisted.python.failure import Failure

from asyncplumber.concurrency import PeriodicTask
from asyncplumber.http.ports import Port
from asyncplumber.plumber import Plumber
from asyncplumber.server.accept import ConnectionCounts, SharedEndpoint
from asyncplumber.server.service import Place, Server
from asyncplumber.server.shared_figures import PUBLISH_INTERVAL, SharedFigures, WorkerFigures

# The file descriptors that a worker inherits.
LISTENING = 3  # the socket that all workers accept on
READY = 4  # a pipe: one byte says that the worker serves
COUNTS = 5  # the table of connections, one count for each worker
FIGURES = 6  # the table of figures, one row for each worker
PRIVATE = 7  # the private socket that all workers accept on, if there is one


def make_worker(
    place: str, plumber: Plumber, peers: tuple[str, int], reactor: Any, **limits: Any
) -> Server:
    """
    Make the service of one worker.

    Args:
        place: Its number and the families of the shared sockets, such as ``2:AF_INET:AF_UNIX``.
            The second one is that of the private socket, if there is one.
        plumber: What it serves.
        peers: The address and the first port for the other instances.  Port 0 is any free one;
            else worker 1 has this port, worker 2 the next one, and so on.
        reactor: The reactor to run on.
        limits: Those of `http.listener.Listener`.
    """
    text, family, *private = place.split(":")
    number = int(text)
    # A terminal interrupts the whole process group; the parent stops its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Both tables stay open as long as the process lives.
    counts = ConnectionCounts(open(COUNTS, "r+b"), number)  # noqa: SIM115
    figures = SharedFigures(open(FIGURES, "r+b"))  # noqa: SIM115
    shared = [
        SharedEndpoint(reactor, descriptor, socket.AddressFamily[each], counts)
        for descriptor, each in zip((LISTENING, PRIVATE), (family, *private), strict=False)
    ]
    host, first = peers
    port = first + number - 1 if first else 0
    own = TCP4ServerEndpoint(reactor, port, interface=host)

    def publish() -> None:
        metrics.combined()

    def ready(url: str) -> None:
        counts.serve(lambda: server.connected)
        PeriodicTask(publish, PUBLISH_INTERVAL, reactor, now=True).start()
        reactor.addSystemEventTrigger("after", "shutdown", publish)
        os.write(READY, b"!")
        StandardIO(_ParentWatch(reactor), reactor=reactor)

    metrics = plumber.front.metrics
    metrics.combine = WorkerFigures(figures, number).combine
    plumber.worker = number
    uses = (Port.PUBLIC, Port.PRIVATE, Port.PEERS) if private else (Port.ONLY, Port.ONLY)
    names = ["the socket of the parent"] * len(shared)
    names.append(f"port {port} of {host}, for the other instances")
    places = [Place(*each) for each in zip([*shared, own], names, uses, strict=True)]
    server = Server(plumber, places, reactor, shared_ports=len(shared), ready=ready, **limits)
    return server


class _ParentWatch(Protocol):
    """Stops the worker when standard input ends, which it does when the parent has died."""

    def __init__(self, reactor: IReactorCore) -> None:
        self._reactor = reactor

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        with suppress(ReactorNotRunning):  # the worker may be stopping already
            self._reactor.stop()
