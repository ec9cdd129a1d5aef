"""
Takes in what is POSTed: drafts -> history -> hub -> relay -> receipts.

The order is the point.  First the events are kept, then the registry is asked who wants them, then
they are delivered here and relayed: so either the publisher sees a subscriber's hook, or the
subscriber's replay sees the event.  Drafts that arrive in one turn of the reactor, or while the
store is busy, are appended together (group commit).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from asyncplumber.concurrency import Waiters
from asyncplumber.core.hub import Hub
from asyncplumber.core.waiting_posts import (
    MAX_WAITING_BYTES,
    MAX_WAITING_EVENTS,
    Group,
    LargePost,
    Outcome,
    Post,
    WaitingPosts,
)
from asyncplumber.errors import InsufficientScope, PlumberError, Unavailable, to_client_error
from asyncplumber.event import Draft, Event, Instance, Stored
from asyncplumber.figures import Histogram
from asyncplumber.grant import OPEN, Grant
from asyncplumber.interfaces import Appended, IRelay, Reached
from asyncplumber.sending import Receipt

# Seconds until a POST is answered, whatever the store does: with 503, or with its receipt if it is
# kept.  Clients are promised 5 seconds, and count from the first byte that they send.
ANSWER_TIMEOUT = 4.5
# Seconds between looks for POSTs that wait too long.  One timer for all costs less than one each.
LATE_CHECK = 0.25
_UNKNOWN = PlumberError()  # of a draft for which the store gave no result
_NOBODY: dict[str, int] = {"ok": 0, "failed": 0}  # in receipts, which do not change them
_ONLY_HERE: dict[str, int] = {"ok": 1, "failed": 0}


class Times:
    """Histograms of one intake."""

    def __init__(self) -> None:
        self.append = Histogram(
            "append_seconds", "Time in which the store has taken a group of events, or failed."
        )
        self.post = Histogram(
            "post_seconds", "Time from a POST, whole and admitted, to its response."
        )
        self.delivery = Histogram(
            "delivery_seconds",
            "Time from a POST to the subscribers of the same process, if it has any.",
        )


class Intake:
    """Takes drafts in and answers with receipts."""

    _log = Logger()

    def __init__(
        self,
        append: Callable[[Sequence[Draft]], Deferred[Appended]],
        hub: Hub,
        clock: IReactorTime,
        *,
        relay: IRelay | None = None,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        max_waiting_events: int = MAX_WAITING_EVENTS,
    ) -> None:
        """
        Args:
            append: See `IStore.append`.
            hub: Delivers to the subscribers of this instance.
            clock: Measures how long a POST waits.
            relay: Sends to the other instances; None: there are none.
            max_waiting_bytes: Bytes of payloads that may wait for the store.
            max_waiting_events: Drafts that may wait for the store.
        """
        self._append = append
        self._hub = hub
        self._clock = clock
        self._relay = relay
        self._waiting = WaitingPosts(max_waiting_bytes, max_waiting_events)
        #: Takes the number of events of a POST that comes now.  Returns the error that it must be
        #: answered with, None if there is room.
        self.is_full = self._waiting.is_full
        # Whether an append is under way or due.  No `SingleFlight` does this: a coroutine for each
        # append would add half to the time that the intake takes for a POST.
        self._is_committing = False
        self._groups: dict[Group, None] = {}  # handed to the store, and not answered yet
        self._closed: PlumberError | None = None
        self._unanswered = 0  # POSTs
        self._all_answered = Waiters()
        self.accepted = 0
        #: How long the store, POSTs and deliveries take.
        self.times = Times()

    def accept(self, drafts: Sequence[Draft], grant: Grant = OPEN) -> Deferred[list[Receipt]]:
        """
        Keep these drafts and send them out.

        Args:
            drafts: Those of one POST.
            grant: What its sender may do; this program's own events need no other than the default.

        Returns:
            A Deferred of their receipts, in their order, which fires after they are kept.  Fails
            with `Unavailable`, `TooManyRequests`, `InsufficientScope` or the error of the first
            draft that was not kept.
            Some drafts may be kept even so, and the POST can be repeated.
        """
        done: Deferred[list[Receipt]] = Deferred()

        def settle(outcome: Outcome) -> None:
            if isinstance(outcome, PlumberError):
                done.errback(outcome)
            else:
                done.callback(outcome)

        self.take(drafts, settle, grant)
        return done

    def take(
        self,
        drafts: Sequence[Draft],
        settle: Callable[[Outcome], None],
        grant: Grant = OPEN,
    ) -> None:
        """
        Do what `accept` does, for the hot path: a Deferred would cost more than a callable.

        Args:
            drafts: Those of one POST.
            settle: Called once, now or later, with the receipts or the error.
            grant: What the sender may do.
        """
        if self._closed is not None:
            settle(self._closed)
            return
        if not drafts:
            settle([])
            return
        if grant is not OPEN and not all(draft.account in grant.publish for draft in drafts):
            settle(InsufficientScope())
            return
        full = self.is_full(len(drafts))
        if full is not None:
            settle(full)
            return
        kind = Post if len(drafts) == 1 else LargePost
        self._waiting.add(kind(drafts, settle, self._clock.seconds()))
        self._unanswered += 1
        if not self._is_committing:
            self._is_committing = True
            self._clock.callLater(0, self._commit)

    def refuse(self) -> None:
        """Accept nothing more."""
        self._closed = Unavailable("this instance is about to stop")

    def resume(self) -> None:
        """Accept again, after a stop."""
        self._closed = None

    async def stop(self) -> None:
        """Accept nothing more, and wait until everything accepted has been answered."""
        self.refuse()
        if self._unanswered:
            await self._all_answered.wait()

    async def answer_late(self) -> None:
        """
        Answer the POSTs that would wait too long until the next call.

        To be called every `LATE_CHECK` seconds.
        """
        oldest = self._clock.seconds() - ANSWER_TIMEOUT + LATE_CHECK
        error = Unavailable("the store did not answer in time")
        for group in list(self._groups):
            late = [post for post, _, _ in group.pieces if post.since <= oldest]
            if group.results is None:
                for post in late:
                    self._settle(post, error)
            elif late:
                # They are kept.  Only how far they got at the other instances is not known yet.
                self._answer(group, {})
        for post in self._waiting.drop_until(oldest):
            self._settle(post, error)

    # From the queue to the store

    def _commit(self) -> None:
        """Append what waits.  One append is under way at a time: order holds and groups form."""
        group, drafts = self._waiting.gather()
        if not drafts:
            self._is_committing = False
            return
        self._groups[group] = None
        group.began = self._clock.seconds()
        try:
            appended = self._append(drafts)
        except Exception:
            appended = fail()
        arguments = (group, appended.called)
        appended.addCallbacks(
            self._appended,
            self._not_appended,
            callbackArgs=arguments,
            errbackArgs=arguments,
        )

    def _appended(self, appended: Appended, group: Group, at_once: bool) -> None:
        self.times.append.observe(self._clock.seconds() - group.began)
        # A slow store works on what has come meanwhile, while this group is delivered.
        self._commit_next(group, at_once)
        try:
            self._deliver(appended, group)
        except Exception:
            self._fail_group(Failure(), group)

    def _not_appended(self, failure: Failure, group: Group, at_once: bool) -> None:
        self.times.append.observe(self._clock.seconds() - group.began)
        self._commit_next(group, at_once)
        self._fail_group(failure, group)

    def _commit_next(self, group: Group, at_once: bool) -> None:
        self._waiting.appended(group)
        if not self._waiting:
            self._is_committing = False
        elif at_once:
            self._clock.callLater(0, self._commit)  # after the deliveries of this group
        else:
            self._commit()

    def _fail_group(self, failure: Failure, group: Group) -> None:
        error = to_client_error(failure, self._log, "appending to the history failed")
        self._groups.pop(group, None)
        for post, _, _ in group.pieces:
            self._settle(post, error)

    # From the store to the subscribers

    def _deliver(self, appended: Appended, group: Group) -> None:
        results = group.results = appended.results
        events, accepted = [], 0
        for result in results:
            if isinstance(result, Stored):
                event, duplicate = result
                # A duplicate goes out as well: the process that took its first POST may have died
                # after it was kept and before it was sent.
                events.append(event)
                accepted += not duplicate
        self.accepted += accepted
        # Counted now: when the receipt is written, a long-poll that was given the event has left.
        group.given = self._hub.publish(events)
        group.delivered = self._clock.seconds()
        if appended.recipients is None:
            self._answer(group, {})
            return
        relayed = Deferred.fromCoroutine(self._send(events, appended.recipients))
        relayed.addErrback(self._not_relayed)
        relayed.addCallback(lambda reached: self._answer(group, reached))
        relayed.addErrback(self._fail_group, group)

    async def _send(
        self, events: list[Event], recipients: Deferred[dict[str, list[Instance]]]
    ) -> dict[str, Reached]:
        instances = await recipients
        return {} if self._relay is None else await self._relay.send(events, instances)

    def _not_relayed(self, failure: Failure) -> dict[str, Reached]:
        # What is kept is accepted.  The others find it when they compare their positions.
        error = to_client_error(failure, self._log, "telling the other instances failed")
        level = LogLevel.debug if isinstance(error, Unavailable) else LogLevel.warn  # as elsewhere
        self._log.emit(level, "the other instances were not told: {error}", error=error.message)
        return {}

    # From the store to the publishers

    def _answer(self, group: Group, reached: dict[str, Reached]) -> None:
        """Answer the POSTs of this group, unless they were answered for being late."""
        if group not in self._groups:
            return
        del self._groups[group]
        given = iter(group.given)
        results = iter(group.results or ())
        for post, begin, drafts in group.pieces:
            if not isinstance(post, LargePost):
                result = next(results, _UNKNOWN)
                if isinstance(result, Stored):
                    here = next(given)
                    if here and not result.duplicate:
                        self.times.delivery.observe(group.delivered - post.since)
                    self._settle(post, [self._receipt(result, here, reached)])
                else:
                    self._settle(post, result)
                continue
            receipts: list[Receipt] = []
            for result in islice(results, len(drafts)):
                if isinstance(result, Stored):
                    here = next(given)
                    if here and not result.duplicate:
                        self.times.delivery.observe(group.delivered - post.since)
                    receipts.append(self._receipt(result, here, reached))
                else:
                    post.broken = post.broken or result
            self._piece_answered(post, begin, len(drafts), receipts)

    def _piece_answered(
        self, post: LargePost, begin: int, count: int, receipts: list[Receipt]
    ) -> None:
        """Keep the receipts of a piece of a POST; answer it if they are all there."""
        # Other instances may answer later pieces first.
        post.left -= count
        if count == len(post.drafts) or post.broken is not None:
            self._settle(post, post.broken or receipts)
            return
        post.receipts = post.receipts or [None] * len(post.drafts)
        post.receipts[begin : begin + count] = receipts
        if not post.left:
            self._settle(post, [receipt for receipt in post.receipts if receipt is not None])

    @staticmethod
    def _receipt(stored: Stored, here: int, reached: dict[str, Reached]) -> Receipt:
        (account, epoch, seq, id, _, _, _, _), duplicate = stored
        cursor = f"{epoch}.{seq}"
        there = reached.get(account)
        if there is None:
            return Receipt(id, cursor, duplicate, here, _ONLY_HERE if here else _NOBODY)
        instances = {"ok": there.ok + (here > 0), "failed": there.failed}
        if there.pending:
            instances["pending"] = there.pending
        return Receipt(id, cursor, duplicate, here + there.subscribers, instances)

    def _settle(self, post: Post, outcome: Outcome) -> None:
        """Answer one POST, once."""
        settle, post.settle = post.settle, None
        if settle is None:
            return
        self._unanswered -= 1
        self.times.post.observe(self._clock.seconds() - post.since)
        try:
            settle(outcome)
        except Exception:
            self._log.failure("a POST could not be answered")
        if not self._unanswered and self._all_answered:
            self._all_answered.release()
