"""Streams are read in doses, with a turn of the reactor between."""

from __future__ import annotations

import select
import socket
from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.main import CONNECTION_DONE
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.transports.dosed_reads import READS_PER_TURN, DosedReads

NO_EPOLL = None if hasattr(select, "epoll") else "this system has no epoll"


class Reactor:
    """Remembers what it is asked to watch."""

    def __init__(self) -> None:
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        if reader not in self.readers:
            self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        if reader in self.readers:
            self.readers.remove(reader)

    def seconds(self) -> float:
        return 7.0


class Transport:
    """A transport on one end of a pair of sockets."""

    def __init__(self, reads: DosedReads) -> None:
        self.reads = reads
        self.socket, self.other = socket.socketpair()
        self.lost: Failure | None = None
        self.heard = b""
        reads.addReader(self)

    def fileno(self) -> int:
        return self.socket.fileno()

    def doRead(self) -> BaseException | None:
        data = self.socket.recv(100)
        self.heard += data
        if data == b"raise":
            raise ZeroDivisionError
        return None if data else CONNECTION_DONE

    def stopWriting(self) -> None:
        pass

    def connectionLost(self, reason: Failure) -> None:
        self.lost = reason
        self.reads.removeReader(self)
        self.socket.close()

    readConnectionLost = connectionLost

    def close(self) -> None:
        for each in (self.socket, self.other):
            each.close()


class DosedReadsTests(SynchronousTestCase):
    """With a reactor that turns when a test tells it to."""

    skip = NO_EPOLL

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.reads = DosedReads(self.reactor)

    def transports(self, count: int) -> list[Transport]:
        """Make so many transports."""
        found = [Transport(self.reads) for _ in range(count)]
        for each in found:
            self.addCleanup(each.close)
        return found

    def test_each_turn_handles_a_bounded_number(self) -> None:
        """Of clients that vanish; in the end all are handled."""
        everybody = self.transports(2 * READS_PER_TURN + 1)
        for each in everybody:
            each.other.close()
        gone = []
        for _ in range(3):
            self.reads.doRead()
            gone.append(sum(each.lost is not None for each in everybody))
        self.assertEqual(gone, [READS_PER_TURN, 2 * READS_PER_TURN, 2 * READS_PER_TURN + 1])
        self.assertTrue(all(each.lost and each.lost.check(ConnectionDone) for each in everybody))

    def test_a_busy_client_does_not_delay_a_quiet_one(self) -> None:
        """Those that have waited longest come first."""
        *loud, quiet = self.transports(3 * READS_PER_TURN + 1)
        for each in loud:
            each.other.send(b"x" * 1000)
        quiet.other.send(b"me too")
        for _ in range(4):
            self.reads.doRead()
        self.assertEqual(quiet.heard, b"me too")

    def test_the_reactor_watches_it_only_while_it_has_streams(self) -> None:
        """It keeps its descriptor: later there may be none left."""
        descriptor = self.reads.fileno()
        self.assertGreaterEqual(descriptor, 0)
        self.assertEqual((self.reactor.readers, self.reads.fileno()), ([], descriptor))
        one, other = self.transports(2)
        self.reads.addReader(one)
        self.assertEqual(self.reactor.readers, [self.reads])
        self.reads.removeReader(one)
        self.reads.removeReader(one)
        self.assertEqual(self.reactor.readers, [self.reads])
        self.reads.removeReader(other)
        self.assertEqual((self.reactor.readers, self.reads.fileno()), ([], descriptor))
        self.assertEqual(self.reads.seconds(), 7.0)

    def test_a_stream_that_raises_ends_alone(self) -> None:
        """With a line in the log."""
        broken, whole = self.transports(2)
        broken.other.send(b"raise")
        whole.other.send(b"hello")
        self.reads.doRead()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertTrue(broken.lost and broken.lost.check(ZeroDivisionError))
        self.assertEqual((whole.lost, whole.heard), (None, b"hello"))

    def test_a_stream_that_raises_when_it_is_lost_ends_alone(self) -> None:
        """An error that reached the reactor would end all streams: to it they are one."""
        broken, whole = self.transports(2)

        def lost(reason: Failure) -> None:
            raise ZeroDivisionError

        self.patch(broken, "readConnectionLost", lost)
        broken.other.close()
        self.reads.doRead()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        whole.other.send(b"hello")
        self.reads.doRead()
        self.assertEqual(
            (whole.lost, whole.heard, self.reactor.readers), (None, b"hello", [self.reads])
        )

    def test_a_stream_may_end_another_one(self) -> None:
        """Which is ready as well, and is not read any more."""
        first, second = self.transports(2)
        for each in (first, second):
            each.other.send(b"x")
        self.patch(first, "doRead", lambda: second.connectionLost(Failure(ConnectionDone())))
        self.reads.doRead()
        self.assertEqual(second.heard, b"")

    def test_the_end_of_the_reactor_ends_all_streams(self) -> None:
        """The reactor itself does not know them."""
        everybody = self.transports(3)
        self.reads.connectionLost(Failure(ConnectionLost()))
        self.assertTrue(all(each.lost and each.lost.check(ConnectionLost) for each in everybody))
        self.assertEqual(self.reactor.readers, [])
