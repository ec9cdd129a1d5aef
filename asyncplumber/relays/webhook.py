"""
The other instances, by their webhooks: parcels over persistent connections, in order, many events in each when they pile up.

A relay that fails loses nothing: the event is in the history, and the other instance compares its positions with it.
So an instance that does not answer is left alone for a while, and forgotten when it fails again and again.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from treq.client import HTTPClient
from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.logger import Logger
from twisted.web._newclient import RequestNotSent, ResponseNeverReceived
from twisted.web.client import Agent, HTTPConnectionPool
from zope.interface import implementer

from asyncplumber.errors import RelayFailed
from asyncplumber.event import Event, Instance
from asyncplumber.interfaces import IRegistry, IRelay
from asyncplumber.relays.parcels import CONTENT_TYPE, pack
from asyncplumber.signing import Signer

PARCEL = 512 * 1024  # bytes of payloads in one POST
TIMEOUT = 5.0  # seconds for a POST to be answered
BACK_OFF = (0.5, 8.0)  # seconds that a failing instance is left alone: at first, at most
FAILURES = 3  # in a row, and an instance is forgotten, unless it renewed its lease meanwhile
WAITING = 10_000  # events that wait for one instance; beyond that it must find them in the history


class _Peer:
    """What waits for one instance."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.waiting: deque[tuple[Sequence[Event], Deferred[dict[str, int]]]] = deque()
        self.events = 0
        self.busy = False
        self.failures = 0
        self.not_before = 0.0

    def take(self) -> tuple[list[Event], list[Deferred[dict[str, int]]]]:
        """The events of the next parcel, and who waits for its answer."""
        events: list[Event] = []
        answers = []
        size = 0
        while self.waiting and (not events or size <= PARCEL):
            more, answer = self.waiting.popleft()
            events.extend(more)
            answers.append(answer)
            size += sum([len(event.payload) for event in more])
        self.events -= len(events)
        return events, answers


@implementer(IRelay)
class WebhookRelay:
    """Carries events to the other instances."""

    _log = Logger()

    def __init__(
        self,
        client: HTTPClient,
        registry: IRegistry,
        clock: Any,
        now: Callable[[], float],
        *,
        signer: Signer | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        """`now` is the time in seconds since 1970.  `timeout` is in seconds."""
        self._client = client
        self._registry = registry
        self._clock = clock
        self._now = now
        self._signer = signer
        self._timeout = timeout
        self._peers: dict[str, _Peer] = {}
        self._under_way: set[Deferred[None]] = set()
        self.carried = 0
        self.failed = 0

    @classmethod
    def over_treq(cls, reactor: Any, registry: IRegistry, now: Callable[[], float], signer: Signer | None) -> WebhookRelay:
        """A relay with connections of its own, one to each instance: a second one would let parcels overtake each other."""
        pool = HTTPConnectionPool(reactor, persistent=True)
        pool.maxPersistentPerHost = 1
        pool.cachedConnectionTimeout = 60
        relay = cls(HTTPClient(Agent(reactor, pool=pool, connectTimeout=TIMEOUT)), registry, reactor, now, signer=signer)
        relay._close = pool.closeCachedConnections
        return relay

    def _close(self) -> Deferred[None]:
        return DeferredList([]).addCallback(lambda _: None)

    def carry(self, instance: Instance, events: Sequence[Event]) -> Deferred[dict[str, int]]:
        peer = self._peers.get(instance.id)
        if peer is None:
            peer = self._peers[instance.id] = _Peer(instance)
        peer.instance = instance
        if self._clock.seconds() < peer.not_before:
            return fail(RelayFailed("the instance did not answer a moment ago"))
        if peer.events + len(events) > WAITING:
            return fail(RelayFailed("too much waits for the instance"))
        answer: Deferred[dict[str, int]] = Deferred()
        peer.waiting.append((events, answer))
        peer.events += len(events)
        if not peer.busy:
            peer.busy = True
            self._clock.callLater(0, self._send, peer)
        return answer

    def _send(self, peer: _Peer) -> None:
        events, answers = peer.take()
        if not answers:
            peer.busy = False
            if not peer.failures:
                self._peers.pop(peer.instance.id, None)
            return
        sent: Deferred[None] = Deferred.fromCoroutine(self._sent(peer, events, answers))
        self._under_way.add(sent)
        sent.addErrback(lambda failure: self._log.failure("relaying failed in a way that is our fault", failure))
        sent.addBoth(lambda _: (self._under_way.discard(sent), self._send(peer))[1])

    async def _sent(self, peer: _Peer, events: list[Event], answers: list[Deferred[dict[str, int]]]) -> None:
        try:
            subscribers = await self._post(peer.instance, pack(events))
        except RelayFailed as error:
            answers += [answer for _, answer in peer.waiting]
            peer.waiting.clear()
            peer.events = 0
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
        """POST a parcel.  Fails with `RelayFailed`."""
        headers = {b"content-type": CONTENT_TYPE}
        if self._signer is not None:
            headers.update(self._signer.sign(uuid4().hex.encode("ascii"), self._now(), body))
        url = f"{instance.url}/parcels"
        try:
            try:
                response = await self._request(url, headers, body)
            except (ResponseNeverReceived, RequestNotSent):
                # The pooled connection was stale, most likely.  A parcel that comes twice does no harm.
                response = await self._request(url, headers, body)
            if response.code == 410:
                raise RelayFailed("there is another instance at that address now")
            if response.code != 200:
                raise RelayFailed(f"the instance answered {response.code}")
            subscribers: dict[str, int] = json.loads(await response.content())["subscribers"]
        except RelayFailed:
            raise
        except Exception as error:
            raise RelayFailed(f"{type(error).__name__}: {error}") from error
        return subscribers

    def _request(self, url: str, headers: dict[bytes, bytes], body: bytes) -> Deferred[Any]:
        answered: Deferred[Any] = self._client.post(url, data=body, headers=headers, allow_redirects=False, timeout=self._timeout)
        return answered

    async def _failed(self, peer: _Peer, error: RelayFailed) -> None:
        """Leave it alone for a while; forget it if it fails again and again, or is not there any more."""
        peer.failures += 1
        first, most = BACK_OFF
        peer.not_before = self._clock.seconds() + min(most, first * 2 ** (peer.failures - 1))
        self._log.warn(
            "relaying to {id} failed ({failures}): {error}", id=peer.instance.id, failures=peer.failures, error=str(error)
        )
        if peer.failures < FAILURES and "another instance" not in str(error):
            return
        try:
            forgotten = await self._registry.prune(peer.instance)
        except Exception:
            self._log.failure("an instance cannot be forgotten now")
            return
        if forgotten:
            self._log.warn("instance {id} does not answer and is forgotten", id=peer.instance.id)
            self._peers.pop(peer.instance.id, None)
        else:
            await self._nudge(peer)

    async def _nudge(self, peer: _Peer) -> None:
        """It renewed its lease, so it is alive: let it look for what it missed."""
        try:
            await self._post(peer.instance, b"")
            peer.failures = 0
            peer.not_before = 0.0
        except RelayFailed:
            pass

    def stop(self) -> Deferred[None]:
        stopped: Deferred[None] = DeferredList(list(self._under_way)).addCallback(lambda _: self._close())
        return stopped
