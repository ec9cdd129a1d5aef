"""The states of a task, its row on the wire, and what a report's headers mean."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.errors import BadRequest, IllegalTransition
from asyncplumber.event import Cursor, Draft, Event
from asyncplumber.task import (
    TRANSITIONS,
    Task,
    TaskState,
    digest_of,
    end_key,
    is_beginning,
    late_key,
    new_run,
    state_key,
    state_of,
)
from asyncplumber.wire.event_batch import pack, unpack
from asyncplumber.wire.payload import is_task_payload, payload_of
from asyncplumber.wire.tasks import (
    ended,
    error_of,
    input_digest,
    task_fields,
    task_object,
    with_member,
    without_member,
)
from harness.generated import plain_text

ROW = Task("42", "sum", "r1", TaskState.RUNNING, 1.0, 2.0)


def _event(payload: bytes, task: Task, type: str = "task.completed") -> Event:
    time = "2026-01-01T00:00:00.000Z"
    return Event("42", "e", 7, "i", type, time, "application/json", with_member(payload, task))


class StateTests(SynchronousTestCase):
    """The state machine."""

    def test_every_end_but_lost_is_final(self) -> None:
        final = [state for state, following in TRANSITIONS.items() if not following]
        self.assertEqual(final, [TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELED])
        for state in TaskState:
            self.assertEqual(
                state.is_done,
                TaskState.RUNNING not in TRANSITIONS[state] and (state is not TaskState.RUNNING),
            )

    def test_an_end_is_followed_by_nothing(self) -> None:
        done = Task("42", "sum", "r1", TaskState.COMPLETED, 1.0, 2.0)
        self.assertRaises(IllegalTransition, done.check, TaskState.FAILED)
        Task("42", "sum", "r1", TaskState.LOST, 1.0, 2.0).check(TaskState.COMPLETED)

    def test_the_words_of_other_systems(self) -> None:
        for word, state in [
            ("SUCCESS", TaskState.COMPLETED),
            ("success", TaskState.COMPLETED),
            ("finished", TaskState.COMPLETED),
            ("failure", TaskState.FAILED),
            ("cancelled", TaskState.CANCELED),
            ("REVOKED", TaskState.CANCELED),
            ("RETRY", TaskState.RUNNING),
            ("in_progress", TaskState.RUNNING),
            ("starting", TaskState.SUBMITTED),
        ]:
            self.assertIs(state_of(word), state)
        self.assertIsNone(state_of("lost"))
        self.assertIsNone(state_of("nonsense"))

    def test_a_run_begins_with_started_and_not_with_running(self) -> None:
        self.assertTrue(is_beginning("started") and is_beginning("submitted"))
        self.assertFalse(is_beginning("running") or is_beginning("completed"))

    def test_no_client_can_send_the_key_of_an_end(self) -> None:
        late = Task("42", "sum", "r1", TaskState.COMPLETED, 1.0, 2.0, is_late=True)
        self.assertEqual(state_key(late), late_key("r1"))
        for key in (end_key("r1"), late_key("r1"), state_key(ROW)):
            self.assertRaises(BadRequest, task_fields, {b"task": key.encode()})

    def test_later_runs_are_greater(self) -> None:
        self.assertLess(new_run(1.0), new_run(2.0))
        self.assertNotEqual(new_run(1.0), new_run(1.0))

    def test_content_type_and_body_cannot_be_mixed_up(self) -> None:
        self.assertNotEqual(digest_of("a", b"bc"), digest_of("ab", b"c"))
        self.assertEqual(digest_of("text/plain", b""), b"")

    def test_the_same_value_is_the_same_input(self) -> None:
        """However its JSON is spaced, and if ``curl -d`` sends it; another value is another one."""
        form = "application/x-www-form-urlencoded"
        json, text = "application/json", "text/plain; charset=utf-8"
        same = {
            input_digest(kind, body)
            for kind in (json, "application/json; charset=utf-8", form, "")
            for body in (b'{"a":[1,2]}', b' {"a" : [1,\n 2]}\n')
        }
        self.assertEqual(len(same), 1)
        others = {
            input_digest(kind, body)
            for kind, body in (
                (json, b'{"a":[2,1]}'),
                (json, b'{"a":[1.0,2]}'),
                (json, b'"\\ud800 x"'),
                (json, b'"\\ud800  x"'),
                (json, b'["a b"]'),
                (json, b'["a  b"]'),
                (json, b"no JSON"),
                ("application/cloudevents+json", b'{"a":[1,2]}'),
                (text, b'{"a":[1,2]}'),
                (form, b"a=1"),
                (form, b"a=2"),
                ("image/png", b"\x00"),
                ("image/png", b"\x01"),
            )
        }
        self.assertEqual(len(others - same), 13)
        self.assertEqual(input_digest(json, b""), b"")


class WireTests(SynchronousTestCase):
    """The task object and the member of an envelope."""

    def test_the_member_stands_beside_the_payload(self) -> None:
        event = _event(b'"data":{"total": 7}', ROW)
        self.assertEqual(event.data, {"total": 7})
        self.assertEqual(
            event.task, {"task": "sum", "run": "r1", "state": "running", "done": False}
        )
        self.assertEqual(without_member(event), b'"data":{"total": 7}')
        self.assertIsNone(event._replace(type="result").task)

    @given(st.binary(max_size=40), st.sampled_from(["", "text/plain", "image/png"]), plain_text())
    def test_any_payload_comes_back_and_passes_between_instances(
        self, body: bytes, content_type: str, key: str
    ) -> None:
        _, payload = payload_of(content_type, body)
        event = _event(payload, Task("42", key, "r", TaskState.COMPLETED, 1.0, 2.0))
        self.assertEqual(without_member(event), payload)
        self.assertEqual(unpack(pack([event])), [event])

    def test_no_other_member_passes_between_instances(self) -> None:
        for wrong in [
            b'"data":1,"id":2',
            b'"data":1,"task":2',
            b'"data":1,"task":{},"task":{}',
            b'"task":{},"data":1',
            b'"data_base64":"!","task":{}',
            b'"data":1,"task":{}\n',
        ]:
            self.assertFalse(is_task_payload(wrong), wrong)

    def test_an_event_tells_how_its_run_ended(self) -> None:
        done = Task("42", "sum", "r1", TaskState.COMPLETED, 1.0, 2.0, is_late=True)
        row = ended(ROW, _event(b'"data":7', done))
        self.assertEqual(
            (row.state, row.result, row.cursor),
            (
                TaskState.COMPLETED,
                b'"data":7',
                Cursor("e", 7),
            ),
        )
        self.assertTrue(row.is_late and row.is_announced)

    def test_exactly_one_of_result_and_error(self) -> None:
        done = Task("42", "s", "r", TaskState.COMPLETED, 1.0, 2.0, result=b'"data_base64":"AA=="')
        text = json.loads(task_object(done))
        self.assertEqual(text["result_base64"], "AA==")
        self.assertNotIn("error", text)
        lost = Task("42", "s", "r", TaskState.LOST, 1.0, 2.0, error=b'{"type":"silent"}')
        self.assertEqual(json.loads(task_object(lost))["error"], {"type": "silent"})
        self.assertNotIn("result", json.loads(task_object(lost)))

    def test_an_error_is_what_the_runner_says_with_type_and_message(self) -> None:
        for body, message in [
            (b'{"message": "no paper", "tray": 2}', "no paper"),
            (b'"no paper"', "no paper"),
            (b'{"message": 7}', "7"),
            (b"", "the task failed"),
            (b"1e999", "the task failed"),
            (b'{"message": 1e999}', "the task failed"),
            (b'{"tray": %b}' % (b"1" * 5000), "the task failed"),  # Python refuses to read it
        ]:
            content_type, payload = payload_of("", body)
            draft = Draft("42", "i", "i", "result", "", content_type, payload)
            error = json.loads(error_of(TaskState.FAILED, draft))
            self.assertEqual((error["type"], error["message"]), ("failed", message))


class FieldTests(SynchronousTestCase):
    """The headers of a report."""

    def test_a_report_without_a_state_is_the_result(self) -> None:
        fields = task_fields({b"task": "größe".encode()})
        self.assertEqual((fields.key, fields.state), ("größe", TaskState.COMPLETED))
        self.assertIsNone(fields.run)
        self.assertIsNone(fields.patience)

    def test_what_cannot_be_understood_is_refused(self) -> None:
        for headers in [
            {b"task": b""},
            {b"task": b"\xff"},
            {b"task": b"x" * 257},
            {b"task": b"x", b"task-state": b"nonsense"},
            {b"task": b"x", b"task-state": b"lost"},
            {b"task": b"x", b"task-run": b"y" * 257},
            {b"task": b"x", b"task-deadline": b"-1"},
            {b"task": b"x", b"task-deadline": b"soon"},
            {b"task": b"x", b"task-deadline": b"nan"},
        ]:
            self.assertRaises(BadRequest, task_fields, headers)

    def test_a_deadline_of_zero_is_never(self) -> None:
        self.assertEqual(task_fields({b"task": b"x", b"task-deadline": b"0"}).patience, 0.0)
