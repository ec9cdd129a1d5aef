"""What a WebSocket client can ask about tasks, and what it cannot."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from asyncplumber.auth.limits.rates import Rate
from asyncplumber.auth.limits.settings import NO_LIMITS
from asyncplumber.errors import BadRequest, GrantRevoked
from asyncplumber.event import Draft, new_id
from asyncplumber.grant import Accounts, Action, Grant
from asyncplumber.http.clients import ClientPolicy
from asyncplumber.interfaces import Dispatch, Finished, IStarter, Later, Refused
from asyncplumber.task import Report, TaskState
from asyncplumber.testing import MemoryCluster, MemoryServer
from asyncplumber.transports.frame_parser import FRAME_BURST, FRAME_RATE, MAX_MESSAGE_BYTES
from asyncplumber.transports.task_messages import MAX_IN_FLIGHT
from asyncplumber.wire.payload import payload_of
from asyncplumber.wire.task_messages import (
    MAX_ID_BYTES,
    Method,
    message_id,
    message_members,
    task_message,
)
from harness.authority import FakeAuthority
from harness.frames import BINARY, TEXT, client_frame
from harness.memory_subscribers import MemoryWebSocket
from tests.unit import examples

BODY_LIMIT = 100_000


@implementer(IStarter)
class RecordingStarter:
    """Takes every run, and reports nothing by itself."""

    def __init__(self) -> None:
        self.runs: list[Dispatch] = []
        self.canceled: list[str] = []
        self.answer: Finished | Later | Refused = Later()

    def start(self, dispatch: Dispatch) -> Deferred[Finished | Later | Refused]:
        self.runs.append(dispatch)
        return succeed(self.answer)

    def cancel(self, account: str, task: str, run: str) -> Deferred[None]:
        self.canceled.append(run)
        return succeed(None)


class MessageCase(SynchronousTestCase):
    """A server in memory whose starter records."""

    def setUp(self) -> None:
        self.starter = RecordingStarter()
        self.server = self.make()

    def make(self, **more: Any) -> MemoryServer:
        return MemoryServer(
            body_limit=BODY_LIMIT, plumber={"starter": self.starter, "linger": 1.0, **more}
        )

    def subscribe(self, server: MemoryServer | None = None) -> MemoryWebSocket:
        socket = MemoryWebSocket(server or self.server)
        socket.frames()
        return socket

    def send(self, socket: MemoryWebSocket, **message: Any) -> None:
        socket.client.send(client_frame(json.dumps(message).encode()))

    def replies(self, socket: MemoryWebSocket) -> list[dict[str, Any]]:
        return [each for each in socket.envelopes() if each["type"] == "plumber.reply"]

    def ask(self, socket: MemoryWebSocket, **message: Any) -> dict[str, Any]:
        """Send a message, and return its reply."""
        self.send(socket, **{"id": 1, **message})
        (reply,) = self.replies(socket)
        self.assertEqual((reply["account"], reply["cursor"]), ("a", None))
        return reply

    def report(self, key: str, state: TaskState, data: object) -> None:
        """Report about a task of account a."""
        content_type, payload = payload_of("application/json", json.dumps(data).encode())
        id = new_id()
        time = "2026-01-01T00:00:00.000Z"
        draft = Draft("a", id, id, "result", time, content_type, payload)
        reported = self.server.plumber.tasks.report(Report(draft, key, state))
        self.server.settle()
        self.successResultOf(reported)


class MessageTests(MessageCase):
    """What is asked, and answered."""

    def test_a_task_is_started(self) -> None:
        """The reply has the task; everybody hears of it by the event."""
        socket = self.subscribe()
        self.send(socket, id="x", method="start", task="sum", input=[3, 4])
        submitted, reply = socket.envelopes()
        self.assertEqual(submitted["type"], "task.submitted")
        self.assertEqual((reply["id"], reply["status"], reply["joined"]), ("x", 202, False))
        task = reply["data"]
        self.assertEqual(
            (task["account"], task["task"], task["state"], task["done"]),
            ("a", "sum", "submitted", False),
        )
        (run,) = self.starter.runs
        self.assertEqual((run.account, run.task, run.run), ("a", "sum", task["run"]))
        self.assertEqual((run.content_type, run.body), ("application/json", b"[3, 4]"))

    def test_the_input_is_passed_on_as_it_is(self) -> None:
        """JSON byte for byte, so that a PUT of it joins; text and bytes by their type."""
        socket = self.subscribe()
        text = b'{"id":1,"method":"start","task":"t1","input": {"a" :1e400, "b":"\\u00fc"} }'
        socket.client.send(client_frame(text))
        self.replies(socket)
        self.ask(
            socket,
            method="start",
            task="t2",
            input="\u00fc",
            content_type="text/plain;charset=utf-8",
        )
        encoded = b64encode(b"\xff\x00").decode()
        self.ask(socket, method="start", task="t3", input_base64=encoded, content_type="image/png")
        self.ask(socket, method="start", task="t4")
        self.ask(socket, method="start", task="t5", input="text", content_type="application/json")
        self.assertEqual(
            [(run.content_type, run.body) for run in self.starter.runs],
            [
                ("application/json", b'{"a" :1e400, "b":"\\u00fc"}'),
                ("text/plain;charset=utf-8", "\u00fc".encode()),
                ("image/png", b"\xff\x00"),
                ("", b""),
                ("application/json", b'"text"'),
            ],
        )

    def test_the_second_joins(self) -> None:
        """With the same input or none; with another one it is refused, and told of the task."""
        first, second = self.subscribe(), self.subscribe()
        run = self.ask(first, method="start", task="sum", input=[3])["data"]["run"]
        for more in ({"input": [3]}, {}):
            reply = self.ask(second, method="start", task="sum", **more)
            self.assertEqual((reply["status"], reply["joined"]), (202, True))
            self.assertEqual(reply["data"]["run"], run)
        reply = self.ask(second, method="start", task="sum", input=[4])
        self.assertEqual((reply["status"], reply["data"]["error"]["code"]), (422, "other-input"))
        self.assertEqual(reply["data"]["task"]["run"], run)
        self.assertEqual(len(self.starter.runs), 1)

    def test_a_reply_can_wait_for_the_end(self) -> None:
        """Others are answered meanwhile; the status is that of the request."""
        socket = self.subscribe()
        self.send(socket, id=1, method="start", task="sum", wait=10)
        self.send(socket, id=2, method="get", task="sum")
        self.assertEqual([reply["id"] for reply in self.replies(socket)], [2])
        self.report("sum", TaskState.COMPLETED, {"total": 7})
        (reply,) = self.replies(socket)
        self.assertEqual((reply["id"], reply["status"]), (1, 200))
        self.assertEqual((reply["data"]["done"], reply["data"]["result"]), (True, {"total": 7}))
        self.send(socket, id=3, method="start", task="slow", wait=10)
        self.server.advance(9.5)
        self.assertEqual(self.replies(socket), [])
        self.server.advance(1)
        (reply,) = self.replies(socket)
        self.assertEqual((reply["id"], reply["status"], reply["data"]["done"]), (3, 202, False))

    def test_a_result_can_be_reused(self) -> None:
        """If the client says how old it may be; or nothing may begin at all."""
        socket = self.subscribe()
        reply = self.ask(socket, method="start", task="sum", only_if_cached=True)
        self.assertEqual((reply["status"], reply["data"]["error"]["code"]), (504, "nothing-cached"))
        self.starter.answer = Finished("application/json", b"7")
        self.ask(socket, method="start", task="sum", wait=1)
        self.server.advance(5)
        reply = self.ask(socket, method="start", task="sum", max_age=60)
        self.assertEqual((reply["status"], reply["joined"], reply["age"]), (200, True, 5))
        self.assertEqual((reply["data"]["result"], len(self.starter.runs)), (7, 1))

    def test_a_task_is_looked_at(self) -> None:
        """With a result that only the history has; an unknown one is none."""
        socket = self.subscribe()
        reply = self.ask(socket, method="get", task="sum")
        self.assertEqual((reply["status"], reply["data"]["error"]["code"]), (404, "unknown-task"))
        self.ask(socket, method="start", task="sum")
        self.report("sum", TaskState.COMPLETED, "x" * 70_000)
        self.server.advance(10)
        row = self.server.plumber.store.tasks.get("a", "sum")
        self.assertIsNone(self.successResultOf(row).result, "the row has no result that large")
        self.replies(socket)
        reply = self.ask(socket, method="get", task="sum")
        self.assertEqual((reply["status"], len(reply["data"]["result"])), (200, 70_000))

    def test_a_task_is_canceled(self) -> None:
        """Its runner is asked; one that has ended cannot be."""
        socket = self.subscribe()
        run = self.ask(socket, method="start", task="sum")["data"]["run"]
        reply = self.ask(socket, method="cancel", task="sum")
        self.assertEqual((reply["status"], reply["data"]["cancel_requested"]), (202, True))
        self.assertEqual(self.starter.canceled, [run])
        self.report("sum", TaskState.CANCELED, None)
        reply = self.ask(socket, method="cancel", task="sum")
        self.assertEqual((reply["status"], reply["data"]["error"]["code"]), (409, "ended"))
        self.assertEqual(reply["data"]["task"]["state"], "canceled")

    def test_without_a_starter_tasks_are_only_looked_at(self) -> None:
        """They may be reported from elsewhere."""
        server = MemoryServer()
        reply = self.ask(self.subscribe(server), method="start", task="sum")
        self.assertEqual((reply["status"], reply["data"]["error"]["code"]), (404, "no-starter"))

    def test_a_store_that_is_away_is_told(self) -> None:
        """With the time after which to try again."""
        socket = self.subscribe()
        self.server.plumber.hub.refuse()  # as when the instance is about to stop
        reply = self.ask(socket, method="start", task="sum", wait=1)
        self.assertEqual(reply["status"], 503)
        self.assertEqual(reply["data"]["error"]["retry_after"], 1)

    def test_a_bug_of_ours_is_answered(self) -> None:
        """And logged; the stream goes on."""
        socket = self.subscribe()

        def broken(*_: object) -> None:
            raise RuntimeError("no")

        self.patch(self.server.plumber.tasks, "cancel", broken)
        reply = self.ask(socket, method="cancel", task="sum")
        self.assertEqual((reply["status"], reply["data"]["error"]["code"]), (500, "internal"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.ask(socket, method="get", task="sum")["status"], 404)


class WrongMessageTests(MessageCase):
    """What cannot be understood is answered, and the stream goes on."""

    def test_each_is_answered(self) -> None:
        """With 400, its id if it has one, and what is wrong."""
        socket = self.subscribe()
        good: dict[str, Any] = {"id": 1, "method": "start", "task": "sum"}
        for text in (b"", b"hello", b"[]", b"1", b'{"id":1', b"{}", b'"\xc3\xa4"', b"[" * 9000):
            socket.client.send(client_frame(text))
            self.wrong(socket, None)
        socket.client.send(client_frame(json.dumps(good).encode(), BINARY))
        self.wrong(socket, None)
        for id in (None, {}, [], True, "x" * MAX_ID_BYTES):
            self.send(socket, **{**good, "id": id})
            self.wrong(socket, None)
        self.server.advance(10)
        for bad in (
            {"method": "stop"},
            {"method": None},
            {"task": ""},
            {"task": 7},
            {"task": "x" * 257},
            {"task": "a\nb"},
            {"wait": -1},
            {"wait": 121},
            {"wait": "1"},
            {"wait": True},
            {"max_age": -1},
            {"only_if_cached": 1},
            {"content_type": 7},
            {"content_type": "a\r\nb"},
            {"content_type": "\u00fc"},
            {"content_type": "text/plain", "input": {}},
            {"input_base64": "!"},
            {"input_base64": "", "input": 1},
        ):
            self.send(socket, **{**good, **bad})
            self.wrong(socket, 1)
        self.assertEqual(self.starter.runs, [])
        self.assertEqual(self.ask(socket, **good)["status"], 202)

    def wrong(self, socket: MemoryWebSocket, id: object) -> None:
        (reply,) = self.replies(socket)
        self.assertEqual((reply["status"], reply["id"]), (400, id))
        self.assertEqual(reply["data"]["error"]["code"], "bad-request")
        self.assertTrue(reply["data"]["error"]["message"])
        self.server.advance(0.1)

    @settings(max_examples=examples(200), deadline=None, derandomize=True)
    @given(
        st.dictionaries(
            st.sampled_from(
                ["id", "method", "task", "input", "content_type", "wait", "max_age", "input_base64"]
            ),
            st.one_of(
                st.none(),
                st.booleans(),
                st.integers(),
                st.floats(allow_nan=False, allow_infinity=False),
                st.text(max_size=20),
                st.sampled_from(["start", "get", "cancel", "sum", "application/json", "AA=="]),
                st.lists(st.integers(), max_size=2),
            ),
        )
    )
    def test_any_object_is_understood_or_refused(self, message: dict[str, Any]) -> None:
        """Nothing else comes out of it, whatever the types of its members are."""
        for text in (json.dumps(message).encode(), json.dumps(message)[:-1].encode()):
            try:
                parts = message_members(text)
                json.loads(message_id(parts))
                found = task_message(parts, "a")
            except BadRequest:
                continue
            self.assertIs(found.method, Method(message["method"]))
            self.assertEqual(found.start.key, message["task"])

    @settings(max_examples=examples(100), deadline=None, derandomize=True)
    @given(st.lists(st.binary(max_size=40), max_size=8), st.sampled_from([1, BINARY]))
    def test_a_stream_survives_any_messages(self, messages: list[bytes], opcode: int) -> None:
        """As long as the frames are right: each is answered, and then the next good one."""
        socket = self.subscribe()
        texts = [text if opcode == BINARY else text.hex().encode() for text in messages]
        for text in texts:
            socket.client.send(client_frame(text, opcode))
        self.assertEqual([reply["status"] for reply in self.replies(socket)], [400] * len(texts))
        self.assertEqual(self.ask(socket, method="get", task="none")["status"], 404)
        socket.leave()


class LimitTests(MessageCase):
    """Each limit at its edge."""

    def test_an_input_is_as_large_as_a_body(self) -> None:
        """One more byte is refused, and the stream goes on."""
        socket = self.subscribe()
        reply = self.ask(socket, method="start", task="a", input="x" * (BODY_LIMIT - 2))
        self.assertEqual(reply["status"], 202)
        reply = self.ask(socket, method="start", task="b", input="x" * (BODY_LIMIT - 1))
        self.assertEqual((reply["status"], reply["data"]["error"]["code"]), (413, "too-large"))
        self.assertEqual(self.ask(socket, method="get", task="a")["status"], 200)
        socket.client.send(client_frame(b"x" * (BODY_LIMIT + 5000)))
        self.assertEqual(socket.closed()[0], 1009)

    def test_who_may_start_nothing_sends_short_messages(self) -> None:
        """No more memory than before is kept for such a client."""
        socket = self.subscribe(MemoryServer(body_limit=BODY_LIMIT))
        socket.client.send(client_frame(b" " * MAX_MESSAGE_BYTES))
        self.assertEqual(self.replies(socket)[0]["status"], 400)
        socket.client.send(client_frame(b" " * (MAX_MESSAGE_BYTES + 1)))
        self.assertEqual(socket.closed()[0], 1009)

    def test_those_that_wait_are_bounded(self) -> None:
        """Of one client; the next one is told to come later, and others are served."""
        socket, other = self.subscribe(), self.subscribe()
        for number in range(MAX_IN_FLIGHT):
            self.send(socket, id=number, method="start", task="sum", wait=60)
        self.assertEqual(self.replies(socket), [])
        reply = self.ask(socket, method="get", task="sum")
        self.assertEqual((reply["status"], reply["data"]["error"]["code"]), (429, "too-many"))
        self.assertEqual(self.ask(other, method="get", task="sum")["status"], 200)
        self.report("sum", TaskState.COMPLETED, 7)
        self.assertEqual(len(self.replies(socket)), MAX_IN_FLIGHT)
        self.assertEqual(self.ask(socket, method="get", task="sum")["status"], 200)

    def test_a_client_that_leaves_waits_for_nothing(self) -> None:
        """Its task goes on."""
        quiet = len(self.server.clock.getDelayedCalls())
        socket = self.subscribe()
        self.send(socket, id=1, method="start", task="sum", wait=60)
        self.assertEqual(self.server.plumber.hub.subscribers, 2)
        socket.leave()
        self.assertEqual(self.server.plumber.hub.subscribers, 0)
        self.server.advance(2)
        self.assertEqual(len(self.server.clock.getDelayedCalls()), quiet)
        self.assertEqual(len(self.starter.runs), 1)
        self.assertEqual(self.ask(self.subscribe(), method="get", task="sum")["status"], 200)

    def test_frames_are_limited_as_before(self) -> None:
        """A flood of messages ends the connection, and not before."""
        socket = self.subscribe()
        frame = client_frame(b'{"id":1,"method":"get","task":"none"}')
        socket.client.send(frame * FRAME_BURST)
        self.assertEqual(len(self.replies(socket)), FRAME_BURST)
        self.server.advance(1)
        socket.client.send(frame * (FRAME_RATE + 1))
        self.assertEqual(socket.closed()[0], 1008)

    def test_a_start_counts_as_a_post(self) -> None:
        """A look does not."""
        limits = NO_LIMITS._replace(posts_per_subject=Rate(3, 3))
        self.server = self.make(client_policy=ClientPolicy(limits=limits))
        self.server.client_address = IPv4Address("TCP", "203.0.113.7", 5000)
        socket = self.subscribe()
        statuses = [
            self.ask(socket, method="start", task=f"t{number}")["status"] for number in range(5)
        ]
        self.assertEqual(statuses, [202, 202, 202, 429, 429])
        self.assertEqual(self.ask(socket, method="get", task="t1")["status"], 200)
        self.server.advance(1)
        self.assertEqual(self.ask(socket, method="start", task="t9")["status"], 202)


class RightTests(MessageCase):
    """Who may start, and who may only look."""

    def subscribe_with(self, grant: Grant) -> MemoryWebSocket:
        """Connect with a credential that allows this."""
        self.server = self.make(authority=FakeAuthority({"token": grant}))
        socket = MemoryWebSocket(self.server, "a", "", b"", "Authorization: Bearer token")
        socket.frames()
        return socket

    def test_reading_is_not_starting(self) -> None:
        """A subscriber sees the tasks, and starts and cancels none."""
        mine = Accounts(frozenset({"a"}))
        socket = self.subscribe_with(Grant("user", subscribe=mine, publish=mine))
        for method in ("start", "cancel"):
            reply = self.ask(socket, method=method, task="sum")
            self.assertEqual(
                (reply["status"], reply["data"]["error"]["code"]), (403, "insufficient-scope")
            )
        self.assertEqual(self.ask(socket, method="get", task="sum")["status"], 404)
        self.assertEqual(self.starter.runs, [])

    def test_the_right_is_that_of_the_account(self) -> None:
        """One for another account is none."""
        mine, other = Accounts(frozenset({"a"})), Accounts(frozenset({"b"}))
        socket = self.subscribe_with(Grant("user", subscribe=mine, start=other))
        self.assertEqual(self.ask(socket, method="start", task="sum")["status"], 403)

    def test_with_the_right_it_is_started(self) -> None:
        """The grant says so."""
        mine = Accounts(frozenset({"a"}))
        grant = Grant("user", subscribe=mine, start=mine)
        self.assertTrue(grant.allows(Action.START, "a"))
        socket = self.subscribe_with(grant)
        self.assertEqual(self.ask(socket, method="start", task="sum")["status"], 202)

    def test_a_grant_that_has_ended_starts_nothing(self) -> None:
        """The stream is closed: what was asked is not answered, and what follows is not read."""
        mine = Accounts(frozenset({"a"}))
        until = self.server.clock.seconds() + 60
        for end in ("expired", "revoked"):
            grant = Grant("user", subscribe=mine, start=mine, until=until)
            self.starter.runs.clear()
            socket = self.subscribe_with(grant)
            self.send(socket, id=1, method="start", task="sum", wait=100)
            if end == "revoked":
                self.server.clients.end_where(lambda *_: True, GrantRevoked())
            else:
                self.server.advance(61)
            self.send(socket, id=2, method="start", task="late")
            self.report("sum", TaskState.COMPLETED, 7)
            found = [json.loads(text) for opcode, text in socket.frames() if opcode == TEXT]
            self.assertEqual([each["type"] for each in found], ["task.submitted", "plumber.bye"])
            self.assertEqual(found[-1]["data"]["reason"], end)
            self.assertEqual([run.task for run in self.starter.runs], ["sum"])


class ClusterTests(MessageCase):
    """Two instances on one store."""

    def test_every_instance_shows_the_same(self) -> None:
        """What is started at one is listed, looked at, joined and canceled at the other."""
        cluster = MemoryCluster(plumber={"starter": self.starter, "linger": 1.0})
        here, there = cluster.servers
        self.server = here
        first = self.subscribe(here)
        run = self.ask(first, method="start", task="sum", input=[3])["data"]["run"]
        late = MemoryWebSocket(there, tasks=True)
        cluster.settle()
        _, notice = late.envelopes()
        self.assertEqual([row["run"] for row in notice["data"]["tasks"]], [run])
        for message in (
            {"method": "get"},
            {"method": "start", "input": [3]},
            {"method": "cancel"},
        ):
            reply = self.ask(late, task="sum", **message)
            self.assertEqual((reply["status"] // 100, reply["data"]["run"]), (2, run))
        self.assertEqual(len(self.starter.runs), 1)
        self.report("sum", TaskState.CANCELED, None)
        cluster.settle()
        for socket in (first, late):
            ends = [each for each in socket.envelopes() if each["type"] == "task.canceled"]
            self.assertEqual([each["task"]["run"] for each in ends], [run])
