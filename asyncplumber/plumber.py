"""
The library: what skyhooks gave a Tornado application, for a Twisted one.

    plumber = Plumber("mongodb://db.example/results", "http://10.0.0.7:8080/plumber")
    root.putChild(b"plumber", plumber.resource()) plumber.setServiceParent(application)
    plumber.register("42", print)

From then on `print` is called with every event of account 42, whichever instance it was POSTed to.
The server that ``twistd asyncplumber`` starts is built on this.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from typing import Any
from uuid import uuid4

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.resource import IResource

from asyncplumber.auth.hosts import Hosts
from asyncplumber.auth.origins import Origins
from asyncplumber.auth.signatures import PeerSigner
from asyncplumber.clocks import WallClock
from asyncplumber.concurrency import PeriodicTask
from asyncplumber.core.callbacks import Callback
from asyncplumber.core.consumers import After, Consumers
from asyncplumber.core.event_iterator import EventIterator
from asyncplumber.core.hub import LINGER, MAX_SUBSCRIBERS, Hub
from asyncplumber.core.intake import LATE_CHECK, Intake
from asyncplumber.core.leases import Leases
from asyncplumber.core.relay_receiver import RelayReceiver
from asyncplumber.core.status import AccountStatus, Figure, Figures, State, Status
from asyncplumber.errors import BadRequest, TooLarge
from asyncplumber.event import Instance, timestamp
from asyncplumber.http.gate import BODY_LIMIT, Gate
from asyncplumber.http.metrics import Metrics
from asyncplumber.http.routes import Routes
from asyncplumber.http.status import StatusPages
from asyncplumber.http.subscribers import Subscribers
from asyncplumber.http.webhook import Webhook
from asyncplumber.interfaces import LEASE, IStore
from asyncplumber.relays.http import HttpCarrier
from asyncplumber.relays.presence import PresenceClient
from asyncplumber.relays.routing import Relay
from asyncplumber.sending import DEFAULT_TYPE, Key, Receipt, Time, message
from asyncplumber.stores import open_store
from asyncplumber.stores.retention import Retention
from asyncplumber.transports.connected_clients import ConnectedClients
from asyncplumber.transports.send_buffer import MAX_UNSENT_BYTES
from asyncplumber.wire.parse import drafts_of

# seconds between comparisons of our positions with the history: the longest a lost relay is noticed
# late
CHECK = 3.0
SWEEP = 30.0  # seconds between sweeps of the history


def _global_reactor() -> Any:
    from twisted.internet import reactor

    return reactor


class Plumber(Service):
    """
    An instance: its store, its hub, its relay, its webhook.  A Twisted service.

    All instances on one store act as one.
    """

    _log = Logger()
    name = "asyncplumber"
    _draining = False  # whether the instance has left the registry, or is about to
    _stopping: Deferred[None] | None = (
        None  # fires when the last stop is done; None: there was none
    )

    def __init__(
        self,
        store: str | IStore = "memory:",
        advertise_url: str = "http://127.0.0.1:8080",
        *,
        retention: Retention | None = None,
        lease: float = LEASE,
        secret: bytes | None = None,
        linger: float = LINGER,
        subscribers: int = MAX_SUBSCRIBERS,
        body_limit: int = BODY_LIMIT,
        check: float = CHECK,
        unsent_limit: int = MAX_UNSENT_BYTES,
        hosts: Iterable[str] = (),
        origins: Collection[str] = (),
        reactor: Any = None,
        wall: Any = WallClock,
    ) -> None:
        """
        `store` is a URI (see `open_store`) or a store; `advertise_url` is where the other instances
        reach `resource()`.

        `secret` signs what instances relay to each other; None takes the one that the store keeps
        for them.  `linger` and `check` in seconds, `body_limit` in bytes, `subscribers` at this
        instance.  `hosts` are names by which clients may address `resource()`, beside ``localhost``
        and that of `advertise_url` (see `Hosts`).  `origins` are those, beside our own, whose pages may
        subscribe and post (see `Origins`).  `unsent_limit` is the bytes that may be queued for one
        client.  `wall.seconds()` is the time of day, for stamps.
        Raises ValueError for a URI that names no store, a short secret, or a host that is none.
        """
        self._reactor = reactor = reactor or _global_reactor()
        self._wall = wall
        self._body_limit = body_limit
        retention = retention or Retention()
        self.store: IStore = (
            open_store(store, retention, reactor, wall, lease=lease)
            if isinstance(store, str)
            else store
        )
        signer = PeerSigner(secret, self.store)
        instance, registry = Instance(uuid4().hex[:16], ""), self.store.registry
        self.leases = Leases(registry, instance, reactor, lease, prepare=signer.learn)
        self.gate = Gate(Hosts(hosts), Origins(origins, reactor.seconds), body_limit)
        self.advertise_url = advertise_url
        self.hub = Hub(
            self.store.history,
            reactor,
            hold=self._hold,
            release=self._release,
            linger=linger,
            subscribers=subscribers,
        )
        carrier = HttpCarrier.over_treq(reactor, instance.id, wall.seconds, signer)
        self.relay = Relay(carrier, registry, instance.id, reactor)
        self.intake = Intake(self.store.append, self.hub, reactor, relay=self.relay)
        self._receiver = RelayReceiver(self.hub, self.leases.drop_stale)
        self._open_doors(signer, carrier, unsent_limit)
        # : Fires when the store is open; fails if it never will be.  A server that is down is
        # waited for.  Another one after a stop.
        self.opened: Deferred[None] = Deferred()
        self._consumers = Consumers(self.hub, reactor)
        self._rounds = [
            PeriodicTask(self.hub.check, check, reactor),
            PeriodicTask(self._sweep, SWEEP, reactor),
        ]

    def _open_doors(self, signer: PeerSigner, carrier: HttpCarrier, unsent_limit: int) -> None:
        self._late = PeriodicTask(self.intake.answer_late, LATE_CHECK, self._reactor)
        id, now = self.leases.instance.id, self._wall.seconds
        self.webhook = Webhook(
            self.intake, self.hub, now, id, signer=signer, receive=carrier.receive
        )
        self._census = PresenceClient.over_treq(self._reactor, now, signer)
        pages = StatusPages(self.store, self.status, self._listeners)
        #: What ``/metrics`` shows.
        self.metrics = Metrics(self._figures)
        # Only the time at which a client comes back depends on this randomness.
        self.clients = ConnectedClients(self._reactor, random.random)
        self.subscribers = Subscribers(
            self.hub, self.clients, self.gate, self._reactor, unsent_limit
        )
        self.routes = Routes(self.webhook, pages, self.metrics, self.gate, self.subscribers)

    @property
    def advertise_url(self) -> str:
        """Where the other instances reach `resource()`."""
        return self._public_url

    @advertise_url.setter
    def advertise_url(self, url: str) -> None:
        self._public_url = url.rstrip("/")
        self.gate.hosts.set_advertised_url(url)
        instance = self.leases.instance
        self.leases.instance = instance._replace(url=f"{self._public_url}/instances/{instance.id}")

    # The service

    def startService(self) -> None:
        """Also after a stop.  One that is still under way is waited for."""
        super().startService()
        Deferred.fromCoroutine(self._start(self.opened))

    async def _start(self, opened: Deferred[None]) -> None:
        if self._stopping is not None:
            await self._stopping
        if self.opened is not opened:
            return  # stopped meanwhile
        self._draining = False
        self.intake.resume()
        self.hub.resume()
        # The way in is open before a hook says that this instance wants events.
        await self.relay.start(self._receiver.deliver)
        self._late.start()
        self.clients.start()
        self.store.start().addCallback(self._begin, opened).addCallbacks(
            opened.callback, opened.errback
        )

    def _begin(self, _: None, opened: Deferred[None]) -> None:
        """The store is open."""
        if self.opened is not opened:
            return  # stopped meanwhile
        if self.store.shared:
            self.leases.start(self.hub.check_soon)
        for round in self._rounds:
            round.start()
        self._consumers.start()

    def stopService(self) -> Deferred[None]:
        """
        @return: Deferred that fires when what was accepted has been sent on and the store is
        closed.
        """
        super().stopService()
        self.opened = Deferred()
        before = self._stopping
        done: Deferred[None] = Deferred()
        self._stopping = done

        def finished(result: Any) -> Any:
            done.callback(None)
            return result

        return Deferred.fromCoroutine(self._stop(before)).addBoth(finished)

    async def withdraw(self) -> None:
        """
        The first half of stopping: no new subscribers, no hooks any more.  Those who are connected
        stay.
        """
        self._draining = True
        self.hub.refuse()
        self.intake.refuse()
        if self.store.shared:
            await self.leases.stop()

    async def drain(self) -> None:
        """Close the streams and answer the long-polls; wait until the clients have gone.

        Clients that do not close are cut off after some seconds; see `ConnectedClients`.
        """
        self.subscribers.answer_polls()
        await self.clients.drain()

    async def _stop(self, before: Deferred[None] | None) -> None:
        if before is not None:
            await before
        if not self._draining:
            await self.withdraw()
        for round in self._rounds:
            round.stop()
        self._consumers.stop()
        await self.drain()
        await self.intake.stop()
        self._late.stop()
        self.hub.stop()
        await self.relay.stop()
        await self.store.stop()

    # For the application

    def resource(self) -> IResource:
        """Return all that this instance serves, for a twisted.web or Klein site.

        That is ``/events`` by WebSocket, Server-Sent Events and long-poll, ``/hooks``, the page
        and the client script.  Mount it at the path of `advertise_url`.
        """
        return self.routes.resource(self._reactor)

    def register(self, account: Key, callback: Callback, after: After = None) -> None:
        """
        Call `callback` with each `Event` of an account.

        It may be called before the start, and lasts over a stop and a start.  What the callback
        raises is logged.  A second registration of the same callback changes nothing.

        Args:
            account: Whose events.
            callback: A callable, or an Autobahn WebSocket protocol, which is sent the envelope.  If
                the callable returns an awaitable, that is awaited before the next event: a
                Deferred, a coroutine, or on the asyncio reactor a future.
            after: Where to begin: a `Cursor` or its text, ``"earliest"`` for all that is kept, or
                None for now.

        Raises:
            BadAccount: There can be no such account.
            BadCursor: The cursor was never given out.
            TypeError: The callback cannot be called.
        """
        self._consumers.register(account, callback, after)

    def unregister(self, account: Key, callback: Callback) -> None:
        """Call it no more.  Harmless if it is not registered."""
        self._consumers.unregister(account, callback)

    def events(self, account: Key, *, after: After = None) -> EventIterator:
        """
        Iterate over the events of an account: ``async for event in plumber.events("42")``.

        The next event is handed over when the loop asks for it.  Leaving the loop unsubscribes.
        To go on later, even in another process, begin ``after`` the ``cursor`` of the last event.
        It may be called before the start; then the loop waits for that.

        Args:
            account: Whose events.
            after: Where to begin: a `Cursor` or its text, ``"earliest"`` for all that is kept, or
                None for now.

        Raises:
            BadAccount: There can be no such account.
            BadCursor: The cursor was never given out.
            EventsMissed: In the loop: some events cannot be replayed any more.
            Unavailable: In the loop: the plumber stops.
        """
        return self._consumers.events(account, after)

    async def send(
        self,
        account: Key,
        data: Any,
        *,
        id: Key | None = None,
        type: str = DEFAULT_TYPE,
        content_type: str | None = None,
        time: Time | None = None,
    ) -> Receipt:
        """
        Send one event, and wait until it is kept.

        Does what `asyncplumber.client.Sender.send` does, without HTTP: the arguments mean the same.

        Raises:
            PlumberError: The event is not accepted; ``status`` and ``code`` say why.
            ValueError: A value cannot be sent.
            TypeError: An argument has the wrong type.
        """
        event = message(account, data, id=id, type=type, content_type=content_type, time=time)
        if len(event.body) > self._body_limit:
            raise TooLarge(f"a body has at most {self._body_limit} bytes")
        headers = {name.lower().encode(): value.encode() for name, value in event.headers.items()}
        now = timestamp(self._wall.seconds())
        drafts = drafts_of(event.account, headers, event.body, now)
        if len(drafts) != 1:
            raise BadRequest("send takes one event; a batch can be posted to the webhook")
        return (await self.intake.accept(drafts))[0]

    # Rounds and figures

    def _hold(self, account: str) -> Deferred[None]:
        if self.store.shared:
            return self.leases.register(account)
        held: Deferred[None] = Deferred()
        held.callback(None)
        return held

    def _release(self, account: str) -> None:
        if self.store.shared:
            self.leases.unregister(account)

    async def _sweep(self) -> None:
        await self.store.history.sweep()

    async def _listeners(self, account: str) -> dict[str, Any]:
        """Who listens to an account: here, and in the whole cluster."""
        here = self.hub.count(account)
        if not self.store.shared:
            return {"subscribers": here, "instances": int(here > 0), "here": here}
        hooks = (await self.store.registry.instances([account])).get(account, [])
        others = [instance for instance in hooks if instance.id != self.leases.instance.id]
        counts = [here, *[count or 0 for count in await self._census.count(others, account)]]
        return {
            "subscribers": sum(counts),
            "instances": sum(count > 0 for count in counts),
            "here": here,
        }

    def status(self) -> Status:
        """Return what this instance knows about itself now.  The store is not asked."""
        hub, leases = self.hub, self.leases
        return Status(
            instance_id=leases.instance.id,
            advertise_url=self.advertise_url,
            state=State.DRAINING if self._draining else State.RUNNING,
            figures=self._figures(),
            accounts=tuple(
                AccountStatus(account, subscribers, cursor, self.store.shared)
                for account, subscribers, cursor in hub.channels()
            ),
            peers=(),
        )

    def _figures(self) -> Figures:
        return {
            "subscribers": Figure("gauge", "Connected subscribers.", self.hub.subscribers),
            "open_channels": Figure(
                "gauge", "Open channels, one per account and worker.", len(self.hub.accounts)
            ),
            "events_delivered_total": Figure(
                "counter", "Events handed to subscribers, once for each.", self.hub.delivered
            ),
            "events_accepted_total": Figure(
                "counter", "Events accepted and kept.", self.intake.accepted
            ),
            "events_relayed_total": Figure(
                "counter", "Events taken by other instances, once for each.", self.relay.relayed
            ),
            "event_batches_failed_total": Figure(
                "counter", "Batches of events not taken by another instance.", self.relay.failed
            ),
        }
