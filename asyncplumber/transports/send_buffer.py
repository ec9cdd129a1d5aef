"""
What waits to be sent to one client: bounded, in order, and handed to the socket at once when
nothing waits.

This is the hot end of the house.  A write through Twisted's transport costs four times the system
call, because it always goes by the buffer and the reactor's next turn; so on plain TCP and UNIX
sockets, and only while the transport has nothing queued, bytes go straight to the socket.  A
half-sent frame is never overtaken: the rest of it goes to the transport, which says when it is
empty (it treats us as a pull producer), and until then everything waits here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IPullProducer, IPushProducer, ISSLTransport
from zope.interface import implementer

from asyncplumber._twisted_compat import is_plain_socket, socket_of

UNSENT = 1024 * 1024  # bytes that may wait for one client; beyond that it is too slow
CHUNK = 128 * 1024  # bytes handed to the transport at once


@implementer(IPushProducer, IPullProducer)
class SendBuffer:
    """The outgoing bytes of one connection.  It is the transport's producer as long as it lives."""

    __slots__ = (
        "_drained",
        "_held",
        "_overflow",
        "_queue",
        "_send",
        "_spent",
        "_transport",
        "limit",
        "ready",
        "unsent",
    )

    def __init__(self, transport: Any, overflow: Callable[[], None], limit: int = UNSENT) -> None:
        """
        `overflow` is called once, when there is more to send although more than `limit` bytes wait
        already: so whatever its size, one message can always be sent.  From then on nothing more is
        taken.
        """
        self._transport = transport
        self._overflow: Callable[[], None] | None = overflow
        self._queue: deque[bytes] | None = None
        self._drained: list[Deferred[None]] | None = None
        self.ready = True  # nothing waits
        self._spent = False  # nothing goes this way any more
        self._held = 0  # bytes that the transport has not sent yet
        self._send: Callable[[bytes], int] | None = None
        self.limit = limit
        self.unsent = 0
        own = socket_of(transport) if is_plain_socket(transport) else None
        if own is not None:
            self._send = own.send
            transport.registerProducer(self, False)
        else:
            transport.registerProducer(self, True)

    def write(self, data: bytes) -> None:
        """Send `data` after everything before it."""
        if not self.ready:
            self._wait(data)
        elif self._send is None:
            self._transport.write(data)
        else:
            try:
                sent = self._send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                return  # the connection is lost; the reactor notices when it reads
            if sent != len(data):
                self._hand_over(data[sent:])  # a copy, but only for a reader that is behind

    def corked(self, write: Callable[[], object]) -> None:
        """What `write` writes goes out as one."""
        held, self.ready = self.ready, False
        try:
            write()
        finally:
            if held and not self._spent:
                self.resumeProducing()

    def rebind(self, overflow: Callable[[], None], limit: int) -> None:
        """The connection has another protocol from now on; what waits is still sent first."""
        self._overflow = overflow
        self.limit = limit

    def _hand_over(self, data: bytes) -> None:
        self.ready = False
        self._held = len(data)
        self.unsent += self._held
        self._transport.write(data)

    def _wait(self, data: bytes) -> None:
        if self._overflow is None:
            return
        if self.unsent > self.limit:
            overflow, self._overflow = self._overflow, None
            self._drop()
            overflow()
            return
        if self._queue is None:
            self._queue = deque()
        self._queue.append(data)
        self.unsent += len(data)

    def _drop(self) -> None:
        """Forget what the transport does not have yet: it will not be read, and it holds memory."""
        self._queue = None
        self._release()

    def drained(self) -> Deferred[None]:
        """A Deferred that fires when nothing waits, or never will again."""
        if self.ready or self._overflow is None:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        if self._drained is None:
            self._drained = []
        self._drained.append(waiter)
        return waiter

    def _release(self) -> None:
        waiters, self._drained = self._drained, None
        for waiter in waiters or ():
            waiter.callback(None)

    def write_final(self, data: bytes) -> None:
        """
        Send `data` after all that waits, and whatever the limit: a close frame follows an overflow.
        """
        if self.ready and not self._queue:
            self.write(data)
        else:
            self._hand_over_all()
            self._transport.write(data)

    def _hand_over_all(self) -> None:
        if self._queue:
            self._transport.write(b"".join(self._queue))
            self._queue = None

    def flush(self) -> None:
        """
        Hand everything to the transport and be its producer no more: it is about to be closed.
        """
        if not self._spent:
            self._hand_over_all()
            self.forget()
            self._transport.unregisterProducer()

    def end(self) -> None:
        """
        Hand everything to the transport, then end our direction.

        The client may still send.  TLS has no half-closed connections: it says goodbye, and reads
        on until that is answered.
        """
        self.flush()
        transport = self._transport
        if ISSLTransport.providedBy(transport) or not hasattr(transport, "loseWriteConnection"):
            transport.loseConnection()
        else:
            transport.loseWriteConnection()

    def forget(self) -> None:
        """The connection is gone."""
        self._spent = True
        self._overflow = None
        self._send = None
        self._drop()

    # The transport speaks: it is empty (pull), or full and empty again (push).

    def resumeProducing(self) -> None:
        """The transport has sent everything it had."""
        self.ready = True
        queue = self._queue
        while queue and self.ready:
            chunk = [queue.popleft()]
            size = len(chunk[0])
            while queue and size + len(queue[0]) <= CHUNK:
                size += len(queue[0])
                chunk.append(queue.popleft())
            self.write(b"".join(chunk))
        if self.ready:
            self._held = self.unsent = 0
            self._queue = None
            self._release()
        else:
            self.unsent = self._held + sum(map(len, queue or ()))

    def pauseProducing(self) -> None:
        """The transport is full; it says so at each write while it is."""
        self.ready = False

    def stopProducing(self) -> None:
        """The connection is lost."""
        self.forget()
