"""
The outgoing bytes of one connection: in order, bounded, and sent at once when nothing is queued.

A write through Twisted's transport costs four times as much as the system call, because it always
goes through the transport's buffer and the reactor's next turn.  ``SocketBuffer`` therefore writes
to the socket itself while the transport has nothing left to send.  When the socket takes only a
part, the rest goes to the transport, and everything after it is queued here until the transport is
empty.  So a message that was sent in part is never overtaken.

TLS has records of its own, and a transport in memory has no socket.  ``ConsumerBuffer`` writes to
such a transport, and queues while the transport says that it is full.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IPullProducer, IPushProducer, ISSLTransport
from zope.interface import implementer

from asyncplumber._twisted_compat import is_plain_socket, socket_of
from asyncplumber.concurrency import Waiters
from asyncplumber.errors import IllegalTransition

MAX_UNSENT_BYTES = 1024 * 1024  # that may be queued for one client; with more it is too slow
MAX_CHUNK_BYTES = 128 * 1024  # that are joined for one write when the transport has room again


class BufferState(IntEnum):
    """What happens to the next write."""

    READY = 0  # it is sent at once
    CORKED = 1  # it is queued until the end of the ``corked`` block
    BLOCKED = 2  # it is queued until the transport has room
    OVERFLOWED = 3  # it is dropped; only ``write_final`` is sent
    FINISHED = 4  # it is dropped: the final bytes are written
    CLOSED = 5  # it is dropped: the buffer was flushed, or the connection is lost


READY: Final = BufferState.READY
CORKED: Final = BufferState.CORKED
BLOCKED: Final = BufferState.BLOCKED
OVERFLOWED: Final = BufferState.OVERFLOWED
FINISHED: Final = BufferState.FINISHED
CLOSED: Final = BufferState.CLOSED

# All transitions.  Any other raises.
TRANSITIONS: Final = {
    READY: frozenset({CORKED, BLOCKED, FINISHED, CLOSED}),
    CORKED: frozenset({READY, BLOCKED, OVERFLOWED, FINISHED, CLOSED}),
    BLOCKED: frozenset({READY, OVERFLOWED, FINISHED, CLOSED}),
    OVERFLOWED: frozenset({FINISHED, CLOSED}),
    FINISHED: frozenset({CLOSED}),
    CLOSED: frozenset(),
}


class _Cork:
    """The ``with`` block of ``SendBuffer.corked``.  Blocks may be nested; the outermost counts."""

    __slots__ = ("_buffer", "_is_outermost")

    def __init__(self, buffer: SendBuffer) -> None:
        self._buffer = buffer
        self._is_outermost = False

    def __enter__(self) -> None:
        self._is_outermost = self._buffer.state is READY
        if self._is_outermost:
            self._buffer.become(CORKED)

    def __exit__(self, *_: object) -> None:
        if self._is_outermost and self._buffer.state is CORKED:
            self._buffer.drain()


class WritableTransport(Protocol):
    """What a send buffer needs of its transport."""

    def write(self, data: bytes) -> object:
        """Send bytes after all others."""

    def registerProducer(self, producer: Any, streaming: bool) -> object:
        """Tell this producer when there is room."""

    def unregisterProducer(self) -> object:
        """Tell the producer nothing more."""

    def loseConnection(self) -> object:
        """Close when everything is sent."""


@implementer(IPushProducer, IPullProducer)
class SendBuffer(ABC):
    """
    What is queued for one client, and the rules that both kinds of buffer share.

    The buffer is the transport's producer until it is closed.
    """

    __slots__ = ("_on_overflow", "_queue", "_transport", "_waiters", "limit", "state", "unsent")

    def __init__(
        self,
        transport: WritableTransport,
        on_overflow: Callable[[], None],
        limit: int = MAX_UNSENT_BYTES,
    ) -> None:
        """
        Become the producer of ``transport``.

        Args:
            transport: What the bytes go to.  Nothing else writes to it.
            on_overflow: Called once, when a write finds more than ``limit`` bytes queued.  A single
                message may exceed the limit.
            limit: In bytes.
        """
        self._transport = transport
        self._on_overflow: Callable[[], None] | None = on_overflow
        self._queue: deque[bytes] | None = None  # None while it is empty, which saves memory
        self._waiters: Waiters | None = None
        self.state = READY
        self.limit = limit
        self.unsent = 0  # bytes that are queued here or are the rest of a partial send

    def become(self, state: BufferState) -> None:
        """
        Change the state.

        Raises:
            IllegalTransition: ``TRANSITIONS`` has no such transition.
        """
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransition("a send buffer", self.state, state)
        self.state = state

    @property
    def ready(self) -> bool:
        """Whether the next write is sent at once."""
        return self.state is READY

    # Writing

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send ``data`` after everything before it, or queue it."""

    def _enqueue(self, data: bytes) -> None:
        if self.state is not BLOCKED and self.state is not CORKED:
            return
        if self.unsent > self.limit:
            self._overflow()
            return
        if self._queue is None:
            self._queue = deque()
        self._queue.append(data)
        self.unsent += len(data)

    def _overflow(self) -> None:
        self.become(OVERFLOWED)
        self._drop_queue()  # the client will not read it, and it holds memory
        if self._on_overflow is not None:
            self._on_overflow()

    def corked(self) -> _Cork:
        """Return a context manager: what is written in its block goes out as one write."""
        return _Cork(self)

    def write_final(self, data: bytes) -> None:
        """
        Send ``data`` after everything that is queued, whatever the limit.  Nothing follows it.

        It is also sent after an overflow, when the queue was dropped: a close frame tells why.
        """
        if self.state is FINISHED or self.state is CLOSED:
            return
        if self.state is READY:
            self.write(data)
        else:
            self._hand_over_queue()
            self._transport.write(data)
        self.become(FINISHED)
        self._drop_queue()

    def rebind(self, on_overflow: Callable[[], None], limit: int) -> None:
        """Let another protocol write from now on.  What is queued is still sent first."""
        self._on_overflow = on_overflow
        self.limit = limit

    # Waiting

    def drained(self) -> Deferred[None]:
        """Return a Deferred that fires when nothing is queued, or when nothing will be sent."""
        if self.state is not BLOCKED and self.state is not CORKED:
            return succeed(None)
        if self._waiters is None:
            self._waiters = Waiters()
        return self._waiters.wait()

    def _release_waiters(self) -> None:
        waiters, self._waiters = self._waiters, None
        if waiters is not None:
            waiters.release()

    # The end

    def _hand_over_queue(self) -> None:
        if self._queue:
            self._transport.write(b"".join(self._queue))
            self._queue = None

    def _drop_queue(self) -> None:
        self._queue = None
        self._release_waiters()

    def flush(self) -> None:
        """Hand everything to the transport, and stop producing: the transport is about to close."""
        if self.state is not CLOSED:
            self._hand_over_queue()
            self.forget()
            self._transport.unregisterProducer()

    def end(self) -> None:
        """
        Hand everything to the transport, then end our direction of the connection.

        The client may still send.  TLS has no half-closed connections: there the transport sends
        a close alert, and reads on until the client answers.
        """
        self.flush()
        end_writing = getattr(self._transport, "loseWriteConnection", None)
        if end_writing is None or ISSLTransport.providedBy(self._transport):
            self._transport.loseConnection()
        else:
            end_writing()

    def forget(self) -> None:
        """Drop everything: the connection is lost, or is none of ours any more."""
        if self.state is not CLOSED:
            self.become(CLOSED)
            self._on_overflow = None
            self._drop_queue()

    # IPushProducer and IPullProducer: what the transport calls

    def resumeProducing(self) -> None:
        """Write on: the transport has room."""
        if self.state is BLOCKED:
            self.drain()

    def drain(self) -> None:
        """Send what is queued, in large chunks, until the transport is full."""
        self.become(READY)
        queue = self._queue
        self.unsent = 0
        while queue and self.state is READY:
            chunk = [queue.popleft()]
            size = len(chunk[0])
            while queue and size + len(queue[0]) <= MAX_CHUNK_BYTES:
                size += len(queue[0])
                chunk.append(queue.popleft())
            self.write(b"".join(chunk))
        if queue:
            self.unsent += sum(map(len, queue))
        else:
            self._queue = None
        if self.state is READY:
            self._release_waiters()

    @abstractmethod
    def pauseProducing(self) -> None:
        """Queue from now on: the transport is full."""

    def stopProducing(self) -> None:
        """Drop everything: the connection is lost."""
        self.forget()


class SocketBuffer(SendBuffer):
    """
    Writes to the socket of a TCP or UNIX connection.  It is a pull producer.

    A pull producer is asked for more only when the transport's own buffer is empty.  That is the
    moment from which writing to the socket overtakes nothing.
    """

    __slots__ = ("_send",)

    def __init__(
        self,
        transport: WritableTransport,
        send: Callable[[bytes], int],
        on_overflow: Callable[[], None],
        limit: int = MAX_UNSENT_BYTES,
    ) -> None:
        """Become the producer of ``transport``, whose socket has this ``send``."""
        super().__init__(transport, on_overflow, limit)
        self._send = send
        transport.registerProducer(self, False)

    def write(self, data: bytes) -> None:
        if self.state is not READY:
            self._enqueue(data)
            return
        try:
            sent = self._send(data)
        except OSError:
            # The socket is full, or the connection is broken.  The transport tries again and finds
            # out which.  It reports a loss even while nobody reads, when no read would show it.
            sent = 0
        if sent != len(data):
            rest = data[sent:]  # a copy, but only for a client that is behind
            self.become(BLOCKED)
            self.unsent += len(rest)
            self._transport.write(rest)

    def pauseProducing(self) -> None:
        """Do nothing.  A transport does not pause a pull producer."""


class ConsumerBuffer(SendBuffer):
    """Writes to a transport that buffers for itself, as TLS does.  It is a push producer."""

    __slots__ = ()

    def __init__(
        self,
        transport: WritableTransport,
        on_overflow: Callable[[], None],
        limit: int = MAX_UNSENT_BYTES,
    ) -> None:
        super().__init__(transport, on_overflow, limit)
        transport.registerProducer(self, True)

    def write(self, data: bytes) -> None:
        if self.state is READY:
            self._transport.write(data)
        else:
            self._enqueue(data)

    def pauseProducing(self) -> None:
        # Twisted calls this at each write while the transport is full, also at the final one.
        if self.state is READY or self.state is CORKED:
            self.become(BLOCKED)


def send_buffer_for(
    transport: WritableTransport, on_overflow: Callable[[], None], limit: int = MAX_UNSENT_BYTES
) -> SendBuffer:
    """Return the fastest kind of buffer that this transport allows; see ``SendBuffer``."""
    own = socket_of(transport) if is_plain_socket(transport) else None
    if own is None:
        return ConsumerBuffer(transport, on_overflow, limit)
    return SocketBuffer(transport, own.send, on_overflow, limit)
