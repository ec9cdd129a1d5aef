"""
``/callbacks/{token}``: requests of those who have no credential but the URL.

A POST reports the run that the URL is bound to, or is an event of its account.  A service that
repeats a POST, or sends one after the end, is answered 200: an error would make it send it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from asyncplumber.auth.senders.callback_senders import verified
from asyncplumber.core.intake import Intake
from asyncplumber.core.tasks.callback_urls import CallbackMint
from asyncplumber.core.tasks.errors import Superseded, TaskEnded, TaskError
from asyncplumber.core.tasks.service import Tasks
from asyncplumber.errors import (
    BadRequest,
    Gone,
    InsufficientScope,
    NotFound,
    TooManyRequests,
)
from asyncplumber.event import Draft, is_plain, timestamp
from asyncplumber.figures import LabelledCounter
from asyncplumber.grant import Accounts, Grant
from asyncplumber.http import handshakes
from asyncplumber.http.handshakes import Asked
from asyncplumber.http.problems import receipt_member
from asyncplumber.http.responses import Response, json_response, receipt_response
from asyncplumber.http.task_reports import report_response
from asyncplumber.interfaces import CallbackUrl
from asyncplumber.task import Report, TaskState
from asyncplumber.wire.callbacks import Said, explained, json_of, said
from asyncplumber.wire.fields import Headers
from asyncplumber.wire.parse import drafts_of
from asyncplumber.wire.tasks import deadline_in

#: The name of the limit in metrics and in the log.
LIMIT = "posts_per_callback"
CONFIRM = "callback.confirm"  # the type of the event that asks a person to visit a URL
_RESULTS = ("event", "report", "duplicate", "conflated", "ignored", "handshake")


class UnknownCallback(NotFound):
    """No URL has this token, or it was removed."""

    code, default = "unknown-callback", "there is no such callback URL"


class CallbackExpired(Gone):
    """The URL has ended.  Senders of Standard Webhooks stop when they are told so."""

    code, default = "callback-expired", "this callback URL has expired"


@dataclass(frozen=True, slots=True)
class Post:
    """
    A request to a callback URL.

    Attributes:
        method: Its method.
        token: The last segment of its path.
        raw_query: What follows the question mark.
        headers: With names in lower case.
        body: The body.
    """

    method: bytes
    token: str = field(repr=False)
    raw_query: str = field(repr=False)
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def query(self) -> Mapping[str, Sequence[str]]:
        """The parameters."""
        return parse_qs(self.raw_query, keep_blank_values=True)


class Callbacks:
    """Answers what comes to callback URLs."""

    def __init__(
        self,
        mint: CallbackMint,
        tasks: Tasks,
        intake: Intake,
        now: Callable[[], float],
        granted: Callable[[str], None] = lambda mechanism: None,
    ) -> None:
        """
        Args:
            mint: Knows the URLs.
            tasks: Takes reports.
            intake: Takes events.
            now: Returns the time in seconds since 1970.
            granted: Called with the mechanism of each POST that is let in.
        """
        self._mint = mint
        self._tasks = tasks
        self._intake = intake
        self._now = now
        self._granted = granted
        #: What became of requests.
        self.figure = LabelledCounter(
            "callback_requests_total", "Requests to callback URLs, by result.", "result", _RESULTS
        )

    async def answer(self, post: Post) -> Response:
        """Answer a request.  Raises `PlumberError`."""
        row = await self._found(post)
        if post.method == b"POST":
            return await self._post(row, post)
        asked = Asked(row, post.token, post.query, post.headers, rate=self._mint.rate)
        response = handshakes.answer(post.method, asked)
        if response is not None:
            return self._shaken(response)
        if post.method == b"OPTIONS":
            return Response(200, handshakes.TEXT, b"", ((b"Allow", b"GET, OPTIONS, POST"),))
        return json_response(200, {"status": "ok", "expires": timestamp(row.expires_at)})

    async def _found(self, post: Post) -> CallbackUrl:
        row = await self._mint.find(post.token)
        if row is None:
            raise UnknownCallback
        if row.expires_at <= self._now():
            raise CallbackExpired
        return row

    def _count(self, row: CallbackUrl, kind: str = "") -> None:
        wait = self._mint.take(row, kind)
        if wait > 0:
            raise TooManyRequests(retry_after=int(wait) + 1, reason=LIMIT)

    def _shaken(self, response: Response) -> Response:
        self.figure.add("handshake")
        return response

    async def _post(self, row: CallbackUrl, post: Post) -> Response:
        text = json_of(post.body)
        short = text if len(post.body) <= handshakes.LONGEST_BODY else None
        asked = Asked(row, post.token, post.query, post.headers, short, self._mint.rate)
        response = handshakes.answer_post(asked, is_signed=False)
        if response is not None:
            self._count(row)
            return self._shaken(response)
        told = said(asked.parameter("state"), post.headers, text, row.pointer) if row.task else None
        # Many reports of progress do not keep the end out.
        self._count(row, "end" if told is not None and told.is_end else "")
        headers, key = post.headers, None
        grant = Grant(
            f"callback:{row.id}",
            publish=Accounts(frozenset({row.account})),
            mechanism="callback",
        )
        if row.scheme:
            url = self._mint.url_of(post.token)
            url += f"?{post.raw_query}" if post.raw_query else ""
            proven = verified(row, url, headers, post.body, self._now())
            headers, key, grant = proven.headers, proven.key, proven.grant
        self._granted(grant.mechanism)
        response = handshakes.answer_post(asked, is_signed=True)
        if response is not None:
            return self._shaken(response)
        if handshakes.is_sns_confirmation(post.headers):
            return await self._confirm(row, text, grant)
        if told is None:
            return await self._event(row, headers, post.body, key, grant)
        if told.state is None:
            return self._ignored("the state in the body is not known")
        return await self._report(row, headers, post, text, told, grant)

    # Events

    async def _confirm(self, row: CallbackUrl, text: bytes | None, grant: Grant) -> Response:
        if text is None:
            raise BadRequest("this confirms no subscription of Amazon SNS")
        headers = {b"content-type": b"application/json", b"event-type": CONFIRM.encode()}
        drafts = drafts_of(row.account, headers, handshakes.confirmation(text), self._time())
        self.figure.add("handshake")
        return receipt_response(await self._intake.accept(drafts, grant))

    async def _event(
        self, row: CallbackUrl, headers: Headers, body: bytes, key: str | None, grant: Grant
    ) -> Response:
        drafts = drafts_of(row.account, headers, body, self._time())
        if key is not None:
            drafts = [draft._replace(key=key) for draft in drafts]
        drafts = [_with_prefix(draft, row.type_prefix) for draft in drafts]
        receipts = await self._intake.accept(drafts, grant)
        self.figure.add("duplicate" if receipts[0].duplicate else "event")
        response = receipt_response(receipts, batch=len(receipts) > 1)
        if all(receipt.duplicate for receipt in receipts):
            return response._replace(status=200)
        return response

    def _time(self) -> str:
        return timestamp(self._now())

    # Reports

    async def _report(
        self,
        row: CallbackUrl,
        headers: Headers,
        post: Post,
        text: bytes | None,
        told: Said,
        grant: Grant,
    ) -> Response:
        state = told.state
        assert state is not None  # the caller has looked
        if state.is_done and not row.ends:
            raise InsufficientScope("this URL reports no end")
        body = post.body
        is_failure = state in (TaskState.FAILED, TaskState.CANCELED)
        if is_failure and text is not None and text[:1] == b"{":
            body = explained(text)
        drafts = drafts_of(row.account, headers, body, self._time())
        if len(drafts) != 1:
            raise BadRequest("a report is one event")
        report = Report(
            drafts[0],
            row.task,
            state,
            row.run or None,
            begins=told.begins,
            is_beat=not body,
            patience=deadline_in(post.headers),
        )
        try:
            reported = await self._tasks.report(report, grant)
        except TaskEnded as error:
            return self._ignored("the run has ended", error)
        except Superseded as error:
            return self._ignored("a newer run has begun", error)
        if reported.is_conflated:
            result = "conflated"
        else:
            receipt = reported.receipt
            result = "duplicate" if receipt is not None and receipt.duplicate else "report"
        self.figure.add(result)
        return report_response(reported, drafts[0].id)

    def _ignored(self, why: str, error: TaskError | None = None) -> Response:
        """Answer what changes nothing, and is not to be sent again."""
        self.figure.add("ignored")
        told: dict[str, Any] = {"status": "ok", "ignored": why}
        if error is not None and error.task is not None:
            # Whoever still works on it may as well stop.
            told["task"] = {**receipt_member(error.task), "cancel": True}
        return json_response(200, told)


def _with_prefix(draft: Draft, prefix: str) -> Draft:
    if draft.type.startswith(prefix):
        return draft
    type = prefix + draft.type
    if not is_plain(type):
        raise BadRequest("the type of the event is too long")
    return draft._replace(type=type)
