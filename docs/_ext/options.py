"""
A Sphinx directive that lists the options of ``twistd asyncplumber``.

The list is that of the program, so the page cannot be out of date.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from asyncplumber import option_list
from asyncplumber.option_list import FLAGS, GROUPS, variable_of


def entry(name: str, value: str, text: str, default: str, variable: str) -> Iterator[str]:
    """Yield one item of a definition list."""
    yield f"``--{name}{' ' if value else ''}{value}``"
    escaped = text.replace("*", chr(92) + "*").replace("_", chr(92) + "_")
    yield f"   {escaped}"
    if default:
        yield f"   Default: ``{default}``."
    yield f"   In the environment: ``{variable}``."
    yield ""


def lines() -> Iterator[str]:
    """Yield all groups as reStructuredText."""
    for group, options in GROUPS.items():
        yield f".. rubric:: {group}"
        yield ""
        for option in options:
            if option.value:
                yield from entry(
                    option.name, option.value, option.text, option.default, option.variable
                )
    yield ".. rubric:: Flags"
    yield ""
    for name, text in FLAGS.items():
        yield from entry(name, "", text, "", variable_of(name))


class OptionsDirective(SphinxDirective):
    """Render the options by groups."""

    def run(self) -> list[nodes.Node]:
        """Read them from the program."""
        self.env.note_dependency(inspect.getfile(option_list))
        return self.parse_text_to_nodes(StringList(list(lines()), source="options"))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive."""
    app.add_directive("options-of-the-program", OptionsDirective)
    return {"parallel_read_safe": True}
