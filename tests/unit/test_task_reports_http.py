"""Reports of runners on ``POST /hooks``, at our own port and in a site of another application."""

from __future__ import annotations

import json

from asyncplumber.testing import RecordingSubscriber
from harness.mounted import MountedServer
from tests.task_http import JSON, TaskCase, header, told

SUM = "/tasks/42/sum"


class ReportTests(TaskCase):
    """``POST /hooks/{account}`` with the header ``Task``."""

    def test_a_run_from_its_beginning_to_its_end(self) -> None:
        """Each receipt has the task; a sender that was there before needs no run."""
        for state, body, told_state in (
            ("queued", b"", "submitted"),
            ("started", b"", "running"),
            ("SUCCESS", b'{"total": 7}', "completed"),
        ):
            reply = self.report("sum", state, body)
            receipt = told(reply)
            self.assertEqual((reply.status, receipt["status"]), (202, "ok"))
            task = receipt["task"]
            self.assertEqual((task["task"], task["state"]), ("sum", told_state))
            self.assertIs(task["cancel"], False)
        self.assertEqual(self.types(), ["task.submitted", "task.started", "task.completed"])
        self.assertEqual({event["task"]["run"] for event in self.events()}, {task["run"]})

    def test_without_a_state_it_is_the_result(self) -> None:
        """And a subscriber who is there makes it 201, as for any event."""
        admitted = self.server.plumber.hub.admit("42")
        self.server.settle()
        subscriber = RecordingSubscriber()
        self.successResultOf(admitted).subscribe(subscriber).start(None)
        reply = self.server.post("42", b"7", ("Task", "sum"), ("Event-Type", "any"))
        self.assertEqual((reply.status, told(reply)["task"]["state"]), (201, "completed"))
        self.assertEqual(told(reply)["subscribers"], 1)
        (event,) = subscriber.events
        self.assertEqual((event.type, event.data), ("task.completed", 7))

    def test_a_beat(self) -> None:
        """Without a body nothing is told to anybody; a content type alone is no body."""
        self.report("sum", "running", b"", ("Task-Deadline", "60"))
        for line in (JSON, ("Content-Type", "text/plain"), ("X", "x")):
            reply = self.report("sum", "running", b"", line)
            receipt = told(reply)
            self.assertEqual((reply.status, receipt["cursor"]), (200, None))
            self.assertIs(receipt["duplicate"], False)
        self.assertEqual(self.types(), ["task.started"])
        self.server.advance(50)
        self.report("sum", "running")
        self.server.advance(50)
        self.assertEqual(told(self.ask("GET", SUM))["state"], "running")
        self.server.advance(30)
        self.assertEqual(told(self.ask("GET", SUM))["error"]["type"], "silent")

    def test_11_progress_after_the_end(self) -> None:
        """Scenario 11: 409 with the run and the state, and no event."""
        self.report("sum", "running", b"1")
        run = told(self.report("sum", "completed", b"7"))["task"]["run"]
        before = self.types()
        for lines in ((), (("Task-Run", run),)):
            reply = self.report("sum", "running", b"2", *lines)
            document = told(reply)
            self.assertEqual((reply.status, document["error"]["code"]), (409, "ended"))
            self.assertEqual(header(reply, "Content-Type"), "application/problem+json")
            self.assertEqual(
                (document["task"]["run"], document["task"]["state"]), (run, "completed")
            )
            # Who may report need not be allowed to read.
            self.assertEqual(document["task"].keys() & {"result", "progress", "error"}, set())
        self.assertEqual(self.types(), before)
        self.assertEqual(told(self.ask("GET", SUM))["state"], "completed")
        self.assertEqual(told(self.ask("GET", "/tasks/42?live"))["tasks"], [])

    def test_an_older_run(self) -> None:
        """409, and nobody hears of it."""
        first = told(self.report("sum", "completed", b"1"))["task"]["run"]
        self.report("sum", "started")
        reply = self.report("sum", "completed", b"9", ("Task-Run", first))
        self.assertEqual((reply.status, told(reply)["error"]["code"]), (409, "superseded"))
        self.assertEqual(header(reply, "Task-State"), "running")
        self.assertEqual(self.types(), ["task.completed", "task.started"])

    def test_an_end_that_is_repeated(self) -> None:
        """200, with the place of the first one."""
        id = ("Webhook-Id", "x")
        first = told(self.report("sum", "completed", b"7", id))
        self.server.settle()
        reply = self.report("sum", "completed", b"7", id)
        self.assertEqual((reply.status, told(reply)["duplicate"]), (200, True))
        self.assertEqual(told(reply)["cursor"], first["cursor"])
        run = ("Task-Run", first["task"]["run"])
        reply = self.report("sum", "failed", b'"no"', run)
        self.assertEqual((reply.status, told(reply)["error"]["code"]), (409, "ended"))

    def test_13_a_thousand_progress_reports(self) -> None:
        """Scenario 13: at most two in a second are stored, the last one among them."""
        self.server.post("42", b'"another result"')
        run = told(self.report("sum", "started"))["task"]["run"]
        statuses = set()
        for number in range(1000):
            reply = self.report("sum", "running", b"%d" % number, ("Task-Run", run))
            statuses.add((reply.status, told(reply).get("conflated")))
            self.server.clock.advance(0.01)
        self.assertEqual(statuses - {(202, None)}, {(202, True)})
        self.server.advance(1)
        progress = [event for event in self.events() if event["type"] == "task.progress"]
        self.assertLessEqual(len(progress), 21)
        self.assertGreater(len(progress), 15)
        self.assertEqual(progress[-1]["data"], 999)
        self.assertEqual(self.events()[0]["data"], "another result")

    def test_a_progress_that_is_too_large(self) -> None:
        """413: it would be kept in the row."""
        self.report("sum", "started")
        reply = self.report("sum", "running", b'"' + b"x" * 65536 + b'"')
        self.assertEqual((reply.status, told(reply)["error"]["code"]), (413, "too-large"))
        self.assertEqual(self.report("sum", "completed", b'"' + b"x" * 65536 + b'"').status, 202)

    def test_reports_that_cannot_be_understood(self) -> None:
        """400 each, and nothing is stored."""
        lines_of = {
            "no key": (("Task", ""),),
            "a long key": (("Task", "x" * 257),),
            "not UTF-8": (("Task", "\xff"),),
            "a state that is none": (("Task", "x"), ("Task-State", "lost")),
            "a long run": (("Task", "x"), ("Task-Run", "x" * 257)),
            "a deadline that is none": (("Task", "x"), ("Task-Deadline", "soon")),
            "a negative deadline": (("Task", "x"), ("Task-Deadline", "-1")),
            "an infinite deadline": (("Task", "x"), ("Task-Deadline", "inf")),
            "lines": (("Task", "x"), ("Content-Type", "application/x-ndjson")),
            "a batch": (("Task", "x"), ("Content-Type", "application/cloudevents-batch+json")),
            "JSON that is none": (("Task", "x"), JSON),
        }
        for name, lines in lines_of.items():
            self.assertEqual(self.server.post("42", b"{", *lines).status, 400, name)
        compressed = self.server.post("42", b"1", ("Task", "x"), ("Content-Encoding", "gzip"))
        self.assertEqual(compressed.status, 415)
        self.assertEqual((self.events(), told(self.ask("GET", "/tasks/42"))["tasks"]), ([], []))

    def test_other_places_take_no_reports(self) -> None:
        """They would be plain events there, and the task would never end."""
        own = f"/instances/{self.server.plumber.leases.instance.id}/hooks/42"
        self.server.plumber.hub.admit("42")
        self.server.settle()
        task = ("Task", "sum")
        for path, body in (("/hooks", b'{"keys": {"account_id": "42"}, "data": 1}'), (own, b"1")):
            self.assertEqual(self.ask("POST", path, body).status // 100, 2, path)
            reply = self.ask("POST", path, body, task)
            self.assertEqual((reply.status, told(reply)["error"]["code"]), (400, "bad-request"))

    def test_a_cloudevent(self) -> None:
        """Its data is the result, and its id tells a repetition."""
        event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": {"n": 1}}
        kind = ("Content-Type", "application/cloudevents+json")
        for status in (202, 200):
            reply = self.server.post("42", json.dumps(event).encode(), ("Task", "sum"), kind)
            self.assertEqual(reply.status, status)
            self.server.settle()
        self.assertEqual(json.loads(self.ask("GET", f"{SUM}/result").body), {"n": 1})

    def test_a_page_of_another_origin_may_not_report(self) -> None:
        """As it may not post."""
        reply = self.report("sum", "completed", b"7", ("Origin", "https://evil.example"))
        self.assertEqual(reply.status, 403)

    def test_a_client_that_leaves_takes_nothing_back(self) -> None:
        """What it has reported is taken."""
        client = self.send("POST", "/hooks/42", b"7", ("Task", "sum"))
        client.disconnect()
        self.server.settle()
        self.assertEqual(told(self.ask("GET", SUM))["result"], 7)


class MountedReportTests(ReportTests):
    """The same in a site of another application."""

    make_server = MountedServer
