"""What every request must pass, on our own port and in a site of another application alike."""

from __future__ import annotations

from typing import Any, Protocol

from asyncplumber.auth.hosts import Hosts
from asyncplumber.auth.origins import Origins
from asyncplumber.errors import NotFound
from asyncplumber.http.request import Request
from asyncplumber.http.responses import Response
from asyncplumber.wire.event_batch import batch_limit

BODY_LIMIT = 1024 * 1024  # bytes


_INSTANCES, _EVENTS = b"/instances/", b"/events"


def batches_path(instance_id: str) -> bytes:
    """Return the path at which an instance takes batches of events."""
    return _INSTANCES + instance_id.encode() + _EVENTS


class Local(Protocol):
    """A connection that knows the address at which it came in."""

    def getHost(self) -> Any:
        """Return our own address of this connection."""


class Gate:
    """
    The checks that need neither the store nor the account.

    A request's target begins with the path below our root, wherever that is mounted.
    """

    def __init__(
        self,
        hosts: Hosts | None = None,
        origins: Origins | None = None,
        body_limit: int = BODY_LIMIT,
    ) -> None:
        """
        Args:
            hosts: The names of this server; None for loopback names only.
            origins: Whose pages may subscribe and post; None for our own only.
            body_limit: Bytes of a body.
        """
        self.hosts = hosts or Hosts()
        self.origins = origins or Origins()
        self._body_limit = body_limit

    def admit(self, request: Request, connection: Local) -> Response | None:
        """
        Check a request.

        Returns:
            The response to a request that needs no more than this (a preflight); None for one
            that is to be handled.

        Raises:
            PlumberError: The request is refused.
        """
        target, headers = request.target, request.headers
        if target.startswith(b"//"):
            # Klein folds these slashes.  A proxy may not, and has its rules for the path without
            # them.
            raise NotFound
        self.hosts.check(target.partition(b"?")[0], headers, connection)
        return self._check_origin(request) if b"origin" in headers else None

    def _check_origin(self, request: Request) -> Response | None:
        headers = request.headers
        if (
            request.method not in (b"GET", b"HEAD")
            or request.upgrade
            or request.target.startswith(b"/events/")
        ):
            self.origins.check(headers)
        is_preflight = request.method == b"OPTIONS" and b"access-control-request-method" in headers
        if is_preflight and self.origins.allows(headers):
            return Response(200, b"text/plain", b"", self.origins.preflight(headers))
        return None

    def cors(self, request: Request) -> tuple[tuple[bytes, bytes], ...]:
        """Return the headers with which the page that sent the request can read the response."""
        return self.origins.cors(request.headers)

    def readable(self, request: Request, response: Response) -> Response:
        """Return the response with the headers of `cors`."""
        cors = self.cors(request)
        return response._replace(headers=response.headers + cors) if cors else response

    def body_limit_of(self, target: bytes) -> int:
        """
        Return how many bytes a body that is sent to this path may have.

        A batch from another instance has many events, and its JSON wraps theirs.
        """
        is_batch = target.startswith(_INSTANCES) and target.endswith(_EVENTS)
        return batch_limit(self._body_limit) if is_batch else self._body_limit
