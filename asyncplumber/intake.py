"""
What a POST means: drafts → history → hub → relay → receipts.

The order is the point.  First the events are kept, then the registry is asked who wants them, then they are delivered
here and relayed there: so that either the publisher sees a subscriber's hook, or the subscriber's replay sees the event.
Drafts that arrive in one reactor turn, or while the store is busy, are appended together (group commit).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.errors import PlumberError, TooManyRequests, Unavailable, blame
from asyncplumber.event import Draft, Event, Instance, Receipt, Stored
from asyncplumber.hub import Hub
from asyncplumber.interfaces import Appended, IRelay

GROUP = 1000  # drafts in one append: more gains nothing and makes the first of them wait
WAITING = 64 * 1024 * 1024  # bytes of payloads that wait for the store; beyond that a POST is told to come back
RELAY_PATIENCE = 1.0  # seconds that a receipt waits for other instances; they are relayed to all the same
_ALONE: dict[str, int] = {"ok": 0, "failed": 0}
_HERE: dict[str, int] = {"ok": 1, "failed": 0}


T = TypeVar("T")
# What becomes of a POST: a receipt for each of its drafts, or why there is none.
Outcome = list[Receipt] | PlumberError


class _Post:
    """The drafts of one POST on their way, and who is told what became of them, once."""

    __slots__ = ("drafts", "settle", "size")

    def __init__(self, drafts: Sequence[Draft], settle: Callable[[Outcome], None]) -> None:
        self.drafts = drafts
        self.size = len(drafts[0].payload) if len(drafts) == 1 else sum([len(draft.payload) for draft in drafts])
        self.settle: Callable[[Outcome], None] | None = settle


class Intake:
    """Takes drafts in and answers with receipts."""

    _log = Logger()

    def __init__(
        self,
        append: Callable[[Sequence[Draft]], Deferred[Appended]],
        hub: Hub,
        clock: Any,
        *,
        relay: IRelay | None = None,
        instance: Instance | None = None,
        waiting: int = WAITING,
    ) -> None:
        """`append` is that of an `IStore`; without a relay this instance is alone.  `waiting` is in bytes, see `WAITING`."""
        self._append = append
        self._hub = hub
        self._clock = clock
        self._relay = relay
        self._instance = instance
        self._limit = waiting
        self._posts: list[_Post] = []
        self._size = 0
        self._busy = False
        self._closed: PlumberError | None = None
        self._under_way = 0  # POSTs that are not answered yet
        self._settled: list[Deferred[None]] = []  # wait until there are none
        self._hanging: set[str] = set()  # instances whose answer is overdue
        self.accepted = 0

    def accept(self, drafts: Sequence[Draft]) -> Deferred[list[Receipt]]:
        """
        Keep these drafts and send them out.

        @return: Deferred of their receipts, in their order; fires after they are kept.  Fails with `Unavailable`,
            `TooManyRequests` or what befell a draft; then some may be kept all the same, and the POST can be repeated.
        """
        done: Deferred[list[Receipt]] = Deferred()
        self.take(drafts, lambda outcome: done.errback(outcome) if isinstance(outcome, PlumberError) else done.callback(outcome))
        return done

    def take(self, drafts: Sequence[Draft], settle: Callable[[Outcome], None]) -> None:
        """The same for the hot path: `settle` is called with the receipts, or with the error.  A Deferred costs more than that."""
        if self._closed is not None:
            settle(self._closed)
            return
        if self._size > self._limit:
            settle(TooManyRequests("the store does not keep up with what is posted", retry_after=1))
            return
        post = _Post(drafts, settle)
        self._posts.append(post)
        self._under_way += 1
        self._size += post.size
        if not self._busy:
            self._busy = True
            self._clock.callLater(0, self._commit)

    def refuse(self) -> None:
        """Accept nothing more."""
        self._closed = Unavailable("this instance is about to stop")

    def stop(self) -> Deferred[None]:
        """Accept nothing more.  @return: Deferred that fires when everything accepted has been answered."""
        self.refuse()
        settled: Deferred[None] = Deferred()
        if self._under_way:
            self._settled.append(settled)
        else:
            settled.callback(None)
        return settled

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
        appended = maybeDeferred(self._append, group)
        # A store that takes its time works on what has come meanwhile, while we deliver.
        appended.addBoth(self._next, posts, appended.called)
        appended.addCallback(self._kept, posts)
        appended.addErrback(self._refused, posts)

    def _next(self, result: T, posts: list[_Post], at_once: bool) -> T:
        self._size -= sum([post.size for post in posts])
        if not self._posts:
            self._busy = False
        elif at_once:
            self._clock.callLater(0, self._commit)  # after the deliveries of this one
        else:
            self._commit()
        return result

    def _refused(self, failure: Failure, posts: list[_Post]) -> None:
        error = blame(failure, self._log, "appending to the history failed")
        for post in posts:
            self._end(post, error)

    def _end(self, post: _Post, outcome: Outcome) -> None:
        """Answer one POST, once."""
        settle, post.settle = post.settle, None
        if settle is None:
            return
        self._under_way -= 1
        try:
            settle(outcome)
        except Exception:
            self._log.failure("a POST could not be answered")
        if self._settled and not self._under_way:
            waiting, self._settled = self._settled, []
            for settled in waiting:
                settled.callback(None)

    def _kept(self, appended: Appended, posts: list[_Post]) -> None:
        results, wanted = appended
        # A duplicate goes out again as well: should its first POST have died between keeping and sending, this heals it.
        events = [result.event for result in results if isinstance(result, Stored)]
        self.accepted += sum([isinstance(result, Stored) and not result.duplicate for result in results])
        # Counted now: when the receipt is written a long-poll that was given the event is gone.
        given = self._hub.publish(events)
        if wanted is None:
            self._answer(posts, results, given, {})
            return
        elsewhere = Deferred.fromCoroutine(self._send_elsewhere(wanted, events))
        elsewhere.addErrback(self._not_sent)
        elsewhere.addCallback(lambda reached: self._answer(posts, results, given, reached))
        elsewhere.addErrback(self._refused, posts)

    def _not_sent(self, failure: Failure) -> dict[str, tuple[int, dict[str, int]]]:
        # What was kept is accepted; the others find it when they compare their positions.
        error = blame(failure, self._log, "telling the other instances failed")
        self._log.warn("the other instances were not told: {error}", error=error.message)
        return {}

    def _answer(
        self,
        posts: list[_Post],
        results: list[Stored | PlumberError],
        given: list[int],
        reached: dict[str, tuple[int, dict[str, int]]],
    ) -> None:
        """`given` has the subscribers here of each result that is `Stored`."""
        here = iter(given)
        at = 0
        for post in posts:
            receipts: list[Receipt] = []
            broken: PlumberError | None = None
            end = at + len(post.drafts)
            for result in results[at:end]:
                if isinstance(result, Stored):
                    receipts.append(self._receipt(result, next(here), reached))
                else:
                    broken = broken or result
            at = end
            self._end(post, broken or receipts)

    @staticmethod
    def _receipt(stored: Stored, here: int, reached: dict[str, tuple[int, dict[str, int]]]) -> Receipt:
        event, duplicate = stored
        if not reached:
            return Receipt(event, duplicate, here, _HERE if here else _ALONE)
        there, instances = reached.get(event.account, (0, _HERE if here else _ALONE))
        if here and instances is not _HERE:
            instances = {**instances, "ok": instances["ok"] + 1}
        return Receipt(event, duplicate, here + there, instances)

    async def _send_elsewhere(
        self, wanted: Deferred[dict[str, list[Instance]]], events: list[Event]
    ) -> dict[str, tuple[int, dict[str, int]]]:
        """Relay to whoever wants these events.  @return: per account, subscribers there and how many instances took it."""
        instances = await wanted
        parcels: dict[Instance, list[Event]] = {}
        for event in events:
            for instance in instances.get(event.account, ()):
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
