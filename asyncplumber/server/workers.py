"""
Several processes on one port, so that all the cores of a machine are used: the parent listens, the
workers accept.

Each worker is an instance like any other, with a hook of its own, and they reach each other as
machines do.  There is one socket for all, which the parent keeps open while a worker is restarted,
so nobody is refused, and nobody waits for a worker that is dead; `web.sharing` has each take its
share.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessDone
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.server.accept import Seats
from asyncplumber.server.service import listen, own_url
from asyncplumber.server.shared_figures import SharedFigures

LISTENING = 3  # the file descriptor at which a worker finds the socket
READY = 4  # the one at which it says that it serves
SEATS = 5  # the one of the table that says how many each worker has
FIGURES = 6  # and the one of the table with the figures of each worker
PATIENCE = 25.0  # seconds that a worker has to stop: a little more than it takes itself
STABLE = 5.0  # seconds after which a worker that dies is restarted at once
RESTART = (0.5, 30.0)  # seconds until a worker that keeps dying is restarted: at first, at most
_TWISTD = "from twisted.scripts.twistd import run; run()"


class Worker(ProcessProtocol):
    """One worker process, and its successors."""

    _log = Logger()

    def __init__(self, number: int, supervisor: Supervisor) -> None:
        self.number = number
        self._supervisor = supervisor
        self._started = 0.0
        self._deaths = 0
        self._partial = b""
        self.stopped: Deferred[None] | None = None

    def connectionMade(self) -> None:
        self._started = self._supervisor.reactor.seconds()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD == READY:
            self._supervisor.is_ready(self)
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            # Its own time is left out: the parent's log has one.
            time, _, rest = line.decode(errors="replace").partition(" ")
            self._log.info(
                "worker {number}: {line}",
                number=self.number,
                line=rest if time[:1].isdigit() else f"{time} {rest}",
            )

    def processEnded(self, reason: Failure) -> None:
        self._supervisor.seats.leave(self.number)
        self._supervisor.figures.leave(self.number)
        if self.stopped is not None:
            self.stopped.callback(None)
            return
        if self._supervisor.reactor.seconds() - self._started > STABLE:
            self._deaths = 0
        first, most = RESTART
        delay = 0.0 if not self._deaths else min(most, first * 2 ** (self._deaths - 1))
        self._deaths += 1
        how = "ended" if reason.check(ProcessDone) else str(reason.value)
        self._log.warn(
            "worker {number} {how}; restarting in {delay} s",
            number=self.number,
            how=how,
            delay=delay,
        )
        self._supervisor.restart(self, delay)

    def stop(self) -> Deferred[None]:
        """
        Ask it to stop, and insist after a while.  @return: Deferred that fires when it has ended.
        """
        self.stopped = Deferred()
        if self.transport is None or self.transport.pid is None:
            self.stopped.callback(None)
            return self.stopped
        self.transport.signalProcess("TERM")
        insist = self._supervisor.reactor.callLater(PATIENCE, self.transport.signalProcess, "KILL")

        def ended(_: None) -> None:
            if insist.active():
                insist.cancel()

        return self.stopped.addCallback(ended)


class Supervisor(Service):
    """The parent: starts the workers, restarts those that die, passes on the end."""

    _log = Logger()

    def __init__(
        self,
        count: int,
        endpoint: IStreamServerEndpoint,
        name: str,
        environ: Mapping[str, str],
        reactor: Any,
    ) -> None:
        """`environ` is what the workers find their options in."""
        self.reactor = reactor
        self._endpoint = endpoint
        self._name = name
        self._environ = dict(environ)
        self.seats = Seats.for_workers(count)
        self.figures = SharedFigures.for_workers(count)
        self._workers = [Worker(number, self) for number in range(1, count + 1)]
        self._waiting = set(self._workers)
        self._restarts: set[Any] = set()
        self._port: Any = None

    def privilegedStartService(self) -> None:
        self._port = listen(self._endpoint, Factory(), self._name)
        # The parent only holds the socket: accepting is the workers' business.
        self._port.stopReading()

    def startService(self) -> None:
        if self._port is None:
            self.privilegedStartService()  # ``twist`` does not call it
        super().startService()
        for worker in self._workers:
            self._spawn(worker)

    def _spawn(self, worker: Worker) -> None:
        listening = self._port.fileno()
        family = (
            "unix"
            if self._port.addressFamily == getattr(socket, "AF_UNIX", None)
            else self._port.addressFamily.name
        )
        environ = {**self._environ, "ASYNCPLUMBER_WORKER": f"{worker.number}:{family}"}
        # Standard input is a pipe that ends when we do: a worker does not outlive its parent.
        self.reactor.spawnProcess(
            worker,
            sys.executable,
            [sys.executable, "-c", _TWISTD, "-n", "--pidfile=", "asyncplumber"],
            env=environ,
            childFDs={
                0: "w",
                1: "r",
                2: "r",
                LISTENING: listening,
                READY: "r",
                SEATS: self.seats.fileno(),
                FIGURES: self.figures.fileno(),
            },
        )

    def restart(self, worker: Worker, delay: float) -> None:
        """Start its successor after `delay` seconds."""

        def start() -> None:
            self._restarts.discard(call)
            self._spawn(worker)

        call = self.reactor.callLater(delay, start)
        self._restarts.add(call)

    def is_ready(self, worker: Worker) -> None:
        """A worker serves."""
        if worker in self._waiting:
            self._waiting.discard(worker)
            if not self._waiting:
                url = own_url(self._port)
                self._log.info(
                    "asyncplumber is ready at {url}/ with {count} workers",
                    url=url,
                    count=len(self._workers),
                )

    def stopService(self) -> Deferred[None]:
        """@return: Deferred that fires when all workers have ended."""
        super().stopService()
        for call in self._restarts:
            call.cancel()
        stopped = DeferredList([worker.stop() for worker in self._workers])
        return stopped.addCallback(lambda _: self._port.stopListening()).addCallback(lambda _: None)
