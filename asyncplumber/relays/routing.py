"""
The relay: which events go to which instance, how long a receipt waits, and what it counts.

The registry says who wants an event, a carrier moves the batches.  Each instance has a queue, and
one batch in flight: order is kept, and events that pile up are sent together.

A batch that fails loses nothing.  The events are in the history, and the other instance compares
its positions with it.  So an instance that fails is left alone for a while, and is pruned from the
registry if it goes on failing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import NoReturn

from twisted.internet.defer import Deferred, fail, gatherResults, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from asyncplumber.event import Event, Instance
from asyncplumber.interfaces import (
    Deliver,
    ICarrier,
    InstanceGone,
    IRegistry,
    IRelay,
    Reached,
    RelayFailed,
)
from asyncplumber.relays.peer import Peer

CARRY_TIMEOUT = 5.0  # seconds until a batch that is not answered has failed
RECEIPT_TIMEOUT = 1.0  # seconds that a receipt waits for the answers of other instances
STOP_TIMEOUT = 8.0  # seconds that `stop` waits for batches in flight
MAX_FAILURES = 3  # in a row; then the instance is pruned, unless it has renewed its lease since
FAILURES_EXPIRE = 120.0  # seconds until the failures of an instance to which nothing is sent expire


class _Missed(Enum):
    """Why the answer of an instance is not in a receipt."""

    FAILED = "failed"
    PENDING = "pending"


_Outcome = dict[str, int] | _Missed  # of a batch: subscribers for each account


def _timed_out(_: object, timeout: float) -> NoReturn:
    raise RelayFailed(f"no answer within {timeout:g} s")


def _merge(answers: list[dict[str, int]]) -> dict[str, int]:
    return {account: count for answer in answers for account, count in answer.items()}


@implementer(IRelay)
class Relay:
    """Sends events to the instances that the registry names."""

    _log = Logger()

    def __init__(
        self,
        carrier: ICarrier,
        registry: IRegistry,
        instance_id: str,
        clock: IReactorTime,
        *,
        timeout: float = CARRY_TIMEOUT,
    ) -> None:
        """
        Args:
            carrier: Moves the batches.
            registry: Where instances that do not answer are pruned.
            instance_id: The id of this instance, to which nothing is sent.
            clock: Measures the time-outs.
            timeout: Seconds until a batch that is not answered has failed.
        """
        self._carrier = carrier
        self._registry = registry
        self._instance_id = instance_id
        self._clock = clock
        self._timeout = timeout
        self._peers: dict[str, Peer] = {}  # by id: those that are sent something, or have failed
        self._carrying: set[Deferred[dict[str, int]]] = set()
        self._stopped = False
        self.relayed = 0  # events that another instance took, counted for each instance
        self.failed = 0  # batches that another instance did not take

    def start(self, deliver: Deliver) -> Deferred[None]:
        """See `IRelay.start`."""
        self._stopped = False
        return self._carrier.start(deliver)

    def stop(self) -> Deferred[None]:
        """See `IRelay.stop`.  What is under way has `STOP_TIMEOUT` seconds."""
        self._stopped = True
        busy = [peer.sending.run() for peer in self._peers.values() if peer.sending.is_running]
        idle = gatherResults(busy, consumeErrors=True).addCallback(lambda _: None)
        idle.addTimeout(STOP_TIMEOUT, self._clock, onTimeoutCancel=lambda *_: None)
        return idle.addCallback(lambda _: self._close())

    def _close(self) -> Deferred[None]:
        # What waited for too long first: a batch that is cancelled would make room for it.
        for peer in list(self._peers.values()):
            for answer in peer.drop():
                answer.errback(RelayFailed("this instance stops"))
        for carrying in list(self._carrying):
            carrying.cancel()
        return self._carrier.stop()

    def peers(self) -> list[tuple[Instance, int, int]]:
        """Return each instance that events wait for, or that failed: queued events, failures."""
        return [(peer.instance, peer.queued, peer.failures) for peer in self._peers.values()]

    # Whom to send what, and what the receipt says

    def send(
        self, events: Sequence[Event], recipients: Mapping[str, Sequence[Instance]]
    ) -> Deferred[dict[str, Reached]]:
        """See `IRelay.send`."""
        batches: dict[Instance, list[Event]] = {}
        for event in events:
            for instance in recipients.get(event.account, ()):
                if instance.id != self._instance_id:
                    batches.setdefault(instance, []).append(event)
        if not batches:
            return succeed({})
        outcomes = gatherResults(
            [self._with_timeout(instance, batch) for instance, batch in batches.items()]
        )
        return outcomes.addCallback(
            lambda found: self._count(zip(batches.values(), found, strict=True))
        )

    @staticmethod
    def _count(outcomes: Iterable[tuple[list[Event], _Outcome]]) -> dict[str, Reached]:
        reached: dict[str, Reached] = {}
        for events, outcome in outcomes:
            for account in {event.account for event in events}:
                found = reached.setdefault(account, Reached())
                if outcome is _Missed.FAILED:
                    found.failed += 1
                elif outcome is _Missed.PENDING:
                    found.pending += 1
                elif subscribers := outcome.get(account):
                    found.ok += 1
                    found.subscribers += subscribers
        return reached

    def _with_timeout(self, instance: Instance, events: list[Event]) -> Deferred[_Outcome]:
        """
        Send a batch, and return a Deferred of its outcome that fires in time and does not fail.

        An instance that let one receipt wait in vain lets no further one wait until it answers.
        """
        outcome: Deferred[_Outcome] = Deferred()
        peer = self._peers.get(instance.id)
        if peer is None:
            peer = self._peers[instance.id] = Peer(instance, self._send_all)
        peer.instance = instance

        def give_up() -> None:
            peer.is_overdue = True
            outcome.callback(_Missed.PENDING)

        late = self._clock.callLater(0 if peer.is_overdue else RECEIPT_TIMEOUT, give_up)

        def settle(answer: dict[str, int] | Failure) -> None:
            if late.active():
                late.cancel()
                outcome.callback(_Missed.FAILED if isinstance(answer, Failure) else answer)

        self._enqueue(peer, events).addBoth(settle)
        return outcome

    # One batch after the other, to each instance

    def _enqueue(self, peer: Peer, events: list[Event]) -> Deferred[dict[str, int]]:
        """Queue events for an instance.  Fails with `RelayFailed`."""
        if self._stopped:
            return fail(RelayFailed("this instance stops"))
        if self._clock.seconds() < peer.retry_at:
            return fail(RelayFailed("the instance did not answer a moment ago"))
        try:
            answers = peer.add(events)
        except RelayFailed as error:
            return fail(error)
        peer.sending.request()
        if len(answers) == 1:
            return answers[0]
        return gatherResults(answers, consumeErrors=True).addCallback(_merge)

    async def _send_all(self, peer: Peer) -> None:
        """Carry what is queued for this instance."""
        if peer.has_queued:
            # In the next turn of the reactor, so that what is queued in this one goes along.
            await deferLater(self._clock, 0)
        while peer.has_queued:
            events, answers = peer.take()
            try:
                counts = await self._carry(peer, events)
            except RelayFailed as error:
                self.failed += 1
                for answer in [*answers, *peer.drop()]:
                    answer.errback(error)
                await self._handle_failure(peer, error)
            else:
                peer.forget_failures()
                self.relayed += len(events)
                for answer in answers:
                    answer.callback(counts)
        if not peer.failures:
            self._forget(peer)

    async def _carry(self, peer: Peer, events: Sequence[Event]) -> dict[str, int]:
        """Carry one batch.  Raises `RelayFailed`, also when it takes too long."""
        carrying: Deferred[dict[str, int]] = maybeDeferred(
            self._carrier.carry, peer.instance, events
        )
        carrying.addTimeout(self._timeout, self._clock, onTimeoutCancel=_timed_out)
        self._carrying.add(carrying)
        try:
            return await carrying
        except RelayFailed:
            raise
        except Exception as error:
            raise RelayFailed(f"{type(error).__name__}: {error}") from error
        finally:
            self._carrying.discard(carrying)
            peer.is_overdue = False

    def _forget(self, peer: Peer) -> None:
        if self._peers.get(peer.instance.id) is peer:
            del self._peers[peer.instance.id]

    # Instances that fail

    async def _handle_failure(self, peer: Peer, error: RelayFailed) -> None:
        """Leave the instance alone for a while; prune it if it keeps failing, or is gone."""
        peer.failed(self._clock.seconds())
        self._log.warn(
            "relaying to {id} failed ({failures}): {error}",
            id=peer.instance.id,
            failures=peer.failures,
            error=str(error),
        )
        self._expire_failures()
        if peer.failures < MAX_FAILURES and not isinstance(error, InstanceGone):
            return
        try:
            pruned = await self._registry.prune(peer.instance)
        except Exception as reason:
            self._log.warn(
                "instance {id} cannot be pruned now: {reason}",
                id=peer.instance.id,
                reason=str(reason),
            )
            return
        if pruned:
            self._log.warn("instance {id} does not answer and was pruned", id=peer.instance.id)
            # Forgotten when nothing is queued: a second `Peer` would have a batch of its own.
            peer.forget_failures()
        else:
            await self._nudge(peer)

    def _expire_failures(self) -> None:
        """Forget peers that failed long ago: instances come and go for years."""
        horizon = self._clock.seconds() - FAILURES_EXPIRE
        for peer in list(self._peers.values()):
            if not peer.sending.is_running and peer.retry_at < horizon:
                self._forget(peer)

    async def _nudge(self, peer: Peer) -> None:
        """The instance has renewed its lease, so it is alive: have it look for what it missed."""
        try:
            await self._carry(peer, [])
        except RelayFailed:
            return
        peer.forget_failures()
