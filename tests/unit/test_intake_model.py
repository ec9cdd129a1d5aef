"""Whatever the store does, the intake keeps its promises: lives by chance, one for each seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.concurrency import PeriodicTask
from asyncplumber.core import waiting_posts
from asyncplumber.core.hub import Hub
from asyncplumber.core.intake import ANSWER_TIMEOUT, LATE_CHECK, Intake
from asyncplumber.core.waiting_posts import Outcome
from asyncplumber.errors import PlumberError, Unavailable
from asyncplumber.event import Draft, Event, Instance, Stored
from asyncplumber.interfaces import Appended
from asyncplumber.stores.memory import MemoryHistory
from asyncplumber.stores.retention import Retention
from harness.core import draft

SEEDS = 100
STEPS = 80
MAX_WAITING_EVENTS = 40
LONGEST_STEP = 3.0  # seconds; the clock of a test makes every timer late by so much


class RandomStore:
    """Stores, refuses, fails and hangs by chance."""

    def __init__(self, clock: Clock, dice: random.Random) -> None:
        self._clock = clock
        self._dice = dice
        self.stored: list[Event] = []
        self.reported: list[Event] = []  # those of them that the intake learned of
        self.largest = 0  # drafts in one append

    def append(self, drafts: Sequence[Draft]) -> Deferred[Appended]:
        self.largest = max(self.largest, len(drafts))
        fate = self._dice.random()
        if fate < 0.1:
            raise ZeroDivisionError
        if fate < 0.2:
            return fail(Unavailable())
        delay = self._dice.choice([0, 0.1, 1, 6])
        return deferLater(self._clock, delay, self._append, list(drafts), fate < 0.3)

    def _append(self, drafts: list[Draft], is_lost: bool) -> Appended:
        results: list[Stored | PlumberError] = []
        for each in drafts:
            if self._dice.random() < 0.05:
                results.append(PlumberError("this event cannot be stored"))
                continue
            event = Event.from_draft(each, "e", len(self.stored) + 1)
            self.stored.append(event)
            results.append(Stored(event, False))
        if is_lost:
            raise Unavailable
        self.reported += [each.event for each in results if isinstance(each, Stored)]
        return Appended(results, self._dice.choice(self._look_ups())())

    def _look_ups(self) -> list[Callable[[], Deferred[dict[str, list[Instance]]] | None]]:
        return [
            lambda: None,
            lambda: succeed({}),
            lambda: fail(Unavailable()),
            lambda: deferLater(self._clock, self._dice.uniform(0, 6), dict[str, list[Instance]]),
        ]


class NotingHub(Hub):
    """Has no subscribers, and notes what is published."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(MemoryHistory(Retention(), clock), clock)
        self.published: list[Event] = []

    def publish(self, events: Sequence[Event]) -> list[int]:
        self.published += events
        return super().publish(events)


class ModelTests(SynchronousTestCase):
    """POSTs of one and of many drafts, more than the intake lets wait."""

    def test_any_life(self) -> None:
        """
        Each POST is answered once, and in time; a receipt is for an event that is stored.

        What the store reports is published, once and in order.
        """
        self.patch(waiting_posts, "MAX_GROUP", 7)
        self.patch(waiting_posts, "FAIR_SHARE", 3)
        for seed in range(SEEDS):
            with self.subTest(seed=seed):
                self.live(random.Random(seed))
        self.flushLoggedErrors(ZeroDivisionError)

    def live(self, dice: random.Random) -> None:
        self.clock = Clock()
        self.store = RandomStore(self.clock, dice)
        self.answers: list[int] = []  # of each POST: how often it was answered
        hub = NotingHub(self.clock)
        self.intake = Intake(
            self.store.append,
            hub,
            self.clock,
            max_waiting_bytes=400,
            max_waiting_events=MAX_WAITING_EVENTS,
        )
        late = PeriodicTask(self.intake.answer_late, LATE_CHECK, self.clock)
        late.start()
        for _ in range(STEPS):
            if dice.random() < 0.6:
                self.post(dice.choice([1, 1, 1, 2, 5, 20]), dice.randrange(20))
            else:
                self.clock.advance(dice.choice([0, 0, 0.05, 0.5, LONGEST_STEP]))
        stopped = Deferred.fromCoroutine(self.intake.stop())
        self.clock.pump([LATE_CHECK] * 100)
        self.successResultOf(stopped)
        late.stop()
        self.assertEqual(set(self.answers), {1})
        self.assertLessEqual(self.store.largest, waiting_posts.MAX_GROUP)
        self.assertEqual(hub.published, self.store.reported)
        self.assertIsNone(self.intake.is_full(10**9))  # only if nothing waits
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def post(self, count: int, size: int) -> None:
        number, since = len(self.answers), self.clock.seconds()
        drafts = [draft(f"{number}.{each}", payload=b"x" * size) for each in range(count)]
        self.answers.append(0)

        def settle(outcome: Outcome) -> None:
            self.answers[number] += 1
            self.assertLess(self.clock.seconds() - since, ANSWER_TIMEOUT + LONGEST_STEP)
            if isinstance(outcome, list):
                self.assertEqual([each.id for each in outcome], [each.id for each in drafts])
                stored = {event.id for event in self.store.stored}
                self.assertLessEqual({each.id for each in outcome}, stored)

        self.intake.take(drafts, settle)
