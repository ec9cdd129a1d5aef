"""``GET /events/{account}``: from a request to a subscriber, whichever way the request came in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from twisted.internet.interfaces import IProtocol, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.auth.origins import ForeignOrigin
from asyncplumber.core.channel import Channel
from asyncplumber.core.hub import Hub
from asyncplumber.core.subscribe import Admission, resume_point, wait_in, wants_tasks
from asyncplumber.core.subscription import Subscribable
from asyncplumber.core.tasks.service import Tasks
from asyncplumber.core.tasks.snapshots import Snapshots
from asyncplumber.core.tasks.subscription import ChannelWithTasks
from asyncplumber.errors import MethodNotAllowed, NotImplementedHere, PlumberError, to_client_error
from asyncplumber.event import Cursor
from asyncplumber.grant import Grant
from asyncplumber.http.arrival import Arrival
from asyncplumber.http.clients import Visit
from asyncplumber.http.gate import Gate
from asyncplumber.http.request import Request
from asyncplumber.http.responses import (
    Response,
    error_response,
    event_stream_head,
    poll_response,
)
from asyncplumber.http.syntax import account_of
from asyncplumber.transports.choice import EVENT_STREAM, LONG_POLL, WEBSOCKET, choose
from asyncplumber.transports.connected_clients import ConnectedClients
from asyncplumber.transports.long_poll import LongPoll, PollResult
from asyncplumber.transports.refusal import RefusedWebSocket, close_code
from asyncplumber.transports.send_buffer import MAX_UNSENT_BYTES
from asyncplumber.transports.sse import EventStream
from asyncplumber.transports.stream import Detached
from asyncplumber.transports.task_messages import TaskMessages
from asyncplumber.transports.websocket import WebSocketStream, handshake, violation_log
from asyncplumber.wire.envelope import notice
from asyncplumber.wire.websocket_frames import frame

After = Cursor | str | None


class Exchange(Protocol):
    """One request whose response is due: a `Connection`, or a request of another site."""

    on_disconnect: Callable[[Failure], object] | None
    awaits_events: bool  # set while the response waits for an event

    @property
    def arrival(self) -> Arrival | None:
        """How its connection came in; None if that is not known."""

    @property
    def can_detach(self) -> bool:
        """Whether a stream can have the transport."""

    @property
    def transport(self) -> Any:
        """Where the request came in; it knows the address of the client."""

    @property
    def input_ended(self) -> bool:
        """Whether the client will send no more, so that nothing would tell that it left."""

    def respond(self, response: Response) -> None:
        """Send the response.  Does nothing if the client has disconnected."""

    def hang_up(self) -> None:
        """Close the connection without a response."""

    def detach(self, protocol: IProtocol) -> Detached:
        """Give the transport to a stream."""


def _farewell(request: Request, error: PlumberError) -> bytes:
    """Return the frame that says when to come back: a close frame has no place for Retry-After."""
    if error.retry_after is None or not request.target.startswith(b"/events/"):
        return b""
    account = account_of(request.target.partition(b"?")[0].removeprefix(b"/events/"))
    later = {"reason": error.code, "reconnect_after": error.retry_after}
    return frame(notice("plumber.bye", account, None, **later))


class Subscribers:
    """Serves the subscribers of this instance."""

    _log = Logger()

    def __init__(
        self,
        hub: Hub,
        clients: ConnectedClients,
        gate: Gate,
        clock: IReactorTime,
        tasks: Tasks,
        unsent_limit: int = MAX_UNSENT_BYTES,
    ) -> None:
        """
        Args:
            hub: Has the channels.
            clients: The clients that are connected by a stream.
            gate: Says who may read a response.
            clock: The reactor's clock.
            tasks: What the tasks are asked of.
            unsent_limit: Bytes that may be queued for one client.
        """
        self.unsent_limit = unsent_limit
        self._hub = hub
        self._clients = clients
        self._gate = gate
        self._clock = clock
        self._violations = violation_log(clock)
        self._polls: set[LongPoll] = set()
        self._messages = TaskMessages(tasks, gate.body_limit)
        self._snapshots = Snapshots(partial(tasks.of_account, live_only=True), clock)

    def subscribe(self, exchange: Exchange, request: Request, grant: Grant) -> None:
        """
        Serve the account that the request's path names, by the transport that it chooses.

        Args:
            exchange: The request's connection.
            request: The request.
            grant: What its sender may do, and until when.

        Raises:
            PlumberError: The request is wrong; nothing was begun.
        """
        if request.method != b"GET":
            raise MethodNotAllowed("GET")
        account = account_of(request.target.partition(b"?")[0].removeprefix(b"/events/"))
        query = request.query
        after = resume_point(request.headers, query)
        transport = choose(request.headers, upgrade=request.upgrade)
        if transport is not LONG_POLL and not exchange.can_detach:
            raise NotImplementedHere("streams need HTTP/1.1 here; long-polls do not")
        serve: Callable[[Visit | None, Channel], Any]
        if transport is WEBSOCKET:
            serve = partial(self._websocket, exchange, handshake(request.headers), grant, after)
        elif transport is EVENT_STREAM:
            serve = partial(self._event_stream, exchange, request, grant, after)
        else:
            serve = partial(self._long_poll, exchange, request, grant, after, wait_in(query))
        if wants_tasks(query):
            serve = partial(self._with_tasks, serve)
        if exchange.input_ended:
            exchange.hang_up()
            return
        opens = not self._hub.serves(account)
        visit = self._gate.clients.visit(
            request,
            grant,
            is_poll=transport is LONG_POLL,
            resumes=after is not None,
            opens=opens,
            is_counted=exchange.arrival is not None and exchange.arrival.hold is not None,
        )
        self._admit(exchange, request, account, grant, visit, serve)
        if visit is not None and opens and self._hub.serves(account):
            visit.opened(account)

    def _admit(
        self,
        exchange: Exchange,
        request: Request,
        account: str,
        grant: Grant,
        visit: Visit | None,
        serve: Callable[[Visit | None, Channel], Any],
    ) -> None:
        """Serve a subscriber as soon as its channel is open."""

        def refuse(error: PlumberError) -> None:
            if visit is not None:
                visit.release()
            self.refuse(exchange, request, error)

        def left(_: Failure) -> None:
            if visit is not None:
                visit.release()
            admission.cancel()

        exchange.awaits_events = True
        ready = partial(serve, visit)
        if self._gate.check_revoked is not None:
            ready = partial(self._serve_unrevoked, ready, grant)
        admission = Admission(self._hub, account, grant, ready, refuse)
        if admission.is_pending:
            exchange.on_disconnect = left

    def _with_tasks(
        self,
        serve: Callable[[Visit | None, Subscribable], Any],
        visit: Visit | None,
        channel: Channel,
    ) -> None:
        """Serve a client that is to be told which tasks are live."""
        serve(visit, ChannelWithTasks(channel, self._snapshots))

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._clients)

    def _serve_unrevoked(
        self, serve: Callable[[Channel], Any], grant: Grant, channel: Channel
    ) -> None:
        """
        Serve a client that has waited for its channel, if its grant was not revoked meanwhile.

        From here on, `end_polls` and ``ConnectedClients.end_where`` reach it.
        """
        self._gate.recheck(grant, channel.account)
        serve(channel)

    def answer_polls(self) -> None:
        """Answer the long-polls that wait: this instance is about to stop."""
        for poll in list(self._polls):
            poll.end(None)

    def end_polls(self, matches: Callable[[Grant, str], bool], error: PlumberError) -> None:
        """Answer the long-polls whose grant and account match with this error."""
        for poll in [poll for poll in self._polls if matches(poll.grant, poll.account)]:
            poll.refuse(error)

    def refuse(self, exchange: Exchange, request: Request, error: PlumberError) -> None:
        """
        Refuse a request.

        A script cannot see the status of a WebSocket handshake that is refused (WHATWG WebSockets,
        section 9.3.1: no details).  So the handshake of a page succeeds, and a close code says why.
        A page of a foreign origin learns nothing.
        """
        code = close_code(error) if not isinstance(error, ForeignOrigin) else None
        if request.upgrade and b"origin" in request.headers and code and exchange.can_detach:
            with suppress(PlumberError):  # a handshake that is wrong gets the first error
                head = handshake(request.headers)
                client = self._gate.address_of(request, exchange.transport)
                self._gate.requests.refused(error, request.method, request.target, client)
                farewell = _farewell(request, error)
                RefusedWebSocket(self._clock).begin(exchange, head + farewell, code, error.code)
                return
        exchange.respond(self._gate.readable(request, error_response(error)))

    def _websocket(
        self,
        exchange: Exchange,
        head: bytes,
        grant: Grant,
        after: After,
        visit: Visit | None,
        channel: Subscribable,
    ) -> None:
        stream = WebSocketStream(
            channel, self._clients, self._clock, grant, self._violations, self._messages
        )
        stream.visit = visit
        stream.begin(exchange, head, self.unsent_limit, after)

    def _event_stream(
        self,
        exchange: Exchange,
        request: Request,
        grant: Grant,
        after: After,
        visit: Visit | None,
        channel: Subscribable,
    ) -> None:
        chunked = request.is_current
        stream = EventStream(channel, self._clients, self._clock, grant, chunked=chunked)
        stream.visit = visit
        head = event_stream_head(chunked=chunked, headers=self._gate.cors(request))
        stream.begin(exchange, head, self.unsent_limit, after)

    def _long_poll(
        self,
        exchange: Exchange,
        request: Request,
        grant: Grant,
        after: After,
        wait: float,
        visit: Visit | None,
        channel: Subscribable,
    ) -> None:
        left = self._clients.deadlines.expires_in(grant)
        if left is not None:
            wait = max(0.0, min(wait, left - 1.0))  # an event that comes later is not sent
        poll = LongPoll(channel, self._clock, grant, wait)
        poll.visit = visit
        self._polls.add(poll)

        def forget() -> None:
            self._polls.discard(poll)
            if visit is not None:
                visit.release()

        def cancel(_: Failure) -> None:
            forget()
            poll.cancel()

        def respond(result: PollResult | Failure) -> None:
            forget()
            if isinstance(result, Failure):
                error = to_client_error(result, self._log, "a long-poll failed")
                self.refuse(exchange, request, error)
            else:
                exchange.respond(self._gate.readable(request, poll_response(result)))

        exchange.on_disconnect = cancel
        poll.result.addBoth(respond)
        poll.start(after)
