"""
Whose fault it was, with the status it deserves.

Every error that a client may see is a `PlumberError`.  Doors turn it into an answer with `status`,
the JSON body ``{"error": {"code", "message"}}`` and, where it says so, a ``Retry-After``.
"""

from __future__ import annotations

from typing import ClassVar

from twisted.logger import Logger
from twisted.python.failure import Failure


class PlumberError(Exception):
    """
    An error with an HTTP status; `message` is shown to the client, so it never holds a secret.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    default: ClassVar[str] = "something went wrong here"

    def __init__(self, message: str | None = None, *, retry_after: int | None = None) -> None:
        """`retry_after` is in whole seconds; None sends no such header."""
        self.message = message or self.default
        self.retry_after = retry_after
        super().__init__(self.message)


class BadRequest(PlumberError):
    """The request cannot be understood (RFC 9110, 15.5.1)."""

    status, code, default = 400, "bad-request", "the request cannot be understood"


class BadCursor(BadRequest):
    """A resume position that no history ever gave out."""

    code, default = (
        "bad-cursor",
        "a cursor looks like epoch.number, as found in the events; or say earliest",
    )


class BadAccount(BadRequest):
    """
    An account name outside the rules: 1 to 256 characters of UTF-8, none of them a control
    character.
    """

    code = "bad-account"
    default = (
        "an account is 1 to 256 characters of UTF-8, percent-encoded, without control characters"
    )


class NotAllowed(PlumberError):
    """The request is understood and refused (RFC 9110, 15.5.4)."""

    status, code, default = 403, "forbidden", "not allowed"


class NotFound(PlumberError):
    """No such path."""

    status, code, default = 404, "not-found", "there is nothing at this path"


class MethodNotAllowed(PlumberError):
    """The path is there, the method is not; `allow` lists those that are."""

    status, code, default = 405, "method-not-allowed", "this path does not take that method"

    def __init__(self, allow: str) -> None:
        super().__init__(f"this path takes {allow}")
        self.allow = allow


class TooSlow(PlumberError):
    """The body did not arrive in time."""

    status, code, default = 408, "too-slow", "the request did not arrive in time"


class Gone(PlumberError):
    """This instance does not serve the account any more: the hook may be deleted."""

    status, code, default = (
        410,
        "gone",
        "this instance has no subscriber of that account; the hook can be deleted",
    )


class TooLarge(PlumberError):
    """The body is beyond the limit."""

    status, code, default = 413, "too-large", "the body is too large"


class UnsupportedMediaType(PlumberError):
    """A content type that cannot be taken in."""

    status, code, default = (
        415,
        "unsupported-media-type",
        "that content type is not understood here",
    )


class TooManyRequests(PlumberError):
    """A limit on rate or number was reached."""

    status, code, default = 429, "too-many", "too many at once; try again later"


class NotImplementedHere(PlumberError):
    """A method or a transfer coding that this server does not know (RFC 9110, 15.6.2)."""

    status, code, default = 501, "not-implemented", "this server does not know that method"


class Unavailable(PlumberError):
    """The store cannot be reached, or the instance is about to stop; nothing was accepted."""

    status, code, default = 503, "unavailable", "not possible right now; try again"

    def __init__(self, message: str | None = None, *, retry_after: int = 2) -> None:
        super().__init__(message, retry_after=retry_after)


class InstancesRunning(Exception):
    """What is to be done with the store is not safe while instances use it."""

    def __init__(self) -> None:
        super().__init__(
            "an instance uses this store: stop all, and try again when their leases have ended"
        )


def to_client_error(failure: Failure, log: Logger, what: str) -> PlumberError:
    """
    What to tell a client of `failure`: itself if it is meant for clients; else it is our fault, and
    goes to the log.
    """
    if isinstance(failure.value, PlumberError):
        return failure.value
    log.failure(what, failure)
    return PlumberError()
