"""The documentation and the browser client agree about WebSocket close codes."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent.parent


def text(path: str) -> str:
    """A file of the project."""
    return (ROOT / path).read_text(encoding="utf-8")


class CloseCodeTests(SynchronousTestCase):
    """Read from the files: no browser is needed."""

    def setUp(self) -> None:
        client = text("asyncplumber/http/static/asyncplumber.js")
        listed = re.search(r"if \(\[([\d, ]+)\]\.includes\(code\)\) return true", client)
        assert listed is not None
        self.final = {int(code) for code in listed[1].split(",")}

    def test_the_sentence_of_the_protocol_page(self) -> None:
        """
        Beside 4401 and 4403, which mirror HTTP, it names the codes that the client takes as final.
        """
        sentence = re.search(
            r"unless the code is one of ([^.]+)\.", text("docs/reference/errors.rst")
        )
        assert sentence is not None
        named = {int(code) for code in re.findall(r"\d{4}", sentence[1])}
        self.assertEqual(named, self.final | {4401, 4403})

    def test_the_table_of_the_protocol_page(self) -> None:
        """Each row says the same as the sentence."""
        rows = re.findall(
            r"^(\d{4})  .*  (yes|no|with a new one)$",
            text("docs/reference/errors.rst"),
            re.MULTILINE,
        )
        self.assertGreaterEqual(len(rows), 10)
        for code, answer in rows:
            is_final = int(code) in self.final or code.startswith("4")
            self.assertEqual(answer == "yes", not is_final, code)

    def test_the_table_of_the_client_page(self) -> None:
        """The row of the final codes is the client's list."""
        row = re.search(
            r"^WebSocket ([\d, ]+?)  +no$", text("docs/reference/javascript.rst"), re.MULTILINE
        )
        assert row is not None
        self.assertEqual({int(code) for code in row[1].split(",")}, self.final)
