"""
A replica set of three real members on loopback, whose links can be cut one by one.

The members know each other by the ports of proxies.  A proxy looks up in `/proc` which process has
the socket at its other end.  So the link between two members, or between a member and one client
process, can be cut while all others stay.  Connections over a cut link are reset, and so are new
attempts.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pymongo
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest

from harness.clients import connect
from harness.mongod import UP, Mongod

NAME = "three"
ELECTION = 120.0  # seconds until a primary without the others steps down; nothing waits for it


def _inode(port: int, peer: int) -> str:
    """Return the inode of the loopback socket from `port` to `peer`; "" if there is none."""
    ends = f":{port:04X}", f":{peer:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(ends[0]) and fields[2].endswith(ends[1]):
            return fields[9]
    return ""


def _has(pid: int, inode: str) -> bool:
    """Return whether the process has that socket open."""
    wanted = f"socket:[{inode}]"
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}") == wanted:
                    return True
    return False


class _End(Protocol):
    """
    One half of a connection through a proxy.

    `pair` contains the ids of the two processes; 0 stands for an unknown one.
    """

    other: _End | None = None
    links: Links
    pair: frozenset[int] = frozenset()

    def connectionMade(self) -> None:
        self.links.ends.add(self)

    def dataReceived(self, data: bytes) -> None:
        if self.other is not None:
            self.other.transport.write(data)

    def connectionLost(self, reason: Any = None) -> None:
        self.links.ends.discard(self)
        if self.other is not None:
            self.other.transport.loseConnection()


class _ClientEnd(_End):
    """The half that a client connected to."""

    target: Mongod

    def connectionMade(self) -> None:
        super().connectionMade()
        self.pair = frozenset((self.links.owner(self.transport), self.target.pid))
        if self.pair in self.links.cuts:
            self.transport.abortConnection()
        else:
            self.transport.pauseProducing()
            joining = Deferred.fromCoroutine(self._join())
            self.links.joining.add(joining)
            joining.addErrback(lambda _: self.transport.abortConnection())  # type: ignore[call-overload]
            joining.addBoth(lambda _: self.links.joining.discard(joining))

    async def _join(self) -> None:
        other = _End()
        other.links, other.other, other.pair = self.links, self, self.pair
        self.other = await connect(self.target.port, other)
        if self.transport.disconnected or self.pair in self.links.cuts:
            other.transport.abortConnection()
        self.transport.resumeProducing()


class Links:
    """All connections through the proxies, and which of them are cut."""

    def __init__(self) -> None:
        self.cuts: set[frozenset[int]] = set()
        self.ends: set[_End] = set()
        self.joining: set[Deferred[None]] = set()  # connections on their way to a member
        self.known: list[int] = []  # process ids that are told apart
        self._ports: list[Any] = []

    async def open_proxy(self, target: Mongod) -> int:
        """Open a proxy, and return its port."""

        def client_end() -> _ClientEnd:
            end = _ClientEnd()
            end.links, end.target = self, target
            return end

        factory = Factory.forProtocol(client_end)
        factory.noisy = False
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        self._ports.append(port)
        return int(port.getHost().port)

    def owner(self, transport: Any) -> int:
        """Return the process at the other end, or 0 if it is not a known one."""
        inode = _inode(transport.getPeer().port, transport.getHost().port)
        return next((pid for pid in self.known if inode and _has(pid, inode)), 0)

    def cut(self, some: Iterable[int], others: Iterable[int]) -> None:
        """
        Cut the links between some processes and others.

        They are process ids; 0 means all processes that are not known.
        """
        theirs = list(others)
        cuts = {frozenset((one, other)) for one in some for other in theirs}
        self.cuts |= cuts
        for end in list(self.ends):
            if end.pair in cuts:
                end.transport.abortConnection()

    def restore(self, some: Iterable[int] = (), others: Iterable[int] = ()) -> None:
        """Restore these links, or all.  Connections that lost something end."""
        theirs = list(others)
        mended = {frozenset((one, other)) for one in some for other in theirs} or set(self.cuts)
        self.cuts -= mended
        for end in list(self.ends):
            if end.pair in mended:
                end.transport.abortConnection()

    async def close(self) -> None:
        for port in self._ports:
            await port.stopListening()
        for joining in list(self.joining):
            joining.cancel()
        for end in list(self.ends):
            end.transport.abortConnection()


class ReplicaSet:
    """Three members, which are not started yet."""

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise SkipTest("whose socket it is can be found out on Linux only")
        self.links = Links()
        self.members = [Mongod(replica_set=NAME, initiate=False) for _ in range(3)]
        self.ports: list[int] = []

    @property
    def uri(self) -> str:
        """The URI, without a database."""
        return (
            f"mongodb://{','.join(f'127.0.0.1:{port}' for port in self.ports)}/?replicaSet={NAME}"
        )

    @property
    def pids(self) -> list[int]:
        return [member.pid for member in self.members]

    async def start(self) -> ReplicaSet:
        """Start all members; the first one is the primary when this returns."""
        for member in self.members:
            self.ports.append(await self.links.open_proxy(member))
            await deferToThread(member.start)
            self.links.known.append(member.pid)
        await deferToThread(self._initiate)
        return self

    def client(self, member: Mongod) -> Any:
        """
        Return a client of that member alone, past the proxy.

        Its calls block: call them in a thread.
        """
        return pymongo.MongoClient(
            "127.0.0.1", member.port, directConnection=True, serverSelectionTimeoutMS=5000
        )

    def _initiate(self) -> None:
        with self.client(self.members[0]) as client:
            members = [
                {"_id": at, "host": f"127.0.0.1:{port}"} for at, port in enumerate(self.ports)
            ]
            settings = {
                "electionTimeoutMillis": int(ELECTION * 1000),
                "heartbeatIntervalMillis": 500,
                "catchUpTimeoutMillis": 2000,
            }
            settings["heartbeatTimeoutSecs"] = 1
            client.admin.command(
                "replSetInitiate", {"_id": NAME, "members": members, "settings": settings}
            )
        for member in self.members:
            self._wait(
                member,
                lambda hello: hello.get("secondary") or hello.get("isWritablePrimary"),
                "a member",
            )
        self._step_up(self.members[0])

    def _wait(self, member: Mongod, right: Any, what: str) -> None:
        deadline = time.monotonic() + UP
        with self.client(member) as client:
            while not right(client.admin.command("hello")):
                if time.monotonic() > deadline:
                    raise AssertionError(f"not in {UP:g} seconds: {what}")
                time.sleep(0.02)

    def _step_up(self, *members: Mongod) -> Mongod:
        deadline = time.monotonic() + UP
        errors: list[str] = []
        while time.monotonic() < deadline:
            for member in members:
                with self.client(member) as client:
                    try:
                        client.admin.command("replSetStepUp")
                    except pymongo.errors.PyMongoError as error:
                        errors.append(str(error))
                    if client.admin.command("hello").get("isWritablePrimary"):
                        return member
            time.sleep(0.05)
        raise AssertionError(f"none can be elected: {errors[-2:]}")

    async def primary(self) -> Mongod:
        """Return the member that takes writes.  Call this when there is only one."""

        def look() -> Mongod:
            for member in self.members:
                with self.client(member) as client:
                    if client.admin.command("hello")["isWritablePrimary"]:
                        return member
            raise AssertionError("there is no primary")

        found: Mongod = await deferToThread(look)
        return found

    async def elect(self, *members: Mongod) -> Mongod:
        """Have one of these elected, and wait until it takes writes."""
        elected: Mongod = await deferToThread(self._step_up, *members)
        return elected

    async def settled(self) -> None:
        """Wait until there is one primary that all members know."""

        def wait() -> None:
            deadline = time.monotonic() + 2 * UP
            while True:
                hellos = []
                for member in self.members:
                    with self.client(member) as client:
                        hellos.append(client.admin.command("hello"))
                primaries = {hello.get("primary") for hello in hellos}
                if (
                    len(primaries) == 1
                    and None not in primaries
                    and sum(hello["isWritablePrimary"] for hello in hellos) == 1
                ):
                    return
                if time.monotonic() > deadline:
                    raise AssertionError(f"no agreement: {primaries}")
                time.sleep(0.05)

        await deferToThread(wait)

    async def stop(self) -> None:
        """Stop all members, and delete their data."""
        for member in self.members:
            member.stop()
        await self.links.close()
