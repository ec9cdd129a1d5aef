"""
Asks the application what a client may do ("forward authentication").

The question is a GET without body, as that of nginx's ``auth_request``.  It has some headers of the
client, by which the application knows its user, and what is wanted, in headers that no client can
set.  If the application cannot be asked, the answer is 503: nothing is allowed that nobody has
allowed.
"""

from __future__ import annotations

import hmac
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import quote_from_bytes
from uuid import uuid4

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.auth.call_out.answer import Allowed, Refused, Unusable, read
from asyncplumber.auth.call_out.table import CallOutTable
from asyncplumber.auth.credentials import check_ambient
from asyncplumber.auth.fetch import BODY_LIMIT, Fetch, FetchFailed
from asyncplumber.concurrency import Semaphore, Waiters
from asyncplumber.errors import PlumberError, Unavailable
from asyncplumber.figures import Gauge, Histogram, LabelledCounter
from asyncplumber.grant import NO_ACCOUNTS, Accounts, Action, Grant
from asyncplumber.interfaces import Facts
from asyncplumber.rate_limited_log import RateLimitedLog

CACHE_SIZE = 10_000  # answers
REFUSED_FOR = 2.0  # seconds that a refusal is remembered
RETRY_AFTER = 2  # seconds, in the response to a client whose question has no answer
LOG_INTERVAL = 1.0  # seconds between two lines about questions without answer

FAILURES = ("timeout", "too-large", "encoded", "connection", "status", "malformed", "full")


class Question(NamedTuple):
    """
    What the application is asked about.

    Attributes:
        action: What the client wants to do; None if it concerns no account.
        method: The method of its request.
        path: The path of its request, without the query, which would be in logs and in no key.
        account: With which account; None if the body names it.
        address: Its address.
        headers: Those of its headers that are sent along.
    """

    action: Action | None
    method: bytes
    path: bytes
    account: str | None
    address: str
    headers: tuple[tuple[bytes, bytes], ...]

    def __repr__(self) -> str:
        # The headers are credentials.
        return f"<Question {self.action} {self.account!r}>"

    def facts(self) -> list[tuple[bytes, bytes]]:
        """Return what we say ourselves about the client."""
        found = [(b"x-original-method", self.method), (b"x-original-uri", self.path)]
        if self.account is not None:
            # The bytes of any text, also of one that has no other form in a header.
            name = quote_from_bytes(self.account.encode(), safe="")
            found.append((b"x-plumber-account", name.encode("ascii")))
        if self.action is not None:
            found.append((b"x-plumber-action", self.action.value.encode("ascii")))
        if self.address:
            found.append((b"x-forwarded-for", self.address.encode("ascii")))
        return found

    @property
    def is_by_cookie(self) -> bool:
        """Whether nothing but a cookie says who the client is."""
        names = [name for name, _ in self.headers]
        return b"cookie" in names and b"authorization" not in names

    @property
    def key(self) -> bytes:
        """
        What an answer is remembered by: all that the application is told.

        It is a hash, so that memory does not hold more credentials than it has to.
        """
        digest = sha256()
        for name, value in (*self.facts(), *self.headers):
            digest.update(b"%d:%b%d:%b" % (len(name), name, len(value), value))
        return digest.digest()


class Asked:
    """
    What an open stream needs so that its client can be asked about again.

    It is part of the grant.  The streams of other grants need no memory for this.
    """

    __slots__ = ("__weakref__", "failing_since", "is_asked", "question", "start", "until")

    def __init__(
        self, question: Question, until: float | None, start: Accounts = NO_ACCOUNTS
    ) -> None:
        self.question = question
        #: The accounts whose tasks its client may start.
        self.start = start
        #: Seconds since 1970 at which the permission ends; None if it does not.
        self.until = until
        #: Since when the application cannot be asked, by the steady clock; None if it can.
        self.failing_since: float | None = None
        #: Whether a question is under way.
        self.is_asked = False


@dataclass(frozen=True, slots=True)
class AskedGrant(Grant):
    """A grant of the application's; `asked` is None where it is not asked again."""

    asked: Asked | None = None


class _Call:
    """A question that is under way or waits, and those who want to know the answer."""

    __slots__ = ("asked", "outcome", "question", "waiters")

    def __init__(self, question: Question, asked: Asked | None) -> None:
        self.question = question
        self.asked = asked  # the stream because of which it is asked, if there is one
        self.waiters = Waiters()
        self.outcome: Outcome | None = None

    def wait(self) -> Deferred[Grant]:
        """Return a Deferred of the answer.  It can be cancelled, and the question goes on."""
        return self.waiters.wait().addCallback(self._result)

    def _result(self, _: None) -> Grant:
        assert self.outcome is not None, "it is there before the waiters are released"
        return result(self.outcome)


Outcome = AskedGrant | Refused | Unavailable


def result(outcome: Outcome) -> Grant:
    """Return the grant, or raise what was answered in its place."""
    if isinstance(outcome, Refused):
        raise outcome.error
    if isinstance(outcome, Unavailable):
        raise Unavailable(outcome.message, retry_after=RETRY_AFTER)
    return outcome


class CallOut:
    """Asks the application, each question once at a time, and remembers the answers for a while."""

    _log = Logger()

    def __init__(
        self, table: CallOutTable, fetch: Fetch, clock: IReactorTime, now: Callable[[], float]
    ) -> None:
        """
        Args:
            table: What is configured.
            fetch: Sends the questions.
            clock: A clock that is never set.
            now: Returns the seconds since 1970, for the end of grants and for signatures.
        """
        self._fetch = fetch
        self._clock = clock
        self._now = now
        self._calls: dict[bytes, _Call] = {}  # by the key of the question
        self._cache: OrderedDict[bytes, tuple[float, Outcome]] = OrderedDict()
        self._failed = RateLimitedLog(self._log, clock.seconds, LOG_INTERVAL)
        #: Called with each grant for a stream that is to be asked about again.
        self.watch: Callable[[Asked], None] = lambda _: None
        self._seconds = Histogram(
            "auth_callout_seconds", "Time that the application took to answer a question."
        )
        self._failures = LabelledCounter(
            "auth_callout_failures_total",
            "Questions to the application without an answer that can be used.",
            "reason",
            FAILURES,
        )
        pending = Gauge(
            "auth_callout_pending",
            "Questions to the application that are under way or wait.",
            lambda: len(self._calls),
        )
        #: What it counts.
        self.metrics = (self._seconds, self._failures, pending)
        self.configure(table)

    def configure(self, table: CallOutTable) -> None:
        """Ask in this way from now on."""
        self.table = table
        self.forwards: Collection[bytes] = frozenset(name.encode("ascii") for name in table.forward)
        self._tokens = Semaphore(table.calls)
        # What is under way is answered to those who wait for it, and to nobody else.
        self._calls = {}
        self._cache.clear()
        if not table.is_private:
            self._log.warn(
                "the application is asked by http:// over a network: whoever can read that sees "
                "the credentials of all users"
            )

    def grant(self, facts: Facts) -> Grant | Deferred[Grant]:
        """
        Return what the application allows, at once if it was asked a moment ago.

        Raises:
            NotAllowed: The application refuses, or a cookie may come from a foreign page.
            Unauthenticated: The application wants a credential, or another one.
            Unavailable: It cannot be asked, or too many questions wait.
        """
        question = self._question(facts)
        key = question.key
        known = self._cache.get(key)
        if known is not None and self._clock.seconds() < known[0]:
            self._cache.move_to_end(key)
            return result(known[1])
        return self._ask(key, question)

    def ask_again(self, asked: Asked) -> Deferred[Grant]:
        """Ask about an open stream, whatever is remembered.  Fails as `grant` does."""
        try:
            return self._ask(asked.question.key, asked.question, asked)
        except PlumberError as error:
            return fail(error)

    def _question(self, facts: Facts) -> Question:
        # A cookie is no permission to publish: a browser attaches it to the requests of any page.
        left_out = () if facts.action is Action.SUBSCRIBE else (b"cookie",)
        headers = tuple(
            (name, facts.headers[name])
            for name in sorted(self.forwards)
            if name in facts.headers and name not in left_out
        )
        if any(name == b"cookie" for name, _ in headers):
            self._check_cookie(facts)
        path = facts.target.partition(b"?")[0]
        return Question(facts.action, facts.method, path, facts.account, facts.address, headers)

    @staticmethod
    def _check_cookie(facts: Facts) -> None:
        """Raise `NotAllowed` if a foreign page may have sent this; no page can add a bearer."""
        if facts.headers.get(b"authorization", b"")[:7].lower() != b"bearer ":
            check_ambient(facts)

    def forget_old(self) -> None:
        """Forget the answers that are too old: streams that have ended are not asked about."""
        now = self._clock.seconds()
        for key in [key for key, (until, _) in self._cache.items() if until <= now]:
            del self._cache[key]

    def _ask(self, key: bytes, question: Question, asked: Asked | None = None) -> Deferred[Grant]:
        call = self._calls.get(key)
        if call is None:
            if len(self._calls) >= self.table.calls + self.table.waiting:
                self._failures.add("full")
                raise Unavailable("too many wait for the application", retry_after=RETRY_AFTER)
            call = self._calls[key] = _Call(question, asked)
            waiting = call.wait()
            tokens = self._tokens
            running = Deferred.fromCoroutine(self._run(key, call, tokens))
            # No ``finally`` in the coroutine: that would also run when a program that has ended is
            # collected as garbage, and resume others that are.
            running.addErrback(self._broke_off).addCallback(self._end, key, call, tokens)
            return waiting
        return call.wait()

    async def _run(self, key: bytes, call: _Call, tokens: Semaphore) -> None:
        await tokens.acquire()
        if len(call.waiters):  # else all of them have left while it waited
            outcome, seconds = await self._exchange(call)
            if self._calls.get(key) is call:
                self._remember(key, outcome, seconds)
            call.outcome = outcome

    def _broke_off(self, failure: Failure) -> None:
        self._log.failure("a question to the application broke off", failure)

    def _end(self, _: None, key: bytes, call: _Call, tokens: Semaphore) -> None:
        if self._calls.get(key) is call:
            del self._calls[key]
        if call.outcome is None:
            call.outcome = Unavailable()
        call.waiters.release()
        tokens.release()

    async def _exchange(self, call: _Call) -> tuple[Outcome, float]:
        """Ask once; return the outcome, and the seconds for which it may be remembered."""
        table = self.table
        began = self._clock.seconds()
        try:
            reply = await self._fetch(
                table.url, self._headers(call.question), timeout=table.timeout, limit=BODY_LIMIT
            )
            answer = read(reply)
        except (FetchFailed, Unusable) as error:
            self._failures.add(error.reason)
            self._failed.warn("the application cannot be asked: {error}", error=str(error))
            outcome = Unavailable("the application cannot be asked", retry_after=RETRY_AFTER)
            return outcome, 0.0
        finally:
            self._seconds.observe(max(0.0, self._clock.seconds() - began))
        stated = reply.max_age()
        if isinstance(answer, Refused):
            return answer, REFUSED_FOR if stated is None else min(REFUSED_FOR, stated)
        return self._granted(call, answer), self._lifetime(answer, stated)

    def _granted(self, call: _Call, answer: Allowed) -> AskedGrant:
        question, asked = call.question, call.asked
        grant = answer.grant(question.action, question.account, self._now())
        if question.is_by_cookie:
            # It counts for subscribing only, and a WebSocket can start tasks as well.
            grant = replace(grant, publish=NO_ACCOUNTS, start=NO_ACCOUNTS)
        if asked is not None and (grant.until is not None or asked.until is not None):
            asked = None  # a stream that begins now may end later
        if asked is None and question.action is Action.SUBSCRIBE:
            asked = Asked(question, grant.until, grant.start)
            self.watch(asked)
        return AskedGrant(
            grant.subject,
            grant.subscribe,
            grant.publish,
            grant.until,
            grant.issued,
            grant.id,
            grant.mechanism,
            start=grant.start,
            asked=asked,
        )

    def _lifetime(self, answer: Allowed, stated: int | None) -> float:
        limits = (self.table.cache, stated, answer.expires_in)
        return min(limit for limit in limits if limit is not None)

    def _remember(self, key: bytes, outcome: Outcome, seconds: float) -> None:
        self._cache.pop(key, None)
        if seconds > 0:
            self._cache[key] = self._clock.seconds() + seconds, outcome
            if len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)

    def _headers(self, question: Question) -> dict[bytes, bytes]:
        """Return all headers of a question: the client's, then ours, which win."""
        id = uuid4().hex.encode("ascii")
        headers = dict(question.headers)
        headers.update(question.facts())
        headers[b"x-request-id"] = id
        if self.table.secret is not None:
            time = b"%d" % self._now()
            headers[b"x-plumber-timestamp"] = time
            headers[b"x-plumber-signature"] = sign(self.table.secret, id, time, question)
        return headers


def sign(secret: bytes, id: bytes, time: bytes, question: Question) -> bytes:
    """
    Return the signature of a question, as Standard Webhooks has it.

    HMAC-SHA256 of ``{id}.{timestamp}.{content}``, in base64 after ``v1,``.  The content is the
    values of the headers ``X-Original-Method``, ``X-Original-URI``, ``X-Plumber-Account``,
    ``X-Plumber-Action`` and ``X-Forwarded-For``, each followed by a line break; a header that is
    not sent counts as empty.
    """
    facts = dict(question.facts())
    names = (
        b"x-original-method",
        b"x-original-uri",
        b"x-plumber-account",
        b"x-plumber-action",
        b"x-forwarded-for",
    )
    content = b"".join(facts.get(name, b"") + b"\n" for name in names)
    return b"v1," + b64encode(hmac.digest(secret, b"%b.%b.%b" % (id, time, content), "sha256"))
