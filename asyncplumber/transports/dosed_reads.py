"""
Streams are read in doses, so that ten thousand clients that vanish at once delay nobody.

The reactor handles all that is ready before it looks again.  To close a connection takes some 20
µs, so an event that arrives behind ten thousand of them waits.  Here the streams are watched by an
epoll of their own, which is one thing to read for the reactor: each turn handles a few of them, and
whatever else is ready.  Where the system has no epoll the reactor watches them as usual.
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

DOSE = 32  # streams read in a turn of the reactor: about a millisecond if all of them have ended


@implementer(IReadDescriptor)
class DosedReads:
    """
    A reactor to the transports of streams, as far as reading goes, and a descriptor to the real
    one.

    It is with the real reactor only while there is something to watch.
    """

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        """
        `reactor` is the real one.  Raises OSError where no file descriptor is left for an epoll.
        """
        self._reactor = reactor
        self._readers: dict[int, Any] = {}
        self._poll = select.epoll()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)  # whatever else a transport wants of its reactor

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
        """Watch it no more.  Idempotent."""
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
        """The reactor ends; it disconnects only what it knows."""
        for reader in list(self._readers.values()):
            self._disconnect(reader, CONNECTION_LOST)

    def doRead(self) -> None:
        """Read some of those who are ready; the others are first in line in the next turn."""
        for descriptor, event in self._poll.poll(0, DOSE):
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
        """As the reactor does it; what one stream raises ends none of the others."""
        try:
            self.removeReader(reader)
            if why is CONNECTION_DONE:
                reader.readConnectionLost(Failure(why))
            else:
                reader.stopWriting()
                reader.connectionLost(Failure(why))
        except BaseException:
            self._log.failure("a stream could not be ended")


class DosedReadsOf:
    """The `DosedReads` of each reactor: nearly always there is one."""

    def __init__(self) -> None:
        self._of: dict[Any, DosedReads] = {}

    def take(self, transport: Any) -> None:
        """
        Read this transport in doses from now on, if it is a socket of ours and the system can do
        it.
        """
        if not hasattr(select, "epoll") or not isinstance(transport, tcp.Connection):
            return
        reactor = reactor_of(transport)
        if not isinstance(reactor, DosedReads):
            reads = self._of.get(reactor)
            if reads is None:
                try:
                    reads = self._of[reactor] = DosedReads(reactor)
                except OSError:  # no file descriptor is left: the next stream will try again
                    return
            transport.stopReading()
            replace_reactor(transport, reads)
            try:
                transport.startReading()
            except OSError:  # the system watches no more by epoll: the reactor has its own
                replace_reactor(transport, reactor)
                transport.startReading()
