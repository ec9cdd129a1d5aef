"""
The webhook, whichever door a POST came in by: from account, headers and body to an answer.

It only translates.  What a body means is in `posted`, what becomes of it in `intake`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.auth.signatures import PeerSigner, count_target
from asyncplumber.core.hub import Hub
from asyncplumber.core.intake import Intake
from asyncplumber.core.waiting_posts import Outcome
from asyncplumber.errors import BadAccount, Gone, NotAllowed, PlumberError, to_client_error
from asyncplumber.event import checked_account, timestamp
from asyncplumber.http.responses import Response, error_response, json_response, receipt_response
from asyncplumber.sending import Receipt
from asyncplumber.wire.parse import Headers, drafts_of, skyhooks_draft

# Bytes that Twisted and Autobahn would split a header at, each in its own way (CVE-2026-44546 in
# daphne); and the other control characters, which no header may have.
SPLITTING = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f\x85]")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")  # RFC 3986, 2.1
ODD_HEADER = "a header has a byte that not every server reads alike"
ODD_PATH = "the path has a byte that not every server reads alike"
CLOUDEVENT = 64  # bytes of the shortest one
_BATCHES = (b"application/x-ndjson", b"application/jsonl", b"application/cloudevents-batch+json")


@lru_cache(maxsize=256)
def _is_batch(content_type: bytes) -> bool:
    return content_type.partition(b";")[0].strip().lower() in _BATCHES


def account_of(segment: bytes) -> str:
    """The account that a raw path segment names.  Raises `BadAccount`."""
    if segment.isalnum():
        return checked_account(segment.decode("ascii"))
    # `unquote_to_bytes` leaves a malformed escape as it stands, so that `%zz` would be an account.
    if b"/" in segment or _BAD_ESCAPE.search(segment):
        raise BadAccount
    try:
        return checked_account(unquote_to_bytes(segment).decode())
    except UnicodeDecodeError:
        raise BadAccount from None


class Webhook:
    """Takes in what is posted."""

    _log = Logger()

    def __init__(
        self,
        intake: Intake,
        hub: Hub,
        now: Callable[[], float],
        instance_id: str,
        *,
        signer: PeerSigner,
        receive: Callable[[str, Headers, bytes], dict[str, int]],
    ) -> None:
        """
        Args:
            intake: Keeps what is posted.
            hub: Knows the subscribers of this instance.
            now: Returns the seconds since 1970.
            instance_id: The id of this instance.
            signer: Verifies the questions of other instances.
            receive: Delivers a batch of another instance, see `HttpCarrier.receive`.
        """
        self._intake = intake
        self._hub = hub
        self._now = now
        self._signer = signer
        self._receive = receive
        self.instance_id = instance_id

    def take(self, segment: bytes, headers: Headers, body: bytes) -> Deferred[Response]:
        """
        ``POST /hooks/{account}``: keep it, and send it to everyone.  @return: Deferred that never
        fails.
        """
        taken: Deferred[Response] = Deferred()
        self.take_in(segment, headers, body, taken.callback)
        return taken

    def take_in(
        self, segment: bytes, headers: Headers, body: bytes, reply: Callable[[Response], None]
    ) -> None:
        """The same for the hot path: `reply` is called with the answer, now or later."""
        batch = _is_batch(headers.get(b"content-type", b""))
        try:
            # A line, or a CloudEvent with its four attributes and the brackets, is at least so
            # long.
            if (
                batch
                and (busy := self._intake.is_full(body.count(b"\n") or len(body) // CLOUDEVENT))
                is not None
            ):
                raise busy
            drafts = drafts_of(account_of(segment), headers, body, timestamp(self._now()))
        except PlumberError as error:
            reply(error_response(error))
            return
        batch = batch or len(drafts) > 1

        def settle(outcome: Outcome) -> None:
            reply(
                error_response(outcome)
                if isinstance(outcome, PlumberError)
                else receipt_response(outcome, batch=batch)
            )

        self._intake.take(drafts, settle)

    def take_skyhooks(self, headers: Headers, body: bytes) -> Deferred[Response]:
        """``POST /hooks`` as skyhooks' clients do.  @return: Deferred that never fails."""
        try:
            draft = skyhooks_draft(headers, body, timestamp(self._now()))
        except PlumberError as error:
            return succeed(error_response(error))
        return self._intake.accept([draft]).addCallbacks(
            self._received_from_skyhooks, self._refused
        )

    def _received_from_skyhooks(self, receipts: list[Receipt]) -> Response:
        return receipt_response(receipts, skyhooks=True)

    def _refused(self, failure: Failure) -> Response:
        return error_response(to_client_error(failure, self._log, "a POST could not be taken in"))

    def take_here(
        self, instance_id: bytes, segment: bytes, headers: Headers, body: bytes
    ) -> Deferred[Response]:
        """
        A POST to this instance's own hook, as the talk's publisher does: one to each hook of the
        account.

        With an event id (Webhook-Id, Idempotency-Key, CloudEvents) the copies are one event, which
        is kept and goes to everyone like any other.  Without one, nobody can know that the copies
        belong together: each is delivered here only, at once, and not kept.
        """
        try:
            account = account_of(segment)
            if instance_id.decode("ascii", "replace") != self.instance_id or not self._hub.serves(
                account
            ):
                raise Gone
            if self._signer.is_given:
                raise NotAllowed(
                    "this instance takes only signed batches from its peers; post to /hooks/{account}"
                )
            drafts = drafts_of(account, headers, body, timestamp(self._now()))
        except PlumberError as error:
            return succeed(error_response(error))
        if (
            headers.keys() & {b"webhook-id", b"idempotency-key", b"ce-id"}
            or drafts[0].key != drafts[0].id
        ):
            return self.take(segment, headers, body)
        given = self._hub.deliver_ephemeral(drafts)
        receipts = [Receipt(draft.id, "", False, given, {}) for draft in drafts]
        return succeed(receipt_response(receipts, batch=len(receipts) > 1))

    def count_here(
        self, instance_id: bytes, segment: bytes, headers: Headers
    ) -> Deferred[Response]:
        """
        How many listen to an account at this instance, for another one to add up.  @return:
        Deferred that never fails.
        """
        try:
            account = account_of(segment)
            if instance_id.decode("ascii", "replace") != self.instance_id:
                raise Gone
            target = count_target(self.instance_id, account)
            self._signer.check(target, headers, b"", self._now())
        except PlumberError as error:
            return succeed(error_response(error))
        return succeed(json_response(200, {"subscribers": self._hub.count(account)}))

    def take_event_batch(
        self, instance_id: bytes, headers: Headers, body: bytes
    ) -> Deferred[Response]:
        """
        Take ``POST /instances/{id}/events``: a batch that another instance relays.

        Returns:
            A Deferred of the response, which tells for each account how many subscribers were given
            its events.  It does not fail.
        """
        try:
            subscribers = self._receive(instance_id.decode("ascii", "replace"), headers, body)
        except PlumberError as error:
            return succeed(error_response(error))
        return succeed(json_response(200, {"subscribers": subscribers}))
