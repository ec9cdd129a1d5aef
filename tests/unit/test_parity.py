"""The fast path and the full path give the same responses to the same requests."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.static import File

from asyncplumber.testing import ClientResponse, MemoryServer, parse_responses
from harness.mounted import MountedServer, quiet
from tests.unit import examples

_GENERATED = re.compile(
    rb'"id":"[0-9a-f]{20,}(\.\d+)?"|"(cursor|to)": ?"[0-9a-z]+\.|"run": ?"[0-9a-f]{19}"'
)
_OURS = (
    b"content-type",
    b"content-length",
    b"allow",
    b"retry-after",
    b"cache-control",
    b"access-control-allow-origin",
)

Lines = list[tuple[bytes, bytes]]
CLOUD = [(b"ce-specversion", b"1.0"), (b"ce-id", b"1"), (b"ce-source", b"/s"), (b"ce-type", b"t")]
LATER = b"Fri, 01 Jan 2100 00:00:00 GMT"
JSON = (b"Content-Type", b"application/json")


def wire(method: bytes, target: bytes, lines: Lines, body: bytes) -> bytes:
    """A request as it goes over the wire."""
    named = [b"%b: %b" % line for line in lines]
    return b"\r\n".join(
        [
            b"%b %b HTTP/1.1" % (method, target),
            b"Host: localhost",
            *named,
            b"Content-Length: %d" % len(body),
            b"",
            body,
        ]
    )


class BothPaths:
    """Two servers that are alike: one at its own port, one in a site of ``twisted.web``."""

    def __init__(self) -> None:
        self.fast = MemoryServer(body_limit=1000)
        self.full = MountedServer(body_limit=1000)
        self.full.site = quiet(
            # twisted.web would parse forms, and knows fewer content types than we do.
            Site(
                self.full.plumber.resource(),
                reactor=self.full.clock,
                parsePOSTFormSubmission=False,
            )
        )

    def ask(self, method: bytes, target: bytes, lines: Lines, body: bytes) -> tuple[Any, Any]:
        """Return the responses of each, without what is never the same."""
        data, bodies = wire(method, target, lines, body), method != b"HEAD"
        return self._plain(self.fast.exchange(data, bodies)), self._plain(
            self.full.exchange(data, bodies)
        )

    @staticmethod
    def _plain(found: list[ClientResponse]) -> Any:
        return [
            (
                reply.status,
                _GENERATED.sub(b"*", reply.body),
                [reply.headers.get(name) for name in _OURS if name != b"content-length"],
            )
            for reply in found
        ]


class ParityCase(SynchronousTestCase):
    """Status, body, and the headers that are ours."""

    def setUp(self) -> None:
        self.paths = BothPaths()

    def check(
        self, method: bytes, target: bytes, lines: Lines | None = None, body: bytes = b""
    ) -> int:
        """Compare the responses of both paths; return the status."""
        fast, full = self.paths.ask(method, target, lines or [], body)
        self.assertEqual(fast, full, (method, target, lines, body))
        self.assertEqual(len(fast), 1, (method, target, lines, body))
        return int(fast[0][0])


class ParityTests(ParityCase):
    """Chosen requests."""

    def test_good_requests(self) -> None:
        """Of each kind; also one twice."""
        for lines, body in (
            ([], b"done"),
            ([JSON], b'{"a":\n1}'),
            ([(b"Webhook-Id", b"x")], b"1"),
            ([(b"idempotency-key", b"x")], b"1"),
            ([(b"Event-Type", "prögress".encode())], b"1"),
            ([(b"Content-Type", b"application/x-ndjson")], b"1\n2"),
            (CLOUD, b"{}"),
            (CLOUD, b"{}"),
            ([(b"X", b"a"), (b"X", b"b")], b"1"),
            ([], b""),
        ):
            self.assertEqual(self.check(b"POST", b"/hooks/a", lines, body), 202)
        self.assertEqual(
            self.check(b"POST", b"/hooks", [], b'{"keys":{"account_id":"a"},"data":1}'), 202
        )
        for path in (b"/healthz", b"/accounts/a%2Fb", b"/", b"/page.js", b"/readyz"):
            self.assertEqual(self.check(b"GET", path), 200)
            self.assertEqual(self.check(b"HEAD", path), 200)

    def test_subscribers(self) -> None:
        """Long-polls that are answered at once, and requests that are none."""
        for query, status in (
            (b"wait=0", 200),
            (b"wait=0&after=earliest", 200),
            (b"wait=0&after=e.1", 200),
            (b"wait=121", 400),
            (b"wait=%zz", 400),
            (b"after=x", 400),
            (b"last_event_id=%00", 400),
        ):
            self.assertEqual(self.check(b"GET", b"/events/a?" + query), status, query)
        upgrade = [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        self.assertEqual(self.check(b"GET", b"/events/a", upgrade), 426)
        version = [*upgrade, (b"Sec-WebSocket-Version", b"13")]
        self.assertEqual(self.check(b"GET", b"/events/a", version), 400)
        stranger = [(b"Origin", b"https://evil.example")]
        self.assertEqual(self.check(b"GET", b"/events/a?wait=0", stranger), 403)
        for method in (b"POST", b"HEAD", b"DELETE"):
            self.assertEqual(self.check(method, b"/events/a"), 405, method)
        for path in (b"/events/", b"/events/%00", b"/events/a/b"):
            self.assertEqual(self.check(b"GET", path), 400, path)
        self.assertEqual(self.check(b"GET", b"/events"), 404)

    def test_bad_requests(self) -> None:
        """Each refused alike."""
        for status, target, lines, body in (
            (400, b"/hooks/a", [JSON], b"{"),
            (400, b"/hooks/a", [(b"Webhook-Id", b"")], b"1"),
            (400, b"/hooks/a", [(b"Webhook-Id", b"x" * 257)], b"1"),
            (400, b"/hooks/a", [(b"Webhook-Id", b"\xff")], b"1"),
            (400, b"/hooks/a", [(b"Event-Type", b"plumber.open")], b"1"),
            (415, b"/hooks/a", [(b"Content-Type", b"application/cloudevents+xml")], b"1"),
            (413, b"/hooks/a", [], b"x" * 1001),
            (403, b"/hooks/a", [(b"Origin", b"https://evil.example")], b"1"),
            (403, b"/hooks/a", [(b"Origin", b"http://[")], b"1"),
            (404, b"/nope", [], b"1"),
            (404, b"/hooks2/a", [], b"1"),
            (404, b"/%68ooks/a", [], b"1"),
            (405, b"/healthz", [], b"1"),
            (405, b"/accounts/a", [], b"1"),
            (400, b"/hooks", [], b"1"),
            (410, b"/instances/x/hooks/a", [], b"1"),
            (410, b"/instances/x/events", [], b"1"),
        ):
            self.assertEqual(self.check(b"POST", target, lines, body), status, target)
        for method in (b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"):
            self.assertEqual(self.check(method, b"/hooks/a"), 405)

    def test_tasks(self) -> None:
        """Of each kind of request that is answered at once."""
        task = [(b"Task", b"t/1")]
        for status, method, target, lines, body in (
            (404, b"GET", b"/tasks/a/t%2F1", [], b""),
            (404, b"PUT", b"/tasks/a/t%2F1", [], b"1"),
            (202, b"POST", b"/hooks/a", [*task, (b"Task-State", b"queued")], b""),
            (202, b"POST", b"/hooks/a", [*task, (b"Task-State", b"RUNNING"), JSON], b'{"n":1}'),
            (200, b"POST", b"/hooks/a", [*task, (b"Task-State", b"working")], b""),
            (202, b"POST", b"/hooks/a", [*task, (b"Webhook-Id", b"x")], b"<b>"),
            (409, b"POST", b"/hooks/a", [*task, (b"Task-State", b"progress")], b"1"),
            (400, b"POST", b"/hooks/a", [*task, (b"Task-State", b"x")], b""),
            (200, b"GET", b"/tasks/a/t%2F1/result", [], b""),
            (200, b"HEAD", b"/tasks/a/t%2F1/result", [], b""),
            (404, b"PUT", b"/tasks/a/t", [(b"Prefer", b"wait=x, respond-async")], b""),
            (404, b"POST", b"/tasks/a", [(b"Idempotency-Key", b'"k"')], b""),
            (400, b"POST", b"/tasks/a", [(b"Idempotency-Key", b"\xff")], b""),
            (409, b"POST", b"/tasks/a/t%2F1/cancel", [], b""),
            (405, b"DELETE", b"/tasks/a/t", [], b""),
            (200, b"OPTIONS", b"/tasks/a/t", [], b""),
            (413, b"PUT", b"/tasks/a/t", [], b"x" * 1001),
            (403, b"PUT", b"/tasks/a/t", [(b"Origin", b"https://evil.example")], b"1"),
            (400, b"GET", b"/tasks/a/t?wait=x", [], b""),
            (400, b"POST", b"/hooks/a", [*task, (b"Task-Deadline", b"nan")], b"1"),
        ):
            self.assertEqual(self.check(method, target, lines, body), status, (method, target))

    def test_a_path_that_begins_with_two_slashes_is_not_found(self) -> None:
        """It is none of ours: a proxy's rule for ``/metrics`` may not be one for ``//metrics``."""
        paths = [
            b"/",
            b"/metrics",
            b"/healthz",
            b"/hooks/a",
            b"/events/a?wait=0",
            b"/accounts/a",
            b"/page.js",
        ]
        paths += [b"/instances/x/events", b"/instances/x/hooks/a", b"/instances/x/accounts/a"]
        for path in paths:
            for slashes in (b"/", b"//"):
                for method, body in ((b"GET", b""), (b"POST", b"1")):
                    self.assertEqual(self.check(method, slashes + path, [], body), 404, path)
        self.assertEqual(
            self.paths.fast.exchange(
                b"GET http://localhost//metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
            )[0].status,
            404,
        )

    def test_odd_accounts(self) -> None:
        """Also those that are none."""
        odd = [
            b"",
            b"%00",
            b"%ff",
            b"a/b",
            b"/",
            b"//",
            b"a/",
            b"%2F",
            b"..",
            b".",
            b"a%2F..%2Fb",
            b"%",
            b"%zz",
            b"a;b",
            b"x" * 257,
        ]
        for account in [*odd, b"a?x=/hooks/b"]:
            self.check(b"POST", b"/hooks/" + account, [], b"1")
            self.check(b"GET", b"/accounts/" + account)
            self.check(b"GET", b"/tasks/" + account)
            self.check(b"PUT", b"/tasks/a/" + account, [], b"1")
            self.check(b"GET", b"/tasks/" + account + b"/result")

    def test_odd_bytes(self) -> None:
        """In headers; each is 400 on both paths."""
        for byte in (b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e", b"\x85"):
            self.assertEqual(
                self.check(b"POST", b"/hooks/a", [(b"X", b"a" + byte + b"b")], b"1"), 400, byte
            )
            # In the path, twisted.web refuses it before any route is asked, in fewer words.
            fast, full = self.paths.ask(b"POST", b"/hooks/a" + byte, [], b"1")
            self.assertEqual([reply[0] for reply in (*fast, *full)], [400, 400], byte)


_names = some.sampled_from(
    b"Content-Type Webhook-Id Idempotency-Key Event-Type X ce-specversion ce-id ce-source "
    b"ce-type Task Task-State Task-Run Task-Deadline".split()
)
_values = some.one_of(
    some.sampled_from(
        [
            b"application/json",
            b"text/plain",
            b"text/plain; charset=utf-16",
            b"application/x-ndjson",
            b"1.0",
            b"",
            b"a,b",
            b"running",
            b"completed",
            b"60",
        ]
    ),
    some.binary(max_size=20).filter(lambda value: not re.search(rb"[\x00\r\n]", value)),
    some.text(max_size=20)
    .map(str.encode)
    .filter(lambda value: not re.search(rb"[\x00\r\n]", value)),
)
_bodies = some.one_of(
    some.binary(max_size=60),
    some.recursive(some.none() | some.integers() | some.text(), some.lists, max_leaves=5)
    .map(json.dumps)
    .map(str.encode),
    some.sampled_from(
        [b"1\n2\n", b"{", b"[]", b'{"specversion":"1.0","id":"1","source":"s","type":"t","data":1}']
    ),
)
_segments = some.text("ab0%/F2.é\x00", max_size=8).map(lambda text: text.encode("latin-1"))


class GeneratedParityTests(ParityCase):
    """Generated requests."""

    @settings(
        max_examples=examples(300),
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(some.lists(some.tuples(_names, _values), max_size=4), _bodies)
    def test_headers_and_bodies(self, lines: Lines, body: bytes) -> None:
        """Whatever they are, both paths agree."""
        self.check(b"POST", b"/hooks/a", lines, body)

    @settings(
        max_examples=examples(200),
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(_segments)
    def test_segments(self, segment: bytes) -> None:
        """Whatever the account is called."""
        if b"\xe9" not in segment and b"\x00" not in segment:
            self.check(b"POST", b"/hooks/" + segment, [], b"1")
            self.check(b"GET", b"/tasks/a/" + segment)
            self.check(b"PUT", b"/tasks/" + segment, [], b"1")


class StreamedParityTests(TestCase):
    """A resource whose response is streamed is served by `RequestChannel` as by twisted.web."""

    SIZE = 700_000  # bytes: many pieces of ``static.File``

    def setUp(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        self.data = os.urandom(self.SIZE)
        (folder / "file.bin").write_bytes(self.data)
        (folder / "empty").write_bytes(b"")
        root = Resource()
        root.putChild(b"files", File(str(folder)))
        self.ours, self.theirs = MemoryServer(), MountedServer()
        self.ours.listener.site = quiet(Site(root, reactor=self.ours.clock))
        self.theirs.site = quiet(Site(root, reactor=self.theirs.clock))

    async def response(self, server: MemoryServer, data: bytes, bodies: bool) -> ClientResponse:
        """Return the response to a request; twisted.web pulls by the real reactor."""
        client = server.connect()
        client.send(data)
        heard = b""
        for _ in range(1000):
            heard += client.received()
            # trial takes a `suppress` in this module for its own.
            with contextlib.suppress(ValueError, IndexError):
                return parse_responses(heard, bodies)[0]
            await deferLater(reactor, 0, server.settle)  # type: ignore[arg-type]
        raise AssertionError("the response does not end")

    async def test_files(self) -> None:
        """Whole, in ranges, for HEAD, unchanged since, listed, and not there."""
        for method, path, lines in (
            (b"GET", b"/files/file.bin", []),
            (b"HEAD", b"/files/file.bin", []),
            (b"GET", b"/files/empty", []),
            (b"GET", b"/files/file.bin", [(b"Range", b"bytes=10-300009")]),
            (b"GET", b"/files/file.bin", [(b"Range", b"bytes=-5")]),
            (b"GET", b"/files/file.bin", [(b"Range", b"bytes=9999999-")]),
            (
                b"GET",
                b"/files/file.bin",
                [(b"If-Modified-Since", LATER)],
            ),
            (b"GET", b"/files", []),
            (b"GET", b"/files/", []),
            (b"GET", b"/files/none", []),
            (b"POST", b"/files/file.bin", []),
        ):
            data = wire(method, path, lines, b"")
            found = []
            for server in (self.ours, self.theirs):
                reply = await self.response(server, data, method != b"HEAD")
                kept = reply.headers.keys() - {b"server", b"date"}
                headers = {name: reply.headers[name] for name in kept}
                found.append((reply.status, headers, reply.body))
            self.assertEqual(found[0], found[1], (method, path, lines))
        self.assertEqual(self.ours.request("GET", "/files/file.bin").body, self.data)
