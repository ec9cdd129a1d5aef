"""All that an instance serves by HTTP, put together."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from twisted.internet.interfaces import IReactorTime
from twisted.web.resource import IResource
from twisted.web.server import Site

from asyncplumber.auth.signatures import PeerSigner
from asyncplumber.core.hub import Hub
from asyncplumber.core.intake import Intake
from asyncplumber.core.lifecycle import State
from asyncplumber.core.status import Status
from asyncplumber.core.tasks.callback_urls import CallbackMint
from asyncplumber.core.tasks.service import Tasks
from asyncplumber.errors import PlumberError
from asyncplumber.figures import FigureSet
from asyncplumber.grant import Grant
from asyncplumber.http.callback_pages import CallbackPages
from asyncplumber.http.callback_routes import CallbackRoutes
from asyncplumber.http.callbacks import Callbacks
from asyncplumber.http.credentials import Credentials
from asyncplumber.http.gate import Gate
from asyncplumber.http.metrics import Metrics
from asyncplumber.http.operator_pages import OperatorPages
from asyncplumber.http.presence import Presence
from asyncplumber.http.routes import Routes
from asyncplumber.http.status import StatusPages
from asyncplumber.http.subscribers import Subscribers
from asyncplumber.http.tasks import TaskPages
from asyncplumber.http.webhook import Webhook
from asyncplumber.interfaces import IStore
from asyncplumber.relays.http import HttpCarrier
from asyncplumber.relays.presence import PresenceClient
from asyncplumber.relays.questions import Questions
from asyncplumber.transports.connected_clients import ConnectedClients
from asyncplumber.transports.send_buffer import MAX_UNSENT_BYTES


class Core(NamedTuple):
    """
    What the front stands before.

    Attributes:
        store: What the instances share.
        hub: The channels of this instance.
        intake: Where posted events go.
        tasks: What the tasks are asked of.
        callback_mint: The callback URLs.
        figures: What is counted.
        instance_id: The id of this instance, as it is in the registry.
        state: Returns where this instance is in its life.
        status: Returns what this instance knows about itself, without its accounts.
        clock: The reactor's clock.
        now: Returns the time in seconds since 1970.
        peers: A reactor that reaches the other instances, and nothing else.
    """

    store: IStore
    hub: Hub
    intake: Intake
    tasks: Tasks
    callback_mint: CallbackMint
    figures: FigureSet
    instance_id: str
    state: Callable[[], State]
    status: Callable[[], Status]
    clock: IReactorTime
    now: Callable[[], float]
    peers: IReactorTime


class Front:
    """
    The front of an instance: what stands between the network and its core.

    Attributes:
        gate: Decides about each request.
        webhook: Takes POSTs.
        clients: The clients that are connected by a stream.
        subscribers: Serves subscribers.
        task_pages: Serves tasks.
        metrics: What ``/metrics`` shows.
        credentials: Revocations and tickets; None without authentication.
    """

    def __init__(
        self,
        core: Core,
        gate: Gate,
        carrier: HttpCarrier,
        signer: PeerSigner,
        *,
        unsent_limit: int = MAX_UNSENT_BYTES,
        page: bool = False,
    ) -> None:
        """
        Args:
            core: What it stands before.
            gate: Decides about each request.
            carrier: Takes the batches of other instances in.
            signer: Signs for other instances, and verifies what they ask.
            unsent_limit: Bytes that may be queued for one subscriber.
            page: Whether the page at ``/`` is served although there is authentication.
        """
        clock, now = core.clock, core.now
        self.gate = gate
        self._clock = clock
        self.webhook = Webhook(
            core.intake,
            core.hub,
            now,
            core.instance_id,
            signer=signer,
            receive=carrier.receive,
            report=core.tasks.report,
            recheck=gate.recheck,
        )
        self.metrics = Metrics(core.figures.collect)
        # Only the time at which a client reconnects, or its grant ends, depends on this randomness.
        self.clients = ConnectedClients(clock, random.random, now=now)
        self.subscribers = Subscribers(
            core.hub, self.clients, gate, clock, core.tasks, unsent_limit
        )
        self.task_pages = TaskPages(core.tasks, core.hub, gate, self.clients.deadlines, clock)
        core.figures.add(self.clients.closes.counts)
        self.credentials: Credentials | None = None
        if gate.authority is not None:
            self.credentials = Credentials(core.store, gate.authority, gate, self._end, clock, now)
            core.figures.add(*self.credentials.figures())
        questions = Questions.over_treq(core.peers, now, signer)
        self._routes = Routes(
            self.webhook,
            _status_pages(core, questions, self.credentials),
            self.metrics,
            gate,
            self.subscribers,
            _callback_routes(core, gate),
            self.task_pages,
            OperatorPages(core.status, core.hub, core.store, gate, signer, questions, now),
            self.credentials.pages if self.credentials is not None else None,
            page=page,
        )

    def site(self) -> Site:
        """Return the site behind a `Listener`: everything that is not frequent."""
        return self._routes.site(self._clock)

    def resource(self) -> IResource:
        """Return everything as a resource for any twisted.web or Klein site."""
        return self._routes.resource(self._clock)

    def start(self) -> None:
        """Begin what is done from time to time."""
        self.clients.start()
        if self.credentials is not None:
            self.credentials.open()

    async def learn(self) -> None:
        """Learn from the store what decides about credentials."""
        if self.credentials is not None:
            await self.credentials.learn()

    def serve(self) -> None:
        """Serve: the store is open."""
        if self.credentials is not None:
            self.credentials.start()

    def _end(self, matches: Callable[[Grant, str], bool], error: PlumberError) -> None:
        """End the streams, the long-polls and the held requests whose grants match."""
        self.clients.end_where(matches, error)
        self.subscribers.end_polls(matches, error)
        self.task_pages.end_where(matches, error)

    async def drain(self) -> None:
        """Ask all subscribers to come back later, and return when they have left."""
        self.subscribers.answer_polls()
        await self.task_pages.drain()
        await self.clients.drain()
        if self.credentials is not None:
            await self.credentials.stop()


def _callback_routes(core: Core, gate: Gate) -> CallbackRoutes:
    mint, tasks, now = core.callback_mint, core.tasks, core.now
    callbacks = Callbacks(mint, tasks, core.intake, now, gate.requests.granted)
    core.figures.add(callbacks.figure)
    return CallbackRoutes(callbacks, CallbackPages(mint, tasks, gate.recheck, now))


def _status_pages(core: Core, questions: Questions, credentials: Credentials | None) -> StatusPages:
    store = core.store
    registry = store.registry if store.shared else None
    presence = Presence(core.hub, registry, core.instance_id, PresenceClient(questions))
    # Not the whole status: balancers ask often, and there may be many accounts.
    check = credentials.check_ready if credentials is not None else lambda: None
    return StatusPages(store, core.state, presence.of, check)
