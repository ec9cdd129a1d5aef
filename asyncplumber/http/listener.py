"""
The HTTP server of our own port: builds connections, and dispatches their requests.

Requests that are frequent take the fast path: POSTs to a webhook go to `Webhook`, subscribers to
`Subscribers`, and those about tasks to `TaskPages`.  All others take the full path, to Klein's
routes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolNegotiationFactory,
    IReactorTime,
)
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Site
from zope.interface import implementer

from asyncplumber._twisted_compat import is_wrapped, limit_accepts
from asyncplumber.auth.limits.client_limits import Hold
from asyncplumber.concurrency import PeriodicTask
from asyncplumber.errors import PlumberError, TooManyRequests, to_client_error
from asyncplumber.figures import LabelledCounter
from asyncplumber.http.access import TASKS
from asyncplumber.http.arrival import Arrival
from asyncplumber.http.bodies import MAX_LARGE_BYTES, Bodies
from asyncplumber.http.client_address import Peer
from asyncplumber.http.connection import Connection
from asyncplumber.http.gate import Gate, granted, when_decided
from asyncplumber.http.ports import Port
from asyncplumber.http.refused_connection import RefusedConnection
from asyncplumber.http.request import Request
from asyncplumber.http.request_channel import RequestChannel
from asyncplumber.http.responses import Response
from asyncplumber.http.subscribers import Subscribers
from asyncplumber.http.tasks import TaskPages
from asyncplumber.http.webhook import Webhook
from asyncplumber.interfaces import Decision
from asyncplumber.rate_limited_log import RateLimitedLog

HEAD_LIMIT = 16 * 1024  # bytes of request line and headers; nginx and Apache take 8 or 16 KiB
REQUEST_TIMEOUT = 30.0  # seconds for a request to arrive whole, or a response to be taken
HEAD_TIMEOUT = 10.0  # seconds for request line and headers
# Bytes per second that a body must have on average, from some seconds after its head on.
MIN_BODY_RATE = 500.0
# Seconds that a connection stays open without a request; the same as nginx' keepalive_timeout.
IDLE_TIMEOUT = 75.0
# Connections accepted in one turn of the reactor, or a few more: a storm of new ones must not
# starve the others.
ACCEPTS = 64
ALL_CONNECTIONS = "connections"  # the reason of a refusal by `--max-connections`
TICK = 1.0  # seconds between looks at the deadlines


@implementer(IProtocolNegotiationFactory)
class Listener(Factory):
    """Builds the protocol of each connection, and dispatches the requests that it reads."""

    _log = Logger()
    noisy = False

    def __init__(
        self,
        webhook: Webhook,
        subscribers: Subscribers,
        tasks: TaskPages,
        site: Site,
        gate: Gate,
        clock: IReactorTime,
        *,
        head_limit: int = HEAD_LIMIT,
        bodies_limit: int = MAX_LARGE_BYTES,
        request_timeout: float = REQUEST_TIMEOUT,
        head_timeout: float = HEAD_TIMEOUT,
        idle_timeout: float = IDLE_TIMEOUT,
        min_body_rate: float = MIN_BODY_RATE,
        max_connections: int | None = None,
    ) -> None:
        """
        Limits are in bytes, time-outs in seconds, ``min_body_rate`` in bytes per second.

        ``max_connections`` is the most connections that are open at a time; None for any number.
        """
        self.head_limit = head_limit
        self.bodies = Bodies(bodies_limit)
        self.body_limit_of = gate.body_limit_of
        self.readable = gate.readable
        self.address_of = gate.address_of
        self.requests = gate.requests
        self.request_timeout = request_timeout
        self.head_timeout = min(head_timeout, request_timeout)
        self.min_body_rate = min_body_rate
        self.idle_timeout = idle_timeout
        self.connections: set[Connection] = set()
        #: The ports that this server listens on.
        self.ports: list[Any] = []
        self.stopping = False
        self.now = clock.seconds()  # as of the last tick, which is exact enough for deadlines
        self._webhook = webhook
        self._subscribers = subscribers
        self._tasks = tasks
        self.site = site
        self._gate = gate
        self._max_connections = max_connections
        self._refusals = RateLimitedLog(self._log, clock.seconds)
        self.refused_connections = LabelledCounter(
            "connections_refused_total",
            "Connections that were closed because there were too many.",
            "reason",
            (ALL_CONNECTIONS, "connections_per_address"),
        )
        self._clock = clock
        self._ticks = PeriodicTask(self._tick, TICK, clock, now=True)

    def acceptableProtocols(self) -> list[bytes]:
        """
        Return what is spoken over TLS (ALPN, RFC 7301).

        Without this, pyOpenSSL ends the handshake of every client that offers a protocol.
        """
        return [b"http/1.1"]

    def buildProtocol(self, addr: IAddress | None) -> IProtocol:  # type: ignore[override]
        return self.build(Port.ONLY, addr)

    def build(self, port: Port, addr: IAddress | None) -> IProtocol:
        """Return the protocol of a new connection at a port for this purpose."""
        limit_accepts(self.ports, ACCEPTS)
        peer = self._gate.clients.peer(addr)
        try:
            # The operator gets in however many others there are.
            hold = self._count(peer) if port is not Port.PRIVATE else None
        except TooManyRequests as error:
            self.refused_connections.add(error.reason)
            self._refusals.warn(
                "a connection of {address} is refused: {error}",
                address=peer.address.text or "a client",
                error=error.message,
            )
            return RefusedConnection()
        return Connection(self, Arrival(port, peer, hold))

    def at(self, port: Port) -> Factory:
        """Return the factory for a port for this purpose."""
        return self if port is Port.ONLY else _PortFactory(self, port)

    def _count(self, peer: Peer) -> Hold | None:
        """Count a connection.  Raises `TooManyRequests`."""
        if self._max_connections is not None and self.connected >= self._max_connections:
            raise TooManyRequests(
                "this process has as many as --max-connections allows", reason=ALL_CONNECTIONS
            )
        return self._gate.clients.limits.connect(peer.address.key)

    @property
    def connected(self) -> int:
        """The number of connections: those with requests, and those with a stream."""
        return len(self.connections) + self._subscribers.streams

    def start(self) -> None:
        """Begin to watch the deadlines, also after a stop."""
        self.stopping = False
        self._ticks.start()

    def stop(self) -> None:
        """Stop watching, and close what is left when the responses have been taken."""
        self._ticks.stop()
        for connection in list(self.connections):
            connection.hang_up()

    def refuse(self) -> None:
        """
        Close each connection after its next response, and idle ones now.

        Long-polls that wait are answered now.
        """
        self.stopping = True
        self._subscribers.answer_polls()
        for connection in [connection for connection in self.connections if connection.is_idle]:
            connection.hang_up()

    def _tick(self) -> None:
        self.bodies.tick()
        self.now = now = self._clock.seconds()
        for connection in [
            late for late in self.connections if late.deadline is not None and late.deadline < now
        ]:
            connection.expired()

    # Dispatching

    def check_head(self, request: Request, connection: Connection) -> PlumberError | None:
        """See `Gate.check_head`."""
        transport, arrival = connection.transport, connection.arrival
        peer = arrival.peer
        if is_wrapped(transport):  # it may know more about the peer by now
            peer = self._gate.clients.peer_of(transport, peer)
        return self._gate.check_head(request, transport, arrival.port, peer)

    def handle(self, connection: Connection, request: Request) -> None:
        """Respond to this request, now or later."""
        if self.requests.every:
            request.began = self.requests.seconds()
        try:
            response = self._gate.admit(request)
            if response is not None:
                connection.respond(response)
            elif isinstance(request.grant, Deferred):
                when_decided(connection, request.grant, partial(self._decided, connection, request))
            else:
                assert request.grant is not None  # the gate has decided
                self._dispatch(connection, request, request.grant)
        except Exception:
            self._refuse(connection, request)

    def _decided(
        self, connection: Connection, request: Request, decision: Decision | PlumberError
    ) -> None:
        try:
            if isinstance(decision, PlumberError):
                raise decision
            self._dispatch(connection, request, decision)
        except Exception:
            self._refuse(connection, request)

    def _refuse(self, connection: Connection, request: Request) -> None:
        """Refuse a request, from within its ``except``."""
        error = to_client_error(Failure(), self._log, "a request failed")
        self._subscribers.refuse(connection, request, error)

    def _dispatch(self, connection: Connection, request: Request, decision: Decision) -> None:
        target = request.target
        if request.body:
            self._gate.count_chunks(request, decision)
        if target.startswith(b"/hooks/") and request.method == b"POST":
            # The request stays until it is answered, which may take seconds; its body need not.
            body, request.body = request.body, b""
            respond = connection.respond
            if b"origin" in request.headers:
                respond = partial(self._respond_readable, connection, request)
            segment = target[7:].partition(b"?")[0]
            self._webhook.take_in(segment, request.headers, body, decision, respond)
            return
        grant = granted(decision)
        if target.startswith(b"/events/"):
            self._subscribers.subscribe(connection, request, grant)
        elif target.startswith(TASKS):
            body, request.body = request.body, b""
            self._tasks.serve(connection, request, grant, body)
        else:
            channel = RequestChannel(
                connection,
                self.site,
                close=self.stopping or not request.keep_alive,
                headers=self._gate.cors(request),
                note=partial(connection.note, request) if self.requests.every else None,
            )
            connection.on_disconnect = channel.connection_lost
            channel.handle(request, grant)

    def _respond_readable(
        self, connection: Connection, request: Request, response: Response
    ) -> None:
        connection.respond(self._gate.readable(request, response))


@implementer(IProtocolNegotiationFactory)
class _PortFactory(Factory):
    """Builds the connections of one port of several that a `Listener` has."""

    noisy = False

    def __init__(self, listener: Listener, port: Port) -> None:
        self._listener = listener
        self._port = port

    def acceptableProtocols(self) -> list[bytes]:
        return self._listener.acceptableProtocols()

    def buildProtocol(self, addr: IAddress | None) -> IProtocol:  # type: ignore[override]
        return self._listener.build(self._port, addr)
