"""Subscriptions: they join, are replayed, go live and are cancelled."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from twisted.internet.defer import Deferred, succeed

from asyncplumber.core import hub
from asyncplumber.errors import Unavailable
from asyncplumber.event import EARLIEST, Cursor, Stored
from asyncplumber.stores.memory import MemoryHistory
from asyncplumber.wire.delivery import Delivery
from asyncplumber.wire.envelope import envelope
from asyncplumber.wire.sse import record
from harness.core import CoreCase, Recorder, draft
from harness.garbage import collect_only_new_objects


class SubscribeTests(CoreCase):
    """Subscribing, from now on or after a cursor."""

    def test_without_a_cursor_live_events_only(self) -> None:
        """It is told its cursor, and gets what comes after."""
        self.keep(3)
        subscriber = self.subscribed()
        self.publish(2)
        self.assertEqual(subscriber.told[0], ("opened", Cursor("e100", 3)))
        self.assertEqual(subscriber.seqs, [4, 5])

    def test_a_cursor_brings_what_was_missed_and_then_live_events(self) -> None:
        """In pages, each once."""
        self.keep(600)
        subscriber = self.subscribed(Cursor("e100", 10))
        self.publish()
        self.assertEqual(subscriber.told[0], ("opened", Cursor("e100", 10)))
        self.assertEqual(subscriber.seqs, list(range(11, 602)))
        self.assertLess(len(subscriber.batches), 5)

    def test_earliest_brings_all_that_is_kept(self) -> None:
        """Even if that is nothing."""
        self.keep(1200)
        self.assertEqual(self.subscribed(EARLIEST).seqs, list(range(201, 1201)))
        self.assertEqual(self.subscribed(EARLIEST, "other").told, [("opened", Cursor("e100", 0))])

    def test_a_cursor_that_cannot_be_replayed_is_a_gap(self) -> None:
        """It is too old, beyond the head, or of another epoch; after the gap it is live."""
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
        """The live subscribers get the events, and the new one does not get them twice."""
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

    def test_events_that_arrive_while_opening_are_fetched_at_once(self) -> None:
        """The position did not count them, and event 1 never arrived."""
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
        """It begins after the last event that was delivered."""
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

    def test_earliest_is_asked_again_if_it_was_deleted_meanwhile(self) -> None:
        """There is no gap for a subscriber that wants what there is."""
        self.keep(1000)
        self.subscribed()
        self.history.held = {"read"}
        subscriber = self.subscribed(EARLIEST)
        self.publish(100)
        self.history.held = set()
        self.history.release()
        self.assertEqual(subscriber.seqs, list(range(101, 1101)))

    def test_a_returning_subscriber_is_told_once_that_the_numbering_began_anew(self) -> None:
        """Although this instance did not know it yet."""
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
    """Accounts without events have no row in the store; they share a place before the first one."""

    new_epoch = staticmethod(lambda now: f"e{int(now):09}")  # they sort by time

    def renew(self) -> None:
        """Give that place another name."""
        self.clock.advance(self.retention.renewal + 1)

    def test_readers_leave_nothing_in_the_history(self) -> None:
        """They ask for live events, for all that is kept, or for what follows a cursor."""
        for number, after in enumerate(
            (None, EARLIEST, Cursor("e000000100", 0), Cursor("e000000100", 7))
        ):
            self.subscribed(after, f"stranger {number}")
            self.settle()
        self.ran(self.hub.check())
        self.assertEqual(self.store.history.accounts, [])

    def test_the_first_event_arrives_whatever_its_epoch(self) -> None:
        """With or without a comparison of positions before it, and there is no gap."""
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
        """The first event may have an older epoch than ours; the next comparison finds it."""
        self.subscribed(account="other")
        self.renew()
        subscriber = self.subscribed()
        writer = MemoryHistory(self.retention, self.clock, lambda now: "e000000100")
        stored = self.successResultOf(writer.append([draft("first"), draft("second")]))
        mixed = writer.snapshot()._replace(epochs=self.store.history.snapshot().epochs)
        self.store.history.restore(mixed)
        self.hub.publish([each.event for each in stored if isinstance(each, Stored)])
        self.ran(self.hub.check())
        self.settle()
        self.publish()
        self.assertEqual(
            [str(word[1].cursor) for word in subscriber.told[1:]],
            [f"e000000100.{seq}" for seq in (1, 2, 3)],
        )

    def test_a_subscriber_returns_to_an_account_without_events(self) -> None:
        """With the former name of the first place, before and after the first event."""
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
    """A replay follows its reader's pace, and slow readers do not keep others out."""

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

    def test_a_page_is_no_larger_than_what_may_be_queued_for_the_client(self) -> None:
        """At the limit: one byte more makes another page, and one event is always a page."""
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
        """No event is held for a client that does not read; its transport has the bytes."""
        read = self.store.history.read
        pages: list[weakref.ref[Any]] = []

        class Page(list[Any]):
            """A list with weak references."""

        def remembered(*words: Any) -> Deferred[Any]:
            events: Any = self.successResultOf(read(*words))
            page = Page(events)
            pages.append(weakref.ref(page))
            return succeed(page)

        collect_only_new_objects(self)
        self.patch(self.store.history, "read", remembered)
        self.keep(600)
        subscriber = Recorder()
        subscriber.room = Deferred()
        subscriber.subscribe(self.successResultOf(self.hub.admit("a")), EARLIEST)
        gc.collect()
        self.assertEqual((subscriber.batches, [page() for page in pages]), ([256], [None]))

    def test_readers_that_do_not_read_keep_nobody_from_returning(self) -> None:
        """They hold no slot while they wait."""
        self.patch(hub, "MAX_REPLAYS", 2)
        self.hub = self.make_hub()
        self.keep(600)
        opened = self.successResultOf(self.hub.admit("a"))
        for _ in range(5):
            stuck = Recorder()
            stuck.room = Deferred()
            stuck.subscribe(opened, EARLIEST)
        self.assertEqual(len(self.subscribed(EARLIEST).seqs), 600)

    def test_pages_are_read_a_few_at_a_time(self) -> None:
        """Many returning clients are served in turns."""
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
        """While a page is read, and while there is no room."""
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

    def test_thousands_that_gave_up_do_not_end_the_replays_of_others(self) -> None:
        """They wait for a slot while the store hangs, and leave; then every slot is free again."""
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
        """It is told why, and may return."""
        self.keep(5)
        self.subscribed()
        self.history.error = Unavailable()
        subscriber = self.subscribed(EARLIEST)
        self.assertEqual(subscriber.ended, [self.history.error])
        self.assertEqual(self.hub.subscribers, 1)

    def test_a_replay_that_fails_after_its_subscriber_left_is_silent(self) -> None:
        """The subscriber may have returned meanwhile."""
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
        """None of them continues."""
        self.subscribed()
        self.keep(5)
        self.history.held = {"read"}
        self.subscribed(Cursor("e100", 4))
        self.hub.stop()
        self.history.held = set()
        self.history.release()
        self.settle()
        self.assertEqual((self.hub.subscribers, self.clock.getDelayedCalls()), (0, []))
