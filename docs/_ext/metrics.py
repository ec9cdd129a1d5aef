"""
A Sphinx directive with the metrics that the program exports.

A server in memory is asked for ``/metrics``, so the page cannot be out of date.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from asyncplumber.testing import MemoryServer


def described() -> Iterator[tuple[str, str, str]]:
    """Yield name, type and help of each metric."""
    text = MemoryServer().request("GET", "/metrics").body.decode()
    for name, help_text, kind in re.findall(r"# HELP (\S+) (.*)\n# TYPE \1 (\S+)\n", text):
        yield name, kind, help_text


class MetricsDirective(SphinxDirective):
    """Render a table of all metrics."""

    def run(self) -> list[nodes.Node]:
        """Ask the server and parse the table."""
        lines = [".. list-table::", "   :header-rows: 1", ""]
        for row in [("Name", "Type", "Meaning"), *described()]:
            name, kind, meaning = row
            shown = name if name == "Name" else f"``{name}``"
            lines += [f"   * - {shown}", f"     - {kind}", f"     - {meaning}"]
        return self.parse_text_to_nodes(StringList(lines, source="metrics"))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive."""
    app.add_directive("metrics-of-the-program", MetricsDirective)
    return {"parallel_read_safe": True}
