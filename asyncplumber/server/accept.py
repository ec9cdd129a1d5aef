"""
One listening socket, several workers: each takes its share of those who wait, so that all have
about as many connected.

The kernel wakes everyone who listens, and left alone the quickest takes all: at low load the same
one again and again, for streams that stay for hours.  So a table in shared memory says how many are
connected to each worker, and one that has its share steps aside.  Only for a moment: a worker that
is busy or stuck must not keep anybody waiting, and one that is dead is not counted.
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
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from asyncplumber.http.listener import ACCEPTS

# seconds that one who has its share leaves to the others; then they are too busy, and it takes some
# all the same
PATIENCE = 0.005
NOTING = 0.25  # seconds between notes of a worker to whom nobody comes: some may have left it
EXHAUSTED = 1.0  # seconds until a worker that has no file descriptors left tries again
UNTOLD = 32  # how many may be waiting where the system does not tell
_ABSENT = -1  # stands in the table for a worker that does not serve
_WORD = 8  # bytes of a count
_ACCEPT_QUEUE = 24  # where struct tcp_info of a listening socket has their number (tcpi_unacked)


def shared_file(name: str, size: int) -> IO[bytes]:
    """A file of zeros, of `size` bytes, to be inherited and mapped.  `name` is for debugging."""
    # Not every system has files in memory, and where there are some no folder need be writable.
    file = open(os.memfd_create(name), "r+b") if hasattr(os, "memfd_create") else TemporaryFile()
    file.truncate(size)
    return file


class Seats:
    """
    The table: how many are connected to each worker.  A count is written in one piece, so that
    there is no lock.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """`file` is that of `for_workers`, as a worker has inherited it."""
        self._file = file
        self._counts = memoryview(mmap(file.fileno(), 0)).cast("q")

    @classmethod
    def for_workers(cls, count: int) -> Seats:
        """A new table, to be inherited.  Nobody serves yet."""
        seats = cls(shared_file("seats", count * _WORD))
        for number in range(1, count + 1):
            seats.leave(number)
        return seats

    def fileno(self) -> int:
        return self._file.fileno()

    def note(self, number: int, count: int) -> None:
        """So many are connected to this worker; the first is number 1."""
        self._counts[number - 1] = count

    def leave(self, number: int) -> None:
        """This worker does not serve."""
        self._counts[number - 1] = _ABSENT

    def share(self, number: int, waiting: int) -> int:
        """
        How many of those who wait this worker should take, so that all have as many; 0 or less if
        it has enough already.
        """
        serving = [count for count in self._counts if count != _ABSENT]
        mine = self._counts[number - 1]
        if mine == _ABSENT:
            return 0 if serving else waiting  # its answers come when its store is open
        return -(-(sum(serving) + waiting) // len(serving)) - mine

    def part(self, number: int, waiting: int) -> int:
        """
        How many this worker should take if the others do not come for theirs: never none, if it
        serves.
        """
        serving = sum(count != _ABSENT for count in self._counts)
        return (
            0 if self._counts[number - 1] == _ABSENT and serving else -(-waiting // max(1, serving))
        )


class Seat:
    """The table as one worker sees it."""

    def __init__(self, seats: Seats, number: int) -> None:
        """It is absent until it serves."""
        self._seats = seats
        self._number = number
        self._count: Callable[[], int] | None = None

    def serve(self, count: Callable[[], int]) -> None:
        """From now on it serves; `count` tells how many are connected to it."""
        self._count = count
        self.note()

    def leave(self) -> None:
        """It serves nobody new any more."""
        self._count = None
        self._seats.leave(self._number)

    def note(self) -> None:
        """Write how many there are now."""
        if self._count is not None:
            self._seats.note(self._number, self._count())

    def share(self, waiting: int) -> int:
        """As `Seats` says."""
        self.note()
        return self._seats.share(self._number, waiting)

    def part(self, waiting: int) -> int:
        """As `Seats` says."""
        self.note()
        return self._seats.part(self._number, waiting)


@implementer(IListeningPort, IReadDescriptor)
class SharedPort:
    """
    What a worker accepts on.

    Twisted's own port would take all it can; and at the end it removes the file of a UNIX socket,
    which is not ours.
    """

    _log = Logger()

    def __init__(self, listening: socket.socket, factory: Any, seat: Seat, reactor: Any) -> None:
        self._socket = listening
        self._factory = factory
        self._seat = seat
        self._reactor = reactor
        self._aside: Any = None
        self._notes = LoopingCall(seat.note)
        self._notes.clock = reactor

    # IListeningPort

    def startListening(self) -> None:
        self._socket.setblocking(False)
        self._factory.doStart()
        self._notes.start(NOTING)
        self._reactor.addReader(self)

    def stopListening(self) -> None:
        """The others go on.  Harmless if it was stopped before."""
        if not self._notes.running:
            return
        self._notes.stop()
        self._seat.leave()
        if self._aside is not None:
            self._aside.cancel()
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
        """The reactor ends."""
        self.stopListening()

    def doRead(self) -> None:
        """Somebody waits."""
        share = self._seat.share(self._waiting())
        if share > 0:
            self._take(share)
        else:
            self._step_aside(PATIENCE)

    # Who takes whom

    def _waiting(self) -> int:
        """How many wait, at least if there are any: another worker may have been quicker."""
        told = 0
        if sys.platform == "linux" and self._socket.family != socket.AF_UNIX:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACCEPT_QUEUE + 4)
            told = int.from_bytes(info[_ACCEPT_QUEUE:], sys.byteorder)
        return told or UNTOLD

    def _step_aside(self, seconds: float) -> None:
        self._reactor.removeReader(self)
        self._aside = self._reactor.callLater(seconds, self._come_back)

    def _come_back(self) -> None:
        self._aside = None
        self._reactor.addReader(self)
        self._take(self._seat.part(self._waiting()))

    def _take(self, count: int) -> None:
        """Accept so many, or those who are there."""
        try:
            for _ in range(min(count, ACCEPTS)):
                self._accept()
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
                self._log.warn("cannot accept connections: {error}; others may", error=error)
                self._step_aside(EXHAUSTED)
        self._seat.note()

    def _accept(self) -> None:
        """Raises OSError for what `accept` says."""
        connection, _ = self._socket.accept()
        with connection:
            try:
                self._reactor.adoptStreamConnection(
                    connection.fileno(), self._socket.family, self._factory
                )
            except OSError:
                pass  # the client has gone already
            except Exception:
                self._log.failure("a connection cannot be served")


@implementer(IStreamServerEndpoint)
class SharedEndpoint:
    """The listening socket that a worker has inherited."""

    def __init__(self, reactor: Any, descriptor: int, family: int, seat: Seat) -> None:
        self._reactor = reactor
        self._descriptor = descriptor
        self._family = family
        self._seat = seat

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        listening = socket.socket(self._family, socket.SOCK_STREAM, fileno=self._descriptor)
        port = SharedPort(listening, protocolFactory, self._seat, self._reactor)
        port.startListening()
        return succeed(port)
