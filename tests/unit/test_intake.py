"""What a POST means: kept first, then delivered here and relayed there, then answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from asyncplumber.core import channel as channel_module
from asyncplumber.core import waiting_posts
from asyncplumber.core.intake import ANSWER_TIMEOUT, LATE_CHECK, Intake
from asyncplumber.core.waiting_posts import Outcome
from asyncplumber.errors import BadRequest, PlumberError, TooManyRequests, Unavailable
from asyncplumber.event import Cursor, Event, Instance, Stored
from asyncplumber.interfaces import Deliver, IRelay, Reached
from asyncplumber.sending import Receipt
from harness.core import CoreCase, draft


def seq_of(receipt: Receipt) -> int:
    return Cursor.parse(receipt.cursor).seq


class IntakeCase(CoreCase):
    """An intake that is alone."""

    def setUp(self) -> None:
        super().setUp()
        self.intake = Intake(self.append_alone, self.hub, self.clock)

    def stop(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.intake.stop())

    def appends(self) -> list[list[str]]:
        """The ids of each append."""
        return [[each.id for each in call[1]] for call in self.history.calls if call[0] == "append"]

    def posted(self, *keys: str) -> Deferred[Any]:
        return self.intake.accept([draft(key) for key in keys])


class CommitTests(IntakeCase):
    """Group commit."""

    def test_a_turn_is_one_append_in_order(self) -> None:
        """And each POST gets its own receipts."""
        posts = [self.posted("1"), self.posted("2", "3"), self.posted("4")]
        self.assertEqual(self.appends(), [])
        self.turn()
        self.assertEqual(self.appends(), [["1", "2", "3", "4"]])
        seqs = [[seq_of(receipt) for receipt in self.successResultOf(post)] for post in posts]
        self.assertEqual(seqs, [[1], [2, 3], [4]])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_append_is_under_way_at_a_time(self) -> None:
        """What arrives meanwhile goes together into the next."""
        self.history.held = {"append"}
        first = self.posted("1")
        self.turn()
        rest = [self.posted("2"), self.posted("3")]
        self.turn(3)
        self.assertEqual(self.appends(), [["1"]])
        self.history.release()
        self.turn()
        self.assertEqual(self.appends(), [["1"], ["2", "3"]])
        self.successResultOf(first)
        self.assertNoResult(rest[0])
        self.history.release()
        for post in rest:
            self.successResultOf(post)

    def test_each_post_has_a_share_of_a_group_in_turn(self) -> None:
        """
        Nobody waits for all of somebody else's; within a POST, and among lone events, the order
        holds.
        """
        self.patch(waiting_posts, "MAX_GROUP", 4)
        self.patch(waiting_posts, "FAIR_SHARE", 2)
        large = self.posted(*"abcdefg")
        lone = [self.posted(key) for key in "12345"]
        self.settle()
        self.assertEqual(self.appends(), [[*"ab12"], [*"345c"], [*"defg"]])
        self.assertEqual([receipt.id for receipt in self.successResultOf(large)], [*"abcdefg"])
        self.assertEqual([self.successResultOf(post)[0].id for post in lone], [*"12345"])

    def test_a_large_post_that_is_alone_fills_its_groups(self) -> None:
        """A share is for when others wait."""
        self.patch(waiting_posts, "MAX_GROUP", 4)
        self.patch(waiting_posts, "FAIR_SHARE", 1)
        self.posted(*"abcdef")
        self.settle()
        self.assertEqual(self.appends(), [[*"abcd"], [*"ef"]])

    def test_what_goes_wrong_in_the_midst_of_a_post_ends_it(self) -> None:
        """It is answered once, its rest is not appended, and the others are."""
        self.patch(waiting_posts, "MAX_GROUP", 2)
        self.patch(waiting_posts, "FAIR_SHARE", 1)
        self.history.held = {"append"}
        large, lone = self.posted(*"abc"), self.posted("1")
        self.turn()
        later = self.posted("2")
        self.history.release(Unavailable())
        self.failureResultOf(large, Unavailable)
        self.failureResultOf(lone, Unavailable)
        self.history.held = set()
        self.settle()
        self.history.release()
        self.settle()
        self.successResultOf(later)
        self.assertNotIn("c", [id for ids in self.appends() for id in ids])
        self.assertIsNone(self.intake.is_full(waiting_posts.MAX_WAITING_EVENTS))

    def test_events_that_wait_are_bounded_in_number(self) -> None:
        """
        Whatever their size: at the bound a POST is taken, beyond it is told to come back, and
        nothing of it is kept.
        """
        self.intake = Intake(self.append_alone, self.hub, self.clock, max_waiting_events=3)
        self.history.held = {"append"}
        first = self.posted("1", "2")
        error = self.failureResultOf(self.posted("3", "4"), TooManyRequests)
        self.assertEqual(error.value.retry_after, 1)
        last = self.posted("3")
        self.failureResultOf(self.posted("4"), TooManyRequests)
        self.settle()
        self.history.release()
        self.settle()
        self.successResultOf(first)
        self.successResultOf(last)
        self.assertEqual(self.appends(), [["1", "2", "3"]])

    def test_a_post_of_more_than_the_bound_is_taken_where_nothing_waits(self) -> None:
        """Or it could never be."""
        self.intake = Intake(self.append_alone, self.hub, self.clock, max_waiting_events=3)
        post = self.posted(*"abcdef")
        self.settle()
        self.assertEqual(len(self.successResultOf(post)), 6)

    def test_too_much_that_waits_is_refused_until_there_is_room(self) -> None:
        """By bytes, with a time to come back."""
        self.intake = Intake(self.append_alone, self.hub, self.clock, max_waiting_bytes=10)
        self.history.held = {"append"}
        self.posted("1", "2")
        error = self.failureResultOf(self.posted("3"), TooManyRequests)
        self.assertEqual(error.value.retry_after, 1)
        self.turn()
        self.failureResultOf(self.posted("3"), TooManyRequests)
        self.history.release()
        post = self.posted("3")
        self.turn()
        self.history.release()
        self.successResultOf(post)

    def test_receipts_count_those_who_got_it(self) -> None:
        """Alone, an instance counts itself only if somebody listens."""
        unheard = self.posted("1")
        self.turn()
        subscriber = self.subscribed()
        heard = self.posted("2")
        self.turn()
        for post, count in ((unheard, 0), (heard, 1)):
            [receipt] = self.successResultOf(post)
            self.assertEqual(
                (receipt.subscribers, receipt.instances), (count, {"ok": count, "failed": 0})
            )
        self.assertEqual(subscriber.seqs, [2])

    def test_a_receipt_counts_those_who_were_given_the_event_when_they_were(self) -> None:
        """Who left since got it; who came since did not; a retry is told the same."""
        self.intake = Intake(self.append, self.hub, self.clock)
        self.registry.held = {"instances"}
        gone = [self.subscribed() for _ in range(3)]
        post = self.posted("1")
        self.turn()
        for each in gone:
            self.assertEqual(each.seqs, [1])
            each.cancel()
        late = self.subscribed()
        self.registry.release()
        again = self.posted("1")
        self.turn()
        self.registry.release()
        for receipt in (self.successResultOf(post)[0], self.successResultOf(again)[0]):
            self.assertEqual((receipt.subscribers, receipt.instances), (3, {"ok": 1, "failed": 0}))
        self.assertEqual(late.seqs, [])

    def test_who_is_too_slow_to_be_given_the_event_is_not_counted(self) -> None:
        """It left while it was served."""
        slow, quick = self.subscribed(), self.subscribed()
        slow.on_deliver = lambda batch: slow.cancel()
        post = self.posted("1")
        self.turn()
        self.assertEqual((self.successResultOf(post)[0].subscribers, quick.seqs), (1, [1]))

    def test_an_event_that_waits_for_its_turn_counts_those_who_will_be_given_it(self) -> None:
        """
        A large fan-out is under way, and no receipt waits for its end; who got it in the first
        place is counted.
        """
        self.patch(channel_module, "DELIVERIES_PER_TURN", 2)
        for _ in range(5):
            self.subscribed()
        first, second = self.posted("1"), self.posted("2")
        self.turn()
        third = self.posted("3")
        self.turn()
        counts = [self.successResultOf(post)[0].subscribers for post in (first, second, third)]
        self.assertEqual(counts, [5, 5, 5])

    def test_a_duplicate_is_answered_with_the_first_ones_place(self) -> None:
        """And not delivered again, nor counted again."""
        subscriber = self.subscribed()
        first, second = self.posted("1"), self.posted("1")
        self.turn()
        third = self.posted("1")
        self.turn()
        receipts = [self.successResultOf(post)[0] for post in (first, second, third)]
        self.assertEqual(
            [(seq_of(receipt), receipt.duplicate) for receipt in receipts],
            [(1, False), (1, True), (1, True)],
        )
        self.assertEqual((subscriber.seqs, self.intake.accepted), ([1], 1))

    def test_a_duplicate_heals_a_death_between_keeping_and_sending(self) -> None:
        """The first POST was kept, and then its process died."""
        subscriber = self.subscribed()
        self.successResultOf(self.store.history.append([draft("1")]))
        self.posted("1")
        self.turn()
        self.assertEqual(subscriber.seqs, [1])

    def test_nothing_is_accepted_as_nothing(self) -> None:
        """An empty list is no error."""
        post = self.posted()
        self.turn()
        self.assertEqual(self.successResultOf(post), [])


class FailureTests(IntakeCase):
    """What goes wrong goes to whom it belongs."""

    def test_what_befalls_one_draft_befalls_its_post_alone(self) -> None:
        """Its neighbours in the group are kept and sent."""
        subscriber = self.subscribed()
        stored: list[Any] = self.successResultOf(
            self.store.history.append([draft("1"), draft("3")])
        )
        self.history.held = {"append"}
        posts = [self.posted("1"), self.posted("2"), self.posted("3")]
        self.turn()
        answer = self.history.waiting.pop()[0]
        answer.callback(
            [
                Stored(stored[0].event, False),
                BadRequest("not this one"),
                Stored(stored[1].event, False),
            ]
        )
        self.failureResultOf(posts[1], BadRequest)
        self.assertEqual([seq_of(self.successResultOf(posts[n])[0]) for n in (0, 2)], [1, 2])
        self.assertEqual(subscriber.seqs, [1, 2])

    def test_an_outage_is_told_to_all_and_the_next_append_is_tried(self) -> None:
        """Nothing waits behind it for ever."""
        self.history.failures = 1
        posts = [self.posted("1"), self.posted("2")]
        self.turn()
        for post in posts:
            self.failureResultOf(post, Unavailable)
        after = self.posted("1")
        self.turn()
        self.successResultOf(after)

    def test_what_nobody_expected_is_ours_and_logged(self) -> None:
        """Be it failed or raised; the intake goes on."""

        def broken(drafts: Any) -> Any:
            raise KeyError("x")

        for append in (lambda drafts: fail(KeyError("x")), broken, lambda drafts: succeed(None)):
            self.intake._append = append
            error = self.failureResultOf(self._turned("1"), PlumberError)
            self.assertEqual(error.value.status, 500)
            self.assertEqual(len(self.flushLoggedErrors(KeyError, AttributeError)), 1)
        self.intake._append = self.append_alone
        self.successResultOf(self._turned("1"))
        self.successResultOf(self.stop())

    def test_an_answer_that_cannot_be_given_harms_no_other(self) -> None:
        """The POSTs of one append are answered one after the other, each for itself."""

        def broken(outcome: Outcome) -> None:
            raise KeyError("x")

        self.intake.take([draft("1")], broken)
        after = self.posted("2")
        self.turn()
        self.assertEqual(len(self.successResultOf(after)), 1)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.successResultOf(self.stop())

    def _turned(self, key: str) -> Deferred[Any]:
        post = self.posted(key)
        self.turn()
        return post

    def test_stopping_waits_for_what_is_under_way_and_refuses_the_rest(self) -> None:
        """What waits for its turn, and what is with the store."""
        self.history.held = {"append"}
        first = self.posted("1")
        self.turn()
        second = self.posted("2")
        stopped = self.stop()
        self.failureResultOf(self.posted("3"), Unavailable)
        self.history.release()
        self.successResultOf(first)
        self.assertNoResult(stopped)
        self.turn()
        self.history.release(Unavailable())
        self.failureResultOf(second, Unavailable)
        self.assertIsNone(self.successResultOf(stopped))
        self.assertIsNone(self.successResultOf(self.stop()))


class LateTests(IntakeCase):
    """However slow the store, and however many wait, a POST is answered in time."""

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds / LATE_CHECK)):
            self.clock.advance(LATE_CHECK)
            self.ran(self.intake.answer_late())

    def test_a_post_behind_a_hanging_append_waits_no_longer_than_any_other(self) -> None:
        """One that waits for its turn is dropped in time, and its bytes make room."""
        self.intake = Intake(self.append_alone, self.hub, self.clock, max_waiting_bytes=10)
        self.history.held = {"append"}
        first = self.posted("1")
        self.turn()
        self.wait(ANSWER_TIMEOUT - 3 * LATE_CHECK)
        self.assertNoResult(first)
        second = self.posted("2")
        self.wait(3 * LATE_CHECK)
        self.assertEqual(self.failureResultOf(first, Unavailable).value.status, 503)
        self.assertNoResult(second)
        self.wait(ANSWER_TIMEOUT - 3 * LATE_CHECK)
        self.failureResultOf(second, Unavailable)
        third = self.posted("3")
        self.assertNoResult(third)
        self.history.release()
        self.turn()
        self.history.release()
        self.successResultOf(third)
        self.assertEqual(self.appends(), [["1"], ["3"]])

    def test_an_append_under_way_is_answered_in_time_and_may_be_kept_all_the_same(self) -> None:
        """
        The answer is 503, then the store finishes: whoever repeats the POST is told the first one's
        place.
        """
        self.history.held = {"append"}
        late = self.posted("1")
        self.turn()
        self.wait(ANSWER_TIMEOUT)
        self.failureResultOf(late, Unavailable)
        self.history.release()
        self.history.held = set()
        again = self.posted("1")
        self.settle()
        [receipt] = self.successResultOf(again)
        self.assertEqual((seq_of(receipt), receipt.duplicate), (1, True))

    def test_what_is_kept_is_no_503(self) -> None:
        """If the look-up of the other instances hangs, the receipt comes in time, without them."""
        asked: Deferred[Any] = Deferred()
        self.registry.instances = lambda accounts: asked
        self.intake = Intake(self.append, self.hub, self.clock, relay=HeldRelay())
        post = self.posted("1")
        self.turn()
        self.assertNoResult(post)
        self.wait(ANSWER_TIMEOUT)
        [receipt] = self.successResultOf(post)
        self.assertEqual(seq_of(receipt), 1)
        asked.callback({})
        self.successResultOf(self.stop())

    def test_a_stop_does_not_wait_for_a_store_that_hangs(self) -> None:
        """When all are answered nothing is under way."""
        self.history.held = {"append"}
        posts = [self.posted("1")]
        self.turn()
        posts.append(self.posted("2"))
        stopped = self.stop()
        self.wait(ANSWER_TIMEOUT)
        for post in posts:
            self.failureResultOf(post, Unavailable)
        self.assertIsNone(self.successResultOf(stopped))
        self.history.release()


@implementer(IRelay)
class HeldRelay:
    """A relay whose answers the test gives."""

    def __init__(self) -> None:
        self.sent: list[
            tuple[Sequence[Event], Mapping[str, Any], Deferred[dict[str, Reached]]]
        ] = []

    def start(self, deliver: Deliver) -> Deferred[None]:
        return succeed(None)

    def send(
        self, events: Sequence[Event], wanted: Mapping[str, Sequence[Instance]]
    ) -> Deferred[dict[str, Reached]]:
        answer: Deferred[dict[str, Reached]] = Deferred()
        self.sent.append((events, wanted, answer))
        return answer

    def stop(self) -> Deferred[None]:
        return succeed(None)


class RelayTests(IntakeCase):
    """Other instances want the events."""

    def setUp(self) -> None:
        super().setUp()
        self.relay = HeldRelay()
        self.you = self.successResultOf(
            self.store.registry.add_instance(Instance("you", "http://you"))
        )
        self.store.registry.register(self.you, ["a"])
        self.intake = Intake(self.append, self.hub, self.clock, relay=self.relay)

    def receipt(self, post: Deferred[Any]) -> tuple[int, dict[str, int]]:
        [receipt] = self.successResultOf(post)
        return receipt.subscribers, dict(receipt.instances)

    def test_the_registry_is_asked_after_the_event_is_kept(self) -> None:
        """The order is the point: a subscriber that comes in between finds one or the other."""
        order: list[str] = []
        for proxy in (self.history, self.registry):
            proxy.calls = type(
                "Calls", (list,), {"append": lambda _, call: order.append(call[0])}
            )()
        self.posted("1")
        self.turn()
        self.assertEqual(order, ["append", "instances"])

    def test_the_relay_is_given_the_events_of_a_turn_and_what_the_registry_says(self) -> None:
        """Duplicates are sent as well: their first POST may never have been sent."""
        self.posted("1")
        self.posted("2")
        self.turn()
        self.posted("1")
        self.turn()
        [(events, wanted, _), (again, _, _)] = self.relay.sent
        self.assertEqual([each.seq for each in events], [1, 2])
        self.assertEqual(wanted, {"a": [self.you]})
        self.assertEqual([each.seq for each in again], [1])

    def test_a_receipt_adds_up_what_is_here_and_elsewhere(self) -> None:
        """Each account has counts of its own; pending instances are named only if there are any."""
        self.subscribed()
        posts = [self.posted("1"), self.intake.accept([draft("2", "b")])]
        self.turn()
        self.assertNoResult(posts[0])
        self.relay.sent[0][2].callback(
            {"a": Reached(subscribers=3, ok=2, failed=1), "b": Reached(failed=1, pending=2)}
        )
        self.assertEqual(self.receipt(posts[0]), (4, {"ok": 3, "failed": 1}))
        self.assertEqual(self.receipt(posts[1]), (0, {"ok": 0, "failed": 1, "pending": 2}))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_an_account_that_nobody_else_wants_counts_this_instance(self) -> None:
        """With or without subscribers here."""
        self.subscribed()
        posts = [self.posted("1"), self.intake.accept([draft("2", "b")])]
        self.turn()
        self.relay.sent[0][2].callback({})
        self.assertEqual(self.receipt(posts[0]), (1, {"ok": 1, "failed": 0}))
        self.assertEqual(self.receipt(posts[1]), (0, {"ok": 0, "failed": 0}))

    def test_receipts_do_not_share_what_they_are_counted_in(self) -> None:
        """Two receipts of one account differ where one event had a subscriber here and one not."""
        first = self.posted("1")
        self.turn()
        self.subscribed()
        second = self.posted("2")
        self.turn()
        for _, _, answer in self.relay.sent:
            answer.callback({"a": Reached(subscribers=1, ok=1)})
        self.assertEqual(self.receipt(first), (1, {"ok": 1, "failed": 0}))
        self.assertEqual(self.receipt(second), (2, {"ok": 2, "failed": 0}))

    def test_a_relay_that_breaks_its_promise_does_no_harm(self) -> None:
        """It fails: the event is kept, and the receipt comes without the others."""
        post = self.posted("1")
        self.turn()
        self.relay.sent[0][2].errback(KeyError("x"))
        self.assertEqual(self.receipt(post), (0, {"ok": 0, "failed": 0}))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_a_registry_that_is_away_after_the_append_changes_nothing(self) -> None:
        """Accepted means kept; the others find it when they compare positions."""
        subscriber = self.subscribed()
        for error in (Unavailable(), KeyError("x")):
            self.registry.error = error
            post = self.posted(str(error))
            self.turn()
            self.assertEqual(self.receipt(post), (1, {"ok": 1, "failed": 0}))
        self.assertEqual((subscriber.seqs, self.relay.sent), ([1, 2], []))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_the_next_append_does_not_wait_for_the_relay(self) -> None:
        """Slow instances hold up nobody here; stopping waits for their receipts."""
        first = self.posted("1")
        self.turn()
        self.posted("2")
        self.turn()
        self.assertEqual(len(self.appends()), 2)
        stopped = self.stop()
        self.assertNoResult(first)
        self.assertNoResult(stopped)
        for _, _, answer in self.relay.sent:
            answer.callback({})
        self.successResultOf(stopped)
