"""
What a POST means: drafts → history → hub → relay → receipts.

The order is the point.  First the events are kept, then the registry is asked who wants them, then they are delivered
here and relayed there: so that either the publisher sees a subscriber's hook, or the subscriber's replay sees the event.
Drafts that arrive in one reactor turn, or while the store is busy, are appended together (group commit).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, fail, gatherResults, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.errors import PlumberError, TooManyRequests, Unavailable, blame
from asyncplumber.event import Draft, Event, Instance, Receipt, Stored
from asyncplumber.hub import Hub
from asyncplumber.interfaces import IHistory, IRegistry, IRelay

GROUP = 1000  # drafts in one append: more gains nothing and makes the first of them wait
WAITING = 64 * 1024 * 1024  # bytes of payloads that wait for the store; beyond that a POST is told to come back
RELAY_PATIENCE = 1.0  # seconds that a receipt waits for other instances; they are relayed to all the same
_ALONE: dict[str, int] = {"ok": 0, "failed": 0}
_HERE: dict[str, int] = {"ok": 1, "failed": 0}


class _Post:
    """The drafts of one POST on their way, and the Deferred of its receipts."""

    __slots__ = ("done", "drafts", "size")

    def __init__(self, drafts: Sequence[Draft]) -> None:
        self.drafts = drafts
        self.size = sum([len(draft.payload) for draft in drafts])
        self.done: Deferred[list[Receipt]] = Deferred()


class Intake:
    """Takes drafts in and answers with receipts."""

    _log = Logger()

    def __init__(
        self,
        history: IHistory,
        hub: Hub,
        clock: Any,
        *,
        registry: IRegistry | None = None,
        relay: IRelay | None = None,
        instance: Instance | None = None,
        waiting: int = WAITING,
    ) -> None:
        """Without a registry this instance is alone.  `waiting` is in bytes, see `WAITING`."""
        self._history = history
        self._hub = hub
        self._clock = clock
        self._registry = registry
        self._relay = relay
        self._instance = instance
        self._limit = waiting
        self._posts: list[_Post] = []
        self._size = 0
        self._busy = False
        self._closed: PlumberError | None = None
        self._under_way: set[_Post] = set()
        self._hanging: set[str] = set()  # instances whose answer is overdue
        self.accepted = 0

    def accept(self, drafts: Sequence[Draft]) -> Deferred[list[Receipt]]:
        """
        Keep these drafts and send them out.

        @return: Deferred of their receipts, in their order; fires after they are kept.  Fails with `Unavailable`,
            `TooManyRequests` or what befell a draft; then some may be kept all the same, and the POST can be repeated.
        """
        if self._closed is not None:
            return fail(self._closed)
        if self._size > self._limit:
            return fail(TooManyRequests("the store does not keep up with what is posted", retry_after=1))
        post = _Post(drafts)
        self._posts.append(post)
        self._under_way.add(post)
        self._size += post.size
        if not self._busy:
            self._busy = True
            self._clock.callLater(0, self._commit)
        return post.done

    def refuse(self) -> None:
        """Accept nothing more."""
        self._closed = Unavailable("this instance is about to stop")

    def stop(self) -> Deferred[None]:
        """Accept nothing more.  @return: Deferred that fires when everything accepted has been answered."""
        self.refuse()
        return DeferredList([self._shadow(post.done) for post in self._under_way]).addCallback(lambda _: None)

    @staticmethod
    def _shadow(done: Deferred[Any]) -> Deferred[None]:
        """A Deferred that fires after `done`, whatever it brings, and leaves it alone."""
        shadow: Deferred[None] = Deferred()

        def pass_on(result: Any) -> Any:
            shadow.callback(None)
            return result

        done.addBoth(pass_on)
        return shadow

    def _commit(self) -> None:
        """Append what waits; one append is under way at a time, so that order holds and groups form."""
        group: list[Draft] = []
        taken = 0
        for post in self._posts:
            if group and len(group) + len(post.drafts) > GROUP:
                break
            group.extend(post.drafts)
            taken += 1
        posts, self._posts = self._posts[:taken], self._posts[taken:]
        if not posts:
            self._busy = False
            return
        appended = maybeDeferred(self._history.append, group)
        appended.addCallback(self._kept, posts)
        appended.addErrback(self._refused, posts)
        appended.addCallback(lambda _: self._next(posts))

    def _next(self, posts: list[_Post]) -> None:
        self._size -= sum([post.size for post in posts])
        if self._posts:
            self._clock.callLater(0, self._commit)
        else:
            self._busy = False

    def _refused(self, failure: Failure, posts: list[_Post]) -> None:
        error = blame(failure, self._log, "appending to the history failed")
        for post in posts:
            self._end(post, error)

    def _end(self, post: _Post, outcome: list[Receipt] | PlumberError) -> None:
        """Answer one POST, once."""
        if post not in self._under_way:
            return
        self._under_way.remove(post)
        if isinstance(outcome, PlumberError):
            post.done.errback(outcome)
        else:
            post.done.callback(outcome)

    def _kept(self, results: list[Stored | PlumberError], posts: list[_Post]) -> None:
        # A duplicate goes out again as well: should its first POST have died between keeping and sending, this heals it.
        events = [result.event for result in results if isinstance(result, Stored)]
        self.accepted += sum([isinstance(result, Stored) and not result.duplicate for result in results])
        self._hub.publish(events)
        if self._registry is None or not events:
            self._answer(posts, results, {})
            return
        elsewhere = Deferred.fromCoroutine(self._send_elsewhere(self._registry, events))
        elsewhere.addErrback(self._not_sent)
        elsewhere.addCallback(lambda reached: self._answer(posts, results, reached))
        elsewhere.addErrback(self._refused, posts)

    def _not_sent(self, failure: Failure) -> dict[str, tuple[int, dict[str, int]]]:
        # What was kept is accepted; the others find it when they compare their positions.
        error = blame(failure, self._log, "telling the other instances failed")
        self._log.warn("the other instances were not told: {error}", error=error.message)
        return {}

    def _answer(
        self, posts: list[_Post], results: list[Stored | PlumberError], reached: dict[str, tuple[int, dict[str, int]]]
    ) -> None:
        at = 0
        for post in posts:
            receipts: list[Receipt] = []
            broken: PlumberError | None = None
            for result in results[at : at + len(post.drafts)]:
                if isinstance(result, Stored):
                    receipts.append(self._receipt(result, reached))
                else:
                    broken = broken or result
            at += len(post.drafts)
            self._end(post, broken or receipts)

    def _receipt(self, stored: Stored, reached: dict[str, tuple[int, dict[str, int]]]) -> Receipt:
        event, duplicate = stored
        here = self._hub.count(event.account)
        there, instances = reached.get(event.account, (0, _HERE if here else _ALONE))
        if here and instances is not _HERE:
            instances = {**instances, "ok": instances["ok"] + 1}
        return Receipt(event, duplicate, here + there, instances)

    async def _send_elsewhere(self, registry: IRegistry, events: list[Event]) -> dict[str, tuple[int, dict[str, int]]]:
        """Relay to whoever wants these accounts.  @return: per account, subscribers there and how many instances took it."""
        accounts = {event.account for event in events}
        wanted = await registry.instances(accounts)
        parcels: dict[Instance, list[Event]] = {}
        for event in events:
            for instance in wanted.get(event.account, ()):
                if self._instance is None or instance.id != self._instance.id:
                    parcels.setdefault(instance, []).append(event)
        if not parcels or self._relay is None:
            return {}
        relay = self._relay
        carried = await gatherResults(
            [self._patiently(to.id, maybeDeferred(relay.carry, to, parcel)) for to, parcel in parcels.items()]
        )
        return self._tally(zip(parcels.values(), carried, strict=True))

    @staticmethod
    def _tally(outcomes: Iterable[tuple[list[Event], dict[str, int] | str]]) -> dict[str, tuple[int, dict[str, int]]]:
        reached: dict[str, tuple[int, dict[str, int]]] = {}
        for parcel, outcome in outcomes:
            for account in {event.account for event in parcel}:
                subscribers, instances = reached.setdefault(account, (0, {"ok": 0, "failed": 0}))
                if isinstance(outcome, str):
                    instances[outcome] = instances.get(outcome, 0) + 1
                elif outcome.get(account):
                    instances["ok"] += 1
                    reached[account] = subscribers + outcome[account], instances
        return reached

    def _patiently(self, id: str, carried: Deferred[dict[str, int]]) -> Deferred[dict[str, int] | str]:
        """
        The outcome of relaying to one instance: what it answered, or "failed", or "pending" if that takes too long.

        An instance that has kept one receipt waiting keeps no other one waiting until it answers.
        """
        outcome: Deferred[dict[str, int] | str] = Deferred()

        def give_up() -> None:
            self._hanging.add(id)
            outcome.callback("pending")

        late = self._clock.callLater(0 if id in self._hanging else RELAY_PATIENCE, give_up)

        def settle(result: dict[str, int] | Failure) -> None:
            self._hanging.discard(id)
            if late.active():
                late.cancel()
                outcome.callback("failed" if isinstance(result, Failure) else result)

        carried.addBoth(settle)
        return outcome
