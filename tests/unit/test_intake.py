"""The way of a POST: kept first, then delivered and relayed, then answered."""

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
    """An intake of an instance that is alone."""

    def setUp(self) -> None:
        super().setUp()
        self.intake = Intake(self.append_alone, self.hub, self.clock)

    def stop(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.intake.stop())

    def appends(self) -> list[list[str]]:
        """Return the ids of the drafts of each append."""
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
        """What arrives meanwhile goes into the next one, together."""
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
        """No POST waits for all of another one.  Within a POST the order holds."""
        self.patch(waiting_posts, "MAX_GROUP", 4)
        self.patch(waiting_posts, "FAIR_SHARE", 2)
        large = self.posted(*"abcdefg")
        lone = [self.posted(key) for key in "12345"]
        self.settle()
        self.assertEqual(self.appends(), [[*"ab12"], [*"345c"], [*"defg"]])
        self.assertEqual([receipt.id for receipt in self.successResultOf(large)], [*"abcdefg"])
        self.assertEqual([self.successResultOf(post)[0].id for post in lone], [*"12345"])

    def test_a_large_post_that_is_alone_fills_its_groups(self) -> None:
        """A share is only for when others wait."""
        self.patch(waiting_posts, "MAX_GROUP", 4)
        self.patch(waiting_posts, "FAIR_SHARE", 1)
        self.posted(*"abcdef")
        self.settle()
        self.assertEqual(self.appends(), [[*"abcd"], [*"ef"]])

    def test_a_failure_in_the_middle_of_a_post_ends_it(self) -> None:
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
        """Up to the bound a POST is taken; beyond it nothing of the POST is kept."""
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
        """Otherwise it could never be taken."""
        self.intake = Intake(self.append_alone, self.hub, self.clock, max_waiting_events=3)
        post = self.posted(*"abcdef")
        self.settle()
        self.assertEqual(len(self.successResultOf(post)), 6)

    def test_waiting_bytes_are_bounded(self) -> None:
        """A POST is refused, with a time to retry, until there is room."""
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

    def test_receipts_count_the_subscribers_that_got_it(self) -> None:
        """An instance counts itself only if it has a subscriber of the account."""
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

    def test_a_receipt_counts_at_the_moment_of_delivery(self) -> None:
        """Later changes do not count, and a retry is told the same."""
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

    def test_a_subscriber_that_leaves_during_delivery_is_not_counted(self) -> None:
        """It was too slow to take the event."""
        slow, quick = self.subscribed(), self.subscribed()
        slow.on_deliver = lambda batch: slow.cancel()
        post = self.posted("1")
        self.turn()
        self.assertEqual((self.successResultOf(post)[0].subscribers, quick.seqs), (1, [1]))

    def test_an_event_that_waits_for_its_turn_counts_who_will_get_it(self) -> None:
        """No receipt waits for the end of a large fan-out."""
        self.patch(channel_module, "DELIVERIES_PER_TURN", 2)
        for _ in range(5):
            self.subscribed()
        first, second = self.posted("1"), self.posted("2")
        self.turn()
        third = self.posted("3")
        self.turn()
        counts = [self.successResultOf(post)[0].subscribers for post in (first, second, third)]
        self.assertEqual(counts, [5, 5, 5])

    def test_a_duplicate_is_answered_with_the_cursor_of_the_first(self) -> None:
        """It is neither delivered nor counted a second time."""
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
        """The process died after it had kept the first POST."""
        subscriber = self.subscribed()
        self.successResultOf(self.store.history.append([draft("1")]))
        self.posted("1")
        self.turn()
        self.assertEqual(subscriber.seqs, [1])

    def test_a_post_without_events_has_no_receipts(self) -> None:
        """It is no error."""
        post = self.posted()
        self.turn()
        self.assertEqual(self.successResultOf(post), [])


class FailureTests(IntakeCase):
    """Each failure reaches the POST that it belongs to."""

    def test_the_error_of_one_draft_fails_its_post_alone(self) -> None:
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

    def test_an_outage_fails_all_posts_and_the_next_append_is_tried(self) -> None:
        """The queue goes on."""
        self.history.failures = 1
        posts = [self.posted("1"), self.posted("2")]
        self.turn()
        for post in posts:
            self.failureResultOf(post, Unavailable)
        after = self.posted("1")
        self.turn()
        self.successResultOf(after)

    def test_an_unexpected_error_is_logged_and_a_500(self) -> None:
        """Whether it is raised or comes by the Deferred; the intake goes on."""

        def broken(drafts: Any) -> Any:
            raise KeyError("x")

        stores: list[Any] = [lambda drafts: fail(KeyError("x")), broken, lambda _: succeed(None)]
        append: list[Any] = [self.append_alone]
        self.intake = Intake(lambda drafts: append[0](drafts), self.hub, self.clock)
        for append[0] in stores:
            error = self.failureResultOf(self._post_now("1"), PlumberError)
            self.assertEqual(error.value.status, 500)
            self.assertEqual(len(self.flushLoggedErrors(KeyError, AttributeError)), 1)
        append[0] = self.append_alone
        self.successResultOf(self._post_now("1"))
        self.successResultOf(self.stop())

    def test_an_answer_that_raises_does_not_harm_the_others(self) -> None:
        """The POSTs of one append are answered one by one."""

        def broken(outcome: Outcome) -> None:
            raise KeyError("x")

        self.intake.take([draft("1")], broken)
        after = self.posted("2")
        self.turn()
        self.assertEqual(len(self.successResultOf(after)), 1)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.successResultOf(self.stop())

    def _post_now(self, key: str) -> Deferred[Any]:
        post = self.posted(key)
        self.turn()
        return post

    def test_stopping_waits_for_what_is_under_way_and_refuses_the_rest(self) -> None:
        """It waits for POSTs in the queue, and for those at the store."""
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
    """A POST is answered in time, however slow the store is."""

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds / LATE_CHECK)):
            self.clock.advance(LATE_CHECK)
            self.ran(self.intake.answer_late())

    def test_a_post_behind_a_hanging_append_waits_no_longer_than_any_other(self) -> None:
        """A POST in the queue is dropped in time, and its bytes make room."""
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
        """The answer is 503, then the store finishes: a retry gets the first receipt."""
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

    def test_a_post_that_is_kept_gets_no_503(self) -> None:
        """If the look-up of other instances hangs, the receipt comes in time, without them."""
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
        """It waits only until every POST is answered."""
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
        """Slow instances delay no other POST.  Stopping waits for the receipts."""
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
