"""What a POST to a callback URL says of a run: words, pointers, and the bodies of services."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.errors import BadRequest
from asyncplumber.task import TaskState
from asyncplumber.wire.callbacks import (
    POINTER_LENGTH,
    at_pointer,
    checked_pointer,
    explained,
    json_of,
    said,
)
from asyncplumber.wire.fields import Headers
from asyncplumber.wire.json_text import SLOW_BYTES

SUBMITTED, RUNNING = TaskState.SUBMITTED, TaskState.RUNNING
COMPLETED, FAILED, CANCELED = TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELED


def state(
    body: Any = None, *, query: str | None = None, pointer: str = "", headers: Headers | None = None
) -> TaskState | None:
    """Return the state that a POST with this JSON as its body reports."""
    text = None if body is None else json_of(json.dumps(body).encode())
    return said(query, headers or {}, text, pointer).state


class PlaceTests(SynchronousTestCase):
    """Where the state is looked for."""

    def test_the_query_comes_before_the_header_and_the_header_before_the_body(self) -> None:
        body = {"id": "p", "status": "succeeded", "my": "failed"}
        header = {b"task-state": b"canceled"}
        self.assertIs(state(body, query="running", pointer="/my", headers=header), RUNNING)
        self.assertIs(state(body, pointer="/my", headers=header), CANCELED)
        self.assertIs(state(body, pointer="/my"), FAILED)
        self.assertIs(state(body), COMPLETED)

    def test_without_a_state_the_body_is_the_result(self) -> None:
        for body in (
            {"total": 7},
            [1],
            {"status": "paid"},
            {"id": "1", "status": "paid"},
            {},
            None,
        ):
            self.assertIs(state(body), COMPLETED, body)

    def test_a_wrong_word_in_the_url_is_told_to_whoever_wrote_it(self) -> None:
        self.assertRaises(BadRequest, state, query="runing")
        self.assertRaises(BadRequest, state, query="lost")
        self.assertRaises(BadRequest, state, headers={b"task-state": b"?"})

    def test_a_beginning_is_told_from_what_goes_on(self) -> None:
        self.assertTrue(said("started", {}, None, "").begins)
        self.assertFalse(said("running", {}, None, "").begins)


class PointerTests(SynchronousTestCase):
    """JSON pointers (RFC 6901)."""

    def test_the_examples_of_the_rfc(self) -> None:
        document = {
            "foo": ["bar", "baz"],
            "": 0,
            "a/b": 1,
            "c%d": 2,
            "e^f": 3,
            "g|h": 4,
            "i\\j": 5,
            'k"l': 6,
            " ": 7,
            "m~n": 8,
        }
        text = json_of(json.dumps(document).encode())
        assert text is not None
        for pointer, found in (
            ("/foo", b'["bar", "baz"]'),
            ("/foo/0", b'"bar"'),
            ("/", b"0"),
            ("/a~1b", b"1"),
            ("/c%d", b"2"),
            ("/e^f", b"3"),
            ("/g|h", b"4"),
            ("/i\\j", b"5"),
            ('/k"l', b"6"),
            ("/ ", b"7"),
            ("/m~0n", b"8"),
        ):
            self.assertEqual(at_pointer(text, checked_pointer(pointer)), found, pointer)

    def test_nothing_is_found_where_nothing_is(self) -> None:
        text = b'{"a":[1],"b":"c"}'
        for pointer in ("/x", "/a/1", "/a/-", "/a/01", "/a/x", "/b/0", "/b/c", "/a/0/0"):
            self.assertIsNone(at_pointer(text, pointer), pointer)

    def test_what_is_no_pointer_is_refused(self) -> None:
        for text in ("", "status", "/a~", "/a~2", "/\x00", "/" + "a" * POINTER_LENGTH):
            self.assertRaises(BadRequest, checked_pointer, text)
        self.assertEqual(len(checked_pointer("/" + "a" * (POINTER_LENGTH - 1))), POINTER_LENGTH)

    @given(st.text(max_size=20))
    def test_any_member_can_be_named(self, name: str) -> None:
        escaped = "/" + name.replace("~", "~0").replace("/", "~1")
        text = json_of(json.dumps({name: 1}).encode())
        assert text is not None
        self.assertEqual(at_pointer(text, escaped), b"1")

    def test_words_and_booleans_are_states(self) -> None:
        body = {"workflow": {"conclusion": "success"}, "done": True, "busy": False}
        self.assertIs(state(body, pointer="/workflow/conclusion"), COMPLETED)
        self.assertIs(state(body, pointer="/done"), COMPLETED)
        self.assertIs(state(body, pointer="/busy"), RUNNING)

    def test_anything_else_at_the_pointer_is_not_a_result(self) -> None:
        for body in ({"status": "archived"}, {"status": None}, {"status": 1}, {}, [], None):
            self.assertIsNone(state(body, pointer="/status"), body)


class ServiceTests(SynchronousTestCase):
    """The bodies of services that are known."""

    def test_replicate(self) -> None:
        prediction = {"id": "p1", "version": "v", "input": {}, "output": None, "urls": {}}
        for word, expected in (
            ("starting", SUBMITTED),
            ("processing", RUNNING),
            ("succeeded", COMPLETED),
            ("failed", FAILED),
            ("canceled", CANCELED),
            ("aborted", CANCELED),
            ("a new word", None),
        ):
            self.assertIs(state({**prediction, "status": word}), expected, word)

    def test_a2a(self) -> None:
        for word, expected in (
            ("TASK_STATE_SUBMITTED", SUBMITTED),
            ("TASK_STATE_WORKING", RUNNING),
            ("TASK_STATE_INPUT_REQUIRED", RUNNING),
            ("TASK_STATE_AUTH_REQUIRED", RUNNING),
            ("TASK_STATE_COMPLETED", COMPLETED),
            ("TASK_STATE_FAILED", FAILED),
            ("TASK_STATE_REJECTED", FAILED),
            ("TASK_STATE_CANCELED", CANCELED),
            ("input-required", RUNNING),
            ("completed", COMPLETED),
            ("TASK_STATE_NEW", None),
        ):
            status = {"status": {"state": word}}
            for body in (
                {"statusUpdate": {"taskId": "t", **status}},
                {"task": {"id": "t", **status}},
                {"kind": "status-update", "taskId": "t", **status},
                {"kind": "task", "id": "t", **status},
            ):
                self.assertIs(state(body), expected, body)
        self.assertIs(state({"artifactUpdate": {"taskId": "t"}}), RUNNING)
        self.assertIs(state({"kind": "artifact-update"}), RUNNING)

    def test_openai(self) -> None:
        event = {"object": "event", "id": "evt_1", "data": {"id": "resp_1"}}
        for type, expected in (
            ("response.completed", COMPLETED),
            ("response.failed", FAILED),
            ("response.incomplete", FAILED),
            ("response.cancelled", CANCELED),
            ("batch.expired", FAILED),
            ("fine_tuning.job.succeeded", COMPLETED),
        ):
            self.assertIs(state({**event, "type": type}), expected, type)
        self.assertIs(state({"id": "resp_1", "object": "response", "status": "queued"}), SUBMITTED)

    def test_cloudevents(self) -> None:
        event = {"specversion": "1.0", "id": "1", "source": "/s"}
        for type, expected in (
            ("com.example.job.started", RUNNING),
            ("com.example.job.failed", FAILED),
            ("com.example.job.finished.v2", COMPLETED),
            ("com.example.report", COMPLETED),
        ):
            self.assertIs(state({**event, "type": type}), expected, type)
            self.assertIs(state(None, headers={b"ce-type": type.encode()}), expected, type)

    def test_cdevents(self) -> None:
        for type, outcome, expected in (
            ("dev.cdevents.pipelinerun.queued.0.2.0", None, SUBMITTED),
            ("dev.cdevents.pipelinerun.started.0.2.0", None, RUNNING),
            ("dev.cdevents.pipelinerun.finished.0.2.0", "success", COMPLETED),
            ("dev.cdevents.pipelinerun.finished.0.2.0", "failure", FAILED),
            ("dev.cdevents.pipelinerun.finished.0.2.0", "cancel", CANCELED),
        ):
            content = {} if outcome is None else {"outcome": outcome}
            body = {"context": {"type": type}, "subject": {"content": content}}
            self.assertIs(state(body), expected, body)
            wrapped = {"specversion": "1.0", "type": type, "data": body}
            self.assertIs(state(wrapped), expected, wrapped)

    def test_rq(self) -> None:
        job = {"job_id": "j", "func_name": "app.work", "enqueued_at": None, "ended_at": None}
        self.assertIs(state({**job, "status": "finished"}), COMPLETED)
        self.assertIs(state({**job, "status": "failed", "exc_info": "…"}), FAILED)

    def test_openfaas(self) -> None:
        for status, expected in ((b"200", COMPLETED), (b"202", COMPLETED), (b"500", FAILED)):
            headers = {b"x-function-status": status}
            self.assertIs(state({"any": "thing"}, headers=headers), expected, status)


class FailureTests(SynchronousTestCase):
    """What people are told of a failure."""

    def told(self, body: dict[str, Any]) -> Any:
        """Return the body as it is kept."""
        text = json_of(json.dumps(body).encode())
        assert text is not None
        return json.loads(explained(text))

    def test_the_message_is_found_where_services_have_it(self) -> None:
        parts = {"message": {"parts": [{"text": "why"}]}}
        for body in (
            {"error": "why"},
            {"error": {"message": "why"}},
            {"data": {"error": {"message": "why"}}},
            {"statusUpdate": {"status": parts}},
            {"task": {"status": parts}},
            {"status": parts},
        ):
            self.assertEqual(self.told(body), {"message": "why", **body})

    def test_their_own_message_stays(self) -> None:
        for body in ({"message": "why", "error": "other"}, {"message": 1}, {"a": 1}, {}):
            self.assertEqual(self.told(body), body)

    def test_a_traceback_of_rq_is_not_shown_to_browsers(self) -> None:
        trace = 'Traceback (most recent call last):\n  File "/srv/x.py"\nValueError: too odd\n'
        body = {"job_id": "j", "func_name": "app.work", "status": "failed", "exc_info": trace}
        kept = self.told(body)
        self.assertEqual(kept.pop("message"), "ValueError: too odd")
        del body["exc_info"]
        self.assertEqual(kept, body)


class BodyTests(SynchronousTestCase):
    """Bodies of all kinds."""

    def test_what_is_no_object_or_array_is_not_looked_at(self) -> None:
        for body in (b"", b"7", b'"failed"', b"{", b"\xff", b"{}x", b"status=failed"):
            self.assertIsNone(json_of(body), body)

    def test_a_large_result_may_have_half_a_character(self) -> None:
        """`JSON.stringify` makes such text, and every other path here takes it."""
        text = json_of(b'{"id": "p", "status": "failed", "x": "\\ud800%b"}' % (b"x" * SLOW_BYTES))
        assert text is not None
        self.assertIs(said(None, {}, text, "").state, COMPLETED)
        self.assertEqual(explained(text), text)

    def test_the_layout_of_json_does_not_matter(self) -> None:
        text = json_of(b' \r\n{"id": "p",\n"status":\t"failed"}\n')
        self.assertIs(said(None, {}, text, "").state, FAILED)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["status", "id", "type", "kind", "task", "object", "x"]),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=12,
        )
    )
    def test_no_body_is_an_error(self, body: Any) -> None:
        text = json_of(json.dumps(body).encode())
        told = said(None, {}, text, "")
        self.assertIn(told.state, (None, *TaskState))
        if text is not None and text[:1] == b"{":
            json.loads(explained(text))
