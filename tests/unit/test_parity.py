"""
Klein's route and the short way are two doors to one room: the same requests have the same answers.
"""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.server import Site

from asyncplumber.testing import MemoryServer, Reply, replies

_GENERATED = re.compile(rb'"id":"[0-9a-f]{20,}(\.\d+)?"|"cursor": ?"[0-9a-z]+\.')
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


class TwoDoors:
    """Two servers that are alike, one behind each door."""

    def __init__(self) -> None:
        self.short = MemoryServer(body_limit=1000)
        self.klein = MemoryServer(body_limit=1000)
        self.site = Site(
            self.klein.plumber.resource(), reactor=self.klein.clock, parsePOSTFormSubmission=False
        )
        self.site.log = lambda request: None  # type: ignore[method-assign]

    def ask(self, method: bytes, target: bytes, lines: Lines, body: bytes) -> tuple[Any, Any]:
        """What each of them answers, without what is never the same."""
        data = wire(method, target, lines, body)
        client = self.short.connect()
        client.say(data)
        channel: Any = self.site.buildProtocol(None)
        transport = StringTransport()
        channel.makeConnection(transport)
        channel.dataReceived(data)
        self.klein.settle()
        bodies = method != b"HEAD"
        answers = (
            self._plain(replies(client.heard(), bodies)),
            self._plain(replies(transport.value(), bodies)),
        )
        client.leave()
        channel.connectionLost(None)
        return answers

    @staticmethod
    def _plain(found: list[Reply]) -> Any:
        return [
            (
                reply.status,
                _GENERATED.sub(b"*", reply.body),
                [reply.headers.get(name) for name in _OURS if name != b"content-length"],
            )
            for reply in found
        ]


class ParityTests(SynchronousTestCase):
    """Status, body, and the headers that are ours."""

    def setUp(self) -> None:
        self.doors = TwoDoors()

    def check(
        self, method: bytes, target: bytes, lines: Lines | None = None, body: bytes = b""
    ) -> int:
        """Both doors say the same.  @return: the status."""
        short, klein = self.doors.ask(method, target, lines or [], body)
        self.assertEqual(short, klein, (method, target, lines, body))
        self.assertEqual(len(short), 1, (method, target, lines, body))
        return int(short[0][0])

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
            self.doors.short.ask(
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

    def test_odd_bytes(self) -> None:
        """In headers; each is 400 by either door."""
        for byte in (b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e", b"\x85"):
            self.assertEqual(
                self.check(b"POST", b"/hooks/a", [(b"X", b"a" + byte + b"b")], b"1"), 400, byte
            )
            # In the path, twisted.web refuses it before any route is asked, in fewer words.
            short, klein = self.doors.ask(b"POST", b"/hooks/a" + byte, [], b"1")
            self.assertEqual([reply[0] for reply in (*short, *klein)], [400, 400], byte)


_names = some.sampled_from(
    b"Content-Type Webhook-Id Idempotency-Key Event-Type X ce-specversion ce-id ce-source ce-type".split()
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


class GeneratedParityTests(ParityTests):
    """Requests that nobody thought of."""

    @settings(
        max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(some.lists(some.tuples(_names, _values), max_size=4), _bodies)
    def test_headers_and_bodies(self, lines: Lines, body: bytes) -> None:
        """Whatever they are, the doors agree."""
        self.check(b"POST", b"/hooks/a", lines, body)

    @settings(
        max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(_segments)
    def test_segments(self, segment: bytes) -> None:
        """Whatever the account is called."""
        if b"\xe9" not in segment and b"\x00" not in segment:
            self.check(b"POST", b"/hooks/" + segment, [], b"1")
