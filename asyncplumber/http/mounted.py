"""
Our resource in a twisted.web or Klein site of another application.

The site speaks HTTP.  A WebSocket or an event stream takes the transport over from it, as on our
own port.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from os import SEEK_END
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocol, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from asyncplumber._twisted_compat import can_take_over, has_unsent, replace_protocol, take_over
from asyncplumber.errors import (
    BadRequest,
    NotImplementedHere,
    PlumberError,
    TooLarge,
    to_client_error,
)
from asyncplumber.http.access import TASKS
from asyncplumber.http.gate import Gate, granted, when_decided
from asyncplumber.http.request import IGrant, Request
from asyncplumber.http.responses import PROTECTION, Response, error_response
from asyncplumber.http.subscribers import Subscribers
from asyncplumber.http.syntax import AMBIGUOUS_PATH, METHODS, UPGRADE_WITH_BODY
from asyncplumber.http.tasks import TaskPages
from asyncplumber.interfaces import Decision
from asyncplumber.transports.send_buffer import BLOCKED, SocketBuffer, send_buffer_for
from asyncplumber.transports.stream import Detached

_PRINTABLE = re.compile(rb"[\x21-\x7e]*")


def write_response(response: Response, request: IRequest) -> bytes:
    """Set status and headers of a twisted.web request; return the body, which is to be written."""
    request.setResponseCode(response.status)
    request.setHeader(b"Content-Type", response.content_type)
    request.setHeader(b"Content-Length", b"%d" % len(response.body))
    for name, value in PROTECTION:
        request.setHeader(name, value)
    names = set()
    for name, value in response.headers:  # these replace the former
        if name in names:  # such as Vary
            request.responseHeaders.addRawHeader(name, value)
        else:
            request.setHeader(name, value)
        names.add(name)
    return response.body


def answer(response: Response, request: Any, gate: Gate) -> bytes:
    """Do the same, and count and log a refusal."""
    if response.error is not None:
        client = gate.address_of(None, request)
        gate.requests.refused(response.error, request.method, request.uri, client)
    return write_response(response, request)


def raw_path(request: Any) -> list[bytes]:
    """Return the segments of the path below our root, as they were sent."""
    path: bytes = request.uri.partition(b"?")[0]
    return path.split(b"/")[1 + len(request.prepath) :]


def _request_of(request: Any) -> Request:
    """Return what the site has read as a request of ours.  Raises `PlumberError`."""
    own = Request()
    own.method, own.is_current = request.method, request.clientproto == b"HTTP/1.1"
    own.target = b"/" + b"/".join(raw_path(request))
    path = request.uri.partition(b"?")[0]
    own.root = path[: len(path) - len(own.target)]
    query = request.uri.partition(b"?")[2]
    if query:
        own.target += b"?" + query
    own.raw_headers = [
        (name, value)
        for name, values in request.requestHeaders.getAllRawHeaders()
        for value in values
    ]
    error = own.take_headers()
    if error is not None:
        raise error
    if own.method not in METHODS:
        raise NotImplementedHere
    if not _PRINTABLE.fullmatch(request.uri):
        raise BadRequest(AMBIGUOUS_PATH)
    options = own.headers.get(b"connection", b"").lower().split(b",")
    own.upgrade = (
        b"upgrade" in map(bytes.strip, options)
        and own.headers.get(b"upgrade", b"").lower() == b"websocket"
    )
    own.length = int(own.headers.get(b"content-length", b"0"))  # twisted.web has checked it
    if b"transfer-encoding" in own.headers and request.content is not None:
        own.length = request.content.seek(0, SEEK_END)  # it is there already
        request.content.seek(0)
    if own.upgrade and own.has_body:
        raise BadRequest(UPGRADE_WITH_BODY)
    return own


class MountedExchange:
    """A request of a twisted.web site whose response is due."""

    arrival = None  # the connection is the site's, and it may have other requests
    input_ended = False  # where a client ends its direction, twisted.web ends the connection

    def __init__(self, request: Any, gate: Gate) -> None:
        self.on_disconnect: Callable[[Failure], object] | None = None
        self.awaits_events = False
        self.is_over = False  # the client has its response, or has disconnected
        self._request = self.transport = request
        self._gate = gate
        request.notifyFinish().addErrback(self._disconnected)

    @property
    def can_detach(self) -> bool:
        """Whether the connection is HTTP/1.1 on a transport that another protocol can have."""
        return can_take_over(self._request)

    def _disconnected(self, reason: Failure) -> None:
        self.is_over = True
        notify, self.on_disconnect = self.on_disconnect, None
        if notify is not None:
            notify(reason)

    def respond(self, response: Response) -> None:
        """Write the response.  Does nothing if the client has disconnected."""
        if not self.is_over:
            self.is_over = True
            self._request.write(answer(response, self._request, self._gate))
            self._request.finish()

    def body(self, limit: int) -> bytes:
        """Return the body of the request.  Raises `TooLarge` for more bytes than these."""
        content = self._request.content
        body: bytes = content.read(limit + 1) if content is not None else b""
        if len(body) > limit:
            raise TooLarge(f"a body has at most {limit} bytes")
        return body

    def hang_up(self) -> None:
        """Close the connection without a response."""
        self.is_over = True
        self._request.loseConnection()

    def detach(self, protocol: IProtocol) -> Detached:
        """Take the transport over from twisted.web, and give it to ``protocol``."""
        self.is_over, self.on_disconnect = True, None
        transport, unread = take_over(self._request)
        replace_protocol(transport, protocol)
        send_buffer = send_buffer_for(transport, transport.abortConnection)
        if isinstance(send_buffer, SocketBuffer) and has_unsent(transport):
            # An earlier response is in the transport, and a write to the socket would overtake
            # it.  The transport resumes the buffer when it has sent everything.
            send_buffer.become(BLOCKED)
        # For the site the request ends here: it drops the body, and fires ``notifyFinish``.
        self._request.connectionLost(Failure(ConnectionDone()))
        return Detached(transport, send_buffer, unread)


@implementer(IResource)
class RawPathResource:
    """
    Gives Klein the path as it was sent.

    twisted.web decodes it and Werkzeug folds its slashes.  But ``a%2Fb`` is an account, and
    ``a/b`` is none.
    """

    isLeaf = True

    def __init__(self, resource: IResource) -> None:
        self._resource = resource

    def getChildWithDefault(self, name: bytes, request: IRequest) -> IResource:
        return self

    def putChild(self, path: bytes, child: IResource) -> None:
        raise NotImplementedError("this is a leaf")

    def render(self, request: Any) -> Any:
        request.postpath = raw_path(request)
        # Klein builds URLs from Host, which are not used here; and it cannot do so from any value.
        request.requestHeaders.setRawHeaders(b"host", [b"localhost"])
        return self._resource.render(request)


class MountedResource(RawPathResource):
    """The routes and the subscribers, behind the gate, at any path of any site."""

    _log = Logger()

    def __init__(
        self,
        resource: IResource,
        gate: Gate,
        subscribers: Subscribers,
        tasks: TaskPages,
        clock: IReactorTime,
    ) -> None:
        """``resource`` has everything but the subscribers and the tasks."""
        super().__init__(resource)
        self._gate = gate
        self._subscribers = subscribers
        self._tasks = tasks
        self._clock = clock

    def render(self, request: Any) -> Any:
        response: Response | None
        try:
            own = _request_of(request)
        except PlumberError as error:
            return answer(error_response(error), request, self._gate)
        try:
            self._gate.check_head(own, request)
            response = self._gate.admit(own)
        except PlumberError as error:
            if own.target.startswith(b"/events/"):
                self._clock.callLater(
                    0, self._subscribers.refuse, MountedExchange(request, self._gate), own, error
                )
                return NOT_DONE_YET
            response = self._gate.readable(own, error_response(error))
        if response is None and self._is_folder_without_slash(request):
            response = _slash_added(request)
        if response is not None:
            return answer(response, request, self._gate)
        if own.target.startswith(b"/events/"):
            # twisted.web keeps what follows the request in the same packet, such as the first
            # WebSocket frame, only when this method has returned.
            self._clock.callLater(0, self._subscribe, MountedExchange(request, self._gate), own)
            return NOT_DONE_YET
        if own.target.startswith(TASKS):
            self._decide(MountedExchange(request, self._gate), own, self._serve_task)
            return NOT_DONE_YET
        for name, value in self._gate.cors(own):
            request.setHeader(name, value)
        if isinstance(own.grant, Deferred):
            exchange = MountedExchange(request, self._gate)
            when_decided(exchange, own.grant, partial(self._route, exchange, own, request))
            return NOT_DONE_YET
        assert own.grant is not None  # the gate has decided
        request.setComponent(IGrant, own.grant)
        return super().render(request)

    def _route(
        self,
        exchange: MountedExchange,
        own: Request,
        request: Any,
        decision: Decision | PlumberError,
    ) -> None:
        """Let Klein answer a request that had to wait for its decision."""
        if exchange.is_over:
            return
        if isinstance(decision, PlumberError):
            exchange.respond(self._gate.readable(own, error_response(decision)))
            return
        request.setComponent(IGrant, decision)
        try:
            body = super().render(request)
        except Exception:
            # twisted.web answers what `render` raises, but this call is not from it.
            error = to_client_error(Failure(), self._log, "a request failed")
            exchange.respond(self._gate.readable(own, error_response(error)))
            return
        if body is not NOT_DONE_YET:
            request.write(body)
            request.finish()

    @staticmethod
    def _is_folder_without_slash(request: Any) -> bool:
        """Whether the page is wanted at a path from which its relative links lead elsewhere."""
        return bool(
            not raw_path(request) and request.prepath and request.method in (b"GET", b"HEAD")
        )

    def _subscribe(self, exchange: MountedExchange, request: Request) -> None:
        if not exchange.is_over:
            self._decide(exchange, request, self._subscribe_with)

    @staticmethod
    def _decide(
        exchange: MountedExchange,
        request: Request,
        go_on: Callable[[MountedExchange, Request, Decision | PlumberError], None],
    ) -> None:
        """Go on with the gate's decision, now or later."""
        if isinstance(request.grant, Deferred):
            when_decided(exchange, request.grant, partial(go_on, exchange, request))
        else:
            assert request.grant is not None  # the gate has decided
            go_on(exchange, request, request.grant)

    def _serve_task(
        self, exchange: MountedExchange, request: Request, decision: Decision | PlumberError
    ) -> None:
        try:
            if isinstance(decision, PlumberError):
                raise decision
            body = exchange.body(self._gate.body_limit_of(request.target))
            self._tasks.serve(exchange, request, granted(decision), body)
        except Exception:
            error = to_client_error(Failure(), self._log, "a request failed")
            exchange.respond(self._gate.readable(request, error_response(error)))

    def _subscribe_with(
        self, exchange: MountedExchange, request: Request, decision: Decision | PlumberError
    ) -> None:
        try:
            if isinstance(decision, PlumberError):
                raise decision
            self._subscribers.subscribe(exchange, request, granted(decision))
        except PlumberError as error:
            self._subscribers.refuse(exchange, request, error)


def _slash_added(request: Any) -> Response:
    """Redirect from ``/plumber`` to ``/plumber/``, whatever a proxy puts before it."""
    path, mark, query = request.uri.partition(b"?")
    location = b"./" + path.rpartition(b"/")[2] + b"/" + mark + query
    return Response(308, b"text/plain", b"", ((b"Location", location),))
