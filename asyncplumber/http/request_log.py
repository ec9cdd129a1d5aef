"""What is counted and logged of requests: each that is refused, and if wanted each other one."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from twisted.logger import Logger

from asyncplumber.auth.limits.settings import NAMES as LIMITS
from asyncplumber.auth.reasons import Reason
from asyncplumber.errors import InvalidSignature, PlumberError, Unauthenticated, reason_of
from asyncplumber.figures import OTHER, LabelledCounter, TableCounter
from asyncplumber.http.request import Request
from asyncplumber.log_text import path_of
from asyncplumber.rate_limited_log import RateLimitedLog

# The codes of all errors that a client can get.
CODES = (
    "bad-account",
    "bad-cursor",
    "bad-request",
    "callback-expired",
    "ended",
    "expired",
    "forbidden",
    "gone",
    "headers-too-large",
    "insufficient-scope",
    "internal",
    "invalid-signature",
    "invalid-token",
    "method-not-allowed",
    "misdirected",
    "no-starter",
    "not-encrypted",
    "not-ended",
    "not-found",
    "not-implemented",
    "nothing-cached",
    "other-input",
    "result-gone",
    "revoked",
    "slow-reader",
    "superseded",
    "too-large",
    "too-many",
    "too-slow",
    "unauthenticated",
    "unavailable",
    "unknown-callback",
    "unknown-task",
    "unsupported-media-type",
    "upgrade-required",
)
# What some errors say beyond their code.
DETAILS = (
    "a signature where none is taken",
    "foreign origin",
    "posts_per_callback",
    *LIMITS,
)
#: Why a request is refused: what is wrong with a credential, or else the code of the error.
REASONS = tuple(dict.fromkeys([*CODES, *DETAILS, *map(str, Reason)]))
#: Those of grants.
MECHANISMS = (
    "none",
    "jwt",
    "key",
    "cookie",
    "ticket",
    "call-out",
    "sender",
    "anonymous",
    "callback",
)
# Of these, something else writes a line that says more.
_LOGGED_ELSEWHERE = frozenset({"foreign origin"})
_ACCESS = Logger("asyncplumber.requests")

OnRefused = Callable[[PlumberError, bytes, bytes, str], Any]


class RequestLog:
    """
    Counts and logs the requests of one plumber.

    No line has a query, a header or a body: they can have tickets, tokens and cookies.
    """

    _log = Logger()

    def __init__(self, seconds: Callable[[], float] = monotonic, *, every: bool = False) -> None:
        """
        Args:
            seconds: Returns the time in seconds, by a clock that is never set.
            every: Whether each request gets a line, and not only those that are refused.
        """
        #: Whether each request gets a line.
        self.every = every
        self.seconds = seconds
        self.refusals = LabelledCounter(
            "refused_total", "Requests that were refused.", "reason", REASONS
        )
        #: What came of credentials.
        self.auth = TableCounter(
            "auth_total",
            "Requests by the way in which the client proved itself, and what came of it.  "
            "Of a credential that is refused, only whether it was a signature is known.",
            {"mechanism": MECHANISMS, "result": ("granted", "refused")},
        )
        #: Called with each refusal: its error, the method, the target and the client's address.
        self.on_refused: list[OnRefused] = []
        # A line each, so that what is frequent does not hide what is rare.
        self._lines: dict[str, RateLimitedLog] = {}

    def granted(self, mechanism: str) -> None:
        """Count a request that the authority has let in."""
        self.auth.add(mechanism, "granted")

    def refused(self, error: PlumberError, method: bytes, target: bytes, client: str) -> None:
        """
        Count a refusal, and log it unless there are too many of its kind.

        Args:
            error: What the client was told, and the reason that it may not have been told.
            method: Of the request; empty if it could not be read.
            target: Path and query.
            client: The address; empty for a UNIX socket.
        """
        reason = reason_of(error)
        self.refusals.add(reason)
        if isinstance(error, Unauthenticated):
            self.auth.add(_mechanism(error), "refused")
        if reason not in _LOGGED_ELSEWHERE:
            self._line(reason).warn(
                "{method} {path} from {client} was refused: {reason} ({status})",
                method=_word(method),
                path=path_of(target),
                client=client or "a UNIX socket",
                reason=reason,
                status=error.status,
            )
        for tell in self.on_refused:
            tell(error, method, target, client)

    def _line(self, reason: str) -> RateLimitedLog:
        kind = reason if reason in REASONS else OTHER
        line = self._lines.get(kind)
        if line is None:
            line = self._lines[kind] = RateLimitedLog(self._log, self.seconds)
        return line

    def answered(
        self,
        request: Request | None,
        status: int,
        size: int,
        error: PlumberError | None,
        client: str,
    ) -> None:
        """
        Take note of a response.

        Args:
            request: None if its head could not be read.
            status: Of the response; 101 or 200 for a stream that begins.
            size: Bytes of the body.
            error: What it tells; None if the request was not refused.
            client: The address; empty for a UNIX socket.
        """
        method, target = (request.method, request.target) if request is not None else (b"", b"")
        if error is not None:
            self.refused(error, method, target, client)
        if self.every:
            began = request.began if request is not None else None
            _ACCESS.info(
                "{client} {method} {path} {status} {size} B {ms} ms",
                client=client or "a UNIX socket",
                method=_word(method),
                path=path_of(target),
                status=status,
                size=size,
                ms=None if began is None else round((self.seconds() - began) * 1000, 2),
            )


def _mechanism(error: Unauthenticated) -> str:
    if error.reason == Reason.NONE:
        return "none"
    return "sender" if isinstance(error, InvalidSignature) else OTHER


def _word(method: bytes) -> str:
    return path_of(method, 20) or "-"
