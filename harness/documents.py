"""Commands and files that a page of the documentation shows, for tests that execute them."""

from __future__ import annotations

import re
from textwrap import dedent

from harness.processes import ROOT

_NAMED_BLOCK = re.compile(
    r"^\.\. code-block:: \w+\n   :name: (?P<name>\S+)\n\n(?P<text>(?:   .*\n|\n)+)", re.MULTILINE
)


def named_blocks(page: str) -> dict[str, str]:
    """Return the code blocks with a ``:name:`` of a page of ``docs/``, by that name."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8") + "\n"
    return {
        found["name"]: dedent(found["text"]).strip() + "\n" for found in _NAMED_BLOCK.finditer(text)
    }
