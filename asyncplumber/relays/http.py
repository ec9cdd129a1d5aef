"""
The other instances, by their webhooks: batches over persistent connections, in order, many events
in each when they pile up.

A relay that fails loses nothing: the event is in the history, and the other instance compares its
positions with it. So an instance that does not answer is left alone for a while, and forgotten when
it fails again and again.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredList,
    FirstError,
    fail,
    gatherResults,
    succeed,
)
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseNeverReceived
from zope.interface import implementer

from asyncplumber._twisted_compat import RequestNotSent
from asyncplumber.auth.signatures import PeerSigner, batchs_target
from asyncplumber.event import Event, Instance
from asyncplumber.interfaces import IRegistry, IRelay, RelayFailed
from asyncplumber.relays.bodies import Answer, Body
from asyncplumber.wire.event_batch import BATCH_BYTES, CONTENT_TYPE, pack, pieces, weight

TIMEOUT = 5.0  # seconds for a POST to be answered
BACK_OFF = (0.5, 8.0)  # seconds that a failing instance is left alone: at first, at most
GRACE = 8.0  # seconds that stopping waits for what is under way
# seconds after which a failure is no more held against an instance that nobody asked for since
FORGET = 120.0
FAILURES = 3  # in a row, and an instance is forgotten, unless it renewed its lease meanwhile
WAITING = 10_000  # events that wait for one instance; beyond that it must find them in the history
WAITING_BYTES = 16 * 1024 * 1024  # of those events; or a single call of `carry`


class _Elsewhere(RelayFailed):
    """
    Somebody else answers at that address: it need not be tried again to know that the instance is
    gone.
    """


def _merged(counts: list[dict[str, int]]) -> dict[str, int]:
    return {account: number for each in counts for account, number in each.items()}


def _first(failure: Failure) -> Failure:
    return failure.value.subFailure if isinstance(failure.value, FirstError) else failure


class _Peer:
    """What waits for one instance."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.waiting: deque[tuple[Sequence[Event], Deferred[dict[str, int]]]] = deque()
        self.events = 0
        self.size = 0  # bytes of them
        self.busy = False
        self.failures = 0
        self.not_before = 0.0

    def take(self) -> tuple[list[Event], list[Deferred[dict[str, int]]]]:
        """The events of the next batch, and who waits for its answer."""
        events: list[Event] = []
        answers = []
        size = 0
        while self.waiting:
            more, answer = self.waiting[0]
            heavier = size + weight(more)
            if events and heavier > BATCH_BYTES:
                break
            size = heavier
            self.waiting.popleft()
            events.extend(more)
            answers.append(answer)
        self.events -= len(events)
        self.size -= size
        return events, answers

    def drop(self) -> list[Deferred[dict[str, int]]]:
        """Forget what waits.  @return: who waits for its answers."""
        answers = [answer for _, answer in self.waiting]
        self.waiting.clear()
        self.events = self.size = 0
        return answers


@implementer(IRelay)
class HttpRelay:
    """Carries events to the other instances."""

    _log = Logger()

    def __init__(
        self,
        client: HTTPClient,
        registry: IRegistry,
        clock: Any,
        now: Callable[[], float],
        *,
        signer: PeerSigner,
        timeout: float = TIMEOUT,
        close: Callable[[], Deferred[None]] = lambda: succeed(None),
    ) -> None:
        """
        `now` is the time in seconds since 1970, `timeout` in seconds.  `close` closes the client's
        connections.
        """
        self._client = client
        self._registry = registry
        self._clock = clock
        self._now = now
        self._signer = signer
        self._timeout = timeout
        self._close = close
        self._peers: dict[str, _Peer] = {}
        self._under_way: set[Deferred[Any]] = set()
        self._stopped = False
        self.carried = 0
        self.failed = 0

    @classmethod
    def over_treq(
        cls, reactor: Any, registry: IRegistry, now: Callable[[], float], signer: PeerSigner
    ) -> HttpRelay:
        """
        A relay with connections of its own, one to each instance: a second one would let batches
        overtake each other.
        """
        pool = HTTPConnectionPool(reactor, persistent=True)
        pool.maxPersistentPerHost = 1
        pool.cachedConnectionTimeout = 60
        client = HTTPClient(Agent(reactor, pool=pool, connectTimeout=TIMEOUT))
        return cls(client, registry, reactor, now, signer=signer, close=pool.closeCachedConnections)

    def carry(self, instance: Instance, events: Sequence[Event]) -> Deferred[dict[str, int]]:
        peer = self._peers.get(instance.id)
        if peer is None:
            peer = self._peers[instance.id] = _Peer(instance)
        peer.instance = instance
        if self._stopped:
            return fail(RelayFailed("this instance stops"))
        if self._clock.seconds() < peer.not_before:
            return fail(RelayFailed("the instance did not answer a moment ago"))
        size = weight(events)
        if peer.events + len(events) > WAITING or (peer.size and peer.size + size > WAITING_BYTES):
            return fail(RelayFailed("too much waits for the instance"))
        answers = []
        for piece in pieces(events):
            answer: Deferred[dict[str, int]] = Deferred()
            peer.waiting.append((piece, answer))
            answers.append(answer)
        peer.events += len(events)
        peer.size += size
        if not peer.busy:
            peer.busy = True
            # In the reactor's next turn: what is carried until then goes along.
            sending = deferLater(self._clock, 0, lambda: Deferred.fromCoroutine(self._send(peer)))
            self._under_way.add(sending)
            sending.addErrback(
                lambda failure: self._log.failure(
                    "relaying failed in a way that is our fault", failure
                )
            )
            sending.addBoth(lambda _: self._under_way.discard(sending))
        return (
            answers[0]
            if len(answers) == 1
            else gatherResults(answers, consumeErrors=True).addCallbacks(_merged, _first)
        )

    async def _send(self, peer: _Peer) -> None:
        """Batch after batch, until nothing waits for this instance."""
        try:
            while peer.waiting:
                events, answers = peer.take()
                await self._sent(peer, events, answers)
        finally:
            peer.busy = False
            if not peer.failures and self._peers.get(peer.instance.id) is peer:
                del self._peers[peer.instance.id]

    async def _sent(
        self, peer: _Peer, events: list[Event], answers: list[Deferred[dict[str, int]]]
    ) -> None:
        try:
            subscribers = await self._post(peer.instance, pack(events))
        except RelayFailed as error:
            answers += peer.drop()
            self.failed += 1
            for answer in answers:
                answer.errback(error)
            await self._failed(peer, error)
            return
        peer.failures = 0
        self.carried += len(events)
        for answer in answers:
            answer.callback(subscribers)

    async def _post(self, instance: Instance, body: bytes) -> dict[str, int]:
        """POST a batch.  Fails with `RelayFailed`."""
        exchange = Deferred.fromCoroutine(self._exchange(instance, body))
        exchange.addTimeout(self._timeout, self._clock)
        try:
            status, answer = await exchange
            if status == 410:
                raise _Elsewhere("there is another instance at that address now")
            if status != 200:
                raise RelayFailed(f"the instance answered {status}")
            return {
                str(account): int(count)
                for account, count in json.loads(answer)["subscribers"].items()
            }
        except RelayFailed:
            raise
        except Exception as error:
            raise RelayFailed(f"{type(error).__name__}: {error}") from error

    async def _exchange(self, instance: Instance, body: bytes) -> tuple[int, bytes]:
        """
        One POST, tried again if the connection turns out to be stale; the status, and the body of
        the answer.
        """
        signature = await self._signer.sign(batchs_target(instance.id), self._now(), body)
        headers: Any = {b"content-type": CONTENT_TYPE, **signature}
        url = f"{instance.url}/events"
        try:
            response = await self._client.post(
                url, data=Body(body), headers=headers, allow_redirects=False, unbuffered=True
            )
        except (ResponseNeverReceived, RequestNotSent) as error:
            # A pooled connection that the other side had closed, most likely.  A batch that comes
            # twice does no harm.
            if isinstance(error, ResponseNeverReceived) and any(
                reason.check(CancelledError) for reason in error.reasons
            ):
                raise  # no, time is up
            response = await self._client.post(
                url, data=Body(body), headers=headers, allow_redirects=False, unbuffered=True
            )
        answer = Answer()
        response.deliverBody(answer)
        return response.code, await answer.whole

    async def _failed(self, peer: _Peer, error: RelayFailed) -> None:
        """
        Leave it alone for a while; forget it if it fails again and again, or is not there any more.
        """
        peer.failures += 1
        first, most = BACK_OFF
        peer.not_before = self._clock.seconds() + min(most, first * 2 ** (peer.failures - 1))
        self._log.warn(
            "relaying to {id} failed ({failures}): {error}",
            id=peer.instance.id,
            failures=peer.failures,
            error=str(error),
        )
        self._forgive()
        if peer.failures < FAILURES and not isinstance(error, _Elsewhere):
            return
        try:
            forgotten = await self._registry.prune(peer.instance)
        except Exception as reason:
            self._log.warn(
                "instance {id} cannot be forgotten now: {reason}",
                id=peer.instance.id,
                reason=str(reason),
            )
            return
        if forgotten:
            self._log.warn("instance {id} does not answer and is forgotten", id=peer.instance.id)
            self._peers.pop(peer.instance.id, None)
        else:
            await self._nudge(peer)

    def _forgive(self) -> None:
        """Keep no account of instances that are long gone."""
        horizon = self._clock.seconds() - FORGET
        for id, peer in list(self._peers.items()):
            if not peer.busy and peer.not_before < horizon:
                del self._peers[id]

    async def _nudge(self, peer: _Peer) -> None:
        """It renewed its lease, so it is alive: let it look for what it missed."""
        try:
            await self._post(peer.instance, b"")
            peer.failures = 0
            peer.not_before = 0.0
        except RelayFailed:
            pass

    def resume(self) -> None:
        """Carry again, after a stop."""
        self._stopped = False

    def stop(self) -> Deferred[None]:
        """Carry nothing more.  What is under way has `GRACE` seconds."""
        self._stopped = True
        done: Deferred[Any] = DeferredList(list(self._under_way), consumeErrors=True)
        done.addTimeout(GRACE, self._clock, onTimeoutCancel=lambda *_: None)
        return done.addCallback(lambda _: self._close())
