"""What is counted and logged of requests, on both ways in."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

import asyncplumber
from asyncplumber.auth.reasons import Reason
from asyncplumber.errors import InvalidToken, PlumberError, Unauthenticated
from asyncplumber.grant import OPEN, Grant
from asyncplumber.http.request_log import CODES, REASONS
from asyncplumber.interfaces import Facts, IAuthority
from asyncplumber.rate_limited_log import INTERVAL
from asyncplumber.testing import MemoryServer
from harness.frames import close_code, handshake_request, server_frames
from harness.mounted import MountedServer
from tests.subscribers import ServerCase

NOTES = ("asyncplumber.http.request_log.RequestLog", "asyncplumber.requests")


@implementer(IAuthority)
class OneToken:
    """Knows the token ``good``."""

    def grant(self, facts: Facts) -> Grant:
        given = facts.headers.get(b"authorization")
        if given is None:
            raise Unauthenticated
        if given != b"Bearer good":
            raise InvalidToken(Reason.SIGNATURE)
        return OPEN


def subclasses(kind: type[PlumberError]) -> Iterator[Any]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


class ReasonTests(SynchronousTestCase):
    """The list of reasons."""

    def test_it_has_the_code_of_each_error(self) -> None:
        """A reason that is not on it would be counted as another one."""
        for module in pkgutil.walk_packages(asyncplumber.__path__, "asyncplumber."):
            if not module.name.startswith(("asyncplumber.integrations", "asyncplumber.__main__")):
                import_module(module.name)
        ours = [each for each in subclasses(PlumberError) if each.__module__[:5] == "async"]
        self.assertEqual(sorted({each.code for each in [PlumberError, *ours]}), list(CODES))
        named = {each.__dict__["reason"] for each in ours if "reason" in each.__dict__}
        self.assertEqual(named - set(REASONS), set())

    def test_it_has_what_can_be_wrong_with_a_credential(self) -> None:
        """In the words of the log."""
        self.assertEqual({str(reason) for reason in Reason} - set(REASONS), set())


class RequestLogCase(ServerCase, SynchronousTestCase):
    """A server that wants a token."""

    plumber: dict[str, Any] = {}

    def setUp(self) -> None:
        options = {"authority": OneToken(), **self.plumber}
        self.server = self.make_server(plumber=options)
        self.events: list[Any] = []

    @contextmanager
    def logged(self) -> Iterator[list[str]]:
        """Collect the lines about requests."""
        lines: list[str] = []
        with capturedLogs() as events:
            yield lines
        self.events = [event for event in events if event["log_namespace"] in NOTES]
        lines += [formatEvent(event) for event in self.events]

    def refusals(self) -> dict[str, float]:
        figure = self.server.plumber.figures.collect()["refused_total"]
        found = zip(figure.series, figure.numbers, strict=True)
        return {reason: number for (reason,), number in found if number}


class RequestLogTests(RequestLogCase):
    """Of our own port."""

    def test_a_refusal_is_counted_and_logged_with_its_reason(self) -> None:
        """The reason is more than what the client is told."""
        with self.logged() as lines:
            reply = self.server.post("a", b"1", ("Authorization", "Bearer bad-secret"))
        self.assertEqual(reply.status, 401)
        self.assertNotIn(b"signature", reply.body)
        self.assertEqual(lines, ["POST /hooks/a from 127.0.0.1 was refused: signature (401)"])
        self.assertEqual(self.refusals(), {"signature": 1})

    def test_what_came_of_credentials_is_counted(self) -> None:
        """By the way in which the client proved itself, where that is known."""
        self.server.post("a", b"1")
        self.server.post("a", b"1", ("Authorization", "Bearer bad"))
        self.server.post("a", b"1", ("Authorization", "Bearer good"))
        figure = self.server.plumber.figures.collect()["auth_total"]
        self.assertEqual(figure.value, 3)
        self.assertEqual(figure.of("none", "refused"), 1)
        self.assertEqual(figure.of("other", "refused"), 1)
        self.assertEqual(figure.of("none", "granted"), 1)  # the grant of this test

    def test_neither_query_nor_header_is_logged(self) -> None:
        """They can have tickets and tokens."""
        with self.logged() as lines:
            self.server.request(
                "GET",
                "/events/a?ticket=secret",
                [("Authorization", "Bearer secret"), ("Cookie", "a=secret")],
            )
        self.assertEqual(len(lines), 1)
        self.assertNotIn("secret", repr(self.events))

    def test_each_reason_has_a_line_of_its_own(self) -> None:
        """What is frequent does not hide what is rare; and all are counted."""
        with self.logged() as lines:
            for _ in range(5):
                self.server.post("a", b"1")
            self.server.post("a", b"1", ("Authorization", "Bearer bad"))
        self.assertEqual(len(lines), 2)
        self.assertEqual(self.refusals(), {"no credential": 5, "signature": 1})
        self.server.advance(INTERVAL)
        with self.logged() as lines:
            self.server.post("a", b"1")
        self.assertIn("(and 4 more like this since the last such line)", lines[0])

    def test_whatever_refuses(self) -> None:
        """The gate, the webhook, the routes, a transport."""
        good = ("Authorization", "Bearer good")
        for expected, method, path, headers in (
            ("misdirected", "GET", "/events/a", [("Host", "evil.example")]),
            ("bad-account", "POST", "/hooks/", [good]),
            ("bad-cursor", "GET", "/events/a?after=-", [good]),
            ("method-not-allowed", "GET", "/hooks/a", [good]),
            ("not-found", "GET", "/nothing", [good]),
            ("bad-request", "GET", "/events/a?wait=x", [good]),
        ):
            lines = [f"{name}: {value}" for name, value in headers]
            if not any(name == "Host" for name, _ in headers):
                lines.append("Host: localhost")
            lines = [f"{method} {path} HTTP/1.1", *lines, "Content-Length: 0"]
            request = "\r\n".join([*lines, "", ""])
            before = self.refusals().get(expected, 0)
            with self.logged() as told:
                self.server.exchange(request.encode())
            self.assertEqual(self.refusals().get(expected, 0), before + 1, expected)
            self.assertEqual(len(told), 1, expected)

    def test_a_websocket_that_is_opened_only_to_be_closed(self) -> None:
        """It is a refusal as well."""
        client = self.server.connect()
        with self.logged() as lines:
            client.send(handshake_request("/events/a", "Origin: http://localhost"))
        _, _, frames = client.received().partition(b"\r\n\r\n")
        [(_, payload)] = server_frames(frames)
        self.assertEqual(close_code(payload), 4401)
        self.assertEqual(self.refusals(), {"no credential": 1})
        self.assertEqual(len(lines), 1)

    def test_others_can_be_told(self) -> None:
        """Such as a page with the last refusals."""
        told: list[tuple[str, bytes, bytes, str]] = []
        self.server.plumber.gate.requests.on_refused.append(
            lambda error, *about: told.append((error.code, *about))
        )
        self.server.post("a", b"1")
        self.assertEqual(told, [("unauthenticated", b"POST", b"/hooks/a", "127.0.0.1")])

    def test_what_is_answered_gets_no_line(self) -> None:
        """Only the metrics count it."""
        with self.logged() as lines:
            self.server.post("a", b"1", ("Authorization", "Bearer good"))
        self.assertEqual(lines, [])
        self.assertEqual(self.refusals(), {})


class MountedRequestLogTests(RequestLogTests):
    """In a site of another application."""

    make_server = MountedServer


class EveryRequestTests(RequestLogCase):
    """``log_requests``: each request has a line."""

    plumber = {"log_requests": True}

    def test_each_request_has_a_line(self) -> None:
        """POSTs, Klein's pages and streams; an error has two lines, its own and this one."""
        good = ("Authorization", "Bearer good")
        with self.logged() as lines:
            self.server.post("a", b"1", good)
            self.server.request("GET", "/healthz")
            self.server.request("GET", "/events/a?after=earliest&wait=0", [good])
            self.server.request("POST", "/hooks/b?ticket=secret", [("Cookie", "secret")], b"1")
        self.assertNotIn("secret", repr(self.events))
        self.assertEqual(
            [" ".join(line.split()[:4]) for line in lines],
            [
                "127.0.0.1 POST /hooks/a 202",
                "127.0.0.1 GET /healthz 200",
                "127.0.0.1 GET /events/a 200",
                "POST /hooks/b from 127.0.0.1",
                "127.0.0.1 POST /hooks/b 401",
            ],
        )
        for event in self.events:
            if "size" in event:
                self.assertGreater(event["size"], 10)
                self.assertEqual(event["ms"], 0.0)

    def test_a_stream_has_a_line_when_it_begins(self) -> None:
        """It may last for days."""
        client = self.server.connect()
        other = self.server.connect()
        with self.logged() as lines:
            client.send(handshake_request("/events/a", "Authorization: Bearer good"))
            other.send(
                b"GET /events/a HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
                b"Authorization: Bearer good\r\n\r\n"
            )
        self.assertEqual(
            lines,
            ["127.0.0.1 GET /events/a 101 0 B 0.0 ms", "127.0.0.1 GET /events/a 200 0 B 0.0 ms"],
        )

    def test_a_head_that_cannot_be_read(self) -> None:
        """There is nothing to tell of it."""
        with self.logged() as lines:
            self.server.exchange(b"nonsense\r\n\r\n")
        self.assertIn("- ", lines[0])
        self.assertTrue(lines[-1].startswith("127.0.0.1 -  400"), lines)


class HistogramTests(SynchronousTestCase):
    """How long things take."""

    def setUp(self) -> None:
        self.server = MemoryServer()

    def count(self, name: str) -> float:
        return self.server.plumber.figures.collect()[name].value

    def test_each_post_and_each_append_is_observed(self) -> None:
        """A delivery only where there is a subscriber, and not again for a duplicate."""
        self.server.post("a", b"1")
        self.assertEqual(
            [self.count(f"{name}_seconds") for name in ("append", "post", "delivery")], [1, 1, 0]
        )
        client = self.server.connect()
        client.send(handshake_request("/events/a"))
        self.server.post("a", b"1", ("Webhook-Id", "x"))
        self.server.post("a", b"1", ("Webhook-Id", "x"))
        self.assertEqual(
            [self.count(f"{name}_seconds") for name in ("append", "post", "delivery")], [3, 3, 1]
        )
