"""Text of strangers in the log."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.log_text import escaped, path_of


class EscapedTests(SynchronousTestCase):
    """What a terminal would obey is shown instead."""

    def test_controls(self) -> None:
        """C0, C1, and what ends a line."""
        for text, safe in (
            ("a\r\nb\tc", r"a\r\nb\tc"),
            ("\x1b[2J", r"\x1b[2J"),
            ("\x9b\x7f", r"\x9b\x7f"),
            ("\u2028\u2029", r"\u2028\u2029"),
        ):
            self.assertEqual(escaped(text), safe)

    def test_bidirectional_controls(self) -> None:
        """They would show an account as another one."""
        for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C):
            self.assertEqual(escaped(f"a{chr(code)}b"), f"a\\u{code:04x}b")

    def test_all_else_is_kept(self) -> None:
        """Accounts may have any letters, and most logs are read by people."""
        for text in ("konto-42", "Zoë", "日本", "مرحبا", "a b", "\\n", "🙂"):
            self.assertEqual(escaped(text), text)

    def test_lines_may_be_kept(self) -> None:
        """Of a traceback."""
        self.assertEqual(escaped("a\n  b\r\x00", lines=True), "a\n  b\\r\\x00")

    @given(some.text())
    def test_the_result_can_be_written(self, text: str) -> None:
        """As UTF-8, in one line, and it is safe."""
        safe = escaped(text)
        safe.encode()
        self.assertEqual(escaped(safe), safe)
        self.assertLessEqual(len(safe.splitlines()), 1)


class PathTests(SynchronousTestCase):
    """The path of a request."""

    def test_the_query_is_left_out(self) -> None:
        """It may have a ticket in it."""
        self.assertEqual(path_of(b"/events/a?ticket=secret"), "/events/a")

    def test_bytes_that_are_no_text(self) -> None:
        """They are shown as such."""
        self.assertEqual(path_of(b"/a\xff\x1b\n"), r"/a\xff\x1b\n")

    def test_a_long_one_is_cut(self) -> None:
        """It ends where it was cut, and shows that."""
        self.assertEqual(path_of(b"/" + b"a" * 199), "/" + "a" * 199)
        self.assertEqual(path_of(b"/" + b"a" * 200), "/" + "a" * 199 + "…")


class TokenTests(SynchronousTestCase):
    """What follows ``/callbacks/`` in a path is a credential."""

    def test_it_is_not_shown(self) -> None:
        for target in (
            b"/callbacks/secret",
            b"/callbacks/secret?state=running",
            b"/plumber/callbacks/secret/x",
            b"//callbacks/secret",
            b"/callbacks//secret",
            b"/CALLBACKS/secret",
            b"/%63allbacks/secret",
            b"/callbacks%2fsecret",
        ):
            self.assertNotIn("secret", path_of(target), target)
        self.assertEqual(path_of(b"/plumber/callbacks/secret?x"), "/plumber/callbacks/…")

    def test_other_paths_are_shown(self) -> None:
        for target in (b"/callbacks", b"/hooks/callbacks", b"/hooks/a%20b"):
            self.assertEqual(path_of(target), target.decode())
