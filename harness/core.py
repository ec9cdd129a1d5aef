"""
What the tests of the core share: a subscriber that writes down what it is told, and rooms that fail
when a test says so.
"""

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
from asyncplumber.stores.memory import MemoryStore
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
    """A subscriber that writes down all it is told."""

    def __init__(self) -> None:
        self.page_size = PAGE_BYTES
        self.told: list[tuple[Any, ...]] = []
        self.events: list[Event] = []
        self.batches: list[int] = []
        self.ended: list[PlumberError | None] = []
        self.room: Deferred[None] | None = None  # what `drained` answers; None: there is room
        self.on_deliver: Callable[[Delivery], None] = lambda batch: None
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
        return [each.seq for each in self.events]

    @property
    def stand(self) -> Cursor:
        """The cursor with which it would come back."""
        for word, *words in reversed(self.told):
            if word == "missed":
                return words[1].cursor
            if word == "opened" or words[0].epoch:
                return words[0] if word == "opened" else words[0].cursor
        raise AssertionError("it was never told where it stands")

    def opened(self, cursor: Cursor) -> None:
        self.told.append(("opened", cursor))

    def deliver(self, batch: Delivery) -> None:
        self.batches.append(len(batch.events))
        for each in batch.events:
            self.events.append(each)
            self.told.append(("event", each))
        self.on_deliver(batch)

    def caught_up(self) -> None:
        """Not written down: it says nothing about what came."""

    def missed(self, cursor: Cursor, position: Position) -> None:
        self.told.append(("missed", cursor, position))

    def drained(self) -> Deferred[None]:
        return self.room or succeed(None)

    def end(self, error: PlumberError | None) -> None:
        self.ended.append(error)


class FaultProxy:
    """
    Stands before a room, and lets calls through, or fails them, or keeps them waiting; and counts
    them.

    `away` makes every call fail; `kept` lists names of methods whose answers wait until `let_go`.
    """

    def __init__(self, room: Any) -> None:
        self.room = room
        self.away: BaseException | None = None
        self.fails = 0
        self.kept: set[str] = set()
        self.calls: list[tuple[Any, ...]] = []
        self.waiting: list[tuple[Deferred[Any], Callable[[], Deferred[Any]]]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.room, name)

        def call(*args: Any) -> Deferred[Any]:
            self.calls.append((name, *args))
            if self.fails:
                self.fails -= 1
                return fail(Unavailable())
            if self.away is not None:
                return fail(self.away)
            if name not in self.kept:
                return method(*args)
            answer: Deferred[Any] = Deferred()
            self.waiting.append((answer, lambda: method(*args)))
            return answer

        return call

    def count(self, name: str) -> int:
        return sum(call[0] == name for call in self.calls)

    def let_go(self, error: Exception | None = None) -> None:
        """The calls that wait reach the room now, in order; or fail with `error`."""
        waiting, self.waiting = self.waiting, []
        for answer, ask in waiting:
            if error is None:
                ask().chainDeferred(answer)
            else:
                answer.errback(error)


class CoreCase(SynchronousTestCase):
    """A clock, a store in memory behind `FaultProxy`, a hub."""

    retention = Retention(length=1000, age=1000.0)
    new_epoch = staticmethod(lambda now: f"e{int(now)}")

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(100)
        self.store = MemoryStore(self.retention, self.clock, shared=True, new_epoch=self.new_epoch)
        self.history = FaultProxy(self.store.history)
        self.registry = FaultProxy(self.store.registry)
        self.released: list[str] = []
        self.hub = self.make_hub()
        self._number = 0

    def append(self, drafts: Sequence[Draft]) -> Deferred[Appended]:
        """Append as a store that several processes share, with calls that can fail or wait."""
        return with_recipients(self.history.append(drafts), self.registry)

    def append_alone(self, drafts: Sequence[Draft]) -> Deferred[Appended]:
        """Append as a store that no other process uses."""
        return with_recipients(self.history.append(drafts), None)

    def make_hub(self, **options: Any) -> Hub:
        return Hub(self.history, self.clock, release=self.released.append, **options)

    def ran(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def turn(self, times: int = 1) -> None:
        """Give the reactor so many turns, in which no time passes."""
        for _ in range(times):
            self.clock.advance(0)

    def settle(self) -> None:
        """Turns until nothing is due."""
        for _ in range(1000):
            if not any(
                call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()
            ):
                return
            self.clock.advance(0)
        self.fail("it never comes to rest")

    def keep(self, count: int = 1, account: str = "a", payload: bytes = b'"data":1') -> list[Event]:
        """Put events into the history, by the back door."""
        drafts = [draft(f"k{self._number + n}", account, payload) for n in range(count)]
        self._number += count
        stored: list[Any] = self.successResultOf(self.store.history.append(drafts))
        return [one.event for one in stored if isinstance(one, Stored)]

    def begin_anew(self) -> None:
        """The history forgets all that it has, numberings too."""
        self.store.history._logs.clear()
        self.store.history._epochs.clear()
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
        subscriber = Recorder()
        subscriber.subscribe(self.successResultOf((hub or self.hub).admit(account)), after)
        return subscriber
