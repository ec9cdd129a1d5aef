"""The batches that instances send to each other."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.errors import BadRequest
from asyncplumber.event import Event
from asyncplumber.wire.event_batch import pack, unpack
from asyncplumber.wire.parse import drafts_of
from harness.core import TIME, event
from harness.generated import plain_text

CLOUD = {b"content-type": b"application/cloudevents+json"}
plain = plain_text()
events = st.builds(
    Event,
    plain,
    st.from_regex("[0-9a-z]{1,9}", fullmatch=True),
    st.integers(1, 10**18 - 1),
    plain,
    plain.map(lambda text: f"t{text[1:]}"),  # none of the reserved types
    st.just(TIME),
    plain,
    st.text().map(
        lambda text: b'"data":' + json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")
    ),
)


class BatchTests(SynchronousTestCase):
    """One instance packs, another one unpacks."""

    @given(st.lists(events, min_size=1, max_size=5))
    def test_unpacking_returns_the_events_that_were_packed(self, given: list[Event]) -> None:
        """Every field of every event, in order."""
        self.assertEqual(unpack(pack(given)), given)

    @given(st.binary(max_size=60))
    def test_anything_else_is_refused(self, body: bytes) -> None:
        """With `BadRequest`, and no other exception."""
        with self.assertRaises(BadRequest):
            unpack(body)

    def test_a_batch_with_one_wrong_field_is_refused(self) -> None:
        """A field that is missing, of another type, or out of range refuses the whole batch."""
        good = json.loads(pack([event(1)]))
        for place, value in (
            (0, None),
            (1, 5),
            (2, "1"),
            (2, True),
            (2, 0),
            (2, -1),
            (2, 1.0),
            (5, []),
            (7, None),
            (7, "\ud800"),
        ):
            row = [*good[:place], value, *good[place + 1 :]]
            with self.assertRaises(BadRequest, msg=f"{place}: {value!r}"):
                unpack(pack([event(1)]) + b"\n" + json.dumps(row).encode())
        for body in (
            json.dumps(good[:-1]).encode(),
            json.dumps([*good, 1]).encode(),
            b"[" * 100_000,
            b"\n",
            b"{}",
            b"1",
        ):
            with self.assertRaises(BadRequest, msg=str(body[:40])):
                unpack(body)

    def test_each_event_is_one_that_a_post_can_bring(self) -> None:
        """A value that could break out of its place in an envelope or a record is refused."""
        bad: dict[str, list[Any]] = {
            "account": ["", "x" * 257, "a\nb", "a\x7f"],
            "epoch": ["", "E", "e.", "e\n", "x" * 33],
            "seq": [10**18],
            "id": ["", "a\nb", "x" * 257, "\u2028"],
            "type": ["", "result\nevent: INJECTED", "plumber.gap", "x" * 257],
            "time": [
                "",
                "yesterday",
                "2026-01-01",
                "2026-13-01T00:00:00Z",
                "2026-01-01T00:00:00",
                TIME + "\n",
                TIME + '"',
            ],
            "content_type": ["", "text/plain\r\n", "x" * 257],
            "payload": [
                *(
                    b"",
                    b"1",
                    b'"x":1',
                    b'{"data":1}',
                    b'"data":',
                    b'"data":1,"seq":2',
                    b'"data":[',
                    b'"data":NaN',
                ),
                *(
                    b'"data":\n1',
                    b'"data": 1',
                    b'"data":"\n"',
                    b'"data_base64":"',
                    b'"data_base64":""x"',
                ),
                *(b'"data_base64":"%"', b'"data_base64":"AA\n=="', b'"data_base64":"A"'),
            ],
        }
        for field, values in bad.items():
            for value in values:
                with self.assertRaises(BadRequest, msg=f"{field}: {value!r}"):
                    unpack(pack([event(1), event(2)._replace(**{field: value})]))

    def test_each_event_that_a_post_can_bring_is_accepted(self) -> None:
        """Up to the limits of what is allowed."""
        good: dict[str, list[Any]] = {
            "account": ["ä/ö?%2F#", "x" * 256],
            "epoch": ["0", "z" * 32],
            "seq": [10**18 - 1],
            "id": ["x" * 256, "1.2"],
            "type": ["plumber", "x" * 256],
            "time": ["2026-12-31T23:59:59Z", "0999-01-01T00:00:00.000Z"],
            "content_type": ["text/plain; charset=utf-8"],
            "payload": [
                b'"data":null',
                b'"data":"\\n"',
                b'"data_base64":""',
                b'"data_base64":"AA=="',
                '"data":"é"'.encode(),
            ],
        }
        for field, values in good.items():
            for value in values:
                changed = event(2)._replace(**{field: value})
                self.assertEqual(unpack(pack([changed])), [changed], value)

    def test_a_year_has_four_digits(self) -> None:
        """Also before the year 1000."""
        now = drafts_of(
            "a",
            CLOUD,
            b'{"specversion":"1.0","id":"1","source":"s","type":"t","time":"0999-01-01T00:00:00Z"}',
            "",
        )
        self.assertEqual(now[0].time, "0999-01-01T00:00:00.000Z")
