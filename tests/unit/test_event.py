"""The values that the layers hand to each other, and the errors that clients see."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.errors import (
    BadAccount,
    BadCursor,
    MethodNotAllowed,
    PlumberError,
    Unavailable,
    to_client_error,
)
from asyncplumber.event import Cursor, Event, Position, checked_account, is_plain, timestamp
from asyncplumber.interfaces import CursorLost
from harness.core import draft, event


class CursorTests(SynchronousTestCase):
    """Clients send cursors back, so they are read with care."""

    @given(st.from_regex("[0-9a-z]{1,32}", fullmatch=True), st.integers(0, 10**18 - 1))
    def test_a_cursor_is_read_as_it_was_written(self, epoch: str, seq: int) -> None:
        """A cursor written as text and read again is the same."""
        self.assertEqual(Cursor.parse(str(Cursor(epoch, seq))), Cursor(epoch, seq))

    def test_text_that_is_no_cursor_is_refused(self) -> None:
        """Signs, leading zeros, other digits, line breaks and numbers that are too long."""
        for text in (
            "",
            ".",
            "e",
            "e.",
            ".1",
            "e.-1",
            "e.+1",
            "e.01",
            "e.1 ",
            " e.1",
            "e.1\n",
            "E.1",
            "é.1",
            "e.١",
            "e.1.2",
            "e." + "9" * 19,
        ):
            with self.assertRaises(BadCursor, msg=repr(text)):
                Cursor.parse(text)

    def test_places_know_their_cursor(self) -> None:
        """The cursor of an event is its own place, that of a position its head."""
        self.assertEqual(str(event(7).cursor), "e.7")
        self.assertEqual(Position("e", 9, 3).cursor, Cursor("e", 9))


class NameTests(SynchronousTestCase):
    """Accounts, ids and types travel in headers, lines and URLs."""

    def test_an_account_is_any_text_without_control_characters(self) -> None:
        """Spaces, slashes and other scripts are allowed."""
        for name in ("a", "a b/c?#%", "日本", "x" * 256, "'; DROP", "."):
            self.assertEqual(checked_account(name), name)

    def test_control_characters_and_surrogates_are_refused(self) -> None:
        """They would split a line or a header, or cannot be encoded."""
        for name in (
            "",
            "x" * 257,
            "a\nb",
            "\x00",
            "\x7f",
            "\x85",
            "\u2028",
            "\u2029",
            "\ud800",
            "a\udfff",
        ):
            with self.assertRaises(BadAccount, msg=repr(name)):
                checked_account(name)
            self.assertFalse(is_plain(name))


class DataTests(SynchronousTestCase):
    """`Event.data` and `Event.from_draft`."""

    def test_data_is_what_was_posted(self) -> None:
        """JSON as a value, text as text, anything else as bytes."""
        self.assertEqual(event(1, payload='"data":{"é":[1,null]}'.encode()).data, {"é": [1, None]})
        self.assertEqual(event(1, payload=b'"data_base64":"AP8="').data, b"\x00\xff")

    def test_an_event_has_the_fields_of_its_draft(self) -> None:
        """Each in its place, beside the epoch and the number."""
        made = draft("k")._replace(id="i", type="t", content_type="c")
        self.assertEqual(
            Event.from_draft(made, "e", 3), event(3)._replace(id="i", type="t", content_type="c")
        )


class TimestampTests(SynchronousTestCase):
    """RFC 3339 in UTC."""

    def test_a_time_is_written_to_the_millisecond(self) -> None:
        """Always of the same length, so that it sorts."""
        self.assertEqual(
            [timestamp(0), timestamp(1.5)], ["1970-01-01T00:00:00.000Z", "1970-01-01T00:00:01.500Z"]
        )


class ErrorTests(SynchronousTestCase):
    """What clients are told, and what is logged."""

    def test_an_error_has_a_default_message(self) -> None:
        """And a Retry-After only if it makes sense to try again."""
        self.assertEqual((PlumberError().status, PlumberError().retry_after), (500, None))
        self.assertEqual((Unavailable("gone").message, Unavailable().retry_after), ("gone", 2))
        self.assertEqual(MethodNotAllowed("GET, POST").allow, "GET, POST")
        self.assertIn("from 2 to 5", str(CursorLost(Position("e", 5, 2))))

    def test_an_error_for_clients_is_not_logged(self) -> None:
        """An outage is no bug of the program."""
        error = Unavailable()
        self.assertIs(to_client_error(Failure(error), Logger(), "it failed"), error)

    def test_any_other_error_is_logged_and_hidden(self) -> None:
        """The client gets a generic 500, without the original message."""
        told = to_client_error(Failure(KeyError("secret")), Logger(), "it failed")
        self.assertEqual((told.status, "secret" in told.message), (500, False))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
