"""
One port for all: who comes in, and which way.

The hot requests take the short way: POSTs to a webhook go straight to `Webhook`, subscribers straight to their streams.
Everything else goes the long way, to Klein's site.  Both ways end in the same rooms.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import parse_qs, urlsplit

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Site

from asyncplumber.channel import Channel
from asyncplumber.errors import BadRequest, MethodNotAllowed, NotAllowed, PlumberError, blame
from asyncplumber.event import EARLIEST, Cursor
from asyncplumber.hub import Hub
from asyncplumber.web.answers import Answer, error_answer
from asyncplumber.web.attendance import Attendance
from asyncplumber.web.connection import Call, Connection
from asyncplumber.web.longway import LongWay
from asyncplumber.web.outbox import UNSENT
from asyncplumber.web.streams import RETRY, EventStream, LongPoll
from asyncplumber.web.webhook import Webhook, account_of
from asyncplumber.web.websocket import EarFactory, WebSocketStream, handshake

HEAD_LIMIT = 16 * 1024  # bytes of request line and headers; nginx and Apache take 8 or 16 KiB
BODY_LIMIT = 1024 * 1024  # bytes
REQUEST_TIMEOUT = 30.0  # seconds for a request to arrive whole
IDLE_TIMEOUT = 75.0  # seconds that a connection stays open without a request; nginx' keepalive_timeout
WAIT, LONGEST_WAIT = 25.0, 120.0  # seconds of a long-poll; proxies give up after 30 or 60
TICK = 1.0  # seconds between looks at the deadlines


class Listener(Factory):
    """Builds the protocol of each connection, and knows where to send what it reads."""

    _log = Logger()
    noisy = False

    def __init__(
        self,
        webhook: Webhook,
        hub: Hub,
        attendance: Attendance,
        site: Site,
        clock: Any,
        *,
        body_limit: int = BODY_LIMIT,
        head_limit: int = HEAD_LIMIT,
        unsent_limit: int = UNSENT,
        request_timeout: float = REQUEST_TIMEOUT,
        idle_timeout: float = IDLE_TIMEOUT,
        origins: Collection[str] = (),
    ) -> None:
        """
        Limits are in bytes, time-outs in seconds.

        `origins` are those, beside our own, whose pages may subscribe and post; ``*`` lets all.
        """
        self.body_limit = body_limit
        self.head_limit = head_limit
        self.unsent_limit = unsent_limit
        self.request_timeout = request_timeout
        self.idle_timeout = idle_timeout
        self.connections: set[Connection] = set()
        self.stopping = False
        self.now = clock.seconds()  # as of the last tick: the deadlines need no better
        self._webhook = webhook
        self._hub = hub
        self._attendance = attendance
        self._site = site
        self._clock = clock
        self._origins = frozenset(origin.encode() for origin in origins)
        self._ears = EarFactory()
        self._ticks = LoopingCall(self._tick)
        self._ticks.clock = clock

    def buildProtocol(self, addr: Any) -> Any:
        return Connection(self)

    def start(self) -> None:
        """Begin to watch the deadlines."""
        self._ticks.start(TICK)

    def stop(self) -> None:
        """Watch no more, and hang up on whoever is left."""
        if self._ticks.running:
            self._ticks.stop()
        for connection in list(self.connections):
            connection.transport.abortConnection()

    def refuse(self) -> None:
        """Close connections after their next answer."""
        self.stopping = True

    def _tick(self) -> None:
        self.now = now = self._clock.seconds()
        for connection in [late for late in self.connections if late.deadline is not None and late.deadline < now]:
            connection.expired()

    # Which way

    def answer(self, connection: Connection, call: Call) -> None:
        """Have this request answered."""
        target = call.target
        try:
            if target.startswith(b"/hooks/"):
                if call.method == b"POST" and not call.upgrade:
                    self._check_origin(call)
                    segment = target[7:].partition(b"?")[0]
                    connection.reply_later(call, self._webhook.take(segment, call.headers, call.body))
                    return
            elif target.startswith(b"/events/"):
                self._check_origin(call)
                self._subscribe(connection, call)
                return
            self._take_the_long_way(connection, call)
        except PlumberError as error:
            connection.reply(call, self._allowing(call, error_answer(error)))

    def _take_the_long_way(self, connection: Connection, call: Call) -> None:
        if call.upgrade:
            raise BadRequest("there is nothing to upgrade to at this path")
        self._check_origin(call)
        way = LongWay(connection.transport, self._site, self.stopping or not call.keep_alive, connection.answered)
        connection.gone = way.connection_lost
        way.handle(call.method, call.target, call.raw_headers, call.body)

    def _check_origin(self, call: Call) -> None:
        """
        Refuse requests that a page of another origin makes (RFC 6455, 10.2): a browser sends them with the user's standing.

        Programs send no Origin and are not meant.
        """
        origin = call.headers.get(b"origin")
        if origin is None or b"*" in self._origins or origin in self._origins:
            return
        if call.method in (b"GET", b"HEAD") and not call.upgrade and not call.target.startswith(b"/events/"):
            return
        if urlsplit(origin).netloc.lower() != call.headers.get(b"host", b"").lower():
            raise NotAllowed("pages of that origin may not do this; see --allow-origin")

    def _allowing(self, call: Call, answer: Answer) -> Answer:
        """The answer, readable to a page of an allowed origin (WHATWG Fetch, 3.2)."""
        origin = call.headers.get(b"origin")
        if origin is None or not (b"*" in self._origins or origin in self._origins):
            return answer
        cors = ((b"Access-Control-Allow-Origin", origin), (b"Vary", b"Origin"))
        return answer._replace(headers=answer.headers + cors)

    # Subscribers

    def _subscribe(self, connection: Connection, call: Call) -> None:
        if call.method != b"GET":
            raise MethodNotAllowed("GET")
        path, _, query = call.target.partition(b"?")
        account = account_of(path[8:])
        asked = parse_qs(query.decode("ascii", "replace"), keep_blank_values=True) if query else {}
        after = self._resume_point(call, asked)
        serve: Callable[[Channel], Any]
        if call.upgrade:
            if call.headers.get(b"upgrade", b"").lower() != b"websocket":
                raise BadRequest("the only upgrade here is to websocket")
            head = handshake(call.headers)
            serve = lambda channel: self._serve_websocket(connection, call, channel, head, after)  # noqa: E731
        elif b"text/event-stream" in call.headers.get(b"accept", b""):
            serve = lambda channel: self._serve_events(connection, call, channel, after)  # noqa: E731
        else:
            wait = self._wait(asked)
            serve = lambda channel: self._serve_poll(connection, call, channel, after, wait)  # noqa: E731
        waiting = [True]
        connection.gone = lambda reason: waiting.clear()
        admitted: Deferred[Any] = self._hub.admit(account)
        admitted.addCallback(lambda channel: serve(channel) if waiting else None)
        admitted.addErrback(self._not_admitted, connection, call, waiting)

    def _not_admitted(self, failure: Failure, connection: Connection, call: Call, waiting: list[bool]) -> None:
        error = blame(failure, self._log, "a subscriber cannot be admitted")
        if waiting and connection.transport is not None:
            connection.reply(call, self._allowing(call, error_answer(error)))

    @staticmethod
    def _resume_point(call: Call, asked: dict[str, list[str]]) -> Cursor | str | None:
        """Where the client stands: the header wins over the query, as the query is of its first connection."""
        header = call.headers.get(b"last-event-id")
        text = header.decode("latin-1") if header is not None else None
        for name in ("last_event_id", "lastEventID", "after"):
            if text is None and name in asked:
                text = asked[name][-1]
        if text is None or text == "":
            return None
        return EARLIEST if text == EARLIEST else Cursor.parse(text)

    @staticmethod
    def _wait(asked: dict[str, list[str]]) -> float:
        try:
            wait = float(asked.get("wait", [str(WAIT)])[-1])
        except ValueError:
            wait = -1.0
        if not 0 <= wait <= LONGEST_WAIT:
            raise BadRequest(f"wait is a number of seconds from 0 to {LONGEST_WAIT:.0f}")
        return wait

    def _serve_websocket(
        self, connection: Connection, call: Call, channel: Channel, head: bytes, after: Cursor | str | None
    ) -> None:
        stream = WebSocketStream(channel, self._attendance, self._ears)
        stream.begin(connection.hand_over(stream), head, self.unsent_limit, after)
        if call.rest:
            stream.dataReceived(call.rest)

    def _serve_events(self, connection: Connection, call: Call, channel: Channel, after: Cursor | str | None) -> None:
        stream = EventStream(channel, self._attendance, self._clock)
        head = EventStream.HEAD % (self._cors_lines(call), RETRY)
        stream.begin(connection.hand_over(stream), head, self.unsent_limit, after)

    def _cors_lines(self, call: Call) -> bytes:
        headers = self._allowing(call, Answer(200, b"", b"")).headers
        return b"".join([b"%b: %b\r\n" % header for header in headers])

    def _serve_poll(self, connection: Connection, call: Call, channel: Channel, after: Cursor | str | None, wait: float) -> None:
        poll = LongPoll(channel, self._clock, wait)
        connection.gone = lambda reason: poll.leave()
        connection.reply_later(call, poll.answer.addCallback(lambda answer: self._allowing(call, answer)))
        channel.subscribe(poll, after)
