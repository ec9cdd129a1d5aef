"""What one instance sends to another."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.errors import BadRequest
from asyncplumber.event import Event, is_plain
from asyncplumber.relays.parcels import pack, unpack
from tests.house import TIME, event

plain = st.text(min_size=1, max_size=20).filter(is_plain)
events = st.builds(
    Event,
    plain,
    st.from_regex("[0-9a-z]{1,9}", fullmatch=True),
    st.integers(1, 10**18 - 1),
    plain,
    plain,
    st.just(TIME),
    plain,
    st.text().map(lambda text: b'"data":' + json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")),
)


class ParcelTests(SynchronousTestCase):
    """Packed there, unpacked here."""

    @given(st.lists(events, min_size=1, max_size=5))
    def test_what_is_unpacked_is_what_was_packed(self, given: list[Event]) -> None:
        """Every field of every event, in order."""
        self.assertEqual(unpack(pack(given)), given)

    @given(st.binary(max_size=60))
    def test_anything_else_is_refused(self, body: bytes) -> None:
        """And by nothing else than `BadRequest`."""
        with self.assertRaises(BadRequest):
            unpack(body)

    def test_nearly_right_is_refused(self) -> None:
        """Fields that are missing, of another type, or out of range; all or nothing."""
        good = json.loads(pack([event(1)]))
        for place, value in ((0, None), (1, 5), (2, "1"), (2, True), (2, 0), (2, -1), (2, 1.0), (5, []), (7, None), (7, "\ud800")):
            row = [*good[:place], value, *good[place + 1 :]]
            with self.assertRaises(BadRequest, msg=f"{place}: {value!r}"):
                unpack(pack([event(1)]) + b"\n" + json.dumps(row).encode())
        for body in (json.dumps(good[:-1]).encode(), json.dumps([*good, 1]).encode(), b"[" * 100_000, b"\n", b"{}", b"1"):
            with self.assertRaises(BadRequest, msg=str(body[:40])):
                unpack(body)
