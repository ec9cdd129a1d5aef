"""Whatever instances do, a relay keeps its promises: lives by chance, one for each seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from asyncplumber.event import Event, Instance
from asyncplumber.interfaces import Deliver, ICarrier, InstanceGone, Reached, RelayFailed
from asyncplumber.relays import peer as peers
from asyncplumber.relays.routing import RECEIPT_TIMEOUT, STOP_TIMEOUT, Relay
from asyncplumber.stores.memory import MemoryRegistry
from harness.core import event

SEEDS = 100
STEPS = 100
LONGEST_STEP = 3.0  # seconds; the clock of a test makes every timer late by so much
INSTANCES = [Instance(id, f"http://{id}", "1") for id in ("me", "x", "y")]


@implementer(ICarrier)
class RandomCarrier:
    """Answers, fails and hangs by chance, and notes what has arrived."""

    def __init__(self, clock: Clock, dice: random.Random) -> None:
        self._clock = clock
        self._dice = dice
        self._is_started = False
        self._timers: dict[str, IDelayedCall] = {}  # of the batches in flight, by instance
        self.arrived: dict[str, list[int]] = {each.id: [] for each in INSTANCES}
        self.overlaps = 0  # batches that came while another one was in flight

    @property
    def in_flight(self) -> int:
        """How many batches are not answered yet."""
        return len(self._timers)

    def start(self, deliver: Deliver) -> Deferred[None]:
        self._is_started = True
        return succeed(None)

    def stop(self) -> Deferred[None]:
        self._is_started = False
        return succeed(None)

    def carry(self, instance: Instance, events: Sequence[Event]) -> Deferred[dict[str, int]]:
        id = instance.id
        self.overlaps += id in self._timers
        fate = self._dice.random()
        if fate < 0.05:
            raise KeyError(id)
        if fate < 0.2 or not self._is_started:
            return fail(self._dice.choice([RelayFailed, InstanceGone])("refused"))
        answer: Deferred[dict[str, int]] = Deferred(partial(self._cancel, id))
        delay = self._dice.choice([0, 0.1, 0.5, 2, 9])
        self._timers[id] = self._clock.callLater(delay, self._answer, id, events, answer)
        return answer

    def _answer(self, id: str, events: Sequence[Event], answer: Deferred[dict[str, int]]) -> None:
        del self._timers[id]
        if self._dice.random() < 0.2:
            answer.errback(RelayFailed("refused late"))
        else:
            self.arrived[id] += [each.seq for each in events]
            answer.callback({"a": 1})

    def _cancel(self, id: str, _: object) -> None:
        self._timers.pop(id).cancel()


class RandomRegistry(MemoryRegistry):
    """Prunes, declines and fails by chance, and takes its time."""

    def __init__(self, clock: Clock, dice: random.Random) -> None:
        super().__init__(1.0, clock)
        self._dice = dice
        self._reactor = clock

    def prune(self, instance: Instance) -> Deferred[bool]:
        fate = self._dice.random()
        if fate < 0.2:
            return fail(OSError("the registry is away"))
        return deferLater(self._reactor, self._dice.choice([0, 1, 12]), lambda: fate < 0.6)


class ModelTests(SynchronousTestCase):
    """One relay, two other instances."""

    def test_any_life(self) -> None:
        """
        Each send is answered once, and in time; events arrive in order and once.

        One batch is in flight to an instance at a time, and none after a stop.
        """
        self.patch(peers, "MAX_QUEUED_EVENTS", 30)
        for seed in range(SEEDS):
            with self.subTest(seed=seed):
                self.live(random.Random(seed))

    def live(self, dice: random.Random) -> None:
        self.clock = Clock()
        self.carrier = RandomCarrier(self.clock, dice)
        self.relay = Relay(self.carrier, RandomRegistry(self.clock, dice), "me", self.clock)
        self.seq, self.unanswered = 0, 0
        self.relay.start(lambda events: {})
        for _ in range(STEPS):
            move = dice.random()
            if move < 0.6:
                self.send(dice.choice([1, 1, 3, 20]), dice.sample(INSTANCES, dice.randint(1, 3)))
            elif move < 0.62:
                self.stop()
                self.relay.start(lambda events: {})
            else:
                self.clock.advance(dice.choice([0, 0.1, 1, LONGEST_STEP]))
        self.stop()
        self.assertEqual((self.unanswered, self.carrier.overlaps), (0, 0))
        self.assertEqual(sum(queued for _, queued, _ in self.relay.peers()), 0)
        for seqs in self.carrier.arrived.values():
            self.assertEqual(seqs, sorted(set(seqs)))

    def send(self, count: int, instances: list[Instance]) -> None:
        """Send the next events of account a to these instances."""
        events = [event(self.seq + number) for number in range(1, count + 1)]
        self.seq += count
        self.unanswered += 1
        self.relay.send(events, {"a": instances}).addCallback(self.answered, self.clock.seconds())

    def answered(self, reached: dict[str, Reached], since: float) -> None:
        self.unanswered -= 1
        self.assertLess(self.clock.seconds() - since, RECEIPT_TIMEOUT + LONGEST_STEP)

    def stop(self) -> None:
        stopped = self.relay.stop()
        self.clock.pump([0.5] * int(2 * STOP_TIMEOUT + 1))
        self.successResultOf(stopped)
        self.assertEqual(self.carrier.in_flight, 0)
        self.clock.advance(12)  # the registry's answers
        self.assertEqual((self.carrier.in_flight, self.clock.getDelayedCalls()), (0, []))
