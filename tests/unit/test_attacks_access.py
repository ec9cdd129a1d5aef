"""Attacks on what a token allows: accounts, paths, subprotocols, and the end of a grant."""

from __future__ import annotations

import json
from typing import Any

from asyncplumber.testing import NOW, ClientResponse, MemoryClient
from harness.frames import CLOSE, TEXT, close_code, server_frames
from harness.memory_subscribers import dechunked, parse_event_stream
from harness.mounted import MountedServer
from tests.attackers import HOST, AttackCase, b64, json_of
from tests.unit import IS_FAST

ORIGIN = f"Origin: http://{HOST}"


class AccessAttacks(AttackCase):
    """Rows 11 to 14."""

    def poll(self, path: str, token: str) -> ClientResponse:
        """Ask for the events of an account, which is part of the path as it is."""
        return self.ask("GET", f"/events/{path}?wait=0", self.bearer(token))

    def test_11_the_account_of_somebody_else(self) -> None:
        """The answer is the same whether or not it exists, and nothing is left."""
        token = self.token()
        absent = self.poll("user-7", token)
        self.assertEqual(self.statuses("user-7", self.bearer(token)), [403] * 3)
        self.nothing_stored()
        theirs = self.token(sub="user-7", plumber={"subscribe": ["user-7"], "publish": ["user-7"]})
        self.good(theirs, "user-7")
        accounts = self.server.plumber.hub.accounts
        there = self.poll("user-7", token)
        for reply in (absent, there):
            self.assertEqual(reply.status, 403)
            self.assertEqual(
                reply.headers[b"www-authenticate"],
                b'Bearer realm="asyncplumber", error="insufficient_scope"',
            )
        self.assertEqual((absent.body, sorted(absent.headers)), (there.body, sorted(there.headers)))
        self.assertEqual(self.server.plumber.hub.accounts, accounts)
        self.assertEqual(self.ask("GET", "/accounts/user-7", self.bearer(token)).status, 403)

    def test_12_a_user_who_is_called_star(self) -> None:
        """A name never is a pattern."""
        for name, path in (("*", "%2A"), ("user-*", "user-%2A"), (".*", ".%2A"), ("%", "%25")):
            token = self.token(sub=name, plumber={"subscribe": [name]})
            self.assertEqual(self.poll("user-1", token).status, 403, name)
            self.assertEqual(self.poll(path, token).status, 200, name)
        for entry in ({"prefix": ""}, {"prefix": "a", "all": True}, {"regex": ".*"}, {"all": 1}):
            self.assertEqual(self.poll("a", self.token(plumber={"subscribe": [entry]})).status, 401)

    def test_13_spellings_of_a_path(self) -> None:
        """An account is compared after it was decoded, once."""
        token = self.token(plumber={"subscribe": ["a/b", "\u00e9"], "publish": ["a/b"]})
        for path, status in (
            ("a%2Fb", 200),
            ("a%2fb", 200),
            ("a%252Fb", 403),
            ("A%2Fb", 403),
            ("a/b", 400),
            ("a%2Fb/", 400),
            ("a%00b", 400),
            ("a%2Fb%00", 400),
            ("%61%2F%62", 200),
            ("%C3%A9", 200),
            ("e%CC%81", 403),  # the same letter, composed of two characters
            ("%C0%AE", 400),
            ("a%2Fb;x", 403),
            ("a%2Fb%20", 403),
            ("a%2Fb%3Fx", 403),
            ("x/../a%2Fb", 400),
            ("a%2", 400),
        ):
            self.assertEqual(self.poll(path, token).status, status, path)
            if status != 200:
                posted = self.post(path, self.bearer(token))
                self.assertEqual(posted.status, status, path)
        for target in ("//events/a%2Fb", "/events//a%2Fb", "/x/../events/a%2Fb", "/events"):
            reply = self.ask("GET", target, self.bearer(self.token()))
            self.assertIn(reply.status, (400, 403, 404), target)

    def test_14_posting_without_the_right(self) -> None:
        """Not to the webhook, not by skyhooks' payload, not to the URL in the registry."""
        reader = self.bearer(self.token(plumber={"subscribe": ["a", "b"]}))
        writer = self.bearer(self.token(plumber={"publish": ["a"]}))
        own = f"/instances/{self.server.plumber.leases.instance.id}/hooks"
        foreign = b'{"keys": {"account_id": "b"}, "data": 1}'
        content = "Content-Type: application/json"
        for line, target, body in (
            (reader, "/hooks/a", b"1"),
            (reader, "/hooks", foreign),
            (reader, f"{own}/a", b"1"),
            (writer, "/hooks/b", b"1"),
            (writer, "/hooks", foreign),
            (writer, f"{own}/b", b"1"),
        ):
            reply = self.ask("POST", target, line, content, body=body)
            self.assertEqual(reply.status, 403, target)
        for line in ("", reader, writer):
            lines = [line] if line else []
            reply = self.ask("POST", "/instances/x/events", *lines, body=b"[]")
            self.assertIn(reply.status, (401, 403, 410))
        self.nothing_stored()

    def test_14_tasks_of_somebody_else(self) -> None:
        """Neither started, nor read, nor canceled, nor reported; and nothing is left."""
        reader = self.bearer(self.token(plumber={"subscribe": ["a"], "publish": ["a"]}))
        starter = self.bearer(self.token(plumber={"start": ["a"]}))
        for line, method, target, status in (
            (reader, "PUT", "/tasks/a/x", 403),
            (reader, "POST", "/tasks/a", 403),
            (reader, "POST", "/tasks/a/x/cancel", 403),
            (starter, "PUT", "/tasks/b/x", 403),
            (starter, "POST", "/tasks/b", 403),
            (starter, "GET", "/tasks/b/x", 403),
            (starter, "GET", "/tasks/a", 403),
            (starter, "PUT", "/tasks/a%2F..%2Fb/x", 403),
            (starter, "PUT", "/tasks/A/x", 403),
            (starter, "PUT", "/tasks/a%00/x", 400),
            (starter, "PUT", "/tasks/a/x%0d%0aSet-Cookie:%20x", 400),
            (starter, "PUT", "/tasks/a/x/../../b/x", 404),
        ):
            reply = self.ask(method, target, line, body=b"1" if method != "GET" else b"")
            self.assertEqual(reply.status, status, (method, target))
            self.assertNotIn(b"set-cookie", reply.headers)
        self.assertEqual(self.ask("POST", "/hooks/a", starter, "Task: x", body=b"1").status, 403)
        # Whoever has the right finds that there is nothing that starts tasks here.
        self.assertEqual(self.ask("PUT", "/tasks/a/x", starter, body=b"1").status, 404)
        self.nothing_stored()

    def test_14_a_result_is_no_page_of_ours(self) -> None:
        """Neither a result nor an error of a stranger runs in the origin of this server."""
        token = self.bearer(self.token())
        script = b"<script>fetch('/revocations')</script>"
        for state, kind in (("completed", "text/html"), ("failed", "text/html")):
            self.post(
                "user-42",
                token,
                f"Task: {state}",
                f"Task-State: {state}",
                f"Content-Type: {kind}",
                body=script,
            )
            for target in (f"/tasks/user-42/{state}", f"/tasks/user-42/{state}/result"):
                reply = self.ask("GET", target, token)
                self.assertEqual(reply.headers[b"x-content-type-options"], b"nosniff")
                if reply.headers[b"content-type"].startswith(b"text/html"):
                    self.assertIn(b"sandbox", reply.headers[b"content-security-policy"])
                    self.assertNotIn(b"allow", reply.headers[b"content-security-policy"])
                else:
                    self.assertIn(b"json", reply.headers[b"content-type"])

    def test_14_a_run_is_no_header_of_ours(self) -> None:
        """What a sender calls a run comes back in one header, or is refused."""
        token = self.bearer(self.token())
        for run in ("a\tb", "x" * 257, "\xc2\x85", "a\x0bb"):
            reply = self.post("user-42", token, "Task: t", f"Task-Run: {run}")
            self.assertEqual(reply.status, 400, run)
        self.post("user-42", token, "Task: t", "Task-Run: \u00e9 \u2192 x: y")
        reply = self.ask("GET", "/tasks/user-42/t", token)
        self.assertEqual(reply.headers[b"task-run"], b"%C3%A9%20%E2%86%92%20x%3A%20y")

    def test_14_no_token_makes_an_administrator(self) -> None:
        """Whatever it says; and what it says beyond the two lists refuses it."""
        everything = {"subscribe": [{"all": True}], "publish": [{"all": True}]}
        for token, status in (
            (self.token(plumber=everything), 403),
            (self.token(plumber=everything, admin=True, is_admin=True, scope="admin"), 403),
            (self.token(plumber={**everything, "admin": True}), 401),
        ):
            for method, target in (("GET", "/metrics"), ("POST", "/revocations")):
                reply = self.ask(method, target, self.bearer(token), body=b'{"sub": "user-42"}')
                self.assertEqual(reply.status, status, target)


class MountedAccessAttacks(AccessAttacks):
    """The same in a site of another application."""

    make_server = MountedServer


class SocketAttacks(AttackCase):
    """Rows 15 and 16."""

    def protocols(self, *entries: str) -> str:
        """Return the header by which a browser offers subprotocols."""
        return f"Sec-WebSocket-Protocol: {', '.join(entries)}"

    def status(self, client: MemoryClient) -> int:
        """Return the status of what a client received."""
        return int(client.value().split(b" ", 2)[1])

    def test_15_tokens_in_subprotocols(self) -> None:
        """One beside another subprotocol, which is chosen; the token is never echoed."""
        token = self.token()
        entry = self.secret(f"plumber.bearer.{b64(token.encode())}")
        client = self.handshake("user-42", self.protocols("plumber.v1", entry))
        head = client.received().partition(b"\r\n\r\n")[0]
        self.assertTrue(head.startswith(b"HTTP/1.1 101 "))
        self.assertIn(b"\r\nSec-WebSocket-Protocol: plumber.v1", head)
        other = self.secret(f"plumber.bearer.{b64(self.token(sub='user-7').encode())}")
        for lines in (
            [self.protocols("plumber.v1", entry, other)],
            [self.protocols("plumber.v1", entry, entry)],
            [self.protocols(entry)],
            [self.protocols("plumber.v1", "plumber.bearer.%%%")],
            [self.protocols("plumber.v1", f"{entry}=")],
            [self.protocols("plumber.v1", "plumber.bearer.")],
            [self.protocols("plumber.v1", f"plumber.bearer.{b64(bytes([255, 254]))}")],
            [self.protocols("plumber.v1", entry), self.bearer(token)],
            [self.protocols("plumber.v1"), self.protocols(entry), self.protocols(other)],
        ):
            self.assertEqual(self.status(self.handshake("user-42", *lines)), 400, lines)

    def test_15_a_token_in_a_url(self) -> None:
        """It is refused everywhere, and the answer says where it belongs."""
        token = self.token()
        for method, target in (("GET", "/events/user-42"), ("POST", "/hooks/user-42")):
            reply = self.ask(method, f"{target}?access_token={token}")
            self.assertEqual(reply.status, 400)
            self.assertIn("Authorization", json_of(reply)["error"]["message"])
            # It does not help beside a good one either: it is in the logs by now.
            both = self.ask(method, f"{target}?access_token={token}", self.bearer(token))
            self.assertEqual(both.status, 400)
        self.nothing_stored()

    def test_16_an_expired_token(self) -> None:
        """A page is told by a close code, a program by the status."""
        for token, code in (
            (self.token(exp=int(NOW) - 60), 4401),
            (self.token(plumber={}), 4403),
        ):
            entry = self.secret(f"plumber.bearer.{b64(token.encode())}")
            offered = self.protocols("plumber.v1", entry)
            client = self.handshake("user-42", offered, ORIGIN)
            head, _, frames = client.received().partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 101 "))
            ((opcode, payload),) = server_frames(frames)
            self.assertEqual((opcode, close_code(payload)), (CLOSE, code))
            self.assertEqual(self.status(self.handshake("user-42", offered)), code - 4000)
            foreign = self.handshake("user-42", offered, "Origin: https://evil.example")
            self.assertEqual(self.status(foreign), 403)
        self.nothing_stored()


class MountedSocketAttacks(SocketAttacks):
    """The same in a site of another application."""

    make_server = MountedServer


class ExpiryAttacks(AttackCase):
    """Row 17: events arrive all the time while a grant ends."""

    def read(self, kind: str, client: MemoryClient) -> list[dict[str, Any]]:
        """Return the envelopes that a client has received so far."""
        head, _, rest = client.value().partition(b"\r\n\r\n")
        if kind == "socket":
            return [json.loads(data) for opcode, data in server_frames(rest) if opcode == TEXT]
        if kind == "stream":
            data = dechunked(rest.removesuffix(b"0\r\n\r\n"))[0] if b"chunked" in head else rest
            return [json.loads(event["data"]) for event in parse_event_stream(data)]
        return list(json.loads(rest)["events"])

    def test_17_events_while_a_token_ends(self) -> None:
        """All end in the last fifth, nothing comes later, and a new token misses nothing."""
        end = int(NOW) + 20
        line = self.bearer(self.token(exp=end))
        writer = self.bearer(self.token(exp=int(NOW) + 3600))
        stream_line = "Accept: text/event-stream"
        clients = {
            "socket": self.handshake("user-42", line),
            "stream": self.send("GET", "/events/user-42", stream_line, line),
        }
        idle = self.send("GET", "/events/quiet?wait=120", self.bearer(self.quiet(end)))
        ended: dict[str, float] = {}
        sent = 0
        while self.now < end + 5:
            self.assertIn(self.post("user-42", writer, body=b"%d" % sent).status, (201, 202))
            sent += 1
            self.server.advance(0.1 if IS_FAST else 0.01)
            for name, is_over in (
                ("socket", (4401).to_bytes(2, "big") in clients["socket"].value()[-60:]),
                ("stream", clients["stream"].ended is not None),
                ("idle", bool(idle.value())),
            ):
                if is_over:
                    ended.setdefault(name, self.now - NOW)
        self.assertEqual(set(ended), {"socket", "stream", "idle"})
        for name, seconds in ended.items():
            self.assertTrue(15.9 <= seconds <= 20.11, f"{name} ended after {seconds} s")
        opcode, payload = server_frames(clients["socket"].value().partition(b"\r\n\r\n")[2])[-1]
        self.assertEqual((opcode, close_code(payload)), (CLOSE, 4401))
        fresh = self.bearer(self.token(exp=int(NOW) + 3600))
        for kind, client in clients.items():
            envelopes = self.read(kind, client)
            bye = envelopes[-1]
            self.assertEqual((bye["type"], bye["data"]["reason"]), ("plumber.bye", "expired"))
            first = [found for found in envelopes if not found["type"].startswith("plumber.")]
            after = first[-1]["cursor"]
            rest = json_of(self.ask("GET", f"/events/user-42?after={after}&wait=0", fresh))
            data = [found["data"] for found in [*first, *rest["events"]]]
            self.assertEqual(data, list(range(sent)), kind)

    def quiet(self, end: int) -> str:
        """Return a token for an account to which nobody posts."""
        return self.token(exp=end, plumber={"subscribe": ["quiet"]})


class MountedExpiryAttacks(ExpiryAttacks):
    """The same in a site of another application."""

    make_server = MountedServer
