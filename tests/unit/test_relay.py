"""Events on their way to other instances, over HTTP in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treq.client import HTTPClient
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionRefusedError
from twisted.python.failure import Failure
from twisted.web._newclient import ResponseNeverReceived
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface.verify import verifyObject

from asyncplumber.auth.signatures import PeerSigner, Signer, batchs_target, count_target
from asyncplumber.core.intake import Intake
from asyncplumber.errors import Unavailable
from asyncplumber.event import Event, Instance
from asyncplumber.http.webhook import Webhook
from asyncplumber.interfaces import IRelay, RelayFailed
from asyncplumber.relays import http as relays
from asyncplumber.relays.http import BACK_OFF, FAILURES, GRACE, TIMEOUT, HttpRelay
from asyncplumber.wire import event_batch as batches
from asyncplumber.wire.event_batch import unpack
from harness.core import CoreCase, FaultProxy, event

SECRET = b"sixteen bytes or more"


class Street(Resource):
    """
    The other instances, all at one address: it writes down what is posted, and answers as the test
    says.
    """

    isLeaf = True

    def __init__(self, answer: Callable[[Any, bytes], Any]) -> None:
        super().__init__()
        self.answer = answer
        self.posts: list[tuple[str, list[int]]] = []

    def render_POST(self, request: Any) -> Any:
        body = request.content.read()
        self.posts.append(
            (
                request.path.decode().split("/")[2],
                [each.seq for each in unpack(body)] if body else [],
            )
        )
        return self.answer(request, body)


class Flaky:
    """An agent that fails first, as often as it is told."""

    def __init__(self, agent: RequestTraversalAgent) -> None:
        self.agent = agent
        self.errors: list[Exception] = []
        self.requests = 0

    def request(self, *args: Any) -> Deferred[Any]:
        self.requests += 1
        return fail(self.errors.pop(0)) if self.errors else self.agent.request(*args)


def stale() -> Exception:
    return ResponseNeverReceived([Failure(ConnectionError("closed meanwhile"))])


class RelayCase(CoreCase):
    def setUp(self) -> None:
        super().setUp()
        self.street = Street(lambda request, body: b'{"subscribers": {"a": 2}}')
        self.traversal = RequestTraversalAgent(self.street)
        self.agent = Flaky(self.traversal)
        self.relay = self.make_relay()
        self.you = self.enlisted("you")

    def make_relay(self, secret: bytes | None = None) -> HttpRelay:
        """A relay that signs with this secret, or with the one that the store keeps."""
        signer = PeerSigner(secret, self.store)
        return HttpRelay(
            HTTPClient(self.agent), self.registry, self.clock, self.clock.seconds, signer=signer
        )

    def enlisted(self, name: str) -> Instance:
        instance: Instance = self.successResultOf(
            self.store.registry.add_instance(Instance(name, f"http://here/instances/{name}"))
        )
        return instance

    def carried(self, *seqs: int, to: Instance | None = None) -> Deferred[dict[str, int]]:
        return self.relay.carry(to or self.you, [event(seq) for seq in seqs])

    def go(self) -> None:
        """Let what is due be sent and answered."""
        for _ in range(4):
            self.turn()
            self.traversal.flush()

    def fail_once(self, error: Exception | None = None) -> None:
        """One batch that is not taken, and the wait after it."""
        self.agent.errors = [error or ConnectionRefusedError()]
        answer = self.carried(1)
        self.go()
        self.failureResultOf(answer, RelayFailed)

    def answers(self, status: int, body: bytes = b"{}") -> None:
        def answer(request: Any, _: bytes) -> bytes:
            request.setResponseCode(status)
            return body

        self.street.answer = answer


class ParcelTests(RelayCase):
    """In order, together, once."""

    def test_it_is_a_relay(self) -> None:
        """Names and signatures are those of the boundary."""
        verifyObject(IRelay, self.relay)

    def test_what_is_carried_in_one_turn_is_one_batch_for_each_instance(self) -> None:
        """And the answer is for all who carried."""
        they = self.enlisted("they")
        answers = [self.carried(1), self.carried(2, 3), self.carried(1, to=they)]
        self.go()
        self.assertEqual(self.street.posts, [("you", [1, 2, 3]), ("they", [1])])
        for answer in answers:
            self.assertEqual(self.successResultOf(answer), {"a": 2})
        self.assertEqual(
            (self.relay.carried, self.relay._peers, self.clock.getDelayedCalls()), (4, {}, [])
        )

    def test_what_piles_up_during_a_post_goes_together_after_it(self) -> None:
        """One post is under way at a time, so that order holds."""
        requests: list[Any] = []

        def later(request: Any, body: bytes) -> Any:
            requests.append(request)
            return NOT_DONE_YET

        self.street.answer = later
        for seq in (1, 2, 3):
            self.carried(seq)
            self.go()
        self.assertEqual(self.street.posts, [("you", [1])])
        requests[0].write(b'{"subscribers": {}}')
        requests[0].finish()
        self.go()
        self.assertEqual(self.street.posts, [("you", [1]), ("you", [2, 3])])

    def test_a_batch_is_bounded_in_bytes(self) -> None:
        """The rest goes into the next."""
        self.patch(relays, "BATCH_BYTES", 2 * (batches.ENVELOPE + 100))
        for seq in range(1, 6):
            self.carried(seq)
        self.go()
        self.assertEqual([seqs for _, seqs in self.street.posts], [[1, 2], [3, 4], [5]])

    def test_what_waits_for_one_instance_is_bounded(self) -> None:
        """The rest it must find in the history."""
        self.patch(relays, "WAITING", 3)
        self.carried(1, 2)
        self.failureResultOf(self.carried(3, 4), RelayFailed)
        fits = self.carried(3)
        self.go()
        self.successResultOf(fits)

    def test_what_waits_for_one_instance_is_bounded_in_bytes(self) -> None:
        """
        Whatever the number of events; one call is taken whatever its size, and what was sent makes
        room.
        """
        one = batches.weight([event(1)])
        self.patch(relays, "WAITING_BYTES", 2 * one)
        for _ in range(2):
            first = self.carried(1, 2, 3)
            self.failureResultOf(self.carried(4), RelayFailed)
            self.go()
            self.successResultOf(first)
            exactly = [self.carried(4), self.carried(5)]
            self.failureResultOf(self.carried(6), RelayFailed)
            self.go()
            for each in exactly:
                self.successResultOf(each)
        self.assertEqual([seqs for _, seqs in self.street.posts], [[1, 2, 3], [4, 5]] * 2)

    def test_what_is_dropped_makes_room(self) -> None:
        """When a POST fails, what waited behind it is forgotten, and its bytes are."""
        one = batches.weight([event(1)])
        self.patch(relays, "WAITING_BYTES", 2 * one)
        self.patch(relays, "BATCH_BYTES", one)
        taken = self.street.answer
        self.answers(503)
        lost = [self.carried(1), self.carried(2)]
        self.go()
        for each in lost:
            self.failureResultOf(each, RelayFailed)
        self.clock.advance(BACK_OFF[0])
        self.street.answer = taken
        fits = [self.carried(3), self.carried(4)]
        self.go()
        for each in fits:
            self.successResultOf(each)


class FailureTests(RelayCase):
    """Instances that do not answer."""

    def test_a_stale_connection_is_tried_once_more(self) -> None:
        """And only once."""
        self.agent.errors = [stale()]
        answer = self.carried(1)
        self.go()
        self.successResultOf(answer)
        self.agent.errors = [stale(), stale()]
        answer = self.carried(2)
        self.go()
        self.failureResultOf(answer, RelayFailed)
        self.assertEqual(self.agent.requests, 4)

    def test_an_instance_that_does_not_answer_in_time_has_failed(self) -> None:
        """It is not asked again at once, and whatever else waits for it fails too."""
        self.street.answer = lambda request, body: NOT_DONE_YET
        answer = self.carried(1)
        self.go()
        waiting = self.carried(2)
        self.clock.advance(TIMEOUT - 0.1)
        self.assertNoResult(answer)
        self.clock.advance(0.1)
        self.failureResultOf(answer, RelayFailed)
        self.failureResultOf(waiting, RelayFailed)
        self.assertEqual((self.agent.requests, self.relay.failed), (1, 1))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_an_answer_that_stops_half_way_has_failed(self) -> None:
        """Headers are no answer."""

        def half(request: Any, body: bytes) -> Any:
            request.setHeader(b"content-length", b"100")
            request.write(b'{"subscr')
            return NOT_DONE_YET

        self.street.answer = half
        answer = self.carried(1)
        self.go()
        self.clock.advance(TIMEOUT)
        self.failureResultOf(answer, RelayFailed)

    def test_what_is_no_answer_of_ours_has_failed(self) -> None:
        """Other statuses, other bodies, redirections."""
        for status, body in (
            (500, b""),
            (302, b""),
            (200, b"hello"),
            (200, b"[]"),
            (200, b'{"subscribers": {"a": "x"}}'),
        ):
            self.relay = self.make_relay()
            self.answers(status, body)
            answer = self.carried(1)
            self.go()
            self.failureResultOf(answer, RelayFailed)

    def test_a_failing_instance_is_left_alone_for_a_while(self) -> None:
        """Longer each time, up to a limit, and not at all once it answers."""
        first, most = BACK_OFF
        self.registry.away = RuntimeError("no pruning here")
        for pause in (first, first * 2, first * 4, first * 8, most, most):
            self.fail_once()
            requests = self.agent.requests
            self.clock.advance(pause - 0.01)
            self.failureResultOf(self.carried(1), RelayFailed)
            self.assertEqual(self.agent.requests, requests)
            self.clock.advance(0.01)
        answer = self.carried(1)
        self.go()
        self.successResultOf(answer)
        self.assertEqual(self.relay._peers, {})

    def test_an_instance_that_fails_again_and_again_is_forgotten(self) -> None:
        """With its hooks."""
        self.store.registry.register(self.you, ["a"])
        for _ in range(FAILURES):
            self.assertIn("a", self.successResultOf(self.store.registry.instances(["a"])))
            self.fail_once()
            self.clock.advance(BACK_OFF[1] / 4)
        self.assertEqual(
            (self.successResultOf(self.store.registry.instances(["a"])), self.relay._peers),
            ({}, {}),
        )

    def test_an_instance_that_renewed_its_lease_is_nudged_instead(self) -> None:
        """It is alive; let it look for what it missed."""
        for turn in range(FAILURES):
            if turn == FAILURES - 1:
                self.store.registry.renew(self.you)
            self.fail_once()
            self.clock.advance(BACK_OFF[1] / 4)
        self.go()
        self.assertEqual(self.street.posts, [("you", [])])
        self.assertEqual(len(self.store.registry._rows), 1)
        answer = self.carried(1)
        self.go()
        self.successResultOf(answer)

    def test_an_address_that_belongs_to_somebody_else_now_is_forgotten_at_once(self) -> None:
        """It said 410."""
        self.answers(410)
        self.carried(1).addErrback(lambda failure: failure.trap(RelayFailed))
        self.go()
        self.assertEqual(self.store.registry._rows, {})

    def test_a_registry_that_is_away_does_not_stop_the_relay(self) -> None:
        """Forgetting waits."""
        self.registry.away = KeyError("x")
        self.answers(410)
        answer = self.carried(1)
        self.go()
        self.failureResultOf(answer, RelayFailed)
        self.assertEqual(len(self.store.registry._rows), 1)

    def test_failures_of_those_who_are_long_gone_are_not_kept(self) -> None:
        """Instances come and go for years."""
        self.fail_once()
        self.clock.advance(relays.FORGET + 1)
        self.you = self.enlisted("they")
        self.fail_once()
        self.assertEqual(list(self.relay._peers), ["they"])


class StopTests(RelayCase):
    """Stop means wait, but not for ever."""

    def test_stopping_sends_what_waits_and_takes_no_more(self) -> None:
        """And closes the connections after that."""
        closed: list[bool] = []
        self.relay._close = lambda: closed.append(True)  # type: ignore[assignment,return-value,func-returns-value]
        answer = self.carried(1)
        stopped = self.relay.stop()
        self.failureResultOf(self.carried(2), RelayFailed)
        self.assertNoResult(stopped)
        self.go()
        self.successResultOf(answer)
        self.successResultOf(stopped)
        self.assertEqual(closed, [True])

    def test_stopping_does_not_wait_for_ever(self) -> None:
        """Post after post that nobody answers."""
        self.relay._timeout = 1000.0
        self.street.answer = lambda request, body: NOT_DONE_YET
        answer = self.carried(1)
        self.go()
        stopped = self.relay.stop()
        self.clock.advance(GRACE - 0.1)
        self.assertNoResult(stopped)
        self.clock.advance(0.1)
        self.successResultOf(stopped)
        self.failureResultOf(answer, RelayFailed)


class OtherSideTests(RelayCase):
    """Onto the real webhook of another instance."""

    def setUp(self) -> None:
        super().setUp()
        self.requests: list[
            tuple[dict[bytes, bytes], bytes]
        ] = []  # what the other instance was asked

    def other(self, secret: bytes | None = None, store: Any = None) -> list[str]:
        """What the other instance disowns.  It has this secret, or the one that the store keeps."""
        disowned: list[str] = []
        signer = PeerSigner(secret, store or self.store)
        self.successResultOf(signer.learn())
        webhook = Webhook(
            Intake(self.store.append, self.hub, self.clock),
            self.hub,
            self.clock.seconds,
            "you",
            drop_stale=disowned.append,
            signer=signer,
        )

        def answer(request: Any, body: bytes) -> bytes:
            headers = {
                name.lower(): values[0]
                for name, values in request.requestHeaders.getAllRawHeaders()
            }
            self.requests.append((headers, body))
            taken = self.successResultOf(
                webhook.take_event_batch(request.path.split(b"/")[2], headers, body)
            )
            request.setResponseCode(taken.status)
            return bytes(taken.body)

        self.street.answer = answer
        self.webhook = webhook
        return disowned

    def posted(self, body: bytes, headers: dict[bytes, bytes]) -> int:
        """The status of the answer to this request for batches."""
        status: int = self.successResultOf(
            self.webhook.take_event_batch(b"you", headers, body)
        ).status
        return status

    def carried_events(self, events: list[Event]) -> Deferred[dict[str, int]]:
        answer = self.relay.carry(self.you, events)
        self.go()
        return answer

    def test_events_reach_its_subscribers_who_are_counted(self) -> None:
        """And accounts that nobody there wants are disowned."""
        disowned = self.other()
        subscriber = self.subscribed()
        answer = self.carried_events([*self.keep(2), *self.keep(1, "b")])
        self.assertEqual(self.successResultOf(answer), {"a": 1, "b": 0})
        self.assertEqual((subscriber.seqs, disowned), ([1, 2], ["b"]))

    def test_a_nudge_makes_it_look_for_what_it_missed(self) -> None:
        """An empty batch."""
        self.other()
        subscriber = self.subscribed()
        self.keep(2)
        self.successResultOf(self.carried_events([]))
        self.assertEqual(subscriber.seqs, [1, 2])

    def test_with_a_secret_only_signed_batchs_are_taken(self) -> None:
        """Signed with that secret, and fresh."""
        self.other(SECRET)
        subscriber = self.subscribed()
        for secret in (None, b"another secret of ours"):
            self.relay = self.make_relay(secret)
            self.failureResultOf(self.carried_events(self.keep()), RelayFailed)
        self.relay = self.make_relay(SECRET)
        self.relay._now = lambda: self.clock.seconds() - 7200
        self.failureResultOf(self.carried_events(self.keep()), RelayFailed)
        self.assertEqual(subscriber.events, [])
        self.relay = self.make_relay(SECRET)
        self.successResultOf(self.carried_events(self.keep()))
        self.assertEqual(subscriber.seqs, [1, 2, 3, 4])

    def test_a_batch_for_somebody_else_is_refused(self) -> None:
        """The instance that had this address is gone."""
        self.other()
        self.you = self.enlisted("gone")
        self.failureResultOf(self.carried_events(self.keep()), RelayFailed)
        self.assertEqual(list(self.store.registry._rows), ["you"])

    def test_who_knows_only_the_id_of_an_instance_replaces_no_event(self) -> None:
        """
        A forged batch is refused, whatever its headers say, and the genuine event is delivered.
        """
        self.other()
        subscriber = self.subscribed()
        (genuine,) = self.keep()
        forged = batches.pack([genuine._replace(id="forged", payload=b'"data":"FORGED"')])
        target = batchs_target("you")
        strangers: list[dict[bytes, bytes]] = [
            {},
            Signer(b"a guess of 16 bytes").sign(b"1", self.clock.seconds(), forged),
        ]
        strangers.append(
            self.successResultOf(
                PeerSigner(b"a guess of 16 bytes").sign(target, self.clock.seconds(), forged)
            )
        )
        for headers in strangers:
            self.assertEqual(self.posted(forged, headers), 403)
        self.successResultOf(self.carried_events([genuine]))
        self.assertEqual([each.payload for each in subscriber.events], [genuine.payload])

    def test_before_its_secret_is_known_an_instance_takes_nothing_from_others(self) -> None:
        """Neither unsigned, nor signed with nothing."""
        self.other()
        self.webhook._signer = PeerSigner(None, self.store)
        for headers in (
            {},
            self.successResultOf(PeerSigner(None, self.store).sign(batchs_target("you"), 100, b"")),
        ):
            self.assertEqual(self.posted(b"", headers), 403)

    def test_a_captured_batch_is_of_no_use_elsewhere(self) -> None:
        """
        Not at another path, not at another instance, not with another body; sent again as it was it
        changes nothing.
        """
        self.other()
        subscriber = self.subscribed()
        self.successResultOf(self.carried_events(self.keep(2)))
        headers, body = self.requests.pop()
        self.assertEqual(
            self.successResultOf(self.webhook.count_here(b"you", b"a", headers)).status, 403
        )
        self.assertEqual(self.posted(b"", headers), 403)
        self.webhook.instance_id = "another"
        self.assertEqual(
            self.successResultOf(self.webhook.take_event_batch(b"another", headers, body)).status,
            403,
        )
        self.webhook.instance_id = "you"
        self.assertEqual(self.posted(body, headers), 200)
        self.assertEqual(subscriber.seqs, [1, 2])

    def test_a_captured_question_opens_nothing_else(self) -> None:
        """
        The signature of a count is none of a batch, which may be as empty, and none of another
        account's count.
        """
        self.other()
        self.subscribed()
        signer = PeerSigner(None, self.store)
        headers = self.successResultOf(
            signer.sign(count_target("you", "ä/b"), self.clock.seconds(), b"")
        )
        count = self.successResultOf(self.webhook.count_here(b"you", b"%C3%A4%2fb", headers))
        self.assertEqual((count.status, count.body), (200, b'{"subscribers": 0}\n'))
        self.assertEqual(
            self.successResultOf(self.webhook.count_here(b"you", b"a", headers)).status, 403
        )
        self.assertEqual(self.posted(b"", headers), 403)

    def test_a_signed_batch_with_one_bad_event_delivers_nothing(self) -> None:
        """It is refused whole: a line break in a payload would become a line of an event stream."""
        self.other()
        subscriber = self.subscribed()
        first, second = self.keep(2)
        bad = batches.pack(
            [first, second._replace(payload=b'"data":1\n\nevent: INJECTED\ndata: 1')]
        )
        signer = PeerSigner(None, self.store)
        headers = self.successResultOf(signer.sign(batchs_target("you"), self.clock.seconds(), bad))
        self.assertEqual((self.posted(bad, headers), subscriber.events), (400, []))

    def test_a_relay_waits_for_the_secret(self) -> None:
        """
        A store that is away for a moment makes the batch fail as an instance that is away does, and
        no more.
        """
        self.other()
        self.relay._signer = PeerSigner(None, FaultProxy(self.store))
        self.relay._signer._secrets.away = Unavailable()
        self.failureResultOf(self.carried_events(self.keep()), RelayFailed)
        self.relay._signer._secrets.away = None
        self.clock.advance(BACK_OFF[0])
        self.successResultOf(self.carried_events(self.keep()))
