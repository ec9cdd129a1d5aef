"""Send buffers in memory: order, bounds, and the states they go through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.testing import MemoryServer
from asyncplumber.transports.send_buffer import (
    BLOCKED,
    CLOSED,
    CORKED,
    FINISHED,
    MAX_CHUNK_BYTES,
    OVERFLOWED,
    READY,
    TRANSITIONS,
    BufferState,
    ConsumerBuffer,
    SendBuffer,
    SocketBuffer,
    send_buffer_for,
)
from tests.unit import examples


class PullTransport(StringTransport):
    """A transport that asks its producer when it is told that its buffer is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = b""  # what has left for the client, in order
        self.room = 10**9  # bytes that the socket takes
        self.sends: list[bytes] = []
        self.error: OSError | None = None

    def send(self, data: bytes) -> int:
        """Be the socket's ``send``."""
        assert not self.value(), "what the transport holds would be overtaken"
        self.sends.append(data)
        if self.error is not None:
            raise self.error
        if not self.room:
            raise BlockingIOError
        sent = min(self.room, len(data))
        self.room -= sent
        self.kernel += data[:sent]
        return sent

    def empty(self) -> None:
        """Send what the transport holds, and ask for more."""
        self.kernel += self.value()
        self.clear()
        if self.producer is not None:
            self.producer.resumeProducing()


class SendBufferFacts:
    """What both kinds of buffer do.  ``block`` fills the transport, ``unblock`` empties it."""

    transport: Any
    buffer: SendBuffer
    overflows: list[int]
    assertEqual: Any
    assertIs: Any
    assertTrue: Any
    assertRaises: Any
    assertNoResult: Any
    successResultOf: Any

    def block(self) -> None:
        """Let the transport take nothing."""
        raise NotImplementedError

    def unblock(self) -> None:
        """Let the transport take everything."""
        raise NotImplementedError

    def taken(self) -> bytes:
        """Return what the socket or the transport has."""
        raise NotImplementedError

    def overflowed(self) -> None:
        self.overflows.append(self.buffer.unsent)

    def test_what_can_be_sent_is_not_queued(self) -> None:
        """It goes out at once, in order."""
        for word in (b"a", b"b", b"c"):
            self.buffer.write(word)
        self.assertEqual((self.taken(), self.buffer.unsent), (b"abc", 0))

    def test_what_is_queued_goes_out_in_order(self) -> None:
        """As soon as there is room, before anything newer."""
        self.block()
        self.buffer.write(b"a")
        self.buffer.write(b"b")
        self.assertEqual((self.taken(), self.buffer.unsent), (b"", 2))
        self.unblock()
        self.buffer.write(b"c")
        self.assertEqual((self.taken(), self.buffer.unsent), (b"abc", 0))

    def test_large_queues_go_out_in_chunks(self) -> None:
        """None of them is larger than the bound, if no message is."""
        self.block()
        self.buffer.limit = 10**9
        half = MAX_CHUNK_BYTES // 2 + 1
        for byte in (b"a", b"b", b"c"):
            self.buffer.write(byte * half)
        self.unblock()
        self.assertEqual(self.taken(), b"a" * half + b"b" * half + b"c" * half)

    def test_an_overflow_is_told_once(self) -> None:
        """Only when a write finds more than the limit queued; one message may exceed it."""
        self.block()
        self.buffer.write(b"x" * 10)
        self.buffer.write(b"y" * 100)
        self.assertEqual(self.overflows, [])
        self.buffer.write(b"z")
        self.buffer.write(b"z")
        self.assertEqual((len(self.overflows), self.buffer.state), (1, OVERFLOWED))

    def test_final_bytes_follow_what_is_queued(self) -> None:
        """And nothing follows them."""
        self.block()
        self.buffer.write(b"waits ")
        self.buffer.write_final(b"goodbye")
        self.buffer.write(b"x" * 11)
        self.buffer.write_final(b"!")
        self.unblock()
        self.buffer.write(b"late")
        self.assertEqual((self.taken(), self.overflows), (b"waits goodbye", []))
        self.assertIs(self.buffer.state, FINISHED)

    def test_final_bytes_are_sent_after_an_overflow(self) -> None:
        """What was queued is dropped, and the client learns why."""
        self.block()
        self.buffer.write(b"x" * 11)
        self.buffer.write(b"overflows")
        self.buffer.write_final(b"!")
        self.unblock()
        self.assertEqual(self.taken()[-1:], b"!")
        self.assertEqual((len(self.overflows), self.buffer.state), (1, FINISHED))

    def test_final_bytes_that_can_be_sent_are_sent_at_once(self) -> None:
        """Nothing is queued."""
        self.buffer.write_final(b"goodbye")
        self.buffer.write(b"late")
        self.assertEqual((self.taken(), self.buffer.state), (b"goodbye", FINISHED))

    def test_drained_fires_when_nothing_is_queued(self) -> None:
        """At once, or later."""
        self.successResultOf(self.buffer.drained())
        self.block()
        self.buffer.write(b"a")
        waiters = [self.buffer.drained(), self.buffer.drained()]
        for waiter in waiters:
            self.assertNoResult(waiter)
        self.unblock()
        for waiter in waiters:
            self.successResultOf(waiter)

    def overflow(self) -> None:
        for _ in range(3):
            self.buffer.write(b"x" * 20)

    def test_drained_fires_when_nothing_will_be_sent(self) -> None:
        """A replay that waits must end: after a loss, an overflow or the final bytes."""
        ends: list[Callable[[], None]] = [
            lambda: self.buffer.forget(),
            lambda: self.buffer.stopProducing(),
            lambda: self.buffer.write_final(b"!"),
            self.overflow,
        ]
        for end in ends:
            self.setUp()
            self.block()
            self.buffer.write(b"a")
            waiter = self.buffer.drained()
            end()
            self.successResultOf(waiter)
            self.successResultOf(self.buffer.drained())

    def setUp(self) -> None:
        """Make a buffer with a limit of ten bytes."""
        raise NotImplementedError

    def test_a_write_after_the_loss_does_nothing(self) -> None:
        """No overflow is told either."""
        self.block()
        self.buffer.forget()
        self.buffer.forget()
        for _ in range(3):
            self.buffer.write(b"x" * 20)
        self.assertEqual((self.overflows, self.buffer.unsent), ([], 0))
        self.assertIs(self.buffer.state, CLOSED)

    def test_flush_leaves_everything_to_the_transport(self) -> None:
        """Which has no producer then, and so can close."""
        self.block()
        self.buffer.write(b"a")
        self.buffer.write(b"b")
        self.buffer.flush()
        self.buffer.flush()
        self.assertIs(self.transport.producer, None)
        self.unblock()
        self.assertEqual(self.taken(), b"ab")

    def test_a_corked_block_is_one_write(self) -> None:
        """Nothing is held back afterwards, and blocks can be nested."""
        with self.buffer.corked():
            self.buffer.write(b"1 ")
            with self.buffer.corked():
                self.buffer.write(b"2 ")
            self.buffer.write(b"3")
            self.assertEqual((self.taken(), self.buffer.state), (b"", CORKED))
        self.assertEqual(self.taken(), b"1 2 3")
        self.buffer.write(b"!")
        self.assertEqual(self.taken(), b"1 2 3!")

    def test_a_corked_block_ends_also_by_an_exception(self) -> None:
        """What was written before it goes out."""
        with self.assertRaises(ZeroDivisionError), self.buffer.corked():
            self.buffer.write(b"a")
            raise ZeroDivisionError
        self.assertEqual(self.taken(), b"a")

    def test_a_corked_block_waits_for_the_transport(self) -> None:
        """While the transport is full, the end of the block sends nothing."""
        self.block()
        with self.buffer.corked():
            self.buffer.write(b"a")
        self.assertEqual(self.taken(), b"")
        self.unblock()
        self.assertEqual(self.taken(), b"a")

    def test_a_buffer_that_ends_in_a_corked_block_stays_ended(self) -> None:
        """The end of the block revives nothing."""
        for end, state in ((self.buffer.flush, CLOSED), (None, OVERFLOWED)):
            self.setUp()
            with self.buffer.corked():
                self.buffer.write(b"x" * 11)
                self.buffer.flush() if end else self.buffer.write(b"y")
            self.assertIs(self.buffer.state, state)

    def test_states_that_do_not_follow_raise(self) -> None:
        """The table has every state, and nothing leads out of the last one."""
        self.assertEqual(set(TRANSITIONS), set(BufferState))
        self.assertEqual(TRANSITIONS[CLOSED], frozenset())
        for state in BufferState:
            for wanted in BufferState:
                self.buffer.state = state
                if wanted in TRANSITIONS[state]:
                    self.buffer.become(wanted)
                    self.assertIs(self.buffer.state, wanted)
                else:
                    self.assertRaises(RuntimeError, self.buffer.become, wanted)


class SocketBufferTests(SendBufferFacts, SynchronousTestCase):
    """The buffer of a plain socket, with a socket that takes what a test says."""

    def setUp(self) -> None:
        self.transport = PullTransport()
        self.overflows = []
        self.buffer = SocketBuffer(self.transport, self.transport.send, self.overflowed, 10)

    def block(self) -> None:
        self.transport.room = 0
        self.buffer.write(b"")  # sent in full: an empty message does not block
        self.transport.room = 1
        self.buffer.write(b"..")
        self.transport.kernel = b""
        self.transport.clear()
        self.buffer.unsent = 0  # the tests count their own bytes

    def unblock(self) -> None:
        self.transport.room = 10**9
        self.transport.empty()

    def taken(self) -> bytes:
        return self.transport.kernel

    def test_the_rest_of_a_partial_send_goes_first(self) -> None:
        """The transport has it, and what follows waits for the transport."""
        self.transport.room = 3
        self.buffer.write(b"abcdef")
        self.assertEqual((self.taken(), self.transport.value()), (b"abc", b"def"))
        self.assertEqual((self.buffer.state, self.buffer.unsent), (BLOCKED, 3))
        self.buffer.write(b"gh")
        self.assertEqual(self.buffer.unsent, 5)
        self.unblock()
        self.assertEqual((self.taken(), self.buffer.unsent), (b"abcdefgh", 0))

    def test_a_socket_that_is_full_again_blocks_again(self) -> None:
        """The unsent bytes are those of the new rest and of the queue."""
        self.buffer.limit = 10**9
        self.transport.room = 0
        messages = [bytes([at]) * MAX_CHUNK_BYTES for at in range(4)]
        for message in messages:
            self.buffer.write(message)
        self.transport.room = MAX_CHUNK_BYTES + 5
        self.transport.empty()
        self.assertEqual(self.buffer.state, BLOCKED)
        self.assertEqual(self.buffer.unsent, 2 * MAX_CHUNK_BYTES - 5)
        self.unblock()
        self.assertEqual(self.taken(), b"".join(messages))

    def test_a_send_error_is_left_to_the_transport(self) -> None:
        """It tries again, and reports what it finds."""
        self.transport.error = BrokenPipeError()
        self.buffer.write(b"lost")
        self.buffer.write(b"too")
        self.assertEqual((self.transport.value(), self.buffer.state), (b"lost", BLOCKED))
        self.assertEqual(self.transport.sends, [b"lost"])

    @settings(
        max_examples=examples(200),
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.lists(
            st.one_of(
                st.binary(max_size=6),
                st.integers(0, 9).map(lambda room: ("room", room)),
                st.just(("empty", 0)),
                st.lists(st.binary(max_size=3), max_size=3),
            ),
            max_size=40,
        )
    )
    def test_every_byte_arrives_once_and_in_order(self, steps: list[Any]) -> None:
        """Whatever the socket takes of each write, and whenever the transport is empty."""
        self.setUp()
        self.buffer.limit = 10**9
        written = b""
        for step in steps:
            if isinstance(step, bytes):
                self.buffer.write(step)
                written += step
            elif isinstance(step, list):
                with self.buffer.corked():
                    for each in step:
                        self.buffer.write(each)
                written += b"".join(step)
            elif step[0] == "room":
                self.transport.room = step[1]
            else:
                self.transport.empty()
            self.assertTrue(written.startswith(self.taken() + self.transport.value()))
        self.unblock()
        self.assertEqual((self.taken(), self.buffer.unsent), (written, 0))
        self.assertIs(self.buffer.state, READY)


class ConsumerBufferTests(SendBufferFacts, SynchronousTestCase):
    """The buffer of a transport that says when it is full."""

    def setUp(self) -> None:
        self.transport = StringTransport()
        self.overflows = []
        self.buffer = ConsumerBuffer(self.transport, self.overflowed, 10)

    def block(self) -> None:
        self.buffer.pauseProducing()
        self.buffer.pauseProducing()

    def unblock(self) -> None:
        self.buffer.resumeProducing()

    def taken(self) -> bytes:
        return self.transport.value()


class ChoiceTests(SynchronousTestCase):
    """Which buffer a transport gets."""

    def test_a_transport_without_a_socket_gets_a_consumer_buffer(self) -> None:
        """That is also what every connection of a ``MemoryServer`` has."""
        transport = StringTransport()
        self.assertIsInstance(send_buffer_for(transport, lambda: None), ConsumerBuffer)
        self.assertTrue(transport.streaming)

    def test_a_handshake_and_the_first_event_are_one_write(self) -> None:
        """The stream is corked while it opens."""
        client = MemoryServer().connect()
        writes: list[bytes] = []
        write = client.write

        def note(data: bytes) -> None:
            writes.append(data)
            write(data)

        self.patch(client, "write", note)
        client.send(
            b"GET /events/a HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        )
        self.assertEqual(len(writes), 1)
        self.assertIn(b"plumber.open", writes[0])
