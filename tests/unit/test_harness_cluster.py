"""
Several instances on one store, and a relay that loses, doubles, delays and turns round what it
carries.
"""

from __future__ import annotations

import random
from typing import Any

from asyncplumber.core import channel
from asyncplumber.core.hub import Hub
from asyncplumber.core.intake import Intake
from asyncplumber.core.leases import Leases
from asyncplumber.event import EARLIEST, Instance
from asyncplumber.interfaces import RelayFailed
from harness.core import CoreCase, Recorder, TcpProxy, draft

LEASE = 15.0


class House:
    """One instance: hub, intake, leases, and its way to the others."""

    def __init__(self, name: str, case: CoreCase) -> None:
        self.wire = TcpProxy()
        instance = Instance(name, f"http://{name}")
        self.leases = Leases(
            case.registry, instance, case.clock, LEASE, forgotten=lambda: self.hub.check_soon()
        )
        self.hub = Hub(
            case.history, case.clock, hold=self.leases.hold, release=self.leases.release, linger=1.0
        )
        self.intake = Intake(case.append, self.hub, case.clock, relay=self.wire, instance=instance)
        self.leases.start()

    def die(self) -> None:
        """As after SIGKILL: nothing of it runs any more, and nobody is told."""
        self.leases._renewal.stop()
        self.leases._stopped = True
        self.wire.gone = True


class Person:
    """Somebody who comes back with the last cursor, wherever there is a house."""

    def __init__(self, account: str) -> None:
        self.account = account
        self.visits: list[Recorder] = []
        self.house: House | None = None

    @property
    def seqs(self) -> list[int]:
        return [seq for visit in self.visits for seq in visit.seqs]

    def come(self, house: House) -> None:
        told = [visit for visit in self.visits if visit.told]
        subscriber = Recorder()
        self.visits.append(subscriber)
        self.house = house

        def subscribe(opened: Any) -> None:
            if self.visits[-1] is subscriber and self.house is house:
                subscriber.subscribe(opened, told[-1].stand if told else EARLIEST)

        house.hub.admit(self.account).addCallbacks(subscribe, lambda failure: None)

    def go(self) -> None:
        if self.visits:
            self.visits[-1].cancel()
        self.house = None


class FarmTests(CoreCase):
    """Whoever waits at any of them gets everything once and in order."""

    def setUp(self) -> None:
        super().setUp()
        self.names = 0
        self.houses: dict[str, House] = {}
        for _ in range(3):
            self.build()

    def build(self) -> None:
        self.names += 1
        self.houses[f"h{self.names}"] = House(f"h{self.names}", self)
        self.settle()

    def detach(self, dice: random.Random | None = None) -> None:
        """
        Everything that is carried arrives; with `dice`, only some of it, some of it twice, and in
        any order.
        """
        for house in list(self.houses.values()):
            waiting, house.wire.waiting = house.wire.waiting, []
            if dice is not None:
                dice.shuffle(waiting)
            for batch in waiting:
                fate = dice.random() if dice is not None else 0.5
                if fate < 0.2:
                    house.wire.waiting.append(batch)
                else:
                    self._arrive(*batch, lost=fate > 0.9, twice=fate < 0.4)

    def _arrive(
        self, instance: Instance, events: Any, answer: Any, lost: bool, twice: bool
    ) -> None:
        there = self.houses.get(instance.id)
        if lost or there is None:
            if not answer.called:
                answer.errback(RelayFailed("lost on the way"))
            return
        for _ in range(1 + twice):
            there.hub.publish(events)
        if not answer.called:
            answer.callback({each.account: there.hub.count(each.account) for each in events})

    def posted(self, house: House, *keys: str, account: str = "a") -> Any:
        return house.intake.accept([draft(key, account) for key in keys])

    def test_an_event_reaches_subscribers_at_every_instance(self) -> None:
        """And the receipt counts them all."""
        houses = list(self.houses.values())
        people = [Person("a") for _ in houses]
        for person, house in zip(people, houses, strict=True):
            person.come(house)
        self.settle()
        post = self.posted(houses[0], "1")
        self.settle()
        self.detach()
        [receipt] = self.successResultOf(post)
        self.assertEqual((receipt.subscribers, receipt.instances), (3, {"ok": 3, "failed": 0}))
        self.assertEqual([person.seqs for person in people], [[1]] * 3)

    def test_a_lost_relay_heals_by_the_next_event_or_the_next_check(self) -> None:
        """Whichever comes first."""
        here, there, elsewhere = self.houses.values()
        people = [Person("a"), Person("a")]
        for person, house in zip(people, (there, elsewhere), strict=True):
            person.come(house)
        self.settle()
        for key in "12":
            self.posted(here, key)
            self.settle()
        here.wire.waiting = [
            batch for batch in here.wire.waiting if batch[0].id == "h2" and batch[1][0].seq == 2
        ]
        self.detach()
        self.assertEqual([person.seqs for person in people], [[1, 2], []])
        elsewhere.hub.check_soon()
        self.assertEqual(people[1].seqs, [1, 2])

    def test_the_hooks_of_a_dead_instance_lapse(self) -> None:
        """Nobody relays to it after its lease."""
        here, there, _ = self.houses.values()
        person = Person("a")
        person.come(there)
        self.settle()
        there.die()
        for _ in range(4):
            self.clock.advance(LEASE / 3)
            self.settle()
        self.posted(here, "1")
        self.settle()
        self.assertEqual(here.wire.waiting, [])
        person.house = None
        person.come(here)
        self.settle()
        self.assertEqual(person.seqs, [1])

    def test_an_instance_that_was_forgotten_misses_nothing(self) -> None:
        """It comes in again, and then looks for what it missed."""
        here, there, _ = self.houses.values()
        person = Person("a")
        person.come(there)
        self.settle()
        self.store.registry.prune(there.leases.instance)
        self.posted(here, "1")
        self.settle()
        self.assertEqual((person.seqs, here.wire.waiting), ([], []))
        self.clock.advance(LEASE / 3)
        self.settle()
        self.assertEqual(person.seqs, [1])
        self.posted(here, "2")
        self.settle()
        self.detach()
        self.assertEqual(person.seqs, [1, 2])

    def test_by_any_relay_and_any_death_everybody_has_everything_once_and_in_order(self) -> None:
        """By seed: posts, arrivals, departures, retries, outages, deaths and births."""
        self.patch(channel, "SLICE", 2)
        for seed in range(12):
            self.setUp()
            self._years(random.Random(seed))

    def _years(self, dice: random.Random) -> None:
        accounts = ["a", "b"]
        people = [Person(dice.choice(accounts)) for _ in range(12)]
        posts: dict[str, tuple[str, Any]] = {}
        for step in range(250):
            house = dice.choice(list(self.houses.values()))
            move = dice.random()
            if move < 0.35:
                key = f"{step}" if dice.random() < 0.8 or not posts else dice.choice(list(posts))
                account = posts[key][0] if key in posts else dice.choice(accounts)
                posts[key] = (
                    account,
                    self.posted(house, key, account=account).addErrback(lambda failure: None),
                )
            elif move < 0.55:
                self.detach(dice)
            elif move < 0.75:
                person = dice.choice(people)
                if person.house is None:
                    person.come(house)
                else:
                    person.go()
            elif move < 0.77:
                self._death(dice, people)
            elif move < 0.80:
                dice.choice([self.history, self.registry]).fails = 1
            else:
                self.clock.advance(dice.choice([0, 0, 0, 0.4, 2.0]))
        self._in_the_end(people, accounts)

    def _death(self, dice: random.Random, people: list[Person]) -> None:
        name = dice.choice(list(self.houses))
        dead = self.houses.pop(name)
        dead.die()
        for person in people:
            if person.house is dead:
                person.house = person.opened = None
        self.build()

    def _in_the_end(self, people: list[Person], accounts: list[str]) -> None:
        self.history.fails = self.registry.fails = 0
        houses = list(self.houses.values())
        for number, person in enumerate(people):
            person.go()
            person.come(houses[number % len(houses)])
        self.settle()
        self.detach()
        for house in houses:
            house.hub.check_soon()
        self.settle()
        heads = {
            name: self.successResultOf(self.store.history.ensure(name)).head for name in accounts
        }
        self.assertGreater(min(heads.values()), 10)
        for person in people:
            self.assertEqual(person.seqs, list(range(1, heads[person.account] + 1)))
