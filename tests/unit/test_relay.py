"""The relay over a carrier in the test's hand: what goes where and when, and what is counted."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from asyncplumber.event import Event, Instance
from asyncplumber.interfaces import ICarrier, InstanceGone, IRelay, Reached, RelayFailed
from asyncplumber.relays import peer as peers
from asyncplumber.relays import routing
from asyncplumber.relays.peer import INITIAL_BACKOFF, MAX_BACKOFF
from asyncplumber.relays.routing import (
    CARRY_TIMEOUT,
    FAILURES_EXPIRE,
    MAX_FAILURES,
    RECEIPT_TIMEOUT,
    STOP_TIMEOUT,
    Relay,
)
from asyncplumber.wire import event_batch as batches
from harness.carriers import HeldCarrier
from harness.core import CoreCase, event

OK = {"a": 2}  # what an instance answers: two subscribers of account a


class RelayCase(CoreCase):
    """This instance is "me"; "you" and "they" are in the registry as well."""

    def setUp(self) -> None:
        super().setUp()
        self.carrier = HeldCarrier()
        self.relay = Relay(self.carrier, self.registry, "me", self.clock)
        self.successResultOf(self.relay.start(lambda events: {}))
        self.me, self.you, self.they = [self.add_instance(name) for name in ("me", "you", "they")]

    def add_instance(self, name: str) -> Instance:
        instance: Instance = self.successResultOf(
            self.store.registry.add_instance(Instance(name, f"http://{name}"))
        )
        return instance

    def send(self, *seqs: int, to: Instance | None = None) -> Deferred[dict[str, Reached]]:
        """Send events of account a to one instance."""
        return self.relay.send([event(seq) for seq in seqs], {"a": [to or self.you]})

    def waiting(self) -> list[tuple[str, list[int]]]:
        """The batches that are being carried: whereto, and which numbers."""
        return [(to.id, [each.seq for each in batch]) for to, batch, _ in self.carrier.waiting]

    def answer(self, counts: dict[str, int] | Exception = OK) -> None:
        """Have the first batch that is being carried answered, or fail."""
        _, _, answer = self.carrier.waiting.pop(0)
        if isinstance(counts, Exception):
            answer.errback(counts)
        else:
            answer.callback(counts)
        self.turn()

    def reached(self, sent: Deferred[dict[str, Reached]], account: str = "a") -> Reached:
        found: Reached = self.successResultOf(sent)[account]
        return found

    def fail_once(self, error: Exception | None = None) -> None:
        """Send one batch that is not taken."""
        sent = self.send(1)
        self.turn()
        self.answer(error or RelayFailed("refused"))
        self.assertEqual(self.reached(sent).failed, 1)

    def registered(self) -> list[str]:
        """The instances in the registry."""
        return sorted(self.store.registry._rows)


class RoutingTests(RelayCase):
    """The registry says who wants an event."""

    def test_it_is_a_relay_over_a_carrier(self) -> None:
        """Names and signatures are those of the interfaces."""
        verifyObject(IRelay, self.relay)
        verifyObject(ICarrier, self.carrier)

    def test_each_instance_is_sent_what_it_wants_in_one_batch(self) -> None:
        """Not this instance, and no account that an instance does not want."""
        events = [event(1), event(1, account="b"), event(2), event(1, account="c")]
        wanted = {"a": [self.me, self.you], "b": [self.they, self.you]}
        sent = self.relay.send(events, wanted)
        self.turn()
        found = {to.id: list(batch) for to, batch, _ in self.carrier.waiting}
        self.assertEqual(found, {"you": events[:3], "they": [events[1]]})
        self.answer({"a": 3, "b": 1})
        self.answer({"b": 2})
        self.assertEqual(
            self.successResultOf(sent),
            {"a": Reached(subscribers=3, ok=1), "b": Reached(subscribers=3, ok=2)},
        )
        self.assertEqual((self.relay.relayed, self.clock.getDelayedCalls()), (4, []))

    def test_nothing_is_sent_if_no_other_instance_wants_it(self) -> None:
        """And the answer is there at once."""
        sent = self.relay.send([event(1)], {"a": [self.me]})
        self.assertEqual(self.successResultOf(sent), {})
        self.turn()
        self.assertEqual(self.waiting(), [])

    def test_an_instance_without_subscribers_is_not_counted(self) -> None:
        """Its hook lingers a while after the last subscriber has left."""
        sent = self.send(1)
        self.turn()
        self.answer({"a": 0})
        self.assertEqual(self.reached(sent), Reached())

    def test_failed_and_pending_instances_are_counted(self) -> None:
        """A receipt waits for a second, and not longer."""
        sent = self.relay.send([event(1)], {"a": [self.you, self.they]})
        self.turn()
        self.answer(RelayFailed("no"))
        self.clock.advance(RECEIPT_TIMEOUT - 0.1)
        self.assertNoResult(sent)
        self.clock.advance(0.1)
        self.assertEqual(self.reached(sent), Reached(failed=1, pending=1))
        self.answer()

    def test_a_hanging_instance_keeps_one_receipt_waiting(self) -> None:
        """The next ones do not wait for it at all, until it answers again."""
        first = self.send(1)
        self.turn()
        self.clock.advance(RECEIPT_TIMEOUT)
        self.assertEqual(self.reached(first).pending, 1)
        second = self.send(2)
        self.turn()
        self.assertEqual(self.reached(second).pending, 1)
        self.answer()
        third = self.send(3)
        self.turn()
        self.assertNoResult(third)
        self.answer()
        self.answer()
        self.assertEqual(self.reached(third), Reached(subscribers=2, ok=1))

    def test_a_full_queue_does_not_make_receipts_wait_again(self) -> None:
        """The instance still hangs: that nothing more can be queued for it is no answer."""
        self.patch(peers, "MAX_QUEUED_EVENTS", 3)
        self.send(1)
        self.turn()
        self.clock.advance(RECEIPT_TIMEOUT)
        self.assertEqual(self.reached(self.send(2, 3, 4, 5)).failed, 1)
        sent = self.send(6)
        self.turn()
        self.assertEqual(self.reached(sent).pending, 1)

    def test_a_hanging_instance_holds_up_no_other_one(self) -> None:
        """Each has a queue of its own."""
        self.send(1)
        self.turn()
        self.send(2, to=self.they)
        self.turn()
        self.assertEqual(self.waiting(), [("you", [1]), ("they", [2])])
        self.carrier.waiting.pop()[2].callback({})

    def test_a_carrier_that_raises_has_failed(self) -> None:
        """Or that fails with something else than it should."""
        for broken in (lambda *_: 1 / 0, lambda *_: fail(KeyError("x"))):
            self.relay = Relay(self.carrier, self.registry, "me", self.clock)
            self.patch(self.carrier, "carry", broken)
            sent = self.send(1)
            self.turn()
            self.assertEqual(self.reached(sent), Reached(failed=1))


class BatchTests(RelayCase):
    """In order, together, once."""

    def test_what_is_sent_in_one_turn_is_one_batch_for_each_instance(self) -> None:
        """Its answer is for all of it."""
        sent = [self.send(1), self.send(2, 3), self.send(1, to=self.they)]
        self.turn()
        self.assertEqual(self.waiting(), [("you", [1, 2, 3]), ("they", [1])])
        self.answer()
        self.answer()
        for each in sent:
            self.assertEqual(self.reached(each), Reached(subscribers=2, ok=1))
        self.assertEqual(
            (self.relay.relayed, self.relay.peers(), self.clock.getDelayedCalls()), (4, [], [])
        )

    def test_what_piles_up_during_a_batch_goes_together_after_it(self) -> None:
        """One batch to an instance is under way at a time, so order holds."""
        for seq in (1, 2, 3):
            self.send(seq)
            self.turn()
        self.assertEqual(self.waiting(), [("you", [1])])
        self.answer()
        self.assertEqual(self.waiting(), [("you", [2, 3])])

    def test_a_batch_is_bounded_in_bytes(self) -> None:
        """The rest goes into the next."""
        self.patch(peers, "BATCH_BYTES", 2 * (batches.ENVELOPE_BYTES + 100))
        found = []
        for seq in range(1, 6):
            self.send(seq)
        self.turn()
        while self.carrier.waiting:
            found += self.waiting()
            self.answer()
        self.assertEqual([seqs for _, seqs in found], [[1, 2], [3, 4], [5]])

    def test_what_is_sent_at_once_may_be_several_batches(self) -> None:
        """Their counts are put together."""
        self.patch(batches, "BATCH_BYTES", 1)
        self.patch(peers, "BATCH_BYTES", 1)
        events: list[Event] = [event(1), event(1, account="b")]
        sent = self.relay.send(events, {"a": [self.you], "b": [self.you]})
        self.turn()
        self.answer({"a": 1})
        self.answer({"b": 5})
        self.assertEqual(
            self.successResultOf(sent),
            {"a": Reached(subscribers=1, ok=1), "b": Reached(subscribers=5, ok=1)},
        )

    def test_what_waits_for_one_instance_is_bounded(self) -> None:
        """It finds the rest in the history."""
        self.patch(peers, "MAX_QUEUED_EVENTS", 3)
        self.send(1, 2)
        self.assertEqual(self.reached(self.send(3, 4)), Reached(failed=1))
        fits = self.send(3)
        self.turn()
        self.answer()
        self.assertEqual(self.reached(fits).ok, 1)

    def test_what_waits_for_one_instance_is_bounded_in_bytes(self) -> None:
        """A single call is taken whatever its size, and what was carried makes room."""
        self.patch(peers, "MAX_QUEUED_BYTES", 2 * batches.weight([event(1)]))
        for _ in range(2):
            first = self.send(1, 2, 3)
            self.assertEqual(self.reached(self.send(4)), Reached(failed=1))
            self.turn()
            self.answer()
            self.assertEqual(self.reached(first).ok, 1)
            exactly = [self.send(4), self.send(5)]
            self.assertEqual(self.reached(self.send(6)), Reached(failed=1))
            self.turn()
            self.assertEqual(self.waiting(), [("you", [4, 5])])
            self.answer()
            for each in exactly:
                self.assertEqual(self.reached(each).ok, 1)

    def test_what_is_dropped_makes_room(self) -> None:
        """When a batch fails, what waits behind it is dropped, and its bytes are."""
        one = batches.weight([event(1)])
        self.patch(peers, "MAX_QUEUED_BYTES", 2 * one)
        self.patch(peers, "BATCH_BYTES", one)
        lost = [self.send(1), self.send(2)]
        self.turn()
        self.answer(RelayFailed("no"))
        for each in lost:
            self.assertEqual(self.reached(each), Reached(failed=1))
        self.assertEqual(self.relay.failed, 1)
        self.clock.advance(INITIAL_BACKOFF)
        fits = [self.send(3), self.send(4)]
        self.turn()
        self.answer()
        self.answer()
        for each in fits:
            self.assertEqual(self.reached(each).ok, 1)


class FailureTests(RelayCase):
    """Instances that do not answer."""

    def test_an_instance_that_does_not_answer_in_time_has_failed(self) -> None:
        """The batch is cancelled, what waits behind it fails too, and nothing is left."""
        first = self.send(1)
        self.turn()
        self.clock.advance(RECEIPT_TIMEOUT)
        self.assertEqual(self.reached(first).pending, 1)
        self.clock.advance(CARRY_TIMEOUT - RECEIPT_TIMEOUT - 0.1)
        self.send(2)
        self.assertEqual(self.carrier.cancelled, 0)
        with capturedLogs() as logged:
            self.clock.advance(0.1)
        self.assertEqual((self.carrier.cancelled, self.relay.failed), (1, 1))
        self.assertEqual([each["error"] for each in logged], ["no answer within 5 s"])
        self.assertEqual(self.waiting(), [("you", [1])])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_failing_instance_is_left_alone_for_a_while(self) -> None:
        """Longer each time, up to a limit, and not at all once it answers."""
        first, most = INITIAL_BACKOFF, MAX_BACKOFF
        self.registry.error = RuntimeError("no pruning here")
        for pause in (first, first * 2, first * 4, first * 8, most, most):
            self.fail_once()
            self.clock.advance(pause - 0.01)
            self.assertEqual(self.reached(self.send(1)), Reached(failed=1))
            self.turn()
            self.assertEqual(self.waiting(), [])
            self.clock.advance(0.01)
        sent = self.send(1)
        self.turn()
        self.answer()
        self.assertEqual((self.reached(sent).ok, self.relay.peers()), (1, []))

    def test_an_instance_may_fail_for_hours(self) -> None:
        """It renews its lease, and cannot be reached at its URL: it is left alone as before."""
        self.registry.error = RuntimeError("no pruning here")
        for _ in range(1100):
            self.fail_once()
            self.clock.advance(MAX_BACKOFF)
        self.fail_once()
        self.assertEqual(self.reached(self.send(1)), Reached(failed=1))
        self.turn()
        self.assertEqual(self.waiting(), [])

    def test_an_instance_that_keeps_failing_is_pruned(self) -> None:
        """With its hooks."""
        self.store.registry.register(self.you, ["a"])
        for _ in range(MAX_FAILURES):
            self.assertIn("a", self.successResultOf(self.store.registry.instances(["a"])))
            self.fail_once()
            self.clock.advance(MAX_BACKOFF / 4)
        self.assertEqual(
            (self.successResultOf(self.store.registry.instances(["a"])), self.relay.peers()),
            ({}, []),
        )

    def test_an_instance_that_renewed_its_lease_is_nudged_instead(self) -> None:
        """It is alive; an empty batch has it look for what it missed."""
        for turn in range(MAX_FAILURES):
            if turn == MAX_FAILURES - 1:
                self.store.registry.renew(self.you)
            self.fail_once()
            self.clock.advance(MAX_BACKOFF / 4)
        self.assertEqual(
            (self.waiting(), self.registered()), ([("you", [])], ["me", "they", "you"])
        )
        self.answer({})
        sent = self.send(1)
        self.turn()
        self.answer()
        self.assertEqual(self.reached(sent).ok, 1)

    def test_a_nudge_that_fails_changes_nothing(self) -> None:
        """The instance is left alone as before."""
        self.store.registry.renew(self.you)
        self.fail_once(InstanceGone("gone"))
        self.answer(RelayFailed("no"))
        self.assertEqual(self.reached(self.send(2)), Reached(failed=1))

    def test_an_instance_that_is_gone_is_pruned_at_once(self) -> None:
        """The carrier is certain of it."""
        self.fail_once(InstanceGone("gone"))
        self.assertEqual(self.registered(), ["me", "they"])

    def test_a_registry_that_is_away_does_not_stop_the_relay(self) -> None:
        """The instance is pruned later."""
        self.registry.error = KeyError("x")
        self.fail_once(InstanceGone("gone"))
        self.assertIn("you", self.registered())

    def test_old_failures_expire(self) -> None:
        """Instances come and go for years."""
        self.fail_once()
        self.clock.advance(FAILURES_EXPIRE + 1)
        self.you = self.they
        self.fail_once()
        self.assertEqual(self.relay.peers(), [(self.they, 0, 1)])


class StopTests(RelayCase):
    """Stopping waits, but not for ever."""

    def test_stopping_sends_what_waits_and_takes_no_more(self) -> None:
        """Then it stops the carrier."""
        sent = self.send(1)
        stopped = self.relay.stop()
        self.assertEqual(self.reached(self.send(2)), Reached(failed=1))
        self.turn()
        self.assertEqual(self.waiting(), [("you", [1])])
        self.assertNoResult(stopped)
        self.assertTrue(self.carrier.is_started)
        self.answer()
        self.assertEqual(self.reached(sent).ok, 1)
        self.successResultOf(stopped)
        self.assertFalse(self.carrier.is_started)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopping_does_not_wait_for_ever(self) -> None:
        """What is under way after some seconds is cancelled."""
        self.relay = Relay(self.carrier, self.registry, "me", self.clock, timeout=1000.0)
        self.send(1)
        self.turn()
        stopped = self.relay.stop()
        self.clock.advance(STOP_TIMEOUT - 0.1)
        self.assertNoResult(stopped)
        self.clock.advance(0.1)
        self.successResultOf(stopped)
        self.assertEqual((self.carrier.cancelled, self.clock.getDelayedCalls()), (1, []))

    def test_after_a_stop_nothing_is_carried(self) -> None:
        """Not even what waited behind a batch that the stop cancels."""
        self.relay = Relay(self.carrier, self.registry, "me", self.clock, timeout=1000.0)
        self.store.registry.renew(self.you)
        self.fail_once(InstanceGone("gone"))
        self.assertEqual(self.waiting(), [("you", [])])
        self.clock.advance(INITIAL_BACKOFF)
        self.send(2)
        stopped = self.relay.stop()
        self.clock.advance(STOP_TIMEOUT)
        self.successResultOf(stopped)
        self.turn()
        self.assertEqual((len(self.carrier.waiting), self.carrier.cancelled), (1, 1))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_can_be_started_again(self) -> None:
        """As a Plumber can."""
        self.successResultOf(self.relay.stop())
        self.successResultOf(self.relay.start(lambda events: {}))
        sent = self.send(1)
        self.turn()
        self.answer()
        self.assertEqual(self.reached(sent).ok, 1)

    def test_bounds_are_those_that_are_promised(self) -> None:
        """A receipt waits for less than a POST does, and a stop for longer than a batch."""
        self.assertLess(routing.RECEIPT_TIMEOUT, routing.CARRY_TIMEOUT)
        self.assertGreater(routing.STOP_TIMEOUT, routing.CARRY_TIMEOUT)
