"""
The errors that clients see, with their HTTP status, and a few that no client sees.

Every error that a client sees is a `PlumberError`.  The HTTP layer responds with its status, the
JSON body ``{"error": {"code", "message"}}`` and, if the error says so, a ``Retry-After``.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar

from twisted.logger import Logger
from twisted.python.failure import Failure


class PlumberError(Exception):
    """
    An error with an HTTP status.

    The client sees `message`, so it never contains a secret.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    default: ClassVar[str] = "something went wrong here"
    #: A content type and a body that the client gets in place of ours; None: ours.
    body: tuple[bytes, bytes] | None = None

    def __init__(self, message: str | None = None, *, retry_after: int | None = None) -> None:
        """
        Args:
            message: A sentence for the client; None takes the default of the class.
            retry_after: Whole seconds; None sends no such header.
        """
        self.message = message or self.default
        self.retry_after = retry_after
        super().__init__(self.message)


def reason_of(error: PlumberError) -> str:
    """Return why a request is refused, for metrics and the log: more than the client is told."""
    return str(getattr(error, "reason", "") or error.code)


class BadRequest(PlumberError):
    """The request cannot be understood (RFC 9110, 15.5.1)."""

    status, code, default = 400, "bad-request", "the request cannot be understood"


class BadCursor(BadRequest):
    """A cursor that no history can have given out."""

    code = "bad-cursor"
    default = "a cursor is epoch.number, as found in the events, or the word earliest"


class BadAccount(BadRequest):
    """An account that is empty, longer than 256 characters, or has control characters."""

    code = "bad-account"
    default = (
        "an account is 1 to 256 characters of UTF-8, percent-encoded, without control characters"
    )


class Unauthenticated(PlumberError):
    """
    The request has no credential, or a bad one (RFC 9110, 15.5.2; RFC 6750, 3).

    The client is never told what is wrong with a credential.  `reason` is for metrics and the log.
    """

    status, code, default = 401, "unauthenticated", "this needs a credential"
    challenge = b'Bearer realm="asyncplumber"'

    def __init__(self, message: str | None = None, *, reason: str = "no credential") -> None:
        super().__init__(message)
        self.reason = reason

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The headers of the response."""
        return ((b"WWW-Authenticate", self.challenge),)


class InvalidToken(Unauthenticated):
    """A credential is there, and it is bad, expired or revoked; `reason` says which."""

    code, default = "invalid-token", "this credential is not valid"
    challenge = Unauthenticated.challenge + b', error="invalid_token"'

    def __init__(self, reason: str) -> None:
        super().__init__(reason=reason)


class InvalidSignature(Unauthenticated):
    """The body of a sender is not signed, or not in these minutes; `reason` says what it is."""

    code = "invalid-signature"
    default = "the signature of this request is not valid, or too old"

    def __init__(self, reason: str) -> None:
        super().__init__(reason=reason)


class GrantExpired(InvalidToken):
    """The grant of an open stream has ended: the client is to come back with a new credential."""

    code, default = "expired", "the credential has expired"

    def __init__(self) -> None:
        super().__init__("expired")


class GrantRevoked(InvalidToken):
    """The grant of an open stream was revoked."""

    code, default = "revoked", "the credential was revoked"

    def __init__(self) -> None:
        super().__init__("revoked")


class NotAllowed(PlumberError):
    """The request is understood and refused (RFC 9110, 15.5.4)."""

    status, code, default = 403, "forbidden", "not allowed"


class InsufficientScope(NotAllowed):
    """
    The credential is good, and does not allow this (RFC 6750, 3.1).

    The same for accounts that exist and that do not.
    """

    code, default = "insufficient-scope", "this credential does not allow that"
    headers = ((b"WWW-Authenticate", Unauthenticated.challenge + b', error="insufficient_scope"'),)


class NotFound(PlumberError):
    """No such path."""

    status, code, default = 404, "not-found", "there is nothing at this path"


class MethodNotAllowed(PlumberError):
    """The path exists, but not with this method; `allow` lists the methods that it has."""

    status, code, default = 405, "method-not-allowed", "this path does not accept that method"

    def __init__(self, allow: str) -> None:
        super().__init__(f"this path accepts {allow}")
        self.allow = allow


class TooSlow(PlumberError):
    """The body did not arrive in time."""

    status, code, default = 408, "too-slow", "the request did not arrive in time"


class Gone(PlumberError):
    """This instance does not serve the account any more: the hook may be deleted."""

    status, code = 410, "gone"
    default = "this instance has no subscriber of that account; the hook can be deleted"


class TooLarge(PlumberError):
    """The body is beyond the limit."""

    status, code, default = 413, "too-large", "the body is too large"


class UnsupportedMediaType(PlumberError):
    """A content type that is not understood."""

    status, code = 415, "unsupported-media-type"
    default = "that content type is not understood here"


class TooManyRequests(PlumberError):
    """
    A limit on rate or number was reached.

    `reason` is the name of the limit, for metrics and the log; empty for one that has no name.
    """

    status, code, default = 429, "too-many", "too many at once; try again later"

    def __init__(
        self, message: str | None = None, *, retry_after: int | None = None, reason: str = ""
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.reason = reason


class NotImplementedHere(PlumberError):
    """A method or a transfer coding that this server does not know (RFC 9110, 15.6.2)."""

    status, code, default = 501, "not-implemented", "this server does not know that method"


class Unavailable(PlumberError):
    """The store cannot be reached, or the instance is about to stop."""

    status, code, default = 503, "unavailable", "not possible right now; try again"

    def __init__(self, message: str | None = None, *, retry_after: int = 2) -> None:
        super().__init__(message, retry_after=retry_after)


class IllegalTransition(RuntimeError):
    """A table of states has no such transition: a bug of ours."""

    def __init__(self, what: str, before: Enum, after: Enum) -> None:
        super().__init__(f"{what} that is {before.name} cannot be {after.name}")


class InstancesRunning(Exception):
    """An operation on the store is not safe while instances use it."""

    def __init__(self) -> None:
        super().__init__(
            "an instance uses this store: stop all, and try again when their leases have ended"
        )


def to_client_error(failure: Failure, log: Logger, what: str) -> PlumberError:
    """
    Return the failure's own `PlumberError`; log anything else, and return a generic 500.

    Args:
        failure: What went wrong.
        log: Where to.
        what: What failed, for the log.
    """
    if isinstance(failure.value, PlumberError):
        return failure.value
    log.failure(what, failure)
    return PlumberError()
