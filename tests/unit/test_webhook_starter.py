"""Tasks that are started by POSTs to the application: what it gets, and what its answer means."""

from __future__ import annotations

import base64
import gzip
import hmac
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, NamedTuple

from treq.testing import RequestTraversalAgent
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from asyncplumber.auth.fetch import Fetcher, FetchFailed, Reply
from asyncplumber.interfaces import (
    Dispatch,
    Finished,
    IStarter,
    IStoppableStarter,
    Later,
    Refused,
    StarterFailed,
)
from asyncplumber.starters.address import CeleryAddress, WebhookAddress, parse_address
from asyncplumber.starters.secrets import MOST_SECRETS, parse_starter_secrets
from asyncplumber.starters.webhook import MAX_RETRY_AFTER, WebhookStarter
from asyncplumber.testing import NOW, MemoryServer

ADDRESS = WebhookAddress("http://127.0.0.1:8000/work?key=sesame", True)
SECRETS = (b"a secret of the application", b"the secret that comes after it")
DISPATCH = Dispatch(
    "user-42",
    "report 7/ü",
    "mf3k9x2a",
    "application/json",
    b"[3,4]",
    "https://p.example/callbacks/Zx8",
)


class Sent(NamedTuple):
    """A POST."""

    url: str
    headers: Mapping[bytes, bytes]
    body: bytes
    timeout: float
    limit: int


class Application:
    """Answers as it is told."""

    def __init__(self) -> None:
        self.posts: list[Sent] = []
        self.answer: Any = Reply(200, {b"content-type": b"application/json"}, b'{"total":7}')

    def post(
        self,
        url: str,
        headers: Mapping[bytes, bytes],
        body: bytes,
        *,
        timeout: float,
        limit: int = 0,
    ) -> Deferred[Reply]:
        self.posts.append(Sent(url, headers, body, timeout, limit))
        if isinstance(self.answer, Deferred):
            return self.answer
        return fail(self.answer) if isinstance(self.answer, Exception) else succeed(self.answer)


class RequestTests(SynchronousTestCase):
    """What the application gets."""

    def setUp(self) -> None:
        self.application = Application()
        self.starter = self.made()

    def made(self, **options: Any) -> WebhookStarter:
        return WebhookStarter(ADDRESS, self.application.post, Clock(), lambda: NOW, **options)

    def test_it_is_a_starter_that_can_be_stopped(self) -> None:
        """By its interface, which the core looks at."""
        self.assertTrue(IStarter.providedBy(self.starter))
        self.assertTrue(IStoppableStarter.providedBy(self.starter))

    def test_the_input_goes_along_as_it_is(self) -> None:
        """With who it is for, in headers that any text can be in."""
        self.successResultOf(self.starter.start(DISPATCH))
        [sent] = self.application.posts
        self.assertEqual((sent.url, sent.body), (ADDRESS.url, b"[3,4]"))
        self.assertEqual((sent.timeout, sent.limit), (10.0, 1024 * 1024))
        self.assertEqual(
            sent.headers,
            {
                b"content-type": b"application/json",
                b"event-type": b"task.start",
                b"idempotency-key": b'"mf3k9x2a"',
                b"plumber-account": b"user-42",
                b"plumber-callback": b"https://p.example/callbacks/Zx8",
                b"plumber-run": b"mf3k9x2a",
                b"plumber-task": b"report%207%2F%C3%BC",
                b"prefer": b"respond-async, wait=10",
                b"user-agent": b"asyncplumber",
            },
        )

    def test_what_is_not_there_has_no_header(self) -> None:
        """No input, and an instance without callback URLs."""
        dispatch = Dispatch("a", "t", "r", "", b"")
        self.successResultOf(self.starter.start(dispatch))
        headers = self.application.posts[0].headers
        self.assertEqual({b"content-type", b"plumber-callback"} & headers.keys(), set())

    def test_a_signature_as_standard_webhooks_has_it(self) -> None:
        """One for each secret, so that the application can change its own at any time."""
        self.starter = self.made(secrets=SECRETS)
        self.successResultOf(self.starter.start(DISPATCH))
        headers = self.application.posts[0].headers
        self.assertEqual(headers[b"webhook-id"], b"mf3k9x2a")
        self.assertEqual(headers[b"webhook-timestamp"], b"%d" % NOW)
        content = b"mf3k9x2a.%d.[3,4]" % NOW
        expected = [
            "v1," + base64.b64encode(hmac.digest(secret, content, "sha256")).decode()
            for secret in SECRETS
        ]
        self.assertEqual(headers[b"webhook-signature"].decode().split(), expected)

    def test_cancel_is_a_post_with_an_id_of_its_own(self) -> None:
        """Who drops repeated webhooks by their id must not drop it."""
        self.starter = self.made(secrets=SECRETS[:1])
        self.successResultOf(self.starter.cancel("user-42", "report", "mf3k9x2a"))
        [sent] = self.application.posts
        self.assertEqual(
            json.loads(sent.body), {"account": "user-42", "task": "report", "run": "mf3k9x2a"}
        )
        self.assertEqual(sent.headers[b"event-type"], b"task.cancel")
        self.assertEqual(sent.headers[b"plumber-run"], b"mf3k9x2a")
        self.assertEqual(sent.headers[b"webhook-id"], b"mf3k9x2a.cancel")
        self.assertEqual(sent.headers[b"idempotency-key"], b'"mf3k9x2a.cancel"')

    def test_cancel_never_fails_and_is_not_waited_for(self) -> None:
        """Whatever the application says to it; what it did not hear is logged, without its URL."""
        for answer in (Deferred(), FetchFailed("timeout", "no answer"), Reply(500, {}, b"")):
            self.application.answer = answer
            self.starter = self.made()
            self.successResultOf(self.starter.cancel("a", "t", "r"))
        self.successResultOf(self.starter.stop())

    def test_a_stop_gives_up_telling(self) -> None:
        """And closes the connections."""
        closed: list[bool] = []
        starter = self.made(close=lambda: succeed(closed.append(True)))
        canceled: list[Any] = []
        self.application.answer = Deferred(canceled.append)
        starter.cancel("a", "t", "r")
        self.successResultOf(starter.stop())
        self.assertEqual((len(canceled), closed), (1, [True]))

    def test_so_many_at_once_and_no_more(self) -> None:
        """The next one begins when one has its answer, also if that is none."""
        answers: list[Deferred[Reply]] = []

        def post(*_: Any, **__: Any) -> Deferred[Reply]:
            answers.append(Deferred())
            return answers[-1]

        starter = WebhookStarter(ADDRESS, post, Clock(), lambda: NOW, calls=2)
        outcomes = [starter.start(DISPATCH) for _ in range(4)]
        self.assertEqual(len(answers), 2)
        outcomes[0].cancel()
        self.failureResultOf(outcomes[0])
        self.assertEqual(len(answers), 3)
        answers[1].errback(FetchFailed("timeout", "late"))
        self.failureResultOf(outcomes[1], StarterFailed)
        self.assertEqual(len(answers), 4)
        outcomes[2].addErrback(lambda _: None)
        for outcome in outcomes[2:]:
            outcome.addErrback(lambda _: None)
            outcome.cancel()

    def test_a_warning_where_others_can_read(self) -> None:
        """Input and callback URLs are secrets."""
        events: list[Any] = []
        observer: ILogObserver = events.append  # type: ignore[assignment]
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        address = WebhookAddress("http://10.0.0.7/?key=sesame", False)
        WebhookStarter(address, self.application.post, Clock(), lambda: NOW)
        self.assertIn("over a network", events[-1]["log_format"])
        self.assertNotIn("sesame", repr(address))


class AnswerTests(SynchronousTestCase):
    """What an answer means."""

    def setUp(self) -> None:
        self.application = Application()
        self.starter = WebhookStarter(ADDRESS, self.application.post, Clock(), lambda: NOW)

    def answered(self, answer: Any) -> Any:
        self.application.answer = answer
        return self.successResultOf(self.starter.start(DISPATCH))

    def failed(self, answer: Any) -> StarterFailed:
        self.application.answer = answer
        error = self.failureResultOf(self.starter.start(DISPATCH), StarterFailed).value
        assert isinstance(error, StarterFailed)
        return error

    def test_the_result(self) -> None:
        """2xx but 202; no body is the JSON value null."""
        kind = {b"content-type": b"text/csv; charset=utf-8"}
        for status in (200, 201, 203):
            self.assertEqual(
                self.answered(Reply(status, kind, b"a,b")),
                Finished("text/csv; charset=utf-8", b"a,b"),
            )
        for reply in (Reply(204, {}, b""), Reply(200, kind, b"")):
            self.assertEqual(self.answered(reply), Finished("application/json", b"null"))
        self.assertEqual(self.answered(Reply(200, {}, b"x")), Finished("", b"x"))
        odd = {b"content-type": b"text/\x00plain"}
        self.assertEqual(self.answered(Reply(200, odd, b"x")), Finished("", b"x"))

    def test_later(self) -> None:
        """202, whatever is in its body; Retry-After is the time until the first report."""
        self.assertEqual(self.answered(Reply(202, {}, b"got ya")), Later(None))
        soon = format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True)
        past = format_datetime(datetime.fromtimestamp(NOW - 90, UTC), usegmt=True)
        for text, seconds in (
            ("120", 120.0),
            (soon, 90.0),
            ("0", None),  # not 0, which would be no deadline at all
            (past, None),
            ("soon", None),
            ("-5", None),
            ("1.5", None),
            ("9" * 9, 30 * 86400.0),
            ("9" * 4000, None),
        ):
            reply = Reply(202, {b"retry-after": text.encode()}, b"")
            self.assertEqual(self.answered(reply), Later(seconds), text[:20])

    def test_refused(self) -> None:
        """4xx is said by the application, and 3xx by us: no redirect is followed."""
        kind = {b"content-type": b"application/json"}
        for status in (400, 401, 403, 404, 405, 409, 413, 415, 422, 451):
            self.assertEqual(
                self.answered(Reply(status, kind, b'{"a":1}')),
                Refused(status, "application/json", b'{"a":1}'),
            )
        for status in (300, 301, 302, 303, 307, 308):
            reply = Reply(status, {b"location": b"http://169.254.169.254/"}, b"elsewhere")
            found = self.answered(reply)
            self.assertEqual((found.status, found.type), (status, "refused"))
            self.assertNotIn(b"169", found.body)
        self.assertEqual(len({post.url for post in self.application.posts}), 1)

    def test_again(self) -> None:
        """What passes by itself, and no answer at all; a pause is bounded on both sides."""
        for status in (408, 425, 429, 500, 502, 503, 504, 599, 101):
            self.assertIn(str(status), str(self.failed(Reply(status, {}, b""))))
        self.assertIsNone(self.failed(Reply(503, {}, b"")).retry_after)
        for text, seconds in (("7", 7), ("0", 1), ("86400", MAX_RETRY_AFTER)):
            reply = Reply(503, {b"retry-after": text.encode()}, b"")
            self.assertEqual(self.failed(reply).retry_after, seconds)
        self.failed(FetchFailed("timeout", "no whole response within 10 s"))
        self.failed(FetchFailed("connection", "ConnectionRefusedError: refused"))

    def test_a_body_that_is_of_no_use(self) -> None:
        """What the status says holds; a result that cannot be read has failed, and says why."""
        for reason in ("too-large", "encoded"):
            found = self.answered(FetchFailed(reason, "…", Reply(200, {}, b"")))
            self.assertEqual((found.type, type(found)), (reason, Refused))
            self.assertTrue(found.message)
            found = self.answered(FetchFailed(reason, "…", Reply(404, {}, b"")))
            self.assertEqual((found.status, found.type), (404, "refused"))
            self.assertEqual(self.answered(FetchFailed(reason, "…", Reply(202, {}, b""))), Later())
            self.failed(FetchFailed(reason, "…", Reply(503, {}, b"")))


class EndTests(SynchronousTestCase):
    """Each answer ends the run, or leaves it to a report; no body can keep it from that."""

    def setUp(self) -> None:
        self.application = Application()
        starter = WebhookStarter(ADDRESS, self.application.post, Clock(), lambda: NOW)
        self.server = MemoryServer(plumber={"starter": starter})

    def ended(self, answer: Any) -> Any:
        """Return what a client that waits gets."""
        self.application.answer = answer
        plumber = self.server.plumber
        found = Deferred.fromCoroutine(plumber.start_task("42", "t", {"a": 1}, wait=10))
        self.server.settle()
        return self.successResultOf(found)

    def test_a_result(self) -> None:
        """JSON, text and bytes."""
        kind = {b"content-type": b"application/json"}
        for headers, body, expected in (
            (kind, b'{"total": 7}', {"total": 7}),
            ({b"content-type": b"text/plain"}, b"7", "7"),
            ({b"content-type": b"image/png"}, b"\x89PNG", b"\x89PNG"),
            ({}, b"", None),
        ):
            self.assertEqual(self.ended(Reply(200, headers, body)).data, expected)
            self.assertEqual(len({post.headers[b"plumber-run"] for post in self.sent()}), 1)

    def sent(self) -> list[Sent]:
        """Return what was POSTed since the last call."""
        posts, self.application.posts = self.application.posts, []
        return posts

    def test_a_result_that_is_not_what_it_says(self) -> None:
        """It fails once, and is not asked for again."""
        kind = {b"content-type": b"application/json"}
        for body in (b"{", b"NaN", b"[" * 100_000, b"\xff"):
            found = self.ended(Reply(200, kind, body))
            self.assertEqual((found.task.state.value, found.error["type"]), ("failed", "malformed"))
            self.assertEqual(len(self.sent()), 1)

    def test_a_refusal_says_what_the_application_says(self) -> None:
        """As far as that can be said, and is not too long."""
        for body, expected in (
            (b'{"why": ["no"]}', {"why": ["no"]}),
            (b" no such month\n", "no such month"),
            (b"NaN", "NaN"),
            (b"\xff", "\ufffd"),
            (b"[" * 4096, "[" * 4096),
            (b"x" * 4097, ...),
            (b"", ...),
            (b"null", None),
        ):
            found = self.ended(Reply(422, {}, body))
            self.assertEqual(found.error["status"], 422, body[:9])
            self.assertEqual(found.error.get("answer", ...), expected)
            self.assertEqual(len(self.sent()), 1)


class Work(Resource):
    """The application's endpoint."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.respond: Callable[[Any], Any] = lambda _: b"{}"
        self.requests: list[Any] = []

    def render_POST(self, request: Any) -> Any:
        self.requests.append((request.content.read(), request))
        return self.respond(request)


class FetcherTests(SynchronousTestCase):
    """The starter with the real HTTP client."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.work = Work()
        self.agent = RequestTraversalAgent(self.work)
        fetcher = Fetcher(self.agent, self.clock)
        self.starter = WebhookStarter(
            ADDRESS, fetcher.post, self.clock, lambda: NOW, answer_limit=100, timeout=3
        )

    def start(self) -> Deferred[Any]:
        started = self.starter.start(DISPATCH)
        for _ in range(3):
            self.agent.flush()
        return started

    def test_a_post_and_its_answer(self) -> None:
        """The body arrives as it is, with its length."""

        def respond(request: Any) -> bytes:
            request.setHeader("content-type", "application/json")
            return b'{"total":7}'

        self.work.respond = respond
        self.assertEqual(
            self.successResultOf(self.start()), Finished("application/json", b'{"total":7}')
        )
        [(body, request)] = self.work.requests
        self.assertEqual(body, b"[3,4]")
        self.assertEqual(request.getHeader("content-length"), "5")
        self.assertEqual(request.getHeader("plumber-task"), "report%207%2F%C3%BC")
        self.assertEqual(request.uri, b"/work?key=sesame")

    def test_an_answer_at_the_limit_and_one_byte_more(self) -> None:
        """Whether its length is announced or not."""
        for chunked in (False, True):
            for size in (100, 101):

                def respond(request: Any, size: int = size, chunked: bool = chunked) -> Any:
                    if not chunked:
                        return b"x" * size
                    request.write(b"x" * size)
                    request.finish()
                    return NOT_DONE_YET

                self.work.respond = respond
                found = self.successResultOf(self.start())
                if size == 100:
                    self.assertEqual(len(found.body), 100)
                else:
                    self.assertEqual(found.type, "too-large")

    def test_a_compressed_answer(self) -> None:
        """It could stand for gigabytes."""

        def respond(request: Any) -> bytes:
            request.setHeader("content-encoding", "gzip")
            return gzip.compress(b"0" * 10**5)

        self.work.respond = respond
        self.assertEqual(self.successResultOf(self.start()).type, "encoded")

    def test_no_answer_in_time(self) -> None:
        """It is given up, and may be asked again."""
        self.work.respond = lambda _: NOT_DONE_YET
        started = self.start()
        self.clock.advance(2.9)
        self.assertNoResult(started)
        self.clock.advance(0.2)
        self.failureResultOf(started, StarterFailed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_is_given_up_is_no_failure_of_the_application(self) -> None:
        """Whether there is no answer yet or half of one: else it would be tried again."""

        def half(request: Any) -> int:
            request.write(b"{")
            return NOT_DONE_YET

        for respond in (lambda _: NOT_DONE_YET, half):
            self.work.respond = respond
            started = self.start()
            started.cancel()
            self.failureResultOf(started, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nobody_there(self) -> None:
        """As no answer; the URL is not in the message."""

        class Refusing:
            def request(self, *_: Any) -> Deferred[Any]:
                return fail(ConnectionRefusedError())

        fetcher = Fetcher(Refusing(), self.clock)  # type: ignore[arg-type]
        starter = WebhookStarter(ADDRESS, fetcher.post, self.clock, lambda: NOW)
        error = self.failureResultOf(starter.start(DISPATCH), StarterFailed).value
        self.assertNotIn("sesame", str(error))


class AddressTests(SynchronousTestCase):
    """What ``--starter`` takes."""

    def test_none(self) -> None:
        """Then tasks are only reported."""
        self.assertIsNone(parse_address(""))

    def test_a_url(self) -> None:
        """http and https, as for all that the operator names."""
        for text, is_private in (
            ("http://127.0.0.1:8000/work", True),
            ("https://app.example.com/work?key=1", True),
            ("http://app.internal/", False),
        ):
            self.assertEqual(parse_address(text), WebhookAddress(text, is_private))

    def test_a_task_of_celery(self) -> None:
        """The app as Celery's -A names it, and the task's name."""
        for text, app, task in (
            ("celery:shop#shop.render", "shop", "shop.render"),
            ("celery:shop.celery:app#render-it", "shop.celery:app", "render-it"),
        ):
            found = parse_address(text)
            self.assertEqual(found, CeleryAddress(app, task))
            assert isinstance(found, CeleryAddress)
            self.assertEqual(found.shown, text)

    def test_what_is_neither(self) -> None:
        """A sentence, without what may be a secret."""
        for text in (
            *("ftp://a/", "http://", "http://u:sesame@a/", "http://a/#b", "a", "http://a b/"),
            *("celery:", "celery:a", "celery:#b", "celery:a#", "celery:a/b#c", "celery:a#b c"),
        ):
            error = self.assertRaises(ValueError, parse_address, text)
            self.assertNotIn("sesame", str(error))


class SecretTests(SynchronousTestCase):
    """The file of secrets."""

    GOOD = b"whsec_" + base64.b64encode(SECRETS[0])

    def test_secrets_of_standard_webhooks(self) -> None:
        """One a line."""
        text = b"# since May\n" + self.GOOD + b"\nwhsec_" + base64.b64encode(SECRETS[1]) + b"\n"
        self.assertEqual(parse_starter_secrets(text), SECRETS)

    def test_what_is_refused(self) -> None:
        """Without showing it."""
        for text in (
            b"",
            b"# nothing\n",
            b"sesame, which is long enough to be a secret\n",
            b"whsec_" + base64.b64encode(b"sesame") + b"\n",
            b"whpk_" + base64.b64encode(b"k" * 32) + b"\n",
            self.GOOD + b"\nwhpk_" + base64.b64encode(b"k" * 32),
            (self.GOOD + b"\n") * (MOST_SECRETS + 1),
        ):
            error = self.assertRaises(ValueError, parse_starter_secrets, text)
            self.assertNotIn("sesame", str(error))
        self.assertEqual(len(parse_starter_secrets((self.GOOD + b"\n") * MOST_SECRETS)), 8)
