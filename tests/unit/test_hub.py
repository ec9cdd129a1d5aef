"""Who waits for which account: order, replay, guarded fan-out."""

from __future__ import annotations

import gc
import random
import weakref
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed

from asyncplumber.core import channel, hub
from asyncplumber.errors import PlumberError, TooManyRequests, Unavailable
from asyncplumber.event import EARLIEST, Cursor, Stored
from asyncplumber.interfaces import CursorMoved
from asyncplumber.stores.memory import MemoryHistory
from asyncplumber.wire.delivery import Delivery
from asyncplumber.wire.envelope import envelope
from asyncplumber.wire.sse import record
from harness.core import CoreCase, Recorder, draft


class SubscribeTests(CoreCase):
    """Coming in, from now on or after a cursor."""

    def test_without_a_cursor_live_events_only(self) -> None:
        """It is told where it stands, and what comes after."""
        self.keep(3)
        subscriber = self.subscribed()
        self.publish(2)
        self.assertEqual(subscriber.told[0], ("opened", Cursor("e100", 3)))
        self.assertEqual(subscriber.seqs, [4, 5])

    def test_after_a_cursor_what_was_missed_and_then_live(self) -> None:
        """In pages, each once."""
        self.keep(600)
        subscriber = self.subscribed(Cursor("e100", 10))
        self.publish()
        self.assertEqual(subscriber.told[0], ("opened", Cursor("e100", 10)))
        self.assertEqual(subscriber.seqs, list(range(11, 602)))
        self.assertLess(len(subscriber.batches), 5)

    def test_earliest_is_all_that_is_kept(self) -> None:
        """Even if that is nothing."""
        self.keep(1200)
        self.assertEqual(self.subscribed(EARLIEST).seqs, list(range(201, 1201)))
        self.assertEqual(self.subscribed(EARLIEST, "other").told, [("opened", Cursor("e100", 0))])

    def test_a_cursor_that_cannot_be_replayed_is_a_gap(self) -> None:
        """Too old, beyond the head, of another numbering: told so, and live from there."""
        self.keep(1200)
        for cursor in (
            Cursor("e100", 199),
            Cursor("e100", 1201),
            Cursor("e99", 1),
            Cursor("e999", 1),
        ):
            subscriber = self.subscribed(cursor)
            self.settle()
            position = self.successResultOf(self.store.history.ensure("a"))
            self.assertEqual(
                subscriber.told,
                [("opened", position.cursor), ("missed", cursor, position)],
                str(cursor),
            )
        self.assertEqual(self.subscribed(Cursor("e100", 200)).seqs[0], 201)

    def test_a_cursor_from_a_faster_instance_waits_for_this_one_to_catch_up(self) -> None:
        """Nobody gets twice what it saw elsewhere, and the live ones get it."""
        slow = self.subscribed()
        self.keep(5)
        fast = self.subscribed(Cursor("e100", 4))
        self.settle()
        self.publish()
        self.assertEqual((slow.seqs, fast.seqs), ([1, 2, 3, 4, 5, 6], [5, 6]))

    def test_what_arrives_while_opening_is_not_lost(self) -> None:
        """Whether the position counts it or not."""
        self.history.held = {"ensure"}
        admitted = self.hub.admit("a")
        before = self.keep(2)
        self.hub.publish(before)
        subscriber = Recorder()
        admitted.addCallback(lambda opened: subscriber.subscribe(opened, None))
        self.history.release()
        self.publish()
        self.assertEqual(subscriber.told[0], ("opened", Cursor("e100", 2)))
        self.assertEqual(subscriber.seqs, [3])

    def test_a_hole_that_is_there_at_the_opening_is_fetched_at_once(self) -> None:
        """Event 2 came early, event 1 never."""
        self.history.held = {"ensure"}
        subscriber = Recorder()
        self.hub.admit("a").addCallback(lambda opened: subscriber.subscribe(opened, None))
        waiting, self.history.waiting = self.history.waiting, []
        answer = self.store.history.ensure("a")
        self.hub.publish(self.keep(2)[1:])
        answer.chainDeferred(waiting[0][0])
        self.assertEqual(subscriber.seqs, [1, 2])

    def test_what_arrives_during_a_replay_comes_after_it(self) -> None:
        """The step to the live stream leaves nothing out."""
        self.keep(10)
        self.subscribed()
        self.history.held = {"read"}
        subscriber = self.subscribed(Cursor("e100", 5))
        self.publish(3)
        self.history.held = set()
        self.history.release()
        self.publish()
        self.assertEqual(subscriber.seqs, list(range(6, 15)))

    def test_a_gap_between_two_pages_is_told_in_its_place(self) -> None:
        """What was handed over stays; what was forgotten meanwhile is named."""
        self.keep(1000)
        subscriber = Recorder()
        subscriber.room = Deferred()
        subscriber.subscribe(self.successResultOf(self.hub.admit("a")), EARLIEST)
        self.publish(500)
        room, subscriber.room = subscriber.room, None
        room.callback(None)
        self.assertEqual(subscriber.seqs, list(range(1, 257)))
        self.assertEqual(
            [word[0] for word in subscriber.told if word[0] != "event"], ["opened", "missed"]
        )
        self.assertEqual(subscriber.told[-1][1], Cursor("e100", 256))
        self.publish()
        self.assertEqual(subscriber.seqs[-1], 1501)

    def test_earliest_forgotten_between_two_questions_is_asked_again(self) -> None:
        """No gap for somebody who only wants what there is."""
        self.keep(1000)
        self.subscribed()
        self.history.held = {"read"}
        subscriber = self.subscribed(EARLIEST)
        self.publish(100)
        self.history.held = set()
        self.history.release()
        self.assertEqual(subscriber.seqs, list(range(101, 1101)))

    def test_a_returning_subscriber_learns_that_the_numbering_began_anew_only_once(self) -> None:
        """Although this instance had not noticed."""
        self.publish(3)
        live = self.subscribed()
        self.begin_anew()
        self.keep(2)
        subscriber = self.subscribed(Cursor("e100", 2))
        self.settle()
        self.publish()
        for each in (live, subscriber):
            self.assertEqual([word[0] for word in each.told], ["opened", "missed", "event"])
            self.assertEqual(each.cursor, Cursor("e101", 3))


class SeveralAccountsTests(CoreCase):
    """One connection may follow several accounts."""

    def setUp(self) -> None:
        super().setUp()
        self.heard: list[tuple[str, int]] = []
        self.subscribers = {account: Recorder() for account in "abc"}
        for account, subscriber in self.subscribers.items():
            subscriber.on_deliver = self.write
            subscriber.subscribe(self.successResultOf(self.hub.admit(account)))

    def write(self, batch: Delivery) -> None:
        """The connection writes what its subscriptions bring."""
        self.heard += [(each.account, each.seq) for each in batch.events]

    def test_each_subscription_is_cancelled_alone(self) -> None:
        """The others go on, and the cancelled one comes back with its own cursor."""
        for account in "abc":
            self.publish(account=account)
        cursor = self.subscribers["b"].cursor
        self.subscribers["b"].cancel()
        for account in "abc":
            self.publish(account=account)
        self.assertEqual(self.heard, [("a", 1), ("b", 1), ("c", 1), ("a", 2), ("c", 2)])
        self.assertEqual((self.hub.subscribers, self.hub.count("b")), (2, 0))
        self.subscribers["b"].subscribe(self.successResultOf(self.hub.admit("b")), cursor)
        self.assertEqual(self.heard[-1], ("b", 2))

    def test_one_account_may_be_followed_twice(self) -> None:
        """Two subscriptions of one connection are two places in the stream."""
        self.publish(3)
        again = Recorder()
        again.subscribe(self.successResultOf(self.hub.admit("a")), Cursor("e100", 1))
        self.subscribers["a"].cancel()
        self.publish()
        self.assertEqual((self.subscribers["a"].seqs, again.seqs), ([1, 2, 3], [2, 3, 4]))


class FirstEventTests(CoreCase):
    """
    Accounts without events have no row in the store; who waits for the first one stands at a place
    shared by all.
    """

    new_epoch = staticmethod(lambda now: f"e{int(now):09}")  # they sort by time

    def renew(self) -> None:
        """That place gets another name."""
        self.clock.advance(self.retention.renewal + 1)

    def test_readers_leave_nothing_in_the_history(self) -> None:
        """Whatever they ask for: live events, all that is kept, or what follows a cursor."""
        for number, after in enumerate(
            (None, EARLIEST, Cursor("e000000100", 0), Cursor("e000000100", 7))
        ):
            self.subscribed(after, f"stranger {number}")
            self.settle()
        self.ran(self.hub.check())
        self.assertEqual(self.store.history.accounts, [])

    def test_the_first_event_arrives_whatever_its_epoch(self) -> None:
        """With or without a comparison of positions before it, and nobody is told of a gap."""
        for account, checks in (("checked", True), ("unchecked", False)):
            subscriber = self.subscribed(account=account)
            self.renew()
            if checks:
                self.ran(self.hub.check())
                self.settle()
            self.publish(2, account)
            self.settle()
            self.publish(1, account)
            self.assertEqual([word[0] for word in subscriber.told], ["opened", *["event"] * 3])
            self.assertEqual(subscriber.seqs, [1, 2, 3])

    def test_an_epoch_that_another_writer_still_had_is_no_gap(self) -> None:
        """
        The first event may have an older epoch than the one we were told: the next comparison finds
        it.
        """
        self.subscribed(account="other")
        self.renew()
        subscriber = self.subscribed()
        writer = MemoryHistory(self.retention, self.clock, lambda now: "e000000100")
        stored = self.successResultOf(writer.append([draft("first"), draft("second")]))
        self.store.history.restore(writer.snapshot())
        self.hub.publish([each.event for each in stored if isinstance(each, Stored)])
        self.ran(self.hub.check())
        self.settle()
        self.publish()
        self.assertEqual(
            [str(word[1].cursor) for word in subscriber.told[1:]],
            [f"e000000100.{seq}" for seq in (1, 2, 3)],
        )

    def test_who_comes_back_to_an_account_without_events_goes_on(self) -> None:
        """
        With the place's former name, before and after the first event; once it is live, events come
        as ever.
        """
        cursor = self.subscribed().cursor
        self.renew()
        early = self.subscribed(cursor)
        self.settle()
        self.publish(2)
        late = self.subscribed(cursor)
        self.settle()
        self.publish()
        for each in (early, late):
            self.assertEqual({word[0] for word in each.told}, {"opened", "event"})
            self.assertEqual(each.seqs, [1, 2, 3])


class SlowReplayTests(CoreCase):
    """Replays do not run away from their readers, nor do deaf readers keep others out."""

    def test_the_next_page_waits_for_room(self) -> None:
        """One page at a time is in memory."""
        self.keep(600)
        subscriber = Recorder()
        subscriber.room = Deferred()
        subscriber.subscribe(self.successResultOf(self.hub.admit("a")), EARLIEST)
        self.assertEqual(subscriber.batches, [256])
        room, subscriber.room = subscriber.room, None
        room.callback(None)
        self.assertEqual(subscriber.batches, [256, 256, 88])

    def test_a_page_is_no_larger_than_what_may_wait_for_the_client(self) -> None:
        """
        At the edge: what fits goes together, one byte more goes by itself, and one event always
        goes.
        """
        events = self.keep(9, payload=b'"data":"%b"' % (b"x" * 1000))
        size = max(len(record(str(each.cursor), each.type, envelope(each))) for each in events)
        for limit, expected in (
            (3 * (size + 100), [3, 3, 3]),
            (3 * size, [2, 2, 2, 2, 1]),
            (1, [1] * 9),
        ):
            subscriber = Recorder()
            subscriber.page_size = limit
            subscriber.subscribe(self.successResultOf(self.hub.admit("a")), Cursor("e100", 0))
            self.assertEqual((subscriber.batches, subscriber.seqs), (expected, list(range(1, 10))))
        asked = [call for call in self.history.calls if call[0] == "read"]
        self.assertEqual({call[-1] for call in asked}, {3 * (size + 100), 3 * size, 1})

    def test_a_page_is_dropped_before_the_wait(self) -> None:
        """Nothing of it is held for a client that does not read; its transport has the bytes."""
        read = self.store.history.read
        pages: list[weakref.ref[Any]] = []

        class Page(list[Any]):
            """A list that can be watched."""

        def remembered(*words: Any) -> Deferred[Any]:
            page = Page(self.successResultOf(read(*words)))
            pages.append(weakref.ref(page))
            return succeed(page)

        self.patch(self.store.history, "read", remembered)
        self.keep(600)
        subscriber = Recorder()
        subscriber.room = Deferred()
        subscriber.subscribe(self.successResultOf(self.hub.admit("a")), EARLIEST)
        gc.collect()
        self.assertEqual((subscriber.batches, [page() for page in pages]), ([256], [None]))

    def test_deaf_readers_do_not_keep_others_from_coming_back(self) -> None:
        """However many they are."""
        self.patch(hub, "MAX_REPLAYS", 2)
        self.hub = self.make_hub()
        self.keep(600)
        opened = self.successResultOf(self.hub.admit("a"))
        for _ in range(5):
            deaf = Recorder()
            deaf.room = Deferred()
            deaf.subscribe(opened, EARLIEST)
        self.assertEqual(len(self.subscribed(EARLIEST).seqs), 600)

    def test_pages_are_read_a_few_at_a_time(self) -> None:
        """A storm of returning clients is served in turns."""
        self.patch(hub, "MAX_REPLAYS", 2)
        self.hub = self.make_hub()
        self.keep(5)
        self.subscribed()
        self.history.held = {"read"}
        storm = [self.subscribed(EARLIEST) for _ in range(7)]
        self.assertEqual(len(self.history.waiting), 2)
        while self.history.waiting:
            self.assertLessEqual(len(self.history.waiting), 2)
            self.history.release()
        self.assertEqual([each.seqs for each in storm], [[1, 2, 3, 4, 5]] * 7)

    def test_leaving_at_any_moment_of_a_replay_leaves_nothing_behind(self) -> None:
        """While the page is read, while there is no room, and while others have their turn."""
        self.keep(600)
        for kept in ({"read"}, set()):
            self.history.held = kept
            subscriber = Recorder()
            subscriber.room = Deferred()
            opened = self.successResultOf(self.hub.admit("a"))
            subscriber.subscribe(opened, EARLIEST)
            told = list(subscriber.told)
            subscriber.cancel()
            self.history.held = set()
            self.history.release()
            subscriber.room.callback(None)
            self.assertEqual((subscriber.told, subscriber.ended), (told, []))
        self.assertEqual(self.hub.subscribers, 0)
        self.assertEqual(self.hub.replays.tokens, hub.MAX_REPLAYS)

    def test_thousands_who_gave_up_do_not_end_the_replays_of_others(self) -> None:
        """While the store hangs they wait for a slot and leave; then every slot is free again."""
        self.keep(5)
        self.subscribed()
        self.history.held = {"read"}
        for _ in range(3):
            storm = [self.subscribed(EARLIEST) for _ in range(1500)]
            for subscriber in storm:
                subscriber.cancel()
            late = self.subscribed(EARLIEST)
            self.history.release()
            self.history.release()
            self.assertEqual(late.seqs, [1, 2, 3, 4, 5])
        self.assertEqual(self.hub.replays.tokens, hub.MAX_REPLAYS)
        self.assertEqual(self.hub.subscribers, 4)

    def test_a_replay_that_fails_ends_its_subscriber(self) -> None:
        """It is told why, and may come back."""
        self.keep(5)
        self.subscribed()
        self.history.error = Unavailable()
        subscriber = self.subscribed(EARLIEST)
        self.assertEqual(subscriber.ended, [self.history.error])
        self.assertEqual(self.hub.subscribers, 1)

    def test_a_replay_that_fails_after_its_subscriber_left_tells_nobody(self) -> None:
        """It may have come back meanwhile."""
        self.keep(5)
        self.subscribed()
        self.history.held = {"read"}
        opened = self.successResultOf(self.hub.admit("a"))
        subscriber = Recorder()
        subscriber.subscribe(opened, Cursor("e100", 1))
        subscriber.cancel()
        subscriber.subscribe(opened, None)
        self.history.release(Unavailable())
        self.assertEqual(subscriber.ended, [])
        self.publish()
        self.assertEqual(subscriber.seqs, [6])

    def test_stopping_ends_replays_that_wait_for_this_instance(self) -> None:
        """None goes round for ever."""
        self.subscribed()
        self.keep(5)
        self.history.held = {"read"}
        self.subscribed(Cursor("e100", 4))
        self.hub.stop()
        self.history.held = set()
        self.history.release()
        self.settle()
        self.assertEqual((self.hub.subscribers, self.clock.getDelayedCalls()), (0, []))


class FanOutTests(CoreCase):
    """Everyone gets everything once, and nobody spoils it for others."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(channel, "DELIVERIES_PER_TURN", 4)

    def test_a_burst_is_one_write_for_each_subscriber(self) -> None:
        """Coalescing is what makes it fast."""
        subscriber = self.subscribed()
        self.publish(50)
        self.assertEqual(subscriber.batches, [50])

    def test_a_large_fan_out_gives_the_reactor_back(self) -> None:
        """A slice a turn; another account is served between two of them."""
        crowd = [self.subscribed() for _ in range(10)]
        other = self.subscribed(account="b")
        self.publish()
        self.publish(account="b")
        self.assertEqual([len(each.events) for each in crowd], [1] * 4 + [0] * 6)
        self.assertEqual(len(other.events), 1)
        self.settle()
        self.assertEqual([each.seqs for each in crowd], [[1]] * 10)

    def test_many_writes_to_few_subscribers_give_the_reactor_back_too(self) -> None:
        """A long backlog is not sent on in one go."""
        subscriber = self.subscribed()
        self.subscribed()
        self.publish(10, payload=b'"data":"%b"' % (b"x" * 200_000))
        self.assertLess(len(subscriber.events), 10)
        self.publish()
        self.settle()
        self.assertEqual(subscriber.seqs, list(range(1, 12)))

    def test_what_arrives_during_a_large_fan_out_goes_out_together_after_it(self) -> None:
        """In order, and in one write."""
        crowd = [self.subscribed() for _ in range(10)]
        for _ in range(5):
            self.publish()
        self.settle()
        self.assertEqual(
            [(each.seqs, each.batches) for each in crowd], [([1, 2, 3, 4, 5], [1, 4])] * 10
        )

    def test_who_joins_during_a_large_fan_out_gets_each_event_once(self) -> None:
        """Live, or by replay; and so do those who leave and come back with their cursor."""
        crowd = [self.subscribed() for _ in range(10)]
        self.publish()
        fresh = self.subscribed()
        replayed = self.subscribed(Cursor("e100", 0))
        opened = self.successResultOf(self.hub.admit("a"))
        last = crowd.pop()
        last.cancel()
        last.subscribe(opened, last.cursor)
        self.settle()
        self.publish()
        self.settle()
        self.assertEqual((fresh.seqs, replayed.seqs, last.seqs), ([2], [1, 2], [1, 2]))
        self.assertEqual([each.seqs for each in crowd], [[1, 2]] * 9)

    def test_who_leaves_and_comes_back_during_a_fan_out_gets_no_event_twice(self) -> None:
        """It begins after the event whose delivery is under way."""
        crowd = [self.subscribed() for _ in range(10)]
        self.publish()
        last = crowd.pop()
        last.cancel()
        last.subscribe(self.successResultOf(self.hub.admit("a")), None)
        self.settle()
        self.assertEqual(last.told[-1], ("opened", Cursor("e100", 1)))
        self.assertEqual(last.seqs, [])

    def test_who_leaves_during_a_fan_out_is_told_nothing_more(self) -> None:
        """Be it by its own doing or by a neighbour's, in the same slice or a later one."""
        crowd = [self.subscribed() for _ in range(10)]

        def part(batch: Delivery) -> None:
            for each in (crowd[0], crowd[1], crowd[8]):
                each.cancel()

        crowd[0].on_deliver = part
        self.publish(2)
        self.settle()
        self.publish()
        self.settle()
        self.assertEqual([each.seqs for each in (crowd[0], crowd[1], crowd[8])], [[1, 2], [], []])
        self.assertEqual({tuple(each.seqs) for each in crowd[2:8]}, {(1, 2, 3)})
        self.assertEqual(self.hub.subscribers, 7)

    def test_one_that_raises_is_dropped_and_the_others_do_not_notice(self) -> None:
        """It is told to end, and what it raises then is logged as well."""
        bad, good = self.subscribed(), self.subscribed()
        bad.on_deliver = lambda batch: 1 / 0  # type: ignore[assignment,return-value]
        bad.end = lambda error: {}["x"]  # type: ignore[method-assign]
        self.publish(2)
        self.publish()
        self.assertEqual((good.seqs, bad.seqs), ([1, 2, 3], [1, 2]))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_one_that_raises_when_it_is_told_where_it_stands_is_dropped(self) -> None:
        """Live, in a replay and at a gap alike."""
        self.publish(3)
        for after in (None, Cursor("e100", 1), Cursor("e1", 1)):
            bad = Recorder()
            bad.opened = lambda cursor: 1 / 0  # type: ignore[method-assign,assignment,return-value]
            bad.subscribe(self.successResultOf(self.hub.admit("a")), after)
            self.settle()
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1, str(after))
            self.assertEqual((len(bad.ended), bad.told), (1, []), str(after))
        self.assertEqual(self.hub.subscribers, 0)

    def test_an_event_published_from_within_a_delivery_comes_after_it(self) -> None:
        """For everyone."""
        first, second = self.subscribed(), self.subscribed()
        first.on_deliver = lambda batch: (
            self.publish() and None if batch.events[0].seq == 1 else None
        )
        self.publish()
        self.assertEqual((first.seqs, second.seqs), ([1, 2], [1, 2]))

    def test_a_whisper_reaches_who_is_live_here_and_moves_nobody(self) -> None:
        """It has no place in the history, so no cursor."""
        subscriber = self.subscribed()
        self.assertEqual(self.hub.deliver_ephemeral([draft("w")]), 1)
        self.assertEqual(self.hub.deliver_ephemeral([draft("w", "nobody")]), 0)
        self.publish()
        self.assertEqual(
            [(each.epoch, each.seq) for each in subscriber.events], [("", 0), ("e100", 1)]
        )


class HealTests(CoreCase):
    """Whatever a relay loses, doubles or turns round."""

    def test_a_hole_is_fetched_before_what_comes_after_it(self) -> None:
        """And what comes twice is not delivered twice."""
        subscriber = self.subscribed()
        events = self.keep(5)
        self.hub.publish([events[1], events[4]])
        self.assertEqual(subscriber.seqs, [1, 2, 3, 4, 5])
        self.hub.publish(events)
        self.assertEqual(subscriber.seqs, [1, 2, 3, 4, 5])

    def test_a_hole_that_shows_while_another_is_fetched_is_not_forgotten(self) -> None:
        """The answer under way may be older than what is wanted now."""
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
        """One question for all accounts, and one read for those that are behind."""
        self.assertEqual(self.ran(self.hub.check()), 0)
        self.assertEqual(self.history.count("heads"), 0)
        late, fine = self.subscribed(), self.subscribed(account="b")
        self.keep(600)
        self.assertEqual(self.ran(self.hub.check()), 1)
        self.assertEqual(late.seqs, list(range(1, 601)))
        self.assertEqual(fine.events, [])
        self.assertEqual(self.ran(self.hub.check()), 0)

    def test_a_check_that_fails_is_tried_again_by_the_next(self) -> None:
        """Nothing is lost with it."""
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

    def test_many_who_ask_for_a_check_get_one(self) -> None:
        """
        While one is under way, all further wishes are one more: peers that ask again and again cost
        no more.
        """
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

    def test_who_is_too_far_behind_is_told_of_a_gap(self) -> None:
        """The history does not reach back to where this instance stands."""
        subscriber = self.subscribed()
        self.keep(1500)
        self.hub.check_soon()
        self.publish()
        self.assertEqual([word[0] for word in subscriber.told], ["opened", "missed", "event"])
        self.assertEqual(subscriber.told[1][1], Cursor("e100", 0))
        self.assertEqual(subscriber.seqs, [1501])

    def test_a_numbering_begun_anew_is_a_gap_and_then_goes_on(self) -> None:
        """An event of the new one is enough to notice."""
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

    def test_a_history_put_back_from_a_backup_is_a_gap(self) -> None:
        """Its numbers come again, with other events."""
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
        crowd = [self.subscribed() for _ in range(6)]
        self.keep(3)
        caught_up = self.successResultOf(self.hub.admit("a")).catch_up()
        self.assertNoResult(caught_up)
        self.assertEqual(crowd[-1].seqs, [])
        self.settle()
        self.successResultOf(caught_up)
        self.assertEqual([each.seqs for each in crowd], [[1, 2, 3]] * 6)

    def test_a_cursor_of_a_history_restored_from_a_backup_is_no_endless_replay(self) -> None:
        """The history ends before this instance knows it: the live ones learn of it first."""
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

    def test_an_event_that_comes_before_the_answer_keeps_its_place(self) -> None:
        """The place before the first event had another name, and the first event has come since."""
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

    def test_a_gap_that_closes_while_a_fan_out_is_under_way_is_none(self) -> None:
        """Late events led on from where we stood: nobody is sent back."""
        self.patch(channel, "DELIVERIES_PER_TURN", 2)
        crowd = [self.subscribed() for _ in range(6)]
        events = [*self.publish(), *self.keep(1500)]
        self.hub.publish([events[900]])  # the answer to what is missing before it: too old
        events += self.keep(3)
        self.hub.publish(events)
        self.settle()
        for each in crowd:
            self.assertEqual(each.seqs, list(range(1, 1505)))
            self.assertEqual({word[0] for word in each.told}, {"opened", "event"})


class LifeTests(CoreCase):
    """Channels open and close, and leave nothing behind."""

    def test_a_channel_lingers_and_then_its_hook_is_released(self) -> None:
        """Who comes back in time finds it open."""
        opened = self.successResultOf(self.hub.admit("a"))
        subscriber = Recorder()
        subscriber.subscribe(opened, None)
        subscriber.cancel()
        subscriber.cancel()
        self.clock.advance(hub.LINGER - 1)
        self.assertTrue(self.hub.serves("a"))
        again = self.subscribed()
        self.clock.advance(hub.LINGER * 2)
        self.assertEqual(self.history.count("ensure"), 1)
        again.cancel()
        self.clock.advance(hub.LINGER)
        self.assertEqual(
            (self.hub.accounts, self.hooks.unregistered, self.hub.count("a")), ([], ["a"], 0)
        )
        self.assertEqual((self.clock.getDelayedCalls(), self.hub.subscribers), ([], 0))

    def test_the_hook_is_in_before_the_position_is_read(self) -> None:
        """Else an event could fall between the two."""
        registered = self.hooks.registered = Deferred[None]()
        admitted = self.hub.admit("a")
        self.assertEqual(self.history.calls, [])
        registered.callback(None)
        self.successResultOf(admitted)

    def test_a_channel_that_cannot_be_opened_leaves_nothing_behind(self) -> None:
        """All who wait are told, the hook is taken out, and the next one may try."""
        self.history.held = {"ensure"}
        waiting = [self.hub.admit("a") for _ in range(3)]
        self.history.release(Unavailable())
        for each in waiting:
            self.failureResultOf(each, Unavailable)
        self.assertEqual(
            (self.hub.accounts, self.hooks.unregistered, self.hub.waiting), ([], ["a"], 0)
        )
        self.history.held = set()
        self.subscribed()

    def test_an_error_that_nobody_expected_is_ours(self) -> None:
        """It is logged, and the client learns only that."""
        self.history.error = KeyError("x")
        error = self.failureResultOf(self.hub.admit("a"), PlumberError)
        self.assertEqual(error.value.status, 500)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_a_closed_channel_takes_no_subscriber(self) -> None:
        """It would never be told anything."""
        opened = self.successResultOf(self.hub.admit("a"))
        self.clock.advance(hub.LINGER)
        with self.assertRaises(RuntimeError):
            opened.subscribe(Recorder())

    def test_a_subscription_that_is_cancelled_before_it_starts_is_told_nothing(self) -> None:
        """To start it then is harmless."""
        subscriber = Recorder()
        subscription = self.successResultOf(self.hub.admit("a")).subscribe(subscriber)
        subscription.cancel()
        subscription.start(EARLIEST)
        self.publish()
        self.assertEqual((subscriber.told, self.hub.subscribers), ([], 0))

    def test_who_is_admitted_while_another_stops_the_hub_is_refused(self) -> None:
        """Although both waited for the same channel."""
        self.history.held = {"position", "ensure"}
        first, second = self.hub.admit("a"), self.hub.admit("a")
        first.addCallback(lambda _: self.hub.stop())
        self.history.release()
        self.failureResultOf(second, Unavailable)
        self.assertEqual((self.hub.waiting, self.hub.accounts), (0, []))

    def test_beyond_the_limit_nobody_is_admitted(self) -> None:
        """Those whose channel is about to open count as well."""
        self.hub = self.make_hub(subscribers=2)
        self.subscribed()
        self.history.held = {"ensure"}
        self.hub.admit("b")
        self.failureResultOf(self.hub.admit("c"), TooManyRequests)
        self.history.release()

    def test_an_admission_can_be_cancelled(self) -> None:
        """The others get their channel, and the limit has room again."""
        self.history.held = {"ensure"}
        gone, stays = self.hub.admit("a"), self.hub.admit("a")
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.assertEqual(self.hub.waiting, 1)
        self.history.release()
        self.assertTrue(self.successResultOf(stays))
        self.assertEqual(self.hub.waiting, 0)

    def test_who_gives_up_while_it_opens_leaves_a_channel_that_closes(self) -> None:
        """Admitted, but never subscribed."""
        self.successResultOf(self.hub.admit("a"))
        self.clock.advance(hub.LINGER)
        self.assertEqual((self.hub.accounts, self.clock.getDelayedCalls()), ([], []))

    def test_stopping_refuses_closes_and_forgets(self) -> None:
        """Also what is about to open."""
        subscriber = self.subscribed()
        self.history.held = {"ensure"}
        opening = self.hub.admit("b")
        self.hub.stop()
        self.failureResultOf(opening, Unavailable)
        self.failureResultOf(self.hub.admit("a"), Unavailable)
        self.history.release()
        self.publish()
        self.assertEqual((subscriber.seqs, self.hub.subscribers, self.hub.accounts), ([], 0, []))
        self.assertEqual(sorted(self.hooks.unregistered), ["a", "b"])
        self.assertEqual(self.clock.getDelayedCalls(), [])


class StormTests(CoreCase):
    """Everything at once, by seed."""

    def test_whoever_comes_back_with_its_cursor_has_everything_once_and_in_order(self) -> None:
        """
        Subscribers come, go, read slowly and return while events are lost, doubled and turned
        round.
        """
        self.patch(channel, "DELIVERIES_PER_TURN", 3)
        for seed in range(25):
            self._storm(random.Random(seed))

    def _storm(self, dice: random.Random) -> None:
        self.setUp()
        self.hub = self.make_hub(linger=1.0)
        accounts = ["a", "b"]
        kept: dict[str, list[int]] = {account: [] for account in accounts}
        people: list[list[Recorder]] = []  # each person is a chain of connections
        connected: set[int] = set()
        late: list[Any] = []
        for _ in range(300):
            move = dice.randrange(8)
            account = dice.choice(accounts)
            if move < 3:
                events = self.keep(dice.randrange(1, 4), account)
                kept[account] += [each.seq for each in events]
                late += [each for each in events if dice.random() < 0.9] + [
                    each for each in events if dice.random() < 0.3
                ]
            elif move == 3:
                dice.shuffle(late)
                cut = dice.randrange(len(late) + 1)
                self.hub.publish(late[:cut])
                del late[:cut]
            elif move == 4 and len(people) < 15:
                person = len(people)
                self._come(dice, account, [], people)
                connected.add(person)
            elif move == 5 and connected:
                person = dice.choice(sorted(connected))
                connected.discard(person)
                people[person][-1].cancel()
            elif move == 6:
                for person in range(len(people)):
                    if person not in connected and dice.random() < 0.5:
                        self._come(dice, people[person][0].account, people[person], people)
                        connected.add(person)
            else:
                self._make_room(dice, people)
                self.clock.advance(dice.choice([0, 0, 0.6]))
        self._come_to_rest(people, connected)
        for chain in people:
            stood = next(word[1].seq for word in chain[0].told if word[0] == "opened")
            seen = [seq for connection in chain for seq in connection.seqs]
            self.assertEqual(seen, [seq for seq in kept[chain[0].account] if seq > stood])

    def _come(
        self, dice: random.Random, account: str, chain: list[Recorder], people: list[list[Recorder]]
    ) -> None:
        told = [connection for connection in chain if connection.told]
        after = told[-1].cursor if told else dice.choice([None, EARLIEST])
        subscriber = Recorder()
        if dice.random() < 0.3:
            subscriber.room = Deferred()
        if not chain:
            people.append(chain)
        chain.append(subscriber)
        subscriber.subscribe(self.successResultOf(self.hub.admit(account)), after)

    def _make_room(self, dice: random.Random | None, people: list[list[Recorder]]) -> None:
        for chain in people:
            for subscriber in chain:
                if subscriber.room is not None and (dice is None or dice.random() < 0.5):
                    room, subscriber.room = subscriber.room, None
                    room.callback(None)

    def _come_to_rest(self, people: list[list[Recorder]], connected: set[int]) -> None:
        self._make_room(None, people)
        for person, chain in enumerate(people):
            if person not in connected:
                self._come(random.Random(9), chain[0].account, chain, people)
        self._make_room(None, people)
        self.hub.check_soon()
        self.settle()
        for chain in people:
            chain[-1].cancel()
        self.clock.advance(2)
        self.assertEqual(
            (self.hub.subscribers, self.hub.accounts, self.clock.getDelayedCalls()), (0, [], [])
        )
