"""
The routes, as Klein has them: the long way in, and the whole way for an application that mounts us
in a site of its own.
"""

from __future__ import annotations

# Werkzeug would import this codec at the first request, which fails where no file can be opened any
# more.
import encodings.idna  # noqa: F401
import re
from collections.abc import Callable
from importlib.resources import files
from io import BytesIO
from typing import Any

from klein import Klein
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from twisted.web.server import Request, Site
from werkzeug.exceptions import MethodNotAllowed as WrongMethod
from werkzeug.exceptions import NotFound as NoRoute
from werkzeug.routing import BaseConverter
from zope.interface import implementer

from asyncplumber.auth.origins import Origins
from asyncplumber.core.hub import Hub
from asyncplumber.errors import (
    BadRequest,
    MethodNotAllowed,
    NotFound,
    NotImplementedHere,
    PlumberError,
    TooLarge,
    to_client_error,
)
from asyncplumber.http.gate import Gate
from asyncplumber.http.metrics import Metrics
from asyncplumber.http.mounted_polls import MountedPolls
from asyncplumber.http.request import METHODS
from asyncplumber.http.responses import Response, error_response, json_response
from asyncplumber.http.status import StatusPages
from asyncplumber.http.webhook import ODD_HEADER, ODD_PATH, SPLITTING, Webhook, account_of
from asyncplumber.wire.event_batch import batch_limit
from asyncplumber.wire.parse import Headers

_PRINTABLE = re.compile(rb"[\x21-\x7e]*")

_POLICY = (
    (
        b"Content-Security-Policy",
        b"default-src 'self'; connect-src 'self' ws: wss:; style-src 'self'; frame-ancestors 'none'",
    ),
    (b"Cache-Control", b"no-cache"),
)
_STATIC = {
    "": ("index.html", b"text/html; charset=utf-8"),
    "asyncplumber.js": ("asyncplumber.js", b"text/javascript; charset=utf-8"),
    "page.js": ("page.js", b"text/javascript; charset=utf-8"),
    "page.css": ("page.css", b"text/css; charset=utf-8"),
    "favicon.svg": ("favicon.svg", b"image/svg+xml"),
}


def _static_answers() -> dict[str, Response]:
    folder = files("asyncplumber.http").joinpath("static")
    return {
        name: Response(200, content_type, folder.joinpath(file).read_bytes(), _POLICY)
        for name, (file, content_type) in _STATIC.items()
    }


class _Raw(BaseConverter):
    """The rest of the path, as it was sent: it names an account, which may have a slash in it."""

    regex = ".*"
    part_isolating = False


@implementer(IResource)
class RawPathResource:
    """
    What a request must pass before Klein sees it, and sees its path still percent-encoded.

    Klein decodes the path and Werkzeug folds its slashes; but ``a%2Fb`` is one account, and ``a/b``
    is none.
    """

    isLeaf = True

    def __init__(self, resource: IResource, gate: Gate | None, origins: Origins | None) -> None:
        """`gate` and `origins` None: somebody else has checked what they check."""
        self._resource = resource
        self._gate = gate
        self._origins = origins

    def getChildWithDefault(self, name: bytes, request: IRequest) -> IResource:
        return self

    def putChild(self, path: bytes, child: IResource) -> None:
        raise NotImplementedError("this is a leaf")

    def render(self, request: Any) -> Any:
        try:
            headers = _headers(request)
            if request.method not in METHODS:
                raise NotImplementedHere
            if not _PRINTABLE.fullmatch(request.uri):
                raise BadRequest(ODD_PATH)
            path = request.uri.partition(b"?")[0].split(b"/")[1 + len(request.prepath) :]
            if self._gate is not None:
                self._gate.check(b"/" + b"/".join(path), headers, request)
            if self._origins is not None and request.method not in (b"GET", b"HEAD"):
                self._origins.check(headers)
            if not path and request.prepath and request.method in (b"GET", b"HEAD"):
                return _written(
                    _slash_added(request), request
                )  # the page's links are relative to its folder
        except PlumberError as error:
            return _written(error_response(error), request)
        request.postpath = path
        # Klein builds URLs from it, which we have no use for; and not every one can be built from.
        request.requestHeaders.setRawHeaders(b"host", [b"localhost"])
        return self._resource.render(request)


def _headers(request: IRequest) -> dict[bytes, bytes]:
    """
    The request's headers as the rooms want them.  Raises `BadRequest` for bytes that not every
    server reads alike.
    """
    headers = {}
    for name, values in request.requestHeaders.getAllRawHeaders():
        value = b", ".join(values)
        if SPLITTING.search(value):
            raise BadRequest(ODD_HEADER)
        headers[name.lower()] = value
    return headers


def _slash_added(request: Any) -> Response:
    """
    Sends a client from the path that we are mounted at to the folder of that name, whatever a proxy
    puts before it.
    """
    path, mark, query = request.uri.partition(b"?")
    location = b"./" + path.rpartition(b"/")[2] + b"/" + mark + query
    return Response(308, b"text/plain", b"", ((b"Location", location),))


def _written(answer: Response, request: IRequest) -> bytes:
    request.setResponseCode(answer.status)
    request.setHeader(b"Content-Type", answer.content_type)
    request.setHeader(b"X-Content-Type-Options", b"nosniff")
    request.setHeader(b"Content-Length", b"%d" % len(answer.body))
    for name, value in answer.headers:
        request.setHeader(name, value)
    return answer.body


class _Silent(Site):
    """Logs no requests: what came in and what became of it is in the metrics."""

    def log(self, request: Any) -> None:
        """Nothing."""

    def getContentFile(self, length: int | None) -> BytesIO:
        """
        Where a body goes. `Connection` has read it already, so a file on disk would spare nothing.
        """
        return BytesIO()


class Routes:
    """
    Klein's routes.  `resource` is what can be mounted in any site; `site` is the whole of our own.
    """

    _log = Logger()
    app = Klein()
    app.url_map.converters["raw"] = _Raw
    app.url_map.merge_slashes = False

    def __init__(
        self,
        webhook: Webhook,
        pages: StatusPages,
        metrics: Metrics,
        body_limit: int,
        gate: Gate,
        hub: Hub,
    ) -> None:
        """`body_limit` in bytes."""
        self._gate = gate
        self._webhook = webhook
        self._pages = pages
        self._metrics = metrics
        self._limit = body_limit
        self.polls = MountedPolls(hub)
        self._static = _static_answers()

    def resource(self, origins: Origins | None = None) -> IResource:
        """
        The routes as a twisted.web resource.  Pages of other origins than its own and `origins` may
        not post to it.
        """
        return RawPathResource(self.app.resource(), self._gate, origins or Origins())

    def site(self, reactor: Any) -> Site:
        """The routes as the site behind our `Listener`, which has checked Host and Origin."""
        return _Silent(
            RawPathResource(self.app.resource(), None, None),
            reactor=reactor,
            parsePOSTFormSubmission=False,
        )

    def _take(
        self, request: Request, take: Callable[[Headers, bytes], Deferred[Response]], limit: int = 0
    ) -> Deferred[bytes]:
        """
        Have a POST taken in, within the limit of bodies (0: the usual one), and write the answer.
        """
        limit = limit or self._limit

        def taken() -> Deferred[Response]:
            headers = _headers(request)
            body = request.content.read(limit + 1) if request.content is not None else b""
            if len(body) > limit:
                raise TooLarge(f"a body has at most {limit} bytes")
            return take(headers, body)

        return self._write(request, maybeDeferred(taken))

    def _write(self, request: Request, answer: Deferred[Response]) -> Deferred[bytes]:
        # Klein cancels what it was given when the client goes away; but what was posted is taken in
        # all the same.
        written: Deferred[bytes] = Deferred()
        answer.addErrback(
            lambda failure: error_response(to_client_error(failure, self._log, "a request failed"))
        )
        answer.addCallback(_written, request).chainDeferred(written)
        return written

    @app.route("/hooks", methods=["POST"])
    def skyhooks(self, request: Request) -> Deferred[bytes]:
        """skyhooks' clients."""
        return self._take(request, self._webhook.take_skyhooks)

    @app.route("/hooks/<raw:account>", methods=["POST"])
    def hook(self, request: Request, account: str) -> Deferred[bytes]:
        """Everybody's webhook of an account."""
        return self._take(
            request,
            lambda headers, body: self._webhook.take(account.encode("ascii"), headers, body),
        )

    @app.route("/instances/<id>/hooks/<raw:account>", methods=["POST"])
    def own_hook(self, request: Request, id: str, account: str) -> Deferred[bytes]:
        """This instance's own webhook, as it stands in the registry."""
        segment = account.encode("ascii")
        return self._take(
            request,
            lambda headers, body: self._webhook.take_here(id.encode(), segment, headers, body),
        )

    @app.route("/instances/<id>/events", methods=["POST"])
    def batches(self, request: Request, id: str) -> Deferred[bytes]:
        """What other instances relay."""
        limit = batch_limit(self._limit)
        return self._take(
            request,
            lambda headers, body: self._webhook.take_event_batch(id.encode(), headers, body),
            limit,
        )

    @app.route("/instances/<id>/accounts/<raw:account>", methods=["GET"])
    def count(self, request: Request, id: str, account: str) -> Deferred[bytes]:
        """How many listen here."""
        segment = account.encode("ascii")
        return self._take(
            request, lambda headers, body: self._webhook.count_here(id.encode(), segment, headers)
        )

    @app.route("/events/<raw:account>", methods=["GET"])
    def events(self, request: Request, account: str) -> Deferred[bytes]:
        """Long-polls.  Streams need our own server; 501 sends a client to its next transport."""
        segment = account.encode("ascii")
        return self._write(
            request, maybeDeferred(lambda: self.polls.answer(request, _headers(request), segment))
        )

    @app.route("/accounts/<raw:account>", methods=["GET"])
    def account(self, request: Request, account: str) -> Deferred[bytes]:
        """Who listens to an account."""
        return self._write(
            request, maybeDeferred(lambda: self._pages.account(account_of(account.encode("ascii"))))
        )

    @app.route("/healthz", methods=["GET"])
    def healthz(self, request: Request) -> bytes:
        """It is alive."""
        return _written(json_response(200, {"status": "ok"}), request)

    @app.route("/readyz", methods=["GET"])
    def readyz(self, request: Request) -> Deferred[bytes]:
        """It can do its work."""
        return self._write(request, maybeDeferred(self._pages.ready))

    @app.route("/metrics", methods=["GET"])
    def metrics(self, request: Request) -> bytes:
        """For Prometheus."""
        return _written(self._metrics.response(), request)

    @app.route("/", methods=["GET"])
    @app.route(
        "/<any('asyncplumber.js', 'page.js', 'page.css', 'favicon.svg'):name>", methods=["GET"]
    )
    def page(self, request: Request, name: str = "") -> bytes:
        """The first page, and what belongs to it."""
        return _written(self._static[name], request)

    # its type wants any IRequest, and Klein has none other
    @app.handle_errors(PlumberError)  # type: ignore[arg-type]
    def plumber_error(self, request: Request, failure: Failure) -> bytes:
        """Ours."""
        assert isinstance(failure.value, PlumberError)
        return _written(error_response(failure.value), request)

    @app.handle_errors(NoRoute)  # type: ignore[arg-type]
    def no_route(self, request: Request, failure: Failure) -> bytes:
        """Nothing at this path."""
        return _written(error_response(NotFound()), request)

    @app.handle_errors(WrongMethod)  # type: ignore[arg-type]
    def wrong_method(self, request: Request, failure: Failure) -> bytes:
        """Something at this path, but not for this method."""
        allowed = sorted(getattr(failure.value, "valid_methods", None) or ["GET"])
        return _written(error_response(MethodNotAllowed(", ".join(allowed))), request)

    @app.handle_errors(Exception)  # type: ignore[arg-type]
    def our_fault(self, request: Request, failure: Failure) -> bytes:
        """It goes to the log, and the client learns only that."""
        return _written(
            error_response(to_client_error(failure, self._log, "a request failed")), request
        )
