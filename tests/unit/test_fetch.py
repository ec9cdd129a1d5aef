"""What authentication fetches: bounded in time and bytes, and nothing is followed or kept."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any

from treq.testing import RequestTraversalAgent
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseNeverReceived
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from asyncplumber.auth.fetch import Fetcher, FetchFailed, Reply, check_url

URL = "http://issuer.example/keys"


class Issuer(Resource):
    """Responds as told, and remembers the requests."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.respond: Callable[[Any], Any] = lambda _: b"{}"
        self.requests: list[Any] = []

    def render_GET(self, request: Any) -> Any:
        self.requests.append(request)
        return self.respond(request)

    render_POST = render_GET


class FetcherTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.issuer = Issuer()
        self.agent = RequestTraversalAgent(self.issuer)
        self.fetcher = Fetcher(self.agent, self.clock)

    def get(self, limit: int = 100, **headers: str) -> Deferred[Reply]:
        named = {name.encode(): value.encode() for name, value in headers.items()}
        fetched = self.fetcher.get(URL, named, timeout=3, limit=limit)
        for _ in range(3):
            self.agent.flush()
        return fetched

    def failed(self, fetched: Deferred[Reply]) -> str:
        error = self.failureResultOf(fetched, FetchFailed).value
        self.assertTrue(str(error))
        return error.reason

    def test_a_whole_response_is_returned(self) -> None:
        """Status, headers with small names, body."""
        reply = self.successResultOf(self.get(cookie="a=b"))
        self.assertEqual((reply.status, reply.body), (200, b"{}"))
        self.assertEqual(reply.headers[b"content-type"], b"text/html")
        (request,) = self.issuer.requests
        self.assertEqual(request.getHeader("cookie"), "a=b")
        self.assertEqual(request.getHeader("accept-encoding"), "identity")

    def test_a_redirect_is_a_response_like_others(self) -> None:
        """Its target is never asked."""

        def respond(request: Any) -> bytes:
            request.redirect(b"http://elsewhere.example/")
            return b""

        self.issuer.respond = respond
        self.assertEqual(self.successResultOf(self.get()).status, 302)
        self.assertEqual(len(self.issuer.requests), 1)

    def test_a_body_at_the_limit_is_taken_and_one_byte_more_is_not(self) -> None:
        """Whether its length is announced or not."""
        for chunked in (False, True):

            def respond(request: Any, size: int, chunked: bool = chunked) -> Any:
                if not chunked:
                    return b"x" * size
                request.write(b"x" * size)
                request.finish()
                return NOT_DONE_YET

            self.issuer.respond = lambda request: respond(request, 100)
            self.assertEqual(len(self.successResultOf(self.get()).body), 100)
            self.issuer.respond = lambda request: respond(request, 101)
            self.assertEqual(self.failed(self.get()), "too-large")

    def test_a_body_without_end_is_cut_off(self) -> None:
        """Its connection is closed as soon as it is too long."""
        lost: list[Any] = []

        def respond(request: Any) -> Any:
            request.notifyFinish().addErrback(lost.append)
            request.write(b"x" * 101)
            return NOT_DONE_YET

        self.issuer.respond = respond
        self.assertEqual(self.failed(self.get()), "too-large")
        self.agent.flush()
        self.assertEqual(len(lost), 1)

    def test_a_compressed_body_is_refused(self) -> None:
        """Some bytes of gzip can stand for gigabytes."""

        def respond(request: Any) -> bytes:
            request.setHeader("content-encoding", "gzip")
            return gzip.compress(b"0" * 10**6)

        self.issuer.respond = respond
        self.assertEqual(self.failed(self.get(limit=65536)), "encoded")

    def test_a_response_that_is_slow_fails(self) -> None:
        """Both one that does not begin and one that does not end."""
        for begin in (False, True):

            def respond(request: Any, begin: bool = begin) -> Any:
                if begin:
                    request.write(b"{")
                return NOT_DONE_YET

            self.issuer.respond = respond
            fetched = self.get()
            self.clock.advance(2.9)
            self.assertNoResult(fetched)
            self.clock.advance(0.2)
            self.assertEqual(self.failed(fetched), "timeout")

    def test_a_request_can_be_cancelled(self) -> None:
        """No timer is left."""
        self.issuer.respond = lambda _: NOT_DONE_YET
        fetched = self.get()
        fetched.cancel()
        self.failureResultOf(fetched, CancelledError, FetchFailed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_post_on_a_connection_that_was_closed_is_sent_again(self) -> None:
        """Once, and at once: the other side had closed it while it was idle."""
        real, failures = self.agent, [ConnectionDone(), ConnectionDone()]

        class Stale:
            def request(self, *arguments: Any) -> Deferred[Any]:
                if failures:
                    return fail(ResponseNeverReceived([Failure(failures.pop())]))
                return real.request(*arguments)

        self.issuer.respond = lambda request: request.content.read()
        fetcher = Fetcher(Stale(), self.clock)  # type: ignore[arg-type]

        def post() -> Deferred[Reply]:
            fetched = fetcher.post(URL, {}, b"[3,4]", timeout=3)
            for _ in range(3):
                real.flush()
            return fetched

        self.assertEqual(self.failed(post()), "connection")
        failures.append(ConnectionDone())
        self.assertEqual(self.successResultOf(post()).body, b"[3,4]")

    def test_a_cookie_that_is_set_is_not_sent_with_the_next_request(self) -> None:
        """It belongs to the user for whom the first request was."""

        def respond(request: Any) -> bytes:
            request.addCookie("session", "of-somebody", path="/")
            return b""

        self.issuer.respond = respond
        self.successResultOf(self.get())
        self.successResultOf(self.get())
        self.assertIsNone(self.issuer.requests[1].getHeader("cookie"))

    def test_how_long_a_response_may_be_kept(self) -> None:
        """The directives of RFC 9111 that matter here."""
        for text, seconds in (
            ("max-age=60", 60),
            ('public, MAX-AGE="60"', 60),
            ("max-age=60, no-store", 0),
            ("no-cache", 0),
            ("max-age=-1", None),
            ("max-age=99999999999", None),
            ("s-maxage=5", None),
            ("", None),
        ):
            reply = Reply(200, {b"cache-control": text.encode()}, b"")
            self.assertEqual(reply.max_age(), seconds, text)

    def test_urls(self) -> None:
        """Those of loopback addresses are private without TLS."""
        for url, private in (
            ("https://idp.example.com/certs?x=1", True),
            ("http://127.0.0.1:8000/auth", True),
            ("http://[::1]/auth", True),
            ("http://localhost/auth", True),
            ("http://localhost.example/auth", False),
            ("http://10.0.0.1/auth", False),
        ):
            self.assertEqual(check_url(url), (url, private))
        for wrong in (
            "ftp://idp.example.com/",
            "https:///certs",
            "https://user:sesame@idp.example.com/",
            "https://idp.example.com/#x",
            "https://idp.example.com:99999/",
            "https://idp.example.com/ x",
            "https://ïdp.example.com/",
            "https://[::1/",
            7,
            None,
        ):
            error = self.assertRaises(ValueError, check_url, wrong)
            self.assertNotIn("sesame", str(error))
