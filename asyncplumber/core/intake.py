"""
What a POST means: drafts → history → hub → relay → receipts.

The order is the point.  First the events are kept, then the registry is asked who wants them, then
they are delivered here and relayed there: so that either the publisher sees a subscriber's hook, or
the subscriber's replay sees the event. Drafts that arrive in one reactor turn, or while the store
is busy, are appended together (group commit).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.core.forwarding import Forwarder, Reached
from asyncplumber.core.hub import Hub
from asyncplumber.core.waiting_posts import (
    WAITING,
    WAITING_EVENTS,
    Group,
    Outcome,
    Post,
    WaitingPosts,
)
from asyncplumber.errors import PlumberError, Unavailable, to_client_error
from asyncplumber.event import Draft, Instance, Stored
from asyncplumber.interfaces import Appended, IRelay
from asyncplumber.sending import Receipt

# Seconds until a POST is answered, whatever the store does: 503, or its receipt if it is kept.  5
# are promised to clients, who count from the first byte that they send.
PATIENCE = 4.5
# seconds between looks for what waits too long: one timer for all costs less than one for each
TICK = 0.25
_UNKNOWN = PlumberError()  # of a draft that the store did not answer for
_ALONE: dict[str, int] = {"ok": 0, "failed": 0}
_HERE: dict[str, int] = {"ok": 1, "failed": 0}


T = TypeVar("T")


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
        waiting_events: int = WAITING_EVENTS,
    ) -> None:
        """
        `append` is that of an `IStore`; without a relay this instance is alone.

        `waiting` is in bytes, see `WAITING`, and `waiting_events` in drafts.
        """
        self._append = append
        self._hub = hub
        self._clock = clock
        self._forwarder = Forwarder(relay, instance, clock)
        self._waiting = WaitingPosts(waiting, waiting_events)
        # : Takes a number of events and returns the error for a POST of so many that comes now,
        # None if there is room.
        self.is_full = self._waiting.is_full
        self._busy = False
        self._groups: dict[Group, None] = {}  # handed to the store, and not answered yet
        self._closed: PlumberError | None = None
        self._under_way = 0  # POSTs that are not answered yet
        self._settled: list[Deferred[None]] = []  # wait until there are none
        self.accepted = 0

    def accept(self, drafts: Sequence[Draft]) -> Deferred[list[Receipt]]:
        """
        Keep these drafts and send them out.

        @return: Deferred of their receipts, in their order; fires after they are kept.  Fails with
        `Unavailable`,
            `TooManyRequests` or what befell a draft; then some may be kept all the same, and the
            POST can be repeated.
        """
        done: Deferred[list[Receipt]] = Deferred()
        self.take(
            drafts,
            lambda outcome: (
                done.errback(outcome)
                if isinstance(outcome, PlumberError)
                else done.callback(outcome)
            ),
        )
        return done

    def take(self, drafts: Sequence[Draft], settle: Callable[[Outcome], None]) -> None:
        """
        The same for the hot path: `settle` is called with the receipts, or with the error.  A
        Deferred costs more than that.
        """
        if self._closed is not None:
            settle(self._closed)
            return
        if not drafts:
            settle([])
            return
        busy = self.is_full(len(drafts))
        if busy is not None:
            settle(busy)
            return
        self._waiting.add(Post(drafts, settle, self._clock.seconds()))
        self._under_way += 1
        if not self._busy:
            self._busy = True
            self._clock.callLater(0, self._commit)

    def refuse(self) -> None:
        """Accept nothing more."""
        self._closed = Unavailable("this instance is about to stop")

    def resume(self) -> None:
        """Accept again, after a stop."""
        self._closed = None

    def stop(self) -> Deferred[None]:
        """
        Accept nothing more.  @return: Deferred that fires when everything accepted has been
        answered.
        """
        self.refuse()
        settled: Deferred[None] = Deferred()
        if self._under_way:
            self._settled.append(settled)
        else:
            settled.callback(None)
        return settled

    def _commit(self) -> None:
        """
        Append what waits; one append is under way at a time, so that order holds and groups form.
        """
        group, drafts = self._waiting.gather()
        if not drafts:
            self._busy = False
            return
        self._groups[group] = None
        appended = maybeDeferred(self._append, drafts)
        # A store that takes its time works on what has come meanwhile, while we deliver.
        appended.addBoth(self._next, group, len(drafts), appended.called)
        appended.addCallback(self._kept, group)
        appended.addErrback(self._refused, group)

    async def answer_late(self) -> None:
        """
        Answer what would have waited too long at the next call.  To be called every `TICK` seconds.
        """
        oldest = self._clock.seconds() - PATIENCE + TICK
        error = Unavailable("the store did not answer in time")
        for group in list(self._groups):
            late = [post for post, _, _ in group.pieces if post.since <= oldest]
            if group.results is None:
                for post in late:
                    self._end(post, error)
            elif late:
                # They are kept.  What is not known yet is only who else was told.
                self._answer(group, {})
        for post in self._waiting.drop_until(oldest):
            self._end(post, error)

    def _next(self, result: T, group: Group, count: int, at_once: bool) -> T:
        self._waiting.appended(group, count)
        if not self._waiting:
            self._busy = False
        elif at_once:
            self._clock.callLater(0, self._commit)  # after the deliveries of this one
        else:
            self._commit()
        return result

    def _refused(self, failure: Failure, group: Group) -> None:
        error = to_client_error(failure, self._log, "appending to the history failed")
        self._groups.pop(group, None)
        for post, _, _ in group.pieces:
            self._end(post, error)

    def _end(self, post: Post, outcome: Outcome) -> None:
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

    def _kept(self, appended: Appended, group: Group) -> None:
        results = appended.results
        group.results = results
        # A duplicate goes out again as well: should its first POST have died between retention and
        # sending, this heals it.
        events = [result.event for result in results if isinstance(result, Stored)]
        self.accepted += sum(
            [isinstance(result, Stored) and not result.duplicate for result in results]
        )
        # Counted now: when the receipt is written a long-poll that was given the event is gone.
        group.given = self._hub.publish(events)
        if appended.recipients is None:
            self._answer(group, {})
            return
        elsewhere = Deferred.fromCoroutine(self._forwarder.send(appended.recipients, events))
        elsewhere.addErrback(self._not_sent)
        elsewhere.addCallback(lambda reached: self._answer(group, reached))
        elsewhere.addErrback(self._refused, group)

    def _not_sent(self, failure: Failure) -> Reached:
        # What was kept is accepted; the others find it when they compare their positions.
        error = to_client_error(failure, self._log, "telling the other instances failed")
        self._log.warn("the other instances were not told: {error}", error=error.message)
        return {}

    def _answer(self, group: Group, reached: Reached) -> None:
        if group not in self._groups:
            return  # they were answered, as too much time had passed
        del self._groups[group]
        here = iter(group.given)
        results = iter(group.results or ())
        for post, begin, drafts in group.pieces:
            if len(post.drafts) == 1:
                result = next(results, _UNKNOWN)
                if isinstance(result, Stored):
                    self._end(post, [self._receipt(result, next(here), reached)])
                else:
                    self._end(post, result)
                continue
            receipts: list[Receipt] = []
            for result in islice(results, len(drafts)):
                if isinstance(result, Stored):
                    receipts.append(self._receipt(result, next(here), reached))
                else:
                    post.broken = post.broken or result
            self._received(post, begin, len(drafts), receipts)

    def _received(self, post: Post, begin: int, count: int, receipts: list[Receipt]) -> None:
        """Those of some of its drafts are there.  Other instances may answer later pieces first."""
        post.left -= count
        if count == len(post.drafts) or post.broken is not None:
            self._end(post, post.broken or receipts)
            return
        post.receipts = post.receipts or [None] * len(post.drafts)
        post.receipts[begin : begin + count] = receipts
        if not post.left:
            self._end(post, [receipt for receipt in post.receipts if receipt is not None])

    @staticmethod
    def _receipt(stored: Stored, here: int, reached: Reached) -> Receipt:
        (account, epoch, seq, id, _, _, _, _), duplicate = stored
        cursor = f"{epoch}.{seq}"
        if not reached:
            return Receipt(id, cursor, duplicate, here, _HERE if here else _ALONE)
        there, instances = reached.get(account, (0, _HERE if here else _ALONE))
        if here and instances is not _HERE:
            instances = {**instances, "ok": instances["ok"] + 1}
        return Receipt(id, cursor, duplicate, here + there, instances)
