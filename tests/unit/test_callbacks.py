"""Callbacks of an application as subscribers, in memory."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from twisted.internet.defer import Deferred, succeed

from asyncplumber.core import callbacks
from asyncplumber.core.callbacks import RETRY_INTERVAL, CallbackSubscriber, Gap
from asyncplumber.errors import Unavailable
from asyncplumber.event import EARLIEST, Cursor, Event, Position
from harness.core import CoreCase, draft


class Slow:
    """A callback whose calls take until the test ends them."""

    def __init__(self) -> None:
        self.seqs: list[int] = []
        self.calls: list[Deferred[None]] = []

    def __call__(self, event: Event) -> Deferred[None]:
        self.seqs.append(event.seq)
        self.calls.append(Deferred())
        return self.calls[-1]

    def finish(self) -> None:
        """End the call that is under way, and all that follow from it."""
        while self.calls:
            self.calls.pop().callback(None)


class CallbackCase(CoreCase):
    def setUp(self) -> None:
        super().setUp()
        self.seqs: list[int] = []

    def note(self, event: Event) -> None:
        self.seqs.append(event.seq)

    def registered(self, callback: Any, after: Any = None) -> CallbackSubscriber:
        subscriber = CallbackSubscriber(self.hub, "a", callback, after, self.clock)
        subscriber.start()
        return subscriber


class CallTests(CallbackCase):
    """Each event once, in order."""

    def test_a_plain_callable_is_called_with_each_event(self) -> None:
        """From now on, after a cursor, or from the earliest."""
        self.publish(3)
        seen: dict[Any, list[int]] = {None: [], EARLIEST: [], Cursor("e100", 2): []}
        for after, seqs in seen.items():
            self.registered(lambda event, seqs=seqs: seqs.append(event.seq), after)
        self.publish(2)
        self.assertEqual(list(seen.values()), [[4, 5], [1, 2, 3, 4, 5], [3, 4, 5]])

    def test_a_websocket_protocol_is_sent_the_envelope(self) -> None:
        """As a text message."""
        sent: list[tuple[bytes, bool]] = []
        protocol = type(
            "Protocol",
            (),
            {"sendMessage": lambda _, payload, binary: sent.append((payload, binary))},
        )()
        self.registered(protocol)
        self.publish()
        self.assertEqual((json.loads(sent[0][0])["cursor"], sent[0][1]), ("e100.1", False))

    def test_what_is_no_callback_is_refused(self) -> None:
        """At once, not at the first event."""
        with self.assertRaises(TypeError):
            CallbackSubscriber(self.hub, "a", 5, None, self.clock)

    def test_what_a_callback_raises_is_logged_and_the_next_event_comes(self) -> None:
        """Whether it is plain or awaited."""

        async def late(event: Event) -> None:
            self.note(event)
            raise KeyError

        def plain(event: Event) -> None:
            self.note(event)
            raise KeyError

        for callback in (plain, late):
            self.registered(callback)
        self.publish(2)
        self.publish()
        self.assertEqual(self.seqs, [1, 2, 1, 2, 3, 3])
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 6)

    def test_one_that_awaits_is_given_the_next_event_when_it_is_done(self) -> None:
        """Never two at a time."""
        slow = Slow()
        self.registered(slow)
        self.publish(2)
        self.publish()
        self.assertEqual(slow.seqs, [1])
        slow.calls.pop().callback(None)
        self.assertEqual(slow.seqs, [1, 2])
        slow.finish()
        self.assertEqual(slow.seqs, [1, 2, 3])

    def test_a_thousand_that_are_done_already_do_not_nest(self) -> None:
        """The stack is finite."""

        def done(event: Event) -> Deferred[None]:
            self.note(event)
            return succeed(None)

        self.registered(done)
        self.publish(1000)
        self.assertEqual(len(self.seqs), 1000)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_callback_that_causes_an_event_finishes_before_it_comes(self) -> None:
        """The event is kept, or ephemeral."""
        order: list[str] = []

        def cause(event: Event) -> None:
            order.append(f"begin {event.id}")
            if event.id == "k0":
                self.publish()
                self.hub.deliver_ephemeral([draft("w")])
            order.append(f"end {event.id}")

        self.registered(cause)
        self.publish()
        self.assertEqual(order[:2], ["begin k0", "end k0"])
        self.assertEqual(sorted(order[2::2]), ["begin k1", "begin w"])

    def test_a_gap_is_logged_and_it_goes_on(self) -> None:
        """Behind it."""
        subscriber = self.registered(self.note, Cursor("e1", 5))
        self.publish(2)
        self.assertEqual(self.seqs, [1, 2])
        subscriber.missed(Cursor("e100", 2), Position("e100", 9, 9))
        self.assertEqual(subscriber._after, Cursor("e100", 9))


class SlowTests(CallbackCase):
    """A slow callback does not slow others down, and loses nothing."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(callbacks, "MAX_QUEUED", 5)

    def test_one_that_falls_behind_catches_up_from_the_history(self) -> None:
        """Nothing is lost or doubled, and few events wait in memory."""
        slow = Slow()
        subscriber = self.registered(slow)
        for _ in range(20):
            self.publish()
        self.assertLessEqual(len(subscriber._queue), 6)
        self.assertEqual(self.hub.subscribers, 0)
        slow.finish()
        self.publish(2)
        slow.finish()
        self.assertEqual(slow.seqs, list(range(1, 23)))
        self.assertEqual(self.hub.subscribers, 1)

    def test_one_that_is_always_too_slow_still_gets_everything(self) -> None:
        """It falls behind again and again, also during a replay."""
        slow = Slow()
        self.registered(slow)
        for n in range(60):
            self.publish(n % 4)
            if n % 3 == 0 and slow.calls:
                slow.calls.pop().callback(None)
        slow.finish()
        self.assertEqual(slow.seqs, list(range(1, 91)))

    def test_one_that_is_ended_while_events_wait_gets_each_once(self) -> None:
        """Events in its queue do not come again."""
        slow = Slow()
        self.registered(slow)
        self.publish(3)
        (subscription,) = self.successResultOf(self.hub.admit("a")).live
        subscription.end(Unavailable())
        self.publish(2)
        self.clock.advance(RETRY_INTERVAL)
        slow.finish()
        self.assertEqual(slow.seqs, [1, 2, 3, 4, 5])


class LifeTests(CallbackCase):
    """Registered, unregistered, waiting for the store."""

    def test_what_cannot_be_subscribed_now_is_tried_again(self) -> None:
        """Each second, until it is stopped."""
        self.history.failures = 2
        subscriber = self.registered(self.note)
        self.clock.advance(RETRY_INTERVAL)
        self.publish()
        self.clock.advance(RETRY_INTERVAL)
        self.publish()
        self.assertEqual(self.seqs, [2])
        subscriber.stop()
        self.history.error = Unavailable()
        self.hub.stop()
        other = self.registered(self.note)
        other.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_replay_that_failed_is_tried_again_where_it_stopped(self) -> None:
        """With the cursor of what was handed over."""
        self.publish(300)
        slow = Slow()
        self.registered(slow, EARLIEST)
        self.history.error = Unavailable()
        slow.finish()
        self.assertEqual(len(slow.seqs), 256)
        self.history.error = None
        self.clock.advance(RETRY_INTERVAL)
        slow.finish()
        self.assertEqual(slow.seqs, list(range(1, 301)))

    def test_unregistered_during_a_call_it_is_not_called_again(self) -> None:
        """Although more events are queued."""

        def once(event: Event) -> None:
            self.note(event)
            subscriber.stop()

        subscriber = self.registered(once)
        self.publish(3)
        self.publish()
        self.assertEqual((self.seqs, self.hub.subscribers), ([1], 0))

    def test_unregistered_while_it_awaits_it_is_not_called_again(self) -> None:
        """However the call under way ends."""
        slow = Slow()
        subscriber = self.registered(slow)
        self.publish(3)
        subscriber.stop()
        slow.finish()
        self.assertEqual(slow.seqs, [1])

    def test_unregistered_while_its_channel_opens_it_is_never_subscribed(self) -> None:
        """No subscription is left in the channel."""
        self.history.held = {"ensure"}
        subscriber = self.registered(self.note)
        subscriber.stop()
        self.history.release()
        self.publish()
        self.assertEqual((self.seqs, self.hub.subscribers), ([], 0))

    def test_a_future_without_a_loop_is_an_error_and_no_end(self) -> None:
        """
        Where no loop of asyncio runs its future would never end: that is logged, and the next event
        comes.
        """
        loop = asyncio.new_event_loop()
        self.addCleanup(loop.close)

        def callback(event: Event) -> Any:
            self.note(event)
            return loop.create_future()

        self.registered(callback)
        self.publish(2)
        self.assertEqual(self.seqs, [1, 2])
        errors = [str(failure.value) for failure in self.flushLoggedErrors(RuntimeError)]
        self.assertEqual(errors, ["a future of asyncio needs the asyncio reactor"] * 2)

    def test_what_waits_at_a_stop_is_called_with_afterwards(self) -> None:
        """
        A callback that takes its time is given each event once, also those that waited for it when
        all was stopped.
        """
        seqs: list[int] = []
        calls: list[Deferred[None]] = []

        def slow(event: Event) -> Deferred[None]:
            seqs.append(event.seq)
            calls.append(Deferred())
            return calls[-1]

        subscriber = CallbackSubscriber(self.hub, "a", slow, None, self.clock)
        subscriber.start()
        self.publish(3)
        subscriber.stop()
        self.publish(1)
        subscriber.start()
        self.clock.advance(0)
        while calls:
            calls.pop().callback(None)
            self.clock.advance(0)
        self.assertEqual(seqs, [1, 2, 3, 4])

    def test_one_that_is_stopped_and_started_during_its_admission_is_subscribed_once(self) -> None:
        """The admission that is under way is cancelled, and another one begins."""
        self.history.held = {"ensure"}
        subscriber = self.registered(self.note)
        subscriber.stop()
        subscriber.start()
        self.history.held = set()
        self.history.release()
        self.settle()
        self.publish()
        self.assertEqual((self.seqs, self.hub.subscribers), ([1], 1))


class GapTests(CallbackCase):
    """A callback for gaps."""

    def test_a_gap_comes_after_the_events_before_it(self) -> None:
        """The callback for gaps is called in the order of the events."""
        told: list[Any] = []
        slow = Slow()
        subscriber = CallbackSubscriber(
            self.hub, "a", slow, Cursor("lost", 7), self.clock, told.append
        )
        subscriber.start()
        self.publish(1)
        self.assertEqual([gap.cursor for gap in told], [Cursor("lost", 7)])
        subscriber.missed(Cursor("e100", 1), Position("e100", 5, 5))
        self.assertEqual(len(told), 1)
        slow.finish()
        self.assertEqual(told[1], Gap(Cursor("e100", 1), Position("e100", 5, 5)))
