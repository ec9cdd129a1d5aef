"""Clusters for tests: real instances on one store, and the faults that they have to survive.

All functions wait for a condition with a deadline, never for a fixed time.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import pymongo
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.python import log

from asyncplumber.auth.signatures import Signer
from harness.clients import (
    TRANSPORTS,
    ConnectionFailed,
    HttpResponse,
    Subscriber,
    connect,
    fetch,
    sleep,
)
from harness.ledger import Ledger, Publisher
from harness.mongod import Mongod, with_database
from harness.ports import reserve_port
from harness.processes import Process

LEASE, LINGER = 2.0, 0.5  # seconds
LATEST = 20.0  # seconds after which something that was to happen will not
# A clock that is wrong: what Python's time.time tells is off by the seconds that a file says.
_SKEW = """
import mmap, struct, time
file = open({path!r}, "rb")
ahead, right = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ), time.time
time.time = lambda: right() + struct.unpack("d", ahead)[0]
"""
_TWISTD = "from twisted.scripts.twistd import run; run()"


async def until(condition: Callable[[], Any], what: str, seconds: float = LATEST) -> Any:
    """Wait until ``condition`` returns something true, and return it.

    Raises:
        AssertionError: it did not in time.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not in {seconds:g} seconds: {what}")
        await sleep(0.02)
    return found


async def eventually(
    question: Callable[[], Any], right: Callable[[Any], bool], what: str, seconds: float = LATEST
) -> Any:
    """Call a coroutine function until its result is right, and return the result.

    Raises:
        AssertionError: it was not in time.
    """
    deadline = time.monotonic() + seconds
    while not right(answer := await question()):
        if time.monotonic() > deadline:
            raise AssertionError(
                f"not in {seconds:g} seconds: {what}; the last answer was {answer!r}"
            )
        await sleep(0.05)
    return answer


class _Command(Process):
    """A process whose exit status can be read without waiting."""

    @property
    def status(self) -> int | None:
        """The exit status.  None while it runs."""
        return self._child.poll()


class Node:
    """One instance, or the parent of some workers, that restarts at the same port."""

    def __init__(self, *options: str, skew: float | None = None, port: int = 0) -> None:
        """Args:
        options: Of ``twistd asyncplumber``.
        skew: Seconds that its clock is ahead.  None: its clock is right and cannot be set.
        port: Where it listens.  0 reserves a port.
        """
        self.port = port or reserve_port()
        self._program = _TWISTD
        self.skew = 0.0  # seconds that its clock is ahead
        if skew is not None:
            # Open as long as this object lives.
            self._ahead = tempfile.NamedTemporaryFile(prefix="asyncplumber-clock-")  # noqa: SIM115
            self._program = _SKEW.format(path=self._ahead.name) + _TWISTD
            self.step(skew)
        self._options = options
        self.process: _Command | None = None

    def step(self, seconds: float) -> None:
        """Set its clock forward, or back.  It must have been made with a ``skew``."""
        self.skew += seconds
        self._ahead.seek(0)
        self._ahead.write(struct.pack("d", self.skew))
        self._ahead.flush()

    def add_options(self, *options: str) -> None:
        """Add options for the next start."""
        self._options += options

    def spawn(self) -> None:
        """Start it and do not wait."""
        self.kill()
        command = [sys.executable, "-c", self._program, "--nodaemon", "--pidfile=", "asyncplumber"]
        self.process = _Command([*command, "--port", str(self.port), *self._options])

    async def start(self) -> Node:
        """Start it and wait until it serves."""
        self.spawn()
        process = self._running
        await until(
            lambda: "is ready at http" in process.output or process.status is not None, "ready"
        )
        if process.status is not None:
            raise AssertionError(f"it ended: {process.output}")
        await self.ready()
        return self

    async def ready(self) -> None:
        """Wait until it can reach its store."""

        async def status() -> int:
            try:
                return (await self.fetch("GET", "/readyz")).status
            except ConnectionFailed:
                return 0

        await eventually(
            status, lambda status: status == 200, f"readyz of {self.port}: {self._running.output}"
        )

    @property
    def _running(self) -> _Command:
        assert self.process is not None
        return self.process

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.status is None

    @property
    def output(self) -> str:
        return self._running.output

    @property
    def pid(self) -> int:
        return self._running.pid

    def kill(self) -> None:
        """Kill it and its children (SIGKILL)."""
        if self.process is not None:
            self.process.kill()

    def signal(self, number: int) -> None:
        """Send a signal to this process alone."""
        os.kill(self.pid, number)

    async def ended(self, seconds: float = LATEST) -> int:
        """Wait for its end, and return the exit status."""
        try:
            await until(lambda: not self.alive, f"{self.port} ends", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output}") from None
        status = self._running.status
        assert status is not None
        return status

    async def stop(self) -> int:
        """Send SIGTERM, wait, and return the exit status.

        When everything is done, twistd ends by the signal that it received.
        """
        self.signal(signal.SIGTERM)
        return await self.ended()

    async def fetch(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> HttpResponse:
        return await fetch(self.port, method, path, body, headers)


class Cluster:
    """A MongoDB server and instances on it."""

    def __init__(
        self, size: int, *options: str, skews: Sequence[float | None] = (), uri: str = ""
    ) -> None:
        """Args:
        size: The number of instances.
        options: Of each of them.
        skews: Seconds that each clock is ahead; None for a clock that is right.
        uri: A server that is already running, without a database.  Empty: start one.
        """
        self.mongod = Mongod()
        self._starts = not uri
        self.uri = with_database(uri or self.mongod.uri, "cluster")
        common = ("--store", self.uri, "--lease", str(LEASE), "--linger", str(LINGER), *options)
        skews = [*skews, *[None] * (size - len(skews))]
        self.nodes = [Node(*common, skew=skew) for skew in skews]

    @property
    def ports(self) -> list[int]:
        return [node.port for node in self.nodes]

    async def up(self) -> None:
        """Start what is not running."""
        if self._starts and not self.mongod.pid:
            self.mongod.start()
        await gatherResults(
            [Deferred.fromCoroutine(node.start()) for node in self.nodes if not node.alive]
        )

    def log_news(self) -> None:
        """Write the output of the instances to the log of trial."""
        for node in self.nodes:
            log.msg(f"{node.port} says:\n{node.output}")

    def down(self) -> None:
        """Kill everything."""
        for node in self.nodes:
            node.kill()
        self.mongod.stop()

    def collection(self, name: str) -> Any:
        """Return a collection, as any other program with a driver sees it.

        Close it with ``.database.client.close()``.
        """
        return pymongo.MongoClient(self.mongod.uri, serverSelectionTimeoutMS=3000)["cluster"][name]

    def rows(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        collection = self.collection(name)
        try:
            return list(collection.find(fields))
        finally:
            collection.database.client.close()

    def instance_at(self, node: Node) -> dict[str, Any]:
        """Return the newest row of a node in the registry."""
        rows = self.rows("instances", url={"$regex": f":{node.port}/"})
        return max(rows, key=lambda row: row["expires_at"])

    def signed(self, instance: dict[str, Any], batch: bytes, skew: float = 0.0) -> dict[str, str]:
        """Return the headers that make a batch genuine: signed with the secret in the store.

        Args:
            instance: The row of the instance that receives it.
            batch: The body.
            skew: Seconds that the receiver's clock is ahead.
        """
        (row,) = self.rows("secrets")
        target = f"POST /instances/{instance['_id']}/events".encode()
        headers = Signer(row["secret"].encode()).sign(
            b"1", time.time() + skew, target + b"\n" + batch
        )
        return {name.decode(): value.decode() for name, value in headers.items()}


class Traffic:
    """The publishers and subscribers of a test, and the ledger that compares them."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.publishers: list[Publisher] = []

    def subscriber(
        self, kind: type[Subscriber], ports: Iterable[int], account: str, after: str = ""
    ) -> Subscriber:
        return kind(self.ledger, list(ports), account, after)

    async def connect(
        self, ports: Sequence[int], account: str, kinds: Sequence[type[Subscriber]] = TRANSPORTS
    ) -> list[Subscriber]:
        """Connect a subscriber of each kind to each instance; wait until all have a cursor."""
        subscribers = [
            self.subscriber(kind, [*ports[at:], *ports[:at]], account)
            for at in range(len(ports))
            for kind in kinds
        ]
        await gatherResults([each.begin() for each in subscribers])
        return subscribers

    def publisher(self, ports: Sequence[int], account: str) -> Publisher:
        name = f"{account}.{len(self.publishers)}"
        publisher = Publisher(self.ledger, ports, account, name)
        self.publishers.append(publisher)
        return publisher

    async def settled(self, seconds: float = LATEST) -> None:
        """Wait until every subscriber has everything that was accepted.

        Raises:
            AssertionError: something is missing, doubled or out of order.
        """
        deadline = time.monotonic() + seconds
        while self.ledger.missing() and not self.ledger.wrong() and time.monotonic() < deadline:
            await sleep(0.02)
        faults = self.ledger.wrong() + self.ledger.missing()
        if faults:
            raise AssertionError("\n".join(faults[:20]))

    async def disconnect(self) -> None:
        """Stop all publishers and close all subscribers."""
        await gatherResults([publisher.abandon() for publisher in self.publishers])
        await gatherResults([subscriber.end() for subscriber in self.ledger.subscribers])


class _End(Protocol):
    """One half of a connection through the proxy."""

    other: _End | None = None
    proxy: TcpProxy

    def connectionMade(self) -> None:
        self.proxy.ends.add(self)

    def dataReceived(self, data: bytes) -> None:
        if self.proxy.whole and self.other is not None:
            self.other.transport.write(data)
        # While it is cut, the bytes are lost and neither side is told.

    def connectionLost(self, reason: Any = None) -> None:
        self.proxy.ends.discard(self)
        if self.other is not None and self.proxy.whole:
            self.other.transport.loseConnection()


class _Entrance(_End):
    """The half of the client.  It does not read until the other half is connected."""

    def connectionMade(self) -> None:
        super().connectionMade()
        if self.proxy.whole:
            self.transport.pauseProducing()
            Deferred.fromCoroutine(self._join()).addErrback(  # type: ignore[call-overload]
                lambda _: self.transport.abortConnection()
            )

    async def _join(self) -> None:
        other = _End()
        other.proxy, other.other = self.proxy, self
        self.other = await connect(self.proxy.target, other)
        self.transport.resumeProducing()


class TcpProxy:
    """A port that forwards to another one, and can be cut as in a network partition.

    While it is cut, nothing arrives and neither side is told.
    """

    def __init__(self) -> None:
        self.whole = True
        self.target = 0
        self.port = 0
        self.ends: set[_End] = set()
        self._listening: Any = None

    async def open(self) -> TcpProxy:
        factory = Factory.forProtocol(self._entrance)
        factory.noisy = False
        self._listening = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(
            factory
        )
        self.port = self._listening.getHost().port
        return self

    def _entrance(self) -> _Entrance:
        entrance = _Entrance()
        entrance.proxy = self
        return entrance

    def cut(self) -> None:
        self.whole = False

    def mend(self) -> None:
        """Forward again.  Connections that were open while it was cut are aborted."""
        self.hang_up()
        self.whole = True

    def hang_up(self) -> None:
        for end in list(self.ends):
            end.transport.abortConnection()

    async def close(self) -> None:
        self.hang_up()
        await self._listening.stopListening()
        await until(lambda: not self.ends, "the proxy's connections end")


def children(pid: int) -> list[int]:
    """Return the ids of the children of a process."""
    said = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout
    pairs = [tuple(map(int, line.split())) for line in said.splitlines()]
    return sorted(child for child, parent in pairs if parent == pid)


def is_alive(pid: int) -> bool:
    """Tell whether a process exists and is no zombie."""
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
        ).stdout
        return bool(state.strip()) and not state.startswith("Z")
    return False


def kill_hard(pid: int) -> None:
    """Kill one process that a cluster has started (SIGKILL)."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
