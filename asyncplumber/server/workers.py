"""
Several processes on one port, which use all the cores of a machine.

The parent listens, and the workers accept.  Each worker is an instance with its own entry in the
registry, and workers reach each other as machines do.  The parent keeps the one listening socket
open while a worker is restarted: no client is refused, and none waits for a dead worker.  How the
workers share the connections is in `accept`.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from twisted.application.internet import backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.logger import Logger, globalLogPublisher
from twisted.python.failure import Failure

from asyncplumber.server.accept import ConnectionCounts
from asyncplumber.server.logs import told_by_worker
from asyncplumber.server.service import Place, listen, own_url, tell_private
from asyncplumber.server.shared_figures import SharedFigures
from asyncplumber.server.worker import COUNTS, FIGURES, LISTENING, PRIVATE, READY

STOP_TIMEOUT = 25.0  # seconds that a worker has to stop: a little more than it takes itself
STABLE = 5.0  # seconds of life after which a worker that dies is restarted at once
# Seconds until a worker that keeps dying is restarted: 0.5, 1, 2, 4 … and 30 at most.
restart_delay = backoffPolicy(initialDelay=0.5, maxDelay=30.0, factor=2.0, jitter=lambda: 0.0)
_TWISTD = "from twisted.scripts.twistd import run; run()"


class _Held(Factory):
    """Of a socket that this process only holds: the workers accept."""

    noisy = False


class Worker(ProcessProtocol):
    """One worker process, and those that are started after it in its place."""

    _log = Logger()

    def __init__(self, number: int, supervisor: Supervisor) -> None:
        self.number = number
        self._supervisor = supervisor
        self._is_running = False
        self._started = 0.0
        self._deaths = 0
        self._partial = b""
        self.stopped: Deferred[None] | None = None

    def connectionMade(self) -> None:
        self._is_running = True
        self._started = self._supervisor.reactor.seconds()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD == READY:
            self._supervisor.is_ready(self)
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            event = told_by_worker(self.number, text)
            if event is not None:
                globalLogPublisher(event)
            else:
                self._log.info("worker {number}: {line}", number=self.number, line=text)

    def processEnded(self, reason: Failure) -> None:
        self._is_running = False
        self._supervisor.counts.clear(self.number)
        self._supervisor.figures.clear(self.number)
        if self.stopped is not None:
            self.stopped.callback(None)
            return
        if self._supervisor.reactor.seconds() - self._started > STABLE:
            self._deaths = 0
        delay = restart_delay(self._deaths - 1) if self._deaths else 0.0
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
        Send SIGTERM, and SIGKILL after `STOP_TIMEOUT`.

        Returns:
            A Deferred that fires when the process has ended.
        """
        self.stopped = Deferred()
        if not self._is_running:
            self.stopped.callback(None)
            return self.stopped
        self._signal("TERM")
        kill = self._supervisor.reactor.callLater(STOP_TIMEOUT, self._signal, "KILL")

        def ended(_: None) -> None:
            if kill.active():
                kill.cancel()

        return self.stopped.addCallback(ended)

    def _signal(self, name: str) -> None:
        assert self.transport is not None, "it is running"
        with suppress(ProcessExitedAlready):  # only the rest of its output is still to be read
            self.transport.signalProcess(name)


class Supervisor(Service):
    """The parent process: starts the workers, restarts those that die, and stops them."""

    _log = Logger()

    def __init__(
        self,
        count: int,
        endpoint: IStreamServerEndpoint,
        name: str,
        environ: Mapping[str, str],
        reactor: Any,
        private: Place | None = None,
    ) -> None:
        """
        Make the parent; it listens from `startService` on.

        Args:
            count: How many workers.
            endpoint: Where clients come in.
            name: What messages call it.
            environ: The environment of the workers, in which they find their options.
            reactor: The reactor to run on.
            private: Where operators come in, if that is another port.
        """
        self.reactor = reactor
        self._places = [Place(endpoint, name), *([private] if private is not None else ())]
        self._environ = dict(environ)
        self.counts = ConnectionCounts.for_workers(count)
        self.figures = SharedFigures.for_workers(count)
        self._workers = [Worker(number, self) for number in range(1, count + 1)]
        self._starting = set(self._workers)
        self._restarts: set[Any] = set()
        self._ports: list[Any] = []

    def privilegedStartService(self) -> None:
        self._ports = [listen(place.endpoint, _Held(), place.name) for place in self._places]
        for port in self._ports:
            port.stopReading()  # the parent only holds the sockets; the workers accept

    def startService(self) -> None:
        if not self._ports:
            self.privilegedStartService()  # ``twist`` does not call it
        super().startService()
        for worker in self._workers:
            self._spawn(worker)

    def _spawn(self, worker: Worker) -> None:
        families = [socket.AddressFamily(port.addressFamily).name for port in self._ports]
        place = ":".join([str(worker.number), *families])
        # A worker's log comes to this process, which has it as its own.
        environ = {
            **self._environ,
            "ASYNCPLUMBER_WORKER": place,
            "ASYNCPLUMBER_LOG_FORMAT": "json",
        }
        shared = zip((LISTENING, PRIVATE), self._ports, strict=False)
        # Standard input ends when the parent does, and the worker stops then.
        self.reactor.spawnProcess(
            worker,
            sys.executable,
            [sys.executable, "-c", _TWISTD, "-n", "--pidfile=", "asyncplumber"],
            env=environ,
            childFDs={
                0: "w",
                1: "r",
                2: "r",
                **{number: port.fileno() for number, port in shared},
                READY: "r",
                COUNTS: self.counts.fileno(),
                FIGURES: self.figures.fileno(),
            },
        )

    def restart(self, worker: Worker, delay: float) -> None:
        """Start the worker again after `delay` seconds."""

        def start() -> None:
            self._restarts.discard(call)
            self._spawn(worker)

        call = self.reactor.callLater(delay, start)
        self._restarts.add(call)

    def is_ready(self, worker: Worker) -> None:
        """Note that a worker serves; the last one of the start is logged."""
        if worker in self._starting:
            self._starting.discard(worker)
            if not self._starting:
                for place, port in zip(self._places[1:], self._ports[1:], strict=True):
                    tell_private(self._log, port, place.name)
                url = own_url(self._ports[0])
                self._log.info(
                    "asyncplumber is ready at {url}/ with {count} workers",
                    url=url,
                    count=len(self._workers),
                )

    def stopService(self) -> Deferred[None]:
        """Return a Deferred that fires when all workers have ended."""
        super().stopService()
        for call in self._restarts:
            call.cancel()
        stopped = DeferredList([worker.stop() for worker in self._workers])

        def close(_: object) -> Deferred[Any]:
            return DeferredList([maybeDeferred(port.stopListening) for port in self._ports])

        return stopped.addCallback(close).addCallback(lambda _: None)
