"""
The webhook, on the fast path and the full path alike: from headers and body to a response.

It only translates: `wire.parse` knows what a body means, `core.intake` keeps and delivers it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.auth.signatures import PeerSigner, count_target
from asyncplumber.core.hub import Hub
from asyncplumber.core.intake import Intake
from asyncplumber.core.tasks.errors import TaskError
from asyncplumber.core.tasks.outcomes import Reported
from asyncplumber.core.waiting_posts import Outcome
from asyncplumber.errors import BadRequest, Gone, NotAllowed, PlumberError, to_client_error
from asyncplumber.event import Draft, timestamp
from asyncplumber.grant import Action, Grant
from asyncplumber.http.gate import granted
from asyncplumber.http.problems import problem
from asyncplumber.http.responses import Response, error_response, json_response, receipt_response
from asyncplumber.http.syntax import account_of
from asyncplumber.http.task_reports import NO_BATCH, report_of, report_response
from asyncplumber.interfaces import AwaitsBody, Decision, Verified
from asyncplumber.sending import Receipt
from asyncplumber.task import Report
from asyncplumber.wire.fields import Headers
from asyncplumber.wire.parse import drafts_of, skyhooks_draft

# Bytes of the shortest event in a batch of CloudEvents: its four attributes and the brackets.
MIN_CLOUDEVENT_BYTES = 64
_BATCH_TYPES = (
    b"application/x-ndjson",
    b"application/jsonl",
    b"application/cloudevents-batch+json",
)
_NOT_HERE = "reports about tasks go to /hooks/{account}"
_ID_HEADERS = frozenset({b"webhook-id", b"idempotency-key", b"ce-id"})


@lru_cache(maxsize=256)
def _is_batch(content_type: bytes) -> bool:
    return content_type.partition(b";")[0].strip().lower() in _BATCH_TYPES


class Webhook:
    """
    Takes the POSTs of senders and of other instances.

    The Deferreds that it returns never fail: an error is a `Response` as well.
    """

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
        report: Callable[[Report, Grant], Deferred[Reported]],
        recheck: Callable[[Grant, str], None] = lambda grant, account: None,
    ) -> None:
        """
        Args:
            intake: Where events go.
            hub: The subscribers of this instance.
            now: Returns the time in seconds since 1970.
            instance_id: The id of this instance, as it is in the registry.
            signer: Verifies what other instances ask.
            receive: Delivers a batch of another instance; see `HttpCarrier.receive`.
            report: Takes a report about a task; see `Tasks.report`.
            recheck: Called with the grant and the account of a POST whose body names the account;
                see `Gate.recheck`.
        """
        self._intake = intake
        self._hub = hub
        self._now = now
        self._signer = signer
        self._receive = receive
        self._report = report
        self._recheck = recheck
        self.instance_id = instance_id

    def take(
        self, segment: bytes, headers: Headers, body: bytes, decision: Decision
    ) -> Deferred[Response]:
        """
        Keep an event and deliver it to everyone (``POST /hooks/{account}``).

        ``decision`` is what the gate says about the request.
        """
        taken: Deferred[Response] = Deferred()
        self.take_in(segment, headers, body, decision, taken.callback)
        return taken

    def take_in(
        self,
        segment: bytes,
        headers: Headers,
        body: bytes,
        decision: Decision,
        respond: Callable[[Response], None],
    ) -> None:
        """Do the same on the fast path: ``respond`` is called with the response, now or later."""
        try:
            if isinstance(decision, AwaitsBody):
                self._take_signed(segment, decision.verify(body), body, respond)
                return
            grant = granted(decision)
            batch = _is_batch(headers.get(b"content-type", b""))
            if b"task" in headers:
                self._take_report(segment, headers, body, grant, batch, respond)
                return
            if batch:
                # The number of events at least, before the time to parse them is spent.
                count = body.count(b"\n") or len(body) // MIN_CLOUDEVENT_BYTES
                full = self._intake.is_full(count)
                if full is not None:
                    raise full
            drafts = drafts_of(account_of(segment), headers, body, timestamp(self._now()))
        except PlumberError as error:
            respond(error_response(error))
            return
        self._keep(drafts, grant, batch or len(drafts) > 1, respond)

    def _take_signed(
        self, segment: bytes, verified: Verified, body: bytes, respond: Callable[[Response], None]
    ) -> None:
        """Do the same with the body of a sender, which is one event."""
        if verified.reply is not None:
            respond(Response(200, b"application/json", verified.reply))
            return
        if b"task" in verified.headers:
            # Of most senders, whoever has seen the request once could write another header.
            raise BadRequest(
                "no signature covers Task: report with a credential, or to a callback URL"
            )
        now = timestamp(self._now())
        (draft,) = drafts_of(account_of(segment), verified.headers, body, now)
        if verified.key is not None:
            draft = draft._replace(key=verified.key)
        self._keep([draft], verified.grant, False, respond)

    def _take_report(
        self,
        segment: bytes,
        headers: Headers,
        body: bytes,
        grant: Grant,
        batch: bool,
        respond: Callable[[Response], None],
    ) -> None:
        """Take what a runner says about a task."""
        if batch:
            raise BadRequest(NO_BATCH)
        report = report_of(account_of(segment), headers, body, self._now())

        def failed(failure: Failure) -> Response:
            error = to_client_error(failure, self._log, "a report could not be taken")
            return (
                problem(error, reads=False)
                if isinstance(error, TaskError)
                else (error_response(error))
            )

        taken = self._report(report, grant)
        taken.addCallback(report_response, report.draft.id).addErrback(failed).addCallback(respond)

    def _keep(
        self, drafts: list[Draft], grant: Grant, batch: bool, respond: Callable[[Response], None]
    ) -> None:
        """Give drafts to the intake, and respond with its receipts."""

        def settle(outcome: Outcome) -> None:
            respond(
                error_response(outcome)
                if isinstance(outcome, PlumberError)
                else receipt_response(outcome, batch=batch)
            )

        self._intake.take(drafts, settle, grant)

    def take_skyhooks(
        self, headers: Headers, body: bytes, decision: Decision
    ) -> Deferred[Response]:
        """Keep and deliver an event of a client of skyhooks (``POST /hooks``)."""
        try:
            grant = granted(decision)
            if b"task" in headers:
                raise BadRequest(_NOT_HERE)
            draft = skyhooks_draft(headers, body, timestamp(self._now()))
            self._recheck(grant, draft.account)
        except PlumberError as error:
            return succeed(error_response(error))
        return self._intake.accept([draft], grant).addCallbacks(
            lambda receipts: receipt_response(receipts, skyhooks=True), self._failed
        )

    def _failed(self, failure: Failure) -> Response:
        return error_response(to_client_error(failure, self._log, "a POST could not be taken in"))

    def take_here(
        self,
        instance_id: bytes,
        segment: bytes,
        headers: Headers,
        body: bytes,
        decision: Decision,
    ) -> Deferred[Response]:
        """
        Take an event at the URL that is in the registry.

        A publisher that reads the registry itself sends one copy to each hook of the account.
        With an event id (Webhook-Id, Idempotency-Key, CloudEvents) the copies are one event, which
        is kept and goes to everyone like any other.  Without one, nothing tells that the copies
        belong together: each is delivered at its instance only, and is not kept.
        """
        try:
            account = account_of(segment)
            granted(decision).check(Action.PUBLISH, account)
            if not self._is_for_us(instance_id) or not self._hub.serves(account):
                raise Gone
            if self._signer.is_given:
                raise NotAllowed(
                    "this instance takes only signed batches from its peers; "
                    "post to /hooks/{account}"
                )
            if b"task" in headers:
                raise BadRequest(_NOT_HERE)
            drafts = drafts_of(account, headers, body, timestamp(self._now()))
        except PlumberError as error:
            return succeed(error_response(error))
        if headers.keys() & _ID_HEADERS or drafts[0].key != drafts[0].id:
            return self.take(segment, headers, body, decision)
        return succeed(self._deliver_ephemeral(drafts))

    def _deliver_ephemeral(self, drafts: list[Draft]) -> Response:
        subscribers = self._hub.deliver_ephemeral(drafts)
        receipts = [Receipt(draft.id, "", False, subscribers, {}) for draft in drafts]
        return receipt_response(receipts, batch=len(receipts) > 1)

    # What other instances send

    def count_here(
        self, instance_id: bytes, segment: bytes, headers: Headers
    ) -> Deferred[Response]:
        """Tell how many subscribers an account has at this instance."""
        try:
            account = account_of(segment)
            if not self._is_for_us(instance_id):
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
        Deliver a batch of events that another instance has kept, to the subscribers here.

        The response says for each account how many subscribers were given its events.
        """
        try:
            subscribers = self._receive(instance_id.decode("ascii", "replace"), headers, body)
        except PlumberError as error:
            return succeed(error_response(error))
        return succeed(json_response(200, {"subscribers": subscribers}))

    def _is_for_us(self, instance_id: bytes) -> bool:
        return instance_id.decode("ascii", "replace") == self.instance_id
