"""Pages of other origins may do nothing, unless they were named."""

from __future__ import annotations

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.rate_limited_log import INTERVAL
from asyncplumber.testing import ClientResponse, MemoryServer
from harness.http_text import error_code, post


class OriginTests(SynchronousTestCase):
    """Pages of other origins may do nothing, unless they were named."""

    def setUp(self) -> None:
        self.server = MemoryServer(plumber={"origins": ["https://app.example"]})

    def asked(
        self, method: str, path: str, origin: str, *headers: tuple[str, str]
    ) -> ClientResponse:
        """The answer to a page of this origin."""
        return self.server.request(
            method, path, [("Origin", origin), *headers], b"1" if method == "POST" else b""
        )

    def test_strangers_are_refused(self) -> None:
        """For POSTs and for each transport, also with an Origin that is empty or malformed."""
        socket_words = (("Connection", "Upgrade"), ("Upgrade", "websocket"))
        for origin in (
            "https://evil.example",
            "null",
            "",
            "http://[",
            "https://app.example.evil",
            "http://localhost.evil",
        ):
            for reply in (
                self.asked("POST", "/hooks/a", origin),
                self.asked("POST", "/hooks", origin),
                self.asked("GET", "/events/a?wait=0", origin),
                self.asked("GET", "/events/a", origin, ("Accept", "text/event-stream")),
                self.asked("GET", "/events/a", origin, *socket_words),
                self.asked(
                    "OPTIONS", "/hooks/a", origin, ("Access-Control-Request-Method", "POST")
                ),
            ):
                self.assertEqual(error_code(reply), (403, "forbidden"), origin)
                self.assertNotIn(b"access-control-allow-origin", reply.headers)
        self.assertEqual(self.server.plumber.intake.accepted, 0)

    def test_an_empty_origin_is_not_our_own(self) -> None:
        """Also where Host is empty or absent."""
        null = post(b"1", b"/hooks/a", b"Origin: null")
        absent = null.replace(b"Host: localhost\r\n", b"").replace(b"HTTP/1.1", b"HTTP/1.0")
        self.assertEqual(error_code(self.server.exchange(absent)[0]), (403, "forbidden"))
        empty = null.replace(b"Host: localhost", b"Host: ")
        self.assertEqual(error_code(self.server.exchange(empty)[0]), (400, "bad-request"))

    def test_our_own_pages_are_served(self) -> None:
        """
        The Origin is the Host, by whatever scheme a proxy in front speaks; no further headers are
        needed.
        """
        for origin in ("http://localhost", "https://LOCALHOST"):
            reply = self.asked("POST", "/hooks/a", origin)
            self.assertEqual(reply.status, 202)
            self.assertNotIn(b"access-control-allow-origin", reply.headers)
            self.assertEqual(self.asked("GET", "/events/a?wait=0", origin).status, 200)

    def test_named_origins_can_read_the_responses(self) -> None:
        """Also errors, and also on the full path."""
        for reply in (
            self.asked("POST", "/hooks/a", "https://app.example"),
            self.asked("POST", "/hooks", "https://app.example"),
            self.asked("POST", "/hooks/%00", "https://app.example"),
            self.asked("GET", "/events/a?wait=0", "https://app.example"),
            self.asked("GET", "/events/a?after=x", "https://app.example"),
            self.asked("GET", "/accounts/a", "https://app.example"),
        ):
            self.assertEqual(reply.headers[b"access-control-allow-origin"], b"https://app.example")
            self.assertIn(b"Origin", reply.headers[b"vary"])

    def test_named_origins_get_their_preflight(self) -> None:
        """A preflight, for a POST of JSON and for a GET that resumes."""
        for path, method, names in (
            ("/hooks/a", "POST", "content-type,webhook-id"),
            ("/events/a", "GET", "last-event-id"),
        ):
            words = (
                ("Access-Control-Request-Method", method),
                ("Access-Control-Request-Headers", names),
            )
            reply = self.asked("OPTIONS", path, "https://app.example", *words)
            self.assertEqual((reply.status, reply.body), (200, b""))
            self.assertEqual(reply.headers[b"access-control-allow-headers"], names.encode())
            self.assertIn(method.encode(), reply.headers[b"access-control-allow-methods"])

    def credentials(self, origin: str) -> set[bytes | None]:
        """
        What the answers say of credentials: to a POST, the polls and streams, a preflight, the long
        way, and errors.
        """
        preflight = ("Access-Control-Request-Method", "POST")
        stream = self.server.connect()
        words = f"Host: localhost\r\nAccept: text/event-stream\r\nOrigin: {origin}"
        stream.send(f"GET /events/a HTTP/1.1\r\n{words}\r\n\r\n".encode())
        head = stream.received().partition(b"\r\n\r\n")[0]
        found = {
            reply.headers.get(b"access-control-allow-credentials")
            for reply in (
                self.asked("POST", "/hooks/a", origin),
                self.asked("POST", "/hooks/%00", origin),
                self.asked("GET", "/events/a?wait=0", origin),
                self.asked("OPTIONS", "/events/a", origin, preflight),
                self.asked("GET", "/accounts/a", origin),
            )
        }
        return found | {b"true" if b"\r\nAccess-Control-Allow-Credentials: true" in head else None}

    def test_a_star_allows_all_origins_without_credentials(self) -> None:
        """
        Each is named in its answer, and none may send cookies: that would let every page act as its
        reader.
        """
        self.server = MemoryServer(plumber={"origins": ["*"]})
        for origin in ("https://app.example", "chrome-extension://abc"):
            reply = self.asked("POST", "/hooks/a", origin)
            self.assertEqual(reply.headers[b"access-control-allow-origin"], origin.encode())
            self.assertEqual(self.credentials(origin), {None})

    def test_a_star_does_not_allow_null(self) -> None:
        """Every page that hides its origin sends it."""
        self.server = MemoryServer(plumber={"origins": ["*"]})
        for origin in ("null", ""):
            self.assertEqual(
                error_code(self.asked("POST", "/hooks/a", origin)), (403, "forbidden"), origin
            )

    def test_named_origins_may_send_cookies(self) -> None:
        """Also beside a star, which alone allows no cookies."""
        self.assertEqual(self.credentials("https://app.example"), {b"true"})
        self.server = MemoryServer(
            plumber={"origins": ["*", "https://app.example", "https://*.example.com"]}
        )
        self.assertEqual(self.credentials("https://app.example"), {b"true"})
        self.assertEqual(self.credentials("https://a.example.com"), {b"true"})
        self.assertEqual(self.credentials("https://other.example"), {None})

    def test_a_refused_origin_leaves_a_line_in_the_log(self) -> None:
        """One line in an interval, with the origin and the number of refusals."""
        with capturedLogs() as first:
            for number in range(50):
                self.asked("POST", "/hooks/a", f"https://evil{number}.example")
        (line,) = map(formatEvent, first)
        self.assertIn("'https://evil0.example'", line)
        self.assertIn("--allow-origin", line)
        self.server.advance(INTERVAL)
        with capturedLogs() as second:
            self.asked("GET", "/events/a", "https://" + "x" * 5000)
        (line,) = map(formatEvent, second)
        self.assertIn("49 more", line)
        self.assertLess(len(line), 500)
