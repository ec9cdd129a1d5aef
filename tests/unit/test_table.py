"""Tables of a TOML file, taken apart."""

from __future__ import annotations

import tomllib
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.table import Table
from asyncplumber.grant import Accounts


def table(text: str) -> Table:
    """Return a table of this content."""
    return Table(tomllib.loads(text), "[x]")


class TableTests(SynchronousTestCase):
    """`Table`."""

    def refused(self, text: str, take: Callable[[Table], object]) -> str:
        """Return why this content is refused."""
        return str(self.assertRaises(ValueError, take, table(text)))

    def test_good_values(self) -> None:
        """Of each type, and defaults."""
        found = table('a = "t"\nb = ["u", "v"]\nc = 3\nd = "one"\ne = ["x", {prefix = "p."}]')
        self.assertIn("a", found)
        self.assertEqual(found.text("a"), "t")
        self.assertNotIn("a", found)
        self.assertEqual(found.text("a", "default"), "default")
        self.assertIsNone(found.optional_text("a"))
        self.assertEqual(found.texts("b"), ("u", "v"))
        self.assertEqual(found.whole("c", 1, 1, 3), 3)
        self.assertEqual(found.whole("c", 1, 1, 3), 1)
        self.assertEqual(found.one_of("d", ("one", "two"), "two"), "one")
        self.assertEqual(found.one_of("d", ("one", "two"), "two"), "two")
        self.assertEqual(found.accounts("e"), Accounts(frozenset({"x"}), ("p.",)))
        found.close()

    def test_bad_values(self) -> None:
        """The message names the table and the key."""
        for text, take in (
            ("", lambda found: found.text("k")),
            ("k = 1", lambda found: found.text("k")),
            ('k = ""', lambda found: found.text("k", "default")),
            ('k = ""', lambda found: found.optional_text("k")),
            ('k = "x"', lambda found: found.texts("k")),
            ("k = []", lambda found: found.texts("k")),
            ('k = ["x", 1]', lambda found: found.texts("k")),
            ('k = ["x", ""]', lambda found: found.texts("k")),
            ("k = true", lambda found: found.whole("k", 1, 0, 2)),
            ("k = 1.0", lambda found: found.whole("k", 1, 0, 2)),
            ("k = 3", lambda found: found.whole("k", 1, 0, 2)),
            ("k = -1", lambda found: found.whole("k", 1, 0, 2)),
            ('k = "three"', lambda found: found.one_of("k", ("one", "two"), "one")),
            ("k = []", lambda found: found.one_of("k", ("one", "two"), "one")),
            ("k = []", lambda found: found.accounts("k")),
            ('k = "x"', lambda found: found.accounts("k")),
            ('k = [{suffix = "x"}]', lambda found: found.accounts("k")),
            ("k = 1", lambda found: found.close()),
        ):
            message = self.refused(text, take)
            self.assertIn("[x]", message)
            self.assertRegex(message, r"\bk\b")

    def test_what_is_no_table(self) -> None:
        """The message says where it is."""
        self.assertIn("[x]", str(self.assertRaises(ValueError, Table, ["k"], "[x]")))
