"""What clients prefer, and bodies that come back as they were posted."""

from __future__ import annotations

import json
from time import process_time

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.errors import BadRequest
from asyncplumber.wire.payload import body_of, media_type, payload_of
from asyncplumber.wire.preferences import Freshness, Wish, freshness_of, wish_of

_pieces = st.lists(
    st.sampled_from(
        [b"wait", b"=", b"10", b'"', b"\\", b",", b";", b" ", b"respond-async", b"max-age", b"\xe9"]
    ),
    max_size=12,
).map(b"".join)


class PreferTests(SynchronousTestCase):
    """``Prefer`` (RFC 7240)."""

    def test_what_is_understood(self) -> None:
        for value, wish in (
            (b"", Wish()),
            (b"wait=10", Wish(10)),
            (b"WAIT=10", Wish(10)),
            (b'wait="10"', Wish(10)),
            (b'wait = 10 ; why="a, b"', Wish(10)),
            (b"respond-async, wait=10", Wish(10, True)),
            (b"wait=10,respond-async", Wish(10, True)),
            (b"wait=1, wait=2", Wish(1)),
            (b'note="x, wait=9", wait=1', Wish(1)),
            (b'note="\\", wait=9, ", wait=1', Wish(1)),
            (b"wait", Wish()),
            (b"wait=", Wish()),
            (b"wait=1.5", Wish()),
            (b"wait=-1", Wish()),
            (b"wait=\xb2", Wish()),
            (b"wait=" + b"9" * 30, Wish(10**9)),
            (b"respond-async=no", Wish(None, True)),
            (b"return=minimal, handling=lenient", Wish()),
        ):
            self.assertEqual(wish_of({b"prefer": value}), wish, value)
        self.assertEqual(wish_of({}), Wish())

    def test_what_was_applied(self) -> None:
        self.assertEqual(Wish(5).applied(5.0, is_later=True), b"wait=5")
        self.assertEqual(Wish(500).applied(120.0, is_later=False), b"wait=120")
        self.assertEqual(Wish(None, True).applied(0, is_later=True), b"respond-async")
        self.assertEqual(Wish(None, True).applied(0, is_later=False), b"")
        self.assertEqual(Wish(5, True).applied(5, is_later=True), b"respond-async, wait=5")
        self.assertEqual(Wish().applied(25, is_later=True), b"")

    @given(_pieces)
    def test_anything_can_be_read(self, value: bytes) -> None:
        wish = wish_of({b"prefer": value})
        self.assertTrue(wish.wait is None or 0 <= wish.wait <= 10**9)
        freshness = freshness_of({b"cache-control": value})
        self.assertTrue(freshness.max_age is None or freshness.max_age >= -1)

    def test_reading_takes_no_long(self) -> None:
        """Whatever a header of the greatest length has in it."""
        for piece in (b",", b" ", b'"', b'a="', b'a="\\', b"a=", b'a=";', b"=", b'\\"', b"a "):
            value = piece * (16384 // len(piece))
            began = process_time()
            wish_of({b"prefer": value})
            self.assertLess(process_time() - began, 0.5, piece)


class FreshnessTests(SynchronousTestCase):
    """``Cache-Control`` of a request (RFC 9111, 5.2.1)."""

    def test_what_is_understood(self) -> None:
        for value, freshness in (
            (b"", Freshness()),
            (b"max-age=60", Freshness(60)),
            (b"Max-Age=60, max-stale", Freshness(60)),
            (b"no-cache", Freshness()),
            (b"no-cache, max-age=60", Freshness()),
            (b"max-age=0", Freshness()),
            (b"max-age=x", Freshness()),
            (b"only-if-cached", Freshness(None, True)),
            (b"only-if-cached, max-age=60", Freshness(60, True)),
            (b"only-if-cached, no-cache", Freshness(-1.0, True)),
            (b"only-if-cached, max-age=0", Freshness(-1.0, True)),
        ):
            self.assertEqual(freshness_of({b"cache-control": value}), freshness, value)


class BodyTests(SynchronousTestCase):
    """`body_of` is the inverse of `payload_of`."""

    @given(
        st.sampled_from(
            ["", "application/json", "application/vnd.x+json", "application/octet-stream"]
        )
        | st.sampled_from(["text/plain", "text/plain; charset=utf-8", "image/svg+xml", "text/csv"]),
        st.binary(max_size=40) | st.text(max_size=40).map(str.encode),
    )
    def test_a_body_comes_back(self, content_type: str, body: bytes) -> None:
        try:
            told, member = payload_of(content_type, body)
        except BadRequest:
            return  # it says that it is JSON, and is not
        found_type, found = body_of(told, member)
        self.assertEqual(media_type(found_type), media_type(told) or "application/octet-stream")
        if "json" in found_type:
            # Only the layout may have changed.
            text = body.decode()
            self.assertEqual(found.decode(), text.replace("\r", " ").replace("\n", " ").strip())
        else:
            self.assertEqual(found, body)

    def test_charsets(self) -> None:
        for content_type, text in (
            ("text/plain; charset=latin-1", "é"),
            ("text/plain; charset=utf-16-le", "é→"),
            ('text/plain; charset="shift_jis"', "日本"),
            ("text/html;charset=windows-1252", "€"),
        ):
            codec = content_type.partition("=")[2].strip('"')
            body = text.encode(codec)
            self.assertEqual(body_of(*payload_of(content_type, body)), (content_type, body))

    def test_a_text_that_its_charset_cannot_express(self) -> None:
        """Such as the data of a CloudEvent."""
        member = b'"data":' + json.dumps("é→\ud800").encode()
        for content_type, told in (
            ("text/plain; charset=ascii", "text/plain; charset=utf-8"),
            ("text/plain; charset=rot13", "text/plain; charset=utf-8"),
            ("text/csv; charset=x; header=present", "text/csv; header=present; charset=utf-8"),
            ("", "text/plain; charset=utf-8"),
        ):
            found_type, body = body_of(content_type, member)
            self.assertEqual((found_type, body), (told, "é→?".encode()), content_type)

    def test_data_that_is_no_text(self) -> None:
        """Its content type says text, but it is JSON."""
        self.assertEqual(body_of("text/plain", b'"data":{"a":1}'), ("application/json", b'{"a":1}'))
        self.assertEqual(
            body_of("", b'"data_base64":"AAE="'), ("application/octet-stream", b"\x00\x01")
        )
