"""
What every request must pass, on our own port and in a site of another application alike.

The gate decides when the head of a request is there: a request that is refused never has its body
read.  What lies behind the gate gets a grant, and looks at no credential.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.auth import fetch_metadata
from asyncplumber.auth.hosts import Hosts
from asyncplumber.auth.origins import VARY, Origins
from asyncplumber.errors import (
    NotFound,
    PlumberError,
    Unauthenticated,
    Unavailable,
    to_client_error,
)
from asyncplumber.grant import ALL_ACCOUNTS, NOBODY, OPEN, OPERATOR, Grant
from asyncplumber.http.access import (
    ADMIN,
    CALLBACKS,
    OPERATED,
    TASKS,
    Kind,
    Need,
    action_of,
    check,
    need_of,
)
from asyncplumber.http.client_address import Peer
from asyncplumber.http.clients import Clients
from asyncplumber.http.ports import Port, has_path
from asyncplumber.http.problems import as_problem
from asyncplumber.http.request import Request
from asyncplumber.http.request_log import RequestLog
from asyncplumber.http.responses import Response
from asyncplumber.http.syntax import account_of
from asyncplumber.interfaces import AwaitsBody, Decision, Facts, IAuthority, Verified
from asyncplumber.wire.event_batch import batch_limit

BODY_LIMIT = 1024 * 1024  # bytes


_TICKET = b"ticket="
_NO_REFERRER = (b"Referrer-Policy", b"no-referrer")
_NO_STORE = (b"Cache-Control", b"no-store")
_INSTANCES, _EVENTS = b"/instances/", b"/events"
# What is read there may be held for long, and a cookie counts: pages are judged as for a POST.
_WATCHED = (_EVENTS, TASKS)
# What only an operator may see or do.
_OPERATORS = (b"/admin", b"/revocations")
_NO_OPERATOR = (
    "this is for operators: give --private-listen, or authentication with a key of an admin"
)
# Decided without a credential.
_OF_NOBODY = (Kind.NOTHING, Kind.PEER)


def batches_path(instance_id: str) -> bytes:
    """Return the path at which an instance takes batches of events."""
    return _INSTANCES + instance_id.encode() + _EVENTS


class Waiting(Protocol):
    """A request whose response is due."""

    on_disconnect: Callable[[Failure], object] | None


def when_decided(
    exchange: Waiting,
    decided: Deferred[Decision | PlumberError],
    go_on: Callable[[Decision | PlumberError], None],
) -> None:
    """Call ``go_on`` with the decision about a request.  It is cancelled if the client leaves."""

    def settled(decision: Decision | PlumberError) -> None:
        exchange.on_disconnect = None
        go_on(decision)

    exchange.on_disconnect = lambda _: decided.cancel()
    decided.addCallback(settled)


def granted(decision: Decision | Deferred[Any] | None) -> Grant:
    """
    Return the grant of a request whose body is not signed.

    Raises:
        Unauthenticated: Only a signed body could be the credential, and this path takes none.
    """
    if isinstance(decision, Grant):
        return decision
    raise Unauthenticated(reason="a signature where none is taken")


class Gate:
    """
    Decides whether a request may go on, and with which grant.

    A request's target begins with the path below our root, wherever that is mounted.
    """

    _log = Logger()

    def __init__(
        self,
        hosts: Hosts | None = None,
        origins: Origins | None = None,
        body_limit: int = BODY_LIMIT,
        authority: IAuthority | None = None,
        requests: RequestLog | None = None,
        clients: Clients | None = None,
    ) -> None:
        """
        Args:
            hosts: The names of this server; None for loopback names only.
            origins: Whose pages may subscribe and post; None for our own only.
            body_limit: Bytes of a body.
            authority: Says what a credential allows; None: everybody may do everything.
            requests: Counts and logs; None for one of its own.
            clients: Knows where clients are, and their limits; None for no limits.
        """
        self.requests = requests or RequestLog()
        self.hosts = hosts or Hosts()
        self.origins = origins or Origins()
        self.authority = authority
        self._own_origins = Origins()
        self.clients = clients or Clients()
        #: Bytes of a body.
        self.body_limit = body_limit
        #: Called with each grant and the account that it is used for, None if there is none in the
        #: path.  Raises `InvalidToken` for a grant that was revoked.
        self.check_revoked: Callable[[Grant, str | None], None] | None = None

    def check_head(
        self, request: Request, connection: Any, port: Port = Port.ONLY, peer: Peer | None = None
    ) -> PlumberError | None:
        """
        Decide about a request whose head is there, and which came in at this port.

        ``peer`` is the other end of the connection; None if it is not known yet.

        The decision is in ``request.grant``: a `Grant`, an `AwaitsBody`, or a Deferred of one of
        them or of a `PlumberError`, which never fails.  If the request is refused now, the error
        is returned, and in ``request.refusal``.
        """
        try:
            request.grant = self._decide(request, connection, port, peer)
        except PlumberError as error:
            request.refusal = error
        except Exception:
            request.refusal = to_client_error(Failure(), self._log, "a request failed")
        return request.refusal

    def _decide(
        self, request: Request, connection: Any, port: Port, peer: Peer | None
    ) -> Decision | Deferred[Any]:
        target, headers = request.target, request.headers
        if target.startswith(b"//"):
            # Klein folds these slashes.  A proxy may not, and has its rules for the path without
            # them.
            raise NotFound
        path = target.partition(b"?")[0]
        self.hosts.check(path, headers, connection)
        if not has_path(port, path):
            raise NotFound
        if path.startswith(OPERATED):
            request.target = target[len(ADMIN) :]
        if port is Port.PRIVATE:
            return self._decide_private(request)
        if b"origin" in headers or b"sec-fetch-site" in headers:
            self._check_page(request, self.origins)
            if self._is_preflight(request):
                return NOBODY
        authority, clients = self.authority, self.clients
        if authority is None and path.startswith(_OPERATORS):
            raise NotFound(_NO_OPERATOR)
        if authority is None and not clients.limits.in_force:
            return OPEN
        peer = peer or clients.peer_of(connection)
        clients.locate(request, peer)
        need = need_of(path, request.method)
        if authority is None:
            self._count(OPEN, need, request)
            return OPEN
        if need.kind in _OF_NOBODY:
            if path.startswith(CALLBACKS):
                request.uncounted = 0  # whether its token is known is found out later
            return NOBODY
        clients.check_credential(request, peer)
        return self._ask(authority, target, request, need)

    def _ask(
        self, authority: IAuthority, target: bytes, request: Request, need: Need
    ) -> Decision | Deferred[Any]:
        """Return what the authority grants, if that is enough for what the request needs."""
        account = account_of(need.segment) if need.segment is not None else None
        facts = Facts(
            request.method,
            target,
            request.headers,
            action_of(need),
            account,
            request.client.text,
            request.upgrade,
        )
        try:
            decision = authority.grant(facts)
            if not isinstance(decision, Deferred):
                return self._permit(decision, need, account, request)
        except PlumberError as error:
            self.clients.check_failed(request, error)
            raise
        request.uncounted = 0
        return self._later(decision, need, account, request)

    def _decide_private(self, request: Request) -> Grant:
        """
        Let in who can reach the private port, but no page of another origin.

        The browser of an operator can reach it, and any page in that browser has it send requests.
        ``--allow-origin`` does not count here: it is for pages that have a credential of their own.
        """
        if b"origin" in request.headers:
            self._own_origins.check(request.headers)
        self._check_page(request, self._own_origins)
        return OPERATOR

    def _later(
        self, decision: Deferred[Any], need: Need, account: str | None, request: Request
    ) -> Deferred[Decision | PlumberError]:
        """
        Return a Deferred that never fails.

        Nobody may be there to take a failure: the request may be dropped meanwhile.
        """

        def to_error(failure: Failure) -> PlumberError:
            if failure.check(CancelledError):
                return Unavailable()
            error = to_client_error(failure, self._log, "a credential could not be checked")
            self.clients.check_failed(request, error)
            return error

        decided: Deferred[Any] = decision.addCallback(self._permit, need, account, request)
        return decided.addErrback(to_error)

    def _permit(
        self, decision: Decision, need: Need, account: str | None, request: Request
    ) -> Decision:
        """Return the decision if it allows what the request needs, and raise if not."""
        if isinstance(decision, AwaitsBody):
            request.uncounted = 0
            return AwaitsBody(partial(self._permit_signed, decision.verify, need, account, request))
        self._check(decision, need, account)
        self._count(decision, need, request)
        self.requests.granted(decision.mechanism)
        if need.kind is Kind.OPERATE:
            return replace(
                decision, subscribe=ALL_ACCOUNTS, publish=ALL_ACCOUNTS, start=ALL_ACCOUNTS
            )
        return decision

    def _permit_signed(
        self,
        verify: Callable[[bytes], Verified],
        need: Need,
        account: str | None,
        request: Request,
        body: bytes,
    ) -> Verified:
        """Verify a body, and return what it is if its sender may send it; raise if not."""
        try:
            verified = verify(body)
            self._check(verified.grant, need, account)
        except PlumberError as error:
            self.clients.check_failed(request, error)
            raise
        self.clients.check_post(request, verified.grant, len(body))
        self.requests.granted(verified.grant.mechanism)
        return verified

    def _check(self, grant: Grant, need: Need, account: str | None) -> None:
        """Raise if a grant does not allow what the request needs."""
        check(grant, need, account)
        if self.check_revoked is not None:
            self.check_revoked(grant, account)

    def _count(self, grant: Grant, need: Need, request: Request) -> None:
        """Count a POST, or a start of a task.  Raises `TooManyRequests`."""
        kind = need.kind
        if kind is Kind.START or (kind is Kind.PUBLISH and request.method == b"POST"):
            self.clients.check_post(request, grant, request.length)

    def count_chunks(self, request: Request, decision: Decision) -> None:
        """Count the bytes of a body whose length its head did not tell, before it is handled."""
        if isinstance(decision, Grant) and request.body and not request.length:
            self.clients.check_bytes(request, decision, len(request.body))

    def recheck(self, grant: Grant, account: str) -> None:
        """
        Check a grant again some time after the head: only now the account is known, or reached.

        Raises `InvalidToken` if the grant was revoked.
        """
        if self.check_revoked is not None:
            self.check_revoked(grant, account)

    def _check_page(self, request: Request, origins: Origins) -> None:
        """Refuse a page of another origin what changes something here: a subscriber does, too."""
        is_event_request = request.target.startswith(_WATCHED)
        if request.method not in (b"GET", b"HEAD") or request.upgrade or is_event_request:
            origins.check(request.headers)
            fetch_metadata.check(request.headers, origins, is_event_request=is_event_request)

    def _is_preflight(self, request: Request) -> bool:
        return (
            request.method == b"OPTIONS"
            and b"access-control-request-method" in request.headers
            and not request.target.startswith(CALLBACKS)
            and self.origins.allows(request.headers)
        )

    def admit(self, request: Request) -> Response | None:
        """
        Admit a request that `check_head` has looked at.

        Returns:
            The response to a request that needs no more than this (a preflight); None for one
            that is to be handled with ``request.grant``.

        Raises:
            PlumberError: The request is refused.
        """
        if request.refusal is not None:
            raise request.refusal
        if request.target == ADMIN and request.method in (b"GET", b"HEAD"):
            # The page's links are relative to the folder.
            return Response(308, b"text/plain", b"", ((b"Location", b"./admin/"),))
        if b"origin" in request.headers and self._is_preflight(request):
            return Response(200, b"text/plain", b"", self.origins.preflight(request.headers))
        return None

    def address_of(self, request: Request | None, connection: Any) -> str:
        """
        Return the address of the client that sent a request, for the log.

        Args:
            request: None if its head could not be read.
            connection: Where it came in: a transport, or a request of twisted.web.
        """
        return self.clients.address_of(request, connection)

    def cors(self, request: Request) -> tuple[tuple[bytes, bytes], ...]:
        """
        Return the headers with which the page that sent the request can read the response.

        A URL with a ticket is not told to other sites.  No page has a use for callback URLs.
        """
        if request.target.startswith(CALLBACKS):
            return _NO_REFERRER, _NO_STORE
        cors = self.origins.cors(request.headers)
        if not request.target.startswith(_WATCHED):
            return cors
        cors = cors or (VARY,)
        return (*cors, _NO_REFERRER) if _TICKET in request.target else cors

    def readable(self, request: Request, response: Response) -> Response:
        """
        Return the response with the headers of `cors`; one to a ticket is not stored.

        An error at a task's path is a problem document.
        """
        if response.error is not None and request.target.startswith(TASKS):
            response = as_problem(response)
        more = self.cors(request)
        if _NO_REFERRER in more and _NO_STORE not in response.headers + more:
            more = (*more, _NO_STORE)
        return response._replace(headers=response.headers + more) if more else response

    def body_limit_of(self, target: bytes) -> int:
        """
        Return how many bytes a body that is sent to this path may have.

        A batch from another instance has many events, and its JSON wraps theirs.
        """
        is_batch = target.startswith(_INSTANCES) and target.endswith(_EVENTS)
        return batch_limit(self.body_limit) if is_batch else self.body_limit
