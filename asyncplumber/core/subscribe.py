"""How a client subscribes: where it resumes, how long it waits, and its admission to a channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.core.channel import Channel
from asyncplumber.core.hub import Hub
from asyncplumber.errors import BadRequest, PlumberError, to_client_error
from asyncplumber.event import EARLIEST, Cursor
from asyncplumber.grant import Grant
from asyncplumber.wire.fields import Headers
from asyncplumber.wire.preferences import MAX_WAIT

WAIT = 25.0  # seconds of a long-poll; many proxies give up after 30

Query = Mapping[str, Sequence[str]]
_NO = ("0", "false")  # as the value of ``tasks``

# The names that clients use.  `after` is the last: a client that resumes by another name has it in
# the URL from the beginning.
_RESUME_PARAMETERS = ("lastEventId", "last_event_id", "lastEventID", "after")


def resume_point(headers: Headers, query: Query) -> Cursor | str | None:
    """
    Return where the client resumes.

    ``Last-Event-ID`` counts more than the query, which a browser keeps from its first connection.

    Returns:
        A `Cursor`, `EARLIEST`, or None for live events only, also if the value is empty.

    Raises:
        BadCursor: The value is no cursor.
    """
    places = [headers.get(b"last-event-id", b"").decode("latin-1")]
    places += [query[name][-1] for name in _RESUME_PARAMETERS if name in query]
    text = next(filter(None, places), None)
    if text is None or text == EARLIEST:
        return text
    return Cursor.parse(text)


def wait_in(query: Query) -> float:
    """
    Return the seconds that a long-poll waits.

    Raises:
        BadRequest: The value is no number of seconds, or too large.
    """
    try:
        wait = float(query.get("wait", [str(WAIT)])[-1])
    except ValueError:
        wait = -1.0
    if not 0 <= wait <= MAX_WAIT:
        raise BadRequest(f"wait is a number of seconds from 0 to {MAX_WAIT:.0f}")
    return wait


def wants_tasks(query: Query) -> bool:
    """Return whether the client asks for the live tasks: by ``?tasks``, or ``?tasks=1``."""
    return query.get("tasks", _NO)[-1] not in _NO


class Admission:
    """A client that waits until its account's channel is open."""

    _log = Logger()

    def __init__(
        self,
        hub: Hub,
        account: str,
        grant: Grant,
        serve: Callable[[Channel], object],
        refuse: Callable[[PlumberError], object],
    ) -> None:
        """
        Ask the hub for the channel; the answer may come at once.

        Args:
            hub: Where the channels are.
            account: The account whose events are wanted.
            grant: What the client may do.
            serve: Called with the channel; has to subscribe to it before it returns.
            refuse: Called with the error if that is not possible, or if ``serve`` raises.
        """
        self._refuse = refuse
        admitted = self._admitted = hub.admit(account, grant)
        channel = admitted.result if admitted.called else None
        if isinstance(channel, Channel):
            # As a rule.  Two callbacks would cost more than the rest of this.
            try:
                serve(channel)
            except Exception:
                self._failed(Failure())
        else:
            admitted.addCallback(serve).addErrback(self._failed)

    @property
    def is_pending(self) -> bool:
        """Whether neither ``serve`` nor ``refuse`` was called yet."""
        return not self._admitted.called

    def cancel(self, _: object = None) -> None:
        """Stop waiting, because the client has disconnected.  Harmless after the admission."""
        self._admitted.cancel()

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self._refuse(to_client_error(failure, self._log, "a subscriber cannot be admitted"))
