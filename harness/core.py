"""What the tests of the core share: a subscriber that records, and a store that can fail."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from asyncplumber.core.channel import Channel
from asyncplumber.core.hub import Hub
from asyncplumber.core.subscription import Subscription
from asyncplumber.errors import PlumberError, Unavailable
from asyncplumber.event import Cursor, Draft, Event, Position, Stored
from asyncplumber.interfaces import PAGE_BYTES, Appended, ISubscriber
from asyncplumber.stores.memory import MemoryStore, Snapshot
from asyncplumber.stores.recipients import with_recipients
from asyncplumber.stores.retention import Retention
from asyncplumber.wire.delivery import Delivery

TIME = "2026-01-01T00:00:00.000Z"


def draft(key: str, account: str = "a", payload: bytes = b'"data":1') -> Draft:
    """A draft whose id is its key."""
    return Draft(account, key, key, "result", TIME, "application/json", payload)


def event(seq: int, epoch: str = "e", account: str = "a", payload: bytes = b'"data":1') -> Event:
    """An event that no history has."""
    return Event(account, epoch, seq, f"id{seq}", "result", TIME, "application/json", payload)


@implementer(ISubscriber)
class Recorder:
    """A subscriber that records all it is told.

    Attributes:
        told: Each call: ("opened", cursor), ("event", event) or ("missed", cursor, position).
        events: The events.
        batches: How many events came together.
        ended: What `end` was called with.
        room: What `drained` returns; None: there is room at once.
        on_deliver: Called with each delivery.
    """

    def __init__(self) -> None:
        self.page_size = PAGE_BYTES
        self.told: list[tuple[Any, ...]] = []
        self.events: list[Event] = []
        self.batches: list[int] = []
        self.ended: list[PlumberError | None] = []
        self.room: Deferred[None] | None = None
        self.on_deliver: Callable[[Delivery], object] = lambda batch: None
        self._subscription: Subscription | None = None

    def subscribe(self, channel: Channel, after: Cursor | str | None = None) -> None:
        """Subscribe to this channel."""
        self._subscription = channel.subscribe(self)
        self._subscription.start(after)

    def cancel(self) -> None:
        """End the latest subscription, if there is one."""
        if self._subscription is not None:
            self._subscription.cancel()

    @property
    def account(self) -> str:
        """The account of its latest subscription."""
        assert self._subscription is not None
        return self._subscription.account

    @property
    def seqs(self) -> list[int]:
        """The numbers of the events."""
        return [each.seq for each in self.events]

    @property
    def cursor(self) -> Cursor:
        """The cursor with which it would resume."""
        for word, *words in reversed(self.told):
            if word == "missed":
                return words[1].cursor
            if word == "opened" or words[0].epoch:
                return words[0] if word == "opened" else words[0].cursor
        raise AssertionError("it was never told its cursor")

    def opened(self, cursor: Cursor) -> None:
        self.told.append(("opened", cursor))

    def deliver(self, batch: Delivery) -> None:
        self.batches.append(len(batch.events))
        for each in batch.events:
            self.events.append(each)
            self.told.append(("event", each))
        self.on_deliver(batch)

    def replayed(self, size: int) -> None:
        """Not recorded: limits use it."""

    def caught_up(self) -> None:
        """Not recorded: it says nothing about the events."""

    def missed(self, cursor: Cursor, position: Position) -> None:
        self.told.append(("missed", cursor, position))

    def drained(self) -> Deferred[None]:
        return self.room or succeed(None)

    def end(self, error: PlumberError | None) -> None:
        self.ended.append(error)


class FaultProxy:
    """Forwards calls to a store, and counts them; a test makes them fail or wait.

    Attributes:
        calls: Each call: the name of the method and its arguments.
        error: Every call fails with this; None lets calls through.
        failures: So many of the next calls fail with `Unavailable`.
        held: Names of methods whose calls wait for `release`.
        waiting: The calls that wait: the result that the caller has, and the call.
    """

    def __init__(self, target: Any) -> None:
        self.target = target
        self.calls: list[tuple[Any, ...]] = []
        self.error: BaseException | None = None
        self.failures = 0
        self.held: set[str] = set()
        self.waiting: list[tuple[Deferred[Any], Callable[[], Deferred[Any]]]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.target, name)

        def call(*args: Any, **named: Any) -> Deferred[Any]:
            self.calls.append((name, *args))
            if self.failures:
                self.failures -= 1
                return fail(Unavailable())
            if self.error is not None:
                return fail(self.error)
            if name not in self.held:
                return method(*args, **named)
            result: Deferred[Any] = Deferred()
            self.waiting.append((result, lambda: method(*args, **named)))
            return result

        return call

    def count(self, name: str) -> int:
        """Return how often this method was called."""
        return sum(call[0] == name for call in self.calls)

    def release(self, error: Exception | None = None) -> None:
        """Forward the calls that wait, in order; or fail them with ``error``."""
        waiting, self.waiting = self.waiting, []
        for result, call in waiting:
            if error is None:
                call().chainDeferred(result)
            else:
                result.errback(error)


class FakeHooks:
    """Hooks that are in no registry.

    Attributes:
        registered: What `register` returns; None: it fires at once.
        unregistered: The accounts whose hooks were taken out.
    """

    def __init__(self) -> None:
        self.registered: Deferred[None] | None = None
        self.unregistered: list[str] = []

    def register(self, account: str) -> Deferred[None]:
        return self.registered or succeed(None)

    def unregister(self, account: str) -> None:
        self.unregistered.append(account)


class CoreCase(SynchronousTestCase):
    """A clock, a store in memory behind `FaultProxy`, a hub."""

    retention = Retention(length=1000, age=1000.0)
    new_epoch = staticmethod(lambda now: f"e{int(now)}")

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(100)
        self.store = MemoryStore(self.retention, self.clock, shared=True, new_epoch=self.new_epoch)
        self.history: Any = FaultProxy(self.store.history)
        self.registry: Any = FaultProxy(self.store.registry)
        self.hooks = FakeHooks()
        self.hub = self.make_hub()
        self._number = 0

    def append(self, drafts: Sequence[Draft]) -> Deferred[Appended]:
        """Append as a store that several processes share, with calls that can fail or wait."""
        return with_recipients(self.history.append(drafts), self.registry)

    def append_alone(self, drafts: Sequence[Draft]) -> Deferred[Appended]:
        """Append as a store that no other process uses."""
        return with_recipients(self.history.append(drafts), None)

    def make_hub(self, **options: Any) -> Hub:
        """Return a hub on this history."""
        return Hub(self.history, self.clock, hooks=self.hooks, **options)

    def ran(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Return the result of a coroutine that does not wait."""
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def turn(self, times: int = 1) -> None:
        """Run what is due now, and again what is due then."""
        for _ in range(times):
            self.clock.advance(0)

    def settle(self) -> None:
        """Run what is due until nothing is."""
        for _ in range(1000):
            if not any(
                call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()
            ):
                return
            self.clock.advance(0)
        self.fail("something is due for ever")

    def keep(self, count: int = 1, account: str = "a", payload: bytes = b'"data":1') -> list[Event]:
        """Put events into the history, without the hub."""
        drafts = [draft(f"k{self._number + n}", account, payload) for n in range(count)]
        self._number += count
        stored: list[Any] = self.successResultOf(self.store.history.append(drafts))
        return [one.event for one in stored if isinstance(one, Stored)]

    def begin_anew(self) -> None:
        """Empty the history, so that all numberings begin anew."""
        self.store.history.restore(Snapshot({}, []))
        self.clock.advance(1)

    def publish(
        self, count: int = 1, account: str = "a", payload: bytes = b'"data":1'
    ) -> list[Event]:
        """Put events into the history, and have the hub deliver them."""
        events = self.keep(count, account, payload)
        self.hub.publish(events)
        return events

    def subscribed(
        self, after: Cursor | str | None = None, account: str = "a", hub: Hub | None = None
    ) -> Recorder:
        """Return a subscriber of this account."""
        subscriber = Recorder()
        subscriber.subscribe(self.successResultOf((hub or self.hub).admit(account)), after)
        return subscriber
