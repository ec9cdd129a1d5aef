"""
A Sphinx directive for zope interfaces, which autodoc does not take for classes.

``.. interface:: asyncplumber.interfaces.IHistory`` renders the docstring of the interface, its
attributes and its methods, with docstrings in Google style.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.ext.napoleon import GoogleDocstring  # type: ignore[attr-defined]
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata
from zope.interface.interface import Attribute, InterfaceClass, Method


def rendered(docstring: str, config: Config, indent: str) -> Iterator[str]:
    """Yield a docstring as reStructuredText, one line at a time."""
    for line in str(GoogleDocstring(inspect.cleandoc(docstring), config)).splitlines():
        yield f"{indent}{line}".rstrip()
    yield ""


def lines(interface: InterfaceClass, config: Config) -> Iterator[str]:
    """Yield the description of an interface."""
    bases = ", ".join(f"``{base.getName()}``" for base in interface.getBases())
    yield f".. py:class:: {interface.getName()}"
    yield ""
    yield from rendered(interface.getDoc(), config, "   ")
    if bases != "``Interface``":
        yield f"   Extends {bases}."
        yield ""
    members: dict[str, Attribute] = dict(interface.namesAndDescriptions())
    for name, member in members.items():
        if isinstance(member, Method):
            yield f"   .. py:method:: {name}{member.getSignatureString()}"
        else:
            yield f"   .. py:attribute:: {name}"
        yield ""
        yield from rendered(member.getDoc() or member.__doc__ or "", config, "      ")


class InterfaceDirective(SphinxDirective):
    """Render one interface, given by its dotted name."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Import the interface and parse its description."""
        module, _, name = self.arguments[0].rpartition(".")
        interface = getattr(import_module(module), name)
        self.env.note_dependency(inspect.getfile(import_module(module)))
        text = StringList(list(lines(interface, self.config)), source=self.arguments[0])
        return self.parse_text_to_nodes(text)


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive."""
    app.add_directive("interface", InterfaceDirective)
    return {"parallel_read_safe": True}
