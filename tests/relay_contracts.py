"""
What a carrier promises, as a suite that every carrier has to pass; the relay is run on it as well.

A test case mixes in `CarrierContract`, and says how to make the carrier of an instance and how to
let time pass until a Deferred fires.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from asyncplumber.event import Event, Instance
from asyncplumber.interfaces import Deliver, ICarrier, InstanceGone, Reached, RelayFailed
from asyncplumber.relays.peer import INITIAL_BACKOFF, MAX_BACKOFF
from asyncplumber.relays.routing import MAX_FAILURES, Relay
from asyncplumber.stores.memory import MemoryStore
from asyncplumber.stores.retention import Retention
from harness.core import event

ODD_PAYLOADS = (
    b'"data":{"n":[1,2.50,1e400],"text":"\\u2028\\u0000 \xe2\x80\xa8 \xf0\x9f\x94\xa7 \\" \\\\"}',
    b'"data":""',
    b'"data":null',
    b'"data_base64":"/+8AAQ=="',
    b'"data_base64":""',
)

T = TypeVar("T")


class Receiver:
    """The other end of a carrier: notes each batch, and counts as it is told."""

    def __init__(self) -> None:
        self.batches: list[list[Event]] = []
        self.counts: dict[str, int] = {}
        self.error: Exception | None = None

    @property
    def events(self) -> list[Event]:
        return [each for batch in self.batches for each in batch]

    def deliver(self, events: Sequence[Event]) -> dict[str, int]:
        if self.error is not None:
            raise self.error
        self.batches.append(list(events))
        return {each.account: self.counts.get(each.account, 0) for each in events}


class CarrierContract:
    """Mixed into a trial `TestCase`."""

    clock: IReactorTime

    def make_carrier(self, instance_id: str) -> Any:
        """Return the carrier of an instance, which is not started."""
        raise NotImplementedError

    def address(self, instance_id: str) -> Instance:
        """Return the instance as the registry has it."""
        raise NotImplementedError

    async def result(self, waiting: Deferred[T]) -> T:
        """Let time pass until this Deferred fires, and return its result."""
        return await waiting

    async def start(self, instance_id: str) -> tuple[Any, Receiver]:
        """Make and start the carrier of an instance."""
        case: Any = self
        carrier, receiver = self.make_carrier(instance_id), Receiver()
        deliver: Deliver = receiver.deliver
        await self.result(carrier.start(deliver))
        case.addCleanup(lambda: self.cleanup(carrier.stop()))
        return carrier, receiver

    def cleanup(self, stopped: Deferred[None]) -> Deferred[None]:
        return Deferred.fromCoroutine(self.result(stopped))

    async def carry(
        self, carrier: Any, instance_id: str, events: Sequence[Event]
    ) -> dict[str, int]:
        return await self.result(carrier.carry(self.address(instance_id), events))

    async def fails(self, waiting: Deferred[Any]) -> RelayFailed:
        """Return the `RelayFailed` that this Deferred fails with."""
        case: Any = self
        try:
            await self.result(waiting)
        except RelayFailed as error:
            return error
        raise case.failureException("it did not fail")

    # One batch

    async def test_it_is_a_carrier(self) -> None:
        """Names and signatures are those of the interface."""
        verifyObject(ICarrier, self.make_carrier("me"))

    async def test_a_batch_arrives_as_it_was(self) -> None:
        """In one piece and in order, with every byte; several accounts are in one batch."""
        case: Any = self
        here, _ = await self.start("here")
        _, there = await self.start("there")
        events = [event(seq, payload=payload) for seq, payload in enumerate(ODD_PAYLOADS, 1)]
        events.insert(2, event(7, "e2", "ä/ö 日本"))
        await self.carry(here, "there", events)
        case.assertEqual(there.batches, [events])

    async def test_the_answer_is_what_the_receiver_counted(self) -> None:
        """For each account."""
        case: Any = self
        here, _ = await self.start("here")
        _, there = await self.start("there")
        there.counts = {"a": 3, "ä": 1}
        counts = await self.carry(here, "there", [event(1), event(1, "e", "ä"), event(1, "e", "b")])
        case.assertEqual(counts, {"a": 3, "ä": 1, "b": 0})

    async def test_an_empty_batch_arrives_as_an_empty_batch(self) -> None:
        """It says that something may have been missed."""
        case: Any = self
        here, _ = await self.start("here")
        _, there = await self.start("there")
        case.assertEqual(await self.carry(here, "there", []), {})
        case.assertEqual(there.batches, [[]])

    async def test_a_large_event_arrives(self) -> None:
        """As large as a POST may be."""
        case: Any = self
        here, _ = await self.start("here")
        _, there = await self.start("there")
        large = event(1, payload=b'"data":"%b"' % (b"x\\n" * 350_000))
        await self.carry(here, "there", [large])
        case.assertEqual(there.events, [large])

    async def test_both_directions_are_independent(self) -> None:
        """Two instances may carry to each other at the same moment."""
        case: Any = self
        here, left = await self.start("here")
        there, right = await self.start("there")
        both = gatherResults(
            [
                here.carry(self.address("there"), [event(1)]),
                there.carry(self.address("here"), [event(2)]),
            ]
        )
        await self.result(both)
        case.assertEqual(([e.seq for e in left.events], [e.seq for e in right.events]), ([2], [1]))

    async def test_batches_arrive_in_the_order_in_which_they_are_carried(self) -> None:
        """Each after the answer to the one before, as the relay does it."""
        case: Any = self
        here, _ = await self.start("here")
        _, there = await self.start("there")
        for seq in range(1, 21):
            await self.carry(here, "there", [event(seq)])
        case.assertEqual([each.seq for each in there.events], list(range(1, 21)))

    # Failures

    async def test_an_instance_that_is_not_there_fails_the_batch(self) -> None:
        """It does not hang."""
        here, _ = await self.start("here")
        await self.fails(here.carry(self.address("nowhere"), [event(1)]))

    async def test_an_instance_that_has_stopped_takes_nothing(self) -> None:
        """Until it is started again."""
        case: Any = self
        here, _ = await self.start("here")
        carrier, there = await self.start("there")
        await self.carry(here, "there", [event(1)])
        await self.result(carrier.stop())
        await self.fails(here.carry(self.address("there"), [event(2)]))
        await self.result(carrier.start(there.deliver))
        await self.carry(here, "there", [event(3)])
        case.assertEqual([each.seq for each in there.events], [1, 3])

    async def test_a_carrier_that_is_stopped_carries_nothing(self) -> None:
        """Nor before it was started."""
        case: Any = self
        _, there = await self.start("there")
        here = self.make_carrier("here")
        await self.fails(here.carry(self.address("there"), [event(1)]))
        await self.result(here.start(Receiver().deliver))
        await self.carry(here, "there", [event(2)])
        await self.result(here.stop())
        await self.fails(here.carry(self.address("there"), [event(3)]))
        case.assertEqual([each.seq for each in there.events], [2])

    async def test_a_receiver_that_raises_fails_that_batch_alone(self) -> None:
        """The error is in the log of the receiver, and not in that of the sender."""
        case: Any = self
        here, _ = await self.start("here")
        _, there = await self.start("there")
        there.error = KeyError("x")
        error = await self.fails(here.carry(self.address("there"), [event(1)]))
        case.assertNotIsInstance(error, InstanceGone)
        case.assertEqual(len(case.flushLoggedErrors(KeyError)), 1)
        there.error = None
        await self.carry(here, "there", [event(2)])
        case.assertEqual([each.seq for each in there.events], [2])

    async def test_a_cancelled_batch_ends_and_the_next_one_arrives(self) -> None:
        """It may have arrived, and even been answered, before it was cancelled."""
        case: Any = self
        here, _ = await self.start("here")
        _, there = await self.start("there")
        cancelled = here.carry(self.address("there"), [event(1)])
        cancelled.cancel()
        with suppress(RelayFailed, CancelledError):
            await self.result(cancelled)
        await self.carry(here, "there", [event(2)])
        case.assertEqual(there.events[-1], event(2))

    # The relay over this carrier

    async def cluster(self, *others: str) -> tuple[Relay, MemoryStore, dict[str, Receiver]]:
        """Start "here" with a relay, and the others; all are in the registry."""
        case: Any = self
        store = MemoryStore(Retention(), self.clock, shared=True)
        receivers = {}
        for name in others:
            _, receivers[name] = await self.start(name)
        for name in ("here", *others):
            await self.result(store.registry.add_instance(self.address(name)))
        relay = Relay(self.make_carrier("here"), store.registry, "here", self.clock)
        await self.result(relay.start(Receiver().deliver))
        case.addCleanup(lambda: self.cleanup(relay.stop()))
        return relay, store, receivers

    async def test_a_relay_sends_to_all_who_want_an_event_and_counts(self) -> None:
        """Not to itself, and not to those who do not want it."""
        case: Any = self
        relay, store, others = await self.cluster("b", "c", "d")
        for name, accounts in (("here", ["a"]), ("b", ["a", "z"]), ("c", ["a"]), ("d", ["z"])):
            await self.result(store.registry.register(self.address(name), accounts))
        others["b"].counts, others["c"].counts = {"a": 2, "z": 7}, {"a": 1}
        recipients = await self.result(store.registry.instances(["a", "z"]))
        reached = await self.result(
            relay.send([event(1), event(2), event(1, "e", "z")], recipients)
        )
        case.assertEqual(
            reached, {"a": Reached(subscribers=3, ok=2), "z": Reached(subscribers=7, ok=1)}
        )
        case.assertEqual(
            {name: len(each.events) for name, each in others.items()}, {"b": 3, "c": 2, "d": 1}
        )

    async def test_many_events_arrive_once_and_in_order(self) -> None:
        """Sent in fifty calls, of which none waits for another."""
        case: Any = self
        relay, _, others = await self.cluster("b")
        to = [self.address("b")]
        sent = []
        for call in range(50):
            events = [event(call * 20 + n, account="abc"[n % 3]) for n in range(1, 21)]
            sent.append(relay.send(events, {"a": to, "b": to, "c": to}))
        await self.result(gatherResults(sent))
        case.assertEqual([each.seq for each in others["b"].events], list(range(1, 1001)))

    async def test_an_instance_that_is_not_there_is_pruned(self) -> None:
        """After some failures; the other one has everything at once."""
        case: Any = self
        relay, store, others = await self.cluster("b")
        await self.result(store.registry.add_instance(self.address("nowhere")))
        for name in ("b", "nowhere"):
            await self.result(store.registry.register(self.address(name), ["a"]))
        others["b"].counts = {"a": 1}
        for seq in range(1, MAX_FAILURES + 1):
            recipients = await self.result(store.registry.instances(["a"]))
            reached = await self.result(relay.send([event(seq)], recipients))
            # A carrier that is certain that the instance is gone has it pruned at once.
            failed = len(recipients["a"]) - 1
            case.assertEqual(reached["a"], Reached(subscribers=1, ok=1, failed=failed))
            case.assertTrue(failed or seq > 1)
            await self.pause(min(MAX_BACKOFF, INITIAL_BACKOFF * 2**seq))
        found = await self.result(store.registry.instances(["a"]))
        case.assertEqual([each.id for each in found["a"]], ["b"])

    async def pause(self, seconds: float) -> None:
        """Let so many seconds pass."""
        clock = self.clock
        if isinstance(clock, Clock):
            clock.advance(seconds)
        else:
            passed: Deferred[None] = Deferred()
            clock.callLater(seconds, passed.callback, None)
            await passed
