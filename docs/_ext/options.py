"""A Sphinx directive that shows what ``twistd asyncplumber --help`` prints.

The page of the options is generated from the program, so it cannot be out of date.
"""

from __future__ import annotations

import inspect

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from asyncplumber import tap


class OptionsDirective(SphinxDirective):
    """Render the help of the command."""

    def run(self) -> list[nodes.Node]:
        """Ask the option parser, with an empty environment."""
        self.env.note_dependency(inspect.getfile(tap))
        text = str(tap.Options({}))
        text = text.replace(
            text.split("\n", 1)[0], "Usage: twistd [options] asyncplumber [options]"
        )
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive."""
    app.add_directive("options-of-the-program", OptionsDirective)
    return {"parallel_read_safe": True}
