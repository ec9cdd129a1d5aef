"""Settings of Sphinx.  Build with ``nox -s docs``; every warning is an error there."""

from __future__ import annotations

import sys
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

_metadata = ConfigParser()
_metadata.read(HERE.parent / "setup.cfg", encoding="utf-8")

project = "asyncplumber"
author = "the asyncplumber authors"
release = version = _metadata["metadata"]["version"]

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "interfaces",  # docs/_ext: zope interfaces
    "metrics",  # docs/_ext: what /metrics exports
    "options",  # docs/_ext: the command line
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"asyncplumber {release}"
html_show_sourcelink = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
