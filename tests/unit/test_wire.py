"""Envelopes, frames, records, and the deliveries that have them."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.event import Cursor, Event, Position
from asyncplumber.wire.delivery import OVERHEAD, Delivery
from asyncplumber.wire.envelope import envelope, gap, notice
from asyncplumber.wire.sse import record
from asyncplumber.wire.websocket_frames import frame
from harness.core import TIME, event
from harness.generated import plain_text

plain = plain_text()


class EnvelopeTests(SynchronousTestCase):
    """The JSON object that every transport carries."""

    @given(
        plain, plain, plain, plain, st.recursive(st.none() | st.integers() | st.text(), st.lists)
    )
    def test_it_has_every_field_in_one_line(
        self, account: str, id: str, type: str, content_type: str, data: object
    ) -> None:
        """For any names and data."""
        payload = b'"data":' + json.dumps(data).encode()
        text = envelope(Event(account, "e", 3, id, type, TIME, content_type, payload))
        self.assertNotIn(b"\n", text)
        self.assertNotIn(b"\r", text)
        fields = {
            "id": id,
            "account": account,
            "cursor": "e.3",
            "type": type,
            "time": TIME,
            "content_type": content_type,
            "data": data,
        }
        self.assertEqual(json.loads(text), fields)

    def test_an_event_in_no_history_has_no_cursor(self) -> None:
        """A client that stored one could not resume after it."""
        self.assertIsNone(json.loads(envelope(event(0, epoch="")))["cursor"])
        self.assertEqual(Delivery([event(0, epoch="")]).records.split(b"\n")[0], b"event: result")


class FrameTests(SynchronousTestCase):
    """RFC 6455, 5.2: three forms of a length."""

    def test_a_length_has_the_shortest_form(self) -> None:
        """At and around each limit."""
        for size, head in (
            (0, b"\x81\x00"),
            (125, b"\x81\x7d"),
            (126, b"\x81\x7e\x00\x7e"),
            (65535, b"\x81\x7e\xff\xff"),
            (65536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
        ):
            self.assertEqual(frame(b"x" * size), head + b"x" * size, str(size))


class RecordTests(SynchronousTestCase):
    """Server-Sent Events."""

    def test_a_record_is_lines_and_an_empty_one(self) -> None:
        """The id comes first, if there is one."""
        self.assertEqual(record("e.1", "ty", b"{}"), b"id: e.1\nevent: ty\ndata: {}\n\n")
        self.assertEqual(record("", "ty", b"{}"), b"event: ty\ndata: {}\n\n")


class DeliveryTests(SynchronousTestCase):
    """Several events that go out as one write."""

    def test_each_kind_of_bytes_is_built_once(self) -> None:
        """All subscribers share one object."""
        batch = Delivery([event(1), event(2)])
        self.assertIs(batch.frames, batch.frames)
        self.assertIs(batch.records, batch.records)
        self.assertEqual(batch.frames, b"".join(frame(envelope(each)) for each in batch.events))
        self.assertEqual(
            [line for line in batch.records.split(b"\n") if line.startswith(b"id")],
            [b"id: e.1", b"id: e.2"],
        )

    def test_a_page_is_what_fits_or_one_event(self) -> None:
        """With what each transport adds; a single event may be larger than the page."""
        events = [event(seq, payload=b'"data":"%b"' % (b"x" * 1000)) for seq in range(1, 5)]
        size = len(envelope(events[0])) + len("result") + OVERHEAD
        for limit, count in ((4 * size, 4), (3 * size, 3), (3 * size - 1, 2), (1, 1)):
            page = Delivery.page(events, limit)
            self.assertEqual(list(page.events), events[:count], str(limit))
            self.assertEqual(page.envelopes, [*map(envelope, events[:count])])
            for written in (page.frames, page.chunk):
                self.assertLessEqual(len(written), max(limit, size))


class NoticeTests(SynchronousTestCase):
    """Events about the stream itself."""

    def test_a_notice_has_the_cursor_of_the_subscriber(self) -> None:
        """Beside its own data."""
        told = json.loads(notice("plumber.open", "ä", Cursor("e", 4), more=1))
        self.assertEqual(
            told, {"type": "plumber.open", "account": "ä", "cursor": "e.4", "data": {"more": 1}}
        )

    def test_a_gap_names_the_oldest_event_that_is_kept(self) -> None:
        """Or null, if none is kept."""
        told = json.loads(gap("a", Cursor("e", 2), Position("e", 9, 6)))
        self.assertEqual(
            (told["cursor"], told["data"]), ("e.9", {"from": "e.2", "to": "e.9", "oldest": "e.7"})
        )
        self.assertIsNone(
            json.loads(gap("a", Cursor("e", 2), Position("e", 9, 9)))["data"]["oldest"]
        )
