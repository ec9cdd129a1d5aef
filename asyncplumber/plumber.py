"""
The library: a plumber inside a Twisted application of your own.

::

    plumber = Plumber("mongodb://db.example/results", "http://10.0.0.7:8080/plumber")
    plumber.setServiceParent(application)
    root.putChild(b"plumber", plumber.resource())
    plumber.register("42", print)

From then on ``print`` is called with each event of account 42, whichever instance it was posted to.
The server that ``twistd asyncplumber`` starts is built on the same class.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.resource import IResource

from asyncplumber._twisted_compat import global_reactor
from asyncplumber.auth.hosts import Hosts
from asyncplumber.auth.networks import Network
from asyncplumber.auth.origins import Origins
from asyncplumber.auth.signatures import PeerSigner
from asyncplumber.clocks import TimeSource, WallClock
from asyncplumber.concurrency import PeriodicTask
from asyncplumber.core.consumers import ConsumerMethods, Consumers
from asyncplumber.core.history_size import SIZE_INTERVAL, HistoryGauges
from asyncplumber.core.hub import LINGER, MAX_SUBSCRIBERS, Hub
from asyncplumber.core.instance_figures import instance_figures
from asyncplumber.core.intake import LATE_CHECK, Intake
from asyncplumber.core.leases import Leases
from asyncplumber.core.lifecycle import Lifecycle
from asyncplumber.core.relay_receiver import RelayReceiver
from asyncplumber.core.status import Status, account_statuses, peer_statuses
from asyncplumber.core.tasks.application import TaskMethods
from asyncplumber.core.tasks.callback_urls import CallbackMint
from asyncplumber.core.tasks.settings import DEFAULT_SETTINGS, TaskSettings
from asyncplumber.event import Instance, timestamp
from asyncplumber.http.clients import DEFAULT_POLICY, ClientPolicy
from asyncplumber.http.front import Core, Front
from asyncplumber.http.gate import BODY_LIMIT, Gate
from asyncplumber.http.request_log import RequestLog
from asyncplumber.interfaces import LEASE, IAuthority, ICarrier, IStore
from asyncplumber.relays.http import HttpCarrier
from asyncplumber.relays.peer_networks import restricted
from asyncplumber.relays.routing import Relay
from asyncplumber.sending import DEFAULT_TYPE, Key, Receipt, Time, message
from asyncplumber.starters.build import Starter, build_tasks
from asyncplumber.stores import open_store
from asyncplumber.stores.retention import Retention
from asyncplumber.transports.send_buffer import MAX_UNSENT_BYTES
from asyncplumber.wire.own_message import draft_of

# Seconds between comparisons of our positions with the history.  An event whose relaying failed
# is at most this late.
CHECK_INTERVAL = 3.0
SWEEP_INTERVAL = 30.0  # seconds between sweeps of the history


class Plumber(ConsumerMethods, TaskMethods, Service):
    """
    One instance: a store, a hub, a relay, and what it serves by HTTP.

    It is a Twisted service: add it to an application, or to another service.  It can be stopped and
    started again, and what was registered stays.  All instances on one store act as one.

    Args:
        store: A URI (``memory:``, ``sqlite:PATH``, ``mongodb://…``), or a store.
        advertise_url: Where the other instances reach ``resource``, directly and not through a load
            balancer.
        retention: How many events are kept, and for how long.
        lease: Seconds after which the others forget this instance if it dies.
        secret: What the instances sign with between each other, 16 bytes or more.  None takes the
            one that the store keeps for them.
        linger: Seconds that an account stays subscribed after its last subscriber left.
        subscriber_limit: The most subscribers of this instance.
        body_limit: The most bytes in the body of a POST.
        check_interval: Seconds between comparisons with the history.  They find what was not
            relayed.
        unsent_limit: The most bytes that are queued for one subscriber.  One with more is
            disconnected.
        hosts: Names by which clients may address ``resource``, beside ``localhost`` and those of
            ``advertise_url`` and ``public_url``.
        origins: Origins whose pages may subscribe and post, beside its own.
        authority: Says what the credential of a request allows.  None: everybody may subscribe,
            publish and start tasks.
        page: Whether the page at ``/`` is served although there is an authority.
        log_requests: Whether the log gets a line for each request, and not only for each kind of
            those that are refused.
        client_policy: Whom to believe about addresses, and what each client may do at most.
        peer_networks: Where other instances may be; nothing else is sent to.  None are all
            networks but link-local ones.
        public_url: Where applications and other services reach ``resource``: callback URLs begin
            with it.  Empty: ``advertise_url``.
        starter: Executes tasks: an `IStarter`, or a callable that is called with each `Run`.  None:
            tasks are only reported.
        task_settings: How long tasks are waited for, and kept.
        carrier: Makes, for the id of this instance, what carries events to the other instances.
            None is HTTP.
        reactor: The reactor to run on; None is the global one.
        wall: The time of day, for the time of events and for signatures.

    Raises:
        ValueError: The URI names no store, the secret is too short, or a host or origin is none.
    """

    #: Its number among the workers of one server, from 1; None if it is alone.
    worker: int | None = None

    def __init__(
        self,
        store: str | IStore = "memory:",
        advertise_url: str = "http://127.0.0.1:8080",
        *,
        retention: Retention | None = None,
        lease: float = LEASE,
        secret: bytes | None = None,
        linger: float = LINGER,
        subscriber_limit: int = MAX_SUBSCRIBERS,
        body_limit: int = BODY_LIMIT,
        check_interval: float = CHECK_INTERVAL,
        unsent_limit: int = MAX_UNSENT_BYTES,
        hosts: Iterable[str] = (),
        origins: Collection[str] = (),
        authority: IAuthority | None = None,
        page: bool = False,
        log_requests: bool = False,
        client_policy: ClientPolicy = DEFAULT_POLICY,
        peer_networks: Sequence[Network] = (),
        public_url: str = "",
        starter: Starter | None = None,
        task_settings: TaskSettings = DEFAULT_SETTINGS,
        carrier: Callable[[str], ICarrier] | None = None,
        reactor: IReactorTime | None = None,
        wall: TimeSource = WallClock,
    ) -> None:
        """Make the instance; it does nothing before it is started."""
        self._reactor = reactor = reactor or global_reactor()
        self._wall, self._body_limit, self.public_url = wall, body_limit, public_url
        if isinstance(store, str):
            store = open_store(store, retention or Retention(), reactor, wall, lease=lease)
        self.store, self._peers = store, restricted(reactor, peer_networks)
        signer = PeerSigner(secret, store)
        requests = RequestLog(reactor.seconds, every=log_requests)
        clients = client_policy.apply(reactor.seconds, authority)
        pages = Origins(origins, reactor.seconds)
        self.gate = Gate(Hosts(hosts, public_url), pages, body_limit, authority, requests, clients)
        instance = Instance(uuid4().hex[:16], "")
        self.leases = Leases(store.registry, instance, reactor, lease, prepare=signer.learn)
        by_http = HttpCarrier.over_treq(self._peers, instance.id, wall.seconds, signer)
        self._build_core(carrier(instance.id) if carrier else by_http, linger, subscriber_limit)
        self._build_tasks(starter, task_settings)
        core = self._core()
        self.front = Front(core, self.gate, by_http, signer, unsent_limit=unsent_limit, page=page)
        self.advertise_url = advertise_url
        self._periodic = [
            PeriodicTask(self.hub.check, check_interval, reactor),
            PeriodicTask(self._sweep, SWEEP_INTERVAL, reactor),
            PeriodicTask(self._sizes.look, SIZE_INTERVAL, reactor, now=True),
        ]

    def _build_core(self, carrier: ICarrier, linger: float, limit: int) -> None:
        self._life = Lifecycle(self._open, self._serve, self._drain, self._close)
        store, clock = self.store, self._reactor
        # Where no other process can use the store, nobody looks for hooks.
        hooks = self.leases if store.shared else None
        self.hub = Hub(store.history, clock, hooks=hooks, linger=linger, subscriber_limit=limit)
        self.relay = Relay(carrier, store.registry, self.leases.instance.id, clock)
        self._receiver = RelayReceiver(self.hub, self.leases.drop_stale)
        self.intake = Intake(store.append, self.hub, clock, relay=self.relay)
        self.hub.on_close = self.gate.clients.limits.account_closed
        self._late = PeriodicTask(self.intake.answer_late, LATE_CHECK, clock)
        self._consumers = Consumers(self.hub, clock)
        #: What this instance counts and measures.
        self._sizes = HistoryGauges(store.history)
        self.figures = instance_figures(self.hub, self.intake, self.relay, self._wall.seconds)
        self.figures.add(
            *self._sizes.figures,
            self.gate.requests.refusals,
            self.gate.requests.auth,
            self.gate.clients.figure,
            *getattr(store, "figures", ()),
        )

    def _build_tasks(self, starter: Starter | None, settings: TaskSettings) -> None:
        now, clock, store = self._wall.seconds, self._reactor, self.store
        rate, base = settings.callback_rate, lambda: self.public_url or self.advertise_url
        self._mint = CallbackMint(store.callback_urls, now, base, rate, clock.seconds)
        core = store, self.hub, self.intake, clock, now
        self.tasks = build_tasks(*core, starter, settings, self._mint, self._body_limit)
        self.figures.add(*self.tasks.figures.all)

    def _core(self) -> Core:
        return Core(
            self.store,
            self.hub,
            self.intake,
            self.tasks,
            self._mint,
            self.figures,
            self.leases.instance.id,
            lambda: self._life.state,
            partial(self.status, accounts=False),
            self._reactor,
            self._wall.seconds,
            self._peers,
        )

    @property
    def advertise_url(self) -> str:
        """Where the other instances reach ``resource``.  Set it before the start."""
        return self._advertise_url

    @advertise_url.setter
    def advertise_url(self, url: str) -> None:
        self._advertise_url = url.rstrip("/")
        self.gate.hosts.set_advertised_url(url)
        instance = self.leases.instance
        address = f"{self._advertise_url}/instances/{instance.id}"
        self.leases.instance = instance._replace(url=address)

    # The service

    def startService(self) -> None:
        """Start.  If a stop is under way, start after it.  Harmless if it is started."""
        super().startService()
        self._life.start()

    def when_running(self) -> Deferred[None]:
        """
        Return a Deferred that fires when the store is open, at once if it is.

        A database server that is down is waited for.  Fails if the store can never be opened, and
        with ``Unavailable`` if the plumber is stopped before.
        """
        return self._life.when_running()

    def stopService(self) -> Deferred[None]:
        """
        Stop: no event that was accepted is lost, and subscribers are asked to reconnect elsewhere.

        Returns:
            A Deferred that fires when what was accepted is sent on, and the store is closed.
        """
        super().stopService()
        return self._life.stop()

    async def _open(self) -> None:
        self.intake.resume()
        self.hub.resume()
        self._late.start()
        self.front.start()
        # Both begin here: if one began after a wait, a stop could have come before it.
        relay, store = self.relay.start(self._receiver.deliver), self.store.start()
        # The way in is open before a hook says that this instance wants events.
        await relay
        await store
        await self.front.learn()

    def _serve(self) -> None:
        self.front.serve()
        if self.store.shared:
            self.leases.start(self.hub.check_soon)
        for task in self._periodic:
            task.start()
        self.tasks.serve()
        self._consumers.start()

    async def _drain(self) -> None:
        self.hub.refuse()
        await self.tasks.drain()
        self.intake.refuse()
        for task in self._periodic:
            task.stop()
        self._consumers.stop()
        if self.store.shared:
            await self.leases.stop()
        await self.front.drain()

    async def _close(self) -> None:
        try:
            await self.intake.stop()
            self._late.stop()
            self.hub.stop()
            await self.relay.stop()
        finally:
            await self.store.stop()

    # For the application

    def resource(self) -> IResource:
        """
        Return all that this instance serves, for a twisted.web or Klein site.

        That is ``/events`` by WebSocket, Server-Sent Events and long-poll, ``/hooks``, the page
        and the client script.  Mount it at the path of ``advertise_url``.
        """
        return self.front.resource()

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

        The arguments mean what they mean to ``asyncplumber.client.Sender.send``.

        Raises:
            PlumberError: The event is not accepted; ``status`` and ``code`` say why.
            ValueError: A value cannot be sent.
            TypeError: An argument has the wrong type.
        """
        event = message(account, data, id=id, type=type, content_type=content_type, time=time)
        draft = draft_of(event, timestamp(self._wall.seconds()), self._body_limit)
        return (await self.intake.accept([draft]))[0]

    # What it tells about itself

    def status(self, *, accounts: bool = True) -> Status:
        """
        Return what this instance knows about itself now.  The store is not asked.

        Args:
            accounts: Whether the accounts are in it.  There may be very many.
        """
        hub, leases = self.hub, self.leases
        return Status(
            instance_id=leases.instance.id,
            advertise_url=self.advertise_url,
            state=self._life.state,
            figures=self.figures.collect(),
            accounts=account_statuses(hub.channels() if accounts else (), self.store.shared),
            peers=peer_statuses(self.relay.peers()),
            worker=self.worker,
        )

    async def _sweep(self) -> None:
        await self.store.history.sweep()
