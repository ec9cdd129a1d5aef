"""One account's events: fan-out, and what a relay lost."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred

from asyncplumber.core import channel
from asyncplumber.errors import Unavailable
from asyncplumber.event import Cursor
from asyncplumber.interfaces import CursorMoved
from asyncplumber.wire.delivery import Delivery
from harness.core import CoreCase, Recorder, draft


def raising(error: Exception) -> Callable[[object], None]:
    """Return a function of one argument that raises this error."""

    def function(_: object) -> None:
        raise error

    return function


class FanOutTests(CoreCase):
    """Each subscriber gets each event once, whatever the others do."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(channel, "DELIVERIES_PER_TURN", 4)

    def test_a_burst_is_one_write_for_each_subscriber(self) -> None:
        """Coalescing is what makes it fast."""
        subscriber = self.subscribed()
        self.publish(50)
        self.assertEqual(subscriber.batches, [50])

    def test_a_large_fan_out_gives_the_reactor_back(self) -> None:
        """Another account is served between two parts of it."""
        subscribers = [self.subscribed() for _ in range(10)]
        other = self.subscribed(account="b")
        self.publish()
        self.publish(account="b")
        self.assertEqual([len(each.events) for each in subscribers], [1] * 4 + [0] * 6)
        self.assertEqual(len(other.events), 1)
        self.settle()
        self.assertEqual([each.seqs for each in subscribers], [[1]] * 10)

    def test_many_writes_to_few_subscribers_give_the_reactor_back_too(self) -> None:
        """A long queue is not delivered in one turn."""
        subscriber = self.subscribed()
        self.subscribed()
        self.publish(10, payload=b'"data":"%b"' % (b"x" * 200_000))
        self.assertLess(len(subscriber.events), 10)
        self.publish()
        self.settle()
        self.assertEqual(subscriber.seqs, list(range(1, 12)))

    def test_what_arrives_during_a_large_fan_out_follows_it_together(self) -> None:
        """In order, and in one write."""
        subscribers = [self.subscribed() for _ in range(10)]
        for _ in range(5):
            self.publish()
        self.settle()
        self.assertEqual(
            [(each.seqs, each.batches) for each in subscribers], [([1, 2, 3, 4, 5], [1, 4])] * 10
        )

    def test_a_subscriber_that_joins_during_a_large_fan_out_gets_each_event_once(self) -> None:
        """Live or by replay; also one that leaves and returns with its cursor."""
        subscribers = [self.subscribed() for _ in range(10)]
        self.publish()
        fresh = self.subscribed()
        replayed = self.subscribed(Cursor("e100", 0))
        opened = self.successResultOf(self.hub.admit("a"))
        last = subscribers.pop()
        last.cancel()
        last.subscribe(opened, last.cursor)
        self.settle()
        self.publish()
        self.settle()
        self.assertEqual((fresh.seqs, replayed.seqs, last.seqs), ([2], [1, 2], [1, 2]))
        self.assertEqual([each.seqs for each in subscribers], [[1, 2]] * 9)

    def test_a_subscriber_that_returns_during_a_fan_out_gets_no_event_twice(self) -> None:
        """It begins after the event whose delivery is under way."""
        subscribers = [self.subscribed() for _ in range(10)]
        self.publish()
        last = subscribers.pop()
        last.cancel()
        last.subscribe(self.successResultOf(self.hub.admit("a")), None)
        self.settle()
        self.assertEqual(last.told[-1], ("opened", Cursor("e100", 1)))
        self.assertEqual(last.seqs, [])

    def test_a_subscriber_that_leaves_during_a_fan_out_gets_nothing_more(self) -> None:
        """It leaves by itself, or another one cancels it, in the same turn or a later one."""
        subscribers = [self.subscribed() for _ in range(10)]

        def cancel_three(batch: Delivery) -> None:
            for each in (subscribers[0], subscribers[1], subscribers[8]):
                each.cancel()

        subscribers[0].on_deliver = cancel_three
        self.publish(2)
        self.settle()
        self.publish()
        self.settle()
        self.assertEqual(
            [each.seqs for each in (subscribers[0], subscribers[1], subscribers[8])],
            [[1, 2], [], []],
        )
        self.assertEqual({tuple(each.seqs) for each in subscribers[2:8]}, {(1, 2, 3)})
        self.assertEqual(self.hub.subscribers, 7)

    def test_a_subscriber_that_raises_is_dropped_alone(self) -> None:
        """What it raises when it is ended is logged as well."""
        bad, good = self.subscribed(), self.subscribed()
        bad.on_deliver = raising(ZeroDivisionError())
        self.patch(bad, "end", raising(KeyError()))
        self.publish(2)
        self.publish()
        self.assertEqual((good.seqs, bad.seqs), ([1, 2, 3], [1, 2]))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_a_subscriber_that_raises_in_opened_is_dropped(self) -> None:
        """Live, in a replay, and at a gap."""
        self.publish(3)
        for after in (None, Cursor("e100", 1), Cursor("e1", 1)):
            bad = Recorder()
            self.patch(bad, "opened", raising(ZeroDivisionError()))
            bad.subscribe(self.successResultOf(self.hub.admit("a")), after)
            self.settle()
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1, str(after))
            self.assertEqual((len(bad.ended), bad.told), (1, []), str(after))
        self.assertEqual(self.hub.subscribers, 0)

    def test_an_event_published_from_within_a_delivery_comes_after_it(self) -> None:
        """For all subscribers."""
        first, second = self.subscribed(), self.subscribed()
        first.on_deliver = lambda batch: self.publish() if batch.events[0].seq == 1 else None
        self.publish()
        self.assertEqual((first.seqs, second.seqs), ([1, 2], [1, 2]))

    def test_an_ephemeral_event_reaches_live_subscribers_and_moves_no_cursor(self) -> None:
        """It has no place in the history, and so no cursor."""
        subscriber = self.subscribed()
        self.assertEqual(self.hub.deliver_ephemeral([draft("w")]), 1)
        self.assertEqual(self.hub.deliver_ephemeral([draft("w", "nobody")]), 0)
        self.publish()
        self.assertEqual(
            [(each.epoch, each.seq) for each in subscriber.events], [("", 0), ("e100", 1)]
        )


class HealTests(CoreCase):
    """A relay may lose events, duplicate them and change their order."""

    def test_a_hole_is_fetched_before_what_comes_after_it(self) -> None:
        """What comes twice is not delivered twice."""
        subscriber = self.subscribed()
        events = self.keep(5)
        self.hub.publish([events[1], events[4]])
        self.assertEqual(subscriber.seqs, [1, 2, 3, 4, 5])
        self.hub.publish(events)
        self.assertEqual(subscriber.seqs, [1, 2, 3, 4, 5])

    def test_a_hole_that_shows_during_a_fetch_is_fetched_too(self) -> None:
        """The fetch under way may be too early for it."""
        subscriber = self.subscribed()
        self.history.held = {"read"}
        first = self.keep(2)
        self.hub.publish(first[1:])
        self.history.release()
        answered = self.history.waiting.pop()[0]
        self.hub.publish(self.keep(2)[1:])
        answered.callback([])
        self.history.release()
        self.assertEqual(subscriber.seqs, [1, 2, 3, 4])

    def test_a_check_finds_what_never_arrived(self) -> None:
        """It asks once for all accounts, and reads those that are behind."""
        self.assertEqual(self.ran(self.hub.check()), 0)
        self.assertEqual(self.history.count("heads"), 0)
        late, fine = self.subscribed(), self.subscribed(account="b")
        self.keep(600)
        self.assertEqual(self.ran(self.hub.check()), 1)
        self.assertEqual(late.seqs, list(range(1, 601)))
        self.assertEqual(fine.events, [])
        self.assertEqual(self.ran(self.hub.check()), 0)

    def test_the_next_check_does_what_a_failed_one_did_not(self) -> None:
        """Nothing is lost by a failure."""
        subscriber = self.subscribed()
        self.keep(3)
        self.history.failures = 1
        self.failureResultOf(Deferred.fromCoroutine(self.hub.check()), Unavailable)
        self.history.failures = 1
        self.hub.check_soon()
        self.history.held = {"read"}
        self.hub.check_soon()
        self.history.release(Unavailable())
        self.history.held = set()
        self.assertEqual(subscriber.seqs, [])
        self.hub.check_soon()
        self.assertEqual(subscriber.seqs, [1, 2, 3])

    def test_many_requests_for_a_check_are_coalesced(self) -> None:
        """Into one more check after the one that is under way."""
        subscriber = self.subscribed()
        self.history.held = {"heads"}
        for _ in range(50):
            self.hub.check_soon()
        self.assertEqual(self.history.count("heads"), 1)
        self.keep(2)
        self.history.release()
        self.assertEqual(self.history.count("heads"), 2)
        self.history.held = set()
        self.history.release()
        self.assertEqual((self.history.count("heads"), subscriber.seqs), (2, [1, 2]))
        self.hub.check_soon()
        self.assertEqual(self.history.count("heads"), 3)

    def test_an_instance_that_is_too_far_behind_tells_of_a_gap(self) -> None:
        """The history does not reach back to its cursor."""
        subscriber = self.subscribed()
        self.keep(1500)
        self.hub.check_soon()
        self.publish()
        self.assertEqual([word[0] for word in subscriber.told], ["opened", "missed", "event"])
        self.assertEqual(subscriber.told[1][1], Cursor("e100", 0))
        self.assertEqual(subscriber.seqs, [1501])

    def test_a_numbering_that_began_anew_is_a_gap(self) -> None:
        """The first event of the new epoch is enough to notice, and the next ones follow."""
        subscriber = self.subscribed()
        self.publish(3)
        self.begin_anew()
        self.publish(2)
        self.publish()
        self.assertEqual(
            [word[0] for word in subscriber.told],
            ["opened", "event", "event", "event", "missed", "event"],
        )
        self.assertEqual(subscriber.cursor, Cursor("e101", 3))

    def test_a_history_restored_from_a_backup_is_a_gap(self) -> None:
        """Its numbers are given out again, to other events."""
        subscriber = self.subscribed()
        self.publish(1)
        backup = self.store.history.snapshot()
        self.publish(2)
        self.store.history.restore(backup)
        self.hub.check_soon()
        self.publish()
        self.assertEqual(subscriber.seqs, [1, 2, 3, 2])
        self.assertEqual(subscriber.told[-2][0], "missed")

    def test_a_catch_up_ends_when_the_live_subscribers_have_everything(self) -> None:
        """Also where the delivery takes several turns of the reactor."""
        self.patch(channel, "DELIVERIES_PER_TURN", 2)
        subscribers = [self.subscribed() for _ in range(6)]
        self.keep(3)
        caught_up = self.successResultOf(self.hub.admit("a")).catch_up()
        self.assertNoResult(caught_up)
        self.assertEqual(subscribers[-1].seqs, [])
        self.settle()
        self.successResultOf(caught_up)
        self.assertEqual([each.seqs for each in subscribers], [[1, 2, 3]] * 6)

    def test_a_replay_ends_although_the_history_was_restored_from_a_backup(self) -> None:
        """The history is shorter than before; the live subscribers learn of it first."""
        live = self.subscribed()
        self.publish(3)
        backup = self.store.history.snapshot()
        self.publish(2)
        self.store.history.restore(backup)
        back = self.subscribed(Cursor("e100", 3))
        self.publish()
        self.assertEqual((live.seqs, back.seqs), ([1, 2, 3, 4, 5, 4], [4]))
        self.assertEqual([word[0] for word in live.told[-2:]], ["missed", "event"])
        self.assertEqual([word[0] for word in back.told], ["opened", "event"])

    def test_a_new_name_for_the_first_place_comes_too_late(self) -> None:
        """The first event arrived during the read, and keeps its place."""
        self.history.held = {"read"}
        subscriber = self.subscribed()
        opened = self.successResultOf(self.hub.admit("a"))
        caught_up = opened.catch_up()
        ((answer, _),) = self.history.waiting
        self.history.waiting.clear()
        self.publish()
        answer.errback(CursorMoved(Cursor("e200", 0)))
        self.history.held = set()
        self.history.release()
        self.successResultOf(caught_up)
        self.publish()
        self.assertEqual(subscriber.seqs, [1, 2])

    def test_a_gap_comes_after_what_arrived_before_it(self) -> None:
        """An event shows a gap while events before it are queued: they are delivered first."""
        subscriber = self.subscribed()
        events = self.keep(1500)
        self.hub.publish([*events[:3], events[1400]])
        self.settle()
        self.publish()
        self.assertEqual(subscriber.seqs, [1, 2, 3, 1501])
        self.assertEqual(subscriber.told[4][:2], ("missed", Cursor("e100", 3)))

    def test_a_gap_that_closes_during_a_fan_out_is_not_told(self) -> None:
        """The events that were missing arrived late."""
        self.patch(channel, "DELIVERIES_PER_TURN", 2)
        subscribers = [self.subscribed() for _ in range(6)]
        events = [*self.publish(), *self.keep(1500)]
        self.hub.publish([events[900]])  # the answer to what is missing before it: too old
        events += self.keep(3)
        self.hub.publish(events)
        self.settle()
        for each in subscribers:
            self.assertEqual(each.seqs, list(range(1, 1505)))
            self.assertEqual({word[0] for word in each.told}, {"opened", "event"})
