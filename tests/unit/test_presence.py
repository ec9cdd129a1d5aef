"""Questions to other instances: how many subscribers has an account there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treq.client import HTTPClient
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from asyncplumber.auth.signatures import PeerSigner, Signer, count_target
from asyncplumber.event import Instance
from asyncplumber.relays.presence import PresenceClient
from asyncplumber.relays.questions import MAX_ANSWER, TIMEOUT, Questions

SECRET = b"sixteen bytes or more"
NOW = 1_000_000.0  # seconds since 1970


class OtherInstances(Resource):
    """The other instances, all at one address; they respond as told."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.responses: dict[str, Callable[[Any], Any]] = {}  # by the id of the instance

    def render_GET(self, request: Any) -> Any:
        return self.responses[request.path.decode().split("/")[2]](request)


class PresenceTests(SynchronousTestCase):
    """Each instance has one answer, or none."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.others = OtherInstances()
        self.agent = RequestTraversalAgent(self.others)
        client = HTTPClient(self.agent)
        questions = Questions(client, self.clock, lambda: NOW, PeerSigner(SECRET))
        self.presence = PresenceClient(questions)

    def count(self, *ids: str) -> Deferred[list[int | None]]:
        """Ask these instances for the account ``a/b``."""
        instances = [Instance(id, f"http://here/instances/{id}") for id in ids]
        counted = Deferred.fromCoroutine(self.presence.count(instances, "a/b"))
        for _ in range(3):
            self.agent.flush()
        return counted

    def test_each_instance_is_asked_once_with_a_signature(self) -> None:
        """The signature holds for this account at this instance."""
        asked = []

        def respond(request: Any) -> bytes:
            lines = request.requestHeaders.getAllRawHeaders()
            headers = {name.lower(): values[0] for name, values in lines}
            content = count_target("x", "a/b").encode() + b"\n"
            asked.append((request.uri, Signer(SECRET).verify(headers, content, NOW)))
            return b'{"subscribers": 3}'

        self.others.responses["x"] = respond
        self.assertEqual(self.successResultOf(self.count("x")), [3])
        self.assertEqual(asked, [(b"/instances/x/accounts/a%2Fb", True)])

    def test_an_instance_that_cannot_say_is_none(self) -> None:
        """Another status, or another body; the others count."""

        def gone(request: Any) -> bytes:
            request.setResponseCode(410)
            return b"{}"

        self.others.responses = {
            "x": lambda request: b'{"subscribers": 3}',
            "gone": gone,
            "odd": lambda request: b"hello",
            "list": lambda request: b"[]",
            "long": lambda request: b" " * MAX_ANSWER + b'{"subscribers": 3}',
        }
        counts = self.successResultOf(self.count("gone", "x", "odd", "list", "long"))
        self.assertEqual(counts, [None, 3, None, None, None])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_an_answer_that_takes_too_long_is_none(self) -> None:
        """Also one that stops half-way: headers are no answer."""

        def half(request: Any) -> Any:
            request.setHeader(b"content-length", b"100")
            request.write(b'{"subscr')
            return NOT_DONE_YET

        self.others.responses = {"half": half, "none": lambda request: NOT_DONE_YET}
        counted = self.count("half", "none")
        self.clock.advance(TIMEOUT - 0.1)
        self.assertNoResult(counted)
        self.clock.advance(0.1)
        self.assertEqual(self.successResultOf(counted), [None, None])
