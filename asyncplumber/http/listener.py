"""
One port for all: who comes in, and which way.

The hot requests take the short way: POSTs to a webhook go straight to `Webhook`, subscribers
straight to their streams. Everything else goes the long way, to Klein's site.  Both ways end in the
same rooms.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any
from urllib.parse import parse_qs

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Site
from zope.interface import implementer

from asyncplumber._twisted_compat import limit_accepts
from asyncplumber.auth.hosts import Hosts
from asyncplumber.auth.origins import Origins
from asyncplumber.core.channel import Channel
from asyncplumber.core.hub import Hub
from asyncplumber.errors import BadRequest, MethodNotAllowed, to_client_error
from asyncplumber.event import EARLIEST, Cursor
from asyncplumber.http.bodies import BODIES, Bodies
from asyncplumber.http.connection import Connection
from asyncplumber.http.gate import Gate
from asyncplumber.http.request import Request
from asyncplumber.http.request_channel import RequestChannel
from asyncplumber.http.responses import (
    Response,
    error_response,
    event_stream_head,
    poll_response,
)
from asyncplumber.http.webhook import Webhook, account_of
from asyncplumber.transports.connected_clients import ConnectedClients
from asyncplumber.transports.frame_parser import FrameParserPool
from asyncplumber.transports.long_poll import LongPoll, PollResult
from asyncplumber.transports.send_buffer import MAX_UNSENT_BYTES
from asyncplumber.transports.sse import EventStream
from asyncplumber.transports.websocket import WebSocketStream, handshake
from asyncplumber.wire.event_batch import batch_limit
from asyncplumber.wire.parse import Headers

HEAD_LIMIT = 16 * 1024  # bytes of request line and headers; nginx and Apache take 8 or 16 KiB
BODY_LIMIT = 1024 * 1024  # bytes
REQUEST_TIMEOUT = 30.0  # seconds for a request to arrive whole
IDLE_TIMEOUT = (
    75.0  # seconds that a connection stays open without a request; nginx' keepalive_timeout
)
WAIT, LONGEST_WAIT = 25.0, 120.0  # seconds of a long-poll; proxies give up after 30 or 60
# connections taken in one turn of the reactor, or a few more: a storm of new ones must not starve
# the others
ACCEPTS = 64
TICK = 1.0  # seconds between looks at the deadlines


@implementer(IProtocolNegotiationFactory)
class Listener(Factory):
    """Builds the protocol of each connection, and knows where to send what it reads."""

    _log = Logger()
    noisy = False

    def __init__(
        self,
        webhook: Webhook,
        hub: Hub,
        clients: ConnectedClients,
        site: Site,
        clock: Any,
        *,
        body_limit: int = BODY_LIMIT,
        head_limit: int = HEAD_LIMIT,
        unsent_limit: int = MAX_UNSENT_BYTES,
        bodies_limit: int = BODIES,
        request_timeout: float = REQUEST_TIMEOUT,
        idle_timeout: float = IDLE_TIMEOUT,
        origins: Collection[str] = (),
        gate: Gate | None = None,
    ) -> None:
        """
        Limits are in bytes, time-outs in seconds. `gate` None answers only to loopback names.

        `origins` are those, beside our own, whose pages may subscribe and post; ``*`` lets all.
        """
        self.body_limit, self.head_limit, self.unsent_limit = body_limit, head_limit, unsent_limit
        self.bodies = Bodies(bodies_limit)
        self.request_timeout, self.idle_timeout = request_timeout, idle_timeout
        self.connections: set[Connection] = set()
        self.ports: list[Any] = []  # on which we listen
        self.stopping = False
        self.now = clock.seconds()  # as of the last tick: the deadlines need no better
        self._webhook = webhook
        self._hub = hub
        self.clients = clients
        self._site = site
        self._clock = clock
        self._origins = Origins(origins, clock.seconds)
        self._gate = gate or Gate(Hosts())
        self._polls: set[LongPoll] = set()
        self._parsers = FrameParserPool(clock)
        self._ticks = LoopingCall(self._tick)
        self._ticks.clock = clock

    def limit_of(self, target: bytes) -> int:
        """
        Bytes of a body that may be sent to this path.  A batch has many events, and its JSON wraps
        theirs.
        """
        is_batch = target.startswith(b"/instances/") and target.endswith(b"/events")
        return batch_limit(self.body_limit) if is_batch else self.body_limit

    def acceptableProtocols(self) -> list[bytes]:
        """
        What is spoken over TLS (ALPN, RFC 7301).

        Without this answer today's pyOpenSSL ends the handshake of every client that offers some.
        """
        return [b"http/1.1"]

    def buildProtocol(self, addr: Any) -> Any:
        limit_accepts(self.ports, ACCEPTS)
        return Connection(self)

    def start(self) -> None:
        """Begin to watch the deadlines."""
        self._ticks.start(TICK)

    def stop(self) -> None:
        """Watch no more, and hang up on whoever is left, once it has taken what was answered."""
        if self._ticks.running:
            self._ticks.stop()
        for connection in list(self.connections):
            connection.hang_up()

    def refuse(self) -> None:
        """
        Close connections after their next answer: long-polls are answered now, and who waits for
        nothing is hung up on.
        """
        self.stopping = True
        for poll in list(self._polls):
            poll.end(None)
        for connection in [connection for connection in self.connections if connection.is_idle]:
            connection.hang_up()

    def _tick(self) -> None:
        self.bodies.tick()
        self.now = now = self._clock.seconds()
        for connection in [
            late for late in self.connections if late.deadline is not None and late.deadline < now
        ]:
            connection.expired()

    # Which way

    def answer(self, connection: Connection, call: Request) -> None:
        """Have this request answered."""
        try:
            self._answer(connection, call)
        except Exception:
            error = to_client_error(Failure(), self._log, "a request failed")
            connection.reply(call, self._allowing(call, error_response(error)))

    def _answer(self, connection: Connection, call: Request) -> None:
        target = call.target
        self._gate.check(target, call.headers, connection.transport)
        if b"origin" in call.headers and not self._welcomes(connection, call):
            return
        if target.startswith(b"/hooks/") and call.method == b"POST":
            segment = target[7:].partition(b"?")[0]
            if b"origin" in call.headers:
                taken = self._webhook.take(segment, call.headers, call.body)
                connection.reply_later(
                    call, taken.addCallback(lambda answer: self._allowing(call, answer))
                )
            else:
                body, call.body = (
                    call.body,
                    b"",
                )  # the call stays until it is answered, which may take seconds
                self._webhook.take_in(segment, call.headers, body, partial(connection.reply, call))
        elif target.startswith(b"/events/"):
            self._subscribe(connection, call)
        else:
            self._take_the_long_way(connection, call)

    def _take_the_long_way(self, connection: Connection, call: Request) -> None:
        close = self.stopping or not call.keep_alive
        way = RequestChannel(
            connection.transport,
            connection.write,
            connection.drained,
            self._site,
            close,
            self._origins.cors(call.headers),
            connection.answered,
        )
        connection.gone = way.connection_lost
        way.handle(call.method, call.target, call.raw_headers, call.body)

    def _welcomes(self, connection: Connection, call: Request) -> bool:
        """
        Whether the request of a page is to be answered.  A preflight is answered here; raises
        `NotAllowed` for strangers.
        """
        preflight = call.method == b"OPTIONS" and b"access-control-request-method" in call.headers
        if (
            call.method not in (b"GET", b"HEAD")
            or call.upgrade
            or call.target.startswith(b"/events/")
        ):
            self._origins.check(call.headers)
        if preflight and self._origins.allows(call.headers):
            connection.reply(
                call, Response(200, b"text/plain", b"", self._origins.preflight(call.headers))
            )
            return False
        return True

    def _allowing(self, call: Request, answer: Response) -> Response:
        """The answer, readable to a page of an allowed origin."""
        return answer._replace(headers=answer.headers + self._origins.cors(call.headers))

    # Subscribers

    def _subscribe(self, connection: Connection, call: Request) -> None:
        if call.method != b"GET":
            raise MethodNotAllowed("GET")
        path, _, query = call.target.partition(b"?")
        account = account_of(path[8:])
        asked = parse_qs(query.decode("ascii", "replace"), keep_blank_values=True) if query else {}
        after = self.resume_point(call.headers, asked)
        serve: Callable[[Channel], Any]
        if call.upgrade:
            head = handshake(call.headers)
            serve = lambda channel: self._serve_websocket(connection, channel, head, after)
        elif b"text/event-stream" in call.headers.get(b"accept", b""):
            serve = lambda channel: self._serve_events(connection, call, channel, after)
        else:
            wait = self.wait_in(asked)
            serve = lambda channel: self._serve_poll(connection, call, channel, after, wait)
        if connection.has_ended:
            # it is not read any more, so nothing would tell that the client has gone
            connection.hang_up()
            return
        connection.is_waiting = True
        admitted: Deferred[Any] = self._hub.admit(account)
        connection.gone = lambda reason: admitted.cancel()
        admitted.addCallback(serve)
        admitted.addErrback(self._not_admitted, connection, call)

    def _not_admitted(self, failure: Failure, connection: Connection, call: Request) -> None:
        if failure.check(CancelledError):
            return  # the client has gone
        error = to_client_error(failure, self._log, "a subscriber cannot be admitted")
        if connection.transport is not None:
            connection.reply(call, self._allowing(call, error_response(error)))

    @staticmethod
    def resume_point(headers: Headers, asked: dict[str, list[str]]) -> Cursor | str | None:
        """
        Where the client stands: the header wins over the query, as the query is of its first
        connection; empty is none.
        """
        places = [headers.get(b"last-event-id", b"").decode("latin-1")]
        # `after` is last: a client that resumes by another name has it in the URL from the
        # beginning.
        places += [
            asked[name][-1]
            for name in ("lastEventId", "last_event_id", "lastEventID", "after")
            if name in asked
        ]
        text = next(filter(None, places), None)
        if text is None:
            return None
        return EARLIEST if text == EARLIEST else Cursor.parse(text)

    @staticmethod
    def wait_in(asked: dict[str, list[str]]) -> float:
        """Seconds that a long-poll waits.  Raises `BadRequest`."""
        try:
            wait = float(asked.get("wait", [str(WAIT)])[-1])
        except ValueError:
            wait = -1.0
        if not 0 <= wait <= LONGEST_WAIT:
            raise BadRequest(f"wait is a number of seconds from 0 to {LONGEST_WAIT:.0f}")
        return wait

    def _serve_websocket(
        self, connection: Connection, channel: Channel, head: bytes, after: Cursor | str | None
    ) -> None:
        stream = WebSocketStream(channel, self.clients, self._clock, self._parsers)
        stream.begin(connection, head, self.unsent_limit, after)

    def _serve_events(
        self, connection: Connection, call: Request, channel: Channel, after: Cursor | str | None
    ) -> None:
        stream = EventStream(channel, self.clients, self._clock, chunked=call.is_current)
        head = event_stream_head(chunked=call.is_current, headers=self._origins.cors(call.headers))
        stream.begin(connection, head, self.unsent_limit, after)

    def _serve_poll(
        self,
        connection: Connection,
        call: Request,
        channel: Channel,
        after: Cursor | str | None,
        wait: float,
    ) -> None:
        poll = LongPoll(channel, self._clock, wait)
        self._polls.add(poll)

        def leave(reason: Any) -> None:
            self._polls.discard(poll)
            poll.cancel()

        def answered(result: PollResult | Failure) -> Response:
            self._polls.discard(poll)
            if isinstance(result, Failure):
                error = to_client_error(result, self._log, "a long-poll failed")
                return self._allowing(call, error_response(error))
            return self._allowing(call, poll_response(result))

        connection.gone = leave
        connection.reply_later(call, poll.result.addBoth(answered))
        poll.start(after)
