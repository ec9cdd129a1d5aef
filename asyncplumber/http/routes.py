"""The routes that Klein serves: everything but subscribers, tasks and POSTs of the fast path."""

from __future__ import annotations

# Werkzeug would import this codec at the first request, which fails if no more files can be opened.
import encodings.idna  # noqa: F401
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from io import BytesIO
from urllib.parse import parse_qs

from klein import Klein
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import IResource
from twisted.web.server import Request, Site
from werkzeug.exceptions import MethodNotAllowed as WrongMethod
from werkzeug.exceptions import NotFound as NoRoute
from werkzeug.routing import BaseConverter

from asyncplumber.auth.origins import VARY
from asyncplumber.errors import (
    MethodNotAllowed,
    NotFound,
    PlumberError,
    TooLarge,
    to_client_error,
)
from asyncplumber.http.callback_routes import CallbackRoutes
from asyncplumber.http.credential_pages import CredentialPages
from asyncplumber.http.gate import Gate, batches_path, granted
from asyncplumber.http.metrics import Metrics
from asyncplumber.http.mounted import MountedResource, RawPathResource, answer, write_response
from asyncplumber.http.operator_pages import OperatorPages
from asyncplumber.http.request import IGrant
from asyncplumber.http.responses import Response, error_response, json_response
from asyncplumber.http.status import StatusPages
from asyncplumber.http.subscribers import Subscribers
from asyncplumber.http.syntax import account_of
from asyncplumber.http.tasks import TaskPages
from asyncplumber.http.webhook import Webhook
from asyncplumber.interfaces import Decision
from asyncplumber.wire.fields import Headers

_POLICY = (
    (
        b"Content-Security-Policy",
        b"default-src 'self'; connect-src 'self' ws: wss:; "
        b"style-src 'self'; frame-ancestors 'none'",
    ),
    (b"Cache-Control", b"no-cache"),
    (b"Referrer-Policy", b"no-referrer"),
    VARY,
)
# Pages of any origin may run the client, which has no secrets.  What it may do is another question.
_SHARED = (*_POLICY, (b"Cross-Origin-Resource-Policy", b"cross-origin"))
_CLIENT = "asyncplumber.js"
_PAGE = ("", "page.js", "page.css")
_STATIC = {
    "": ("index.html", b"text/html; charset=utf-8"),
    _CLIENT: (_CLIENT, b"text/javascript; charset=utf-8"),
    "page.js": ("page.js", b"text/javascript; charset=utf-8"),
    "page.css": ("page.css", b"text/css; charset=utf-8"),
    "favicon.svg": ("favicon.svg", b"image/svg+xml"),
}


def _static_responses() -> dict[str, Response]:
    folder = files("asyncplumber.http").joinpath("static")
    return {
        name: Response(
            200,
            content_type,
            folder.joinpath(file).read_bytes(),
            _SHARED if name == _CLIENT else _POLICY,
        )
        for name, (file, content_type) in _STATIC.items()
    }


def _headers(request: Request) -> dict[bytes, bytes]:
    """Return the headers as the webhook takes them; the gate has looked at their bytes."""
    return {
        name.lower(): b", ".join(values)
        for name, values in request.requestHeaders.getAllRawHeaders()
    }


def _query(request: Request) -> str:
    """Return what follows the question mark."""
    query: bytes = request.uri.partition(b"?")[2]
    return query.decode("ascii", "replace")


class _RawConverter(BaseConverter):
    """The rest of the path, as it was sent: it names an account, which may have a slash in it."""

    regex = ".*"
    part_isolating = False


class _QuietSite(Site):
    """A site without an access log: the metrics count the requests."""

    def log(self, request: http.Request) -> None:
        """Log nothing."""

    def getContentFile(self, length: int | None) -> BytesIO:
        """Keep a body in memory, where `Connection` has it already."""
        return BytesIO()


class Routes:
    """Klein's routes."""

    _log = Logger()
    app = Klein()
    app.url_map.converters["raw"] = _RawConverter
    app.url_map.merge_slashes = False

    def __init__(
        self,
        webhook: Webhook,
        pages: StatusPages,
        metrics: Metrics,
        gate: Gate,
        subscribers: Subscribers,
        callbacks: CallbackRoutes,
        tasks: TaskPages,
        operators: OperatorPages,
        credentials: CredentialPages | None = None,
        *,
        page: bool = False,
    ) -> None:
        """
        Args:
            webhook: Takes POSTs.
            pages: The status of this instance.
            metrics: Its figures.
            gate: What requests have passed.
            subscribers: Takes subscribers.
            callbacks: Callback URLs.
            tasks: Serves tasks.
            operators: What operators and other instances ask.
            credentials: Revocations and tickets; None if there is no authentication.
            page: Whether the page at ``/`` is served also where clients are authenticated.
        """
        self._page = page
        self._webhook = webhook
        self._pages = pages
        self._metrics = metrics
        self._gate = gate
        self._subscribers = subscribers
        self._tasks = tasks
        self._credentials = credentials
        self._callbacks = callbacks
        self._operators = operators
        self._static = _static_responses()

    def resource(self, clock: IReactorTime) -> IResource:
        """Return all that we serve as a resource for any twisted.web or Klein site."""
        return MountedResource(
            self.app.resource(), self._gate, self._subscribers, self._tasks, clock
        )

    def site(self, reactor: IReactorTime) -> Site:
        """Return the site behind our `Listener`, which has the gate and the subscribers."""
        return _QuietSite(
            RawPathResource(self.app.resource()), reactor=reactor, parsePOSTFormSubmission=False
        )

    def _take(
        self,
        request: Request,
        take: Callable[[Headers, bytes, Decision], Deferred[Response]],
        path: bytes = b"",
    ) -> Deferred[bytes]:
        """
        Give headers and body of a request to ``take``, and write its response.

        ``path`` tells the gate which limit the body has.
        """

        def taken() -> Deferred[Response]:
            limit = self._gate.body_limit_of(path)
            body = request.content.read(limit + 1) if request.content is not None else b""
            if len(body) > limit:
                raise TooLarge(f"a body has at most {limit} bytes")
            return take(_headers(request), body, request.getComponent(IGrant))

        return self._write(request, maybeDeferred(taken))

    def _write(self, request: Request, response: Deferred[Response]) -> Deferred[bytes]:
        # Klein cancels the Deferred that it gets when the client disconnects; but what was posted
        # is taken in all the same.
        written: Deferred[bytes] = Deferred()
        response.addErrback(
            lambda failure: error_response(to_client_error(failure, self._log, "a request failed"))
        )
        response.addCallback(answer, request, self._gate).chainDeferred(written)
        return written

    @app.route("/hooks", methods=["POST"])
    def skyhooks(self, request: Request) -> Deferred[bytes]:
        """Take an event from a client of skyhooks, which names the account in the body."""
        return self._take(request, self._webhook.take_skyhooks)

    @app.route("/hooks/<raw:account>", methods=["POST"])
    @app.route("/admin/hooks/<raw:account>", methods=["POST"])
    def hook(self, request: Request, account: str) -> Deferred[bytes]:
        """Take an event for an account."""
        segment = account.encode("ascii")
        return self._take(request, partial(self._webhook.take, segment))

    @app.route("/instances/<id>/hooks/<raw:account>", methods=["POST"])
    def own_hook(self, request: Request, id: str, account: str) -> Deferred[bytes]:
        """Take an event at this instance's own hook, whose URL is in the registry."""
        segment = account.encode("ascii")
        return self._take(
            request,
            partial(self._webhook.take_here, id.encode(), segment),
        )

    @app.route("/instances/<id>/events", methods=["POST"])
    def batches(self, request: Request, id: str) -> Deferred[bytes]:
        """Take a batch of events from another instance."""
        return self._take(
            request,
            lambda headers, body, _: self._webhook.take_event_batch(id.encode(), headers, body),
            batches_path(id),
        )

    @app.route("/instances/<id>/accounts/<raw:account>", methods=["GET"])
    def count(self, request: Request, id: str, account: str) -> Deferred[bytes]:
        """Tell another instance how many subscribers of an account are here."""
        segment = account.encode("ascii")
        return self._take(
            request, lambda headers, _, __: self._webhook.count_here(id.encode(), segment, headers)
        )

    @app.route("/accounts/<raw:account>", methods=["GET"])
    def account(self, request: Request, account: str) -> Deferred[bytes]:
        """Tell how many subscribers an account has."""
        return self._write(
            request, maybeDeferred(lambda: self._pages.account(account_of(account.encode("ascii"))))
        )

    @property
    def _of_credentials(self) -> CredentialPages:
        if self._credentials is None:
            raise NotFound("no authentication is configured here")
        return self._credentials

    @app.route("/revocations", methods=["POST"])
    def revoke(self, request: Request) -> Deferred[bytes]:
        """Revoke credentials."""
        pages = self._of_credentials
        return self._take(request, lambda _, body, __: Deferred.fromCoroutine(pages.revoke(body)))

    @app.route("/revocations", methods=["GET"])
    def revocations(self, request: Request) -> Deferred[bytes]:
        """List what is revoked."""
        return self._write(request, Deferred.fromCoroutine(self._of_credentials.revocations()))

    @app.route("/tickets", methods=["POST"])
    def ticket(self, request: Request) -> Deferred[bytes]:
        """Give out a ticket for ``?ticket=``."""
        pages = self._of_credentials
        return self._take(
            request,
            lambda _, body, decision: Deferred.fromCoroutine(pages.ticket(body, granted(decision))),
        )

    @app.route("/callbacks", methods=["GET", "POST"])
    @app.route("/callbacks/<raw:token>", methods=["DELETE", "GET", "OPTIONS", "POST"])
    def callback(self, request: Request, token: str | None = None) -> Deferred[bytes]:
        """Make callback URLs, or answer what comes to one."""
        answer = partial(self._callbacks.answer, request.method, token, _query(request))
        return self._take(request, answer)

    @app.route("/instances/<id>/status", methods=["GET"])
    def status(self, request: Request, id: str) -> bytes:
        """Tell another instance about this one."""
        told = self._operators.own.answer(id, _query(request), _headers(request))
        return answer(told, request, self._gate)

    @app.route("/admin/<raw:name>", methods=["GET"])
    def admin(self, request: Request, name: str) -> Deferred[bytes]:
        """Return the admin page, a file that belongs to it, or a document that it shows."""
        query = parse_qs(_query(request), keep_blank_values=True)
        return self._write(request, maybeDeferred(self._operators.get, name, query))

    @app.route("/healthz", methods=["GET"])
    def healthz(self, request: Request) -> bytes:
        """Tell that the process is alive."""
        return write_response(json_response(200, {"status": "ok"}), request)

    @app.route("/readyz", methods=["GET"])
    def readyz(self, request: Request) -> Deferred[bytes]:
        """Tell whether the instance can do its work."""
        return self._write(request, maybeDeferred(self._pages.ready))

    @app.route("/metrics", methods=["GET"])
    def metrics(self, request: Request) -> bytes:
        """Return the figures for Prometheus."""
        return write_response(self._metrics.response(), request)

    @app.route("/", methods=["GET"])
    @app.route(
        "/<any('asyncplumber.js', 'page.js', 'page.css', 'favicon.svg'):name>", methods=["GET"]
    )
    def page(self, request: Request, name: str = "") -> bytes:
        """
        Return the page, or a file that belongs to it, or the client.

        A public page with a field for tokens would teach users to type theirs into such fields.
        """
        if name in _PAGE and self._gate.authority is not None and not self._page:
            raise NotFound
        return write_response(self._static[name], request)

    # Klein's type asks for a handler of any IRequest, and there is no other than Request.
    @app.handle_errors(PlumberError)  # type: ignore[arg-type]
    def plumber_error(self, request: Request, failure: Failure) -> bytes:
        """Write an error that is meant for clients."""
        assert isinstance(failure.value, PlumberError)
        return answer(error_response(failure.value), request, self._gate)

    @app.handle_errors(NoRoute)  # type: ignore[arg-type]
    def no_route(self, request: Request, failure: Failure) -> bytes:
        """Answer a path that does not exist."""
        return answer(error_response(NotFound()), request, self._gate)

    @app.handle_errors(WrongMethod)  # type: ignore[arg-type]
    def wrong_method(self, request: Request, failure: Failure) -> bytes:
        """Answer a method that the path does not take."""
        allowed = sorted(getattr(failure.value, "valid_methods", None) or ["GET"])
        return answer(error_response(MethodNotAllowed(", ".join(allowed))), request, self._gate)

    @app.handle_errors(Exception)  # type: ignore[arg-type]
    def internal_error(self, request: Request, failure: Failure) -> bytes:
        """Log a bug of ours, and tell the client only that there is one."""
        error = to_client_error(failure, self._log, "a request failed")
        return answer(error_response(error), request, self._gate)
