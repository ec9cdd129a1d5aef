"""The public names, pinned: to change this list is to change what users build on."""

from __future__ import annotations

import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

import asyncplumber

NAMES = [
    "BadAccount",
    "BadCursor",
    "BadRequest",
    "Cursor",
    "Event",
    "Plumber",
    "PlumberError",
    "Receipt",
    "Retention",
    "TooManyRequests",
    "Unavailable",
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
            asyncplumber.Nothing

    def test_what_users_catch_is_one_family(self) -> None:
        """`PlumberError` catches them all."""
        for name in ("BadAccount", "BadCursor", "BadRequest", "TooManyRequests", "Unavailable"):
            self.assertTrue(
                issubclass(getattr(asyncplumber, name), asyncplumber.PlumberError), name
            )

    def test_importing_it_loads_neither_twisted_nor_a_reactor(self) -> None:
        """A task that only sends pays for nothing else."""
        code = "import asyncplumber, sys; print({'twisted', 'treq', 'klein'} & set(sys.modules) or '[]')"
        said = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        self.assertEqual(said.stdout.strip(), "[]", said.stderr)
