"""The documentation and the browser client agree about close codes and options."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.transports.closes import (
    FORBIDDEN,
    GOING_AWAY,
    INTERNAL_ERROR,
    TOO_MANY_REQUESTS,
    TRY_AGAIN_LATER,
    UNAUTHENTICATED,
)
from asyncplumber.transports.frame_parser import POLICY_VIOLATION, TOO_BIG

ROOT = Path(__file__).resolve().parent.parent.parent


def text(path: str) -> str:
    """Return the text of a file of the project."""
    return (ROOT / path).read_text(encoding="utf-8")


class CloseCodeTests(SynchronousTestCase):
    """What the files say; no browser is needed."""

    def setUp(self) -> None:
        client = text("asyncplumber/http/static/asyncplumber.js")
        listed = re.search(r"if \(\[([\d, ]+)\]\.includes\(failure\.code\)\) return true", client)
        assert listed is not None
        self.final = {int(code) for code in listed[1].split(",")}

    def test_the_sentence_of_the_protocol_page(self) -> None:
        """It names the codes that the client takes as final."""
        sentence = re.search(
            r"unless the code is one of ([^.]+)\.", text("docs/reference/errors.rst")
        )
        assert sentence is not None
        named = {int(code) for code in re.findall(r"\d{4}", sentence[1])}
        self.assertEqual(named, self.final)

    def test_the_table_of_the_protocol_page(self) -> None:
        """Each row says the same as the sentence."""
        rows = re.findall(
            r"^(\d{4})  .*  (yes|no)$",
            text("docs/reference/errors.rst"),
            re.MULTILINE,
        )
        self.assertEqual(len(rows), 9)
        for code, answer in rows:
            self.assertEqual(answer == "yes", int(code) not in self.final, code)

    def test_the_table_of_the_client_page(self) -> None:
        """The row of the final codes is the client's list."""
        row = re.search(
            r"^WebSocket ([\d, ]+?)  +no$", text("docs/reference/javascript.rst"), re.MULTILINE
        )
        assert row is not None
        self.assertEqual({int(code) for code in row[1].split(",")}, self.final)

    def test_codes_that_mirror_http_are_on_both_pages(self) -> None:
        """The client treats them like the HTTP status, and the server sends three of them."""
        self.assertIn("code - 4000", text("asyncplumber/http/static/asyncplumber.js"))
        self.assertIn("Codes from 4400 to 4499", text("docs/reference/errors.rst"))
        self.assertIn("WebSocket 4400-4499", text("docs/reference/javascript.rst"))

    def test_the_codes_that_the_server_sends_are_in_the_table(self) -> None:
        """Each constant of the WebSocket transport, but the answer to the client's own close."""
        rows = re.findall(r"^(\d{4})  ", text("docs/reference/errors.rst"), re.MULTILINE)
        sent = {GOING_AWAY, INTERNAL_ERROR, TRY_AGAIN_LATER, POLICY_VIOLATION, TOO_BIG}
        sent |= {UNAUTHENTICATED, FORBIDDEN, TOO_MANY_REQUESTS}
        self.assertEqual(sent - {int(code) for code in rows}, set())


class OptionTests(SynchronousTestCase):
    """The options of the browser client."""

    def test_the_client_page_lists_the_options_with_their_defaults(self) -> None:
        """All but those that only replace the browser in tests."""
        client = text("asyncplumber/http/static/asyncplumber.js")
        block = re.search(r"const DEFAULTS = \{(.*?)// For tests", client, re.DOTALL)
        assert block is not None
        options = dict(re.findall(r"^    (\w+): (.*?),(?: //.*)?$", block[1], re.MULTILINE))
        table = text("docs/reference/javascript.rst").partition("Options\n---")[2]
        table = table.partition("How it reconnects")[0]
        rows = dict(re.findall(r"^``(\w+)``  +(\S+(?: \S+)*)", table, re.MULTILINE))
        self.assertEqual(set(options), set(rows))
        self.assertEqual(f"{options['refusedBackoff']} ms", rows["refusedBackoff"].replace("`", ""))
        for name in ("connectTimeout", "idleTimeout", "resetBackoffAfter", "upgradeAfter"):
            self.assertEqual(f"{options[name]} ms", rows[name])
