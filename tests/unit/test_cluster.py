"""Several instances on one store; their carriers lose, double, delay and reorder batches."""

from __future__ import annotations

import random
from typing import Any, cast

from asyncplumber.core import channel
from asyncplumber.core.hub import Hub
from asyncplumber.core.intake import Intake
from asyncplumber.core.leases import Leases
from asyncplumber.core.relay_receiver import RelayReceiver
from asyncplumber.event import EARLIEST, Instance
from asyncplumber.interfaces import IRegistry, RelayFailed
from asyncplumber.relays.routing import Relay
from harness.carriers import Batch, HeldCarrier
from harness.core import CoreCase, FaultProxy, Recorder, draft

LEASE = 15.0


class Node:
    """One instance: hub, intake, leases, relay."""

    def __init__(self, name: str, case: CoreCase) -> None:
        self.carrier = HeldCarrier()
        self.registry = FaultProxy(case.registry)
        instance = Instance(name, f"http://{name}")
        registry: IRegistry = cast(Any, self.registry)
        self.leases = Leases(registry, instance, case.clock, LEASE)
        self.hub = Hub(
            case.history,
            case.clock,
            hooks=self.leases,
            linger=1.0,
        )
        self.receiver = RelayReceiver(self.hub, self.leases.drop_stale)
        self.relay = Relay(self.carrier, registry, name, case.clock)
        self.intake = Intake(case.append, self.hub, case.clock, relay=self.relay)
        self.relay.start(self.receiver.deliver)
        self.leases.start(self.hub.check_soon)

    def die(self) -> None:
        """As after SIGKILL: nothing of it reaches the registry or another instance any more."""
        self.registry.held = {"add_instance", "renew", "register", "unregister", "prune", "sweep"}
        self.carrier.is_down = True


class Person:
    """A user who comes back with the last cursor, to any node."""

    def __init__(self, account: str) -> None:
        self.account = account
        self.visits: list[Recorder] = []
        self.node: Node | None = None

    @property
    def seqs(self) -> list[int]:
        return [seq for visit in self.visits for seq in visit.seqs]

    def come(self, node: Node) -> None:
        told = [visit for visit in self.visits if visit.told]
        subscriber = Recorder()
        self.visits.append(subscriber)
        self.node = node

        def subscribe(opened: Any) -> None:
            if self.visits[-1] is subscriber and self.node is node:
                subscriber.subscribe(opened, told[-1].cursor if told else EARLIEST)

        node.hub.admit(self.account).addCallbacks(subscribe, lambda failure: None)

    def go(self) -> None:
        if self.visits:
            self.visits[-1].cancel()
        self.node = None


class ClusterTests(CoreCase):
    """Wherever a subscriber is connected, it gets everything once and in order."""

    def setUp(self) -> None:
        super().setUp()
        self.names = 0
        self.nodes: dict[str, Node] = {}
        for _ in range(3):
            self.build()

    def build(self) -> None:
        self.names += 1
        self.nodes[f"h{self.names}"] = Node(f"h{self.names}", self)
        self.settle()

    def carry(self) -> None:
        """Have all batches arrive, also those that others make room for."""
        for _ in range(10):
            for node in list(self.nodes.values()):
                waiting, node.carrier.waiting = node.carrier.waiting, []
                for batch in waiting:
                    self.arrive(batch)
            self.settle()

    def carry_badly(self, dice: random.Random) -> None:
        """
        Have some batches arrive, some of them twice, in any order; lose some.

        Some are answered although they have not arrived, as a broker may do it: only then several
        are under way to one instance, and can overtake each other.
        """
        for node in list(self.nodes.values()):
            waiting, node.carrier.waiting = node.carrier.waiting, []
            dice.shuffle(waiting)
            for batch in waiting:
                fate = dice.random()
                if fate < 0.3:
                    node.carrier.waiting.append(batch)
                    if fate < 0.15 and not batch[2].called:
                        batch[2].callback({})
                elif fate > 0.9:
                    if not batch[2].called:
                        batch[2].errback(RelayFailed("lost on the way"))
                else:
                    self.arrive(batch, times=2 if fate < 0.45 else 1)

    def arrive(self, batch: Batch, times: int = 1) -> None:
        """Deliver a batch, so many times."""
        instance, events, answer = batch
        node = self.nodes.get(instance.id)
        if node is None:
            if not answer.called:
                answer.errback(RelayFailed("nobody is there"))
            return
        for _ in range(times):
            counts = node.receiver.deliver(events)
        if not answer.called:
            answer.callback(counts)

    def post(self, node: Node, *keys: str, account: str = "a") -> Any:
        return node.intake.accept([draft(key, account) for key in keys])

    def test_an_event_reaches_subscribers_at_every_instance(self) -> None:
        """And the receipt counts them all."""
        nodes = list(self.nodes.values())
        people = [Person("a") for _ in nodes]
        for person, node in zip(people, nodes, strict=True):
            person.come(node)
        self.settle()
        post = self.post(nodes[0], "1")
        self.settle()
        self.carry()
        [receipt] = self.successResultOf(post)
        self.assertEqual((receipt.subscribers, receipt.instances), (3, {"ok": 3, "failed": 0}))
        self.assertEqual([person.seqs for person in people], [[1]] * 3)

    def test_a_lost_event_is_found_by_the_next_event_or_the_next_check(self) -> None:
        """Whichever comes first."""
        here, there, elsewhere = self.nodes.values()
        people = [Person("a"), Person("a")]
        for person, node in zip(people, (there, elsewhere), strict=True):
            person.come(node)
        self.settle()
        for key in "12":
            self.post(here, key)
            self.settle()
        for _, _, answer in here.carrier.waiting:
            answer.callback({})  # the first event is lost on its way to both
        self.settle()
        [_, _, to_there, _] = here.carrier.waiting
        self.assertEqual((to_there[0].id, [each.seq for each in to_there[1]]), ("h2", [2]))
        here.carrier.waiting = [to_there]
        self.carry()
        self.assertEqual([person.seqs for person in people], [[1, 2], []])
        elsewhere.hub.check_soon()
        self.assertEqual(people[1].seqs, [1, 2])

    def test_the_hooks_of_a_dead_instance_expire(self) -> None:
        """After its lease nothing is relayed to it."""
        here, there, _ = self.nodes.values()
        person = Person("a")
        person.come(there)
        self.settle()
        there.die()
        for _ in range(4):
            self.clock.advance(LEASE / 3)
            self.settle()
        self.post(here, "1")
        self.settle()
        self.assertEqual(here.carrier.waiting, [])
        person.node = None
        person.come(here)
        self.settle()
        self.assertEqual(person.seqs, [1])

    def test_an_instance_that_lost_its_lease_misses_nothing(self) -> None:
        """It is added again, and then looks for what it missed."""
        here, there, _ = self.nodes.values()
        person = Person("a")
        person.come(there)
        self.settle()
        self.store.registry.prune(there.leases.instance)
        self.post(here, "1")
        self.settle()
        self.assertEqual((person.seqs, here.carrier.waiting), ([], []))
        self.clock.advance(LEASE / 3)
        self.settle()
        self.assertEqual(person.seqs, [1])
        self.post(here, "2")
        self.settle()
        self.carry()
        self.assertEqual(person.seqs, [1, 2])

    def test_every_subscriber_gets_everything_once_and_in_order(self) -> None:
        """By seed: posts, arrivals, departures, retries, outages, deaths and births."""
        self.patch(channel, "DELIVERIES_PER_TURN", 2)
        for seed in range(12):
            self.setUp()
            self.live(random.Random(seed))

    def live(self, dice: random.Random) -> None:
        accounts = ["a", "b"]
        people = [Person(dice.choice(accounts)) for _ in range(12)]
        posts: dict[str, tuple[str, Any]] = {}
        for step in range(250):
            node = dice.choice(list(self.nodes.values()))
            move = dice.random()
            if move < 0.35:
                key = f"{step}" if dice.random() < 0.8 or not posts else dice.choice(list(posts))
                account = posts[key][0] if key in posts else dice.choice(accounts)
                posts[key] = (
                    account,
                    self.post(node, key, account=account).addErrback(lambda failure: None),
                )
            elif move < 0.55:
                self.carry_badly(dice)
            elif move < 0.75:
                person = dice.choice(people)
                if person.node is None:
                    person.come(node)
                else:
                    person.go()
            elif move < 0.77:
                self.kill_one(dice, people)
            elif move < 0.80:
                dice.choice([self.history, self.registry]).failures = 1
            else:
                self.clock.advance(dice.choice([0, 0, 0, 0.4, 2.0]))
        self.finish(people, accounts)

    def kill_one(self, dice: random.Random, people: list[Person]) -> None:
        name = dice.choice(list(self.nodes))
        dead = self.nodes.pop(name)
        dead.die()
        for person in people:
            if person.node is dead:
                person.node = None
        self.build()

    def finish(self, people: list[Person], accounts: list[str]) -> None:
        self.history.failures = self.registry.failures = 0
        nodes = list(self.nodes.values())
        for number, person in enumerate(people):
            person.go()
            person.come(nodes[number % len(nodes)])
        self.settle()
        self.carry()
        for node in nodes:
            node.hub.check_soon()
        self.settle()
        heads = {
            name: self.successResultOf(self.store.history.ensure(name)).head for name in accounts
        }
        self.assertGreater(min(heads.values()), 10)
        for person in people:
            self.assertEqual(person.seqs, list(range(1, heads[person.account] + 1)))
