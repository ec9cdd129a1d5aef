"""The values that travel through the house."""

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
from asyncplumber.event import Cursor, Event, Position, checked_account, is_plain
from asyncplumber.interfaces import CursorLost
from harness.core import draft, event


class CursorTests(SynchronousTestCase):
    """Cursors are what clients come back with, so they are read with care."""

    @given(st.from_regex("[0-9a-z]{1,32}", fullmatch=True), st.integers(0, 10**18 - 1))
    def test_a_cursor_is_read_as_it_was_written(self, epoch: str, seq: int) -> None:
        """Text and back is the same place."""
        self.assertEqual(Cursor.parse(str(Cursor(epoch, seq))), Cursor(epoch, seq))

    def test_what_no_history_gave_out_is_refused(self) -> None:
        """Signs, leading zeros, other digits, line breaks and endless numbers are no cursors."""
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
        """That of an event is behind it, that of a position is its head."""
        self.assertEqual(str(event(7).cursor), "e.7")
        self.assertEqual(Position("e", 9, 3).cursor, Cursor("e", 9))


class NameTests(SynchronousTestCase):
    """Accounts, ids and types travel in headers, lines and URLs."""

    def test_an_account_is_any_text_without_control_characters(self) -> None:
        """Spaces, slashes and other scripts are welcome."""
        for name in ("a", "a b/c?#%", "日本", "x" * 256, "'; DROP", "."):
            self.assertEqual(checked_account(name), name)

    def test_control_characters_and_half_characters_are_refused(self) -> None:
        """They would split a line or a header, or cannot be sent at all."""
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
    """What a callback finds in `Event.data`."""

    def test_data_is_what_was_posted(self) -> None:
        """JSON as values, text as text, anything else as bytes."""
        self.assertEqual(event(1, payload='"data":{"é":[1,null]}'.encode()).data, {"é": [1, None]})
        self.assertEqual(event(1, payload=b'"data_base64":"AP8="').data, b"\x00\xff")

    def test_a_placed_draft_keeps_its_fields(self) -> None:
        """Nothing is mixed up on the way into the history."""
        made = draft("k")._replace(id="i", type="t", content_type="c")
        self.assertEqual(
            Event.from_draft(made, "e", 3), event(3)._replace(id="i", type="t", content_type="c")
        )


class ErrorTests(SynchronousTestCase):
    """Whose fault it was."""

    def test_errors_say_their_default_unless_told_otherwise(self) -> None:
        """And a Retry-After only where there is reason to come back."""
        self.assertEqual((PlumberError().status, PlumberError().retry_after), (500, None))
        self.assertEqual((Unavailable("gone").message, Unavailable().retry_after), ("gone", 2))
        self.assertEqual(MethodNotAllowed("GET, POST").allow, "GET, POST")
        self.assertIn("from 2 to 5", str(CursorLost(Position("e", 5, 2))))

    def test_what_is_meant_for_clients_is_not_logged(self) -> None:
        """An outage is no bug."""
        error = Unavailable()
        self.assertIs(to_client_error(Failure(error), Logger(), "it failed"), error)

    def test_what_is_not_meant_for_clients_is_logged_and_hidden(self) -> None:
        """The client learns that it is our fault, and nothing else."""
        told = to_client_error(Failure(KeyError("secret")), Logger(), "it failed")
        self.assertEqual((told.status, "secret" in told.message), (500, False))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
