"""
A Sphinx directive with the metrics that the program exports.

A server in memory is asked for its figures, so the page cannot be out of date.
"""

from __future__ import annotations

from collections.abc import Iterator

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from asyncplumber.figures import FigureSet
from asyncplumber.http.metrics import PREFIX
from asyncplumber.stores.outage import Outage
from asyncplumber.testing import MemoryServer


def described() -> Iterator[tuple[str, str, str]]:
    """Yield name with labels, type and help of each metric."""
    figures = dict(MemoryServer().plumber.front.metrics.combined())
    # What a store in memory does not have: it is never away.
    figures.update(FigureSet(*Outage("").figures).collect())
    for name, figure in figures.items():
        labels = f"{{{', '.join(figure.labels)}}}" if figure.labels else ""
        yield f"{PREFIX}{name}{labels}", figure.kind, figure.help


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
