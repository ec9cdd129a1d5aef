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
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.server.accept import ConnectionCounts
from asyncplumber.server.service import listen, own_url
from asyncplumber.server.shared_figures import SharedFigures
from asyncplumber.server.worker import COUNTS, FIGURES, LISTENING, READY

STOP_TIMEOUT = 25.0  # seconds that a worker has to stop: a little more than it takes itself
STABLE = 5.0  # seconds of life after which a worker that dies is restarted at once
# Seconds until a worker that keeps dying is restarted: 0.5, 1, 2, 4 … and 30 at most.
restart_delay = backoffPolicy(initialDelay=0.5, maxDelay=30.0, factor=2.0, jitter=lambda: 0.0)
_TWISTD = "from twisted.scripts.twistd import run; run()"


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
            # The parent's log has its own time.
            time, _, rest = line.decode(errors="replace").partition(" ")
            self._log.info(
                "worker {number}: {line}",
                number=self.number,
                line=rest if time[:1].isdigit() else f"{time} {rest}",
            )

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
    ) -> None:
        """`environ` is the environment of the workers, in which they find their options."""
        self.reactor = reactor
        self._endpoint = endpoint
        self._name = name
        self._environ = dict(environ)
        self.counts = ConnectionCounts.for_workers(count)
        self.figures = SharedFigures.for_workers(count)
        self._workers = [Worker(number, self) for number in range(1, count + 1)]
        self._starting = set(self._workers)
        self._restarts: set[Any] = set()
        self._port: Any = None

    def privilegedStartService(self) -> None:
        self._port = listen(self._endpoint, Factory(), self._name)
        # The parent only holds the socket; the workers accept.
        self._port.stopReading()

    def startService(self) -> None:
        if self._port is None:
            self.privilegedStartService()  # ``twist`` does not call it
        super().startService()
        for worker in self._workers:
            self._spawn(worker)

    def _spawn(self, worker: Worker) -> None:
        listening = self._port.fileno()
        family = socket.AddressFamily(self._port.addressFamily).name
        environ = {**self._environ, "ASYNCPLUMBER_WORKER": f"{worker.number}:{family}"}
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
                LISTENING: listening,
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
                url = own_url(self._port)
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
        return stopped.addCallback(lambda _: self._port.stopListening()).addCallback(lambda _: None)
