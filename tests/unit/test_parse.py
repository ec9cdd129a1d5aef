"""What a POST says."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.errors import BadAccount, BadRequest, PlumberError, TooLarge, UnsupportedMediaType
from asyncplumber.event import Draft, Event
from asyncplumber.wire import fields
from asyncplumber.wire.envelope import envelope
from asyncplumber.wire.json_text import SLOW_BYTES
from asyncplumber.wire.parse import drafts_of, skyhooks_draft
from asyncplumber.wire.payload import payload_of
from harness.core import TIME

JSON = "application/json"
KINDS = [
    "",
    JSON,
    "a+json",
    "application/x-www-form-urlencoded",
    "text/plain",
    "text/xml; charset=latin-1",
]
KINDS += ["image/png", "text/plain; charset=utf-16"]
values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def one(body: bytes, content_type: str = JSON, **headers: str) -> Draft:
    """Return the draft of a POST."""
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    [draft] = drafts_of("a", {b"content-type": content_type.encode(), **named}, body, TIME)
    return draft


def told(draft: Draft) -> Any:
    """Return what a subscriber reads."""
    text = envelope(Event.from_draft(draft, "e", 1))
    assert b"\n" not in text
    assert b"\r" not in text
    return json.loads(text)


class PostCase(SynchronousTestCase):
    def refused(
        self,
        body: bytes,
        content_type: str = JSON,
        error: type[PlumberError] = BadRequest,
        **headers: str,
    ) -> str:
        """Return the message of the refusal."""
        with self.assertRaises(error, msg=f"{body[:60]!r} {headers}") as refusal:
            one(body, content_type, **headers)
        return refusal.exception.message


class JsonTests(PostCase):
    """JSON is passed on as it was sent."""

    @given(values, st.sampled_from([None, 1, "\t"]), st.booleans())
    def test_any_json_has_the_same_value_afterwards(
        self, value: Any, indent: Any, ascii: bool
    ) -> None:
        """In one line, with any layout."""
        body = json.dumps(value, indent=indent, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
        try:
            body.decode()
        except UnicodeDecodeError:
            self.refused(body)
        else:
            self.assertEqual(told(one(body.replace(b"\n", b"\r\n")))["data"], value)

    @given(st.binary(max_size=40), st.sampled_from(KINDS))
    def test_the_envelope_of_any_accepted_body_is_one_line_of_json(
        self, body: bytes, content_type: str
    ) -> None:
        """With any body and any content type."""
        try:
            draft = one(body, content_type)
        except BadRequest:
            self.assertIn("json", content_type)
        else:
            self.assertIn("data" if b'"data"' in draft.payload[:6] else "data_base64", told(draft))

    def test_what_is_not_json_is_refused(self) -> None:
        """Although Python would accept some of it."""
        for body in (
            b"",
            b"NaN",
            b"[Infinity]",
            b"-Infinity",
            b"{'a':1}",
            b"[1,]",
            b"01",
            b'"\n"',
            b'"\x00"',
            b"1 2",
            b'"\\x"',
            b"\xa01",
        ):
            self.refused(body)

    def test_other_encodings_are_refused(self) -> None:
        """JSON is in UTF-8, without a byte order mark."""
        for body in (
            '{"a":1}'.encode("utf-16"),
            '"ä"'.encode("latin-1"),
            b'"\xed\xa0\x80"',
            b'\xef\xbb\xbf{"a":1}',
        ):
            self.refused(body)
        self.assertIn("UTF-8", self.refused('"ä"'.encode("latin-1")))

    def test_numbers_stay_as_they_are(self) -> None:
        """Of any length and precision: they are not rounded, and cost no time."""
        for number in (b"1" * 100_000, b"1e400", b"-0.10", b"1.00000000000000000001"):
            self.assertEqual(one(number).payload, b'"data":' + number)

    def test_deep_nesting_is_refused(self) -> None:
        """A million brackets do no harm."""
        self.assertIn("deep", self.refused(b"[" * 1_000_000 + b"]" * 1_000_000))
        self.assertIn(
            "deep",
            self.refused(
                b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "application/cloudevents+json"
            ),
        )

    def test_repeated_keys_and_escaped_surrogates_pass(self) -> None:
        """JSON allows both, and the escape is ASCII."""
        self.assertEqual(one(b'{"a":1,"a":2}').payload, b'"data":{"a":1,"a":2}')
        self.assertEqual(told(one(b'"\\ud800"'))["data"], "\ud800")

    def test_escaped_surrogates_pass_in_a_body_of_any_size(self) -> None:
        """And a body that is not JSON is refused also if it has some."""
        rest = b'"x",' * (SLOW_BYTES // 2)
        for half in (b'"\\ud800"', b'"\\\\ud800"', b'"\\uDFFF\\uD800"'):
            body = b"[" + rest + half + b"]"
            self.assertEqual(one(body).payload, b'"data":' + body)
        for wrong in (b'"\\ud800', b'"\\ud80"', b'"\\ud800",', b"\\ud800", b'"\\ud800\\x"'):
            self.assertIn("not", self.refused(b"[" + rest + wrong + b"]"))

    def test_layout_is_removed_and_strings_stay(self) -> None:
        """An escaped line break is no line break."""
        self.assertEqual(one(b'\r\n{"a":\n"x\\r\\ny"}\n').payload, b'"data":{"a": "x\\r\\ny"}')


class OtherBodyTests(PostCase):
    """Text becomes a string, everything else base64."""

    def test_a_body_without_a_content_type_is_json_or_text(self) -> None:
        """And so is one with the content type that curl sends."""
        for kind in ("", "application/x-www-form-urlencoded"):
            self.assertEqual(payload_of(kind, b'{"a":1}'), (JSON, b'"data":{"a":1}'))
            self.assertEqual(payload_of(kind, b"a=1")[1], b'"data":"a=1"')
        self.assertEqual(payload_of("", b""), ("text/plain", b'"data":""'))
        self.assertEqual(payload_of("", b"\xff"), ("text/plain", b'"data_base64":"/w=="'))
        self.assertEqual(drafts_of("a", {}, b"1", TIME)[0].content_type, JSON)

    def test_the_charset_of_text_is_found(self) -> None:
        """In any spelling; bytes that are not in it are base64."""
        for words in (
            "charset=latin-1",
            "Charset=ISO-8859-1",
            'x=1; charset="latin1"',
            "CHARSET=windows-1252;x=1",
        ):
            self.assertEqual(told(one(b"\xe4", f"text/plain; {words}"))["data"], "ä", words)
        self.assertEqual(told(one("ä".encode("utf-16"), "text/csv; charset=utf-16"))["data"], "ä")
        self.assertEqual(told(one("ä".encode(), "text/plain; xcharset=latin-1"))["data"], "ä")
        self.assertEqual(told(one(b"<a/>", "image/svg+xml"))["data"], "<a/>")
        self.assertEqual(told(one(b"\xff", "text/plain"))["data_base64"], "/w==")

    def test_pythons_own_codecs_are_not_charsets(self) -> None:
        """Some raise, some make no text, some take minutes for a body within the limit."""
        for charset in (
            "undefined",
            "idna",
            "punycode",
            "unicode_escape",
            "rot13",
            "zlib",
            "hex",
            "utf-7",
            "nonsense",
            "é",
        ):
            self.assertIn(
                "data_base64", told(one(b"ab-", f"text/plain; charset={charset}")), charset
            )

    def test_a_wrong_content_type_is_refused(self) -> None:
        """It would be in every envelope."""
        self.refused(b"1", "x" * 257)
        self.refused(b"1", "text/\x01")


class HeaderTests(PostCase):
    """The id and the type, in headers."""

    def test_ids_and_types_are_taken_from_headers(self) -> None:
        """Webhook-Id is preferred to Idempotency-Key."""
        draft = one(b"1", webhook_id="w", idempotency_key="i", event_type="progress")
        self.assertEqual((draft.id, draft.key, draft.type), ("w", "w", "progress"))
        self.assertEqual(one(b"1", idempotency_key="i").id, "i")

    def test_an_idempotency_key_is_a_structured_string(self) -> None:
        """RFC 8941: with quotes, or without as many clients send it, it is the same key."""
        for text, id in (
            ('"i"', "i"),
            ("i", "i"),
            ('"a\\"b\\\\c"', 'a"b\\c'),
            ('"', '"'),
            ('i"', 'i"'),
        ):
            self.assertEqual(one(b"1", idempotency_key=text).id, id)
        self.assertEqual(one(b"1", webhook_id='"w"').id, '"w"')
        with self.assertRaises(BadRequest):
            one(b"1", idempotency_key='""')
        first, second = one(b"1"), one(b"1")
        self.assertNotEqual(first.id, second.id)
        self.assertEqual((first.type, first.time), ("result", TIME))

    def test_a_wrong_name_is_refused(self) -> None:
        """Empty, too long, with control characters, or reserved."""
        for name in ("", "x" * 257, "a\x00", "a\x7f", "a\u2028"):
            self.refused(b"1", webhook_id=name)
            self.refused(b"1", event_type=name)
        self.assertIn("plumber.", self.refused(b"1", event_type="plumber.gap"))
        with self.assertRaises(BadRequest):
            drafts_of("a", {b"webhook-id": b"\xff"}, b"1", TIME)
        with self.assertRaises(BadAccount):
            drafts_of("a\n", {}, b"1", TIME)


class LinesTests(PostCase):
    """Newline-delimited JSON."""

    def test_each_line_is_a_result(self) -> None:
        """Empty lines are skipped; ids are numbered."""
        drafts = drafts_of(
            "a",
            {b"content-type": b"application/x-ndjson", b"webhook-id": b"w"},
            b'1\r\n\n"x"\n',
            TIME,
        )
        self.assertEqual(
            [(draft.id, draft.payload) for draft in drafts],
            [("w.1", b'"data":1'), ("w.2", b'"data":"x"')],
        )

    def test_one_bad_line_refuses_all(self) -> None:
        """With its number; no line at all is refused as well."""
        self.assertIn("line 2", self.refused(b"1\nx\n", "application/jsonl"))
        self.refused(b"\n \n", "application/jsonl")
        self.refused(b"1", "application/jsonl", webhook_id="x" * 256)

    def test_a_batch_is_bounded(self) -> None:
        """With 413."""
        self.patch(fields, "BATCH_LENGTH", 2)
        self.refused(b"1\n2\n3", "application/jsonl", TooLarge)


class CloudEventTests(PostCase):
    """CloudEvents 1.0, in three modes."""

    EVENT = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
    KIND = "application/cloudevents+json"

    def structured(self, **changes: Any) -> Draft:
        return one(json.dumps({**self.EVENT, **changes}).encode(), self.KIND)

    def test_a_structured_event(self) -> None:
        """Its id, type, time and data are those of the event."""
        draft = self.structured(
            time="2026-02-03T04:05:06.7891+02:00", data={"a": "ä"}, datacontenttype="x/y"
        )
        self.assertEqual(
            (draft.id, draft.type, draft.time, draft.content_type),
            ("1", "t", "2026-02-03T02:05:06.789Z", "x/y"),
        )
        self.assertEqual(told(draft)["data"], {"a": "ä"})
        self.assertIsNone(told(self.structured())["data"])
        self.assertEqual(told(self.structured(data_base64="AP8="))["data_base64"], "AP8=")

    def test_its_data_stays_as_it_is(self) -> None:
        """With all digits of numbers, and with any layout around it."""
        for data in (
            b"1e400",
            b"1.00000000000000000001",
            b"1" * 5000,
            b'{"a":1,"a":[ 2 , {} ]}',
            b'"\\ud800"',
            b'"}],{"',
            b"[]",
        ):
            body = (
                b' { "specversion" : "1.0","id":"1",\r\n"source":"s","type":"t" , "data" :\n%b } '
                % data
            )
            self.assertEqual(one(body, self.KIND).payload, b'"data":' + data)

    def test_a_missing_or_wrong_attribute_is_refused(self) -> None:
        """The message names the attribute."""
        for name, value in (
            ("specversion", "0.3"),
            ("specversion", None),
            ("id", ""),
            ("id", 5),
            ("id", "\ud800"),
            ("source", None),
            ("type", "plumber.x"),
            ("type", ["t"]),
            ("time", "yesterday"),
            ("time", "2026-01-01T00:00:00"),
            ("time", "0001-01-01T00:00:00+23:00"),
            ("time", 20260101),
            ("datacontenttype", 1),
            ("datacontenttype", "\n"),
            ("data_base64", "?"),
            ("data_base64", "é"),
            ("data_base64", [1]),
        ):
            with self.assertRaises(BadRequest, msg=f"{name}={value!r}") as refusal:
                self.structured(**{name: value})
            self.assertIn(name, refusal.exception.message)
        for body in (b"[]", b"1", b"null", b'"x"', b"{", b'{"id":%b}' % (b"1" * 5000)):
            self.refused(body, self.KIND)

    def test_the_same_id_of_two_sources_is_two_events(self) -> None:
        """No pair has the same key as another one, or as a plain id."""
        pairs = [("a", "b c"), ("a b", "c"), ("a", "b")]
        keys = {self.structured(source=source, id=id).key for source, id in pairs} | {
            one(b"1", webhook_id="a b").key
        }
        self.assertEqual(len(keys), 4)

    def test_a_batch_is_one_draft_for_each(self) -> None:
        """All are accepted, or none."""
        kind = "application/cloudevents-batch+json"
        body = json.dumps(
            [{**self.EVENT, "id": str(n), "data": n} for n in range(3)], indent=1
        ).encode()
        drafts = drafts_of("a", {b"content-type": kind.encode()}, body, TIME)
        self.assertEqual(
            [(draft.id, told(draft)["data"]) for draft in drafts], [("0", 0), ("1", 1), ("2", 2)]
        )
        for wrong in (b"[]", b"{}", b"[1]", b"[null]"):
            self.refused(wrong, kind)
        self.refused(b"x", "application/cloudevents+avro", UnsupportedMediaType)

    def test_a_binary_event_is_in_the_headers(self) -> None:
        """Percent-encoded, as the HTTP binding says."""
        ce = {
            "ce_specversion": "1.0",
            "ce_id": "%C3%A4",
            "ce_source": "/s",
            "ce_type": "t",
            "ce_time": "2026-01-01t00:00:00z",
        }
        draft = one(b"\x00", "image/png", **ce)
        self.assertEqual(
            (draft.id, draft.type, draft.time, draft.content_type),
            ("ä", "t", "2026-01-01T00:00:00.000Z", "image/png"),
        )
        self.assertEqual(told(one(b'{"a":1}', "", **ce))["data"], {"a": 1})
        self.refused(b"1", ce_specversion="1.0", ce_id="%0A", ce_source="s", ce_type="t")
        self.refused(b"1", ce_specversion="1.0", ce_source="s", ce_type="t")


class SkyhooksTests(PostCase):
    """The payload of skyhooks."""

    def test_the_account_is_in_the_body(self) -> None:
        """As text or as a number; the data stays as it is."""
        for account, name in (('"42"', "42"), ("42", "42"), ('"ä"', "ä")):
            body = b'{"keys": {"account_id": %b}, "data": {"a": 1e400}}' % account.encode()
            draft = skyhooks_draft(
                {b"content-type": b"text/plain", b"webhook-id": b"w"}, body, TIME
            )
            self.assertEqual(
                (draft.account, draft.id, draft.payload), (name, "w", b'"data":{"a": 1e400}')
            )
        self.assertEqual(
            skyhooks_draft({}, b'{"keys":{"account_id":1}}', TIME).payload, b'"data":null'
        )

    def test_anything_else_is_refused(self) -> None:
        """With a sentence that shows the form."""
        for keys in (
            b"{}",
            b"[]",
            b'{"account_id":true}',
            b'{"account_id":null}',
            b'{"account_id":1.5}',
            b'{"account_id":""}',
            b"1" * 5000,
        ):
            with self.assertRaises(BadRequest, msg=str(keys)):
                skyhooks_draft({}, b'{"keys":%b,"data":1}' % keys, TIME)
        for body in (b"", b"[1]", b"1", b"NaN", b"{}"):
            with self.assertRaises(BadRequest, msg=str(body)):
                skyhooks_draft({}, body, TIME)
