"""
Carries batches by HTTP: a signed POST to the URL that the other instance has in the registry.

Each instance has one persistent connection to each other instance, so that batches do not overtake
each other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.web.client import Agent, HTTPConnectionPool, ResponseNeverReceived
from twisted.web.iweb import IResponse
from zope.interface import implementer

from asyncplumber._twisted_compat import RequestNotSent, quieten
from asyncplumber.auth.signatures import PeerSigner, batch_target
from asyncplumber.errors import Gone, Unavailable
from asyncplumber.event import Event, Instance
from asyncplumber.http_bodies import BytesProducer, ResponseBody
from asyncplumber.interfaces import Deliver, ICarrier, InstanceGone, RelayFailed
from asyncplumber.wire.event_batch import CONTENT_TYPE, pack, unpack

CONNECT_TIMEOUT = 5.0  # seconds
IDLE_TIMEOUT = 60  # seconds that a connection without a request stays open


@implementer(ICarrier)
class HttpCarrier:
    """Carries batches by HTTP, and takes in what comes by HTTP."""

    def __init__(
        self,
        client: HTTPClient,
        instance_id: str,
        now: Callable[[], float],
        signer: PeerSigner,
        *,
        close: Callable[[], Deferred[None]] = lambda: succeed(None),
    ) -> None:
        """
        Args:
            client: Made with ``data_to_body_producer=BytesProducer``.
            instance_id: The id of this instance.
            now: Returns the seconds since 1970, for signatures.
            signer: Signs what goes out, and verifies what comes in.
            close: Closes the client's connections.
        """
        self._client = client
        self._instance_id = instance_id
        self._now = now
        self._signer = signer
        self._close = close
        self._deliver: Deliver | None = None  # None: it is stopped

    @classmethod
    def over_treq(
        cls, reactor: IReactorTime, instance_id: str, now: Callable[[], float], signer: PeerSigner
    ) -> HttpCarrier:
        """Make a carrier with a pool of connections of its own, one to each instance."""
        pool = HTTPConnectionPool(reactor, persistent=True)
        pool.maxPersistentPerHost = 1
        pool.cachedConnectionTimeout = IDLE_TIMEOUT
        quieten(pool)
        agent = Agent(reactor, pool=pool, connectTimeout=CONNECT_TIMEOUT)
        client = HTTPClient(agent, data_to_body_producer=BytesProducer)
        return cls(client, instance_id, now, signer, close=pool.closeCachedConnections)

    def start(self, deliver: Deliver) -> Deferred[None]:
        """See `ICarrier.start`.  The server that calls `receive` listens already, or soon."""
        self._deliver = deliver
        return succeed(None)

    def carry(self, instance: Instance, events: Sequence[Event]) -> Deferred[dict[str, int]]:
        """See `ICarrier.carry`."""
        if self._deliver is None:
            return fail(RelayFailed("this instance does not run"))
        return Deferred.fromCoroutine(self._carry(instance, events))

    def receive(
        self, instance_id: str, headers: Mapping[bytes, bytes], body: bytes
    ) -> dict[str, int]:
        """
        Deliver a batch that was POSTed to ``/instances/{instance_id}/events``.

        Args:
            instance_id: The instance that is meant.
            headers: With names in lower case.
            body: The batch; empty where the sender asks us to look for what we missed.

        Returns:
            For each account how many subscribers here were given its events.  Raises `Gone` where
            another instance is meant, `NotAllowed` where the signature is wrong, `BadRequest` for a
            batch with an invalid event (then none is delivered), `Unavailable` while stopped.
        """
        if instance_id != self._instance_id:
            raise Gone
        self._signer.check(batch_target(instance_id), headers, body, self._now())
        if self._deliver is None:
            raise Unavailable("this instance takes no events of others by HTTP now")
        return self._deliver(unpack(body) if body else [])

    def stop(self) -> Deferred[None]:
        """See `ICarrier.stop`."""
        self._deliver = None
        return self._close()

    async def _carry(self, instance: Instance, events: Sequence[Event]) -> dict[str, int]:
        try:
            status, body = await self._exchange(instance, pack(events))
            if status == 410:
                raise InstanceGone("another instance answers at that address")
            if status != 200:
                raise RelayFailed(f"the instance answered {status}")
            counts = json.loads(body)["subscribers"]
            return {str(account): int(count) for account, count in counts.items()}
        except RelayFailed:
            raise
        except Exception as error:
            raise RelayFailed(f"{type(error).__name__}: {error}") from error

    async def _exchange(self, instance: Instance, body: bytes) -> tuple[int, bytes]:
        """POST once, or twice if the connection was stale; return the status and the body."""
        signature = await self._signer.sign(batch_target(instance.id), self._now(), body)
        headers = {b"content-type": CONTENT_TYPE, **signature}
        url = f"{instance.url}/events"
        try:
            response = await self._post(url, headers, body)
        except (ResponseNeverReceived, RequestNotSent) as error:
            reasons = error.reasons if isinstance(error, ResponseNeverReceived) else ()
            if any(reason.check(CancelledError) for reason in reasons):
                raise
            # Most likely the other side closed the pooled connection while it was idle.  If not,
            # the batch arrives twice, which does no harm.
            response = await self._post(url, headers, body)
        collector = ResponseBody()
        response.deliverBody(collector)
        return response.code, await collector.complete

    async def _post(self, url: str, headers: dict[bytes, bytes], body: bytes) -> IResponse:
        # treq wants values of one type for all headers, and takes bytes for all of them.
        named: Any = headers
        response: IResponse = await self._client.post(
            url, data=body, headers=named, allow_redirects=False, unbuffered=True
        )
        return response
