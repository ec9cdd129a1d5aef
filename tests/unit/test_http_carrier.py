"""Batches by HTTP, in memory: requests, responses, and signatures that must not pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treq.client import HTTPClient
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionRefusedError
from twisted.python.failure import Failure
from twisted.web.client import ResponseNeverReceived
from twisted.web.iweb import IAgent
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from asyncplumber.auth.signatures import PeerSigner, Signer, batch_target, count_target
from asyncplumber.core.intake import Intake
from asyncplumber.core.relay_receiver import RelayReceiver
from asyncplumber.errors import Unavailable
from asyncplumber.event import Event, Instance
from asyncplumber.http.webhook import Webhook
from asyncplumber.http_bodies import BytesProducer
from asyncplumber.interfaces import InstanceGone, RelayFailed
from asyncplumber.relays.http import HttpCarrier
from asyncplumber.wire import event_batch as batches
from asyncplumber.wire.event_batch import unpack
from harness.core import CoreCase, FaultProxy, event

SECRET = b"sixteen bytes or more"


class OtherInstances(Resource):
    """The other instances, all at one address: notes what is posted, and responds as told."""

    isLeaf = True

    def __init__(self, respond: Callable[[Any, bytes], Any]) -> None:
        super().__init__()
        self.respond = respond
        self.posts: list[tuple[str, list[int]]] = []

    def render_POST(self, request: Any) -> Any:
        body = request.content.read()
        instance_id = request.path.decode().split("/")[2]
        seqs = [each.seq for each in unpack(body)] if body else []
        self.posts.append((instance_id, seqs))
        return self.respond(request, body)


@implementer(IAgent)
class FlakyAgent:
    """Fails first, as often as it is told."""

    def __init__(self, agent: RequestTraversalAgent) -> None:
        self.agent = agent
        self.errors: list[Exception] = []
        self.requests = 0

    def request(self, *args: Any) -> Deferred[Any]:
        self.requests += 1
        return fail(self.errors.pop(0)) if self.errors else self.agent.request(*args)


def stale() -> Exception:
    """What a request on a connection fails with that the other side has closed."""
    return ResponseNeverReceived([Failure(ConnectionError("closed meanwhile"))])


class HttpCase(CoreCase):
    """This instance is "me", and the other one "you"."""

    def setUp(self) -> None:
        super().setUp()
        self.others = OtherInstances(lambda request, body: b'{"subscribers": {"a": 2}}')
        self.traversal = RequestTraversalAgent(self.others)
        self.agent = FlakyAgent(self.traversal)
        self.carrier = self.make_carrier()
        self.you = Instance("you", "http://here/instances/you")

    def make_carrier(self, secret: bytes | None = None) -> HttpCarrier:
        """Make a carrier that signs with this secret, or with the one that the store keeps."""
        signer = PeerSigner(secret, self.store)
        self.successResultOf(signer.learn())
        return self.start_carrier(signer)

    def start_carrier(self, signer: PeerSigner, clock_error: float = 0.0) -> HttpCarrier:
        client = HTTPClient(self.agent, data_to_body_producer=BytesProducer)

        def now() -> float:
            return self.clock.seconds() + clock_error

        carrier = HttpCarrier(client, "me", now, signer)
        carrier.start(lambda events: {})
        return carrier

    def carry(self, events: list[Event] | None = None) -> Deferred[dict[str, int]]:
        """Carry a batch, and let it be answered."""
        answer = self.carrier.carry(self.you, [event(1)] if events is None else events)
        for _ in range(3):
            self.traversal.flush()
        return answer


class RequestTests(HttpCase):
    """POSTs, and what comes back."""

    def test_a_batch_is_one_post_and_its_answer_has_the_counts(self) -> None:
        """An empty batch is a POST as well."""
        answer = self.carry([event(1), event(2)])
        self.assertEqual(self.successResultOf(answer), {"a": 2})
        self.successResultOf(self.carry([]))
        self.assertEqual(self.others.posts, [("you", [1, 2]), ("you", [])])

    def test_a_stale_connection_is_tried_once_more(self) -> None:
        """And only once."""
        self.agent.errors = [stale()]
        self.successResultOf(self.carry())
        self.agent.errors = [stale(), stale()]
        self.failureResultOf(self.carry(), RelayFailed)
        self.assertEqual(self.agent.requests, 4)

    def test_a_refused_connection_has_failed(self) -> None:
        """It is not tried again: the relay does that."""
        self.agent.errors = [ConnectionRefusedError()]
        self.failureResultOf(self.carry(), RelayFailed)
        self.assertEqual(self.agent.requests, 1)

    def test_a_post_that_is_cancelled_has_failed(self) -> None:
        """It is not tried a second time."""
        self.others.respond = lambda request, body: NOT_DONE_YET
        answer = self.carry()
        answer.cancel()
        self.failureResultOf(answer, RelayFailed)
        self.assertEqual(self.agent.requests, 1)

    def test_a_response_that_stops_half_way_can_be_cancelled(self) -> None:
        """Headers are no answer."""

        def half(request: Any, body: bytes) -> Any:
            request.setHeader(b"content-length", b"100")
            request.write(b'{"subscr')
            return NOT_DONE_YET

        self.others.respond = half
        answer = self.carry()
        self.assertNoResult(answer)
        answer.cancel()
        self.failureResultOf(answer, RelayFailed)

    def test_any_other_response_has_failed(self) -> None:
        """Other statuses, other bodies, redirections."""
        for status, body in (
            (500, b""),
            (302, b""),
            (200, b"hello"),
            (200, b"[]"),
            (200, b'{"subscribers": {"a": "x"}}'),
        ):
            self.respond_with(status, body)
            self.failureResultOf(self.carry(), RelayFailed)

    def test_another_instance_at_the_address_means_that_it_is_gone(self) -> None:
        """It says 410."""
        self.respond_with(410)
        self.failureResultOf(self.carry(), InstanceGone)

    def respond_with(self, status: int, body: bytes = b"{}") -> None:
        def respond(request: Any, _: bytes) -> bytes:
            request.setResponseCode(status)
            return body

        self.others.respond = respond


class ReceiveTests(HttpCase):
    """Onto the real webhook of another instance."""

    def setUp(self) -> None:
        super().setUp()
        # The headers and the body of each request that the other instance was sent.
        self.requests: list[tuple[dict[bytes, bytes], bytes]] = []

    def start_other(
        self, secret: bytes | None = None, signer: PeerSigner | None = None, id: str = "you"
    ) -> None:
        """Start the other instance, with this secret or the one that the store keeps."""
        if signer is None:
            signer = PeerSigner(secret, self.store)
            self.successResultOf(signer.learn())
        now = self.clock.seconds
        self.other = HttpCarrier(HTTPClient(self.agent), id, now, signer)
        self.stale: list[str] = []
        self.other.start(RelayReceiver(self.hub, self.stale.append).deliver)
        intake = Intake(self.store.append, self.hub, self.clock)
        self.webhook = Webhook(
            intake,
            self.hub,
            now,
            id,
            signer=signer,
            receive=self.other.receive,
            report=lambda report, grant: fail(AssertionError("nobody reports here")),
        )

        def respond(request: Any, body: bytes) -> bytes:
            headers = {
                name.lower(): values[0]
                for name, values in request.requestHeaders.getAllRawHeaders()
            }
            self.requests.append((headers, body))
            request.setResponseCode(self.status(body, headers, request.path.split(b"/")[2]))
            return self.body

        self.others.respond = respond

    def status(self, body: bytes, headers: dict[bytes, bytes], id: bytes = b"you") -> int:
        """Return the status of the response to this POST of a batch."""
        response = self.successResultOf(self.webhook.take_event_batch(id, headers, body))
        self.body = bytes(response.body)
        status: int = response.status
        return status

    def sign(self, secret: bytes | None, target: str, body: bytes = b"") -> dict[bytes, bytes]:
        headers: dict[bytes, bytes] = self.successResultOf(
            PeerSigner(secret, self.store).sign(target, self.clock.seconds(), body)
        )
        return headers

    def test_events_reach_subscribers_who_are_counted(self) -> None:
        """Hooks for accounts that nobody there wants are stale."""
        self.start_other()
        subscriber = self.subscribed()
        answer = self.carry([*self.keep(2), *self.keep(1, "b")])
        self.assertEqual(self.successResultOf(answer), {"a": 1, "b": 0})
        self.assertEqual((subscriber.seqs, self.stale), ([1, 2], ["b"]))

    def test_an_empty_batch_makes_it_look_for_what_it_missed(self) -> None:
        """In the history."""
        self.start_other()
        subscriber = self.subscribed()
        self.keep(2)
        self.successResultOf(self.carry([]))
        self.assertEqual(subscriber.seqs, [1, 2])

    def test_an_instance_that_is_stopped_takes_nothing(self) -> None:
        """Nor before it is started."""
        self.start_other()
        self.other.stop()
        self.failureResultOf(self.carry(self.keep()), RelayFailed)

    def test_with_a_secret_only_signed_batches_are_taken(self) -> None:
        """Signed with that secret, and fresh."""
        self.start_other(SECRET)
        subscriber = self.subscribed()
        for secret in (None, b"another secret of ours"):
            self.carrier = self.make_carrier(secret)
            self.failureResultOf(self.carry(self.keep()), RelayFailed)
        self.carrier = self.start_carrier(PeerSigner(SECRET), clock_error=-7200.0)
        self.failureResultOf(self.carry(self.keep()), RelayFailed)
        self.assertEqual(subscriber.events, [])
        self.carrier = self.make_carrier(SECRET)
        self.successResultOf(self.carry(self.keep()))
        self.assertEqual(subscriber.seqs, [1, 2, 3, 4])

    def test_a_batch_for_another_instance_is_refused(self) -> None:
        """The instance that had this address is gone."""
        self.start_other()
        self.you = Instance("gone", "http://here/instances/gone")
        self.failureResultOf(self.carry(self.keep()), InstanceGone)

    def test_knowing_the_id_of_an_instance_is_not_enough_to_replace_an_event(self) -> None:
        """A forged batch is refused whatever its headers say, and the genuine event arrives."""
        self.start_other()
        subscriber = self.subscribed()
        (genuine,) = self.keep()
        forged = batches.pack([genuine._replace(id="forged", payload=b'"data":"FORGED"')])
        guess = b"a guess of 16 bytes"
        for headers in (
            {},
            Signer(guess).sign(b"1", self.clock.seconds(), forged),
            self.sign(guess, batch_target("you"), forged),
        ):
            self.assertEqual(self.status(forged, headers), 403)
        self.successResultOf(self.carry([genuine]))
        self.assertEqual([each.payload for each in subscriber.events], [genuine.payload])

    def test_before_its_secret_is_known_an_instance_takes_nothing(self) -> None:
        """Neither unsigned, nor signed with nothing."""
        self.start_other(signer=PeerSigner(None, self.store))
        for headers in ({}, self.sign(None, batch_target("you"))):
            self.assertEqual(self.status(b"", headers), 403)

    def test_a_captured_batch_is_of_no_use_elsewhere(self) -> None:
        """At no other path, instance or body; sent again as it was, it changes nothing."""
        self.start_other()
        subscriber = self.subscribed()
        self.successResultOf(self.carry(self.keep(2)))
        headers, body = self.requests.pop()
        count = self.successResultOf(self.webhook.count_here(b"you", b"a", headers))
        self.assertEqual(count.status, 403)
        self.assertEqual(self.status(b"", headers), 403)
        self.assertEqual(self.status(body, headers), 200)
        self.start_other(id="another")
        self.assertEqual(self.status(body, headers, b"another"), 403)
        self.assertEqual(subscriber.seqs, [1, 2])

    def test_a_captured_question_opens_nothing_else(self) -> None:
        """A signed count is no signature for a batch, nor for the count of another account."""
        self.start_other()
        self.subscribed()
        headers = self.sign(None, count_target("you", "ä/b"))
        count = self.successResultOf(self.webhook.count_here(b"you", b"%C3%A4%2fb", headers))
        self.assertEqual((count.status, count.body), (200, b'{"subscribers": 0}\n'))
        other = self.successResultOf(self.webhook.count_here(b"you", b"a", headers))
        self.assertEqual(other.status, 403)
        self.assertEqual(self.status(b"", headers), 403)

    def test_a_signed_batch_with_one_bad_event_delivers_nothing(self) -> None:
        """A line break in a payload would become a line of an event stream."""
        self.start_other()
        subscriber = self.subscribed()
        first, second = self.keep(2)
        payload = b'"data":1\n\nevent: INJECTED\ndata: 1'
        bad = batches.pack([first, second._replace(payload=payload)])
        headers = self.sign(None, batch_target("you"), bad)
        self.assertEqual((self.status(bad, headers), subscriber.events), (400, []))

    def test_a_carrier_waits_for_the_secret(self) -> None:
        """A store that is away makes a batch fail, as an instance that is away does."""
        self.start_other()
        secrets: Any = FaultProxy(self.store)
        self.carrier = self.start_carrier(PeerSigner(None, secrets))
        secrets.error = Unavailable()
        self.failureResultOf(self.carry(self.keep()), RelayFailed)
        secrets.error = None
        self.successResultOf(self.carry(self.keep()))
