"""The public names, pinned: to change this list is to change what users build on."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

import asyncplumber

NAMES = [
    "LATER",
    "Accounts",
    "BadAccount",
    "BadCursor",
    "BadRequest",
    "Cursor",
    "Event",
    "EventsMissed",
    "Grant",
    "IAuthority",
    "Plumber",
    "PlumberError",
    "Receipt",
    "Retention",
    "Run",
    "TooManyRequests",
    "Unavailable",
    "authority_from_files",
    "steady",
]


class ExportTests(SynchronousTestCase):
    """What ``import asyncplumber`` offers."""

    def test_the_public_names_are_these(self) -> None:
        """No more, no fewer, in the order of the alphabet."""
        self.assertEqual(asyncplumber.__all__, NAMES)

    def test_every_public_name_is_there_and_says_what_it_is(self) -> None:
        """With a docstring."""
        for name in NAMES:
            self.assertTrue(getattr(asyncplumber, name).__doc__, name)

    def test_a_name_that_is_not_there_is_an_attribute_error(self) -> None:
        """As for any module."""
        with self.assertRaises(AttributeError):
            asyncplumber.Nothing  # noqa: B018

    def test_what_users_catch_is_one_family(self) -> None:
        """`PlumberError` catches them all."""
        for name in ("BadAccount", "BadCursor", "BadRequest", "TooManyRequests", "Unavailable"):
            self.assertTrue(
                issubclass(getattr(asyncplumber, name), asyncplumber.PlumberError), name
            )
