"""Attacks on the right to start tasks: by requests, by WebSocket, by tickets, and after its end."""

from __future__ import annotations

import json
from typing import Any

from asyncplumber.starters.in_process import LATER, Run
from asyncplumber.testing import NOW, MemoryClient, MemoryServer
from harness.frames import TEXT, client_frame, server_frames
from harness.mounted import MountedServer
from tests.attackers import ADMIN, AttackCase, json_of

EVERY = [{"all": True}]
JSON = "Content-Type: application/json"
ASYNC = "Prefer: respond-async"


class TaskAttacks(AttackCase):
    """An application that takes every run, and reports none."""

    def start_server(self, **options: Any) -> MemoryServer:
        self.runs: list[Run] = []

        def starter(run: Run) -> Any:
            self.runs.append(run)
            return LATER

        return super().start_server(plumber={"starter": starter}, **options)

    def may(self, **lists: Any) -> str:
        """Return the header of a token that allows this."""
        return self.bearer(self.token(plumber=lists))

    def put(self, target: str, *lines: str, body: bytes = b"1") -> int:
        """Try to start a task; return the status."""
        return self.ask("PUT", target, ASYNC, JSON, *lines, body=body).status

    def begun(self) -> list[tuple[str, str]]:
        """Return what was started since the last call, and forget it."""
        self.settle()
        found = [(run.account, run.task) for run in self.runs]
        self.runs.clear()
        return found

    def attempts(self, account: str, *lines: str) -> list[int]:
        """Try each way to start or cancel by a request, and return the statuses."""
        return [
            self.put(f"/tasks/{account}/sum", *lines),
            self.put(f"/tasks/{account}/sum", "Cache-Control: max-age=60", *lines),
            self.ask("POST", f"/tasks/{account}/sum", ASYNC, JSON, *lines, body=b"1").status,
            self.ask("POST", f"/tasks/{account}", ASYNC, JSON, *lines, body=b"1").status,
            self.ask("POST", f"/tasks/{account}/sum/cancel", *lines).status,
        ]

    def test_reading_and_publishing_start_and_cancel_nothing(self) -> None:
        """Not for one account, and not for all."""
        starter = self.may(start=["user-42"])
        self.assertEqual(self.put("/tasks/user-42/sum", starter), 202)
        self.assertEqual(self.begun(), [("user-42", "sum")])
        for line in (
            self.may(subscribe=["user-42"]),
            self.may(publish=["user-42"]),
            self.may(subscribe=EVERY, publish=EVERY),
            self.may(start=[]),
            self.may(start=["user-4", "user-42 ", "user-4*", "USER-42"]),
            self.may(start=[{"prefix": "user-42."}]),
        ):
            self.assertEqual(self.attempts("user-42", line), [403] * 5)
        self.assertEqual(self.attempts("user-42"), [401] * 5)
        self.assertEqual(self.attempts("user-42", self.bearer("nonsense")), [401] * 5)
        self.assertEqual(self.begun(), [])
        task = json_of(self.ask("GET", "/tasks/user-42/sum", starter))
        self.assertEqual((task["state"], task["cancel_requested"]), ("submitted", False))

    def test_a_refusal_does_not_tell_whether_there_is_a_task(self) -> None:
        """Nor whether there is such an account, and it leaves nothing."""
        self.assertEqual(self.put("/tasks/user-42/sum", self.may(start=["user-42"])), 202)
        line = self.may(start=["user-7"], subscribe=["user-7"])
        replies = [
            self.ask(method, f"/tasks/{place}", line, JSON, body=b"1" if method == "POST" else b"")
            for place in ("user-42/sum", "user-42/other", "nobody/sum")
            for method in ("POST", "GET")
        ]
        self.assertEqual({reply.status for reply in replies}, {403})
        bodies = {json.dumps(json_of(reply)["error"], sort_keys=True) for reply in replies}
        self.assertEqual(len(bodies), 1)
        for line in (self.may(subscribe=["nobody"]), self.may(start=["nobody"])):
            self.assertEqual(self.ask("GET", "/tasks/nobody/sum", line).status, 404)

    def test_who_starts_may_read_that_and_nothing_else(self) -> None:
        """One task and its result; no list, no event, and no report."""
        line = self.may(start=["user-42"])
        self.assertEqual(self.put("/tasks/user-42/sum", line), 202)
        self.assertEqual(self.ask("GET", "/tasks/user-42/sum", line).status, 200)
        self.assertEqual(self.ask("GET", "/tasks/user-42/sum/result", line).status, 409)
        self.assertEqual(self.ask("GET", "/tasks/user-42", line).status, 403)
        self.assertEqual(self.statuses("user-42", line), [403] * 3)
        report = ("Task: sum", "Task-State: completed", JSON)
        self.assertEqual(self.post("user-42", *report, line).status, 403)
        writer = self.may(publish=["user-42"])
        self.assertEqual(self.ask("GET", "/tasks/user-42/sum", writer).status, 403)

    def test_spellings_of_a_path(self) -> None:
        """Each segment is decoded once, and none of them becomes two."""
        line = self.may(start=["a/b", "b"])
        for target, status in (
            ("/tasks/a%2Fb/sum", 202),
            ("/tasks/a%2fb/s%2Fum", 202),
            ("/tasks/a/b", 403),
            ("/tasks/a/b/sum", 403),
            ("/tasks/a%252Fb/sum", 403),
            ("/tasks/x/../b/sum", 403),
            ("/tasks//b/sum", 400),
            ("//tasks/b/sum", 404),
            ("/tasks/b/sum%00", 400),
            ("/tasks/b%00/sum", 400),
            ("/tasks/%C0%AE/sum", 400),
            ("/tasks/b/" + "x" * 257, 400),
        ):
            self.assertEqual(self.put(target, line), status, target)
        self.assertEqual(self.begun(), [("a/b", "sum"), ("a/b", "s/um")])

    def test_other_methods_start_nothing(self) -> None:
        """Also with the headers by which some frameworks replace a method."""
        line = self.may(subscribe=["user-42"], start=["user-42"])
        for method in ("GET", "HEAD", "DELETE", "PATCH", "OPTIONS"):
            override = ("X-HTTP-Method-Override: PUT", "X-Method-Override: PUT")
            reply = self.ask(method, "/tasks/user-42/sum?_method=PUT", line, *override)
            self.assertIn(reply.status, (200, 404, 405, 501), method)
        self.assertEqual(self.begun(), [])

    def test_a_page_of_another_origin_starts_nothing(self) -> None:
        """Even with a credential that could; no page can read the answer either."""
        line = self.may(start=["user-42"])
        for origin in ("https://evil.example", "null"):
            lines = (f"Origin: {origin}", "Sec-Fetch-Site: cross-site", line)
            self.assertEqual(set(self.attempts("user-42", *lines)), {403})
        self.assertEqual(self.begun(), [])

    def test_what_a_client_says_in_our_headers_is_dropped(self) -> None:
        """The application hears whose task it is from us."""
        lies = ("Plumber-Account: root", "Plumber-Run: x", "Plumber-Callback: http://evil.example/")
        self.assertEqual(self.put("/tasks/user-42/sum", self.may(start=["user-42"]), *lies), 202)
        [run] = self.runs
        self.assertEqual((run.account, run.task), ("user-42", "sum"))
        self.assertNotEqual(run.run, "x")

    def test_a_token_that_has_ended_or_is_revoked(self) -> None:
        """It starts nothing any more, and cancels nothing."""
        ends = self.bearer(self.token(exp=int(NOW) + 60, plumber={"start": ["user-42"]}))
        revoked = self.bearer(self.token(sub="user-7", plumber={"start": ["user-42"]}))
        self.assertEqual(self.put("/tasks/user-42/sum", ends), 202)
        self.assertEqual(self.put("/tasks/user-42/sum", revoked), 202)
        self.begun()
        self.advance(1)
        body = b'{"sub": "user-7"}'
        reply = self.ask("POST", "/revocations", self.bearer(ADMIN), body=body)
        self.assertEqual(reply.status, 201)
        self.assertEqual(self.attempts("user-42", revoked), [401] * 5)
        self.advance(90)
        self.assertEqual(self.attempts("user-42", ends), [401] * 5)
        self.assertEqual(self.begun(), [])

    def test_whoever_waits_hears_nothing_after_a_revocation(self) -> None:
        """The wait ends within five seconds, and the task goes on."""
        waiting = [
            self.send("PUT", "/tasks/user-42/sum", "Prefer: wait=60", line, body=b"1")
            for line in (
                self.may(start=["user-42"]),
                self.bearer(self.token(sub="user-7", plumber={"start": ["user-42"]})),
            )
        ]
        self.assertEqual([client.value() for client in waiting], [b"", b""])
        body = b'{"sub": "user-7"}'
        self.ask("POST", "/revocations", self.bearer(ADMIN), body=body)
        self.advance(5)
        first, second = [client.value() for client in waiting]
        self.assertEqual(first, b"")
        self.assertEqual(second.split(b" ", 2)[1], b"401")
        writer = self.may(publish=["user-42"])
        self.post("user-42", writer, "Task: sum", "Task-State: completed", JSON, body=b"7")
        self.assertEqual(waiting[0].value().split(b" ", 2)[1], b"200")

    # By WebSocket

    def replies(self, client: MemoryClient, *messages: Any) -> list[Any]:
        """Send messages; return the statuses of their replies."""
        for number, message in enumerate(messages):
            client.send(client_frame(json.dumps({"id": number, **message}).encode()))
            self.settle()
        frames = server_frames(client.value().partition(b"\r\n\r\n")[2])
        found = [json.loads(data) for opcode, data in frames if opcode == TEXT]
        return [each["status"] for each in found if each["type"] == "plumber.reply"]

    def test_a_websocket_starts_what_its_token_may_start(self) -> None:
        """A message names no account, and what it names beside is not looked at."""
        start = {"method": "start", "task": "sum", "input": 1}
        cancel = {"method": "cancel", "task": "sum"}
        lies = {"account": "user-7", "grant": "all", "token": self.token()}
        both = self.may(subscribe=["user-42"], start=["user-42"])
        reader = self.may(subscribe=["user-42"], publish=["user-42"], start=["user-7"])
        socket = self.handshake("user-42", reader)
        statuses = self.replies(socket, start, cancel, {**start, **lies})
        self.assertNotIn(202, statuses)
        self.assertEqual(statuses[:2], [403, 403])
        self.assertEqual(self.begun(), [])
        self.assertEqual(self.replies(self.handshake("user-42", both), start), [202])
        self.assertEqual(self.begun(), [("user-42", "sum")])

    def test_a_ticket_starts_nothing(self) -> None:
        """Also one that was made with a token that could: it is part of a URL."""
        line = self.may(subscribe=["user-42"], start=["user-42"])
        made = json_of(self.ask("POST", "/tickets", line, body=b'{"account": "user-42"}'))
        self.given_out.add(self.secret(made["ticket"]))
        socket = self.handshake(f"user-42?ticket={made['ticket']}")
        start = {"method": "start", "task": "sum", "input": 1}
        self.assertEqual(
            self.replies(socket, start, {"method": "cancel", "task": "sum"}), [403, 403]
        )
        self.assertEqual(self.begun(), [])


class MountedTaskAttacks(TaskAttacks):
    """The same in a site of another application."""

    make_server = MountedServer
