"""``/tasks`` over HTTP, at our own port and in a site of another application."""

from __future__ import annotations

from asyncplumber.interfaces import Finished, Later, Refused
from harness.mounted import MountedServer, klein_site, nested_site, twisted_site
from tests.task_http import JSON, TaskCase, header, told

SUM = "/tasks/42/sum"


class StartTests(TaskCase):
    """``PUT /tasks/{account}/{task}``."""

    def test_01_an_answer_at_once_is_the_response(self) -> None:
        """Scenario 1: status 200, and the result as it is."""
        self.starter.answer = Finished("application/json", b'{"total": 7}')
        reply = self.ask("PUT", SUM, b"[3,4]", JSON)
        self.assertEqual((reply.status, reply.body), (200, b'{"total": 7}'))
        self.assertEqual(header(reply, "Content-Type"), "application/json")
        self.assertEqual(header(reply, "Task-State"), "completed")
        self.assertEqual(header(reply, "Task-Run"), self.starter.run)
        self.assertEqual(header(reply, "Task-Joined"), "false")
        self.assertEqual(header(reply, "Location"), SUM)
        self.assertEqual(header(reply, "Cache-Control"), "no-store")
        self.assertIn("Prefer", header(reply, "Vary") or "")
        (dispatched,) = self.starter.dispatched
        self.assertEqual(
            (dispatched.account, dispatched.task, dispatched.content_type, dispatched.body),
            ("42", "sum", "application/json", b"[3,4]"),
        )
        self.assertEqual(self.types(), ["task.submitted", "task.completed"])
        self.assertEqual(self.events()[1]["task"]["state"], "completed")

    def test_02_a_result_that_comes_within_the_wait(self) -> None:
        """Scenario 2: the held request is answered at the moment of the report."""
        client = self.send("PUT", SUM, b"[3,4]", JSON, ("Prefer", "wait=10"))
        self.server.advance(2)
        self.assertEqual(client.received(), b"")
        self.report("sum", "running", b'{"done": 1}', ("Task-Run", self.starter.run))
        self.report("sum", "completed", b'{"total": 7}', ("Task-Run", self.starter.run))
        reply = self.heard(client)
        self.assertEqual((reply.status, reply.body), (200, b'{"total": 7}'))
        self.assertEqual(header(reply, "Preference-Applied"), "wait=10")
        self.assertEqual(self.types(), ["task.submitted", "task.started", "task.completed"])

    def test_03_a_wait_that_ends_before_the_result(self) -> None:
        """Scenario 3: 202, which nobody can take for the result; the task object can be held."""
        client = self.send("PUT", SUM, b"[3,4]", JSON, ("Prefer", "wait=1"))
        self.server.advance(0.5)
        self.assertEqual(client.received(), b"")
        self.server.advance(0.5)
        reply = self.heard(client)
        self.assertEqual((reply.status, told(reply)["done"]), (202, False))
        self.assertNotIn("result", told(reply))
        self.assertEqual(header(reply, "Location"), SUM)
        self.assertEqual(header(reply, "Retry-After"), "2")
        self.assertEqual(header(reply, "Preference-Applied"), "wait=1")
        self.assertEqual(header(reply, "Task-State"), "submitted")
        held = self.send("GET", f"{SUM}?wait=10")
        self.server.advance(3)
        self.report("sum", "completed", b"7", ("Task-Run", self.starter.run))
        reply = self.heard(held)
        self.assertEqual((reply.status, told(reply)["done"], told(reply)["result"]), (200, True, 7))
        self.assertIsNone(header(reply, "Retry-After"))

    def test_preferences(self) -> None:
        """Each as RFC 7240 says; what is not understood is ignored."""
        for number, (prefer, seconds, applied) in enumerate(
            (
                ("respond-async", 0, "respond-async"),
                ("Respond-Async, wait=3", 3, "respond-async, wait=3"),
                ('wait="3"; x=1', 3, "wait=3"),
                ("wait=3, wait=9", 3, "wait=3"),
                ('x="a, wait=9", wait = 3', 3, "wait=3"),
                ("wait=0", 0, "wait=0"),
                ("wait=100000", 120, "wait=120"),
                ("wait=-1", 25, None),
                ("wait=x, foo", 25, None),
                ("", 25, None),
            )
        ):
            path = f"/tasks/42/{number}"
            lines = (("Prefer", prefer),) if prefer else ()
            client = self.send("PUT", path, b"1", JSON, *lines)
            if seconds:
                self.server.advance(seconds - 0.5)
                self.assertEqual(client.received(), b"", prefer)
                self.server.advance(0.5)
            reply = self.heard(client)
            self.assertEqual((reply.status, header(reply, "Preference-Applied")), (202, applied))
        client = self.send("PUT", "/tasks/42/query?wait=2", b"1", ("Prefer", "wait=9"))
        self.server.advance(2)
        self.assertEqual(self.heard(client).status, 202)

    def test_05_many_join_one_run(self) -> None:
        """Scenario 5: one dispatch, one that began, and the same result for all."""
        clients = [self.send("PUT", SUM, b"[3,4]", JSON) for _ in range(200)]
        self.assertEqual(len(self.starter.dispatched), 1)
        self.report("sum", "completed", b'{"total": 7}', ("Task-Run", self.starter.run))
        replies = [self.heard(client) for client in clients]
        self.assertEqual(
            {(reply.status, reply.body) for reply in replies}, {(200, b'{"total": 7}')}
        )
        joined = [header(reply, "Task-Joined") for reply in replies]
        self.assertEqual((joined.count("false"), joined.count("true")), (1, 199))

    def test_06_another_input(self) -> None:
        """Scenario 6: refused while live; nothing joins; after the end there is a new run."""
        first = self.send("PUT", SUM, b"[3,4]", JSON)
        for body, lines in ((b"[5]", (JSON,)), (b"[3,4]", (("Content-Type", "text/plain"),))):
            reply = self.ask("PUT", SUM, body, *lines)
            self.assertEqual(reply.status, 422)
            self.assertEqual(header(reply, "Content-Type"), "application/problem+json")
            self.assertEqual(header(reply, "Task-Joined"), "false")
            document = told(reply)
            self.assertEqual(
                (document["status"], document["error"]["code"], document["task"]["run"]),
                (422, "other-input", self.starter.run),
            )
        joined = self.send("PUT", SUM)
        self.report("sum", "completed", b"7", ("Task-Run", self.starter.run))
        for client in (first, joined):
            self.assertEqual(self.heard(client).body, b"7")
        run = self.starter.run
        self.send("PUT", SUM, b"[5]", JSON)
        self.assertEqual(len(self.starter.dispatched), 2)
        self.assertNotEqual(self.starter.run, run)

    def test_ends_without_a_result(self) -> None:
        """Each has its status, and is a problem document with the task object."""
        for state, status in (("failed", 502), ("canceled", 409)):
            client = self.send("PUT", SUM, b"1")
            self.report("sum", state, b'"no <b>money</b>"', ("Task-Run", self.starter.run))
            reply = self.heard(client)
            document = told(reply)
            self.assertEqual((reply.status, document["status"]), (status, status))
            self.assertEqual(header(reply, "Content-Type"), "application/problem+json")
            self.assertEqual(header(reply, "Task-State"), state)
            self.assertEqual(
                (document["error"]["code"], document["detail"]), (state, "no <b>money</b>")
            )
            self.assertEqual(document["task"]["error"]["message"], "no <b>money</b>")
            self.assertEqual(
                (document["task"]["done"], "result" in document["task"]), (True, False)
            )

    def test_a_lost_run(self) -> None:
        """Nobody reports that it began, and the held request is answered."""
        self.send("PUT", SUM, b"1", ("Prefer", "respond-async"))
        self.server.advance(590)
        client = self.send("PUT", SUM, b"1")
        self.server.advance(20)
        reply = self.heard(client)
        self.assertEqual((reply.status, told(reply)["task"]["error"]["type"]), (504, "not-started"))
        self.assertEqual(header(reply, "Task-State"), "lost")

    def test_what_the_application_refuses(self) -> None:
        """Its own status, unless that has a meaning for the connection or is none."""
        for given, status in (
            (422, 422),
            (404, 404),
            (403, 403),
            (401, 502),
            (407, 502),
            (499, 502),
        ):
            self.starter.answer = Refused(given, "application/json", b'{"detail": "no"}')
            reply = self.ask("PUT", SUM, b"1")
            self.assertEqual((reply.status, header(reply, "Task-State")), (status, "failed"), given)
            self.assertEqual(told(reply)["error"]["code"], "failed")

    def test_without_a_starter(self) -> None:
        """There is nothing to start; looking and reporting work all the same."""
        self.starter = None  # type: ignore[assignment]
        self.server = self.make_server(**self.options())
        reply = self.ask("PUT", SUM, b"1")
        self.assertEqual((reply.status, told(reply)["error"]["code"]), (404, "no-starter"))
        self.assertEqual(self.report("sum", "completed", b"7").status, 202)
        self.assertEqual(told(self.ask("GET", SUM))["result"], 7)
        self.assertEqual(self.ask("GET", f"{SUM}/result").body, b"7")

    def test_16_results_of_the_past(self) -> None:
        """Scenario 16: only if asked for, by the words of HTTP."""
        cached = ("Cache-Control", "max-age=60")
        only = ("Cache-Control", "only-if-cached")
        self.assertEqual(self.ask("PUT", SUM, b"1", only).status, 504)
        self.assertEqual(self.starter.dispatched, [])
        self.starter.answer = Finished("text/plain", b"seven")
        self.assertEqual(self.ask("PUT", SUM, b"1", cached).status, 200)
        self.server.advance(10)
        for line in (cached, only, ("Cache-Control", "only-if-cached, max-age=11")):
            reply = self.ask("PUT", SUM, b"1", line)
            self.assertEqual(
                (reply.status, reply.body, header(reply, "Age")), (200, b"seven", "10")
            )
            self.assertEqual(header(reply, "Task-Joined"), "true")
        for line in (
            ("Cache-Control", "only-if-cached, max-age=9"),
            ("Cache-Control", "only-if-cached, no-cache"),
        ):
            reply = self.ask("PUT", SUM, b"1", line)
            self.assertEqual((reply.status, told(reply)["error"]["code"]), (504, "nothing-cached"))
        self.assertEqual(len(self.starter.dispatched), 1)
        # The result of another input is none of this one.
        self.assertEqual(self.ask("PUT", SUM, b"2", only).status, 504)
        for count, line in enumerate(
            (("X", "x"), ("Cache-Control", "no-cache"), ("Cache-Control", "max-age=0")), 2
        ):
            reply = self.ask("PUT", SUM, b"1", line)
            self.assertEqual((reply.status, header(reply, "Age")), (200, None))
            self.assertEqual(len(self.starter.dispatched), count)
        self.starter.answer = Later()
        self.send("PUT", SUM, b"1")
        reply = self.ask("PUT", SUM, b"1", ("Cache-Control", "no-cache"), ("Prefer", "wait=0"))
        self.assertEqual((reply.status, header(reply, "Task-Joined")), (202, "true"))
        self.assertEqual(len(self.starter.dispatched), 5)

    def test_post_makes_a_key(self) -> None:
        """The response says which; with Idempotency-Key the client does."""
        reply = self.ask("POST", "/tasks/42", b"1", ("Prefer", "respond-async"))
        location = header(reply, "Location") or ""
        self.assertEqual((reply.status, location.rpartition("/")[0]), (202, "/tasks/42"))
        self.assertEqual(location.rpartition("/")[2], self.starter.dispatched[0].task)
        self.ask("POST", "/tasks/42", b"1", ("Prefer", "respond-async"))
        self.assertEqual(len({each.task for each in self.starter.dispatched}), 2)
        self.starter.answer = Finished("text/plain", b"seven")
        key = ("Idempotency-Key", '"a \\"b\\"/c"')
        for joined in ("false", "true"):
            reply = self.ask("POST", "/tasks/42", b"1", key)
            self.assertEqual((reply.status, reply.body), (200, b"seven"))
            self.assertEqual(header(reply, "Location"), "/tasks/42/a%20%22b%22%2Fc")
            self.assertEqual(header(reply, "Task-Joined"), joined)
        self.assertEqual(len(self.starter.dispatched), 3)
        reply = self.ask("POST", "/tasks/42", b"2", key)
        self.assertEqual((reply.status, told(reply)["error"]["code"]), (422, "other-input"))

    def test_post_does_what_put_does(self) -> None:
        """For clients that have no PUT."""
        self.starter.answer = Finished("text/plain", b"seven")
        self.assertEqual(self.ask("POST", SUM, b"1").body, b"seven")


class LookTests(TaskCase):
    """What can be asked about a task."""

    def test_the_bare_result_is_what_was_posted(self) -> None:
        """With its content type; text always names its charset, and a page is harmless."""
        for content_type, body, told_type in (
            ("application/json", b'{"a": 1e400}', "application/json"),
            ("", b"[1]", "application/json"),
            ("text/plain", "é".encode(), "text/plain; charset=utf-8"),
            ("text/plain; charset=latin-1", b"\xe9", "text/plain; charset=latin-1"),
            ("text/html", b"<script>alert(1)</script>", "text/html; charset=utf-8"),
            ("image/png", b"\x89PNG\x00", "image/png"),
            ("text/csv; header=present", b"a,b", "text/csv; header=present; charset=utf-8"),
        ):
            lines = [("Content-Type", content_type)] if content_type else []
            self.server.post("42", body, ("Task", "x"), *lines)
            reply = self.ask("GET", "/tasks/42/x/result")
            self.assertEqual((reply.status, reply.body), (200, body))
            self.assertEqual(header(reply, "Content-Type"), told_type)
            self.assertIn("sandbox", header(reply, "Content-Security-Policy") or "")
            self.assertEqual(header(reply, "X-Content-Type-Options"), "nosniff")
            self.assertEqual(self.ask("HEAD", "/tasks/42/x/result").status, 200)

    def test_a_result_that_is_not_there_yet(self) -> None:
        """409; with a wait it is waited for."""
        self.report("x", "running")
        reply = self.ask("GET", "/tasks/42/x/result")
        self.assertEqual((reply.status, told(reply)["error"]["code"]), (409, "not-ended"))
        self.assertEqual(header(reply, "Retry-After"), "2")
        client = self.send("GET", "/tasks/42/x/result?wait=5")
        self.report("x", "failed", b'{"type": "E", "message": "m"}')
        reply = self.heard(client)
        self.assertEqual((reply.status, told(reply)["task"]["error"]["type"]), (502, "E"))

    def test_nobody_knows_it(self) -> None:
        """404, also with a wait: a key that is misspelt waits for nothing."""
        for path in ("/tasks/42/x", "/tasks/42/x?wait=10", "/tasks/42/x/result"):
            reply = self.ask("GET", path)
            self.assertEqual((reply.status, told(reply)["error"]["code"]), (404, "unknown-task"))
        self.assertEqual(self.ask("POST", "/tasks/42/x/cancel").status, 404)

    def test_the_list(self) -> None:
        """The live ones first; results have a URL there."""
        self.report("done/é".encode().decode("latin-1"), "completed", b"7")
        self.report("live", "running", b'{"page": 3}')
        self.server.post("43", b"1", ("Task", "other"))
        found = told(self.ask("GET", "/tasks/42"))
        self.assertEqual((found["account"], found["more"]), ("42", False))
        live, done = found["tasks"]
        self.assertEqual((live["task"], live["progress"]), ("live", {"page": 3}))
        self.assertEqual((done["task"], "result" in done), ("done/é", False))
        self.assertEqual(done["result_url"], "/tasks/42/done%2F%C3%A9/result")
        self.assertEqual(self.ask("GET", done["result_url"]).body, b"7")
        live_only = told(self.ask("GET", "/tasks/42?live"))["tasks"]
        self.assertEqual([task["task"] for task in live_only], ["live"])
        self.assertEqual(told(self.ask("GET", "/tasks/none"))["tasks"], [])

    def test_a_result_that_only_the_history_has(self) -> None:
        """It is read from there; when that has dropped it, the task is known all the same."""
        body = b'"' + b"x" * 100_000 + b'"'
        self.report("x", "completed", body)
        self.server.settle()
        self.assertEqual(self.ask("GET", "/tasks/42/x/result").body, body)
        self.assertEqual(len(told(self.ask("GET", "/tasks/42/x"))["result"]), 100_000)

    def test_cancel(self) -> None:
        """It is asked for; each receipt of the run says so; after the end it is refused."""
        self.ask("PUT", SUM, b"1", ("Prefer", "respond-async"))
        reply = self.ask("POST", f"{SUM}/cancel")
        self.assertEqual((reply.status, told(reply)["cancel_requested"]), (202, True))
        self.assertEqual(self.starter.canceled, [self.starter.run])
        receipt = told(self.report("sum", "running", b"", ("Task-Run", self.starter.run)))
        self.assertIs(receipt["task"]["cancel"], True)
        receipt = told(self.report("sum", "canceled", b"", ("Task-Run", self.starter.run)))
        self.assertEqual((receipt["task"]["state"], receipt["task"]["cancel"]), ("canceled", False))
        reply = self.ask("POST", f"{SUM}/cancel")
        self.assertEqual((reply.status, told(reply)["error"]["code"]), (409, "ended"))
        self.assertEqual(told(reply)["task"]["state"], "canceled")


class PathTests(TaskCase):
    """Paths and methods."""

    def test_segments_are_decoded_by_themselves(self) -> None:
        """A slash in a name is part of it."""
        for path, account, key in (
            ("/tasks/a%2Fb/c%2Fd", "a/b", "c/d"),
            ("/tasks/%C3%A9/%F0%9F%98%80", "é", "😀"),
            ("/tasks/a/result", "a", "result"),
            ("/tasks/a/%2E%2E", "a", ".."),
            ("/tasks/a/cancel", "a", "cancel"),
            ("/tasks/a/%252F", "a", "%2F"),
            ("/tasks/a/b;c=d", "a", "b;c=d"),
        ):
            reply = self.ask("PUT", path, b"1", ("Prefer", "respond-async"))
            found = told(reply)
            self.assertEqual((reply.status, found["account"], found["task"]), (202, account, key))
            location = header(reply, "Location") or ""
            self.assertEqual(told(self.ask("GET", location))["task"], key)

    def test_paths_that_are_none(self) -> None:
        """400 for a name that is none, 404 for a path that is none."""
        long = "x" * 257
        for path, status in (
            ("/tasks", 404),
            ("/tasks/", 400),
            ("/tasks//x", 400),
            ("/tasks/a/", 400),
            ("/tasks/a//result", 400),
            ("/tasks/a/x/", 404),
            ("/tasks/a/x/y", 404),
            ("/tasks/a/x/result/", 404),
            ("/tasks/a/x%2Fresult/y", 404),
            ("/tasks/a/x/Result", 404),
            ("/tasks/a/%00", 400),
            ("/tasks/a/%0d%0aSet-Cookie:%20x", 400),
            ("/tasks/a/%ff", 400),
            ("/tasks/a/%zz", 400),
            (f"/tasks/a/{long}", 400),
            (f"/tasks/{long}/a", 400),
            ("/tasks/a%00/a", 400),
            ("//tasks/a/x", 404),
            ("/%74asks/a/x", 404),
        ):
            for method in ("GET", "PUT"):
                reply = self.ask(method, path)
                self.assertEqual(reply.status, status, (method, path))
        self.assertEqual(self.starter.dispatched, [])

    def test_methods(self) -> None:
        """Each page has its own; OPTIONS lists them."""
        for path, allow in (
            ("/tasks/a", "GET, HEAD, POST, OPTIONS"),
            ("/tasks/a/x", "GET, HEAD, POST, PUT, OPTIONS"),
            ("/tasks/a/x/result", "GET, HEAD, OPTIONS"),
            ("/tasks/a/x/cancel", "POST, OPTIONS"),
        ):
            for method in ("DELETE", "PATCH", "OPTIONS"):
                reply = self.ask(method, path)
                self.assertEqual(reply.status, 200 if method == "OPTIONS" else 405, path)
                self.assertEqual(header(reply, "Allow"), allow)
        self.assertEqual(self.ask("GET", "/tasks/a/x/cancel").status, 405)
        self.assertEqual(self.ask("PUT", "/tasks/a").status, 405)
        self.assertEqual(self.ask("POST", "/tasks/a/x/result", b"1").status, 405)

    def test_requests_that_cannot_be_understood(self) -> None:
        """Nothing is begun."""
        for path, lines, status in (
            (f"{SUM}?wait=121", (), 400),
            (f"{SUM}?wait=x", (), 400),
            (f"{SUM}?wait=nan", (), 400),
            (SUM, (("Content-Encoding", "gzip"),), 415),
            (SUM, (("Content-Type", "x" * 300),), 400),
        ):
            reply = self.ask("PUT", path, b"1", *lines)
            self.assertEqual(reply.status, status, path)
            self.assertEqual(header(reply, "Content-Type"), "application/problem+json")
        reply = self.ask("POST", "/tasks/42", b"1", ("Idempotency-Key", "x" * 257))
        self.assertEqual(reply.status, 400)
        self.assertEqual(self.starter.dispatched, [])


class MountedStartTests(StartTests):
    """The same in a site of another application."""

    make_server = MountedServer


class MountedLookTests(LookTests):
    """The same in a site of another application."""

    make_server = MountedServer


class MountedPathTests(PathTests):
    """The same in a site of another application."""

    make_server = MountedServer


class PrefixTests(TaskCase):
    """Below a path of a site."""

    make_server = MountedServer
    server: MountedServer

    def test_locations_begin_with_the_path(self) -> None:
        """Of twisted.web, of Klein, and of both within each other; and they lead to the task."""
        resource = self.server.plumber.resource()
        for make_site, prefix in (
            (twisted_site, "/plumber"),
            (klein_site, "/plumber"),
            (nested_site, "/app/a/b/plumber"),
        ):
            client = self.server.connect_to(make_site(resource, self.server.clock))
            path = f"{prefix}/tasks/a%2Fb/c%2Fd"
            head = f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nPrefer: respond-async\r\n"
            client.send(f"{head}Content-Length: 1\r\n\r\n1".encode())
            reply = self.heard(client)
            self.assertEqual((reply.status, header(reply, "Location")), (202, path))
            client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            self.assertEqual(told(self.heard(client))["task"], "c/d")
