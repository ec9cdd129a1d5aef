"""
Read streams in doses, so that ten thousand clients that vanish at once delay nobody.

The reactor handles everything that is ready before it looks again.  To close a connection takes
some 20 µs, so an event that arrives behind ten thousand of them waits.  Here an epoll of its own
watches the streams.  To the reactor it is one descriptor.  In each turn a few of the streams are
handled, and everything else that is ready.  A system without epoll leaves them to the reactor.
"""

from __future__ import annotations

import select
from typing import Any

from twisted.internet import tcp
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from asyncplumber._twisted_compat import reactor_of, replace_reactor

READS_PER_TURN = 32  # streams read in one turn: about a millisecond if all of them have ended


@implementer(IReadDescriptor)
class DosedReads:
    """
    A reactor for the transports of streams, as far as reading goes.

    To the real reactor it is one descriptor, which it watches only while there are streams.
    """

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        """
        Begin without streams; ``reactor`` is the real one.

        Raises:
            OSError: No file descriptor is left for an epoll.
        """
        self._reactor = reactor
        self._readers: dict[int, Any] = {}
        self._poll = select.epoll()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)  # what else a transport wants of its reactor

    # What a transport calls

    def addReader(self, reader: Any) -> None:
        """Watch this transport.  Idempotent."""
        descriptor = reader.fileno()
        if descriptor in self._readers:
            return
        self._poll.register(descriptor, select.EPOLLIN)
        self._readers[descriptor] = reader
        self._reactor.addReader(self)  # idempotent

    def removeReader(self, reader: Any) -> None:
        """Watch this transport no more.  Idempotent."""
        descriptor = reader.fileno()
        if self._readers.get(descriptor) is not reader:
            return
        del self._readers[descriptor]
        self._poll.unregister(descriptor)
        if not self._readers:
            self._reactor.removeReader(self)

    # What the reactor calls

    def fileno(self) -> int:
        return int(self._poll.fileno())

    def logPrefix(self) -> str:
        return type(self).__name__

    def connectionLost(self, reason: Failure) -> None:
        """End all streams: the reactor ends, and it disconnects only what it watches itself."""
        for reader in list(self._readers.values()):
            self._disconnect(reader, CONNECTION_LOST)

    def doRead(self) -> None:
        """Read some of the streams that are ready.  The others are first in the next turn."""
        for descriptor, event in self._poll.poll(0, READS_PER_TURN):
            reader = self._readers.get(descriptor)  # an earlier one may have ended it
            if reader is not None:
                self._read(reader, event)

    def _read(self, reader: Any, event: int) -> None:
        try:
            why = reader.doRead() if event & select.EPOLLIN else CONNECTION_DONE
        except BaseException as error:
            self._log.failure("a stream could not be read")
            why = error
        if why:
            self._disconnect(reader, why)

    def _disconnect(self, reader: Any, why: BaseException) -> None:
        """Do what the reactor does.  An error of one stream ends none of the others."""
        try:
            self.removeReader(reader)
            if why is CONNECTION_DONE:
                reader.readConnectionLost(Failure(why))
            else:
                reader.stopWriting()
                reader.connectionLost(Failure(why))
        except BaseException:
            self._log.failure("a stream could not be ended")


class DosedReadsByReactor:
    """The ``DosedReads`` of each reactor.  Nearly always there is one reactor."""

    def __init__(self) -> None:
        self._by_reactor: dict[Any, DosedReads] = {}

    def watch(self, transport: Any) -> None:
        """
        Read this transport in doses from now on.

        Leaves it to the reactor if it is not a socket of Twisted's, or if the system refuses.
        """
        if not hasattr(select, "epoll") or not isinstance(transport, tcp.Connection):
            return
        reactor = reactor_of(transport)
        if isinstance(reactor, DosedReads):
            return
        reads = self._by_reactor.get(reactor)
        if reads is None:
            try:
                reads = self._by_reactor[reactor] = DosedReads(reactor)
            except OSError:  # no file descriptor is left: the next stream tries again
                return
        transport.stopReading()
        replace_reactor(transport, reads)
        try:
            transport.startReading()
        except OSError:  # the system watches no more by epoll: the reactor has its own
            replace_reactor(transport, reactor)
            transport.startReading()
