"""JSON that is taken apart and stays the text that it is."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.errors import BadRequest
from asyncplumber.wire.json_text import SLOW_BYTES, elements, members, one_line, value
from tests.unit import examples

# Text with lone surrogates, which the fast decoder refuses, and without.
texts = st.text() | st.text(st.characters(categories=["Cs", "Lu"]), max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=5,
)
indents = st.sampled_from([None, 1, "\t"])


class PartsTests(SynchronousTestCase):
    """Members of an object, elements of an array."""

    @settings(max_examples=examples(40))
    @given(st.dictionaries(texts, values), indents)
    def test_the_members_of_an_object(self, given: dict[str, Any], indent: Any) -> None:
        """Each name with the text of its value, with any layout."""
        body = json.dumps(given, indent=indent).encode()
        parts = members(one_line(body))
        read = {name: json.loads(part) for name, part in parts.items()}
        self.assertEqual(read, json.loads(body))

    @settings(max_examples=examples(40))
    @given(st.lists(values), indents)
    def test_the_elements_of_an_array(self, given: list[Any], indent: Any) -> None:
        """Each as its text, in order."""
        body = json.dumps(given, indent=indent).encode()
        parts = elements(one_line(body))
        self.assertEqual([value(part) for part in parts], json.loads(body))

    def test_the_last_of_two_members_with_one_name_counts(self) -> None:
        """As in Python and in browsers."""
        for other in (b"2", b'"\\ud800"'):
            self.assertEqual(members(b'{"a":1,"a":%b}' % other), {"a": other})

    def test_a_long_text_with_surrogates_cannot_be_taken_apart(self) -> None:
        """It would take too long; without them any length can."""
        rest = b'"x",' * (SLOW_BYTES // 4)
        self.assertEqual(len(elements(b"[%b1]" % rest)), SLOW_BYTES // 4 + 1)
        with self.assertRaises(BadRequest):
            elements(b'[%b"\\ud800"]' % rest)

    def test_a_number_of_too_many_digits_has_no_value(self) -> None:
        """Python reads 4300 of them."""
        with self.assertRaises(BadRequest):
            value(b"1" * 5000)
