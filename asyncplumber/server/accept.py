"""
One listening socket for several workers, which get about as many connections each.

The kernel wakes all workers that listen.  Left alone, the quickest one takes every connection, and
at low load that is the same one again and again, for streams that stay for hours.  So a table in
shared memory has the number of connections of each worker, and a worker that has its fair share
waits a moment before it accepts.  Only a moment: a worker that is busy or stuck must not keep a
client waiting, and a dead worker is not counted.

This is the idea of Envoy's exact connection balancing, without a lock.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from errno import EMFILE, ENFILE, ENOBUFS, ENOMEM
from mmap import mmap
from tempfile import TemporaryFile
from typing import IO, Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocolFactory,
    IReadDescriptor,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from asyncplumber.concurrency import PeriodicTask
from asyncplumber.http.listener import ACCEPTS

# Seconds that a worker with its fair share waits before it accepts nevertheless.  After that time
# it assumes that the others are busy.
ACCEPT_YIELD = 0.005
PUBLISH_INTERVAL = 0.25  # seconds between counts of a worker that accepts nobody
EXHAUSTED = 1.0  # seconds until a worker without free file descriptors tries again
UNKNOWN_BACKLOG = 32  # assumed number of waiting clients where the system does not tell it
_NOT_SERVING = -1  # the count of a worker that does not serve
_WORD = 8  # bytes of a count
_ACCEPT_QUEUE = 24  # offset of the backlog in struct tcp_info of a listening socket (tcpi_unacked)


def shared_file(name: str, size: int) -> IO[bytes]:
    """Make a file of `size` zero bytes, to be inherited and mapped.  `name` is for debugging."""
    # A file in memory needs no writable folder, but not every system has one.
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = open(os.memfd_create(name), "r+b")  # noqa: SIM115
    else:
        file = TemporaryFile()  # noqa: SIM115
    file.truncate(size)
    return file


class ConnectionCounts:
    """
    The table of connections: one count for each worker.

    A count is one machine word, which is written in one piece.  So there is no lock.
    """

    def __init__(self, file: IO[bytes], number: int = 0) -> None:
        """
        Map the table.

        Args:
            file: The file of `for_workers`, as a worker inherits it.
            number: The worker that this process is; the first is 1.  0 is the parent.
        """
        self._file = file
        self._counts = memoryview(mmap(file.fileno(), 0)).cast("q")
        self._own = number - 1
        self._connected: Callable[[], int] | None = None

    @classmethod
    def for_workers(cls, count: int) -> ConnectionCounts:
        """Make a new table, in which no worker serves yet."""
        counts = cls(shared_file("connections", count * _WORD))
        for number in range(1, count + 1):
            counts.clear(number)
        return counts

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        """Close the file of the table.  The table can still be used."""
        self._file.close()

    def clear(self, number: int) -> None:
        """Note that a worker does not serve."""
        self._counts[number - 1] = _NOT_SERVING

    # One worker's own count

    def serve(self, connected: Callable[[], int]) -> None:
        """Take part from now on.  `connected` tells the number of connections."""
        self._connected = connected
        self.publish_count()

    def leave(self) -> None:
        """Take no further connections."""
        self._connected = None
        self.clear(self._own + 1)

    def publish_count(self) -> None:
        """Write the present number of connections."""
        if self._connected is not None:
            self._counts[self._own] = self._connected()

    def fair_share(self, waiting: int) -> int:
        """
        Return how many of the waiting clients this worker should take.

        With that all workers have as many connections.  0 or less if it has enough already.
        """
        self.publish_count()  # clients may have left since the last time
        serving = [count for count in self._counts if count != _NOT_SERVING]
        own = self._counts[self._own]
        if own == _NOT_SERVING:
            return 0 if serving else waiting  # its answers come when its store is open
        return -(-(sum(serving) + waiting) // len(serving)) - own

    def fallback_share(self, waiting: int) -> int:
        """
        Return how many this worker should take if the others do not come for their share.

        A worker that serves takes one at least.
        """
        self.publish_count()
        serving = sum(count != _NOT_SERVING for count in self._counts)
        if self._counts[self._own] == _NOT_SERVING and serving:
            return 0
        return -(-waiting // max(1, serving))


@implementer(IListeningPort, IReadDescriptor)
class SharedPort:
    """
    The port on which a worker accepts.

    Twisted's own port would accept all that it can.  When it stops, it also removes the file of a
    UNIX socket, which is the parent's.
    """

    _log = Logger()

    def __init__(
        self, listening: socket.socket, factory: Any, counts: ConnectionCounts, reactor: Any
    ) -> None:
        self._socket = listening
        self._factory = factory
        self._counts = counts
        self._reactor = reactor
        self._resumption: Any = None
        self._publishing = PeriodicTask(counts.publish_count, PUBLISH_INTERVAL, reactor, now=True)

    # IListeningPort

    def startListening(self) -> None:
        self._socket.setblocking(False)
        self._factory.doStart()
        self._publishing.start()
        self._reactor.addReader(self)

    def stopListening(self) -> None:
        """Leave the socket to the other workers.  Harmless if it has stopped."""
        if not self._publishing.is_running:
            return
        self._publishing.stop()
        self._counts.leave()
        if self._resumption is not None:
            self._resumption.cancel()
        self._reactor.removeReader(self)
        self._socket.close()
        self._factory.doStop()

    def getHost(self) -> IAddress:
        name = self._socket.getsockname()
        if self._socket.family == getattr(socket, "AF_UNIX", None):
            return UNIXAddress(name)
        return (IPv6Address if self._socket.family == socket.AF_INET6 else IPv4Address)(
            "TCP", *name
        )

    # IReadDescriptor

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return type(self).__name__

    def connectionLost(self, reason: Failure) -> None:
        """Stop: the reactor ends."""
        self.stopListening()

    def doRead(self) -> None:
        """Accept this worker's share, or give the others a moment first."""
        share = self._counts.fair_share(self._waiting())
        if share > 0:
            self._take(share)
        else:
            self._yield_turn(ACCEPT_YIELD)

    # Accepting

    def _waiting(self) -> int:
        """Return the number of waiting clients, of which other workers may take some first."""
        known = 0
        if sys.platform == "linux" and self._socket.family != socket.AF_UNIX:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACCEPT_QUEUE + 4)
            known = int.from_bytes(info[_ACCEPT_QUEUE:], sys.byteorder)
        return known or UNKNOWN_BACKLOG

    def _yield_turn(self, seconds: float) -> None:
        self._reactor.removeReader(self)
        self._resumption = self._reactor.callLater(seconds, self._resume)

    def _resume(self) -> None:
        self._resumption = None
        self._reactor.addReader(self)
        self._take(self._counts.fallback_share(self._waiting()))

    def _take(self, count: int) -> None:
        """Accept so many clients, or as many as there are."""
        try:
            for _ in range(min(count, ACCEPTS)):
                self._accept()
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
                self._log.warn(
                    "cannot accept connections: {error}; other workers go on", error=error
                )
                self._yield_turn(EXHAUSTED)
        self._counts.publish_count()

    def _accept(self) -> None:
        """Accept one client.  Raises OSError as ``accept`` does."""
        connection, _ = self._socket.accept()
        with connection:
            try:
                self._reactor.adoptStreamConnection(
                    connection.fileno(), self._socket.family, self._factory
                )
            except OSError:
                pass  # the client has disconnected already
            except Exception:
                self._log.failure("a connection cannot be served")


@implementer(IStreamServerEndpoint)
class SharedEndpoint:
    """The listening socket that a worker inherits."""

    def __init__(
        self, reactor: Any, descriptor: int, family: int, counts: ConnectionCounts
    ) -> None:
        self._reactor = reactor
        self._descriptor = descriptor
        self._family = family
        self._counts = counts

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        listening = socket.socket(self._family, socket.SOCK_STREAM, fileno=self._descriptor)
        port = SharedPort(listening, protocolFactory, self._counts, self._reactor)
        port.startListening()
        return succeed(port)
