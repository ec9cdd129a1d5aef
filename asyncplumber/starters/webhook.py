"""
Starts tasks by POSTs to the application: a webhook proxy in reverse.

The application gets the input of the client as it was sent, and headers that say whose task it is
and where it can be reported.  Its answer is the result, or says that it will come.

Only the operator names the URL.  Nothing that a client sends is part of it, and no redirect is
followed.
"""

from __future__ import annotations

import hmac
import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from asyncplumber.auth.fetch import Fetcher, FetchFailed, Post, Reply
from asyncplumber.concurrency import Semaphore
from asyncplumber.event import is_plain
from asyncplumber.interfaces import (
    Answer,
    Dispatch,
    Finished,
    IStoppableStarter,
    Later,
    Refused,
    StarterFailed,
)
from asyncplumber.rate_limited_log import RateLimitedLog
from asyncplumber.starters.address import WebhookAddress

TIMEOUT = 10.0  # seconds until the whole answer must be there
CALLS = 64  # POSTs to the application at the same time, from one instance
ANSWER_LIMIT = 1024 * 1024  # bytes of an answer
MAX_REFUSAL = 4096  # bytes of a refusal that are part of the error
MAX_RETRY_AFTER = 300  # seconds; later than that nobody waits for the task any more
MAX_START_DEADLINE = 30 * 86_400  # seconds
START, CANCEL = b"task.start", b"task.cancel"  # what a POST is about
_JSON = b"application/json"
# What passes by itself: the client's request is not what is wrong.
_AGAIN = frozenset({408, 425, 429})


@implementer(IStoppableStarter)
class WebhookStarter:
    """POSTs tasks to a URL of the application."""

    _log = Logger()

    needs_callback = True

    def __init__(
        self,
        address: WebhookAddress,
        post: Post,
        clock: IReactorTime,
        now: Callable[[], float],
        *,
        secrets: Sequence[bytes] = (),
        timeout: float = TIMEOUT,
        answer_limit: int = ANSWER_LIMIT,
        calls: int = CALLS,
        close: Callable[[], Deferred[None]] = lambda: succeed(None),
    ) -> None:
        """
        Args:
            address: Where the application is.
            post: Sends the POSTs.
            clock: A clock that is never set.
            now: Returns the seconds since 1970.
            secrets: What is signed with, each for a signature of its own; none for no signature.
            timeout: Seconds until the whole answer must be there.
            answer_limit: The most bytes of an answer.
            calls: The most POSTs at the same time.  Those beyond wait, and their time begins later.
            close: Closes the connections.
        """
        self._address = address
        self._post = post
        self._now = now
        self._secrets = tuple(secrets)
        self._timeout = timeout
        self._limit = answer_limit
        self._room = Semaphore(calls)
        self._close = close
        self._cancels: set[Deferred[Any]] = set()
        self._not_told = RateLimitedLog(self._log, clock.seconds)
        if not address.is_private:
            self._log.warn(
                "tasks are started by http:// over a network: whoever can read that sees their "
                "input and the URLs to which they are reported"
            )

    @classmethod
    def over_treq(
        cls,
        address: WebhookAddress,
        reactor: Any,
        now: Callable[[], float],
        **options: Any,
    ) -> WebhookStarter:
        """Make a starter with a pool of connections of its own.  ``options`` as in `__init__`."""
        fetcher = Fetcher.over_treq(reactor)
        return cls(address, fetcher.post, reactor, now, close=fetcher.close, **options)

    # See `IStoppableStarter`

    def start(self, dispatch: Dispatch) -> Deferred[Answer]:
        """POST the input.  The answer decides; no answer in time is a `StarterFailed`."""
        return Deferred.fromCoroutine(self._start(dispatch))

    def cancel(self, account: str, task: str, run: str) -> Deferred[None]:
        """POST that a run is not wanted any more.  The answer is not waited for."""
        telling = Deferred.fromCoroutine(self._cancel(account, task, run))
        self._cancels.add(telling)
        telling.addErrback(self._not_canceled)
        telling.addBoth(lambda _: self._cancels.discard(telling))
        return succeed(None)

    def stop(self) -> Deferred[None]:
        """Give up telling what is canceled, and close the idle connections."""
        for telling in list(self._cancels):
            telling.cancel()
        return self._close()

    async def _start(self, dispatch: Dispatch) -> Answer:
        headers = {
            **self._about(dispatch.account, dispatch.task, dispatch.run),
            b"event-type": START,
            # RFC 7240: answer now if you can, else say that it comes later.
            b"prefer": b"respond-async, wait=%d" % max(1, self._timeout),
            b"idempotency-key": b'"%b"' % dispatch.run.encode(),
        }
        if dispatch.callback:
            headers[b"plumber-callback"] = dispatch.callback.encode()
        if dispatch.content_type:
            headers[b"content-type"] = dispatch.content_type.encode()
        headers.update(self._signature(dispatch.run, dispatch.body))
        await self._room.acquire()
        # No ``finally``: that would also run when a program that has ended is collected as garbage,
        # and resume others that are.
        sent = self._send(headers, dispatch.body).addBoth(self._release)
        try:
            reply = await sent
        except FetchFailed as error:
            return unusable(error, self._now())
        return answer_of(reply, self._now())

    def _release(self, result: Any) -> Any:
        self._room.release()
        return result

    async def _cancel(self, account: str, task: str, run: str) -> None:
        body = json.dumps({"account": account, "task": task, "run": run}).encode()
        # An id of its own: who drops repeated webhooks by their id must not drop this one.
        id = f"{run}.cancel"
        headers = {
            **self._about(account, task, run),
            b"event-type": CANCEL,
            b"content-type": _JSON,
            b"idempotency-key": b'"%b"' % id.encode(),
            **self._signature(id, body),
        }
        reply = await self._send(headers, body)
        if not 200 <= reply.status < 300:
            raise FetchFailed("status", f"the answer has status {reply.status}")

    def _not_canceled(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self._not_told.warn(
                "the application was not told that a task is canceled: {error}",
                error=failure.getErrorMessage(),
            )

    def _send(self, headers: Mapping[bytes, bytes], body: bytes) -> Deferred[Reply]:
        return self._post(
            self._address.url, headers, body, timeout=self._timeout, limit=self._limit
        )

    @staticmethod
    def _about(account: str, task: str, run: str) -> dict[bytes, bytes]:
        return {
            b"user-agent": b"asyncplumber",
            b"plumber-account": _quoted(account),
            b"plumber-task": _quoted(task),
            b"plumber-run": run.encode(),
        }

    def _signature(self, id: str, body: bytes) -> dict[bytes, bytes]:
        """Return the headers of Standard Webhooks; none without a secret."""
        if not self._secrets:
            return {}
        time = b"%d" % self._now()
        content = b"%b.%b.%b" % (id.encode(), time, body)
        signatures = [
            b"v1," + b64encode(hmac.digest(secret, content, "sha256")) for secret in self._secrets
        ]
        return {
            b"webhook-id": id.encode(),
            b"webhook-timestamp": time,
            b"webhook-signature": b" ".join(signatures),
        }


def _quoted(text: str) -> bytes:
    """Return a name as a header can have it: percent-encoded UTF-8, as in a path."""
    return quote(text, safe="").encode("ascii")


def answer_of(reply: Reply, now: float) -> Answer:
    """
    Return what an answer means.

    2xx but 202 is the result, and no body stands for ``null``.  202 means that it comes later.

    Args:
        reply: The answer.
        now: Seconds since 1970.

    Raises:
        StarterFailed: The answer is one that passes by itself.
    """
    status = reply.status
    seconds = retry_after(reply, now)
    if status == 202:
        return Later(float(min(seconds, MAX_START_DEADLINE)) if seconds else None)
    if 200 <= status < 300:
        if not reply.body:
            return Finished("application/json", b"null")
        return Finished(_content_type(reply), reply.body)
    if 300 <= status < 400:
        return Refused(status, "text/plain", b"a redirect is not followed")
    if 400 <= status < 500 and status not in _AGAIN:
        said = reply.body if len(reply.body) <= MAX_REFUSAL else b""
        return Refused(status, _content_type(reply), said)
    pause = None if seconds is None else max(1, min(seconds, MAX_RETRY_AFTER))
    raise StarterFailed(f"the application answered {status}", retry_after=pause)


def unusable(error: FetchFailed, now: float) -> Answer:
    """
    Return what an answer means whose body cannot be used.

    Raises:
        StarterFailed: There is no answer, or it is one that passes by itself.
    """
    if error.head is None:
        raise StarterFailed(f"the application did not answer: {error}") from None
    answer = answer_of(error.head, now)
    if isinstance(answer, Finished):
        message = "the answer of the application has too many bytes"
        if error.reason != "too-large":
            message = "the answer of the application is compressed, although that was not allowed"
        return Refused(error.head.status, "", b"", type=error.reason, message=message)
    return answer


def retry_after(reply: Reply, now: float) -> int | None:
    """
    Return the seconds that ``Retry-After`` says; None if it says nothing that can be read.

    It is a number, or a date (RFC 9110, 10.2.3).
    """
    value = reply.headers.get(b"retry-after", b"").strip()
    if value.isdigit() and len(value) < 10:
        return int(value)
    try:
        seconds = parsedate_to_datetime(value.decode("ascii")).timestamp() - now
    except (ValueError, OverflowError):
        return None
    return max(0, round(seconds))


def _content_type(reply: Reply) -> str:
    """Return the content type; empty if it is none that an event can have."""
    text = reply.headers.get(b"content-type", b"").decode("utf-8", "replace")
    return text if is_plain(text) else ""
