"""The sender for Twisted, through treq and twisted.web, in memory."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

from treq.client import HTTPClient
from treq.testing import RequestTraversalAgent, StubTreq
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.iweb import IBodyProducer
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

from asyncplumber.client import Receipt, Refused, RetryPolicy, Undelivered
from asyncplumber.client.twisted import TreqSender

URL = "http://127.0.0.1:8080"
Step = Callable[[Request], Any]


def answer(status: int, body: object = None, **headers: str) -> Step:
    """Return a step that responds with this status and body."""

    def step(request: Request) -> bytes:
        request.setResponseCode(status)
        for name, value in headers.items():
            request.setHeader(name.replace("_", "-"), value)
        return json.dumps(body).encode()

    return step


def receipt_of(id: str) -> dict[str, Any]:
    """Return the receipt that a plumber gives."""
    return {
        "id": id,
        "cursor": "e.1",
        "duplicate": False,
        "subscribers": 2,
        "instances": {"ok": 1, "failed": 0},
    }


def receive(request: Request) -> Any:
    """Respond with a receipt."""
    return answer(201, receipt_of(str(request.getHeader("webhook-id"))))(request)


def stall(request: Request) -> int:
    """Never respond."""
    return NOT_DONE_YET


def stall_in_body(request: Request) -> int:
    """Begin a response, and never end it."""
    request.setHeader("content-length", "100")
    request.write(b"{")
    return NOT_DONE_YET


class Receiver(Resource):
    """Follows the script, and then responds with receipts."""

    isLeaf = True

    def __init__(self, *script: Step) -> None:
        super().__init__()
        self.requests: list[tuple[bytes, Request, bytes]] = []
        self.script = deque(script)

    def render_POST(self, request: Request) -> Any:
        self.requests.append((request.uri, request, request.content.read()))
        return (self.script.popleft() if self.script else receive)(request)

    @property
    def ids(self) -> list[str]:
        return [request.getHeader("webhook-id") for _, request, _ in self.requests]


class TreqSenderTests(SynchronousTestCase):
    """The promises of the synchronous sender, without blocking."""

    def begin(
        self,
        *script: Step,
        url: str = URL,
        retry_policy: RetryPolicy = RetryPolicy(),
        **options: Any,
    ) -> Deferred[Receipt]:
        """Begin to send one event to a receiver with this script."""
        self.clock = Clock()
        self.receiver = Receiver(*script)
        self.client = cast(Any, StubTreq(self.receiver))
        token = options.pop("token", None)
        sender = TreqSender(
            url, self.client, self.clock, token=token, retry_policy=retry_policy, random=lambda: 0.5
        )
        return Deferred.fromCoroutine(
            sender.send(**{"account": "42", "data": {"total": 7}, **options})
        )

    def test_post(self) -> None:
        """A send is a POST to the account's webhook, and its result is what the receipt says."""
        sending = self.begin(
            url=URL + "/plumber/", account="a/b?ü%2F", id="t-1", type="progress", token="s3cret"
        )
        self.assertEqual(
            self.successResultOf(sending), Receipt("t-1", "e.1", False, 2, {"ok": 1, "failed": 0})
        )
        [(uri, request, body)] = self.receiver.requests
        self.assertEqual(uri, b"/plumber/hooks/a%2Fb%3F%C3%BC%252F")
        self.assertEqual(body, b'{"total":7}')
        names = ("webhook-id", "event-type", "content-type", "authorization")
        self.assertEqual(
            [request.getHeader(name) for name in names],
            ["t-1", "progress", "application/json", "Bearer s3cret"],
        )
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_keys_and_rich_data(self) -> None:
        """Keys of a database, dates and Decimals are sent as by the synchronous sender."""
        data = {"day": date(2012, 9, 28), "price": Decimal("1.50"), "key": UUID(int=7)}
        self.successResultOf(self.begin(account=42, id=UUID(int=7), data=data))
        [(uri, request, body)] = self.receiver.requests
        self.assertEqual((uri, request.getHeader("webhook-id")), (b"/hooks/42", str(UUID(int=7))))
        self.assertEqual(
            json.loads(body), {"day": "2012-09-28", "price": "1.50", "key": str(UUID(int=7))}
        )

    def test_unsendable(self) -> None:
        """It fails before anything is sent."""
        self.failureResultOf(self.begin(data=float("inf")), ValueError)
        self.assertEqual(self.receiver.requests, [])

    def test_again_after_503(self) -> None:
        """An attempt that failed for now is repeated after a pause, as the same event."""
        sending = self.begin(answer(503))
        self.clock.advance(0.12)
        self.assertNoResult(sending)
        self.clock.advance(0.01)
        self.successResultOf(sending)
        self.assertEqual(len(set(self.receiver.ids)), 1)
        self.assertEqual(len(self.receiver.ids), 2)

    def test_retry_after(self) -> None:
        """The sender waits as long as the server asks."""
        sending = self.begin(answer(429, retry_after="7"))
        self.clock.advance(7)
        self.assertNoResult(sending)
        self.clock.advance(1)
        self.successResultOf(sending)

    def test_no_answer(self) -> None:
        """An attempt without a response fails after the timeout."""
        sending = self.begin(stall, retry_policy=RetryPolicy(timeout=5.0))
        self.clock.advance(4.9)
        self.assertEqual(len(self.receiver.requests), 1)
        self.clock.pump([0.2, 0.2])
        self.successResultOf(sending)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_response_without_an_end(self) -> None:
        """So does an attempt whose response does not end."""
        sending = self.begin(stall_in_body, retry_policy=RetryPolicy(timeout=5.0, attempts=1))
        self.client.flush()
        self.clock.advance(5)
        error = self.failureResultOf(sending, Undelivered).value
        self.assertIn("no response in 5 seconds", error.reason)

    def test_gives_up(self) -> None:
        """At the deadline it gives up, and says after how many attempts and why."""
        unavailable = answer(503, {"error": {"code": "unavailable", "message": "no store"}})
        sending = self.begin(
            *[unavailable] * 9, retry_policy=RetryPolicy(deadline=2.0, initial_backoff=1.0)
        )
        self.clock.pump([0.5, 1.0])
        error = self.failureResultOf(sending, Undelivered).value
        self.assertEqual((error.attempts, error.reason), (3, "503 (unavailable): no store"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_refused(self) -> None:
        """A refused event is not sent again."""
        sending = self.begin(
            answer(413, {"error": {"code": "too-large", "message": "at most 1 MiB"}})
        )
        self.assertEqual(self.failureResultOf(sending, Refused).value.code, "too-large")
        self.assertEqual(len(self.receiver.requests), 1)

    def test_redirect(self) -> None:
        """A redirect is not followed."""
        sending = self.begin(answer(307, location=URL + "/elsewhere"))
        self.assertEqual(self.failureResultOf(sending, Refused).value.code, "redirect")
        self.assertEqual(len(self.receiver.requests), 1)

    def test_cancelled_while_asking(self) -> None:
        """Cancelling ends a request, and nothing is sent after that."""
        sending = self.begin(stall)
        sending.cancel()
        self.failureResultOf(sending, CancelledError)
        self.clock.pump([60.0] * 3)
        self.assertEqual(len(self.receiver.requests), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelled_in_the_answer(self) -> None:
        """Cancelling ends a response that has begun."""
        sending = self.begin(stall_in_body)
        self.client.flush()
        sending.cancel()
        self.failureResultOf(sending, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelled_in_a_pause(self) -> None:
        """Cancelling ends the pause between two attempts."""
        sending = self.begin(answer(503))
        sending.cancel()
        self.failureResultOf(sending, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_works_with_any_client(self) -> None:
        """The client may be a plain `HTTPClient` on any agent."""
        clock = Clock()
        client = HTTPClient(RequestTraversalAgent(Receiver()), data_to_body_producer=_AtOnce)
        sending = Deferred.fromCoroutine(TreqSender(URL, client, clock).send("42", 1, id="t-1"))
        self.assertEqual(self.successResultOf(sending).id, "t-1")


@implementer(IBodyProducer)
class _AtOnce:
    """Writes a body at once."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self._body)
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done

    def stopProducing(self) -> None:
        """It is written already."""


class ConnectionTests(SynchronousTestCase):
    """With a real agent and its pool, on transports in memory."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        agent = Agent(self.reactor, pool=HTTPConnectionPool(self.reactor))
        self.sender = TreqSender(
            URL,
            HTTPClient(agent, data_to_body_producer=_AtOnce),
            self.reactor,
            retry_policy=RetryPolicy(attempts=1),
        )

    def connect(self) -> tuple[Any, StringTransport]:
        """Complete the latest connection; return its protocol and transport."""
        protocol = self.reactor.tcpClients[-1][2].buildProtocol(None)
        transport = StringTransport()
        transport.abortConnection = transport.loseConnection
        protocol.makeConnection(transport)
        return protocol, transport

    def begin(self) -> Deferred[Receipt]:
        return Deferred.fromCoroutine(self.sender.send("42", 1, id="t-1"))

    def receipt(self) -> bytes:
        body = json.dumps(receipt_of("t-1")).encode()
        return b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    def test_stale(self) -> None:
        """A connection of the pool that the server closed while it was idle costs no attempt."""
        first = self.begin()
        protocol, _ = self.connect()
        protocol.dataReceived(self.receipt())
        self.successResultOf(first)
        second = self.begin()
        self.assertEqual(len(self.reactor.tcpClients), 1)
        protocol.connectionLost(Failure(ConnectionLost()))
        self.assertNoResult(second)
        again, transport = self.connect()
        self.assertIn(b"POST /hooks/42 ", transport.value())
        again.dataReceived(self.receipt())
        self.assertEqual(self.successResultOf(second).id, "t-1")

    def test_closed_without_an_answer(self) -> None:
        """A server that closes each connection without a response has failed."""
        sending = self.begin()
        for _ in range(2):
            protocol, _ = self.connect()
            protocol.connectionLost(Failure(ConnectionLost()))
        self.assertIn("ConnectionLost", self.failureResultOf(sending, Undelivered).value.reason)

    def test_cancelled(self) -> None:
        """Cancelling a request closes its connection, and does not count as a failed attempt."""
        sending = self.begin()
        protocol, transport = self.connect()
        sending.cancel()
        self.assertTrue(transport.disconnecting)
        protocol.connectionLost(Failure(ConnectionLost()))
        self.failureResultOf(sending, CancelledError)
        self.assertEqual(len(self.reactor.tcpClients), 1)

    def test_timeout_during_the_response(self) -> None:
        """A connection whose response does not end is closed."""
        sending = self.begin()
        protocol, transport = self.connect()
        protocol.dataReceived(b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{")
        self.reactor.advance(5)
        self.assertTrue(transport.disconnecting)
        self.failureResultOf(sending, Undelivered)
