"""What a POST to a callback URL does, and what is refused."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from asyncplumber.core.tasks.callback_urls import AFTER_END
from asyncplumber.core.tasks.settings import CALLBACK_RATE, TaskSettings
from asyncplumber.errors import Unavailable
from asyncplumber.interfaces import CallbackUrl, Dispatch, Finished, IStarter, Later, Refused
from asyncplumber.task import StartRequest
from asyncplumber.testing import MemoryCluster
from harness.mounted import MountedServer
from tests import signing
from tests.callback_client import BASE, CallbackCase, all_logged

PREDICTION = {"id": "p1", "version": "v", "input": {}, "urls": {}}


class ReportTests(CallbackCase, SynchronousTestCase):
    """Reports of a run."""

    def test_a_series_as_replicate_sends_it(self) -> None:
        """Start, progress, end; what is repeated, or comes behind the end, changes nothing."""
        path = self.path(task="t", run="r1")
        series = [("starting", None), ("processing", [1]), ("processing", [1, 2])]
        for word, output in series:
            status, told = self.post(path, {**PREDICTION, "status": word, "output": output})
            self.assertIn(status, (201, 202), told)
            self.assertEqual((told["task"]["run"], told["task"]["done"]), ("r1", False))
            self.server.advance(1)
        last = {**PREDICTION, "status": "succeeded", "output": [1, 2, 3]}
        first = self.post(path, last)[1]
        self.assertEqual((first["duplicate"], first["task"]["state"]), (False, "completed"))
        status, again = self.post(path, last)
        self.assertEqual((status, again["duplicate"]), (200, True))
        self.assertEqual(again["cursor"], first["cursor"])
        for word in ("starting", "processing", "failed"):
            status, told = self.post(path, {**PREDICTION, "status": word})
            self.assertEqual((status, told["ignored"]), (200, "the run has ended"))
            self.assertEqual(told["task"]["state"], "completed")
        kinds = ["submitted", "started", "progress", "completed"]
        self.assertEqual(self.types, [f"task.{kind}" for kind in kinds])
        self.assertEqual(self.events[-1].data, last)

    def test_a_body_without_a_state_is_the_result(self) -> None:
        path = self.path(task="t")
        self.post(path, b"done", ("Content-Type", "text/plain"))
        self.assertEqual((self.types, self.events[0].data), (["task.completed"], "done"))

    def test_the_query_says_the_state(self) -> None:
        told = self.mint(task="t")
        states = {word: url.removeprefix(BASE) for word, url in told["states"].items()}
        self.post(states["running"], {"done": 3, "of": 10})
        self.post(states["canceled"])
        self.assertEqual(self.types, ["task.started", "task.canceled"])

    def test_a_beat_is_no_event(self) -> None:
        path = self.path(task="t")
        self.post(path + "?state=running")
        status, told = self.post(path + "?state=running", None, ("Task-Deadline", "60"))
        self.assertEqual((status, told["cursor"], told["task"]["cancel"]), (200, None, False))
        self.assertEqual(self.types, ["task.started"])
        self.server.advance(70)
        self.assertEqual(self.types, ["task.started", "task.lost"])

    def test_who_reports_hears_that_the_task_is_not_wanted(self) -> None:
        path = self.path(task="t")
        self.post(path + "?state=running")
        self.server.plumber.tasks.cancel("42", "t")
        self.server.settle()
        self.assertTrue(self.post(path + "?state=running")[1]["task"]["cancel"])

    def test_an_agent_of_a2a(self) -> None:
        path = self.path(task="t")
        for word in ("TASK_STATE_WORKING", "TASK_STATE_COMPLETED"):
            body = {"statusUpdate": {"taskId": "a", "status": {"state": word}}}
            self.post(path, body, ("Content-Type", "application/a2a+json"))
        self.assertEqual(self.types, ["task.started", "task.completed"])

    def test_a_cloudevent_is_unpacked(self) -> None:
        event = {"specversion": "1.0", "id": "e1", "source": "/s", "type": "a.succeeded", "data": 7}
        self.post(self.path(task="t"), event, ("Content-Type", "application/cloudevents+json"))
        self.assertEqual((self.types, self.events[0].data), (["task.completed"], 7))
        self.assertEqual(self.events[0].id, "e1")

    def test_a_failure_has_a_message_for_people(self) -> None:
        self.post(self.path(task="t"), {**PREDICTION, "status": "failed", "error": "no memory"})
        error = self.events[0].task["error"]
        self.assertEqual((error["type"], error["message"]), ("failed", "no memory"))

    def test_a_traceback_of_rq_stays_out_of_browsers(self) -> None:
        body = {"job_id": "j", "func_name": "f", "status": "failed", "exc_info": "File x\nE: odd"}
        self.post(self.path(task="t"), body)
        self.assertEqual(self.events[0].task["error"]["message"], "E: odd")
        self.assertNotIn("File x", repr(self.events))

    def test_a_pointer_says_where_the_state_is(self) -> None:
        path = self.path(task="t", state="/run/conclusion")
        for conclusion in (None, "skipped"):
            status, told = self.post(path, {"run": {"conclusion": conclusion}})
            self.assertEqual((status, told["ignored"]), (200, "the state in the body is not known"))
        self.assertEqual(self.types, [])
        self.post(path, {"run": {"conclusion": "success"}})
        self.assertEqual(self.types, ["task.completed"])

    def test_a_url_for_progress_ends_nothing(self) -> None:
        path = self.path(task="t", ends=False)
        self.assertEqual(self.post(path + "?state=running")[0], 201)
        status, told = self.post(path + "?state=completed")
        self.assertEqual((status, told["error"]["code"]), (403, "insufficient-scope"))

    def test_an_older_run_is_not_heard(self) -> None:
        old = self.path(task="t", run="r1")
        self.post(old, 1)
        self.post(self.path(task="t", run="r2") + "?state=running")
        for query in ("?state=running", "?state=completed"):
            status, told = self.post(old + query)
            self.assertEqual((status, told["ignored"]), (200, "a newer run has begun"))
            self.assertEqual((told["task"]["run"], told["task"]["cancel"]), ("r2", True))

    def test_nobody_reads_with_it(self) -> None:
        """Who has the URL of an old run is not told what became of the new one."""
        old, new = self.path(task="t", run="r1"), self.path(task="t", run="r2")
        self.post(old, 1)
        self.post(new + "?state=failed", {"message": "private"})
        for path in (old, new):
            status, told = self.post(path + "?state=running")
            self.assertEqual((status, told["task"]["state"]), (200, "failed"))
            self.assertNotIn("private", json.dumps(told))

    def test_a_url_without_a_run_reports_one_after_the_other(self) -> None:
        """Such as that of a job that runs each night."""
        path = self.path(task="t", run=None)
        for night in range(3):
            self.post(path, night)
        self.assertEqual([event.data for event in self.events], [0, 1, 2])
        self.assertEqual(len({event.task["run"] for event in self.events}), 3)

    def test_a_batch_is_no_report(self) -> None:
        reply = self.post(self.path(task="t"), b"1\n2\n", ("Content-Type", "application/x-ndjson"))
        self.assertEqual(reply[0], 400)

    def test_what_is_wrong_is_refused(self) -> None:
        path = self.path(task="t")
        self.assertEqual(self.post(path + "?state=no")[0], 400)
        self.assertEqual(self.post(path, None, ("Task-State", "no"))[0], 400)
        self.assertEqual(self.post(path, None, ("Task-Deadline", "soon"))[0], 400)
        self.assertEqual(self.post(path, b"{", ("Content-Type", "application/json"))[0], 400)
        self.assertEqual(self.post(path, b"x", ("Content-Encoding", "gzip"))[0], 415)
        self.assertEqual(self.types, [])


class MountedReportTests(ReportTests):
    """The same in a site of another application."""

    make_server = MountedServer


class EventTests(CallbackCase, SynchronousTestCase):
    """Events of an account."""

    def test_a_post_is_an_event(self) -> None:
        path = self.path()
        named = ("Event-Type", "built"), ("Webhook-Id", "e1")
        status, told = self.post(path, {"n": 1}, *named)
        self.assertEqual((status, told["duplicate"]), (201, False))
        status, told = self.post(path, {"n": 1}, *named)
        self.assertEqual((status, told["duplicate"]), (200, True))
        [event] = self.events
        self.assertEqual((event.id, event.type, event.data), ("e1", "built", {"n": 1}))

    def test_a_body_with_a_state_is_an_event_as_well(self) -> None:
        self.post(self.path(), {"id": "p", "status": "succeeded"})
        self.assertEqual(self.types, ["result"])

    def test_all_types_begin_with_the_prefix(self) -> None:
        path = self.path(type="github.")
        for type in ("push", "github.push", "task.completed"):
            self.post(path, 1, ("Event-Type", type))
        self.assertEqual(self.types, ["github.push", "github.push", "github.task.completed"])
        self.assertEqual(self.post(path, 1, ("Event-Type", "x" * 249))[0], 201)
        self.assertEqual(self.post(path, 1, ("Event-Type", "x" * 250))[0], 400)

    def test_a_signed_event_has_its_senders_names(self) -> None:
        secret = "x" * 32
        path = self.path(verify={"scheme": "github", "secret": secret})
        body = b'{"zen": "Design for failure."}'
        for _ in range(2):
            self.post(path, body, *signing.github(secret, body, "d1", "ping"))
        self.assertEqual([(event.id, event.type) for event in self.events], [("d1", "ping")])

    def test_a_wrong_signature_is_refused(self) -> None:
        path = self.path(verify={"scheme": "github", "secret": "x" * 32})
        for headers in ([], signing.github("y" * 32, b"{}"), signing.github("x" * 32, b"{} ")):
            status, told = self.post(path, b"{}", *headers)
            self.assertEqual((status, told["error"]["code"]), (401, "invalid-signature"))
        self.assertEqual(self.events, [])

    def test_the_url_that_twilio_signs_is_the_public_one(self) -> None:
        self.server.plumber.public_url = "https://push.example"
        secret = "t" * 32
        url = self.mint(verify={"scheme": "twilio", "secret": secret})["url"] + "?a=1"
        content = url.encode() + b"CallStatuscompleted"
        signature = signing.twilio(secret, content)
        path = url.removeprefix("https://push.example")
        form = ("Content-Type", "application/x-www-form-urlencoded")
        self.assertEqual(self.post(path, b"CallStatus=completed", form, *signature)[0], 201)
        self.assertEqual(self.post(path, b"CallStatus=failed", form, *signature)[0], 401)

    def test_a_batch_is_taken(self) -> None:
        lines = ("Content-Type", "application/x-ndjson")
        self.assertEqual(self.post(self.path(), b"1\n2\n", lines)[0], 201)
        self.assertEqual([event.data for event in self.events], [1, 2])


class LifeTests(CallbackCase, SynchronousTestCase):
    """How long a URL is good, and how often."""

    def test_one_that_has_expired_is_gone(self) -> None:
        """A sender of Standard Webhooks stops when it hears that."""
        path = self.path(expires_in=60)
        self.server.advance(59.5)
        self.assertEqual(self.post(path, 1)[0], 201)
        self.server.advance(0.5)
        for method in ("POST", "GET", "OPTIONS"):
            reply = self.server.request(method, path)
            code = json.loads(reply.body)["error"]["code"]
            self.assertEqual((reply.status, code), (410, "callback-expired"))

    def test_one_that_never_was_is_unknown(self) -> None:
        for token in ("", "x", "x" * 22, "a/b", "%00", "%2e%2e", "x" * 1000):
            for method in ("POST", "GET", "OPTIONS"):
                reply = self.server.request(method, f"/callbacks/{token}")
                code = json.loads(reply.body)["error"]["code"]
                self.assertEqual((reply.status, code), (404, "unknown-callback"), token)

    def test_the_same_is_done_for_every_token(self) -> None:
        """One look into the store, by the digest; nothing is told by the time that it takes."""
        looks: list[bytes] = []
        urls = self.server.plumber.store.callback_urls
        get = urls.get

        def noted(digest: bytes) -> Deferred[CallbackUrl | None]:
            looks.append(digest)
            return get(digest)

        urls.get = noted
        path = self.path()
        for token in (path.rpartition("/")[2], "x" * 22, "", "x"):
            looks.clear()
            self.get(f"/callbacks/{token}")
            self.assertEqual([len(digest) for digest in looks], [32])

    def test_that_of_a_run_ends_a_day_after_it(self) -> None:
        path = self.path(task="t")
        self.post(path, 1)
        self.server.clock.advance(AFTER_END - 1)
        self.assertEqual(self.post(path, 1)[0], 200)
        self.server.clock.advance(1)
        self.assertEqual(self.post(path, 1)[0], 410)

    def test_a_large_body_is_refused(self) -> None:
        path = self.path()
        self.assertEqual(self.post(path, b"x" * 10_000)[0], 201)
        self.assertEqual(self.post(path, b"x" * 10_001)[0], 413)

    def test_a_body_in_chunks_is_taken(self) -> None:
        """Programs in .NET send all JSON so."""
        head = (
            f"POST {self.path()} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        [reply] = self.server.exchange(head.encode() + b"1\r\n7\r\n0\r\n\r\n")
        self.assertEqual((reply.status, self.events[0].data), (201, 7))

    def test_a_url_takes_sixty_posts_a_minute(self) -> None:
        path, other = self.path(), self.path()
        for _ in range(CALLBACK_RATE):
            self.assertEqual(self.post(path, 1)[0], 201)
        reply = self.server.request("POST", path, body=b"1")
        self.assertEqual((reply.status, reply.headers[b"retry-after"]), (429, b"1"))
        self.assertEqual(self.refusals(), {"posts_per_callback": 1})
        self.assertEqual(self.post(other, 1)[0], 201)
        self.server.clock.advance(0.9)
        self.assertEqual(self.post(path, 1)[0], 429)
        self.server.clock.advance(0.1)
        self.assertEqual(self.post(path, 1)[0], 201)
        self.assertEqual(self.post(path, 1)[0], 429)

    def test_progress_does_not_keep_the_end_out(self) -> None:
        path = self.path(task="t")
        for _ in range(CALLBACK_RATE):
            self.assertIn(self.post(path + "?state=running", 1)[0], (201, 202))
        self.assertEqual(self.post(path + "?state=running", 1)[0], 429)
        self.assertEqual(self.post(path, 2)[1]["task"]["state"], "completed")

    def test_what_is_taken_is_counted(self) -> None:
        path = self.path(task="t")
        for body in (1, 1):
            self.post(path, body)
        self.post(path + "?state=running", 1)
        self.get(path + "?challenge=x")
        self.post(self.path(), 1)
        figure = self.server.plumber.figures.collect()["callback_requests_total"]
        for result in ("report", "duplicate", "ignored", "handshake", "event"):
            self.assertEqual(figure.of(result), 1, result)
        self.assertEqual(
            self.server.plumber.figures.collect()["auth_total"].of("callback", "granted"), 4
        )


class OtherRateTests(CallbackCase, SynchronousTestCase):
    """Another rate."""

    plumber = {"task_settings": TaskSettings(callback_rate=2)}

    def test_it_is_the_operators(self) -> None:
        path = self.path()
        self.assertEqual([self.post(path, 1)[0] for _ in range(3)], [201, 201, 429])


class NoRateTests(CallbackCase, SynchronousTestCase):
    """No limit."""

    plumber = {"task_settings": TaskSettings(callback_rate=0)}

    def test_any_number_is_taken(self) -> None:
        path = self.path()
        for _ in range(CALLBACK_RATE + 1):
            self.assertEqual(self.post(path, 1)[0], 201)


class SecretTests(CallbackCase, SynchronousTestCase):
    """The token is told to nobody."""

    plumber = {"log_requests": True, "origins": ["https://app.example"]}

    def outcomes(self) -> list[str]:
        """Have every kind of request answered, and return the tokens."""
        told = self.mint(task="t", verify={"scheme": "bearer"})
        path, token = told["url"].removeprefix(BASE), told["token"]
        bearer = ("Authorization", f"Bearer {told['secret']}")
        for method in ("GET", "POST", "OPTIONS", "PUT", "PATCH"):
            self.server.request(method, path)
        self.post(path + "?state=running", 1, bearer)
        self.post(path + "?state=x", 1, bearer)
        self.post(path, b"x" * 20_000, bearer)
        for other in (f"/callbacks/{token}x", f"//callbacks/{token}", f"/%63allbacks/{token}"):
            self.server.request("POST", other)
        urls = self.server.plumber.store.callback_urls
        for failure in (Unavailable(), RuntimeError("odd")):
            urls.get = lambda digest, failure=failure: fail(failure)
            self.server.request("POST", path)
        del urls.get
        self.flushLoggedErrors(RuntimeError)
        self.server.request("DELETE", path)
        self.server.request("DELETE", path)
        return [token, told["secret"]]

    def test_no_line_of_the_log_has_it(self) -> None:
        with all_logged() as lines:
            tokens = self.outcomes()
        self.assertGreater(len(lines), 5)
        for secret in tokens:
            for line in lines:
                self.assertNotIn(secret, line)
        self.assertTrue(any("/callbacks/…" in line for line in lines))

    def test_neither_metrics_nor_errors_have_it(self) -> None:
        token, secret = self.outcomes()
        metrics = self.get("/metrics").body.decode()
        self.assertIn("callback_requests_total", metrics)
        bodies = [metrics, repr(self.server.plumber.store.callback_urls.__dict__)]
        for reply in (
            self.server.request("POST", f"/callbacks/{token}"),
            self.server.request("PUT", f"/callbacks/{token}"),
            self.get("/callbacks?account=42"),
        ):
            bodies.append(f"{reply.headers} {reply.body!r}")
        for body in bodies:
            self.assertNotIn(token, body)
            self.assertNotIn(secret, body)

    def test_no_event_has_it(self) -> None:
        token, secret = self.outcomes()
        self.assertEqual(self.types, ["task.started"])
        for one in (token, secret):
            self.assertNotIn(one, repr(self.events))

    def test_a_page_of_another_origin_reads_nothing(self) -> None:
        path = self.path()
        origin = ("Origin", "https://app.example")
        preflight = (origin, ("Access-Control-Request-Method", "POST"))
        for reply in (
            self.server.request("OPTIONS", path, preflight),
            self.server.request("POST", path, [origin], b"1"),
            self.server.request("GET", path, [origin]),
        ):
            allowed = [name for name in reply.headers if name.startswith(b"access-control")]
            self.assertEqual((reply.status in (200, 201), allowed), (True, []))
        self.assertEqual(
            self.server.request("POST", path, [("Origin", "https://evil.example")], b"1").status,
            403,
        )

    def test_it_is_told_to_no_other_site_and_kept_nowhere(self) -> None:
        path = self.path(expires_in=60)
        replies = [
            self.server.request(method, path) for method in ("GET", "POST", "OPTIONS", "PUT")
        ]
        self.server.advance(60)
        replies.append(self.server.request("POST", path))
        replies.append(self.server.request("POST", path, body=b"x" * 20_000))
        for reply in replies:
            self.assertEqual(reply.headers[b"referrer-policy"], b"no-referrer")
            self.assertEqual(reply.headers[b"cache-control"], b"no-store")
            self.assertEqual(reply.headers[b"x-content-type-options"], b"nosniff")


class MountedSecretTests(SecretTests):
    """The same in a site of another application."""

    make_server = MountedServer


class ClusterTests(SynchronousTestCase):
    """Several instances on one store."""

    def test_a_url_is_good_at_each(self) -> None:
        cluster = MemoryCluster(2)
        first, second = cluster.servers
        made = first.request("POST", "/callbacks", body=b'{"account": "42", "task": "t"}')
        told = json.loads(made.body)
        path = told["url"].removeprefix(BASE)
        for server, expected in ((second, "running"), (first, "completed")):
            reply = server.request("POST", f"{path}?state={expected}", body=b"1")
            self.assertEqual(json.loads(reply.body)["task"]["state"], expected)
        self.assertEqual(second.request("DELETE", path).status, 200)
        self.assertEqual(first.request("POST", path).status, 404)


class OutageTests(CallbackCase, SynchronousTestCase):
    """A store that is away."""

    def test_the_service_is_to_send_it_again(self) -> None:
        path = self.path()
        urls: Any = self.server.plumber.store.callback_urls
        urls.get = lambda digest: fail(Unavailable())
        reply = self.server.request("POST", path, body=b"1")
        self.assertEqual((reply.status, b"retry-after" in reply.headers), (503, True))
        del urls.get
        self.assertEqual(self.post(path, 1)[0], 201)

    def test_no_url_is_given_out_that_is_not_kept(self) -> None:
        urls: Any = self.server.plumber.store.callback_urls
        urls.add = lambda row: fail(Unavailable())
        reply = self.server.request("POST", "/callbacks", body=b'{"account": "42"}')
        self.assertEqual(reply.status, 503)


@implementer(IStarter)
class Starter:
    """Has all done later, and remembers what."""

    def __init__(self) -> None:
        self.dispatched: list[Dispatch] = []

    def start(self, dispatch: Dispatch) -> Deferred[Finished | Later | Refused]:
        self.dispatched.append(dispatch)
        return succeed(Later())

    def cancel(self, account: str, task: str, run: str) -> Deferred[None]:
        return succeed(None)


class DispatchTests(CallbackCase, SynchronousTestCase):
    """The URL that the application is given with a run."""

    def setUp(self) -> None:
        self.starter = Starter()
        self.plumber = {"starter": self.starter}
        super().setUp()

    def test_it_reports_that_run(self) -> None:
        started = self.server.plumber.tasks.start(StartRequest("42", "t", "", b"1"))
        self.server.settle()
        self.successResultOf(started)
        [dispatch] = self.starter.dispatched
        path = dispatch.callback.removeprefix(BASE)
        self.post(path + "?state=running", {"done": 1})
        status, told = self.post(path, {"total": 7})
        self.assertEqual((status, told["task"]["run"]), (201, dispatch.run))
        self.assertEqual(self.types, ["task.submitted", "task.started", "task.completed"])
